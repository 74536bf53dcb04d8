"""What happens again and again is told a few times, and then counted: a scan must not fill the disk with its alerts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

Key = tuple[str, ...]

_KEYS: Final = 1000  # that are told apart at the same time


@dataclass(slots=True)
class _Window:
    begun: float  # monotonic seconds
    count: int = 0


class Repeats:
    """Counts by key, in windows of some seconds that begin with the first occurrence.

    Parameters
    ----------
    allowed
        How many of a key are told in a window.
    seconds
        How long a window is.
    clock
        Monotonic seconds.
    """

    def __init__(self, *, allowed: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowed, self._seconds, self._clock = allowed, seconds, clock
        self._windows: dict[Key, _Window] = {}
        self._over: dict[Key, int] = {}  # of windows that ended: how many were not told
        self._lock = threading.Lock()

    def allow(self, key: Key) -> bool:
        """Count an occurrence; whether it is to be told.

        Above a thousand keys, new ones are counted together by their first word.
        """
        now = self._clock()
        with self._lock:
            self._end(now)
            if key not in self._windows and len(self._windows) >= _KEYS:
                key = key[:1]
            window = self._windows.setdefault(key, _Window(now))
            window.count += 1
            return window.count <= self._allowed

    def take(self, *, everything: bool = False) -> dict[Key, int]:
        """How many of each key were not told in windows that ended, or in all; each is given once."""
        with self._lock:
            self._end(float("inf") if everything else self._clock())
            over, self._over = self._over, {}
            return over

    def holds_back(self) -> bool:
        """Whether something is counted that is not told yet."""
        with self._lock:
            return bool(self._over) or any(window.count > self._allowed for window in self._windows.values())

    def _end(self, now: float) -> None:
        # They are in the order of their beginnings: a dictionary keeps that of insertion.
        for key, window in list(self._windows.items()):
            if now - window.begun < self._seconds:
                break
            del self._windows[key]
            if window.count > self._allowed:
                self._over[key] = self._over.get(key, 0) + window.count - self._allowed
