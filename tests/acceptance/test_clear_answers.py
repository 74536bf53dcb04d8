"""What goes wrong gets its clear answer, and nothing else breaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.uid import UID

from service.demo.phantom import tiny
from service.demo.phantom_dicom import write_localizer, write_series
from tests.acceptance.conftest import Orthanc, Service
from tests.acceptance.test_main_job import push, study_uid_of
from tests.support import REPOSITORY, counterpart, free_port, missing
from tests.toys import bright_study, write_model
from tests.transcoded import JPEG_LOSSLESS, JPEG_LS, belie, transcode


def overread(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    command = [sys.executable, "-m", "service", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)


def test_a_study_that_no_model_takes_is_answered(service: Service, orthanc: Orthanc, tmp_path: Path) -> None:
    write_localizer(tiny(), tmp_path / "study")
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    push(tmp_path / "study", service)
    (answer,) = service.wait_for_study(study_uid_of(tmp_path / "study"))["answers"]
    assert (answer["outcome"], answer["reason"]) == ("unsuitable", "localizers only")
    ((_, identifier),) = orthanc.instances().items()
    report = dcmread(DicomBytesIO(orthanc.get_bytes(f"/instances/{identifier}/file")))
    assert "localizers only" in str(report)


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LS], ids=["JPEG lossless", "JPEG-LS"])
def test_pixels_at_which_a_codec_ends_its_process_are_an_answer(
    syntax: int, service: Service, orthanc: Orthanc, tmp_path: Path
) -> None:
    damaged, sound = tmp_path / "damaged", tmp_path / "sound"
    bright_study(damaged, seed=1)
    bright_study(sound, seed=2)
    for path in (*damaged.iterdir(), *sound.iterdir()):
        transcode(path, syntax)
    for path in damaged.iterdir():
        belie(path, syntax)
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    for folder in (damaged, sound):
        push(folder, service, "--decompress-never")
    (answer,) = service.wait_for_study(study_uid_of(damaged))["answers"]
    assert (answer["outcome"], answer["causes"]) == ("unsuitable", ["pixels"])
    assert "crashes on them (SIGABRT)" in answer["reason"]
    (answer,) = service.wait_for_study(study_uid_of(sound))["answers"]
    assert answer["outcome"] == "findings"
    assert len(service.events("service.started")) == 1
    assert service.stop() == 0
    for line in service.log().splitlines():
        assert json.loads(line)["event"]


def test_a_study_without_images_is_answered(service: Service, orthanc: Orthanc, tmp_path: Path) -> None:
    """A structured report of somebody else's, sent alone."""
    first, second = tmp_path / "first", tmp_path / "second"
    write_series(tiny(), first)
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    push(first, service)
    service.wait_for_study(study_uid_of(first))
    ((_, identifier),) = orthanc.instances().items()
    foreign = dcmread(DicomBytesIO(orthanc.get_bytes(f"/instances/{identifier}/file")))
    foreign.StudyInstanceUID, foreign.Manufacturer = "1.2.3.4", "Somebody else"
    foreign.SOPInstanceUID = foreign.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4.5")
    second.mkdir()
    foreign.save_as(second / "report.dcm")
    push(second, service)
    (answer,) = service.wait_for_study("1.2.3.4")["answers"]
    assert (answer["outcome"], answer["reason"]) == ("unsuitable", "modality SR, the model takes CT")


def test_a_wrong_ae_title_stops_that_destination_only(service: Service, orthanc: Orthanc, tmp_path: Path) -> None:
    bright_study(tmp_path / "study")
    service.add_destination("NOBODY", orthanc.port, name="wrong")
    service.add_destination("ORTHANC", orthanc.port, name="right")
    service.start()
    push(tmp_path / "study", service)
    study_uid = study_uid_of(tmp_path / "study")
    for delivery in service.wait_for_study(study_uid, "undelivered")["deliveries"]:
        assert delivery["state"] == ("refused" if delivery["destination"] == "wrong" else "confirmed")
        if delivery["destination"] == "wrong":
            assert "Called AE title not recognised" in delivery["reason"]
            assert "correct the destination's ae_title" in delivery["reason"]
    assert len(orthanc.instances()) == 2
    checked = overread("check", "--config", service.config)
    assert checked.returncode == 1
    assert "Called AE title not recognised" in checked.stdout

    # Mended, and started again: what was refused is delivered.
    assert service.stop() == 0
    service.destinations = service.destinations.replace("NOBODY", "ORTHANC")
    service.start()
    assert {d["state"] for d in service.wait_for_study(study_uid)["deliveries"]} == {"confirmed"}


def test_a_second_service_in_the_same_folder_refuses_to_start(service: Service, tmp_path: Path) -> None:
    service.start()
    second = Service(folder=tmp_path / "second", models=service.models, store=str(tmp_path / "var"))
    second.folder.mkdir()
    done = overread("serve", "--config", second.config)
    assert done.returncode == 1
    assert "another Overread runs in it" in done.stderr
    assert service.get("/health/ready")["ready"] is True


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_store_that_can_not_be_made_is_told(command: str, service: Service, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    service.store = str(tmp_path / "file" / "var")
    done = overread(command, "--config", service.config)
    assert done.returncode == 1
    assert "Not a directory" in done.stdout + done.stderr
    assert "name another folder" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    if os.geteuid() != 0 or sys.platform != "linux":
        missing("the right to mount a tmpfs")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_refuses_and_recovers(service: Service, orthanc: Orthanc, small_disk: Path, tmp_path: Path) -> None:
    bright_study(tmp_path / "study")
    service.store = str(small_disk / "var")
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(32 << 20))
    target = ("127.0.0.1", str(service.dicom_port), "+sd", str(tmp_path / "study"))
    sent = subprocess.run(
        [counterpart("storescu"), "-v", "-aec", "OVERREAD", *target],
        capture_output=True,
        text=True,
        env={"TCP_NODELAY": "1"},
        check=False,
    )
    assert "OutOfResources" in sent.stdout + sent.stderr
    assert service.events("instance.refused")[0]["status"] == "A700"
    assert service.get("/health/live") == {"status": "live"}
    ballast.unlink()
    push(tmp_path / "study", service)
    assert service.wait_for_study(study_uid_of(tmp_path / "study"))["answers"][0]["outcome"] == "findings"


def test_a_broken_network_leaves_the_other_models_running(service: Service, orthanc: Orthanc, tmp_path: Path) -> None:
    bright_study(tmp_path / "study")
    (write_model(service.models, "broken") / "1" / "model.onnx").write_bytes(b"no network")
    service.add_destination("ORTHANC", orthanc.port)
    checked = overread("check", "--config", service.config)
    assert checked.returncode == 1
    assert "WRONG  model broken" in checked.stdout
    assert "ok     model bright" in checked.stdout
    service.start()
    ready = service.get("/health/ready")
    assert ready["ready"] is False
    assert "broken: InvalidProtobuf" in ready["parts"]["models"]
    push(tmp_path / "study", service)
    answers = service.wait_for_study(study_uid_of(tmp_path / "study"))["answers"]
    assert {a["model"]: a["outcome"] for a in answers} == {"bright": "findings", "broken": "failed"}
    assert len(orthanc.instances()) == 3  # SEG and SR of the one, an SR that says "failed" of the other


def test_a_misspelt_key_refuses_to_start(tmp_path: Path) -> None:
    config = tmp_path / "overread.toml"
    config.write_text("[intake]\nquite_seconds = 30\n")
    for command in ("serve", "check"):
        done = overread(command, "--config", config)
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert "intake.quite_seconds" in said
        assert "way out" in said
        assert "Traceback" not in said


def test_a_port_that_is_taken_refuses_to_start(service: Service) -> None:
    import socket

    for port in (service.dicom_port, service.http_port):
        with socket.socket() as other:
            other.bind(("127.0.0.1", port))
            other.listen()
            for command in ("serve", "check"):
                done = overread(command, "--config", service.config)
                assert done.returncode == 1
                assert "Traceback" not in done.stdout + done.stderr
                assert str(port) in done.stdout + done.stderr


def test_a_certificate_that_is_none_refuses_to_start(service: Service, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    service.add_destination("PACS", free_port(), more='tls = { ca_file = "ca.pem" }')
    for command in ("serve", "check"):
        done = overread(command, "--config", service.config)
        assert done.returncode == 1
        assert "ca.pem" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr


def test_check_says_that_all_holds(service: Service, orthanc: Orthanc) -> None:
    service.add_destination("ORTHANC", orthanc.port)
    done = overread("check", "--config", service.config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("All holds.")


def test_check_finds_a_destination_that_is_down(service: Service) -> None:
    service.add_destination("ORTHANC", free_port())
    done = overread("check", "--config", service.config)
    assert done.returncode == 1
    assert "destination pacs: no connection" in done.stdout
    assert "way out: start it, or correct host and port" in done.stdout


def test_run_needs_no_network(service: Service, tmp_path: Path) -> None:
    bright_study(tmp_path / "study")
    done = overread(
        *("run", tmp_path / "study", "--out", tmp_path / "out", "--models-directory", service.models),
        *("--model", "bright"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Lesion" in done.stdout
    made = sorted(path.name for path in (tmp_path / "out" / study_uid_of(tmp_path / "study")).iterdir())
    assert made == ["bright-1.png", "bright-summary.png", "bright.SEG.binary.dcm", "bright.SR.binary.dcm"]


def test_run_says_what_it_did_not_find(tmp_path: Path) -> None:
    write_model(tmp_path / "models")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no DICOM")
    done = overread("run", empty, "--out", tmp_path / "out", "--models-directory", tmp_path / "models")
    assert done.returncode == 1
    assert "way out: name another folder" in done.stderr
