"""The receiving PACS of the demo: real Orthanc where it is installed, else a small Storage and Query SCP of our own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydicom import Dataset, dcmread
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from service.codes import SUCCESS

_PENDING = 0xFF00


class Pacs(Protocol):
    """A PACS that runs while the demo does."""

    name: str
    ae_title: str
    port: int

    def stop(self) -> None:
        """End it."""


def start_pacs(directory: Path, *, service_port: int) -> Pacs:
    """Start the best PACS at hand on a free port; what it stores goes below the directory.

    Parameters
    ----------
    service_port
        Where it finds our service, to report what it has committed to.
    """
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    # Orthanc's DICOM port can't be bound to loopback: at least nobody else is known to it, nor may ask it anything.
    known = {"DicomModalities": {"overread": ["OVERREAD", "127.0.0.1", service_port]}, "DicomCheckModalityHost": True}
    alone = {"DicomAlwaysAllowFind": False, "DicomAlwaysAllowStore": False, "DicomAlwaysAllowEcho": False}
    return OrthancPacs(program, directory, more=known | alone) if program else OwnPacs(directory)


class OrthancPacs:
    """A real Orthanc in its own process, reachable from this machine only."""

    def __init__(
        self,
        program: str,
        directory: Path,
        *,
        http_port: int = 0,
        port: int = 0,
        more: Mapping[str, Any] | None = None,  # settings laid over the usual ones
    ) -> None:
        self.name, self.ae_title = "Orthanc", "ORTHANC"
        self.port, self.http_port = port or free_port(), http_port or free_port()
        directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": "demo",
            "StorageDirectory": str(directory / "storage"),
            "IndexDirectory": str(directory / "storage"),
            "DicomAet": self.ae_title,
            "DicomPort": self.port,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "DicomCheckCalledAet": True,  # as hospitals' PACS do
            "DicomAlwaysAllowFind": True,
            "UnknownSopClassAccepted": True,
            "DicomServerEnabled": True,
            "Plugins": [],
            **(more or {}),
        }
        (directory / "orthanc.json").write_text(json.dumps(settings))
        with (directory / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen([program, str(directory / "orthanc.json")], stdout=log, stderr=log)
        wait_for_port(self.port, self.process)

    def stop(self) -> None:
        """End the process by its id."""
        self.process.terminate()
        self.process.wait(timeout=20)


class OwnPacs:
    """Files what it gets, and answers C-FIND at the IMAGE level by it."""

    def __init__(self, directory: Path, *, port: int = 0) -> None:
        self.name, self.ae_title, self.port = "the demo's own Storage SCP", "DEMOPACS", port or free_port()
        self._directory = directory / "storage"
        self._directory.mkdir(parents=True, exist_ok=True)
        ae = AE(self.ae_title)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
        ae.add_supported_context(Verification)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find)]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def stop(self) -> None:
        """Close the port."""
        if self._server:
            self._server.shutdown()

    def _store(self, event: evt.Event) -> int:
        dataset = event.dataset
        path = self._directory / f"{dataset.SOPInstanceUID}.dcm"
        path.write_bytes(event.encoded_dataset())
        return SUCCESS

    def _find(self, event: evt.Event) -> Any:
        wanted = str(event.identifier.get("SOPInstanceUID", ""))
        path = self._directory / f"{wanted}.dcm"
        # Asked by UID only, which is a path's name here: what is no file of ours is no answer.
        if path.parent == self._directory and path.is_file():
            stored = dcmread(path, stop_before_pixels=True)
            answer = Dataset()
            answer.QueryRetrieveLevel = "IMAGE"
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                setattr(answer, keyword, stored[keyword].value)
            yield _PENDING, answer


def free_port() -> int:
    """A TCP port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes], *, seconds: float = 150.0) -> None:
    """Wait until a process listens on a loopback port.

    Raises
    ------
    RuntimeError
        If it ended, or does not listen in time.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens on port {port}; exit code {process.poll()}")
