"""The PACS of deploy/compose.yaml, with its very configuration and auto-routing, beside the service with its own.

Only what a machine without containers has otherwise is put in its place: addresses, ports and folders.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom import dcmread

from service.demo.pacs import OrthancPacs
from tests.acceptance.conftest import Orthanc, Service, wait
from tests.browser.pacs import plugin
from tests.support import REPOSITORY, counterpart, free_port
from tests.toys import bright_study, write_model

BOX = REPOSITORY / "deploy" / "compose"


@dataclass(kw_only=True)
class BoxedService(Service):
    """The service with deploy/compose/overread.toml."""

    pacs_port: int
    token: str

    def places(self) -> dict[str, str]:
        """What this machine has in the place of the container's folders."""
        return {
            "/run/secrets": str(self.folder),
            "/opt/overread/models": str(self.models),
            "/var/lib/overread": str(self.folder / "var"),
        }

    @property
    def config(self) -> Path:
        """The configuration in the box, with this machine's places."""
        (self.folder / "overread_token").write_text(self.token)
        (self.folder / "database_password").write_text("not asked for: the tests' server trusts this machine")
        text = (BOX / "overread.toml").read_text()
        for old, new in {
            **self.places(),
            '"0.0.0.0"': '"127.0.0.1"',
            "postgresql+psycopg://overread@postgres/overread": self.database,
            '"orthanc", port = 4242': f'"127.0.0.1", port = {self.pacs_port}',
            'host = "orthanc"\nport = 4242': f'host = "127.0.0.1"\nport = {self.pacs_port}',
            "port = 11112": f"port = {self.dicom_port}\nminimum_free_gib = 0.0",
            "port = 8080": f"port = {self.http_port}",
        }.items():
            assert old in text, f"{old} is not in the box's configuration"
            text = text.replace(old, new)
        path = self.folder / "overread.toml"
        path.write_text(text)
        return path

    def get_bytes(self, path: str) -> bytes | None:
        """What the API answers to the box's token; None for 404."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}{path}", headers={"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                content: bytes = reply.read()
        except urllib.error.HTTPError as exc:
            if exc.code == 404:
                return None
            raise
        return content


@dataclass(kw_only=True)
class BoxedOrthanc(Orthanc):
    """Orthanc with deploy/compose/orthanc.json and route.lua."""

    overread_port: int

    def start(self) -> Orthanc:
        """Start it on its ports."""
        assert plugin()
        settings = json.loads((BOX / "orthanc.json").read_text())
        modality = settings["DicomModalities"]["overread"]
        assert (modality["Host"], modality["Port"]) == ("overread", 11112)
        assert settings["LuaScripts"] == ["/etc/orthanc/route.lua"]
        settings |= {
            "DicomModalities": {"overread": {**modality, "Host": "127.0.0.1", "Port": self.overread_port}},
            "LuaScripts": [str(BOX / "route.lua")],
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "RemoteAccessAllowed": False,
            "ExecuteLuaEnabled": True,  # for the heart beat, which Debian's 1.10 has not yet
            "HttpPort": self.http_port,
            "DicomPort": self.port,
        }
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        self.pacs = _Started(counterpart("Orthanc"), self.folder, port=self.port, http_port=self.http_port)
        wait(self._answers, "Orthanc", seconds=30)
        return self

    def _answers(self) -> bool:
        try:
            return bool(self.get("/system"))
        except OSError:
            return False

    def upload(self, folder: Path) -> None:
        """Upload files as its web page does."""
        for path in sorted(folder.iterdir()):
            self.post("/instances", path.read_bytes())

    def post(self, path: str, body: bytes) -> bytes:
        """What its REST API answers to a POST."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", body, method="POST")
        with urllib.request.urlopen(request, timeout=60) as reply:
            content: bytes = reply.read()
            return content

    def beat(self) -> None:
        """What a newer Orthanc does each LuaHeartBeatPeriod."""
        self.post("/tools/execute-script", b"OnHeartBeat()")

    def jobs(self) -> list[dict[str, Any]]:
        """What it was sending, and how that went."""
        return [job for job in self.get("/jobs?expand") if job["Type"] == "DicomModalityStore"]


class _Started(OrthancPacs):
    """Orthanc with the settings of a file and no others."""

    def __init__(self, program: str, folder: Path, *, port: int, http_port: int) -> None:
        self.name, self.ae_title, self.port, self.http_port = "Orthanc", "ORTHANC", port, http_port
        with (folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)


@pytest.fixture
def database(postgresql: str) -> str:
    """A database of its own on the real server; its URL."""
    name = f"box_{secrets.token_hex(4)}"
    engine = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgresql.rpartition("/")[0] + f"/{name}"


@pytest.fixture
def box(tmp_path: Path, database: str) -> Iterator[tuple[BoxedService, BoxedOrthanc]]:
    """The service and the PACS of the box; neither is started yet."""
    models = tmp_path / "models"
    write_model(models)
    pacs_port = free_port()
    service = BoxedService(
        folder=tmp_path, models=models, database=database, pacs_port=pacs_port, token=secrets.token_urlsafe(32)
    )
    orthanc = BoxedOrthanc(folder=tmp_path / "orthanc", port=pacs_port, overread_port=service.dicom_port)
    orthanc.folder.mkdir()
    try:
        yield service, orthanc
    finally:
        orthanc.stop()
        if service.process and service.process.poll() is None:
            service.process.kill()
            service.process.wait()


def test_an_uploaded_study_gets_its_results_and_they_are_not_routed_back(
    box: tuple[BoxedService, BoxedOrthanc], tmp_path: Path
) -> None:
    service, orthanc = box
    bright_study(tmp_path / "study")
    uid = str(dcmread(next((tmp_path / "study").iterdir()), stop_before_pixels=True).StudyInstanceUID)
    slices = len(list((tmp_path / "study").iterdir()))
    service.start()
    orthanc.start()
    orthanc.upload(tmp_path / "study")
    answer = service.wait_for_study(uid)
    assert {delivery["state"] for delivery in answer["deliveries"]} == {"confirmed"}
    assert answer["answers"][0]["findings"]

    # The viewer's side: DICOMweb shows the results beside the images.
    found = orthanc.get(f"/dicom-web/studies/{uid}/series")
    assert sorted(series["00080060"]["Value"][0] for series in found) == ["CT", "SEG", "SR"]

    # Once the results are stable, they stay where they are.
    wait(
        lambda: all(orthanc.get(f"/series/{one}")["IsStable"] for one in orthanc.get("/series")), "Orthanc", seconds=30
    )
    (job,) = orthanc.jobs()
    assert (job["Content"]["RemoteAet"], job["Content"]["InstancesCount"]) == ("OVERREAD", slices)


def test_a_study_that_came_while_the_service_was_away_is_routed_when_it_is_back(
    box: tuple[BoxedService, BoxedOrthanc], tmp_path: Path
) -> None:
    service, orthanc = box
    bright_study(tmp_path / "study")
    uid = str(dcmread(next((tmp_path / "study").iterdir()), stop_before_pixels=True).StudyInstanceUID)
    orthanc.start()
    orthanc.upload(tmp_path / "study")
    wait(lambda: any(job["State"] == "Failure" for job in orthanc.jobs()), "the PACS to fail", seconds=60)
    orthanc.beat()
    assert len(orthanc.jobs()) == 1, "it is tried again at once, and so without an end"
    service.start()

    def is_routed() -> bool:
        orthanc.beat()
        return any(job["State"] == "Success" for job in orthanc.jobs())

    wait(is_routed, "the PACS to try again", seconds=60)
    assert service.wait_for_study(uid)["answers"]
