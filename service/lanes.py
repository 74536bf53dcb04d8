"""Threads for one kind of work, never more than so many: what is due is taken only when there is room for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from service import log


class Lane:
    """So many threads for one kind of work; one that is held up holds up no other lane.

    Each piece of work has a thread of its own, a daemon: what is still at work when the process ends was not
    remembered as done, and is done again.

    Parameters
    ----------
    done
        Called whenever a piece of work has ended, by its thread.
    """

    def __init__(self, name: str, threads: int, *, done: Callable[[], None] = lambda: None) -> None:
        self._name, self._threads, self._done = name, threads, done
        self._at_work: set[str] = set()
        self._changed = threading.Condition()

    @property
    def free(self) -> int:
        """How many more pieces of work it would take now."""
        with self._changed:
            return self._threads - len(self._at_work)

    def at_work(self) -> tuple[str, ...]:
        """The keys of what is at work now."""
        with self._changed:
            return tuple(self._at_work)

    def begin(self, key: str, work: Callable[[], object]) -> bool:
        """Begin a piece of work; False if there is no room, or it is at work already."""
        with self._changed:
            if key in self._at_work or len(self._at_work) >= self._threads:
                return False
            self._at_work.add(key)
        try:
            threading.Thread(target=self._run, args=(key, work), name=f"{self._name}: {key}", daemon=True).start()
        except RuntimeError as exc:  # the system has no more threads for us now
            log.failure("work.not_begun", exc, lane=self._name)
            with self._changed:
                self._at_work.discard(key)
            return False
        return True

    def wait(self, *, until: float) -> bool:
        """Wait until all work has ended, but not beyond that time (monotonic, seconds)."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._at_work, timeout=max(0.0, until - time.monotonic()))

    def _run(self, key: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as exc:  # work says by itself what went wrong; this did not foresee it
            log.failure("work.failed", exc, lane=self._name)
        finally:
            with self._changed:
                self._at_work.discard(key)
                self._changed.notify_all()
            self._done()
