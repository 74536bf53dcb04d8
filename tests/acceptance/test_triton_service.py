"""The same work on a real Triton server: the same findings, and a study that outlives the server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.analysis.schedule import Scheduler
from service.backend import open_backend
from service.demo.phantom import chest_abdomen
from service.demo.phantom_dicom import write_series
from service.models import installed
from service.pipeline import analyse
from service.run import read_folder
from service.settings.analysis import Analysis
from service.types import Answer, Lesion, Study
from tests.acceptance.conftest import Orthanc, Service, wait
from tests.acceptance.test_many_models import is_running_patches, push, studies
from tests.slow_models import write_slow_model
from tests.support import REPOSITORY
from tests.triton_server import TritonServer, write_config


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[Callable[..., TritonServer]]:
    """Start servers for network folders; they end with the test."""
    made: list[TritonServer] = []

    def start(networks: list[Path], **options: Any) -> TritonServer:
        made.append(TritonServer(tmp_path / "triton", networks, **options))
        made[-1].start()
        return made[-1]

    yield start
    for server in made:
        server.kill()


def answer_of(study: Study, backend: str) -> Answer:
    """What the liver model answers on a backend."""
    models = installed(REPOSITORY / "models", ["ct-liver-lesion"])
    scheduler = Scheduler(open_backend(Analysis(backend=backend)))
    try:
        scheduler.add(models[0])
        (answer,) = analyse(study, models, scheduler, progress=lambda **_: None).answers
    finally:
        scheduler.close()
    return answer


def test_the_liver_models_findings_are_the_same_as_in_our_own_engine(
    triton: Callable[..., TritonServer], tmp_path: Path
) -> None:
    write_series(chest_abdomen(spacing_mm=(5.0, 1.35, 1.35), heights_mm=(-130.0, -25.0)), tmp_path / "study")
    (study,) = read_folder(tmp_path / "study")
    server = triton([REPOSITORY / "models" / name for name in ("ct-liver", "ct-liver-lesion")])
    there, here = answer_of(study, f"triton://{server.url}"), answer_of(study, "onnxruntime")
    assert len(there.findings) == len(here.findings) >= 2
    for ours, theirs in zip(here.findings, there.findings, strict=True):
        assert isinstance(ours, Lesion)
        assert isinstance(theirs, Lesion)
        assert theirs.probability == pytest.approx(ours.probability, abs=1e-4)
        assert theirs.box == ours.box
        np.testing.assert_array_equal(theirs.mask, ours.mask)
        assert theirs.tracking_uid == ours.tracking_uid
    assert [made.sop_instance_uid for made in there.objects] == [made.sop_instance_uid for made in here.objects]


@pytest.mark.parametrize("explicit", [False, True], ids=["models loaded by the server", "models loaded by us"])
def test_a_study_outlives_the_server_that_is_killed_in_its_middle(
    explicit: bool, service: Service, orthanc: Orthanc, triton: Callable[..., TritonServer], tmp_path: Path
) -> None:
    shutil.rmtree(service.models / "bright")
    write_config(write_slow_model(service.models, rounds=1000), batch=1)
    server = triton([service.models / "slow"], explicit=explicit)
    service.extra_analysis = f'backend = "triton://{server.url}"\n[triton]\nmanage_models = {str(explicit).lower()}'
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    (folder,) = studies(tmp_path, 1)
    uid = push(folder, service)
    wait(lambda: is_running_patches(service, uid), "its patches to run", seconds=60)
    server.kill()
    wait(lambda: not service.get("/health/ready")["ready"], "the service to notice", seconds=30)
    assert "does not answer" in service.get("/health/ready")["parts"]["backend"]
    server.start()
    study = service.wait_for_study(uid)
    assert study["tries"] == 0, "the study waited where it was, and went on"
    assert study["answers"][0]["outcome"] == "findings"
    assert len(service.events("study.answered")) == 1
    assert len(orthanc.instances()) == 2
    assert service.events("backend.away") or service.events("batch.failed")
    assert service.stop() == 0
