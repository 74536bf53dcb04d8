"""The main job with a toy model: in by DCMTK, out into a real Orthanc, through crashes and restarts, once."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pynetdicom import evt

from service.demo.pacs import OwnPacs
from service.demo.phantom import tiny
from service.demo.phantom_dicom import write_localizer, write_series
from tests.acceptance.conftest import Orthanc, Service, wait
from tests.support import counterpart, free_port
from tests.toys import Ball, bright_study, write_model


def push(folder: Path, service: Service, *options: str) -> None:
    """Send a folder's files with DCMTK's dcmsend."""
    subprocess.run(
        [
            counterpart("dcmsend"),
            *options,
            "-aec",
            "OVERREAD",
            "127.0.0.1",
            str(service.dicom_port),
            "+sd",
            str(folder),
        ],
        check=True,
        capture_output=True,
        env={"TCP_NODELAY": "1"},
    )


def study_uid_of(folder: Path) -> str:
    """Study Instance UID of a folder's first file."""
    return str(dcmread(next(folder.iterdir()), stop_before_pixels=True).StudyInstanceUID)


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Ball]:
    """A study on the disk, and what is in it."""
    folder = tmp_path / "study"
    return folder, bright_study(folder)


def test_a_pushed_study_comes_back_with_its_lesion(
    service: Service, orthanc: Orthanc, study: tuple[Path, Ball]
) -> None:
    folder, ball = study
    write_model(service.models, "second")  # two models, one study
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    push(folder, service)
    answer = service.wait_for_study(study_uid_of(folder))

    assert [a["model"] for a in answer["answers"]] == ["bright", "second"]
    (finding,) = answer["answers"][0]["findings"]
    np.testing.assert_allclose(finding["centroid_lps_mm"], ball.centre_lps_mm, atol=0.5)
    sent = {delivery["sop_uid"]: delivery["kind"] for delivery in answer["deliveries"]}
    assert sorted(sent.values()) == ["SEG", "SEG", "SR", "SR"]
    assert {d["state"] for d in answer["deliveries"]} == {"confirmed"}
    stored = orthanc.instances()
    assert stored.keys() == sent.keys()

    # The object that came out of the PACS says the same as the API, by its own geometry.
    uid = next(o["sop_instance_uid"] for o in answer["answers"][0]["objects"] if o["kind"] == "SEG")
    content = orthanc.get_bytes(f"/instances/{stored[uid]}/file")
    segmentation = hd.seg.segread(content)
    assert str(segmentation.StudyInstanceUID) == study_uid_of(folder)
    volume = segmentation.get_volume(combine_segments=True)
    voxels = np.argwhere(np.asarray(volume.array) > 0)
    centroid = volume.map_indices_to_reference(voxels).mean(axis=0)
    np.testing.assert_allclose(centroid, ball.centre_lps_mm, atol=0.5)
    assert len(voxels) * volume.voxel_volume / 1000 == pytest.approx(finding["volume_ml"], rel=0.01)

    for picture in (f["picture"] for a in answer["answers"] for f in a["findings"]):
        image = service.get_bytes(f"/api/v1/studies/{study_uid_of(folder)}/files/{picture}")
        assert image is not None
        assert image.startswith(b"\x89PNG")
    assert service.get_bytes(f"/api/v1/studies/{study_uid_of(folder)}/files/answers.json") is None
    assert service.get("/health/ready")["ready"] is True
    metrics = service.get("/metrics")
    assert f'overread_instances_received_total{{outcome="received"}} {len(list(folder.iterdir()))}.0' in metrics
    assert 'overread_studies{state="done"} 1.0' in metrics
    assert 'overread_delivery_attempts_total{destination="pacs",outcome="confirmed"} 4.0' in metrics
    assert service.stop() == 0

    # Promise 8, and a log that machines can read: JSON in every line, no patient in any.
    for line in service.log().splitlines():
        assert json.loads(line)["event"]
        assert "phantom" not in line.lower()
    assert "phantom" not in metrics.lower()


def test_nothing_found_is_an_answer_too(service: Service, orthanc: Orthanc, tmp_path: Path) -> None:
    folder = tmp_path / "healthy"
    write_series(tiny(), folder)
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    push(folder, service)
    answer = service.wait_for_study(study_uid_of(folder))
    assert answer["answers"][0]["outcome"] == "no findings"
    (uid,) = orthanc.instances()
    report = dcmread(DicomBytesIO(orthanc.get_bytes(f"/instances/{orthanc.instances()[uid]}/file")))
    assert report.Modality == "SR"


def test_our_own_results_sent_back_to_us_start_nothing(
    service: Service, orthanc: Orthanc, study: tuple[Path, Ball], tmp_path: Path
) -> None:
    """A PACS that routes everything to us routes our results too; that must not go round for ever."""
    folder, _ = study
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    push(folder, service)
    first = service.wait_for_study(study_uid_of(folder))
    back = tmp_path / "back"
    back.mkdir()
    for uid, identifier in orthanc.instances().items():
        (back / f"{uid}.dcm").write_bytes(orthanc.get_bytes(f"/instances/{identifier}/file"))
    push(back, service)
    wait(lambda: len(service.events("instance.ours")) == 2, "our results to be recognised", seconds=10)
    again = service.get(f"/api/v1/studies/{study_uid_of(folder)}")
    assert (again["state"], again["revision"], len(again["deliveries"])) == ("done", 0, len(first["deliveries"]))


def test_killed_while_it_analyses_the_results_arrive_once(
    service: Service, orthanc: Orthanc, study: tuple[Path, Ball]
) -> None:
    folder, _ = study
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    push(folder, service)
    service.wait_for_study(study_uid_of(folder), "analysing", seconds=20)
    service.kill()
    assert orthanc.instances() == {}
    service.start()
    answer = service.wait_for_study(study_uid_of(folder))
    assert len(orthanc.instances()) == 2
    assert {d["state"] for d in answer["deliveries"]} == {"confirmed"}


def test_a_pacs_that_is_down_gets_the_results_when_it_is_back(
    service: Service, orthanc: Orthanc, study: tuple[Path, Ball]
) -> None:
    folder, _ = study
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    orthanc.stop()
    push(folder, service)
    study_uid = study_uid_of(folder)
    service.wait_for_study(study_uid, "delivering")
    wait(lambda: len(service.events("delivery.retrying")) >= 2, "attempts", seconds=30)
    waiting = service.get(f"/api/v1/studies/{study_uid}")["deliveries"]
    assert {d["state"] for d in waiting} <= {"queued", "retrying"}, "one at a time tries it"
    tried = [d["reason"] for d in waiting if d["state"] == "retrying"]
    assert tried
    assert all("start it, or correct host and port" in reason for reason in tried)
    service.kill()  # kept over restarts
    service.start()
    orthanc.start()
    answer = service.wait_for_study(study_uid)
    assert {d["state"] for d in answer["deliveries"]} == {"confirmed"}
    assert len(orthanc.instances()) == 2


def test_a_late_instance_makes_a_new_answer(
    service: Service, orthanc: Orthanc, study: tuple[Path, Ball], tmp_path: Path
) -> None:
    folder, _ = study
    late = tmp_path / "late"
    late.mkdir()
    last = sorted(folder.iterdir())[-1]
    last.rename(late / last.name)
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    push(folder, service)
    first = service.wait_for_study(study_uid_of(folder))
    push(late, service)
    wait(lambda: service.get(f"/api/v1/studies/{study_uid_of(folder)}")["revision"] == 1, "a new revision", seconds=20)
    second = service.wait_for_study(study_uid_of(folder))
    stored = orthanc.instances()
    assert len(stored) == 4  # the first answer's two objects stay; the new ones have their own UIDs
    # The new report says which one it supersedes, in the same form.
    old, new = (
        next(it["sop_uid"] for it in deliveries if it["kind"] == "SR")
        for deliveries in (first["deliveries"], second["deliveries"][len(first["deliveries"]) :])
    )
    report = dcmread(DicomBytesIO(orthanc.get_bytes(f"/instances/{stored[new]}/file")))
    (series,) = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert [it.ReferencedSOPInstanceUID for it in series.ReferencedSOPSequence] == [old]


def test_a_late_instance_beside_the_analysed_series_sends_nothing_again(
    service: Service, orthanc: Orthanc, study: tuple[Path, Ball], tmp_path: Path
) -> None:
    """A dose report, or another program's result: what was analysed is the same, and so are its objects."""
    folder, _ = study
    write_localizer(tiny(), tmp_path / "late", study_uid=study_uid_of(folder))
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    push(folder, service)
    first = service.wait_for_study(study_uid_of(folder))
    push(tmp_path / "late", service)
    wait(lambda: service.get(f"/api/v1/studies/{study_uid_of(folder)}")["revision"] == 1, "a new revision", seconds=20)
    second = service.wait_for_study(study_uid_of(folder))
    assert second["answers"][0]["objects"] == first["answers"][0]["objects"]
    assert second["deliveries"] == first["deliveries"]
    kept = [p.read_bytes() for p in sorted((service.folder / "var" / "evidence").glob("*/[01]/bright.SR.binary.dcm"))]
    assert len(kept) == 2
    assert kept[0] == kept[1], "one UID, one content"


def test_it_stops_in_time_though_the_pacs_is_down(service: Service, study: tuple[Path, Ball]) -> None:
    folder, _ = study
    service.add_destination("ORTHANC", free_port())
    service.start()
    push(folder, service)
    wait(lambda: len(service.events("delivery.retrying")) >= 4, "two attempts of two objects", seconds=40)
    assert service.stop() == 0
    assert service.events("service.stopped")


def test_stopped_while_it_analyses_it_finishes_after_the_restart(
    service: Service, orthanc: Orthanc, study: tuple[Path, Ball]
) -> None:
    folder, _ = study
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    push(folder, service)
    service.wait_for_study(study_uid_of(folder), "analysing", seconds=20)
    assert service.stop() == 0
    service.start()
    (answer,) = service.wait_for_study(study_uid_of(folder))["answers"]
    assert answer["outcome"] == "findings"
    assert len(orthanc.instances()) == 2
    for line in service.log().splitlines():  # also when it stops in the middle of work
        assert json.loads(line)["event"]


class _Choosy(OwnPacs):
    """A PACS that has no room for one study."""

    unwanted = ""

    def _store(self, event: evt.Event) -> int:
        return 0xA700 if event.dataset.StudyInstanceUID == self.unwanted else super()._store(event)


def test_a_result_that_is_refused_for_now_holds_up_no_other(service: Service, tmp_path: Path) -> None:
    """More results than places in the destination's queue wait for room; the next study's go past them."""
    pacs = _Choosy(tmp_path / "pacs")
    try:
        for name in ("second", "third"):
            write_model(service.models, name)  # six objects a study, four places
        for seed, name in enumerate(("unwanted", "wanted")):
            bright_study(tmp_path / name, seed=seed)
        pacs.unwanted = study_uid_of(tmp_path / "unwanted")
        service.add_destination("DEMOPACS", pacs.port)
        service.start()
        push(tmp_path / "unwanted", service)
        wait(lambda: len(service.events("delivery.retrying")) >= 6, "the refusals", seconds=60)
        push(tmp_path / "wanted", service)
        wanted = service.wait_for_study(study_uid_of(tmp_path / "wanted"))
        assert {d["state"] for d in wanted["deliveries"]} == {"confirmed"}
        held = service.get(f"/api/v1/studies/{pacs.unwanted}")["deliveries"]
        assert {d["state"] for d in held} == {"retrying"}
        assert all("make room there" in d["reason"] for d in held)
        pacs.unwanted = ""
        study = service.wait_for_study(study_uid_of(tmp_path / "unwanted"), seconds=90)
        assert {d["state"] for d in study["deliveries"]} == {"confirmed"}
    finally:
        pacs.stop()


def test_state_and_work_may_live_in_postgresql(
    service: Service, orthanc: Orthanc, study: tuple[Path, Ball], postgresql: str
) -> None:
    """The same program, one setting; killed in the middle, as above."""
    folder, _ = study
    service.database = postgresql
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    push(folder, service)
    service.wait_for_study(study_uid_of(folder), "analysing", seconds=20)
    service.kill()
    service.start()
    answer = service.wait_for_study(study_uid_of(folder))
    assert {d["state"] for d in answer["deliveries"]} == {"confirmed"}
    assert len(orthanc.instances()) == 2
    assert not list((service.folder / "var").glob("*.sqlite"))
