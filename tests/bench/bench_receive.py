"""Receiving, beside DCMTK's storescp, in one run: instances per second of ours over its.

storescp writes files and nothing else. Ours also fsyncs each file and its folder, and commits a row, before it answers.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
from pydicom import dcmread

from service.demo.pacs import wait_for_port
from service.demo.phantom import tiny
from service.demo.phantom_dicom import write_series
from tests.acceptance.conftest import Service
from tests.support import counterpart, free_port
from tests.toys import write_model

SENDERS, INSTANCES, ROUNDS = 4, 150, 3


def _rate(port: int, ae_title: str, file: Path) -> float:
    """Instances per second of some senders at once, each sending one CT slice under ever new UIDs."""
    command = [counterpart("storescu"), "--repeat", str(INSTANCES), "+II", "-aec", ae_title, "127.0.0.1", str(port)]
    began = time.perf_counter()
    senders = [subprocess.Popen([*command, str(file)], env={"TCP_NODELAY": "1"}) for _ in range(SENDERS)]
    assert [sender.wait(timeout=120) for sender in senders] == [0] * SENDERS
    return SENDERS * INSTANCES / (time.perf_counter() - began)


def _slice(folder: Path) -> Path:
    """A CT slice of 512 x 512."""
    path = write_series(tiny(), folder)[0]
    dataset = dcmread(path)
    dataset.Rows = dataset.Columns = 512
    dataset.PixelData = np.random.default_rng(0).integers(0, 2000, 512 * 512, np.uint16).tobytes()
    dataset.save_as(path)
    return path


def test_receiving_beside_storescp(tmp_path: Path) -> None:
    file = _slice(tmp_path / "slice")
    write_model(tmp_path / "models")
    service = Service(folder=tmp_path, models=tmp_path / "models", extra_intake="").start()
    port = free_port()
    (tmp_path / "peer").mkdir()
    peer = subprocess.Popen(
        [counterpart("storescp"), "--fork", "-od", str(tmp_path / "peer"), str(port)], env={"TCP_NODELAY": "1"}
    )
    try:
        wait_for_port(port, peer)
        rounds = [(_rate(service.dicom_port, "OVERREAD", file), _rate(port, "ANY", file)) for _ in range(ROUNDS)]
    finally:
        peer.terminate()
        service.stop()
    figures = {
        "ours_per_second": round(statistics.median(r[0] for r in rounds)),
        "storescp_per_second": round(statistics.median(r[1] for r in rounds)),
        "ratio": round(statistics.median(ours / theirs for ours, theirs in rounds), 2),
    }
    print(json.dumps(figures))
