"""A backend whose every batch a test can see, hold and let fail. The only fake here: it implements our own Protocol."""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from service.spec import ModelSpec
from service.stage import Tensor
from service.types import Array, Envelope, Model, Network
from tests.toys import MODEL_TOML

GIB = 2**30
Fault = Callable[[str, list[float]], BaseException | None]


def envelope(
    *, resident: float = 0.0, batch: float = 0.0, best: int = 1, seconds: float = 1.0, load_seconds: float = 0.0
) -> Envelope:
    """An envelope with sizes in GiB; a batch of `best` patches takes as long as one patch does."""
    sizes = [size for size in (1, 2, 4, 8, 16) if size <= best]
    return Envelope(
        device="fake",
        resident_bytes=round(resident * GIB),
        batch_bytes={size: round(batch * size * GIB) for size in sizes},
        batch_seconds=dict.fromkeys(sizes, seconds),
        load_seconds=load_seconds,
    )


def model(*networks: str, name: str = "") -> Model:
    """A model of networks that read and answer one number."""
    spec = ModelSpec.model_validate(tomllib.loads(MODEL_TOML.format(name=name or networks[0], orientation="LPS")))
    return Model(
        spec=spec,
        folder=Path("nowhere"),
        weights_sha256="0" * 64,
        networks=tuple(
            Network(
                name=network,
                file=Path("nowhere"),
                sha256="0" * 64,
                input=Tensor(name="input", shape=(1,)),
                outputs=(Tensor(name="output", shape=(1,)),),
                half_precision=False,
            )
            for network in networks
        ),
    )


def patch(value: float) -> Array:
    """A patch that a test knows again."""
    return np.full((1, 1), value, np.float32)


class FakeBackend:
    """It answers twice the patch.

    Attributes
    ----------
    batches
        What was run, in the order in which it began: the network, and the patches' numbers.
    loads, unloads
        What was loaded and unloaded.
    fault
        Asked at each batch; what it returns is raised.
    """

    name = "fake"

    def __init__(
        self, *, slots: int = 1, memory_gib: float = 0.0, envelopes: dict[str, Envelope] | None = None
    ) -> None:
        self.slots, self.memory_bytes = slots, round(memory_gib * GIB)
        self.envelopes = envelopes or {}
        self.batches: list[tuple[str, list[float]]] = []
        self.beside: list[int] = []  # how many others ran when each of them began
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.fault: Fault = lambda network, values: None
        self.load_fault: Callable[[str], BaseException | None] = lambda network: None
        self.closed = False
        self.most_bytes = 0
        self._loaded: set[str] = set()
        self._running: list[tuple[str, int]] = []
        self._lock = threading.Lock()
        self._gate = threading.Semaphore(0)
        self._held = False
        self._began = threading.Condition(self._lock)

    def hold(self) -> None:
        """From now on each batch waits until it is let go."""
        self._held = True

    def let_go(self, count: int = 1) -> None:
        """Let so many batches end."""
        for _ in range(count):
            self._gate.release()

    def free(self) -> None:
        """Hold nothing any more."""
        self._held = False
        self.let_go(1000)

    def wait_for(self, batches: int) -> None:
        """Wait until so many batches have begun."""
        with self._began:
            assert self._began.wait_for(lambda: len(self.batches) >= batches, timeout=20), self.batches

    def load(self, network: Network) -> Envelope:
        if fault := self.load_fault(network.name):
            raise fault
        with self._lock:
            self.loads.append(network.name)
            self._loaded.add(network.name)
            self._measure()
        return self.envelopes.get(network.name, envelope())

    def unload(self, network: str) -> None:
        with self._lock:
            assert network not in [name for name, _ in self._running], f"{network} was unloaded while it ran"
            self.unloads.append(network)
            self._loaded.discard(network)

    def infer(self, network: str, patches: Sequence[Array]) -> tuple[Array, ...]:
        values = [float(one.ravel()[0]) for one in patches]
        entry = (network, len(values))
        with self._began:
            assert network in self._loaded, f"{network} ran without being loaded"
            self.batches.append((network, values))
            self.beside.append(len(self._running))
            self._running.append(entry)
            self._measure()
            self._began.notify_all()
        try:
            if self._held:
                assert self._gate.acquire(timeout=20)
            if fault := self.fault(network, values):
                raise fault
        finally:
            with self._lock:
                self._running.remove(entry)
        return (np.stack(list(patches)) * 2,)

    def ready(self) -> bool:
        return not self.closed

    def close(self) -> None:
        self.closed = True
        self.free()

    def _measure(self) -> None:
        """The greatest memory that was ever taken at once, by the envelopes."""
        taken = sum(self.envelopes[name].resident_bytes for name in self._loaded if name in self.envelopes)
        taken += sum(
            self.envelopes[name].batch_bytes.get(size, 0) for name, size in self._running if name in self.envelopes
        )
        self.most_bytes = max(self.most_bytes, taken)
