"""What the tests of power cuts act: processes that receive instances on a disk, and what must survive of them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import struct
import time
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydicom import Dataset
from pynetdicom import evt

from service import files
from service.intake.keep import CONFLICTING
from service.intake.receive import StorageHandler
from service.intake.spool import Spool
from service.settings.store import StoreSection
from service.store import Store, open_store
from tests.power import Disk, Killed
from tests.unit.encoded import EXPLICIT, data_set, encode

STORE = "a/b/store"  # the first start makes all three
SPOOL = f"{STORE}/spool"


def made(number: int, *, study: str = "1.2.3", pixels: int = 0) -> Dataset:
    """An instance of a study; ``pixels`` are other bytes under the same UIDs."""
    one = data_set()
    one.StudyInstanceUID, one.SeriesInstanceUID = study, f"{study}.9"
    one.SOPInstanceUID = f"{study}.9.{number}"
    one.PixelData = bytes([pixels]) * 128
    return one


class Process:
    """A receiving process: a spool, a store and a handler of its own, with senders that need no network."""

    def __init__(self, directory: Path, database: Path) -> None:
        files.make_folder(directory)
        self.store = Store(f"sqlite:///{database}")
        self.handler = StorageHandler(Spool(directory, 0), self.store, lambda word, size: None)

    def receive(self, one: Dataset) -> int:
        """The status that it answers."""
        request = SimpleNamespace(
            AffectedSOPClassUID=one.SOPClassUID,
            AffectedSOPInstanceUID=one.SOPInstanceUID,
            DataSet=SimpleNamespace(getvalue=lambda: encode(one, EXPLICIT)),
        )
        context = SimpleNamespace(transfer_syntax=EXPLICIT, abstract_syntax=one.SOPClassUID)
        peer = SimpleNamespace(requestor=SimpleNamespace(ae_title="SENDER", primitive=None))
        event = SimpleNamespace(request=request, context=context, assoc=peer)
        answer = self.handler(cast(evt.Event, event))
        return answer if isinstance(answer, int) else int(answer.Status)


class Scene:
    """A disk with one store, and what was acknowledged there.

    Rows are read where they are: a row that another connection sees is committed, and durable (SQLite in WAL mode with
    synchronous = FULL fsyncs its log, and the folder in which it made that, before a commit returns). So the database
    lies beside the disk whose power goes.
    """

    def __init__(self, disk: Disk, database: Path) -> None:
        self.disk, self._database = disk, database
        self.losses: list[str] = []
        self._acknowledged: dict[str, bytes] = {}
        self._data: list[bytes] = []
        self._stores: list[Store] = []
        shutil.copy(database.parent / "empty.sqlite", database)

    def process(self) -> Process:
        """A process starts."""
        one = Process(self.disk.root / STORE, self._database)
        self._stores.append(one.store)
        return one

    def send(self, process: Process, one: Dataset) -> int:
        """Send an instance; what is acknowledged must survive from now on."""
        self._data.append(encode(one, EXPLICIT))
        status = process.receive(one)
        if status in (0, CONFLICTING):
            self.acknowledge(one)
            self.look()
        return status

    def acknowledge(self, one: Dataset) -> None:
        """Remember what must survive of an instance: the file under the path in its row."""
        data = encode(one, EXPLICIT)
        self._data.append(data)
        paths = [path for path, sha256 in self._rows() if sha256 == hashlib.sha256(data).hexdigest()]
        if not paths:
            self.losses.append(f"no row of {one.SOPInstanceUID}")
        for path in paths:
            content = (self.disk.root / path).read_bytes()
            assert content.endswith(data)
            self._acknowledged[path] = content

    def remove(self, study: str) -> None:
        """Take a study away, as a retention would: its rows and its folder."""
        time.sleep(0.02)  # the clock of the file system ticks in milliseconds; a retention waits for days
        with closing(sqlite3.connect(self._database)) as database, database:
            database.execute("DELETE FROM instances WHERE study_uid = ?", [study])
        shutil.rmtree(self.disk.root / SPOOL / study)
        self._acknowledged = {path: kept for path, kept in self._acknowledged.items() if f"/{study}/" not in path}

    def look(self) -> None:
        """Note what would be lost if the power went now."""
        rows = self._rows()
        for tree in self.disk.survivals():
            for path, sha256 in rows:
                if _sha256(tree.get(path)) != sha256:
                    self.losses.append(f"a row names {path}")
            for path, content in self._acknowledged.items():
                if tree.get(path) != content:
                    self.losses.append(f"acknowledged: {path}")
            for path, found in tree.items():
                if found is not None and path.endswith(".dcm") and not any(map(found.endswith, self._data)):
                    self.losses.append(f"a part only: {path}")

    def image(self, into: Path) -> None:
        """Write what survives into a folder, and read all that was acknowledged there."""
        self.disk.image(into)
        assert self._acknowledged
        for path, content in self._acknowledged.items():
            assert (into / path).read_bytes() == content

    def close(self) -> None:
        for store in self._stores:
            store.close()

    def _rows(self) -> list[tuple[str, str]]:
        with closing(sqlite3.connect(self._database)) as database:
            rows = database.execute("SELECT path, sha256 FROM instances UNION SELECT path, sha256 FROM conflicts")
            return [(os.path.relpath(path, self.disk.root), sha256) for path, sha256 in rows]


def _sha256(content: bytes | None) -> str:
    """Of the data set in a file that survived; empty where there is none."""
    if not content:
        return ""
    return hashlib.sha256(content[144 + struct.unpack_from("<L", content, 140)[0] :]).hexdigest()


class Scenes:
    """Makes scenes in a folder, each on a disk of its own; the one before it is over then."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, count()
        self._scene: Scene | None = None
        open_store(
            StoreSection.model_construct(directory=folder, database=f"sqlite:///{folder / 'empty.sqlite'}")
        ).close()

    def __call__(self) -> Scene:
        self.close()
        root = self._folder / str(next(self._numbers))
        root.mkdir()
        self._scene = Scene(Disk(root).__enter__(), root.with_suffix(".sqlite"))
        return self._scene

    def close(self) -> None:
        """End the last one."""
        if self._scene:
            self._scene.disk.__exit__()
            self._scene.close()
            self._scene = None


def day(scene: Scene) -> list[int]:
    """What a spool sees: new and known studies, repeats, other bytes under a known UID, two processes."""
    one = scene.process()
    first = [made(1), made(2), made(1), made(1, pixels=1), made(1, pixels=1)]
    statuses = [scene.send(one, instance) for instance in first]
    two = scene.process()
    second = [(two, made(3)), (two, made(2)), (two, made(1, study="1.2.4")), (one, made(2, study="1.2.4"))]
    return statuses + [scene.send(process, instance) for process, instance in second]


def killed(scenes: Scenes, *, beside: bool) -> list[str]:
    """What is lost where a process ends or stalls before its n-th step, for every n, and another one acknowledges.

    Parameters
    ----------
    beside
        Whether the other one has been running all the time, or starts then.
    """
    losses: list[str] = []
    for n in count():
        scene = scenes()
        other = scene.process() if beside else None
        begun = len(scene.disk.steps)
        scene.disk.kill_at = begun + n
        with suppress(Killed):
            day(scene)
        if len(scene.disk.steps) < begun + n:
            return losses
        scene.disk.revive()
        for one in (made(1), made(2), made(1, pixels=1), made(1, study="1.2.4")):
            assert scene.send(other or scene.process(), one) in (0, CONFLICTING)
        losses += scene.losses
    raise AssertionError("unreachable")


def removed_and_made_again(scene: Scene) -> None:
    """A study is removed, and another process that makes its folder again is killed before its fsync."""
    one, other = scene.process(), scene.process()
    scene.send(one, made(1))
    scene.remove("1.2.3")
    scene.disk.kill_at = len(scene.disk.steps) + 1
    with suppress(Killed):
        other.receive(made(2))
    scene.disk.revive()
    assert scene.disk.steps[-1] == f"mkdir {SPOOL}/1.2.3"
    assert scene.send(one, made(2)) == 0


def role(step: str) -> str:
    """A step without the name that the file has by chance."""
    return re.sub("[0-9a-f]{32}", "*", step)


def fsync_late(monkeypatch: pytest.MonkeyPatch, *, after: str, which: Callable[[int], bool]) -> None:
    """Plant a fault: these fsyncs come only after a link or a rename."""
    waiting: list[int] = []
    fsync, change = os.fsync, getattr(os, after)

    def later(handle: int) -> None:
        if which(handle):
            waiting.append(os.dup(handle))
        else:
            fsync(handle)

    def changed(*args: Any, **kwargs: Any) -> None:
        change(*args, **kwargs)
        while waiting:
            handle = waiting.pop(0)
            fsync(handle)
            os.close(handle)

    monkeypatch.setattr(os, "fsync", later)
    monkeypatch.setattr(os, after, changed)
