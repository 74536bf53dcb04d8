"""A real Orthanc that speaks DICOMweb: where OHIF finds the images and our results."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from service.demo.pacs import OrthancPacs, wait_for_port
from tests.support import counterpart, missing

_FOLDERS = (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc/plugins"), Path("/usr/local/lib/orthanc"))


def plugin() -> Path:
    """Orthanc's DICOMweb plugin; without it the test is skipped by name, or fails in CI."""
    for folder in _FOLDERS:
        if (folder / "libOrthancDicomWeb.so").exists():
            return folder / "libOrthancDicomWeb.so"
    missing("Orthanc's DICOMweb plugin (orthanc-dicomweb)")
    raise AssertionError("unreachable")


class WebPacs(OrthancPacs):
    """Orthanc with its DICOMweb plugin, in its own process, reachable from this machine only."""

    def __init__(self, directory: Path) -> None:
        web = {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"}
        super().__init__(counterpart("Orthanc"), directory, more={"Plugins": [str(plugin())], "DicomWeb": web})
        wait_for_port(self.http_port, self.process)

    def store(self, content: bytes) -> str:
        """Keep a DICOM file; Orthanc's own identifier of it."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}/instances", data=content, method="POST")
        with urllib.request.urlopen(request, timeout=60) as reply:
            said: dict[str, Any] = json.load(reply)
        assert said["Status"] in ("Success", "AlreadyStored"), said
        return str(said["ID"])
