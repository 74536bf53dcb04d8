"""A disk that loses its power: what was fsynced survives, and of the rest what the file system felt like writing.

`Disk` stands in for the file layer of this process, with the rules that POSIX leaves to rely on:

- the fsync of a file makes its content of that moment durable, and no name of it;
- the fsync of a folder makes the names in it of that moment durable, but not what they lead to, nor its own name;
- other names may have been written early, as a journal does, folder by folder: `Disk.survivals` goes through them all.
  A removal is such a change too: what is removed may be there again;
- content that was not fsynced is gone.

What it does not see: a name that survives without its neighbours of the same moment (no promise here needs that one is
absent), and what SQLite does in C, which keeps promises of its own.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

Tree = dict[str, bytes | None]  # what survives, by path: a file's content, or None for a folder

_Inode = tuple[int, int]
_CHANGES = {"mkdir": 0, "link": 1, "rename": 1, "replace": 1, "unlink": 0, "rmdir": 0}  # the argument that is changed


class Killed(BaseException):
    """The process ended here; no handler of it runs, for whatever that does to the disk ends in the same way."""


class Disk:
    """The part of the disk below a folder; whatever is there in the beginning is durable.

    Parameters
    ----------
    root
        The folder. What happens elsewhere goes its usual way.

    Attributes
    ----------
    steps
        What happened, as ``fsync spool/1.2.3``; the root is ``.``.
    on_step
        Called before and after each step: a moment at which the power may go.
    skips
        Asked for each fsync: whether it is to say that it was done, and to do nothing.
    kill_at
        Before which step the process ends; None: it does not. `revive` starts it again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.steps: list[str] = []
        self.on_step: Callable[[], None] = lambda: None
        self.skips: Callable[[str], bool] = lambda step: False
        self.kill_at: int | None = None
        self._dead = False
        self._lock = threading.RLock()
        self._patch = pytest.MonkeyPatch()
        self._pins: dict[_Inode, int] = {}  # a handle on each, so that its number is not given to another file
        self._content: dict[_Inode, bytes] = {}  # what is durable
        self._names: dict[_Inode, dict[str, _Inode]] = {}
        self._top = self._pin(str(self.root))

    def __enter__(self) -> Disk:
        for inode in self._known_folders():
            self._names[inode] = self._live(inode)
            for child in self._names[inode].values():
                if not self._is_folder(child):
                    self._content[child] = self._read(child)
        for name in ("fsync", "fdatasync"):
            self._patch.setattr(os, name, self._fsync)
        for name, argument in _CHANGES.items():
            self._patch.setattr(os, name, self._wrapped(getattr(os, name), name, argument))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        for handle in self._pins.values():
            os.close(handle)

    def revive(self) -> None:
        """Start the process again, with the disk as it is: it was the process that ended, not the power."""
        self.kill_at, self._dead = None, False

    def survivors(self, early: frozenset[_Inode] = frozenset()) -> Tree:
        """What a power cut now leaves: what was fsynced, and the present names in the folders of ``early``."""
        tree: Tree = {}

        def walk(folder: _Inode, at: str) -> None:
            names = self._live(folder) if folder in early else self._names.get(folder, {})
            for name, inode in sorted(names.items()):
                if self._is_folder(inode):
                    tree[at + name] = None
                    walk(inode, f"{at}{name}/")
                else:
                    tree[at + name] = self._content.get(inode, b"")

        walk(self._top, "")
        return tree

    def survivals(self) -> Iterator[Tree]:
        """Everything that a power cut now may leave; first the least."""
        with self._lock:
            unsure = [inode for inode in self._known_folders() if self._live(inode) != self._names.get(inode, {})]
            assert len(unsure) < 12, "too many to go through"
            for count in range(len(unsure) + 1):
                for early in combinations(unsure, count):
                    yield self.survivors(frozenset(early))

    def image(self, into: Path) -> None:
        """Write the least that a power cut now leaves into another folder."""
        into.mkdir(parents=True, exist_ok=True)
        for path, content in self.survivors().items():
            if content is None:
                (into / path).mkdir()
            else:
                (into / path).write_bytes(content)

    # --- What happens -----------------------------------------------------------------------------------------------

    def _fsync(self, handle: int) -> None:
        place = self._within(os.readlink(f"/proc/self/fd/{handle}"))
        if place is None:
            return  # nobody cuts the power of this machine
        with self._step(f"fsync {place}") as step:
            if not self.skips(step):
                inode = self._pin(f"/proc/self/fd/{handle}", follow=True)
                if self._is_folder(inode):
                    self._names[inode] = self._live(inode)
                else:
                    self._content[inode] = self._read(inode)

    def _wrapped(self, real: Callable[..., None], name: str, argument: int) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            base = kwargs.get("dir_fd")
            folder = os.getcwd() if base is None else os.readlink(f"/proc/self/fd/{base}")
            place = self._within(os.path.join(folder, os.fspath(args[argument])))
            if place is None:
                return real(*args, **kwargs)
            with self._step(f"{name} {place}"):
                return real(*args, **kwargs)

        return call

    @contextmanager
    def _step(self, step: str) -> Iterator[str]:
        with self._lock:
            self._dead = self._dead or len(self.steps) == self.kill_at
            if self._dead:
                raise Killed
            self.on_step()
            yield step
            self.steps.append(step)
            self.on_step()

    def _within(self, path: str) -> str | None:
        place = os.path.relpath(path, self.root)
        return None if place.split("/")[0] == ".." else place

    # --- What is there ----------------------------------------------------------------------------------------------

    def _pin(self, path: str, *, follow: bool = False, folder: int | None = None) -> _Inode:
        # O_PATH: to close such a handle drops no lock of the process, as to close any other one does.
        handle = os.open(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW), dir_fd=folder)
        status = os.fstat(handle)
        inode = (status.st_dev, status.st_ino)
        if inode in self._pins:
            os.close(handle)
        else:
            self._pins[inode] = handle
        return inode

    def _is_folder(self, inode: _Inode) -> bool:
        return stat.S_ISDIR(os.fstat(self._pins[inode]).st_mode)

    def _live(self, folder: _Inode) -> dict[str, _Inode]:
        """The names in a folder as the running system sees them; none where it is removed."""
        try:
            names = os.listdir(f"/proc/self/fd/{self._pins[folder]}")
        except FileNotFoundError:
            return {}
        live = {}
        for name in names:
            try:
                live[name] = self._pin(name, folder=self._pins[folder])
            except FileNotFoundError:  # another thread was faster
                continue
        return live

    def _read(self, file: _Inode) -> bytes:
        return Path(f"/proc/self/fd/{self._pins[file]}").read_bytes()

    def _known_folders(self) -> list[_Inode]:
        """The folders that are there, and those that were there when an fsync saw them."""

        def walk(folder: _Inode) -> None:
            for inode in self._live(folder).values():
                if self._is_folder(inode):
                    walk(inode)

        walk(self._top)
        return [inode for inode in self._pins if self._is_folder(inode)]
