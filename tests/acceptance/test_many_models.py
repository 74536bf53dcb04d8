"""Many models on one backend: what crashes, hangs, is urgent, is broken or is too much at once; the real service."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from pydicom import dcmread

from service.demo.phantom_dicom import write_series
from tests.acceptance.conftest import Orthanc, Service, wait
from tests.slow_models import write_hanging_model, write_slow_model
from tests.support import counterpart
from tests.toys import bright_phantom, bright_study, write_model


def push(folder: Path, service: Service, *, calling: str = "SENDER") -> str:
    """Send a folder's files with DCMTK's dcmsend; the Study Instance UID."""
    command = [counterpart("dcmsend"), "-aet", calling, "-aec", "OVERREAD", "127.0.0.1", str(service.dicom_port)]
    subprocess.run([*command, "+sd", str(folder)], check=True, capture_output=True, env={"TCP_NODELAY": "1"})
    return str(dcmread(next(folder.iterdir()), stop_before_pixels=True).StudyInstanceUID)


def studies(folder: Path, count: int) -> list[Path]:
    """So many studies on the disk, each with its ball."""
    made = [folder / f"study-{number}" for number in range(count)]
    for number, path in enumerate(made):
        bright_study(path, seed=number)
    return made


def engine_pid(service: Service) -> int:
    """The process that runs the networks now."""
    return int(service.events("engine.started")[-1]["pid"])


def is_running_patches(service: Service, study_uid: str) -> bool:
    """Whether some but not all patches of a study are done."""
    progress = (service.get(f"/api/v1/studies/{study_uid}") or {}).get("progress", {})
    return any(0 < model["done"] < model["total"] for model in progress.values())


def peak_mib(pid: int) -> float:
    """The most memory that a process ever had (VmHWM)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def test_a_native_crash_takes_neither_the_receivers_nor_any_study(
    service: Service, orthanc: Orthanc, tmp_path: Path
) -> None:
    write_slow_model(service.models)
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    first, second = studies(tmp_path, 2)
    uid = push(first, service)
    wait(lambda: is_running_patches(service, uid), "its patches to run", seconds=60)
    receivers = service.events("receiver.listening")
    killed = engine_pid(service)
    os.kill(killed, signal.SIGSEGV)
    later = push(second, service)  # while nothing can be computed, studies are taken

    for study_uid in (uid, later):
        answer = service.wait_for_study(study_uid)
        assert [a["outcome"] for a in answer["answers"]] == ["findings", "findings"]
        assert answer["tries"] == 0, "the study did not even notice"
    assert service.process is not None
    assert service.process.poll() is None
    assert service.events("receiver.listening") == receivers
    assert engine_pid(service) != killed
    (died,) = service.events("engine.died")
    assert "SIGSEGV" in json.dumps(died)
    assert len(orthanc.instances()) == 8
    assert service.stop() == 0
    assert not Path(f"/proc/{engine_pid(service)}").exists(), "it leaves no engine behind"


def test_a_model_that_hangs_is_named_and_the_others_go_on(service: Service, tmp_path: Path) -> None:
    write_hanging_model(service.models)
    service.extra_analysis = "patch_seconds = 2.0"
    service.start()
    for folder in studies(tmp_path, 3):
        answer = service.wait_for_study(push(folder, service))
        bright, hanging = answer["answers"]
        assert (bright["model"], bright["outcome"]) == ("bright", "findings")
        assert (hanging["model"], hanging["outcome"]) == ("hanging", "failed")
        assert "network hanging" in hanging["reason"]
    ready = service.get("/health/ready")
    assert ready["ready"] is False, "after three of them the network is run no more"
    assert "hanging" in ready["parts"]["models"]
    begun = len(service.events("engine.started"))
    last = tmp_path / "last"
    bright_study(last, seed=9)
    answer = service.wait_for_study(push(last, service))
    assert [a["outcome"] for a in answer["answers"]] == ["findings", "failed"]
    assert len(service.events("engine.started")) == begun


def test_an_urgent_study_overtakes_ten_ordinary_ones(service: Service, tmp_path: Path) -> None:
    shutil.rmtree(service.models / "bright")
    write_slow_model(service.models, rounds=250)
    service.routes = '[[routes]]\ncalling_ae_title = "ER_CT"\npriority = "stat"'
    service.start()
    *ordinary, urgent = studies(tmp_path, 11)
    uids = [push(folder, service) for folder in ordinary]
    wait(lambda: any(is_running_patches(service, uid) for uid in uids), "the first patches", seconds=60)
    answered_before = len(service.events("study.answered"))
    stat = push(urgent, service, calling="ER_CT")
    assert service.wait_for_study(stat)["priority"] == "stat"
    for uid in uids:
        assert service.wait_for_study(uid, seconds=120)["answers"][0]["outcome"] == "findings"
    order = [event["study_uid"] for event in service.events("study.answered")]
    # Two are at work when it comes, and one may end while it is quiet and read.
    assert order.index(stat) - answered_before <= 4
    assert len(order) == 11


def test_ten_more_waiting_studies_take_no_more_memory(service: Service, tmp_path: Path) -> None:
    shutil.rmtree(service.models / "bright")
    write_slow_model(service.models, rounds=8)
    service.start()
    assert service.process is not None
    shape = (60, 192, 192)
    folders = [tmp_path / f"large-{number}" for number in range(14)]
    for number, folder in enumerate(folders):
        write_series(bright_phantom(shape=shape, seed=number)[0], folder)
    peaks = []
    for group in (folders[:4], folders[4:]):
        for uid in [push(folder, service) for folder in group]:
            service.wait_for_study(uid, seconds=300)
        peaks.append(peak_mib(service.process.pid))
    volume = shape[0] * shape[1] * shape[2] * 4 / 2**20
    print(f"peak memory: {peaks[0]:.0f} MiB after 4 studies, {peaks[1]:.0f} MiB after 10 more; a volume: {volume:.1f}")
    assert peaks[1] - peaks[0] < 8 * volume, "less than one study in work more"


def test_a_late_slice_ends_the_analysis_that_nobody_wants_any_more(service: Service, tmp_path: Path) -> None:
    shutil.rmtree(service.models / "bright")
    write_slow_model(service.models, rounds=1000)
    service.start()
    (folder,) = studies(tmp_path, 1)
    late = sorted(folder.iterdir())[-1]
    held_back = tmp_path / "late"
    held_back.mkdir()
    late.rename(held_back / late.name)
    uid = push(folder, service)
    wait(lambda: is_running_patches(service, uid), "its patches to run", seconds=60)
    push(held_back, service)
    answer = service.wait_for_study(uid)
    assert answer["revision"] == 1
    assert answer["answers"][0]["outcome"] == "findings"
    assert len(service.events("analysis.cancelled")) == 1
    assert len(service.events("study.answered")) == 1


def test_a_broken_folder_leaves_the_running_service_alone_and_is_named_at_the_next_start(
    service: Service, tmp_path: Path
) -> None:
    service.start()
    first, second = studies(tmp_path, 2)
    wrong_hash = write_model(service.models, "changed")
    text = (wrong_hash / "model.toml").read_text()
    pinned = text.replace("[source]", f'[source]\nonnx_sha256 = {{ changed = "{"0" * 64}" }}')
    (wrong_hash / "model.toml").write_text(pinned)
    no_code = write_model(service.models, "nameless")
    text = (no_code / "model.toml").read_text()
    (no_code / "model.toml").write_text(text.replace('finding = ["52988006", "SCT", "Lesion"]\n', ""))
    other_shape = write_model(service.models, "shapeless")
    text = (other_shape / "model.toml").read_text()
    (other_shape / "model.toml").write_text(text.replace("[24, 24, 24]", "[32, 32, 32]"))
    answer = service.wait_for_study(push(first, service))
    assert [a["model"] for a in answer["answers"]] == ["bright"]
    assert service.get("/health/ready")["ready"] is True
    assert service.stop() == 0

    service.start()
    wait(lambda: "loaded" not in service.get("/health/ready")["parts"]["models"], "the models", seconds=60)
    answer = service.wait_for_study(push(second, service))
    assert {a["model"]: a["outcome"] for a in answer["answers"]} == {"bright": "findings", "shapeless": "failed"}
    ready = service.get("/health/ready")
    assert ready["ready"] is False
    for name in ("changed", "nameless", "shapeless"):
        assert f"{name}: " in ready["parts"]["models"]
    listed = {model["name"]: model for model in service.get("/api/v1/models")}
    assert listed["bright"]["networks"][0]["loaded"] is True
    assert "[1, 32, 32, 32]" in listed["shapeless"]["broken"] or "32" in listed["shapeless"]["broken"]
