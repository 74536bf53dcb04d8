"""Each destination gets what its profile wants, or the next best that it accepts, and why; and `probe` finds out."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage, SegmentationStorage

from service.codes import LABEL_MAP_SEGMENTATION_STORAGE
from service.demo.pacs import wait_for_port
from service.demo.specimen import PATIENT_ID
from service.forms import Profile
from service.results.negotiate import RESULTS
from tests.acceptance.conftest import Orthanc, Service
from tests.acceptance.test_main_job import push, study_uid_of
from tests.browser.pacs import WebPacs
from tests.support import REPOSITORY, counterpart, free_port
from tests.toys import bright_study

_ONLY = """
[[TransferSyntaxes]]
[Uncompressed]
TransferSyntax1 = LocalEndianExplicit
TransferSyntax2 = LittleEndianImplicit
[[PresentationContexts]]
[Some]
{contexts}
[[Profiles]]
[Default]
PresentationContexts = Some
"""


@contextmanager
def storescp(folder: Path, *classes: str) -> Iterator[int]:
    """DCMTK's storescp, which accepts only these classes (or all it knows); the files it gets lie in the folder."""
    folder.mkdir()
    port = free_port()
    options: list[str] = []
    if classes:
        contexts = "\n".join(
            f"PresentationContext{n} = {name}\\Uncompressed" for n, name in enumerate(classes, start=1)
        )
        rules = folder.with_suffix(".cfg")
        rules.write_text(_ONLY.format(contexts=contexts))
        options = ["--config-file", str(rules), "Default"]
    command = [counterpart("storescp"), *options, "--output-directory", str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def classes_in(folder: Path) -> list[str]:
    """The SOP classes of the files that a peer got."""
    return sorted(str(dcmread(path, stop_before_pixels=True).SOPClassUID) for path in folder.iterdir())


def to(study: dict[str, Any], destination: str) -> dict[str, list[dict[str, Any]]]:
    """A study's deliveries to a destination, by their state."""
    found: dict[str, list[dict[str, Any]]] = {}
    for delivery in study["deliveries"]:
        if delivery["destination"] == destination:
            found.setdefault(delivery["state"], []).append(delivery)
    return found


def test_each_destination_gets_the_best_that_it_accepts(service: Service, orthanc: Orthanc, tmp_path: Path) -> None:
    """One takes pictures only, one everything but label maps, one reports but no segmentation, one what it asks for."""
    with (
        storescp(tmp_path / "pictures", "SecondaryCaptureImageStorage") as pictures,
        storescp(tmp_path / "reports", "Comprehensive3DSRStorage", "SecondaryCaptureImageStorage") as reports,
        storescp(tmp_path / "older") as older,
    ):
        none = 'confirm = "none"\n'
        service.add_destination("ANY", pictures, name="pictures", more=none)
        service.add_destination("ANY", reports, name="reports", more=none)
        packed = 'profile = { seg = "labelmap", compression = "jpeg-ls" }\n'
        service.add_destination("ANY", older, name="older", more=none + packed)
        service.add_destination("ORTHANC", orthanc.port, name="pacs", more=packed)
        service.add_destination(
            "ORTHANC",
            orthanc.port,
            name="viewer",
            more='profile = { seg = "none", sr = false, capture = "findings", gsps = true, ko = true }',
        )
        service.start()
        bright_study(tmp_path / "study")
        push(tmp_path / "study", service)
        study = service.wait_for_study(study_uid_of(tmp_path / "study"))

    assert classes_in(tmp_path / "pictures") == [SecondaryCaptureImageStorage] * 2  # the sheet, and the finding
    seen = to(study, "pictures")
    assert {delivery["kind"] for delivery in seen["replaced"]} == {"SEG", "SR"}
    for delivery in seen["replaced"]:
        assert "Segmentation Storage as Explicit VR Little Endian is not accepted" in delivery["reason"]
        assert "pictures go in the place of what is not accepted" in delivery["reason"]
    assert {delivery["kind"] for delivery in seen["unconfirmed"]} == {"SC"}

    assert classes_in(tmp_path / "reports") == [Comprehensive3DSRStorage]
    report = dcmread(next((tmp_path / "reports").iterdir()))
    assert SegmentationStorage.name not in str(report), "it refers to no segmentation"

    seen = to(study, "older")  # DCMTK of today knows no label maps
    assert {delivery["kind"] for delivery in seen["replaced"]} == {"SEG", "SR"}
    for delivery in seen["replaced"]:
        assert "BINARY goes in the place of LABELMAP" in delivery["reason"]
    assert classes_in(tmp_path / "older") == sorted([SegmentationStorage, Comprehensive3DSRStorage])

    assert [len(to(study, "pacs")[state]) for state in to(study, "pacs")] == [2], "as asked: both confirmed"
    classes = {delivery["class_uid"] for delivery in to(study, "pacs")["confirmed"]}
    assert classes == {LABEL_MAP_SEGMENTATION_STORAGE, Comprehensive3DSRStorage}

    seen = to(study, "viewer")
    assert sorted(delivery["kind"] for delivery in seen["confirmed"]) == ["KO", "PR", "SC", "SC"]

    stored = orthanc.get("/instances?expand")
    assert len(stored) == 6
    assert study["state"] == "done"


def test_answers_without_findings_go_only_where_they_are_wanted(
    service: Service, orthanc: Orthanc, tmp_path: Path
) -> None:
    from service.demo.phantom import tiny
    from service.demo.phantom_dicom import write_series

    write_series(tiny(), tmp_path / "healthy")
    service.add_destination("ORTHANC", orthanc.port, name="quiet", more='profile = { negative_reports = "none" }')
    service.start()
    push(tmp_path / "healthy", service)
    study = service.wait_for_study(study_uid_of(tmp_path / "healthy"))
    assert study["deliveries"] == []
    (answer,) = study["answers"]
    assert answer["outcome"] == "no findings"
    # It is kept, and shown here.
    report = next(made["file"] for made in answer["objects"] if made["kind"] == "SR")
    assert service.get_bytes(f"/api/v1/studies/{study['study_uid']}/files/{report}")
    sheet = service.get_bytes(f"/api/v1/studies/{study['study_uid']}/files/{answer['summary']}")
    assert sheet is not None
    assert sheet.startswith(b"\x89PNG")
    assert orthanc.instances() == {}


def test_a_presentation_state_that_is_not_accepted_needs_somebody_to_act(service: Service, tmp_path: Path) -> None:
    with storescp(tmp_path / "peer", "SegmentationStorage", "Comprehensive3DSRStorage") as port:
        service.add_destination("ANY", port, more='confirm = "none"\nprofile = { gsps = true }')
        service.start()
        bright_study(tmp_path / "study")
        push(tmp_path / "study", service)
        study = service.wait_for_study(study_uid_of(tmp_path / "study"), "undelivered")
    seen = to(study, "pacs")
    (refused,) = seen["refused"]
    assert refused["kind"] == "PR"
    assert "Grayscale Softcopy Presentation State Storage" in refused["reason"]
    assert "take it out of the profile" in refused["reason"]
    assert {delivery["kind"] for delivery in seen["unconfirmed"]} == {"SEG", "SR"}


def test_check_says_what_each_destination_gets(service: Service, orthanc: Orthanc, tmp_path: Path) -> None:
    with (
        storescp(tmp_path / "pictures", "VerificationSOPClass", "SecondaryCaptureImageStorage") as pictures,
        storescp(tmp_path / "images", "VerificationSOPClass", "CTImageStorage") as images,
    ):
        service.add_destination("ORTHANC", orthanc.port)
        service.add_destination("ANY", pictures, name="pictures", more='confirm = "none"')
        service.add_destination("ANY", images, name="images", more='confirm = "none"')
        command = [sys.executable, "-m", "service", "check", "--config", str(service.config)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    said = {line.partition(":")[0].split()[-1]: line for line in done.stdout.splitlines() if "destination" in line}
    assert "answers and gets SEG, SR" in said["pacs"]
    assert "answers and gets SC; " in said["pictures"]
    assert "pictures go in the place of what is not accepted" in said["pictures"]
    assert said["images"].startswith("WRONG")
    assert "overread probe images" in done.stdout
    assert done.returncode == 1


# --- overread probe -------------------------------------------------------------------------------------------------


def probe(tmp_path: Path, port: int, *options: str, ae_title: str = "ANY") -> tuple[int, str]:
    """Run ``overread probe``; its exit code and what it prints."""
    config = tmp_path / "overread.toml"
    config.write_text(
        f'[[destinations]]\nname = "pacs"\nae_title = "{ae_title}"\nhost = "127.0.0.1"\nport = {port}\n'
        "timeout_seconds = 5\n"
    )
    command = [sys.executable, "-m", "service", "probe", "pacs", "--config", str(config), *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def proposal(said: str) -> Profile:
    """The profile that it proposes, read as a site would paste it."""
    (line,) = [line for line in said.splitlines() if line.startswith("profile = ")]
    return Profile.model_validate(tomllib.loads(line)["profile"])


def test_probe_of_orthanc_proposes_what_it_shows(orthanc: Orthanc, tmp_path: Path) -> None:
    code, said = probe(tmp_path, orthanc.port, "--send", ae_title="ORTHANC")
    assert code == 0, said
    assert proposal(said) == Profile()
    assert "It offers storage commitment" in said
    assert "stored, found by C-FIND" in said
    assert "NOT found" not in said
    # The specimen is there, images and results, marked as such.
    patients = {it["PatientMainDicomTags"]["PatientID"] for it in orthanc.get("/studies?expand")}
    assert patients == {PATIENT_ID}
    modalities = {it["MainDicomTags"]["Modality"] for it in orthanc.get("/series?expand")}
    assert modalities >= {"CT", "SEG", "SR", "OT", "PR", "KO"}


def test_probe_reads_back_what_it_sent(tmp_path: Path) -> None:
    pacs = WebPacs(tmp_path / "pacs")
    try:
        web = f"http://127.0.0.1:{pacs.http_port}/dicom-web"
        code, said = probe(tmp_path, pacs.port, "--send", "--wado", web, ae_title=pacs.ae_title)
        assert code == 0, said
        assert said.count("WADO-RS") == len(RESULTS)
        assert "NOT" not in said
        assert "changed" not in said
        code, said = probe(tmp_path, pacs.port, "--send", "--wado", f"{web}-elsewhere", ae_title=pacs.ae_title)
        assert said.count("NOT read") == len(RESULTS)
    finally:
        pacs.stop()


def test_probe_without_leave_sends_nothing(orthanc: Orthanc, tmp_path: Path) -> None:
    code, said = probe(tmp_path, orthanc.port, ae_title="ORTHANC")
    assert code == 0, said
    assert proposal(said) == Profile()
    assert orthanc.instances() == {}


@pytest.mark.parametrize(
    ("classes", "profile"),
    [
        ((), Profile()),
        (("SecondaryCaptureImageStorage",), Profile(seg="none", sr=False, capture="findings")),
        (("Comprehensive3DSRStorage", "SecondaryCaptureImageStorage"), Profile(seg="none", capture="findings")),
    ],
    ids=["everything", "pictures only", "no segmentation"],
)
def test_probe_of_storescp(tmp_path: Path, classes: tuple[str, ...], profile: Profile) -> None:
    with storescp(tmp_path / "peer", *classes) as port:
        code, said = probe(tmp_path, port, "--send")
    assert code == 0, said
    assert proposal(said) == profile
    assert 'set confirm = "none"' in said


def test_probe_says_what_is_wrong(tmp_path: Path, orthanc: Orthanc) -> None:
    code, said = probe(tmp_path, free_port())
    assert code == 1
    assert "no connection" in said
    code, said = probe(tmp_path, orthanc.port, ae_title="WRONG")
    assert code == 1
    assert "correct the destination's ae_title" in said
    with storescp(tmp_path / "peer", "CTImageStorage") as port:
        code, said = probe(tmp_path, port)
    assert code == 1
    assert SecondaryCaptureImageStorage.name in said
    assert "does not accept" in said or "accepts none" in said
