"""The one place that all patches of all models and studies pass: it decides what runs next.

In which order they wait is `waiting.py`'s, what fits into the device's memory `memory.py`'s, what follows from a fault
`faults.py`'s; here are the threads that keep the backend busy. When a batch does not come back:

- out of memory: it goes again in halves; a patch that did not fit beside others goes again alone;
- the runtime died, or did not answer in time, or the batch was refused: each patch that was in it goes again alone.
  The one that does it again has failed, the others have not;
- nobody answers: everything waits, and after a while the studies are told, to be tried again later.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from service import log, metrics
from service.analysis.faults import Faults
from service.analysis.memory import Admission
from service.analysis.registry import NetworkState, Registry
from service.analysis.residence import Residence, too_large
from service.analysis.waiting import Answers, Job, Stream, Waiting
from service.errors import (
    BackendCrashed,
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ContractBroken,
    OutOfMemory,
    Stopping,
    Superseded,
)
from service.types import Array, Backend, Model, Network, Priority

_AHEAD_BYTES = 512 << 20  # of patches that a stream may have waiting; the device must not idle, nor memory grow
_AHEAD_LEAST = 3
_FILL_SECONDS = 0.003  # how long a batch that is not full waits for its streams' next patches
_GRACE_SECONDS = 2.0
_TURN = 8  # batches that loaded networks may run before one that needs their memory gets its turn


@dataclass(slots=True, eq=False)
class _Feed:
    """A stream's patches for one network, as they come."""

    network: str
    more: bool = True  # whether another patch comes without one being answered first


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    network: Network
    jobs: list[Job]
    admission: Admission
    ticket: int  # of the memory's account


class Scheduler:
    """Feeds one backend from many streams, and closes it at the end.

    Parameters
    ----------
    backend
        Gets one batch at a time from each of as many threads as it has ``slots``.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._wake = threading.Condition()
        self._residence = Residence(backend, self._wake)
        self._memory = self._residence.memory
        self._waiting = Waiting()
        self._registry = Registry()
        self._feeds: set[_Feed] = set()
        self._running = 0
        self._alone = False  # a suspect runs
        self._passed: dict[str, int] = {}  # batches that went before a network whose turn it was
        self._cost: dict[str, float] = {}  # seconds of the device for a patch
        self._last_used: dict[str, float] = {}
        self._faults = Faults()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"patches-{slot}", daemon=True) for slot in range(backend.slots)
        ]
        for thread in self._threads:
            thread.start()

    # --- For those who start and stop -------------------------------------------------------------------------------

    def add(self, model: Model) -> None:
        """Make a model known, and load its networks once: that checks, warms up and measures them.

        Raises
        ------
        BackendError
            If a network can't run here: not readable, other tensors than ``model.toml`` says, too large. The model
            then stays refused, unless the error may pass: its networks are loaded when they are first asked for.
        """
        try:
            with self._wake:
                self._registry.add(model)  # all its networks, before the first is loaded: that may fail for now
            for network in model.networks:
                if network.name not in self._memory.loaded:
                    self._residence.settle(network)
        except BackendError as exc:
            if not exc.retry:
                with self._wake:
                    self._registry.refuse(model.spec.name, exc)
            raise

    def require(self, model: str) -> None:
        """Raise what makes a model unfit to run, if anything does.

        Raises
        ------
        BackendError
            As `add` raised it.
        """
        self._registry.require(model)

    def close(self) -> None:
        """Refuse what waits, give what runs a moment, end the backend and the threads."""
        with self._wake:
            self._closed = True
            waiting = self._waiting.remove(lambda job: True)
            self._wake.notify_all()
        _refuse(waiting, _stopping())
        with self._wake:
            self._wake.wait_for(lambda: not self._running, timeout=_GRACE_SECONDS)
        self.backend.close()  # a batch that still runs comes back as crashed
        for thread in self._threads:
            thread.join()

    def states(self) -> list[NetworkState]:
        """How each network is."""
        with self._wake:
            return [
                NetworkState(
                    name=name,
                    loaded=name in self._memory.loaded,
                    last_used=self._last_used.get(name),
                    envelope=self._memory.envelope(name),
                    failing=self._faults.failing[name].found if name in self._faults.failing else "",
                )
                for name in sorted(self._registry.networks)
            ]

    def memory(self) -> tuple[int, int]:
        """Bytes that loaded networks and running batches take of the device, and may take (0: no limit)."""
        with self._wake:
            return self._memory.used_bytes, self._memory.limit_bytes

    # --- For those who ask ------------------------------------------------------------------------------------------

    def map(self, stream: Stream, network: str, patches: Iterable[Array]) -> Iterator[Answers]:
        """Run patches of one network, a few ahead of the reader.

        Parameters
        ----------
        patches
            Each [channels, *shape], float32, as the network's input says.

        Yields
        ------
        tuple of numpy.ndarray
            The network's outputs for each patch, in order; each [channels, *shape], float32.

        Raises
        ------
        Superseded
            If the stream was cancelled.
        BackendError
            As the backend raised it, if it did so for good.
        """
        ahead: deque[Job] = deque()
        feed = _Feed(network)
        with self._wake:
            self._feeds.add(feed)
        try:
            for patch in patches:
                ahead.append(self._submit(stream, network, patch))
                if len(ahead) >= self._ahead(network, patch):
                    yield self._answer(ahead.popleft(), feed)
            while ahead:
                yield self._answer(ahead.popleft(), feed)
            with self._wake:
                self._faults.ran_through(network)
        finally:
            with self._wake:
                self._feeds.discard(feed)
                self._waiting.remove(lambda job: job in ahead)
                self._wake.notify_all()

    def cancel(self, cancelled: threading.Event) -> None:
        """Drop the streams that carry this event: what waits is not run, what runs is not used."""
        cancelled.set()
        with self._wake:
            dropped = self._waiting.remove(lambda job: job.stream.cancelled is cancelled)
        _refuse(dropped, _superseded())

    def _submit(self, stream: Stream, network: str, patch: Array) -> Job:
        with self._wake:
            if self._closed:
                raise _stopping()
            if stream.cancelled.is_set():
                raise _superseded()
            if network in self._faults.failing:
                raise self._faults.failing[network]
            if network not in self._registry.networks:
                raise ContractBroken(
                    doing=f"running the network {network}",
                    found="no model that was added has it",
                    rule="a network is loaded, and held against model.toml, before it runs",
                    way_out="see model.broken in the log, or run overread check; then start the service again",
                )
            job = self._waiting.add(
                stream, network, patch, cost_seconds=self._cost_of(network), now=time.perf_counter()
            )
            self._wake.notify()
        return job

    def _answer(self, job: Job, feed: _Feed) -> Answers:
        if not job.future.done():
            with self._wake:
                feed.more = False
                self._wake.notify()  # a batch that waited for this stream waits in vain
        answer = job.future.result()
        feed.more = True
        return answer

    def _ahead(self, network: str, patch: Array) -> int:
        """How many patches a stream may have on the way: enough to fill every slot's batch and the next one."""
        useful = self._best(network) * (self.backend.slots + 1)
        return max(_AHEAD_LEAST, min(useful, _AHEAD_BYTES // max(1, patch.nbytes)))

    # --- What runs next ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._closed and (batch := self._choose()) is None:
                    self._wake.wait(self._pause())
                if self._closed:
                    return
                assert batch
                self._running += 1
            try:
                self._run(batch)
            except BaseException as exc:  # ours, not the backend's: this thread must live, and nobody wait for ever
                log.failure("scheduler.failed", exc, network=batch.network.name)
                _refuse(batch.jobs, exc)
            finally:
                with self._wake:
                    self._running -= 1
                    self._alone = False
                    self._memory.end(batch.network.name, batch.ticket)
                    self._wake.notify_all()

    def _pause(self) -> float | None:
        """Until when a thread that found nothing to do sleeps, unless it is woken; None: until then."""
        if not len(self._waiting):
            return None
        soonest = min(self._faults.again_at(network) for network in self._waiting.networks())
        return max(_FILL_SECONDS, soonest - time.perf_counter())

    def _choose(self) -> _Batch | None:
        """The next batch, taken out of what waits; None if nothing may run now."""
        now = time.perf_counter()
        if self._alone:
            return None
        if suspects := [job for job in self._waiting.suspects() if self._faults.again_at(job.network) <= now]:
            if not self._running and not self._residence.moving:
                self._alone = True
                return self._take(suspects[:1], keep=()) or self._give_up(suspects[0].network)
            return None
        wanted = self._waiting.networks()
        # Urgent work evicts what it needs at once, but not other urgent work, or each patch would load its network.
        spared = self._waiting.networks(Priority.STAT).intersection(self._memory.loaded)
        first: list[Job] = []  # whose turn it is, but for the memory
        for group in self._waiting.groups(self._best):
            network, urgent = group[0].network, group[0].stream.priority is Priority.STAT
            if network in self._residence.moving or now < self._faults.again_at(network):
                continue
            if not (urgent or self._is_ripe(group, now)):
                continue
            at_once = urgent and not spared - {network}
            overdue = not first and (at_once or self._passed.get(network, 0) >= _TURN)
            if batch := self._take(group, keep=() if overdue else wanted):
                if first:
                    self._passed[first[0].network] = self._passed.get(first[0].network, 0) + 1
                return batch
            first = first or group
            if overdue:
                break  # nothing else begins: what runs will end, and then there is room
        if first and not self._running and not self._residence.moving:
            return self._take(first, keep=()) or self._give_up(first[0].network)
        return None

    def _take(self, jobs: list[Job], *, keep: Iterable[str]) -> _Batch | None:
        """Let a batch begin, as far as the memory allows it."""
        network = jobs[0].network
        admission = self._residence.admit(network, len(jobs), keep=keep)
        if admission is None:
            return None
        if admission.load:
            self._faults.loaded(network)
        jobs = jobs[: admission.size]
        self._waiting.take(jobs)
        self._passed.pop(network, None)
        ticket = self._memory.begin(network, len(jobs))
        return _Batch(network=self._registry.networks[network], jobs=jobs, admission=admission, ticket=ticket)

    def _give_up(self, network: str) -> _Batch | None:
        """Nothing runs and nothing else is loaded, and still it does not fit; what may run then."""
        self._alone = False
        _refuse(self._waiting.remove(lambda job: job.network == network), too_large(network, self._memory))
        return self._choose()

    def _is_ripe(self, group: list[Job], now: float) -> bool:
        """Whether a batch is full, or nothing comes soon that would fill it."""
        network = group[0].network
        if len(group) >= self._best(network) or now - group[0].since >= _FILL_SECONDS:
            return True
        return not any(feed.more for feed in self._feeds if feed.network == network)

    def _best(self, network: str) -> int:
        envelope, most = self._memory.envelope(network), self._faults.most(network)
        best = envelope.best_batch if envelope else 1
        return best if most is None else min(best, most)

    def _cost_of(self, network: str) -> float:
        """Seconds of the device for a patch: as measured lately, else when it was loaded."""
        if network not in self._cost and (envelope := self._memory.envelope(network)):
            self._cost[network] = envelope.batch_seconds[envelope.best_batch] / envelope.best_batch
        return self._cost.get(network, 1.0)

    # --- Running it -------------------------------------------------------------------------------------------------

    def _run(self, batch: _Batch) -> None:
        network, jobs = batch.network.name, batch.jobs
        try:
            if jobs[0].alone:
                self._residence.make_room(keep=network)
            self._residence.prepare(batch.network, batch.admission)
            began = time.perf_counter()
            outputs = self.backend.infer(network, [job.patch for job in jobs])
            took = time.perf_counter() - began
            answers = list(zip(*outputs, strict=True))
            if len(answers) != len(jobs):
                raise ContractBroken(
                    doing=f"running the network {network}",
                    found=f"{len(answers)} answers to {len(jobs)} patches",
                    rule="a network answers each patch of a batch",
                    way_out="export it with a free batch axis at its outputs too",
                )
        except BaseException as exc:  # whatever it is, those who wait must hear it
            self._went_wrong(batch, exc)
            return
        with self._wake:
            self._faults.worked(network)
            self._memory.put(network)  # the backend loads again by itself what a crash of another batch took away
            self._last_used[network] = time.time()
            self._cost[network] = 0.8 * self._cost_of(network) + 0.2 * took / len(jobs)
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(answer)
        metrics.count_batch(network, len(jobs), took)

    def _went_wrong(self, batch: _Batch, exc: BaseException) -> None:
        network, jobs, alone = batch.network.name, batch.jobs, batch.jobs[0].alone
        metrics.BATCH_FAILURES.labels(network=network, reason=type(exc).__name__).inc()
        log.failure("batch.failed", exc, network=network, patches=len(jobs), alone=alone)
        with self._wake:
            if self._closed:
                _refuse(jobs, _stopping())
            elif isinstance(exc, OutOfMemory) and len(jobs) > 1:
                self._faults.halve(network, len(jobs))
                self._again(jobs)
            elif isinstance(exc, OutOfMemory | BackendCrashed | BackendTimeout) and not alone:
                self._again(jobs, alone=True)
            elif isinstance(exc, BackendCrashed | BackendTimeout):
                failure = self._faults.strike(network, exc)
                if network in self._faults.failing:
                    jobs = jobs + self._waiting.remove(lambda job: job.network == network)
                _refuse(jobs, failure)
            elif isinstance(exc, BackendUnavailable) and self._faults.away(network, time.perf_counter()):
                self._again(jobs, alone=alone)
            elif isinstance(exc, BackendUnavailable):
                _refuse(jobs + self._waiting.remove(lambda job: job.network == network), exc)
            elif len(jobs) > 1:
                self._again(jobs, alone=True)  # one of them may be the cause, and its neighbours another patient's
            else:
                _refuse(jobs, exc)
            if isinstance(exc, BackendCrashed | BackendTimeout):
                self._memory.drop_all()  # the runtime is another one now, or will be
            elif isinstance(exc, BackendUnavailable):
                self._memory.drop(network)
        if isinstance(exc, OutOfMemory):
            self._residence.make_room(keep=network)

    def _again(self, jobs: list[Job], *, alone: bool = False) -> None:
        """Let jobs wait again, unless nobody wants them any more."""
        for job in jobs:
            job.alone = alone
        _refuse([job for job in jobs if job.stream.cancelled.is_set()], _superseded())
        self._waiting.put_back(job for job in jobs if not job.stream.cancelled.is_set())


def _refuse(jobs: Iterable[Job], exc: BaseException) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(exc)


def _stopping() -> Stopping:
    return Stopping(
        doing="running a patch",
        found="the service is stopping",
        rule="a stopping service begins nothing new",
        way_out="nothing to do; the study is analysed after the restart",
    )


def _superseded() -> Superseded:
    return Superseded(
        doing="running a patch",
        found="later instances made the study another one",
        rule="a study is answered as a whole",
        way_out="nothing to do; it is analysed anew",
    )
