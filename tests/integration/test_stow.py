"""STOW-RS asked by real clients over a real port: dicomweb-client, and Orthanc's DICOMweb plugin."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from service.demo.pacs import OrthancPacs
from service.settings.intake import Intake
from tests.apis import RELATED, HttpSite, dicom_file, http_site, listening, multipart
from tests.browser.pacs import plugin
from tests.integration.receiver import CT, EXPLICIT, associated, image, put, running
from tests.support import counterpart

PATH = "/dicom-web/studies"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[HttpSite, int]]:
    with http_site(tmp_path / "var") as made, listening(made.app) as port:
        yield made, port


def whole(**changes: Any) -> Dataset:
    """An instance with all that a real PACS asks for."""
    made = image(**{"AccessionNumber": "", "StudyDate": "", "StudyID": "", "SeriesNumber": 1, **changes})
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsStored, made.HighBit = 16, 15
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.preamble = bytes(128)
    return made


def kept(site: HttpSite, made: Dataset) -> Dataset:
    folder = site.config.store.directory / "spool"
    return pydicom.dcmread(folder / str(made.StudyInstanceUID) / f"{made.SOPInstanceUID}.dcm")


# --- dicomweb-client --------------------------------------------------------------------------------------------------


def test_dicomweb_client_stores_and_reads_the_answer(site: tuple[HttpSite, int]) -> None:
    client = DICOMwebClient(f"http://127.0.0.1:{site[1]}/dicom-web")
    mine = [whole() for _ in range(3)]
    said = client.store_instances(mine)
    assert [it.ReferencedSOPInstanceUID for it in said.ReferencedSOPSequence] == [it.SOPInstanceUID for it in mine]
    for made in mine:
        assert kept(site[0], made) == made
    other = whole()
    said = client.store_instances([mine[0], other], study_instance_uid=str(mine[0].StudyInstanceUID))
    assert [it.ReferencedSOPInstanceUID for it in said.ReferencedSOPSequence] == [mine[0].SOPInstanceUID]
    assert [it.FailureReason for it in said.FailedSOPSequence] == [0xA900]


# --- Orthanc ----------------------------------------------------------------------------------------------------------


def test_orthanc_stores_a_study(site: tuple[HttpSite, int], tmp_path: Path) -> None:
    program = counterpart("Orthanc")
    overread = {"Url": f"http://127.0.0.1:{site[1]}/dicom-web/", "HasDelete": False}
    more = {
        "Plugins": [str(plugin())],
        "DicomWeb": {"Enable": True, "Servers": {"overread": overread}, "StowMaxInstances": 2},
    }
    orthanc = OrthancPacs(program, tmp_path / "orthanc", more=more)
    base = f"http://127.0.0.1:{orthanc.http_port}"
    try:
        study = whole().StudyInstanceUID
        sent = [whole(StudyInstanceUID=study) for _ in range(5)]  # in three requests
        for made in sent:
            assert httpx.post(f"{base}/instances", content=dicom_file(made)).status_code == 200
        ids = httpx.get(f"{base}/instances").json()
        answer = httpx.post(f"{base}/dicom-web/servers/overread/stow", json={"Resources": ids}, timeout=60)
        assert answer.status_code == 200, (tmp_path / "orthanc" / "orthanc.log").read_text()[-2000:]
        for made in sent:
            assert kept(site[0], made).PixelData == made.PixelData
        assert sum(site[0].store.held(str(study)).values()) == 5
        again = httpx.post(f"{base}/dicom-web/servers/overread/stow", json={"Resources": ids}, timeout=60)
        assert again.status_code == 200, "sent again, it is the same"
        assert len(site[0].files()) == 5
    finally:
        orthanc.stop()


# --- The promises of C-STORE ------------------------------------------------------------------------------------------


def test_success_comes_only_after_the_row(site: tuple[HttpSite, int], tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "var" / "overread.sqlite", isolation_level=None, check_same_thread=False)
    database.execute("BEGIN IMMEDIATE")  # nobody else can commit
    released: list[float] = []

    def release() -> None:
        released.append(time.monotonic())
        database.execute("ROLLBACK")

    threading.Timer(1.5, release).start()
    url = f"http://127.0.0.1:{site[1]}{PATH}"
    answers = {}

    def ask() -> None:
        answers["health"] = httpx.get(f"http://127.0.0.1:{site[1]}/health/live").status_code
        assert not released, "it answers while an instance waits for the disk"

    asking = threading.Timer(0.5, ask)
    asking.start()
    answer = httpx.post(url, content=multipart(dicom_file(image())), headers=RELATED, timeout=30)
    assert (answer.status_code, answers) == (200, {"health": 200})
    assert time.monotonic() > released[0]
    database.close()


def test_both_ways_in_keep_the_same(tmp_path: Path) -> None:
    """One instance by C-STORE, then by STOW-RS, and the other way round: it is a repeat, and the file is the same."""
    with running(tmp_path) as receiver, http_site(tmp_path) as site, listening(site.app) as port:
        first, second = image(), image()
        url = f"http://127.0.0.1:{port}{PATH}"
        with associated(receiver.port, (CT, EXPLICIT)) as association:
            assert put(association, first) == 0
            for made in (first, second):
                assert httpx.post(url, content=multipart(dicom_file(made)), headers=RELATED).status_code == 200
            assert put(association, second) == 0
        assert [word for word, _ in site.outcomes] == ["repeated", "received"]
        files = {name: kept(site, made) for name, made in (("a", first), ("b", second))}
        assert files == {"a": first, "b": second}
        assert len(site.files()) == 2


# --- Bad senders ------------------------------------------------------------------------------------------------------


def raw(port: int, head: str, body: bytes, *, then: bool = False, length: int | None = None) -> bytes:
    """What comes back for a request that is written by hand; nothing, if the line is closed at once."""
    head += (
        f"Host: 127.0.0.1\r\nContent-Type: {RELATED['Content-Type']}\r\nContent-Length: {length or len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(head.encode() + body)
        said = b""
        while then and not said.endswith(b"}"):  # a problem's last character
            said += line.recv(1 << 16)
    return said


def test_a_sender_that_falls_silent_is_not_waited_for(tmp_path: Path) -> None:
    body = multipart(dicom_file(image()), dicom_file(image()))
    with http_site(tmp_path, intake=Intake(idle_seconds=1.0)) as made, listening(made.app) as port:
        said = raw(port, f"POST {PATH} HTTP/1.1\r\n", body[:-300], then=True, length=len(body))
    assert said.startswith(b"HTTP/1.1 408 ")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["found"].endswith("1 instances before that were kept")


def test_senders_that_hang_up_take_no_place(site: tuple[HttpSite, int]) -> None:
    body = multipart(dicom_file(image()), dicom_file(image()))
    for _ in range(10):  # more than there are places
        raw(site[1], f"POST {PATH} HTTP/1.1\r\n", body[:-300], length=len(body))
    url = f"http://127.0.0.1:{site[1]}{PATH}"
    until = time.monotonic() + 30  # far less than the longest silence, which is not what frees their places
    while httpx.post(url, content=multipart(dicom_file(image())), headers=RELATED).status_code != 200:
        assert time.monotonic() < until, "their places are not free again"
        time.sleep(0.1)
    assert {word for word, _ in site[0].outcomes} <= {"received", "repeated"}
    assert len(site[0].files()) <= 2, "what was whole may be kept; what was not is nothing"


def test_of_more_senders_than_places_the_last_is_told_to_come_again(site: tuple[HttpSite, int]) -> None:
    body, url = multipart(dicom_file(image())), f"http://127.0.0.1:{site[1]}{PATH}"
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {RELATED['Content-Type']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with ExitStack() as lines:
        for _ in range(8):
            line = lines.enter_context(socket.create_connection(("127.0.0.1", site[1]), timeout=20))
            line.sendall(head.encode() + body[:100])
        until = time.monotonic() + 20
        while (busy := httpx.post(url, content=body, headers=RELATED)).status_code == 200:
            assert time.monotonic() < until, "there is always a place"
        assert (busy.status_code, int(busy.headers["retry-after"]) > 0) == (503, True)
        assert httpx.get(f"http://127.0.0.1:{site[1]}/health/live").status_code == 200
    until = time.monotonic() + 20
    while httpx.post(url, content=body, headers=RELATED).status_code == 503:
        assert time.monotonic() < until, "their places are not free again"


def test_what_says_that_it_is_too_large_is_not_waited_for(site: tuple[HttpSite, int]) -> None:
    said = raw(site[1], f"POST {PATH} HTTP/1.1\r\n", b"--limit\r\n", then=True, length=1 << 40)
    assert said.startswith(b"HTTP/1.1 413 ")


def test_a_large_body_is_never_held_whole(site: tuple[HttpSite, int]) -> None:
    """200 MiB in instances of 2 MiB: the process grows by a few of them."""
    url, pixels = f"http://127.0.0.1:{site[1]}{PATH}", bytes(2 << 20)

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) >> 10

    def body() -> Iterator[bytes]:
        for _ in range(100):
            seen.append(resident())
            yield multipart(dicom_file(image(PixelData=pixels)))[: -len("--limit--\r\n")]
        yield b"--limit--\r\n"

    seen: list[int] = []
    answer = httpx.post(url, content=body(), headers=RELATED, timeout=120)
    assert answer.status_code == 200
    assert len(site[0].files()) == 100
    assert max(seen) - seen[5] < 60, "MiB"
    assert urllib.request.urlopen(f"http://127.0.0.1:{site[1]}/health/live").status == 200
