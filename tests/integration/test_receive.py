"""What becomes of one instance, asked by real senders (DCMTK, pynetdicom) of real processes on a real port."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID
from pynetdicom import _config

from service.intake.keep import CONFLICTING
from service.intake.receive import storage_classes, transfer_syntaxes
from service.settings.intake import Route
from service.types import Priority
from tests.integration.receiver import (
    EXPLICIT,
    IMPLICIT,
    PATIENT,
    VERIFICATION,
    Site,
    associated,
    explicit,
    image,
    put,
    running,
    send,
    wait,
)
from tests.support import counterpart, missing

MR, PRIVATE, DEFLATED = "1.2.840.10008.5.1.4.1.1.4", "1.2.826.0.1.3680043.9.9999.1", "1.2.840.10008.1.2.1.99"
TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One site for all tests that do not break it."""
    with running(tmp_path_factory.mktemp("site"), processes=2) as site:
        yield site


# --- What is taken --------------------------------------------------------------------------------------------------


def test_echo(site: Site) -> None:
    subprocess.run([counterpart("echoscu"), "-aec", "OVERREAD", "127.0.0.1", str(site.port)], check=True, timeout=20)


@pytest.mark.parametrize(
    "name",
    [
        *("MR_small_implicit.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "image_dfl.dcm"),
        *("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm"),
        *("badVR.dcm", "rtplan.dcm", "waveform_ecg.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"),
    ],
)
def test_the_bytes_are_kept_as_received(site: Site, name: str) -> None:
    raw = (TEST_FILES / name).read_bytes()
    data = raw[144 + struct.unpack_from("<L", raw, 140)[0] :]
    header = pydicom.dcmread(TEST_FILES / name, stop_before_pixels=True)
    syntax, sop_class = str(header.file_meta.TransferSyntaxUID), str(header.SOPClassUID)
    sop_uid = str(header.SOPInstanceUID)
    known = site.rows(f"sop_uid = '{sop_uid}'")  # some of these files share their UIDs
    with associated(site.port, (sop_class, syntax)) as association:
        status, _ = send(association, data, sop_uid=sop_uid, sop_class=sop_class, context=sop_class)
        assert site.rows(f"sop_uid = '{sop_uid}'")  # at once: the row is there before the answer
    assert status == (CONFLICTING if known else 0)
    beside = (site.config.store.directory / "spool" / str(header.StudyInstanceUID)).glob(f"{sop_uid}*.dcm")
    (path,) = [one for one in beside if one.read_bytes().endswith(data)]
    kept = pydicom.dcmread(path)
    assert kept == pydicom.dcmread(TEST_FILES / name)
    assert kept.file_meta.TransferSyntaxUID == syntax
    assert kept.file_meta.SourceApplicationEntityTitle == "SENDER"


# With -xb it offers big endian, explicit and implicit in one context, and we choose.
@pytest.mark.parametrize(
    ("program", "option", "syntax"),
    [
        *(("storescu", "-xe", EXPLICIT), ("storescu", "-xi", IMPLICIT), ("storescu", "-xb", EXPLICIT)),
        *(("storescu", "-xd", DEFLATED), ("dcmsend", "", "")),
    ],
)
def test_dcmtk_sends(site: Site, tmp_path: Path, program: str, option: str, syntax: str) -> None:
    made = image()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    made.save_as(tmp_path / "one.dcm", implicit_vr=False, little_endian=True, enforce_file_format=True)
    command = [counterpart(program), *([option] if option else []), "-aec", "OVERREAD"]
    command += ["127.0.0.1", str(site.port), "one.dcm"]
    environment = os.environ | {"TCP_NODELAY": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=20)
    ((_, path, _),) = site.rows(f"sop_uid = '{made.SOPInstanceUID}'")
    kept = pydicom.dcmread(path)
    assert kept == made
    assert not syntax or kept.file_meta.TransferSyntaxUID == syntax


def test_every_storage_class_with_every_transfer_syntax_is_accepted(site: Site) -> None:
    classes, syntaxes = storage_classes(), transfer_syntaxes()
    assert len(classes) > 180
    assert len(syntaxes) > 55
    pairs = [(one, syntaxes[n % len(syntaxes)]) for n, one in enumerate(classes)]
    for start in range(0, len(pairs), 128):
        with associated(site.port, *pairs[start : start + 128]) as association:
            assert association.rejected_contexts == []


def test_a_repeat_is_taken_and_another_content_is_kept_beside(site: Site) -> None:
    made = image(PixelData=os.urandom(514))  # a size that no other test sends
    same_uids = {k: getattr(made, k) for k in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")}
    other = image(PixelData=os.urandom(514), **same_uids)
    with associated(site.port) as association:
        assert [put(association, one) for one in (made, made, other, other)] == [0, 0, 0xB007, 0xB007]
        status, comment = send(association, explicit(other), sop_uid=str(other.SOPInstanceUID))
        assert (status, comment) == (0xB007, "other bytes under this UID: kept beside, the first stay")
        assert put(association, made) == 0, "the first ones are the instance's own"
    mine = [name for name in site.files() if name.startswith(f"{made.StudyInstanceUID}/")]
    assert len(mine) == 2
    ((_, path, _),) = site.rows(f"sop_uid = '{made.SOPInstanceUID}'")
    assert Path(path).read_bytes().endswith(explicit(made))

    def words() -> list[str]:
        return [word for word, size in site.outcomes if size == len(explicit(made))]

    wait(lambda: words() == ["received", "repeated", *["conflicting"] * 3, "repeated"])


def test_a_warning_is_no_failure_to_dcmtk(site: Site, tmp_path: Path) -> None:
    made = image()
    with associated(site.port) as association:
        assert put(association, made) == 0
    made.PixelData = os.urandom(512)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    made.save_as(tmp_path / "one.dcm", implicit_vr=False, little_endian=True, enforce_file_format=True)
    command = [counterpart("dcmsend"), "-v", "-aec", "OVERREAD", "127.0.0.1", str(site.port), "one.dcm"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"TCP_NODELAY": "1"}, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, "Warning: DataSetDoesNotMatchSOPClass" in done.stdout + done.stderr) == (0, True)


# --- What is not ----------------------------------------------------------------------------------------------------


def bad_requests() -> dict[str, tuple[int, dict[str, Any], bytes | None]]:
    """By name: the status that is due, what the command says, and the data set's bytes."""
    made, whole = image(), explicit(image())

    def like(one: Dataset, **command: str) -> tuple[dict[str, Any], bytes]:
        return {"sop_uid": str(one.get("SOPInstanceUID", "1.2.3"))} | command, explicit(one)

    return {
        "other class in the command": (0xA900, *like(made, sop_class=MR)),
        "other class in the data set": (0xA900, *like(image(SOPClassUID=MR))),
        "unknown class in both": (0xA900, *like(image(SOPClassUID=PRIVATE), sop_class=PRIVATE)),
        "verification's context": (0xA900, *like(made, context=VERIFICATION)),
        "other instance": (0xA900, *like(made, sop_uid="1.2.3.4")),
        "no study": (0xC000, *like(image(StudyInstanceUID=None))),
        "empty study": (0xC000, *like(image(StudyInstanceUID=""))),
        "no series": (0xC000, *like(image(SeriesInstanceUID=None))),
        "no instance": (0xC000, *like(image(SOPInstanceUID=None))),
        "no class": (0xC000, *like(image(SOPClassUID=None))),
        "pixel data cut": (0xC000, {"sop_uid": "1.2.3"}, whole[:-10]),
        "header cut": (0xC000, {"sop_uid": "1.2.3"}, whole[:100]),
        "text": (0xC000, {"sop_uid": "1.2.3"}, b"<html><body>" * 50),
        "zeros": (0xC000, {"sop_uid": "1.2.3"}, bytes(1000)),
        "no data set": (0xC000, {"sop_uid": "1.2.3"}, None),
        "a path for an instance": (0xC000, *like(image(SOPInstanceUID="../../../escaped"))),
        "a path for a study": (0xC000, *like(image(StudyInstanceUID="../../escaped"))),
        "an absolute path": (0xC000, *like(image(StudyInstanceUID="/tmp/escaped"))),
        "too long a UID": (0xC000, *like(image(StudyInstanceUID="1." * 40 + "1"))),
        "too long an instance UID": (0xC000, *like(image(SOPInstanceUID="1." * 40 + "1"))),
        "a name for a UID": (0xC000, *like(image(SOPInstanceUID=PATIENT))),
        "deep nesting": (0xC000, {"sop_uid": "1.2.3"}, _nested(20_000)),
    }


def _nested(levels: int) -> bytes:
    return (struct.pack("<HH2sHL", 8, 0x1115, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * levels


@pytest.mark.filterwarnings("ignore:.*UI.*:UserWarning")
def test_each_bad_request_gets_its_status_and_harms_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_config.VALIDATORS, "UI", lambda _: (True, ""))  # the sender's, so that it sends anything
    cases = bad_requests()
    with running(tmp_path / "a" / "site") as site:
        with associated(site.port) as association:
            for name, (status, command, data) in cases.items():
                answer = send(association, data, **command)
                assert answer[0] == status, f"{name}: {answer}"
                assert answer[1], name
                assert association.is_established, name
            assert association.send_c_echo().Status == 0
            assert put(association, image()) == 0
        assert len(site.files()) == 1
        assert len(site.rows()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"site"}
    printed = capfd.readouterr().err
    lines = [json.loads(line) for line in printed.splitlines()]
    refused = [line for line in lines if line["event"] == "instance.refused"]
    assert [line["status"] for line in refused] == [f"{status:04X}" for status, _, _ in cases.values()]
    assert all(line[part] for line in refused for part in ("doing", "found", "rule", "way_out", "calling_ae_title"))
    assert sum("sop_instance_uid" in line for line in refused) == len(cases) - 3  # what is no UID is not shown
    assert sum(line["event"] == "instance.received" and line["bytes"] > 512 for line in lines) == 1
    assert "GEHEIM" not in printed
    assert "escaped" not in printed


def test_success_comes_only_after_the_row(tmp_path: Path) -> None:
    with running(tmp_path) as site, associated(site.port) as association:
        database = sqlite3.connect(tmp_path / "overread.sqlite", isolation_level=None, check_same_thread=False)
        database.execute("BEGIN IMMEDIATE")  # nobody else can commit
        released: list[float] = []

        def release() -> None:
            released.append(time.monotonic())
            database.execute("ROLLBACK")

        timer = threading.Timer(1.5, release)
        timer.start()
        assert put(association, image()) == 0
        assert time.monotonic() > released[0]
        assert len(site.rows()) == 1
        database.execute("DROP TABLE instances")
        made = image()
        assert put(association, made) == 0xA700
        assert association.send_c_echo().Status == 0
        database.execute(
            "CREATE TABLE instances (sop_uid PRIMARY KEY, study_uid, series_uid, class_uid, sha256, path, received_at)"
        )
        assert put(association, made) == 0  # its file is there already, its row is not
        database.close()
        assert [row[0] for row in site.rows()] == [made.SOPInstanceUID]


def test_a_nearly_full_disk_is_a700(tmp_path: Path) -> None:
    with running(tmp_path, minimum_free_gib=1e6) as site, associated(site.port) as association:
        status, comment = send(association, explicit(image()), sop_uid="1.2.3")
        assert (status, "free" in comment) == (0xA700, True)
        assert association.send_c_echo().Status == 0
        assert site.files() == []


def test_a_full_disk_is_a700(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("the right to mount a tmpfs (root)")
    (tmp_path / "spool").mkdir()
    # Room for bytes, but not for one more file: the guard for free space sees nothing, the write does.
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=4", "tmpfs", str(tmp_path / "spool")]
    if subprocess.run(mount, capture_output=True).returncode:
        missing("the right to mount a tmpfs (CAP_SYS_ADMIN)")
    try:
        with running(tmp_path) as site, associated(site.port) as association:
            status, comment = send(association, explicit(made := image()), sop_uid=str(made.SOPInstanceUID))
            assert (status, comment) == (0xA700, "No space left on device")
            assert site.files() == []
            assert site.rows() == []
    finally:
        subprocess.run(["umount", str(tmp_path / "spool")], check=True)


# --- What is urgent -------------------------------------------------------------------------------------------------


def test_how_a_study_comes_says_how_urgent_it_is(tmp_path: Path) -> None:
    routes = (Route(calling_ae_title="ER_CT", priority="stat"), Route(called_ae_title="NIGHT", priority="low"))
    studies = {}
    with running(tmp_path / "site", routes=routes) as site:
        for calling, called, requested, expected in (
            ("ER_CT", "OVERREAD", None, Priority.STAT),
            ("WARD_CT", "NIGHT", "STAT", Priority.LOW),
            ("WARD_CT", "OVERREAD", "STAT", Priority.STAT),
            ("WARD_CT", "OVERREAD", None, Priority.ROUTINE),
        ):
            made = image(**({"RequestedProcedurePriority": requested} if requested else {}))
            with associated(site.port, calling=calling, called=called) as association:
                assert put(association, made) == 0
            studies[str(made.StudyInstanceUID)] = expected
        with sqlite3.connect(site.config.store.directory / "overread.sqlite") as database:
            assert dict(database.execute("SELECT study_uid, priority FROM studies")) == studies
