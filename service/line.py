"""The line to a destination: whether it is to be tried now. One that is away is tried by one object at a time.

WELL --no association--> PAUSING --the pause is over, one object goes--> TRYING --association--> WELL
                            ^                                              |
                            +------------- no association, longer pause ---+
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

LONGEST_PAUSE_SECONDS = 300.0  # one attempt in so long costs nobody anything, and a PACS that is back gets its results


class LineState(StrEnum):
    """How a destination is doing, as far as associations go: whether it answers when it is asked for one."""

    WELL = "well"
    PAUSING = "pausing"
    TRYING = "trying"


def pause(failures: int, *, first: float, longest: float) -> float:
    """Seconds before the next attempt: three times as long after each failure, and a fifth more or less by chance.

    Parameters
    ----------
    failures
        How many attempts failed, this one included: at least 1.
    """
    return float(min(longest, first * 3.0 ** min(failures - 1, 30)) * random.uniform(0.8, 1.2))


class Line:
    """The line to one destination. Thread-safe.

    Parameters
    ----------
    first_pause_seconds, longest_pause_seconds
        See `pause`.
    clock
        Seconds, monotonic.
    """

    def __init__(
        self,
        *,
        first_pause_seconds: float,
        longest_pause_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first, self._longest, self._clock = first_pause_seconds, longest_pause_seconds, clock
        self._lock = threading.Lock()
        self._state = LineState.WELL
        self._failures = 0
        self._until = 0.0
        self._reason = ""
        self._trying: int | None = None  # the delivery that tries it

    def room(self, free: int) -> int:
        """How many objects may go now, if so many threads are free: all, one to try the line, or none."""
        with self._lock:
            if self._state is LineState.WELL:
                return free
            is_over = self._state is LineState.PAUSING and self._clock() >= self._until
            return min(1, free) if is_over else 0

    def trying(self, number: int) -> None:
        """Remember that a delivery began; while the line is not well, no other one goes beside it."""
        with self._lock:
            if self._state is LineState.PAUSING:
                self._state, self._trying = LineState.TRYING, number

    def untried(self, number: int) -> None:
        """Take `trying` back: that delivery ended, and said nothing of the line."""
        with self._lock:
            if self._state is LineState.TRYING and self._trying == number:
                self._state, self._until = LineState.PAUSING, self._clock()

    def associated(self) -> bool:
        """Remember that one came about, or was rejected for good; True if the line was not well before."""
        with self._lock:
            was, self._state = self._state, LineState.WELL
            self._failures, self._reason = 0, ""
            return was is not LineState.WELL

    def failed(self, reason: str) -> float:
        """Remember that none came about for now; returns the pause in seconds."""
        with self._lock:
            if self._state is LineState.PAUSING:  # of several that went at once, the first one counts
                return self._until - self._clock()
            self._failures += 1
            seconds = pause(self._failures, first=self._first, longest=min(self._longest, LONGEST_PAUSE_SECONDS))
            self._state, self._until, self._reason = LineState.PAUSING, self._clock() + seconds, reason
            return seconds

    def as_json(self) -> dict[str, Any]:
        """For the API: the state, how often in a row it failed, why, and when it is tried again."""
        with self._lock:
            left = self._until - self._clock() if self._state is LineState.PAUSING else 0.0
            return {
                "line": self._state,
                "failures": self._failures,
                "reason": self._reason,
                "next_try_in_seconds": round(max(0.0, left), 1),
            }
