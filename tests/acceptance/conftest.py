"""The real service in its own process, with a real Orthanc as the PACS that gets the results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.demo.pacs import OrthancPacs, wait_for_port
from tests.support import REPOSITORY, counterpart, free_port
from tests.toys import write_model

_DESTINATION = """
[[destinations]]
name = "{name}"
ae_title = "{ae_title}"
host = "127.0.0.1"
port = {port}
timeout_seconds = 5
"""


@dataclass(kw_only=True)
class Service:
    """``overread serve`` in a folder of its own; may be killed and started again."""

    folder: Path
    models: Path
    destinations: str = ""
    extra_intake: str = ""
    extra_analysis: str = ""
    routes: str = ""
    store: str = ""
    database: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    dicom_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    command: tuple[str, ...] = ("-m", "service")
    process: subprocess.Popen[bytes] | None = None

    def add_destination(self, ae_title: str, port: int, *, name: str = "pacs", more: str = "") -> None:
        """Send results there; before `start`."""
        self.destinations += _DESTINATION.format(name=name, ae_title=ae_title, port=port) + more + "\n"

    @property
    def config(self) -> Path:
        """The configuration file, written anew from what this object says."""
        path = self.folder / "overread.toml"
        path.write_text(
            f"[intake]\nport = {self.dicom_port}\nquiet_seconds = 1.5\nminimum_free_gib = 0.0\n{self.extra_intake}\n"
            f'[analysis]\nmodels_directory = "{self.models}"\n{self.extra_analysis}\n{self.routes}\n'
            f'[store]\ndirectory = "{self.store or "var"}"\ndatabase = "{self.database}"\n'
            f"[api]\nport = {self.http_port}\n{self.destinations}"
        )
        return path

    def start(self, meanwhile: Callable[[], None] = lambda: None) -> Service:
        """Start the process and wait until both ports are open, and the models loaded.

        Parameters
        ----------
        meanwhile
            Called as soon as instances are received, before studies are looked for.
        """
        starts = len(self.events("service.started")) if (self.folder / "service.log").exists() else 0
        self._launch()
        assert self.process
        wait_for_port(self.dicom_port, self.process)
        meanwhile()
        wait_for_port(self.http_port, self.process)
        _wait(lambda: len(self.events("service.started")) > starts, "the models to be loaded", seconds=90)
        return self

    def start_to_die(self) -> None:
        """Start the process and wait until it has ended itself (service/faults.py)."""
        self._launch()
        self.wait_until_dead()

    def _launch(self) -> None:
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command, "serve", "--config", str(self.config)],
                stderr=log,
                cwd=REPOSITORY,
                env={**os.environ, **self.environment},
                start_new_session=True,  # it may end its process group (service/faults.py)
            )

    def kill(self) -> None:
        """SIGKILL, and wait until the receivers have noticed and given the port back."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.wait_until_dead()

    def wait_until_dead(self, *, seconds: float = 60) -> None:
        """Wait until it has ended, however, and its receivers have given the port back."""
        assert self.process is not None
        self.process.wait(timeout=seconds)
        _wait(lambda: not _is_open(self.dicom_port), "the receivers to end", seconds=20)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process is None or self.process.poll() is not None:
            return self.process.returncode if self.process else 0
        self.process.terminate()
        try:
            return self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)  # it says where each thread is
            time.sleep(1)
            raise AssertionError("it does not stop:\n" + self.log()[-10_000:]) from None

    def get(self, path: str) -> Any:
        """What the API answers: JSON, or text; None for 404."""
        body = self.get_bytes(path)
        try:
            return None if body is None else json.loads(body)
        except ValueError:
            return body.decode() if body else None

    def post(self, path: str, body: str) -> Any:
        """What the API answers to a POST of JSON."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}{path}", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.load(reply)

    def get_bytes(self, path: str) -> bytes | None:
        """What the API answers, as it is; None for 404."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=20) as reply:
                content: bytes = reply.read()
        except urllib.error.HTTPError as exc:
            content = exc.read()
            return None if exc.code == 404 else content
        return content

    def wait_for_study(self, study_uid: str, state: str = "done", *, seconds: float = 90) -> dict[str, Any]:
        """The study, once it is in that state."""

        def there() -> bool:
            study = self.get(f"/api/v1/studies/{study_uid}")
            return bool(study) and study["state"] == state

        try:
            _wait(there, f"study {study_uid} to be {state}", seconds=seconds)
        except AssertionError as exc:
            raise AssertionError(
                f"{exc}; it is {self.get(f'/api/v1/studies/{study_uid}')}\n{self.log()[-3000:]}"
            ) from exc
        study: dict[str, Any] = self.get(f"/api/v1/studies/{study_uid}")
        return study

    def log(self) -> str:
        """All log lines so far."""
        return (self.folder / "service.log").read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]


def _wait(condition: Callable[[], bool], what: str, *, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


def _is_open(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


wait = _wait


@dataclass(kw_only=True)
class Orthanc:
    """A real Orthanc that can be stopped and started again with what it has stored."""

    folder: Path
    port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    more: dict[str, Any] = field(default_factory=dict)  # settings
    pacs: OrthancPacs | None = None

    def knows(self, service: Service) -> Orthanc:
        """Let it know our AE title and address, before `start`: so it commits to what it stores."""
        self.more["DicomModalities"] = {"overread": ["OVERREAD", "127.0.0.1", service.dicom_port]}
        return self

    def kill(self) -> None:
        """SIGKILL; what it has stored stays."""
        if self.pacs:
            self.pacs.process.kill()
            self.pacs.process.wait()
            self.pacs = None

    def start(self) -> Orthanc:
        """Start it on its ports."""
        self.pacs = OrthancPacs(
            counterpart("Orthanc"), self.folder, http_port=self.http_port, port=self.port, more=self.more
        )
        wait_for_port(self.http_port, self.pacs.process)
        return self

    def stop(self) -> None:
        """Stop it; what it has stays."""
        if self.pacs:
            self.pacs.stop()
            self.pacs = None

    def get(self, path: str) -> Any:
        """What its REST API answers, as JSON."""
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        """What its REST API answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=60) as reply:
            content: bytes = reply.read()
            return content

    def find(self, study_uid: str) -> list[dict[str, Any]]:
        """What it has of a study: each instance as it shows it, with the modality of its series."""
        question = json.dumps({"Level": "Instance", "Expand": True, "Query": {"StudyInstanceUID": study_uid}})
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/tools/find", question.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            found: list[dict[str, Any]] = json.load(reply)
        for instance in found:
            series = self.get(f"/series/{instance['ParentSeries']}")
            instance["Modality"] = series["MainDicomTags"]["Modality"]
        return found

    def delete(self, sop_instance_uid: str) -> None:
        """Let it lose an instance."""
        url = f"http://127.0.0.1:{self.http_port}/instances/{self.instances()[sop_instance_uid]}"
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=60).close()

    def instances(self) -> dict[str, str]:
        """All that it has: SOP Instance UID to its own identifier."""
        return {i["MainDicomTags"]["SOPInstanceUID"]: i["ID"] for i in self.get("/instances?expand")}


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """A running Orthanc."""
    made = Orthanc(folder=tmp_path / "orthanc")
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service that is not started yet, with one toy model."""
    models = tmp_path / "models"
    write_model(models)
    made = Service(folder=tmp_path, models=models)
    try:
        yield made
    finally:
        if made.process and made.process.poll() is None:
            made.process.kill()
            made.process.wait()
