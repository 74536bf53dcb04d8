"""The line to a destination: every state with every event."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from service.line import LONGEST_PAUSE_SECONDS, Line, LineState, pause


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _line(clock: _Clock) -> Line:
    return Line(first_pause_seconds=2.0, longest_pause_seconds=3600.0, clock=clock)


def _well(line: Line, clock: _Clock) -> None:
    pass


def _pausing(line: Line, clock: _Clock) -> None:
    line.failed("away")


def _over(line: Line, clock: _Clock) -> None:
    _pausing(line, clock)
    clock.now += 3.0


def _trying(line: Line, clock: _Clock) -> None:
    _over(line, clock)
    line.trying(1)


WELL, PAUSING, TRYING = LineState.WELL, LineState.PAUSING, LineState.TRYING


@pytest.mark.parametrize(
    ("bring", "event", "state", "room"),
    [
        (_well, None, WELL, 4),
        (_well, "trying", WELL, 4),
        (_well, "untried", WELL, 4),
        (_well, "associated", WELL, 4),
        (_well, "failed", PAUSING, 0),
        (_pausing, None, PAUSING, 0),
        (_pausing, "untried", PAUSING, 0),
        (_pausing, "associated", WELL, 4),  # one that had gone before the line failed
        (_pausing, "failed", PAUSING, 0),
        (_over, None, PAUSING, 1),
        (_over, "trying", TRYING, 0),
        (_trying, None, TRYING, 0),
        (_trying, "untried", PAUSING, 1),
        (_trying, "associated", WELL, 4),
        (_trying, "failed", PAUSING, 0),
    ],
)
def test_every_state_with_every_event(
    bring: Callable[[Line, _Clock], None], event: str | None, state: LineState, room: int
) -> None:
    clock, arguments = _Clock(), {"failed": ("away",), "trying": (1,), "untried": (1,)}
    line = _line(clock)
    bring(line, clock)
    if event:
        getattr(line, event)(*arguments.get(event, ()))
    assert (line.as_json()["line"], line.room(4)) == (state, room)
    assert line.room(0) == 0


def test_pauses_grow_and_end_with_the_first_association() -> None:
    clock = _Clock()
    line = _line(clock)
    seconds = []
    for _ in range(12):
        seconds.append(line.failed("away"))
        clock.now += seconds[-1]
        assert line.room(9) == 1
        line.trying(1)
    for before, after in itertools.pairwise(seconds[:5]):
        assert after > before
    assert 0.8 * LONGEST_PAUSE_SECONDS <= seconds[-1] <= 1.2 * LONGEST_PAUSE_SECONDS
    assert line.as_json()["failures"] == 12
    assert line.associated()
    assert not line.associated()
    assert line.failed("again") < 3.0


def test_of_several_that_fail_at_once_the_first_counts() -> None:
    line = _line(_Clock())
    first = line.failed("away")
    assert [line.failed("away") for _ in range(3)] == [pytest.approx(first)] * 3
    said: dict[str, Any] = line.as_json()
    assert (said["failures"], said["reason"]) == (1, "away")
    assert said["next_try_in_seconds"] == pytest.approx(first, abs=0.1)


def test_pauses_differ_by_chance_so_that_not_all_come_at_once() -> None:
    drawn = [pause(3, first=2.0, longest=3600.0) for _ in range(200)]
    assert len(set(drawn)) > 100
    assert all(0.8 * 18 <= it <= 1.2 * 18 for it in drawn)
    assert pause(1000, first=2.0, longest=60.0) <= 72.0


def test_only_the_delivery_that_tries_the_line_gives_it_back() -> None:
    clock = _Clock()
    line = _line(clock)
    _trying(line, clock)
    line.untried(2)  # it had begun before the line failed
    assert line.as_json()["line"] == TRYING
    line.untried(1)
    assert line.as_json()["line"] == PAUSING
