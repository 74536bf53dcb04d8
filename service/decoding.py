"""Compressed pixels, decoded in processes of their own.

Codecs are native code, and what they are given comes from anywhere: GDCM ends its process at a damaged JPEG frame. Here
that costs a process that holds nothing. Pixels that are not compressed are bytes, and are read by whoever wants them.
"""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID

from service import child
from service.errors import DecoderLost, Undecodable

Frame = NDArray[Any]
_MOST: Final = min(4, os.cpu_count() or 1)  # at work at the same time
_AT_ONCE: Final = 16  # frames in an answer
_SECONDS: Final = 120.0  # for these; whoever needs longer hangs
_END_SECONDS: Final = 5.0
# By which signals a process ends itself, or is ended for what it did: what it was given is at fault.
_FAULTS: Final = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


def frames(path: Path, transfer_syntax_uid: str, indices: Sequence[int] | None = None) -> Iterator[Frame]:
    """Read the stored values of an image.

    Parameters
    ----------
    indices
        Of a multi-frame image, which frames (from 0); None: all that a single-frame image has.

    Yields
    ------
    numpy.ndarray
        [rows, columns] or, where there are several samples per pixel, [rows, columns, samples].

    Raises
    ------
    Undecodable
        If the pixels can't be decoded, or what decodes them crashes or hangs on them.
    DecoderLost
        If the process that decoded them was ended by somebody else; another try may succeed.
    """
    read = _decoders.ask if _is_compressed(transfer_syntax_uid) else _read
    if indices is None:
        yield from read(path, None)
    else:
        for first in range(0, len(indices), _AT_ONCE):
            yield from read(path, tuple(indices[first : first + _AT_ONCE]))


def end() -> None:
    """End those processes: the service stops, and waits for nothing that they do."""
    _decoders.end()


def pids() -> list[int | None]:
    """The numbers of the processes that decode for this one."""
    return _decoders.pids()


def _is_compressed(transfer_syntax_uid: str) -> bool:
    uid = UID(transfer_syntax_uid)
    return not uid.is_transfer_syntax or uid.is_compressed  # a private one is whatever it is


def _read(path: Path, indices: tuple[int, ...] | None) -> list[Frame]:
    try:
        return [dcmread(path).pixel_array] if indices is None else list(iter_pixels(path, indices=indices))
    except Exception as exc:  # decoders raise whatever they like; each means the same here
        if isinstance(exc, OSError) and exc.errno and not isinstance(exc, FileNotFoundError):  # the disk's, not theirs
            raise _lost(f"the file can't be read ({errno.errorcode.get(exc.errno, exc.errno)})") from None
        raise _undecodable(type(exc).__name__) from exc


def _undecodable(found: str) -> Undecodable:
    return Undecodable(
        doing="decoding pixels",
        found=found,
        rule="pixel data are as long and as encoded as the header says (PS3.5 section 8)",
        way_out="send the images again, uncompressed if their transfer syntax is a rare one",
    )


def _lost(found: str) -> DecoderLost:
    return DecoderLost(
        doing="decoding pixels",
        found=found,
        rule="the file can be read, and the process that decodes it is ended by nobody but the service",
        way_out="see whether the machine ran out of memory, and whether the disk answers; it is tried again",
    )


def _how_it_ended(code: int | None) -> Undecodable | DecoderLost:
    if code is not None and -code in _FAULTS:
        return _undecodable(f"what decodes them crashes on them ({signal.Signals(-code).name})")
    return _lost(f"the process that did it was ended (exit code {code})")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Not:
    """The answer where there are no frames."""

    is_lost: bool  # another try may succeed
    found: str


class _Decoder:
    """One process, as whoever asks it sees it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # threads do not survive a fork
        self._channel, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="decoder", daemon=True)
        self._process.start()
        theirs.close()  # so that the death of either process closes the channel

    def ask(self, path: Path, indices: tuple[int, ...] | None) -> list[Frame]:
        """See `frames`."""
        try:
            self._channel.send((path, indices))
            if not self._channel.poll(_SECONDS):
                raise _undecodable(f"no end after {_SECONDS:.0f} s")
            answer: list[Frame] | _Not = self._channel.recv()
        except BaseException as exc:
            if isinstance(exc, EOFError | OSError):
                self._process.join(_END_SECONDS)
            code = self._process.exitcode
            self.end()  # what it has still to say would be taken for the next answer
            if isinstance(exc, Undecodable) or not isinstance(exc, Exception):
                raise
            raise _how_it_ended(code) from exc
        if isinstance(answer, _Not):
            raise (_lost if answer.is_lost else _undecodable)(answer.found)
        return answer

    def end(self) -> None:
        """At once."""
        self._process.kill()
        self._process.join(_END_SECONDS)
        self._channel.close()

    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.is_alive()

    @property
    def pid(self) -> int | None:
        """Its number."""
        return self._process.pid


class _Decoders:
    """Some of them, started when they are needed, each asked by one thread at a time."""

    def __init__(self) -> None:
        self._room = threading.Semaphore(_MOST)
        self._lock = threading.Lock()
        self._idle: list[_Decoder] = []
        self._lent: list[_Decoder] = []

    def ask(self, path: Path, indices: tuple[int, ...] | None) -> list[Frame]:
        """See `frames`."""
        with self._room:
            try:
                decoder = self._lend()
            except OSError as exc:  # no more processes, or descriptors, for us now
                raise _lost(f"no process can be started ({errno.errorcode.get(exc.errno or 0, exc.errno)})") from exc
            try:
                return decoder.ask(path, indices)
            finally:
                with self._lock:
                    self._lent.remove(decoder)
                    if decoder.is_alive():
                        self._idle.append(decoder)

    def end(self) -> None:
        """End all of them, before multiprocessing waits for them at the end of this process."""
        with self._lock:
            for decoder in (*self._idle, *self._lent):
                decoder.end()
            self._idle.clear()

    def pids(self) -> list[int | None]:
        """Of those that are alive."""
        with self._lock:
            return [decoder.pid for decoder in (*self._idle, *self._lent) if decoder.is_alive()]

    def _lend(self) -> _Decoder:
        with self._lock:
            while self._idle:
                decoder = self._idle.pop()
                if decoder.is_alive():
                    break
            else:
                decoder = _Decoder()
            self._lent.append(decoder)
            return decoder


_decoders = _Decoders()
atexit.register(end)


def _serve(channel: Connection) -> None:
    """Decode until the other end of the channel is gone, be it closed or dead with its process."""
    child.serve()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # codecs say there what they like, and the log is lines of JSON
    with suppress(EOFError, OSError):
        while True:
            path, indices = channel.recv()
            signal.alarm(int(_SECONDS) + 30)  # ends whatever hangs, should nobody be there any more who does
            try:
                answer: list[Frame] | _Not = _read(path, indices)
            except (Undecodable, DecoderLost) as exc:
                answer = _Not(is_lost=isinstance(exc, DecoderLost), found=exc.found)
            signal.alarm(0)
            channel.send(answer)
    os._exit(0)
