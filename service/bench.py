"""``overread models bench``: patches per second of each network, through the scheduler and by the backend alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from service.analysis.schedule import Scheduler
from service.analysis.waiting import Stream
from service.show import console
from service.types import Array, Backend, Envelope, Model, Network

_SEEDS = 4  # different patches, in turn: the caches must not learn one by heart
_LEAST = 3  # patches of the shortest measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was measured of one network."""

    network: str
    envelope: Envelope
    patches: int  # of each measurement
    direct: dict[int, float]  # by batch size: patches per second of the backend alone
    scheduled: float  # patches per second through the scheduler, which chooses the batches

    @property
    def ratio(self) -> float:
        """Of the scheduler's to the best of the backend alone."""
        return self.scheduled / max(self.direct.values())


def bench(models: Sequence[Model], backend: Backend, *, seconds: float) -> int:
    """Measure the networks of some models and print a table.

    Parameters
    ----------
    backend
        Is closed in the end.
    seconds
        About how long each measurement of a network may last.

    Returns
    -------
    int
        0.
    """
    table = Table(title=f"{backend.name}, {backend.slots} batches at once", title_style="bold")
    for name in ("network", "loaded", "batch: patches/s alone, memory", "patches/s scheduled", "of the best"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for speed in measure(models, backend, seconds=seconds):
        sizes = [
            f"{size}: {rate:.2f}, {speed.envelope.batch_bytes[size] / 2**30:.2f} GiB"
            for size, rate in speed.direct.items()
        ]
        table.add_row(
            speed.network,
            f"{speed.envelope.resident_bytes / 2**30:.2f} GiB",
            "\n".join(sizes),
            f"{speed.scheduled:.2f}",
            f"{speed.ratio:.2f}",
        )
    console.print(table)
    return 0


def measure(models: Sequence[Model], backend: Backend, *, seconds: float) -> Iterator[Speed]:
    """Measure each network once; the backend is closed in the end.

    Raises
    ------
    BackendError
        If one can't run.
    """
    scheduler = Scheduler(backend)
    try:
        networks = {network.name: network for model in models for network in model.networks}
        for model in models:
            scheduler.add(model)
        for network in networks.values():
            yield _measure(network, scheduler, seconds)
    finally:
        scheduler.close()


def _measure(network: Network, scheduler: Scheduler, seconds: float) -> Speed:
    backend = scheduler.backend
    (envelope,) = (state.envelope for state in scheduler.states() if state.name == network.name)
    assert envelope  # it was loaded once, and so measured
    count = max(_LEAST, envelope.best_batch * backend.slots, int(seconds / min(_each(envelope).values())))
    for _ in scheduler.map(Stream(), network.name, _patches(network, envelope.best_batch)):
        pass  # it may have had to make room for others: now it is loaded
    began = time.perf_counter()
    for _ in scheduler.map(Stream(), network.name, _patches(network, count)):
        pass
    scheduled = count / (time.perf_counter() - began)
    direct = {size: _direct(network, envelope, size, count, backend) for size in sorted(envelope.batch_seconds)}
    return Speed(network=network.name, envelope=envelope, patches=count, direct=direct, scheduled=scheduled)


def _direct(network: Network, envelope: Envelope, size: int, count: int, backend: Backend) -> float:
    """Patches per second of the backend, called back to back by as many threads as have room."""
    room = backend.memory_bytes - envelope.resident_bytes
    fits = room // max(1, envelope.batch_bytes[size]) if backend.memory_bytes else backend.slots
    batches = max(1, round(count / size))
    batch = list(_patches(network, size))
    with ThreadPoolExecutor(max_workers=max(1, min(backend.slots, fits, batches))) as pool:
        began = time.perf_counter()
        for _ in pool.map(lambda _: backend.infer(network.name, batch), range(batches)):
            pass
        return batches * size / (time.perf_counter() - began)


def _each(envelope: Envelope) -> dict[int, float]:
    return {size: seconds / size for size, seconds in envelope.batch_seconds.items()}


def _patches(network: Network, count: int) -> Iterator[Array]:
    """Noise between 0 and 1, made before it is asked for."""
    made = [np.random.default_rng(seed).random(network.input.dims, np.float32) for seed in range(min(count, _SEEDS))]
    return (made[index % len(made)] for index in range(count))
