"""[edge: disk] The file of the audit trail: whole lines, appended by several processes of one machine.

It promises that a line which `TrailFile.append` has taken is in the file when that returns, so that no end of the
process loses it, and on the disk about a second later, so that a power cut loses no more than that second. Where the
file can't be written (the disk is full) lines wait in memory, and are written when it can be; the oldest of more than
10,000 are given up and counted. Nobody who writes is ever told by an exception.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

from service import log
from service.files import make_folder, sync_folder

_MODE: Final = 0o640  # the trail names patients, users and machines: the group may read it, for a log shipper
_WAITING_LINES: Final = 10_000  # of some 2 kB each
_SYNC_SECONDS: Final = 1.0
_LOG_SECONDS: Final = 60.0


class TrailFile:
    """The file, opened anew when somebody (logrotate) moved it away.

    Parameters
    ----------
    path
        Of the file. Its folder is made if it is missing.

    Raises
    ------
    OSError
        If it can't be opened now.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._handle, self._identity = -1, (0, 0)
        self._torn = False  # the file's last line has no end
        self._waiting: deque[bytes] = deque()
        self._given_up, self._problem, self._logged_at = 0, "", -_LOG_SECONDS
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._unsynced = threading.Event()
        self._open()
        self._thread = threading.Thread(target=self._sync_for_ever, name="audit", daemon=True)
        self._thread.start()

    def append(self, line: bytes) -> None:
        """Write a line, that has no end of line in it."""
        with self._lock:
            self._waiting.append(line)
            self._write()
        self._unsynced.set()

    def take_given_up(self) -> int:
        """How many lines were given up since the last call, once the file can be written again; before that, 0."""
        with self._lock:
            if self._problem:
                return 0
            count, self._given_up = self._given_up, 0
            return count

    def problem(self) -> str:
        """Why lines are not in the file; empty: they are."""
        with self._lock:
            return self._problem

    def close(self) -> None:
        """Write and sync what is left, and end."""
        self._closing.set()
        self._unsynced.set()
        self._thread.join(timeout=5)
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1

    def _write(self) -> None:
        try:
            while self._waiting:
                self._open()
                data = (b"\n" if self._torn else b"") + self._waiting[0] + b"\n"
                # One call: what several processes append lies one behind the other (write(2), O_APPEND).
                written = os.write(self._handle, data)
                self._torn = 0 < written < len(data)
                if written < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._waiting.popleft()
        except OSError as exc:
            while len(self._waiting) > _WAITING_LINES:
                self._waiting.popleft()
                self._given_up += 1
            self._failed(exc)
        else:
            self._problem = ""

    def _open(self) -> None:
        """Have the file of that name open, which may not be the one of a moment ago."""
        if self._handle >= 0:
            with suppress(FileNotFoundError):
                found = os.stat(self._path)
                if (found.st_dev, found.st_ino) == self._identity:
                    return
            handle, self._handle = self._handle, -1
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        make_folder(self._path.parent)
        self._handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        opened = os.fstat(self._handle)
        self._identity = (opened.st_dev, opened.st_ino)
        # A line may have ended in the middle, when the power went.
        self._torn = opened.st_size > 0 and os.pread(self._handle, 1, opened.st_size - 1) != b"\n"
        sync_folder(self._path.parent)

    def _failed(self, exc: OSError) -> None:
        waiting = len(self._waiting)
        self._problem = (
            f"{exc.strerror or type(exc).__name__}: {waiting} audit messages wait in memory"
            f"{f', {self._given_up} are lost' if self._given_up else ''}"
        )
        if time.monotonic() - self._logged_at >= _LOG_SECONDS:
            self._logged_at = time.monotonic()
            log.warning(
                "audit.not_written",
                file=str(self._path),
                reason=exc.strerror or type(exc).__name__,
                waiting=waiting,
                lost=self._given_up,
            )

    def _sync_for_ever(self) -> None:
        while not self._closing.is_set():
            self._unsynced.wait()
            self._unsynced.clear()
            self._closing.wait(_SYNC_SECONDS)  # others join in
            with self._lock:
                self._write()
                failed = bool(self._problem)
                handle = os.dup(self._handle) if self._handle >= 0 else -1
            if handle >= 0:  # beside the lock: an fsync may take long, and nobody is to wait for it
                try:
                    os.fsync(handle)
                except OSError as exc:
                    with self._lock:
                        self._failed(exc)
                finally:
                    os.close(handle)
            if failed:
                self._unsynced.set()
