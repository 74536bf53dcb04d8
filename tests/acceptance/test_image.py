"""The image, built and run by hand (tests/dockerfile_by_hand.py): minutes of work, so only with ``OVERREAD_FULL=1``.

It needs root and debootstrap(8). ``OVERREAD_IMAGES`` names a folder for the roots; by default it is the system's
temporary one. A base that is there already is used again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread

from service.demo.pacs import wait_for_port
from service.demo.phantom import CHEST, chest_abdomen
from service.demo.phantom_dicom import write_series
from service.models import available
from tests import dockerfile_by_hand as by_hand
from tests.acceptance.conftest import Service, wait
from tests.acceptance.test_hospital_in_a_box import BoxedOrthanc, BoxedService, database
from tests.support import REPOSITORY, counterpart, free_port

__all__ = ["database"]  # a fixture
pytestmark = pytest.mark.skipif(os.environ.get("OVERREAD_FULL") != "1", reason="minutes of work: OVERREAD_FULL=1")
_ROOTS = Path(os.environ.get("OVERREAD_IMAGES", tempfile.gettempdir())) / "overread-images"
_SUITE = "bookworm"


def base(*packages: str) -> Path:
    """A clean Debian with a few packages, in the place of a registry's image."""
    name = "-".join((_SUITE, *packages))
    if not (_ROOTS / name).exists():
        draft = _ROOTS / f"{name}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        wanted = ",".join(("ca-certificates", *packages))
        make = [counterpart("debootstrap"), "--variant=minbase", f"--include={wanted}", _SUITE, str(draft)]
        subprocess.run(make, check=True, capture_output=True)
        draft.rename(_ROOTS / name)
    return _ROOTS / name


@pytest.fixture(scope="module")
def image() -> Iterator[by_hand.Image]:
    """The built image `cpu`."""
    if os.getuid() != 0:
        pytest.skip("a root of its own needs root")
    _ROOTS.mkdir(parents=True, exist_ok=True)
    python = base("python3", "python3-venv")  # as python:3.11-slim has them
    with tempfile.TemporaryDirectory(dir=_ROOTS) as folder:
        yield by_hand.Builder(REPOSITORY, python, Path(folder), {"KIND": "cpu"}).build("overread")


class ContainedService(BoxedService):
    """The service in its image, with the configuration of the box."""

    image: by_hand.Image

    def places(self) -> dict[str, str]:
        """None: it has its own."""
        return {}

    @property
    def config(self) -> Path:
        """The configuration in the box, for the model that needs no GPU to be quick."""
        path = super().config
        text = path.read_text()
        path.write_text(text.replace("[analysis]\n", '[analysis]\nmodels = ["ct-lung-nodule"]\n'))
        return path

    def binds(self) -> dict[str, str]:
        """What compose mounts."""
        folder = self.folder / "var"
        folder.mkdir(exist_ok=True)
        os.chown(folder, 10001, 10001)
        return {
            str(self.config): "/etc/overread/overread.toml",
            str(self.folder / "overread_token"): "/run/secrets/overread_token",
            str(self.folder / "database_password"): "/run/secrets/database_password",
            str(folder): "/var/lib/overread",
        }

    def environment_of_health(self) -> dict[str, str]:
        """Where it answers; in a container of its own it is the image's 8080."""
        return {"OVERREAD_HEALTH": f"http://127.0.0.1:{self.http_port}/health/live"}

    def _launch(self) -> None:
        command = [*self.image.entrypoint, *self.image.command]
        self.process = by_hand.Container(self.image, command, binds=self.binds(), log=self.folder / "service.log")

    def start(self, meanwhile: Callable[[], None] = lambda: None) -> Service:
        """Start it, and wait until its networks are measured: what that finds can't be kept in a read-only image."""
        self._launch()
        assert self.process
        wait_for_port(self.dicom_port, self.process)
        wait_for_port(self.http_port, self.process)
        wait(lambda: bool(self.events("service.started")), "the models to be loaded", seconds=400)
        return self

    def is_healthy(self) -> bool:
        """What the image's health check says."""
        binds, environment = self.binds(), self.environment_of_health()
        log = self.folder / "health.log"
        return (
            by_hand.Container(self.image, self.image.health, binds=binds, environment=environment, log=log).wait() == 0
        )


def everything(root: Path) -> set[tuple[str, int, int]]:
    """Each file of a root, with its size and time."""
    found = set()
    for folder, _, files in os.walk(root):
        for name in files:
            facts = os.lstat(os.path.join(folder, name))
            found.add((os.path.join(folder, name), facts.st_size, facts.st_mtime_ns))
    return found


def of_namespace(first: int) -> Iterator[dict[str, str]]:
    """/proc/*/status of each process in the PID namespace of a process."""
    space = os.readlink(f"/proc/{first}/ns/pid")
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(place / "ns" / "pid") == space:
                lines = (place / "status").read_text().splitlines()
                yield {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
        except OSError:
            continue


def test_the_image_serves_without_root_rights_or_a_writable_root(
    image: by_hand.Image, database: str, tmp_path: Path
) -> None:
    pacs_port = free_port()
    service = ContainedService(
        folder=tmp_path, models=Path(), database=database, pacs_port=pacs_port, token=secrets.token_urlsafe(32)
    )
    service.image = image
    orthanc = BoxedOrthanc(folder=tmp_path / "orthanc", port=pacs_port, overread_port=service.dicom_port)
    orthanc.folder.mkdir()
    write_series(chest_abdomen(spacing_mm=(5.0, 1.35, 1.35), heights_mm=CHEST), tmp_path / "study")
    uid = str(dcmread(next((tmp_path / "study").iterdir()), stop_before_pixels=True).StudyInstanceUID)
    assert image.user == "10001:10001"
    assert not service.is_healthy()
    listing = ["overread", "models", "list", "--models-directory", "/opt/overread/models", "--json"]
    assert by_hand.Container(image, listing, binds={}, log=tmp_path / "models.json").wait() == 0
    assert {model["name"]: model["installed"] for model in json.loads((tmp_path / "models.json").read_text())} == {
        spec.name: True for spec in available(REPOSITORY / "models")
    }
    before = everything(image.root)
    orthanc.start()
    try:
        service.start()
        assert service.is_healthy()
        echo = [counterpart("echoscu"), "-aet", "ORTHANC", "-aec", "OVERREAD", "127.0.0.1", str(service.dicom_port)]
        subprocess.run(echo, check=True, timeout=20)
        orthanc.upload(tmp_path / "study")
        answer = service.wait_for_study(uid, seconds=400)
        assert [(a["model"], bool(a["findings"])) for a in answer["answers"]] == [("ct-lung-nodule", True)]
        assert {delivery["state"] for delivery in answer["deliveries"]} == {"confirmed"}

        assert isinstance(service.process, by_hand.Container)
        first = service.process.first
        processes = list(of_namespace(first))
        assert len(processes) >= 4  # itself, two receivers, the engine
        for status in processes:
            assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"10001"}, status["Name"]
            assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status["Name"]
            assert status["NoNewPrivs"] == "1", status["Name"]
            assert not status["Groups"], status["Name"]
        assert everything(image.root) == before
        service.process.send_signal(signal.Signals[image.stop_signal])
        assert service.process.wait(30) == 0
        assert service.events("service.stopped")
        assert not service.is_healthy()
    finally:
        orthanc.stop()
        if service.process and service.process.poll() is None:
            service.process.kill()
            service.process.wait()


def test_the_steps_of_the_gpu_image_run_too(tmp_path: Path) -> None:
    """Not on CUDA's base, which is not to be had here: what is added to it, on the same clean Debian."""
    if os.getuid() != 0:
        pytest.skip("a root of its own needs root")
    with tempfile.TemporaryDirectory(dir=_ROOTS) as folder:
        built = by_hand.Builder(REPOSITORY, base(), Path(folder), {"KIND": "gpu"}).build("overread")
        command = ["python3", "-c", "import onnxruntime; print(onnxruntime.get_available_providers())"]
        assert by_hand.Container(built, command, binds={}, log=tmp_path / "log").wait() == 0
        assert "CUDAExecutionProvider" in (tmp_path / "log").read_text()
