"""Three studies by two models through the scheduler, beside bare ONNX Runtime sessions on the same patches, in one run.

The bare side is what ONNX Runtime does by itself: a session per network with its own defaults, all cores to each
patch, one after the other. Every second round begins with the other side.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort

from service.analysis.schedule import Scheduler
from service.analysis.waiting import Stream
from service.backend import open_backend
from service.config import Analysis
from service.models import installed
from service.types import Array, Network
from tests.support import REPOSITORY

ROUNDS = 5
STUDIES = 3
PATCHES = {"ct-liver-lesion": 2, "ct-lung-nodule": 8}  # of each study


def networks() -> dict[str, Network]:
    """The last network of each model."""
    return {model.networks[-1].name: model.networks[-1] for model in installed(REPOSITORY / "models", list(PATCHES))}


def patches(known: Mapping[str, Network]) -> dict[tuple[int, str], list[Array]]:
    """Noise in the networks' range, by study and network; the time of a network does not depend on its input."""
    random = np.random.default_rng(0)
    return {
        (study, name): [random.uniform(-0.5, 0.5, network.input.dims).astype(np.float32) for _ in range(PATCHES[name])]
        for study in range(STUDIES)
        for name, network in known.items()
    }


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def through(scheduler: Scheduler, asked: Mapping[tuple[int, str], list[Array]]) -> None:
    """Every study asks every network at the same time, as the pipeline does."""
    with ThreadPoolExecutor(len(asked)) as pool:
        for future in [pool.submit(ask, scheduler, name, some) for (_, name), some in asked.items()]:
            future.result()


def ask(scheduler: Scheduler, network: str, some: list[Array]) -> None:
    """Ask for patches and throw the answers away."""
    for _ in scheduler.map(Stream(), network, some):
        pass


def test_the_scheduler_beside_bare_sessions() -> None:
    known = networks()
    asked = patches(known)
    sessions = {
        name: ort.InferenceSession(network.file, providers=["CPUExecutionProvider"]) for name, network in known.items()
    }

    def bare() -> None:
        for (_, name), some in asked.items():
            for patch in some:
                sessions[name].run(None, {known[name].input.name: patch[np.newaxis]})

    scheduler = Scheduler(open_backend(Analysis()))
    for model in installed(REPOSITORY / "models", list(PATCHES)):
        scheduler.add(model)
    rounds = []
    for turn in range(ROUNDS):
        sides = [("bare", bare), ("scheduler", lambda: through(scheduler, asked))]
        rounds.append({name: seconds(work) for name, work in (sides if turn % 2 else reversed(sides))})
    scheduler.close()
    figures = {
        "backend": scheduler.backend.name,
        "patches": sum(map(len, asked.values())),
        "bare_seconds": round(statistics.median(r["bare"] for r in rounds), 1),
        "scheduler_seconds": round(statistics.median(r["scheduler"] for r in rounds), 1),
        "ratio": round(statistics.median(r["bare"] / r["scheduler"] for r in rounds), 3),
        "ratios": sorted(round(r["bare"] / r["scheduler"], 3) for r in rounds),
    }
    print(json.dumps(figures))
