"""All patches pass one place: fairly, the urgent first, never far ahead; each error goes to the one who waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from service.analysis.schedule import LOOKAHEAD, Patch, Scheduler, Stream
from service.errors import BackendUnavailable, ContractBroken, OutOfMemory
from service.types import Backend, Model

SECONDS = 20.0  # longest wait of a test that would else hang


class FakeBackend:
    """Answers a patch with itself plus one, in the order that it records; waits at a gate before each."""

    name = "fake"

    def __init__(self, *, slots: int = 1, gated: bool = False) -> None:
        self.slots = slots
        self.calls: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.began = threading.Semaphore(0)
        self.errors: dict[str, Exception] = {}
        self._gate = threading.Semaphore(0) if gated else None
        self._lock = threading.Lock()

    def load(self, model: Model) -> None:
        """Nothing to load."""

    def infer(self, network: str, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._lock:
            self.calls.append(network)
            self.shapes.append(batch.shape)
        self.began.release()
        if self._gate:
            assert self._gate.acquire(timeout=SECONDS)
        if network in self.errors:
            raise self.errors[network]
        return batch + 1

    def go(self, count: int = 1) -> None:
        """Let so many calls through."""
        assert self._gate
        self._gate.release(count)


def _patches(count: int, first: int = 0) -> Iterator[Patch]:
    return (np.full((1, 2, 2, 2), first + n, np.float32) for n in range(count))


def _values(answers: Iterator[Patch]) -> list[float]:
    return [float(answer.flat[0]) for answer in answers]


@pytest.fixture
def opened() -> Iterator[Callable[[FakeBackend], Scheduler]]:
    schedulers: list[Scheduler] = []

    def open_it(backend: FakeBackend) -> Scheduler:
        held: Backend = backend  # it is one
        schedulers.append(Scheduler(held))
        return schedulers[-1]

    yield open_it
    for scheduler in schedulers:
        backend = scheduler.backend
        assert isinstance(backend, FakeBackend)
        if backend._gate:
            backend.go(1000)
        scheduler.close()


Opened = Callable[[FakeBackend], Scheduler]


@pytest.mark.parametrize("slots", [1, 3])
def test_answers_come_in_the_order_of_the_patches(slots: int, opened: Opened) -> None:
    backend = FakeBackend(slots=slots)
    answers = opened(backend).map(Stream(), "net", _patches(40))
    assert _values(answers) == [n + 1 for n in range(40)]
    assert backend.shapes == [(1, 1, 2, 2, 2)] * 40


def test_no_patches_give_no_answers(opened: Opened) -> None:
    assert list(opened(FakeBackend()).map(Stream(), "net", _patches(0))) == []


def test_a_stream_takes_no_more_patches_than_agreed_ahead_of_its_reader(opened: Opened) -> None:
    taken = 0

    def counted() -> Iterator[Patch]:
        nonlocal taken
        for patch in _patches(30):
            taken += 1
            yield patch

    answers = opened(FakeBackend()).map(Stream(), "net", counted())
    for read, _ in enumerate(answers, start=1):
        assert taken <= read + LOOKAHEAD
    assert taken == 30


def test_streams_take_turns(opened: Opened) -> None:
    """A long stream that came first, and has its patches waiting, leaves every other turn to a short one."""
    backend = FakeBackend(gated=True)
    scheduler = opened(backend)
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(lambda: _values(scheduler.map(Stream(), "long", _patches(12))))
        assert backend.began.acquire(timeout=SECONDS)
        short = pool.submit(lambda: _values(scheduler.map(Stream(), "short", _patches(4))))
        _wait(lambda: len(scheduler._jobs) == 2 * LOOKAHEAD + 1)
        for done in range(1, 16):
            backend.go()
            assert backend.began.acquire(timeout=SECONDS)
            # Each reader hands in its next patch before the next call may end: the order is one of choice, not luck.
            _wait(lambda: _settled(scheduler, backend, {"long": 12, "short": 4}))
            assert len(backend.calls) == done + 1
        backend.go()
        assert len(long.result(SECONDS)) == 12
        assert short.result(SECONDS) == [1, 2, 3, 4]
    assert backend.calls == ["long", "short"] * 4 + ["long"] * 8


def _settled(scheduler: Scheduler, backend: FakeBackend, sizes: dict[str, int]) -> bool:
    """Whether each stream has as many patches waiting as it may."""
    waiting = [job.network for job in list(scheduler._jobs)]
    finished = backend.calls[:-1]
    running = backend.calls[-1]
    for name, size in sizes.items():
        left = size - finished.count(name)
        held = waiting.count(name) + (running == name)
        if held < min(left, LOOKAHEAD + 1):
            return False
    return True


def _wait(until: Callable[[], bool]) -> None:
    turn = threading.Event()
    for _ in range(int(SECONDS / 0.002)):
        if until():
            return
        turn.wait(0.002)
    raise AssertionError("it did not come to that")


def test_a_stream_that_comes_late_owes_no_turns(opened: Opened) -> None:
    """It begins at the present turn: it neither waits for all that was before, nor makes up for it."""
    backend = FakeBackend()
    scheduler = opened(backend)
    first, second = Stream(), Stream()
    assert len(list(scheduler.map(first, "first", _patches(50)))) == 50
    list(scheduler.map(second, "second", _patches(1)))
    assert abs(second.turn - first.turn) <= 1


def test_a_higher_priority_goes_first_at_the_next_patch(opened: Opened) -> None:
    backend = FakeBackend(gated=True)
    scheduler = opened(backend)
    with ThreadPoolExecutor(2) as pool:
        usual = pool.submit(lambda: _values(scheduler.map(Stream(), "usual", _patches(4))))
        assert backend.began.acquire(timeout=SECONDS)
        _wait(lambda: len(scheduler._jobs) == 3)
        urgent = pool.submit(lambda: _values(scheduler.map(Stream(priority=-1), "urgent", _patches(3))))
        _wait(lambda: len(scheduler._jobs) == 6)
        backend.go(7)
        assert len(usual.result(SECONDS)) == 4
        assert len(urgent.result(SECONDS)) == 3
    assert backend.calls == ["usual", *["urgent"] * 3, *["usual"] * 3]


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemory(doing="a", found="b", rule="c", way_out="d"),
        ContractBroken(doing="a", found="b", rule="c", way_out="d"),
        ValueError("unexpected"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_reaches_the_one_who_waits_and_nobody_else(error: Exception, opened: Opened) -> None:
    backend = FakeBackend(slots=2)
    backend.errors["broken"] = error
    scheduler = opened(backend)
    with ThreadPoolExecutor(3) as pool:
        broken = pool.submit(lambda: _values(scheduler.map(Stream(), "broken", _patches(20))))
        others = [pool.submit(lambda: _values(scheduler.map(Stream(), "whole", _patches(20)))) for _ in range(2)]
        with pytest.raises(type(error)) as caught:
            broken.result(SECONDS)
        assert caught.value is error
        assert [len(other.result(SECONDS)) for other in others] == [20, 20]
    assert backend.calls.count("broken") <= LOOKAHEAD + 1, "what was waiting is not run in vain"


def test_an_error_of_the_patches_themselves_reaches_their_reader(opened: Opened) -> None:
    def patches() -> Iterator[Patch]:
        yield from _patches(2)
        raise MemoryError

    scheduler = opened(FakeBackend())
    with pytest.raises(MemoryError):
        list(scheduler.map(Stream(), "net", patches()))
    assert _values(scheduler.map(Stream(), "net", _patches(1))) == [1]


def test_a_reader_that_goes_away_leaves_nothing_waiting(opened: Opened) -> None:
    backend = FakeBackend(gated=True)
    scheduler = opened(backend)
    answers = scheduler.map(Stream(), "left", _patches(20))
    backend.go(1)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    backend.go(100)
    assert _values(scheduler.map(Stream(), "net", _patches(1))) == [1]
    assert backend.calls.count("left") <= 2


def test_closing_frees_those_who_wait(opened: Opened) -> None:
    backend = FakeBackend(gated=True)
    scheduler = opened(backend)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(lambda: _values(scheduler.map(Stream(), "net", _patches(20)))) for _ in range(2)]
        assert backend.began.acquire(timeout=SECONDS)
        _wait(lambda: len(scheduler._jobs) == 2 * (LOOKAHEAD + 1) - 1)
        closing = pool.submit(scheduler.close)
        for reader in waiting[:1]:
            assert not reader.done()
        backend.go(2)  # what runs is finished
        closing.result(SECONDS)
        for reader in waiting:
            with pytest.raises(BackendUnavailable, match="stopping") as caught:
                reader.result(SECONDS)
            assert caught.value.retry
    assert len(backend.calls) <= 2


def test_a_closed_scheduler_begins_nothing(opened: Opened) -> None:
    backend = FakeBackend()
    scheduler = opened(backend)
    scheduler.close()
    with pytest.raises(BackendUnavailable):
        list(scheduler.map(Stream(), "net", _patches(1)))
    assert backend.calls == []


def test_several_slots_work_at_once(opened: Opened) -> None:
    backend = FakeBackend(slots=2, gated=True)
    scheduler = opened(backend)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(lambda: _values(scheduler.map(Stream(), "net", _patches(4))))
        for _ in range(2):
            assert backend.began.acquire(timeout=SECONDS)
        assert len(backend.calls) == 2
        backend.go(4)
        assert reader.result(SECONDS) == [1, 2, 3, 4]
