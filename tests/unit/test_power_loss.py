"""Promise 1 when the power goes: what was acknowledged is on the disk, whatever else the disk had written by then.

Each check here is seen to fail: the faults that it is there for are planted, one by one.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service import faults, files
from service.config import Config
from service.files import sync_folder
from service.intake import spool as spool_module
from service.intake.keep import CONFLICTING
from service.intake.spool import KeptFile, Spool
from service.settings.store import StoreSection
from service.store import Store, open_store
from tests.power import Disk, Killed
from tests.unit.power_scenes import (
    SPOOL,
    STORE,
    Process,
    Scenes,
    day,
    fsync_late,
    killed,
    made,
    removed_and_made_again,
    role,
)

TARGETS = [  # every fsync on the way of the first instance ever
    *("fsync .", "fsync a", "fsync a/b", f"fsync {STORE}", f"fsync {SPOOL}"),
    *(f"fsync {SPOOL}/incoming/*", f"fsync {SPOOL}/1.2.3"),
]


@pytest.fixture
def scenes(tmp_path: Path) -> Iterator[Scenes]:
    """Scenes to act on."""
    made = Scenes(tmp_path)
    yield made
    made.close()


# --- The model ------------------------------------------------------------------------------------------------------


def test_the_model_keeps_what_was_fsynced_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    with Disk(tmp_path) as disk:
        folder = tmp_path / "folder"
        folder.mkdir()
        with open(folder / "file", "xb") as file:
            file.write(b"content")
            file.flush()
            os.fsync(file.fileno())
            file.write(b" and more")
        assert disk.survivors() == {"old": b"old"}, "neither file nor folder has a durable name"
        sync_folder(folder)
        assert disk.survivors() == {"old": b"old"}, "a folder's fsync does not make its own name durable"
        (tmp_path / "old").unlink()
        assert [sorted(tree) for tree in disk.survivals()] == [["old"], ["folder", "folder/file"]]
        sync_folder(tmp_path)
        assert disk.survivors() == {"folder": None, "folder/file": b"content"}, "content as of its fsync"
        (folder / "empty").write_bytes(b"never fsynced")
        sync_folder(folder)
        folder.rename(tmp_path / "other")
        assert list(disk.survivals()) == [
            {name: None, f"{name}/file": b"content", f"{name}/empty": b""} for name in ("folder", "other")
        ]
        disk.image(tmp_path.parent / "image")
    assert (tmp_path.parent / "image" / "folder" / "file").read_bytes() == b"content"
    assert (tmp_path.parent / "image" / "folder" / "empty").read_bytes() == b""


def test_the_model_ends_a_process_at_once(tmp_path: Path) -> None:
    with Disk(tmp_path) as disk:
        disk.kill_at = 1
        (tmp_path / "one").mkdir()
        for _ in range(2):
            with pytest.raises(Killed):
                (tmp_path / "two").mkdir()
        disk.revive()
        (tmp_path / "two").mkdir()
        assert disk.steps == ["mkdir one", "mkdir two"]


# --- What holds -----------------------------------------------------------------------------------------------------


def test_what_is_acknowledged_survives_a_cut_at_any_moment(scenes: Scenes, tmp_path: Path) -> None:
    scene = scenes()
    scene.disk.on_step = scene.look
    assert day(scene) == [0, 0, 0, CONFLICTING, CONFLICTING, 0, 0, 0, 0]
    assert scene.losses == []
    scene.image(tmp_path / "image")
    kept = Process(tmp_path / "image" / STORE, tmp_path / "0.sqlite")  # it starts from what survived
    assert [kept.receive(made(1)), kept.receive(made(4))] == [0, 0]
    kept.store.close()


@pytest.mark.parametrize("beside", [False, True])
def test_what_is_acknowledged_after_a_kill_survives_a_cut_too(beside: bool, scenes: Scenes) -> None:
    assert killed(scenes, beside=beside) == []


def test_a_study_folder_that_was_removed_and_made_again_is_durable(scenes: Scenes) -> None:
    scene = scenes()
    removed_and_made_again(scene)
    assert scene.losses == []


def test_processes_that_receive_at_once_lose_nothing(scenes: Scenes) -> None:
    scene = scenes()
    processes = [scene.process(), scene.process()]
    sent = [
        made(number, study=f"1.2.{study}", pixels=pixels)
        for number in range(4)
        for study in (3, 4)
        for pixels in (0, 1)
    ]
    statuses: list[int] = []

    def send(process: Process, order: int) -> None:
        statuses.extend(process.receive(one) for one in sent[::order])

    threads = [threading.Thread(target=send, args=(process, order)) for process in processes for order in (1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(statuses), set(statuses)) == (4 * len(sent), {0, CONFLICTING})
    for one in sent:
        scene.acknowledge(one)
    scene.look()
    assert scene.losses == []


def test_the_folder_of_a_first_start_is_durable(tmp_path: Path) -> None:
    from service.serve import _lock

    with Disk(tmp_path) as disk:
        _lock(Config(store=StoreSection(directory=tmp_path / STORE)), "a").close()
        assert disk.survivors() == {"a": None, "a/b": None, STORE: None}


def test_a_folder_is_made_only_where_one_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(OSError, match="Not a directory"):
            files.make_folder(path)

    def sync(folder: Path) -> None:
        raise PermissionError(folder)

    monkeypatch.setattr(files, "sync_folder", sync)
    files.make_folder(tmp_path)  # somebody else's, in a folder that we may not read
    with pytest.raises(PermissionError):
        files.make_folder(tmp_path / "ours")


def test_the_places_of_faults_are_where_they_say(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scenes()
    one, steps = scene.process(), scene.disk.steps
    steps.clear()
    monkeypatch.setattr(faults, "point", lambda name: steps.append(f"- {name}: {faults.POINTS[name]}"))
    scene.send(one, made(1))
    assert [role(step) for step in steps] == [
        "- receive.begun: an instance has been received, nothing is on the disk",
        f"mkdir {SPOOL}/1.2.3",
        f"fsync {SPOOL}",
        "- spool.written: its temp file is written, not fsynced",
        f"fsync {SPOOL}/incoming/*",
        "- spool.fsynced: its temp file is fsynced, without its final name",
        f"link {SPOOL}/1.2.3/1.2.3.9.1.dcm",
        "- spool.linked: it has its final name, which is not fsynced",
        f"unlink {SPOOL}/incoming/*",
        f"fsync {SPOOL}/1.2.3",
        "- spool.kept: its folder is fsynced; there is no row",
        "- instance.committing: its row is about to be committed",
        "- instance.committed: its row is committed; Success is not sent",
    ]


def test_every_connection_to_sqlite_commits_to_the_disk(tmp_path: Path) -> None:
    store = open_store(StoreSection(directory=tmp_path))
    connections = [store._engine.connect() for _ in range(12)]  # more than the pool keeps
    for connection in connections:
        assert connection.execute(sa.text("PRAGMA synchronous")).scalar_one() == 2  # FULL
        assert connection.execute(sa.text("PRAGMA journal_mode")).scalar_one() == "wal"
        connection.close()
    store.close()


# --- Faults, planted ------------------------------------------------------------------------------------------------


def test_each_fsync_has_its_planted_fault(scenes: Scenes) -> None:
    scene = scenes()
    scene.send(scene.process(), made(1))
    assert {role(step) for step in scene.disk.steps if step.startswith("fsync")} == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_an_fsync_left_out_is_a_loss(target: str, scenes: Scenes) -> None:
    scene = scenes()
    scene.disk.skips = lambda step: role(step) == target
    assert scene.send(scene.process(), made(1)) == 0
    assert any(loss.startswith("acknowledged") for loss in scene.losses)


def test_a_row_before_its_file_is_a_loss(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, late = scenes(), list[Callable[[], KeptFile]]()
    keep, keep_instance = Spool.keep, Store.keep_instance

    def promise(self: Spool, data: bytes, **about: Any) -> KeptFile:
        late.append(lambda: keep(self, data, **about))
        uids = about["identity"]
        path = self._directory / uids.study_instance_uid / f"{uids.sop_instance_uid}.dcm"
        return KeptFile(path=path, sha256=hashlib.sha256(data).hexdigest())

    def row_first(self: Store, **row: Any) -> Any:
        kept = keep_instance(self, **row)
        late.pop()()
        return kept

    monkeypatch.setattr(Spool, "keep", promise)
    monkeypatch.setattr(Store, "keep_instance", row_first)
    scene.disk.on_step = scene.look
    assert scene.send(scene.process(), made(1)) == 0
    assert f"a row names {SPOOL}/1.2.3/1.2.3.9.1.dcm" in scene.losses
    scene.losses.clear()
    scene.look()
    assert scene.losses == [], "in the end all is there: only the moment between is lost"


def test_a_name_before_the_content_is_a_loss(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scenes()
    scene.disk.on_step = scene.look
    fsync_late(monkeypatch, after="link", which=lambda handle: stat.S_ISREG(os.fstat(handle).st_mode))
    assert scene.send(scene.process(), made(1)) == 0
    assert set(scene.losses) == {f"a part only: {SPOOL}/1.2.3/1.2.3.9.1.dcm"}


def test_folders_as_they_were_made_before_are_a_loss(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, and only those fsynced that were missing: who is killed between leaves them to nobody."""

    def make(path: Path) -> None:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync_folder(folder.parent)

    monkeypatch.setattr(spool_module, "make_folder", make)
    monkeypatch.setattr(files, "make_folder", make)
    assert any(loss.startswith("acknowledged") for loss in killed(scenes, beside=False))


def _trusting(self: Spool, study_instance_uid: str) -> Path:
    """Plant a fault: who finds a study's folder takes it for durable."""
    folder = self._directory / study_instance_uid
    try:
        folder.mkdir()
    except FileExistsError:
        return folder
    sync_folder(self._directory)
    return folder


def _remembering(self: Spool, study_instance_uid: str) -> Path:
    """Plant a fault: who has once made a study's folder durable takes it for so for ever."""
    folder = self._directory / study_instance_uid
    try:
        folder.mkdir()
    except FileExistsError:
        if folder in self._synced:
            return folder
    sync_folder(self._directory)
    self._synced.add(folder)
    return folder


def test_a_study_folder_taken_for_durable_is_a_loss(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spool, "_study_folder", _trusting)
    assert any(loss.startswith("acknowledged") for loss in killed(scenes, beside=True))


def test_a_study_folder_remembered_is_a_loss(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spool, "_study_folder", _remembering)
    scene = scenes()
    removed_and_made_again(scene)
    assert any(loss.startswith("acknowledged") for loss in scene.losses)
