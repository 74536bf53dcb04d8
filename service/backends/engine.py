"""The `Backend` on ONNX Runtime, in a process of its own: a network that crashes or hangs takes nothing else with it.

Patches and answers lie in memory that both processes see; each is copied once on this side, and not at all on the
other (a GPU reads it from there by itself). Small messages on a pipe say what is to be done.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from service import log
from service.backends.envelope import read_envelope, write_envelope
from service.backends.messages import Command, Loaded, Measured, place_batch
from service.backends.process import Engine, NotSent
from service.backends.providers import memory_limit
from service.backends.shared import Block
from service.errors import BackendUnavailable, ContractBroken
from service.types import Array, Envelope, Network

_LOAD_PATCHES: Final = 10  # loading, and measuring, may last as long as so many patches: TensorRT takes minutes
_MEASURED_PART: Final = 4  # a batch is measured only up to this part of the time limit
_TRIES: Final = 10  # to reach an engine that others' networks keep killing before the batch is sent
_GRAIN_BYTES: Final = 2**20  # blocks grow in steps, so that batches of nearly one size share one


@dataclass(slots=True)
class _Known:
    """A network that was loaded; in which generation of the engine it is loaded now may be an earlier one."""

    network: Network
    envelope: Envelope
    generation: int


@dataclass(slots=True)
class _Lane:
    """The way of one batch at a time: a thread of the engine, and a block that is used again and again."""

    number: int
    block: Block | None = None
    generation: int = 0  # of the engine that has the block


@dataclass(slots=True)
class _Lanes:
    """Deals the lanes out; whoever wants all of them goes first."""

    free: list[_Lane]
    wanted: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def one(self) -> Iterator[_Lane]:
        """Wait for a lane, and have it."""
        with self.changed:
            self.changed.wait_for(lambda: self.free and not self.wanted)
            lane = self.free.pop()
        try:
            yield lane
        finally:
            with self.changed:
                self.free.append(lane)
                self.changed.notify_all()

    @contextmanager
    def all(self, count: int) -> Iterator[None]:
        """Wait until nothing runs, and keep it so. One caller at a time."""
        with self.changed:
            self.wanted = True
            self.changed.wait_for(lambda: len(self.free) == count)
        try:
            yield
        finally:
            with self.changed:
                self.wanted = False
                self.changed.notify_all()


class OnnxBackend:
    """A `Backend` whose networks run in another process.

    Parameters
    ----------
    threads
        CPU threads for all networks together; 0: as many as this process may use.
    memory_gib
        What loaded networks and running batches may take together; 0: nine tenths of what is free.
    patch_seconds
        Time limit for a patch of a batch.

    Raises
    ------
    BackendUnavailable
        If the engine does not start.
    """

    def __init__(self, *, threads: int = 0, memory_gib: float = 0.0, patch_seconds: float = 120.0) -> None:
        self._engine = Engine(threads=threads, memory_gib=memory_gib)
        abilities = self._engine.abilities
        self.name, self._device = abilities.name, abilities.device
        self.slots, self.memory_bytes = abilities.slots, abilities.memory_bytes
        self._patch_seconds = patch_seconds
        self._networks: dict[str, _Known] = {}
        self._loading = threading.RLock()  # one load at a time, so that each sees only its own memory
        self._lanes = _Lanes([_Lane(number) for number in range(self.slots)])
        atexit.register(self.close)  # before multiprocessing would wait for a process that it can't end

    @property
    def pid(self) -> int | None:
        """Number of the engine's process, for operators; None while it starts."""
        return self._engine.pid

    def load(self, network: Network) -> Envelope:
        """Load a network, and measure it where it was not measured before; see `Backend.load`."""
        with self._loading:
            for _ in range(_TRIES):
                try:
                    return self._make_ready(network)
                except NotSent:
                    continue
        raise _keeps_dying(f"loading the network {network.name}")

    def unload(self, network: str) -> None:
        """Give back what a network holds; see `Backend.unload`."""
        with self._loading:
            known = self._networks.pop(network, None)
            if known is None:
                return
            try:
                self._other(known.generation, Command(verb="unload", network=network), "unloading")
            except (NotSent, BackendUnavailable):
                return  # an engine that is gone holds nothing

    def infer(self, network: str, patches: Sequence[Array]) -> tuple[Array, ...]:
        """Run one batch; see `Backend.infer`."""
        doing = f"running the network {network}"
        for _ in range(_TRIES):
            known = self._networks.get(network)
            if known is None:
                raise ContractBroken(
                    doing=doing,
                    found="it is not loaded",
                    rule="a network is loaded, and held against model.toml, before it runs",
                    way_out="see model.broken in the log, or run overread check; then start the service again",
                )
            _check_patches(known.network, patches, doing)
            generation = self._engine.generation()
            try:
                self._load_again(known, generation)
                with self._lanes.one() as lane:
                    return self._run(lane, generation, known.network, patches, doing)
            except NotSent:
                continue
        raise _keeps_dying(doing)

    def ready(self) -> bool:
        """Whether the engine is up."""
        return self._engine.is_up()

    def close(self) -> None:
        """End the engine, and give its shared memory back."""
        atexit.unregister(self.close)
        self._engine.close()  # whoever waits for it gets an error, and lets his lane go
        with self._loading, self._lanes.all(self.slots):
            for lane in self._lanes.free:
                if lane.block:
                    lane.block.close()
                    lane.block = None

    def _make_ready(self, network: Network) -> Envelope:
        known = self._networks.get(network.name)
        generation = self._engine.generation()
        envelope = known.envelope if known and known.network == network else read_envelope(network, self._device)
        if known and known.network == network and known.generation == generation:
            return known.envelope
        self.unload(network.name)
        if envelope:
            self._load(generation, network, envelope)
        else:
            with self._lanes.all(self.slots):
                envelope = self._measure(generation, network)
        self._networks[network.name] = _Known(network, envelope, generation)
        return envelope

    def _run(
        self, lane: _Lane, generation: int, network: Network, patches: Sequence[Array], doing: str
    ) -> tuple[Array, ...]:
        needed, (place, *answers) = place_batch(network, len(patches))
        if lane.block is None or lane.block.size < needed:
            if lane.block:
                lane.block.close()
                lane.block = None  # should the new one fail, this one is gone all the same
            lane.block, lane.generation = Block.anonymous(-(-needed // _GRAIN_BYTES) * _GRAIN_BYTES), 0
        block = lane.block
        inside = block.array(place[1], place[0])
        for number, patch in enumerate(patches):
            inside[number] = patch
        fresh = lane.generation != generation
        self._engine.call(
            generation,
            Command(
                verb="infer",
                network=network.name,
                lane=lane.number,
                batch=len(patches),
                block_bytes=block.size if fresh else 0,
            ),
            doing=doing,
            limit_seconds=self._patch_seconds * len(patches),
            block=block if fresh else None,
        )
        lane.generation = generation
        return tuple(block.array(shape, offset).copy() for offset, shape in answers)

    def _load_again(self, known: _Known, generation: int) -> None:
        """Load what the engine that is up has not loaded, because another one had."""
        if known.generation == generation:
            return
        with self._loading:
            if known.generation != generation:
                self._load(generation, known.network, known.envelope)
                known.generation = generation

    def _load(self, generation: int, network: Network, envelope: Envelope | None) -> Loaded:
        limit = 0
        if envelope:
            limit = memory_limit(envelope.resident_bytes, max(envelope.batch_bytes.values()), self.slots)
        command = Command(verb="load", network=network.name, description=network, limit_bytes=limit)
        loaded: Loaded = self._other(generation, command, "loading")
        return loaded

    def _measure(self, generation: int, network: Network) -> Envelope:
        loaded = self._load(generation, network, None)
        command = Command(
            verb="measure",
            network=network.name,
            description=network,
            limit_bytes=self.memory_bytes - loaded.resident_bytes,
            longest_seconds=self._patch_seconds / _MEASURED_PART,
        )
        try:
            measured: Measured = self._other(generation, command, "measuring")
        except Exception:
            with contextlib.suppress(Exception):  # what matters is why it could not be measured
                self._other(generation, Command(verb="unload", network=network.name), "unloading")
            raise
        envelope = Envelope(
            device=self._device,
            resident_bytes=loaded.resident_bytes,
            batch_bytes=measured.batch_bytes,
            batch_seconds=measured.batch_seconds,
            load_seconds=loaded.seconds,
        )
        kept = write_envelope(network, envelope)
        log.event("network.measured", network=network.name, batch_seconds=envelope.batch_seconds, kept=kept)
        return envelope

    def _other(self, generation: int, command: Command, word: str) -> Any:
        return self._engine.call(
            generation,
            command,
            doing=f"{word} the network {command.network}",
            limit_seconds=_LOAD_PATCHES * self._patch_seconds,
        )


def _check_patches(network: Network, patches: Sequence[Array], doing: str) -> None:
    wrong = next((patch.shape for patch in patches if patch.shape != network.input.dims), None)
    if wrong is not None or not patches:
        raise ContractBroken(
            doing=doing,
            found=f"a patch of {wrong}" if patches else "a batch of no patches",
            rule=f"each patch is {network.input.dims}, as model.toml says",
            way_out="this is a mistake in Overread: report it",
        )


def _keeps_dying(doing: str) -> BackendUnavailable:
    return BackendUnavailable(
        doing=doing,
        found="the inference engine keeps dying before it is asked",
        rule="it stays up while nothing runs",
        way_out="see engine.died in the log",
    )
