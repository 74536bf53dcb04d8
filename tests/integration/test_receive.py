"""What the receiver promises, asked by real senders (DCMTK, pynetdicom) of real processes on a real port."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, generate_uid
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode

from service.config import Config, Intake, StoreSection
from service.errors import ConfigError
from service.intake.receive import MAXIMUM_ASSOCIATIONS, Receivers, storage_classes, transfer_syntaxes
from service.store import Store, database_url
from tests.support import REPOSITORY, counterpart, free_port, missing

CT, MR, VERIFICATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.1"
PRIVATE = "1.2.826.0.1.3680043.9.9999.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
PATIENT = "GEHEIM^NAME"
TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"


@dataclass(kw_only=True)
class Site:
    """A receiver with its folder."""

    config: Config
    receivers: Receivers
    outcomes: list[tuple[str, int]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.config.intake.port

    def rows(self, where: str = "1") -> list[tuple[str, str, str]]:
        with sqlite3.connect(self.config.store.directory / "overread.sqlite") as database:
            return database.execute(f"SELECT sop_uid, path, sha256 FROM instances WHERE {where}").fetchall()

    def files(self) -> list[str]:
        spool = self.config.store.directory / "spool"
        return sorted(str(path.relative_to(spool)) for path in spool.rglob("*") if path.is_file())

    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self.receivers._running.values()]


@contextmanager
def running(directory: Path, *, processes: int = 1, minimum_free_gib: float = 0.0) -> Iterator[Site]:
    """A site that listens."""
    config = Config(
        intake=Intake(port=free_port(), processes=processes, minimum_free_gib=minimum_free_gib),
        store=StoreSection(directory=directory),
    )
    directory.mkdir(parents=True, exist_ok=True)
    store = Store(database_url(directory, ""))
    store.create_tables()
    store.close()
    outcomes: list[tuple[str, int]] = []
    receivers = Receivers(config, lambda word, size: outcomes.append((word, size)))
    receivers.start()
    try:
        yield Site(config=config, receivers=receivers, outcomes=outcomes)
    finally:
        receivers.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One site for all tests that do not break it."""
    with running(tmp_path_factory.mktemp("site"), processes=2) as site:
        yield site


def image(**changes: Any) -> Dataset:
    """A small CT slice of its own study; a change to None takes the attribute away."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = CT, generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID = generate_uid(), generate_uid()
    made.PatientName, made.PatientID, made.Modality = PATIENT, PATIENT, "CT"
    made.Rows, made.Columns, made.BitsAllocated, made.PixelRepresentation = 16, 16, 16, 0
    made.add_new("PixelData", "OW", os.urandom(512))
    for keyword, value in changes.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


@contextmanager
def associated(port: int, *contexts: tuple[str, str]) -> Iterator[Association]:
    """An open association for these (SOP class, transfer syntax) pairs."""
    ae = AE("SENDER")
    for sop_class, syntax in contexts or ((CT, EXPLICIT), (VERIFICATION, IMPLICIT)):
        ae.add_requested_context(sop_class, syntax)
    ae.dimse_timeout = ae.network_timeout = 90
    association = ae.associate("127.0.0.1", port)
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


def send(
    association: Association, data: bytes | None, *, sop_uid: str, sop_class: str = CT, context: str = CT
) -> tuple[int, str]:
    """Send these very bytes as a C-STORE request; returns status and error comment."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, sop_uid
    request.DataSet = None if data is None else BytesIO(data)
    (context_id,) = (cx.context_id for cx in association.accepted_contexts if cx.abstract_syntax == context)
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        time.sleep(0.0005)
    association.dimse.send_msg(request, context_id or 0)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    assert isinstance(response, C_STORE), "no answer"
    return response.Status or 0, response.ErrorComment or ""


def explicit(made: Dataset) -> bytes:
    data = encode(made, False, True)
    assert data is not None
    return data


def put(association: Association, made: Dataset) -> int:
    return send(association, explicit(made), sop_uid=str(made.SOPInstanceUID))[0]


# --- What is taken --------------------------------------------------------------------------------------------------


def test_echo(site: Site) -> None:
    subprocess.run([counterpart("echoscu"), "127.0.0.1", str(site.port)], check=True, timeout=20)


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
    with associated(site.port, (sop_class, syntax)) as association:
        status = send(association, data, sop_uid=sop_uid, sop_class=sop_class, context=sop_class)
        assert site.rows(f"sop_uid = '{sop_uid}'")  # at once: the row is there before the answer
    assert status == (0, "")
    # Some of these files share their UIDs, so one may lie beside another.
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
    command = [counterpart(program), *([option] if option else []), "127.0.0.1", str(site.port), "one.dcm"]
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
        assert [put(association, one) for one in (made, made, other, other)] == [0, 0, 0, 0]
    mine = [name for name in site.files() if name.startswith(f"{made.StudyInstanceUID}/")]
    assert len(mine) == 2
    ((_, path, _),) = site.rows(f"sop_uid = '{made.SOPInstanceUID}'")
    assert Path(path).read_bytes().endswith(explicit(made))

    def words() -> list[str]:
        return [word for word, size in site.outcomes if size == len(explicit(made))]

    _wait(lambda: words() == ["received", "repeated", "conflicting", "conflicting"])


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


def test_an_unknown_class_is_refused_by_name_and_the_rest_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path) as site, associated(site.port, (PRIVATE, EXPLICIT), (CT, EXPLICIT)) as association:
        (refused,) = association.rejected_contexts
        assert (refused.abstract_syntax, refused.result) == (PRIVATE, 3)  # abstract syntax not supported
        assert put(association, image()) == 0
    (line,) = [json.loads(one) for one in capfd.readouterr().err.splitlines() if "contexts_refused" in one]
    assert line["sop_class_uids"] == [PRIVATE]


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


# --- Processes ------------------------------------------------------------------------------------------------------


def _wait(until: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _connections(pid: int, port: int) -> int:
    """How many established connections to the port a process holds."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(os.readlink(descriptor))
    held = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if int(columns[1].split(":")[1], 16) == port and columns[3] == "01":
            held += f"socket:[{columns[9]}]" in inodes
    return held


def test_all_processes_serve_one_port(tmp_path: Path) -> None:
    with running(tmp_path, processes=2) as site:
        opened = [associated(site.port) for _ in range(24)]
        associations = [one.__enter__() for one in opened]
        shares = [_connections(pid, site.port) for pid in site.pids()]
        assert sum(shares) == 24
        assert min(shares) > 0
        assert [put(one, image()) for one in associations] == [0] * 24
        for one in opened:
            one.__exit__(None, None, None)


def test_stopping_ends_what_runs_and_refuses_what_comes(tmp_path: Path) -> None:
    with running(tmp_path, processes=2) as site:
        with associated(site.port) as association:
            stopping = threading.Thread(target=site.receivers.stop)
            stopping.start()
            _wait(lambda: not _accepts(site.port))
            assert put(association, image()) == 0
        began = time.monotonic()
        stopping.join()
        assert time.monotonic() - began < 3.0  # the last association has ended: nothing to wait for
        assert len(site.rows()) == 1
        assert site.receivers.alive() == 0


def test_stopping_does_not_wait_for_ever(tmp_path: Path) -> None:
    with running(tmp_path) as site, associated(site.port) as association:
        began = time.monotonic()
        site.receivers.stop()
        assert time.monotonic() - began < 10.0
        _wait(lambda: association.is_aborted)


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def test_a_killed_process_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    with running(tmp_path, processes=2) as site:
        before = site.pids()
        os.kill(before[0], signal.SIGKILL)
        _wait(lambda: site.receivers.alive() == 1)
        with associated(site.port) as association:
            assert put(association, image()) == 0
        _wait(lambda: site.receivers.alive() == 2)
        assert before[1] in site.pids()
        assert before[0] not in site.pids()


def test_the_processes_end_with_their_parent(tmp_path: Path) -> None:
    port = free_port()
    code = (
        "import sys, time; from pathlib import Path\n"
        "from service.config import *; from service.intake.receive import Receivers\n"
        "if __name__ == '__main__':\n"
        "    config = Config(intake=Intake(port=int(sys.argv[2]), minimum_free_gib=0),\n"
        "                    store=StoreSection(directory=Path(sys.argv[1])))\n"
        "    Receivers(config).start(); time.sleep(60)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path), str(port)]
    with subprocess.Popen(command, env=environment, cwd=REPOSITORY) as parent:
        _wait(lambda: _accepts(port))
        parent.kill()
    _wait(lambda: not _accepts(port), 10.0)


def test_a_port_in_use_is_a_clear_refusal_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.intake.receive._GRACE_SECONDS", -3.0)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # even one that would share
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = Config(intake=Intake(port=other.getsockname()[1]), store=StoreSection(directory=tmp_path))
        receivers = Receivers(config)
        with pytest.raises(ConfigError, match="Address already in use"):
            receivers.start()
        receivers.stop()


def test_probes_cost_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path) as site:
        (pid,) = site.pids()
        for _ in range(2 * MAXIMUM_ASSOCIATIONS):
            socket.create_connection(("127.0.0.1", site.port)).close()
            with socket.create_connection(("127.0.0.1", site.port)) as scanner:
                scanner.sendall(b"GET / HTTP/1.0\r\n\r\n")
        _wait(lambda: len(list(Path(f"/proc/{pid}/task").iterdir())) < 6, 5.0)
        with associated(site.port) as association:
            assert association.send_c_echo().Status == 0
    lines = [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()]
    assert lines == ["receiver.listening", "receiver.stopped"]


def test_more_associations_than_allowed_are_rejected_for_now(tmp_path: Path) -> None:
    with running(tmp_path) as site:
        opened = [associated(site.port) for _ in range(MAXIMUM_ASSOCIATIONS)]
        for one in opened:
            one.__enter__()
        ae = AE("SENDER")
        ae.add_requested_context(VERIFICATION)
        rejected = ae.associate("127.0.0.1", site.port)
        assert rejected.is_rejected
        assert rejected.acceptor.primitive is not None
        assert rejected.acceptor.primitive.result == 2  # rejected-transient (PS3.8 Table 9-21)
        for one in opened:
            one.__exit__(None, None, None)
        with associated(site.port) as association:
            assert association.send_c_echo().Status == 0


def test_a_receiver_stays_small() -> None:
    code = "import sys, service.intake.receive; print(sorted({'onnxruntime', 'dbos', 'fastapi'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
