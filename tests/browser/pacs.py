"""A real Orthanc that speaks DICOMweb: where OHIF finds the images and our results."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from service.demo.pacs import free_port, wait_for_port
from tests.support import counterpart, missing

_FOLDERS = (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc/plugins"), Path("/usr/local/lib/orthanc"))


def plugin() -> Path:
    """Orthanc's DICOMweb plugin; without it the test is skipped by name, or fails in CI."""
    for folder in _FOLDERS:
        if (folder / "libOrthancDicomWeb.so").exists():
            return folder / "libOrthancDicomWeb.so"
    missing("Orthanc's DICOMweb plugin (orthanc-dicomweb)")
    raise AssertionError("unreachable")


class WebPacs:
    """Orthanc with its DICOMweb plugin, in its own process, reachable from this machine only."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": "viewed",
            "StorageDirectory": str(directory / "storage"),
            "IndexDirectory": str(directory / "storage"),
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "DicomServerEnabled": False,  # the files come by HTTP
            "Plugins": [str(plugin())],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
        }
        (directory / "orthanc.json").write_text(json.dumps(settings))
        command = [counterpart("Orthanc"), str(directory / "orthanc.json")]
        with (directory / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for_port(self.port, self._process)
        except BaseException:
            self.stop()
            raise

    def store(self, content: bytes) -> str:
        """Keep a DICOM file; Orthanc's own identifier of it."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/instances", data=content, method="POST")
        with urllib.request.urlopen(request, timeout=60) as reply:
            said: dict[str, Any] = json.load(reply)
        assert said["Status"] in ("Success", "AlreadyStored"), said
        return str(said["ID"])

    def stop(self) -> None:
        """End the process by its id."""
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
