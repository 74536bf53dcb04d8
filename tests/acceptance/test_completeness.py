"""When a study starts, with a real Orthanc as the source that is asked (C-FIND), and what comes of it.

CI takes shorter series and pauses; ``OVERREAD_FULL=1`` those of the README's table, which it prints.
"""

from __future__ import annotations

import os
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from service.demo.phantom_dicom import write_series
from service.requestor import steady
from tests.acceptance.conftest import Orthanc, Service, wait
from tests.toys import bright_phantom

_FULL = os.environ.get("OVERREAD_FULL") == "1"
_SLICES = 275 if _FULL else 60
_GAP_SECONDS = 40.0 if _FULL else 8.0  # longer than quiet_seconds
_LATER_SECONDS = 60.0 if _FULL else 3.0  # after the result
_LIMIT_SECONDS = 50.0 if _FULL else 10.0  # longer than the gap
_HELD_BACK = 3
_SOURCES = """
[[sources]]
ae_title = "SENDER"
query = {{ ae_title = "ORTHANC", host = "127.0.0.1", port = {port} }}
quiet_seconds = 5
limit_seconds = {limit}
[[sources]]
ae_title = "CLOCK"
quiet_seconds = 5
limit_seconds = {limit}
"""


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of an analysis, by the log."""

    instances: int  # of the study, that had been received
    seconds: float  # since the last of them
    verdict: str


@dataclass(kw_only=True)
class Site:
    """The service, its source and destination, and studies to send."""

    service: Service
    orthanc: Orthanc
    folder: Path
    studies: int = 0

    def study(self) -> tuple[str, list[Path]]:
        """A new study on the disk: its UID and files, the first slice first."""
        self.studies += 1
        phantom, _ = bright_phantom(
            affine=np.diag([1.5, 2.0, 2.0, 1.0]), shape=(_SLICES, 48, 48), seed=self.studies, radius_mm=10.0
        )
        files = write_series(phantom, self.folder / str(self.studies))
        return str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID), files

    def file(self, files: list[Path]) -> None:
        """Put files into the source."""
        for path in files:
            url = f"http://127.0.0.1:{self.orthanc.http_port}/instances"
            urllib.request.urlopen(urllib.request.Request(url, path.read_bytes()), timeout=30).close()

    def associate(self, calling: str = "SENDER") -> Association:
        ae = AE(calling)
        ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        association = ae.associate("127.0.0.1", self.service.dicom_port, ae_title="OVERREAD")
        assert association.is_established
        steady(association)
        return association

    def send(self, *files: Path, calling: str = "SENDER") -> None:
        """Send files in one association; each is acknowledged."""
        association = self.associate(calling)
        for file in files:
            assert association.send_c_store(dcmread(file)).Status == 0x0000
        association.release()

    def sources_at(self, uid: str) -> float:
        """When a file of a study last came."""
        with sqlite3.connect(self.service.folder / "var" / "overread.sqlite") as store:
            found: float = store.execute("SELECT sources_at FROM studies WHERE study_uid = ?", (uid,)).fetchone()[0]
            return found

    def done(self, uid: str, *, revision: int = 0) -> dict[str, Any]:
        """The study, once that revision is done."""
        wait(
            lambda: (self.service.get(f"/api/v1/studies/{uid}") or {}).get("revision") == revision,
            f"revision {revision}",
            seconds=60,
        )
        return self.service.wait_for_study(uid, seconds=120)

    def starts(self, uid: str) -> list[Start]:
        """Its analyses, and what had come before each: by the database's own times."""
        began = [line for line in self.service.events("study.ready") if line["study_uid"] == uid]
        with sqlite3.connect(self.folder.parent / "var" / "overread.sqlite") as database:
            came = [row[0] for row in database.execute("SELECT received_at FROM instances WHERE study_uid = ?", (uid,))]
        found = []
        for line in began:
            at = time_of(line)
            before = [time for time in came if time <= at]
            found.append(Start(instances=len(before), seconds=at - max(before), verdict=line["completeness"]))
        return found

    def reports(self, uid: str) -> list[Any]:
        """The SRs that the destination has of it."""
        found = [it for it in self.orthanc.find(uid) if it["Modality"] == "SR"]
        return [dcmread(DicomBytesIO(self.orthanc.get_bytes(f"/instances/{it['ID']}/file"))) for it in found]

    def tell(self, name: str, uid: str) -> list[Start]:
        """Print the table's lines; return the starts."""
        starts = self.starts(uid)
        results = sum(it["Modality"] in ("SR", "SEG") for it in self.orthanc.find(uid))
        for number, start in enumerate(starts, 1):
            print(
                f"| {name} | run {number} of {len(starts)} | instance {start.instances} of {_SLICES} | "
                f"{start.seconds:.2f} s | {start.verdict} | {results} results in all |"
            )
        return starts


def time_of(line: dict[str, Any]) -> float:
    """When a line was written, seconds since 1970."""
    from datetime import datetime

    return datetime.fromisoformat(line["time"]).timestamp()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from tests.toys import write_model

    folder = tmp_path_factory.mktemp("completeness")
    write_model(folder / "models")
    service = Service(folder=folder, models=folder / "models")
    orthanc = Orthanc(folder=folder / "orthanc").knows(service).start()
    service.add_destination("ORTHANC", orthanc.port)
    service.routes = _SOURCES.format(port=orthanc.port, limit=_LIMIT_SECONDS)
    try:
        yield Site(service=service.start(), orthanc=orthanc, folder=folder / "studies")
    finally:
        service.stop()
        orthanc.stop()


def test_sent_in_one_association(site: Site) -> None:
    uid, files = site.study()
    site.file(files)
    site.send(*files)
    site.done(uid)
    (start,) = site.tell("one association", uid)
    assert (start.instances, start.verdict) == (_SLICES, "verified")
    assert len(site.reports(uid)) == 1


def test_sent_in_an_association_for_each_slice(site: Site) -> None:
    uid, files = site.study()
    site.file(files)
    for file in files:
        site.send(file)
    site.done(uid)
    (start,) = site.tell(f"{_SLICES} associations", uid)
    assert (start.instances, start.verdict) == (_SLICES, "verified")


def test_a_gap_longer_than_the_clock_starts_nothing_and_the_api_says_why(site: Site) -> None:
    uid, files = site.study()
    site.file(files)
    half = len(files) // 2
    site.send(*files[:half])
    time.sleep(_GAP_SECONDS)
    waiting = site.service.get(f"/api/v1/studies/{uid}")
    assert waiting["state"] == "receiving"
    assert f"{half} of {_SLICES}" in waiting["waits"]
    assert 0 < waiting["seconds_left"] <= _LIMIT_SECONDS
    site.send(*files[half:])
    site.done(uid)
    (start,) = site.tell(f"a gap of {_GAP_SECONDS:g} s in the middle", uid)
    assert (start.instances, start.verdict) == (_SLICES, "verified")


def test_slices_that_do_not_come_in_time_make_it_partial_and_are_analysed_when_they_come(site: Site) -> None:
    uid, files = site.study()
    site.file(files)
    missing = files[5 : 5 + _HELD_BACK]
    site.send(*(file for file in files if file not in missing))
    first = site.done(uid)
    assert first["completeness"] == "partial"
    assert f"{_SLICES - _HELD_BACK} of {_SLICES}" in first["missing"]
    (answer,) = first["answers"]
    assert "incomplete" in answer["causes"]
    assert "images are missing" in answer["reason"]
    time.sleep(_LATER_SECONDS)
    site.send(*missing)
    second = site.done(uid, revision=1)
    assert (second["completeness"], second["answers"][0]["outcome"]) == ("verified", "findings")
    starts = site.tell(f"{_HELD_BACK} slices held back beyond the limit", uid)
    assert [(it.instances, it.verdict) for it in starts] == [(_SLICES - _HELD_BACK, "partial"), (_SLICES, "verified")]
    old, new = sorted(site.reports(uid), key=lambda it: "PredecessorDocumentsSequence" in it)
    (series,) = new.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert [it.ReferencedSOPInstanceUID for it in series.ReferencedSOPSequence] == [old.SOPInstanceUID]


def test_slices_that_the_source_itself_gets_late_make_a_new_run(site: Site) -> None:
    """Its own results are in the source by then, and it counts them too."""
    uid, files = site.study()
    early, late = files[:-_HELD_BACK], files[-_HELD_BACK:]
    site.file(early)
    site.send(*early)
    site.done(uid)
    time.sleep(_LATER_SECONDS)
    site.file(late)
    site.send(*late)
    site.done(uid, revision=1)
    starts = site.tell(f"{_HELD_BACK} slices that the PACS gets after the result", uid)
    assert [(it.instances, it.verdict) for it in starts] == [(_SLICES - _HELD_BACK, "verified"), (_SLICES, "verified")]
    assert len(site.reports(uid)) == 2


def test_every_slice_twice_and_the_whole_study_again_make_one_run(site: Site) -> None:
    uid, files = site.study()
    site.file(files)
    site.send(*(file for file in files for _ in range(2)))
    before, came_at = site.done(uid), site.sources_at(uid)
    site.send(*files)
    time.sleep(2.0)
    after = site.service.get(f"/api/v1/studies/{uid}")
    assert site.sources_at(uid) > came_at, "its images are kept so much longer"
    unchanged = {key: value for key, value in before.items() if key not in ("age_seconds", "kept")}
    assert {key: after[key] for key in unchanged} == unchanged
    (start,) = site.tell("every slice twice, and all again after the result", uid)
    assert (start.instances, start.verdict) == (_SLICES, "verified")
    assert len(site.reports(uid)) == 1


def test_two_studies_interleaved_start_each_for_itself(site: Site) -> None:
    (one, first), (two, second) = site.study(), site.study()
    site.file([*first, *second])
    site.send(*(file for pair in zip(first, second, strict=True) for file in pair))
    for name, uid in (("first", one), ("second", two)):
        site.done(uid)
        (start,) = site.tell(f"two studies interleaved: the {name}", uid)
        assert (start.instances, start.verdict) == (_SLICES, "verified")


def test_without_a_source_the_clock_and_the_stack_decide(site: Site) -> None:
    uid, files = site.study()
    hole = files[10:12]
    site.send(*(file for file in files if file not in hole), calling="CLOCK")
    wait(
        lambda: "missing" in str((site.service.get(f"/api/v1/studies/{uid}") or {}).get("waits")),
        "the gap to be seen",
        seconds=20,
    )
    site.send(*hole, calling="CLOCK")
    site.done(uid)
    (start,) = site.tell("nobody to ask, two slices of the middle late", uid)
    assert (start.instances, start.verdict) == (_SLICES, "quiet")
