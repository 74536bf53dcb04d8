"""Results of ours that a PACS routes back to us: they start nothing, or they would start themselves for ever."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from service.store import Store
from service.tables import database_url
from service.types import Delivery, DeliveryState
from tests.integration.receiver import EXPLICIT, Site, associated, explicit, image, put, running, wait
from tests.support import counterpart


@contextmanager
def opened(site: Site) -> Iterator[Store]:
    """The site's store."""
    store = Store(database_url(site.config.store.directory, ""))
    try:
        yield store
    finally:
        store.close()


ORIGIN = "1.2.99"  # a study that our results belong to


def queue(store: Store, result: Dataset) -> int:
    """Let the result be one of ours, about to leave; returns the delivery's number."""
    delivery = Delivery(
        delivery_id=0,
        study_instance_uid=str(result.StudyInstanceUID),
        destination="pacs",
        model="m",
        kind="SEG",
        sop_class_uid=str(result.SOPClassUID),
        series_instance_uid=str(result.SeriesInstanceUID),
        sop_instance_uid=str(result.SOPInstanceUID),
        path=Path("elsewhere.dcm"),
        state=DeliveryState.QUEUED,
        attempts=0,
        reason="",
        queued_at=time.time(),
    )
    study_uid = delivery.study_instance_uid
    if store.study(study_uid) is None:
        study_uid = ORIGIN
        uids: Any = {"study_uid": ORIGIN, "series_uid": f"{ORIGIN}.1", "sop_uid": f"{ORIGIN}.1.1", "class_uid": "1.2"}
        store.keep_instance(**uids, sha256="", path=Path("origin.dcm"), now=time.time())
    for study in store.receiving():
        if study.study_instance_uid == study_uid:
            store.begin_analysis(study_uid, 0, last_at=study.last_at)
    assert store.save_answers(study_uid, 0, answers={}, deliveries=[delivery])
    (number,) = store.due_deliveries("pacs", now=time.time(), lease_seconds=60, limit=9)
    return number


def test_a_result_that_comes_back_starts_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = image()
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    result.save_as(tmp_path / "result.dcm", implicit_vr=False, little_endian=True, enforce_file_format=True)
    with running(tmp_path / "site") as site, opened(site) as store:
        queue(store, result)
        command = [
            counterpart("storescu"),
            "-aec",
            "OVERREAD",
            "127.0.0.1",
            str(site.port),
            str(tmp_path / "result.dcm"),
        ]
        subprocess.run(command, check=True, timeout=20)
        wait(lambda: site.outcomes)
        assert [word for word, _ in site.outcomes] == ["ours"]
        assert [row["study_uid"] for row in store.studies()] == [ORIGIN]
        assert site.files() == []
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line["event"].startswith("instance.")]
    assert (line["event"], line["level"]) == ("instance.ours", "info")
    assert line["sop_instance_uid"] == result.SOPInstanceUID


@pytest.mark.parametrize("state", ["delivering", "done"])
def test_a_result_that_comes_back_leaves_its_study_as_it_is(tmp_path: Path, state: str) -> None:
    with running(tmp_path) as site, opened(site) as store, associated(site.port) as association:
        source = image()
        study_uid = str(source.StudyInstanceUID)
        assert put(association, source) == 0
        (study,) = store.receiving()
        assert store.begin_analysis(study_uid, 0, last_at=study.last_at)
        result = image(StudyInstanceUID=study_uid)
        number = queue(store, result)
        if state == "done":
            store.note_delivery(number, DeliveryState.CONFIRMED)
        before, files = store.study(study_uid), site.files()
        assert before is not None
        assert (before["state"], before["revision"]) == (state, 0)
        assert put(association, result) == 0
        assert (store.study(study_uid), site.files()) == (before, files)
        assert put(association, image(StudyInstanceUID=study_uid)) == 0  # what is not ours reopens it
        assert (store.study(study_uid) or {})["revision"] == 1


def test_a_result_that_another_made_before_us_keeps_its_file(tmp_path: Path) -> None:
    with running(tmp_path) as site, opened(site) as store, associated(site.port) as association:
        result = image()
        assert put(association, result) == 0
        queue(store, result)
        assert put(association, result) == 0
        ((_, path, _),) = site.rows()
        assert Path(path).read_bytes().endswith(explicit(result))
        other = image(StudyInstanceUID=result.StudyInstanceUID, SOPInstanceUID=result.SOPInstanceUID)
        assert put(association, other) == 0
        assert len(site.files()) == 1
        wait(lambda: [word for word, _ in site.outcomes] == ["received", "ours", "ours"])
