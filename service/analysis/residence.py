"""Networks come and go on the device: the memory's account, carried out on the backend.

Whoever loads or unloads a network does so outside the lock, which may take minutes; meanwhile the network is *moving*,
and nobody else runs, loads or unloads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from threading import Condition

from service import log, metrics
from service.analysis.memory import Admission, Memory
from service.errors import OutOfMemory, TooLarge
from service.types import Backend, Network


class Residence:
    """What is loaded on one backend.

    Parameters
    ----------
    wake
        The scheduler's lock. It is held by the callers of `admit` and `begin`, and by nobody else's when they call.
    """

    def __init__(self, backend: Backend, wake: Condition) -> None:
        self._backend, self._wake = backend, wake
        self.memory = Memory(backend.memory_bytes)
        self.moving: set[str] = set()

    def admit(self, network: str, size: int, *, keep: Iterable[str]) -> Admission | None:
        """As `Memory.admit`; what it takes in is moving until `prepare` is done."""
        admission = self.memory.admit(network, size, keep=self.moving.union(keep))
        if admission:
            for name in admission.unload:
                self.memory.drop(name)
            self.moving.update(admission.unload, [network] if admission.load else [])
        return admission

    def prepare(self, network: Network, admission: Admission) -> None:
        """Unload what must go for an admitted batch, load what must come.

        Raises
        ------
        BackendError
            As the backend raised it; the network then counts as not loaded.
        """
        try:
            for name in admission.unload:
                self._let_go(name)
            if admission.load:
                self._load(network)
        except BaseException:
            with self._wake:
                self.memory.drop(network.name)
            raise
        finally:
            with self._wake:
                self.moving.difference_update(admission.unload, [network.name])
                self._wake.notify_all()

    def settle(self, network: Network) -> None:
        """Load a network for the first time, and see that it can stay.

        Raises
        ------
        BackendError
            As the backend raised it; TooLarge if it does not fit even alone.
        """
        with self._wake:
            self.moving.add(network.name)
        try:
            self._load(network)
            if not self.memory.fits_alone(network.name):
                self._let_go(network.name)
                raise too_large(network.name, self.memory)
            with self._wake:
                self.memory.put(network.name)
            self.make_room()
        finally:
            with self._wake:
                self.moving.discard(network.name)
                self._wake.notify_all()

    def make_room(self, *, keep: str = "") -> bool:
        """Unload idle networks: all but `keep`, or the longest unused until the rest fits; whether any went."""
        went = False
        while True:
            with self._wake:
                idle = [name for name in self.memory.idle() if name != keep and name not in self.moving]
                if not idle or (not keep and self.memory.fits()):
                    return went
                self.moving.add(idle[0])
                self.memory.drop(idle[0])
            self._let_go(idle[0])
            with self._wake:
                self.moving.discard(idle[0])
            went = True

    def _let_go(self, network: str) -> None:
        """Unload a network; where that fails the backend is in trouble, which the next batch will tell."""
        try:
            self._backend.unload(network)
        except Exception as exc:
            log.failure("network.not_unloaded", exc, network=network)

    def _load(self, network: Network) -> None:
        """Load a network; if the account was wrong, once more with everything idle unloaded."""
        try:
            envelope = self._backend.load(network)
        except OutOfMemory:
            if not self.make_room(keep=network.name):
                raise
            envelope = self._backend.load(network)
        with self._wake:
            self.memory.learn(network.name, envelope)
        metrics.NETWORK_LOADS.labels(network=network.name).inc()


def too_large(network: str, memory: Memory) -> TooLarge:
    """The error for a network that does not fit even alone."""
    return TooLarge(
        doing=f"finding room for the network {network}",
        found=f"{memory.least_bytes(network) / 2**30:.1f} GiB for its weights and one patch",
        rule=f"a network and one patch fit into {memory.limit_bytes / 2**30:.1f} GiB ([analysis] gpu_memory_gib)",
        way_out="raise the limit, give the machine more memory, or leave the model out",
    )
