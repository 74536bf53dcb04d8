"""What an attempt to answer a study leaves, where its evidence is frozen already, or its files can't be read now."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service import evidence, worker
from service.config import Config
from service.errors import NotUnderstood
from service.results.negotiate import Acceptance
from service.store import Store
from service.tables import database_url
from service.types import Completeness, Delivery, DeliveryState, Priority
from service.worker import Worker

STUDY, RESULT = "1.2", "1.2.9"
BODY = {
    "model": "m",
    "outcome": "no findings",
    "findings": [],
    "objects": [
        {
            "kind": "SR",
            "form": "",
            "part": 1,
            "sop_class_uid": "1.2.840.10008.5.1.4.1.1.88.34",
            "transfer_syntax_uid": "1.2.840.10008.1.2.1",
            "sop_instance_uid": RESULT,
            "series_instance_uid": "1.2.8",
            "base": "b",
            "supersedes": "",
            "file": "m.SR.dcm",
        }
    ],
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(database_url(tmp_path, ""))
    made.create_tables()
    yield made
    made.close()


def _worker(tmp_path: Path, store: Store) -> Worker:
    destinations = [{"name": name, "ae_title": "A", "host": "127.0.0.1", "port": 1} for name in ("old", "new")]
    config = Config.model_validate({"store": {"directory": tmp_path}, "destinations": destinations})
    nothing: Any = None  # no model is asked: the evidence is there
    acceptance = Acceptance(lambda destination: frozenset())
    return Worker(config, store, (), nothing, acceptance=acceptance, lines={}, stopping=threading.Event())


def _receive(store: Store, sop: str) -> int:
    """An instance comes, and its study is claimed; its revision."""
    uids: Any = {"study_uid": STUDY, "series_uid": "1.2.1", "sop_uid": f"1.2.1.{sop}", "class_uid": "1.2"}
    store.keep_instance(**uids, sha256="", path=Path("none"), now=time.time())
    (study,) = store.receiving()
    assert store.begin_analysis(STUDY, study.revision, last_at=study.last_at)
    return study.revision


def _freeze(tmp_path: Path, revision: int) -> Path:
    folder = evidence.folder_of(tmp_path, STUDY, revision)
    folder.mkdir(parents=True)
    (folder / "answers.json").write_text(json.dumps([BODY]))
    (folder / "m.SR.dcm").write_bytes(b"frozen")
    return folder


@pytest.mark.parametrize("are_gone", [False, True])
def test_one_uid_is_never_sent_with_other_bytes_once_its_own_are_gone(
    are_gone: bool, tmp_path: Path, store: Store
) -> None:
    """Promise 3, across retention: a destination that is new since then must not get what the old one has otherwise."""
    first = _freeze(tmp_path, 0)
    revision = _receive(store, "1")
    sent = Delivery(
        delivery_id=0,
        study_instance_uid=STUDY,
        destination="old",
        model="m",
        kind="SR",
        sop_class_uid="1.2",
        series_instance_uid="1.2.8",
        sop_instance_uid=RESULT,
        path=first / "m.SR.dcm",
        state=DeliveryState.QUEUED,
        attempts=0,
        reason="",
        queued_at=time.time(),
    )
    store.save_answers(STUDY, revision, answers={}, deliveries=[sent])
    if are_gone:
        sent.path.unlink()
    revision = _receive(store, "2")
    _freeze(tmp_path, revision)
    _worker(tmp_path, store).answer(STUDY, revision, 0, Priority.ROUTINE)
    rows = (store.study(STUDY) or {})["deliveries"]
    assert [row["destination"] for row in rows] == (["old"] if are_gone else ["old", "new"])


def test_evidence_that_a_crash_left_under_its_name_is_made_durable_before_it_is_remembered(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = _receive(store, "1")
    folder, seen = _freeze(tmp_path, revision), []

    def sync(synced: Path) -> None:
        seen.append((synced, (store.study(STUDY) or {})["state"]))

    monkeypatch.setattr(worker, "sync_folder", sync)
    _worker(tmp_path, store).answer(STUDY, revision, 0, Priority.ROUTINE)
    assert seen == [(folder.parent, "analysing")]
    assert (store.study(STUDY) or {})["state"] == "delivering"


def test_a_file_that_the_disk_does_not_give_now_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO, or too many open files: the study is analysed later, whole. A file that is gone makes it partial."""
    here, gone = tmp_path / "here.dcm", tmp_path / "gone.dcm"
    here.write_bytes(b"no DICOM")
    with monkeypatch.context() as patched:
        patched.setattr("service.intake.study.dcmread", _fails)
        with pytest.raises(NotUnderstood):
            worker._read_study(STUDY, [here], 0.0, Completeness.QUIET, "")
    assert worker._read_study(STUDY, [here, gone], 0.0, Completeness.QUIET, "") is None


def _fails(*_: Any, **__: Any) -> None:
    raise OSError(5, "Input/output error")
