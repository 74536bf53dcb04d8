"""``overread demo``: a PACS, the service, a study pushed, results confirmed, a table and pictures, on loopback."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from pydicom import dcmread
from pynetdicom import AE

from service.demo.pacs import Pacs, free_port, start_pacs, wait_for_port
from service.demo.phantom import PlantedLesion, chest_abdomen
from service.demo.phantom_dicom import write_localizer, write_series
from service.errors import ConfigError, PeerUnreachable
from service.install import install
from service.models import available, is_installed
from service.requestor import steady
from service.run import read_folder
from service.show import Bars, console, findings_table, place_of
from service.types import Study

_LIMIT_SECONDS = 1800.0
_MARK = "overread.toml"  # every demo's folder has it
_CONFIG = """\
[intake]
port = {dicom}
quiet_seconds = 2
minimum_free_gib = 0.5
[analysis]
models_directory = "{models}"
[[destinations]]
name = "pacs"
ae_title = "{ae_title}"
host = "127.0.0.1"
port = {pacs}
[store]
directory = "var"
[api]
port = {http}
"""


def demo(folder: Path | None, out: Path, *, models_directory: Path, stay: bool = False) -> int:
    """Run the whole way once.

    Parameters
    ----------
    stay
        Whether PACS and service stay up afterwards, with the page, until somebody interrupts.

    Returns
    -------
    int
        0 if the results are confirmed at the PACS and, with the phantom, every planted lesion was found.
    """
    out = out.resolve()
    if out.exists() and any(out.iterdir()) and not (out / _MARK).exists():
        raise ConfigError(
            doing=f"making room for the demo in {out}",
            found="a folder with other things in it",
            rule="the demo empties its own folder only, one that it made before",
            way_out="name a new folder with --out",
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for spec in available(models_directory):
        if not is_installed(models_directory, spec):
            console.print(f"Installing the model {spec.name} ({spec.source.words}) ...")
            install(models_directory, spec.name)
    planted: Sequence[PlantedLesion] = ()
    if folder is None:
        console.print("Making the CT phantom ...")
        phantom = chest_abdomen()
        folder, planted = out / "study", phantom.lesions
        write_series(phantom, folder)
        write_localizer(phantom, folder)
    study = read_folder(folder)[0]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # else what was started here would outlive it
    dicom = free_port()
    pacs = start_pacs(out / "pacs", service_port=dicom)
    service = None
    try:
        service, http = _start_service(out, pacs, models_directory, dicom)
        console.print(f"Receiving PACS: {pacs.name}. Service: DICOM port {dicom}, page http://127.0.0.1:{http}/")
        _push(study, dicom)
        result = _wait(study.study_instance_uid, http)
        pictures = _save_files(result, http, out / "results")
        code = _report(result, planted, pictures, out)
        if stay:
            _stay(http, dicom)
    finally:
        if service:
            service.terminate()
            service.wait(timeout=60)
        pacs.stop()
    return code


def _stay(http: int, dicom: int) -> None:
    """Wait until somebody interrupts."""
    console.print(f"The page: http://127.0.0.1:{http}/ - send studies to OVERREAD at 127.0.0.1:{dicom}; Ctrl-C ends.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("Ending.")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _start_service(out: Path, pacs: Pacs, models_directory: Path, dicom: int) -> tuple[subprocess.Popen[bytes], int]:
    http = free_port()
    config = out / _MARK
    config.write_text(
        _CONFIG.format(
            dicom=dicom, http=http, pacs=pacs.port, ae_title=pacs.ae_title, models=models_directory.resolve()
        )
    )
    with (out / "service.log").open("wb") as log:
        command = [sys.executable, "-m", "service", "serve", "--config", str(config)]
        process = subprocess.Popen(command, stderr=log, cwd=Path(__file__).resolve().parent.parent.parent)
    try:
        wait_for_port(http, process)
    except RuntimeError as exc:
        process.kill()
        raise ConfigError(
            doing="starting the service for the demo",
            found=str(exc),
            rule="the service starts on free loopback ports",
            way_out=f"read {out / 'service.log'}",
        ) from exc
    return process, http


def _push(study: Study, port: int) -> None:
    """Send a study's files by C-STORE, as its PACS would."""
    instances = [instance for series in study.series for instance in series.instances]
    ae = AE("DEMOPACS")
    for sop_class, syntax in sorted({(i.sop_class_uid, i.transfer_syntax_uid) for i in instances}):
        ae.add_requested_context(sop_class, syntax)
    association = ae.associate("127.0.0.1", port, ae_title="OVERREAD", max_pdu=0)
    steady(association)
    try:
        for instance in instances:
            answer = association.send_c_store(dcmread(instance.path)) if association.is_established else None
            if answer is None or answer.get("Status") != 0:
                raise PeerUnreachable(
                    doing=f"pushing {instance.sop_instance_uid} to the service",
                    found="no Success",
                    rule="the service keeps what it is sent",
                    way_out="read service.log of the demo",
                )
    finally:
        association.release()
    console.print(f"Pushed {len(instances)} instances of {len(study.series)} series by C-STORE.")


def _wait(study_uid: str, port: int) -> dict[str, Any]:
    """Show the study's progress until its results are confirmed, and return what the API says of it."""
    until = time.monotonic() + _LIMIT_SECONDS
    stage = ""
    with Bars() as bars:
        while time.monotonic() < until:
            time.sleep(0.3)
            result = _get(port, f"/api/v1/studies/{study_uid}")
            if result is None:
                continue
            if result["state"] != stage:
                stage = result["state"]
                console.print(f"Study {stage}" + (f": {result['waits']}" if result["waits"] else ""))
            for model, part in result["progress"].items():
                bars.show(model=model, **part)
            if result["state"] in ("done", "undelivered"):
                return result
    raise ConfigError(
        doing="waiting for the demo's results",
        found=f"the study is still {stage or 'unknown'} after {_LIMIT_SECONDS / 60:.0f} minutes",
        rule="a study is analysed and delivered within that time",
        way_out="read service.log of the demo",
    )


def _save_files(result: dict[str, Any], port: int, into: Path) -> list[Path]:
    """Fetch the objects that were sent and the pictures; the pictures' paths."""
    into.mkdir()
    pictures = []
    sent = {delivery["sop_uid"] for delivery in result["deliveries"]}
    for answer in result["answers"]:
        names = [made["file"] for made in answer["objects"] if made["sop_instance_uid"] in sent]
        names += [answer["summary"], *(finding["picture"] for finding in answer["findings"])]
        for name in filter(None, names):
            url = f"http://127.0.0.1:{port}/api/v1/studies/{result['study_uid']}/files/{name}"
            with urllib.request.urlopen(url, timeout=30) as reply:
                (into / name).write_bytes(reply.read())
            if name.endswith(".png"):
                pictures.append(into / name)
    return pictures


def _get(port: int, path: str) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as reply:
            found: dict[str, Any] = json.load(reply)
            return found
    except urllib.error.HTTPError as exc:
        if exc.code == 404:
            return None
        raise


def _report(result: dict[str, Any], planted: Sequence[PlantedLesion], pictures: Sequence[Path], out: Path) -> int:
    for answer in result["answers"]:
        if answer["why"]:
            console.print(f"{answer['model']} read series {answer['series_uid']}: {answer['why']}", soft_wrap=True)
    console.print(findings_table(result["answers"]))
    for delivery in result["deliveries"]:
        console.print(
            f"{delivery['kind']} to {delivery['destination']}: {delivery['state']} {delivery['reason']}", soft_wrap=True
        )
    missed = 0
    findings = [finding for answer in result["answers"] for finding in answer["findings"]]
    places = [place for place in map(place_of, findings) if place]
    for lesion in planted:
        distances = [float(np.linalg.norm(np.subtract(place, lesion.centre_lps_mm))) for place in places]
        found = min(distances, default=np.inf) <= lesion.diameter_mm / 2
        missed += not found
        console.print(
            f"planted {lesion.kind}, {lesion.diameter_mm:.0f} mm, {lesion.site}, attached to {lesion.attached_to}: "
            + (f"found, {min(distances):.1f} mm off" if found else "MISSED"),
            soft_wrap=True,
        )
    if planted:
        extra = len(findings) - (len(planted) - missed)
        console.print(f"{len(planted) - missed} of {len(planted)} planted lesions found, {extra} false alarms.")
    for picture in pictures:
        console.print(f"picture: {picture}", soft_wrap=True)
    console.print(f"All else: {out}", soft_wrap=True)
    return int(result["state"] != "done" or missed > 0)
