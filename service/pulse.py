"""The pulse: this process keeps what it is at work on, and says that it is there, every few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from service import log
from service.store import Store

_BEAT_SECONDS: Final = 2.0  # between two renewals of what is at work: nothing is written where nothing is
_REPORT_SECONDS: Final = 10.0  # between two reports, each of which is a commit
ALIVE_SECONDS: Final = 30.0  # a process that was not seen for so long counts as gone


class Pulse:
    """A thread of its own, so that nothing which takes long makes others believe that this process is dead.

    Parameters
    ----------
    name, parts
        Of this process.
    keep
        Keeps what it is at work on.
    status
        What only it knows, for the page.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        parts: Sequence[str],
        keep: Sequence[Callable[[], None]],
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self._store, self._name, self._parts, self._keep, self._status = store, name, parts, keep, status
        self._stopping = threading.Event()
        self._started_at, self._report_at = time.time(), 0.0
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is still at work is due again when its lease ends, or at the next start."""
        self._stopping.set()
        self._thread.join(_BEAT_SECONDS)

    def _beat(self) -> None:
        while not self._stopping.wait(_BEAT_SECONDS):
            for act in (*self._keep, self._report):
                try:
                    act()
                except Exception as exc:  # the database is away: the next beat tries again
                    log.failure("pulse.failed", exc)

    def _report(self) -> None:
        if time.monotonic() < self._report_at:
            return
        self._report_at = time.monotonic() + _REPORT_SECONDS
        self._store.report(self._name, parts=self._parts, started_at=self._started_at, status=self._status())


def alive(processes: Sequence[Mapping[str, Any]], *, now: float, but: str = "") -> list[Mapping[str, Any]]:
    """Of the processes that the store knows, those that were seen a moment ago, but for one."""
    return [it for it in processes if it["name"] != but and now - it["seen_at"] <= ALIVE_SECONDS]


def merged_lines(lines: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """How each destination is doing, by what several processes say: the worst counts."""
    merged: dict[str, dict[str, Any]] = {}
    for of_one in lines:
        for name, line in of_one.items():
            if name not in merged or line.get("failures", 0) > merged[name].get("failures", 0):
                merged[name] = dict(line)
    return merged
