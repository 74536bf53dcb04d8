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
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from service.analysis.schedule import Scheduler
from service.analysis.waiting import Stream
from service.backend import open_backend
from service.backends.triton import TritonBackend
from service.models import installed
from service.settings.analysis import Analysis, Triton
from service.types import Array, Network
from tests.support import REPOSITORY
from tests.triton_server import TritonServer

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

    compare("bare", bare, Scheduler(open_backend(Analysis())), asked)


@pytest.mark.parametrize("kind", ["system", "none"])
def test_the_scheduler_on_triton_beside_its_bare_client(kind: Literal["system", "none"], tmp_path: Path) -> None:
    """The bare side is tritonclient as its examples use it: one call after the other, patches in messages."""
    known = networks()
    asked = patches(known)
    server = TritonServer(tmp_path / "triton", [REPOSITORY / "models" / name for name in ("ct-liver", *known)])
    server.start()
    client = InferenceServerClient(server.url)

    def bare() -> None:
        for (_, name), some in asked.items():
            for patch in some:
                tensor = InferInput(known[name].input.name, [1, *patch.shape], "FP32")
                tensor.set_data_from_numpy(patch[np.newaxis])
                client.infer(name, [tensor]).as_numpy(known[name].outputs[0].name)

    backend = TritonBackend(server.url, Triton(shared_memory=kind), patch_seconds=120)
    try:
        compare("bare client", bare, Scheduler(backend), asked)
        backend_again = TritonBackend(server.url, Triton(shared_memory=kind), patch_seconds=120)
        (lesion, *_) = known.values()
        backend_again.load(lesion)
        before = backend_again.copied_bytes
        backend_again.infer(lesion.name, asked[0, lesion.name][:1])
        copied = backend_again.copied_bytes - before
        backend_again.close()
        print(json.dumps({"shared_memory": kind, "copied_bytes_per_lesion_patch": copied}))
    finally:
        client.close()
        server.kill()


def compare(
    peer: str, bare: Callable[[], None], scheduler: Scheduler, asked: Mapping[tuple[int, str], list[Array]]
) -> None:
    """Run both sides in turn, print their times, and close the scheduler."""
    for model in installed(REPOSITORY / "models", list(PATCHES)):
        scheduler.add(model)
    rounds = []
    for turn in range(ROUNDS):
        sides = [("bare", bare), ("scheduler", lambda: through(scheduler, asked))]
        rounds.append({name: seconds(work) for name, work in (sides if turn % 2 else reversed(sides))})
    scheduler.close()
    figures = {
        "backend": scheduler.backend.name,
        "beside": peer,
        "patches": sum(map(len, asked.values())),
        "bare_seconds": round(statistics.median(r["bare"] for r in rounds), 1),
        "scheduler_seconds": round(statistics.median(r["scheduler"] for r in rounds), 1),
        "ratio": round(statistics.median(r["bare"] / r["scheduler"] for r in rounds), 3),
        "ratios": sorted(round(r["bare"] / r["scheduler"], 3) for r in rounds),
    }
    print(json.dumps(figures))
