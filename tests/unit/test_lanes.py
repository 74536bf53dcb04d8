"""Lanes: never more threads than their number, and none is lost."""

from __future__ import annotations

import threading
import time

import pytest

from service.lanes import Lane


def test_a_lane_takes_no_more_than_its_threads_and_nothing_twice() -> None:
    ended, gate = threading.Event(), threading.Event()
    lane = Lane("work", 2, done=ended.set)
    assert lane.free == 2
    assert lane.begin("a", gate.wait)
    assert not lane.begin("a", gate.wait), "it is at work already"
    assert lane.begin("b", gate.wait)
    assert not lane.begin("c", gate.wait), "no room"
    assert lane.free == 0
    assert not lane.wait(until=time.monotonic() + 0.05)
    assert not ended.is_set()
    gate.set()
    assert lane.wait(until=time.monotonic() + 10)
    assert lane.free == 2
    assert ended.wait(10)


def test_work_that_fails_gives_its_place_back() -> None:
    lane = Lane("work", 1)

    def fail() -> None:
        raise ValueError

    for _ in range(3):
        assert lane.begin("a", fail)
        assert lane.wait(until=time.monotonic() + 10)


def test_a_thread_that_can_not_be_had_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane("work", 1)

    def none_left(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        assert not lane.begin("a", lambda: None)
    assert lane.begin("a", lambda: None)
    assert lane.wait(until=time.monotonic() + 10)
