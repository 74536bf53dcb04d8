"""One process's way to the file of the audit trail: what is told one by one, what is counted, what was lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

from service.audit.events import Alert, recording_stopped, refusal
from service.audit.file import TrailFile
from service.audit.message import Message, Origin, line
from service.audit.repeats import Repeats

_REFUSALS: Final = 20  # of one kind and address are told one by one: a scan must not fill the disk
_WINDOW_SECONDS: Final = 60.0


class Trail:
    """Writes messages, from all threads of a process.

    Parameters
    ----------
    origin
        Who writes.
    """

    def __init__(self, file: TrailFile, origin: Origin) -> None:
        self._file, self._origin = file, origin
        self._refused = Repeats(allowed=_REFUSALS, seconds=_WINDOW_SECONDS)
        self._read = Repeats(allowed=1, seconds=_WINDOW_SECONDS)
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def write(self, make: Callable[[Origin], Message]) -> None:
        """Write a message, and before it how many were lost while none could be written."""
        if lost := self._file.take_given_up():
            words = f"{lost} audit messages are lost: the file could not be written"
            self._append(recording_stopped(self._origin, words=words))
        self._append(make(self._origin))

    def is_first_read(self, *what: str) -> bool:
        """Whether a reading is to be told: a page fetches its pictures one by one, and that is one access."""
        return self._read.allow(what)

    def refuse(self, kind: Alert, *, words: str, user: str, address: str) -> None:
        """Write that something was refused; of many from one address, how many there were."""
        if self._refused.allow((kind, address)):
            self.write(partial(refusal, kind=kind, words=words, user=user, address=address))
        self._tell_the_others()

    def problem(self) -> str:
        """Why lines are not in the file; empty: they are."""
        return self._file.problem()

    def close(self) -> None:
        """Write and sync what is left, and end."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
        self._tell_the_others(at_once=True)
        self._file.close()

    def _tell_the_others(self, *, at_once: bool = False) -> None:
        for (kind, *where), count in self._refused.take(everything=at_once).items():
            words = f"{count} more within a minute, not told one by one"
            self.write(partial(refusal, kind=Alert(kind), words=words, user="", address="".join(where)))
        with self._lock:
            if not self._timer and self._refused.holds_back():
                self._timer = threading.Timer(_WINDOW_SECONDS, self._on_timer)
                self._timer.daemon = True
                self._timer.start()

    def _on_timer(self) -> None:
        with self._lock:
            self._timer = None
        self._tell_the_others()

    def _append(self, message: Message) -> None:
        with self._lock:  # the order in the file is that of the times
            self._file.append(line(message, self._origin, datetime.now().astimezone()))
