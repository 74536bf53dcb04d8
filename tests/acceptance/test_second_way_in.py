"""The main job by the second way in: a study comes by STOW-RS, who listens is told, and the service stops."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
from pydicom import dcmread

from tests.acceptance.conftest import Orthanc, Service
from tests.apis import RELATED, multipart
from tests.toys import bright_study


def test_a_study_that_comes_by_stow_is_answered_as_any_other(
    service: Service, orthanc: Orthanc, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    bright_study(folder)
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    uid = str(dcmread(next(folder.iterdir()), stop_before_pixels=True).StudyInstanceUID)
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    base, told = f"http://127.0.0.1:{service.http_port}", list[str]()
    listens = threading.Event()

    def listen() -> None:
        with httpx.stream("GET", f"{base}/api/v1/events", timeout=120) as answer:
            for line in answer.iter_lines():
                listens.set()
                told.append(line)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    assert listens.wait(20)
    answer = httpx.post(f"{base}/dicom-web/studies/{uid}", content=multipart(*files), headers=RELATED, timeout=60)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["00081199"]["Value"]) == len(files)
    study = service.wait_for_study(uid)
    assert [it["outcome"] for it in study["answers"]] == ["findings"]
    assert {it["state"] for it in study["deliveries"]} == {"confirmed"}
    assert (study["source"], study["instances"]) == ("STOW-RS", len(files))
    assert len(orthanc.instances()) == 2
    assert f'overread_instances_received_total{{outcome="received"}} {len(files)}.0' in service.get("/metrics")
    until = time.monotonic() + 20
    while not any(uid in line and '"step": "done"' in line.replace('":"', '": "') for line in told):
        assert time.monotonic() < until, told[-5:]
        time.sleep(0.1)
    again = httpx.post(f"{base}/api/v1/studies/{uid}/rerun", timeout=30)
    assert (again.status_code, again.json()["revision"]) == (200, 1)
    service.wait_for_study(uid)
    assert len(orthanc.instances()) == 2, "the same objects are not sent again"
    assert service.stop() == 0
    listener.join(10)
    assert not listener.is_alive(), "who listens is let go"
