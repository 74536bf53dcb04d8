"""[edge: disk] How far the audit trail has been sent: a place in its files, that outlives the process.

It promises that each whole line is given until `Tail.done` was called after it, over rotations and restarts: a crash
may repeat lines, and loses none. A file is known by its first line, which says when it was begun, and not by its name:
so logrotate may rename it, or copy and truncate it. Files that it compresses are not read: it is to wait one rotation
(``delaycompress``).
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Final

from service.files import sync_folder

_HEAD_BYTES: Final = 100  # of a first line: its time, to the microsecond, its host and process
_CHUNK_BYTES: Final = 1 << 20
_SETTLED_SECONDS: Final = 2.0  # after its last line nobody writes to a file that was rotated away
_COMPRESSED: Final = (".gz", ".xz", ".bz2", ".zst")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How far the trail was sent, and what was not, and nobody was told yet."""

    head: str = ""  # how the file begins; empty: none was begun
    offset: int = 0  # in bytes
    skipped: int = 0  # lines beyond the largest number that may wait
    damaged: int = 0  # lines that are not whole
    lost: int = 0  # files that were removed before they were sent

    def untold(self) -> str:
        """What was not sent, in words; empty: all was."""
        parts = [
            f"{count} {what}"
            for count, what in (
                (self.skipped, "messages, the oldest of too many that waited"),
                (self.damaged, "lines that were not whole"),
                (self.lost, "files that were removed before"),
            )
            if count
        ]
        return f"not sent: {', '.join(parts)}" if parts else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    path: Path
    head: str
    begun: datetime


class Tail:
    """Reads the trail from where it was left.

    Parameters
    ----------
    path
        Of the file that is written to. Rotated ones lie beside it, their names longer by ``.`` or ``-`` and more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._state = path.with_name(f".{path.name}.sent")
        self._place = self._next = self._load()

    @property
    def place(self) -> Place:
        """Where it is."""
        return self._place

    def read(self, most: int) -> list[bytes]:
        """The next lines, as many as there are and are wanted; none: all were given.

        Lines that are not whole messages are left out, and counted.
        """
        while True:
            file = self._file()
            if not file:
                return []
            lines, place = self._read_from(file, most)
            if lines:
                self._next = place
                return lines
            if place.offset > self._place.offset:  # nothing but damage
                self._place = self._next = place
            elif not self._go_on(file):
                return []

    def done(self, *, told: bool = False) -> None:
        """Remember that the lines of the last `read` were sent.

        Parameters
        ----------
        told
            Whether it was told, too, what was not sent.
        """
        self._place = replace(self._next, skipped=0, damaged=0, lost=0) if told else self._next
        self._save()

    def limit(self, most: int) -> int:
        """Let no more than so many lines wait; the oldest are skipped, and counted. How many wait then."""
        waiting = self._waiting()
        if waiting <= most:
            return waiting
        skip = waiting - most
        while skip and (lines := self.read(min(skip, 1000))):
            skip -= len(lines)
            self._place = self._next = replace(self._next, skipped=self._next.skipped + len(lines))
        self._save()
        return most

    def _waiting(self) -> int:
        count, files = 0, self._files()
        names = [file.head for file in files]
        first = names.index(self._place.head) if self._place.head in names else 0
        for number, file in enumerate(files[first:]):
            with suppress(FileNotFoundError), file.path.open("rb") as opened:
                opened.seek(self._place.offset if number == 0 and file.head == self._place.head else 0)
                while chunk := opened.read(_CHUNK_BYTES):
                    count += chunk.count(b"\n")
        return count

    def _read_from(self, file: _File, most: int) -> tuple[list[bytes], Place]:
        """Lines of a file, and the place behind them."""
        place = self._place
        try:
            with file.path.open("rb") as opened:
                opened.seek(place.offset)
                data = opened.read(_CHUNK_BYTES)
        except FileNotFoundError:  # rotated a moment ago: found again next time
            return [], place
        lines, offset, damaged = list[bytes](), place.offset, place.damaged
        for line in BytesIO(data):
            if len(lines) == most or (not line.endswith(b"\n") and len(data) < _CHUNK_BYTES):
                break  # it may be being written
            if not line.endswith(b"\n") and lines:
                break  # the chunk ends in it
            offset += len(line)
            if line.startswith(b"<") and line.endswith(b"</AuditMessage>\n"):
                lines.append(line[:-1])
            elif line.strip():
                damaged += 1
        return lines, replace(place, head=file.head, offset=offset, damaged=damaged)

    def _file(self) -> _File | None:
        """The file in which the place is; where that is gone, the one that was begun after it."""
        for _ in range(2):  # a rotation may come between two looks at names
            files = self._files()
            found = next((file for file in files if file.head == self._place.head), None)
            if found:
                return found
        if not self._place.head:
            later = files
        else:
            begun = _begun(self._place.head)
            later = [file for file in files if file.begun > begun]
            if later:
                self._place = self._next = Place(
                    skipped=self._place.skipped, damaged=self._place.damaged, lost=self._place.lost + 1
                )
        if later:
            self._place = self._next = replace(self._place, head=later[0].head, offset=0)
        return later[0] if later else None

    def _go_on(self, file: _File) -> bool:
        """Go on to the file after one that was read to its end, if nobody writes to it any more."""
        files = self._files()
        number = next((n for n, other in enumerate(files) if other.head == file.head), -1)
        if number < 0 or number + 1 == len(files):
            return False
        with suppress(FileNotFoundError):
            if abs(time.time() - files[number].path.stat().st_mtime) < _SETTLED_SECONDS:
                return False
            damaged = files[number].path.stat().st_size > self._place.offset  # its last line has no end
            self._place = self._next = replace(
                self._place, head=files[number + 1].head, offset=0, damaged=self._place.damaged + damaged
            )
            return True
        return False

    def _files(self) -> list[_File]:
        """All files of the trail that hold something, in the order in which they were begun."""
        files = dict[str, _File]()
        for path in (*self._rotated(), self._path):
            with suppress(OSError), path.open("rb") as opened:
                head = opened.read(_HEAD_BYTES).decode("utf-8", "replace").partition("\n")[0]
                begun = _begun(head)
                if head and (begun > datetime.min.replace(tzinfo=UTC) or path == self._path):
                    files.setdefault(head, _File(path=path, head=head, begun=begun))
        return sorted(files.values(), key=lambda file: (file.path == self._path, file.begun))

    def _rotated(self) -> list[Path]:
        name = self._path.name
        return [
            path
            for path in sorted(self._path.parent.iterdir())
            if path.name.startswith((f"{name}.", f"{name}-")) and path.suffix not in _COMPRESSED and path.is_file()
        ]

    def _load(self) -> Place:
        try:
            return Place(**json.loads(self._state.read_text("utf-8")))
        except (FileNotFoundError, ValueError, TypeError):  # none, or damaged: all is sent, perhaps again
            return Place()

    def _save(self) -> None:
        temp = self._state.with_name(f"{self._state.name}.new")
        with temp.open("w", encoding="utf-8") as file:
            json.dump(asdict(self._place), file)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(self._state)
        sync_folder(self._state.parent)


def _begun(head: str) -> datetime:
    """When a file was begun, by the time in its first line (RFC 5424 section 6.2.3)."""
    with suppress(ValueError, IndexError):
        begun = datetime.fromisoformat(head.split(" ")[1])
        if begun.tzinfo:
            return begun
    return datetime.min.replace(tzinfo=UTC)
