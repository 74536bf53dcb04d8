"""The real service while its disk, network, PACS, database or clock fails: nothing is lost, everything arrives once."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, build_context, evt

from service.codes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from service.requestor import steady
from tests.acceptance.conftest import Orthanc, Service, wait
from tests.acceptance.kill import Recorder, Sent
from tests.acceptance.moved_clock import FILE
from tests.acceptance.test_clear_answers import small_disk as small_disk
from tests.support import free_port
from tests.toys import bright_study, write_model
from tests.unit.test_commitment import information

SUCCESS, OUT_OF_RESOURCES, NO_SUCH_OBJECT = 0x0000, 0xA700, 0x0112
_TWO_HOURS: Final = 7200.0
_P_DATA_TF: Final = 4  # PDU type (PS3.8 section 9.3.5)
_STORE: Final = b"\0\0\0\1\2\0\0\0\1\0"  # Command Field (0000,0100), as in a C-STORE request (PS3.7 section 9.3.1.1)
Peer = TypeVar("Peer", bound=Recorder)


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    """Who is stopped at the end."""
    with ExitStack() as stack:
        yield stack


def _destination(peer: Peer, service: Service, ending: ExitStack, *, name: str = "pacs", more: str = "") -> Peer:
    service.add_destination("DEMOPACS", peer.port, name=name, more=more)
    ending.callback(peer.stop)
    return peer


def _study(tmp_path: Path, seed: int = 0) -> Sent:
    folder = tmp_path / "studies" / str(seed)
    bright_study(folder, seed=seed)
    files = sorted(folder.iterdir())
    return Sent(uid=str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID), files=files)


def _send(study: Sent, port: int, *, after: Callable[[], None] = lambda: None) -> list[int | None]:
    """Send on one association what is not acknowledged yet; what each was answered, None where it ended instead."""
    ae = AE("SENDER")
    ae.dimse_timeout = ae.network_timeout = 60
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port, ae_title="OVERREAD")
    steady(association)
    statuses: list[int | None] = []
    for file in [file for file in study.files if file not in study.acknowledged]:
        answer = Dataset()
        with suppress(RuntimeError):  # it ended between two instances
            answer = association.send_c_store(dcmread(file))
        statuses.append(answer.get("Status"))
        if statuses[-1] is None:
            break
        if statuses[-1] == SUCCESS:
            study.acknowledged.add(file)
        after()
    if association.is_established:
        association.release()
    return statuses


def _sent(service: Service, tmp_path: Path, *, studies: int = 1) -> list[Sent]:
    """New studies, all of them acknowledged at once."""
    made = [_study(tmp_path, seed) for seed in range(studies)]
    assert {status for study in made for status in _send(study, service.dicom_port)} == {SUCCESS}
    return made


def _content(file: bytes) -> str:
    """SHA-256 of a DICOM file's data set, without preamble and file meta group (PS3.10 section 7.1)."""
    return hashlib.sha256(file[144 + int.from_bytes(file[140:144], "little") :]).hexdigest()


def _contents(files: Iterable[Path]) -> dict[str, str]:
    """By SOP Instance UID."""
    return {str(dcmread(it, stop_before_pixels=True).SOPInstanceUID): _content(it.read_bytes()) for it in files}


def _kept(service: Service, study: Sent) -> dict[str, str]:
    """The content of each instance of a study that has a row, by SOP Instance UID."""
    with closing(sqlite3.connect(Path(service.store or service.folder / "var") / "overread.sqlite")) as database:
        rows = database.execute("SELECT sop_uid, path FROM instances WHERE study_uid = ?", (study.uid,)).fetchall()
    return {uid: _content(Path(path).read_bytes()) for uid, path in rows}


def _results(service: Service, study: Sent) -> dict[str, str]:
    """Wait until a study's one answer, to all its instances, is confirmed everywhere; its frozen objects' contents."""
    seen = service.wait_for_study(study.uid)
    assert (seen["revision"], [it["outcome"] for it in seen["answers"]]) == (0, ["findings"])
    assert {row["state"] for row in seen["deliveries"]} == {"confirmed"}
    assert _kept(service, study) == _contents(study.files)
    files = {it["sop_instance_uid"]: it["file"] for it in seen["answers"][0]["objects"]}
    folder = Path(service.store or service.folder / "var") / "evidence" / study.uid / "0"
    return {it: _content((folder / files[it]).read_bytes()) for it in {row["sop_uid"] for row in seen["deliveries"]}}


def _arrived(recorder: Recorder, results: dict[str, str], *, times: int = 1) -> None:
    """Each result came so many times, with its frozen bytes each time."""
    came = {uid: recorder.came.get(uid) for uid in results}
    assert came == {uid: [content] * times for uid, content in results.items()}


def _held(orthanc: Orthanc, study: Sent) -> dict[str, str]:
    """The content of what Orthanc has of a study's results, by SOP Instance UID."""
    return {
        it["MainDicomTags"]["SOPInstanceUID"]: _content(orthanc.get_bytes(f"/instances/{it['ID']}/file"))
        for it in orthanc.find(study.uid)
    }


def _rows(service: Service, study: Sent, destination: str = "pacs") -> list[dict[str, Any]]:
    deliveries = service.get(f"/api/v1/studies/{study.uid}")["deliveries"]
    return [row for row in deliveries if row["destination"] == destination]


def _line(service: Service, destination: str = "pacs") -> str:
    return str({it["name"]: it["line"] for it in service.get("/api/v1/destinations")}[destination])


# --- The disk -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Careful(Service):
    """Keeps 4 MiB of its disk free, and waits while senders wait for room."""

    @property
    def config(self) -> Path:
        path = super().config
        text = path.read_text().replace("minimum_free_gib = 0.0", "minimum_free_gib = 0.00390625")
        path.write_text(text.replace("quiet_seconds = 1.5", "quiet_seconds = 8.0"))
        return path


def test_a_disk_that_fills_while_four_send_takes_what_it_can_keep_and_refuses_the_rest(
    small_disk: Path, tmp_path: Path, ending: ExitStack
) -> None:
    write_model(tmp_path / "models")
    service = _Careful(folder=tmp_path, models=tmp_path / "models", store=str(small_disk / "var"))
    recorder, filler = _destination(Recorder(tmp_path / "pacs"), service, ending), small_disk / "filler"
    ending.callback(service.stop)
    service.start()
    studies, disk = [_study(tmp_path, seed) for seed in range(4)], os.statvfs(small_disk)
    filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - (5 << 20)))  # 1 MiB is left to take

    def all_send() -> Counter[int | None]:
        sent = senders.map(lambda study: _send(study, service.dicom_port), studies)
        return Counter(status for statuses in sent for status in statuses)

    with ThreadPoolExecutor(4) as senders:
        statuses = all_send()
        kept, ready = [_kept(service, study) for study in studies], service.get("/health/ready")
        filler.unlink()
        again = all_send()
    print(f"\n{statuses[SUCCESS]} acknowledged, {statuses[OUT_OF_RESOURCES]} refused with A700")
    assert statuses.keys() == {SUCCESS, OUT_OF_RESOURCES}, statuses
    assert sum(map(len, kept)) == statuses[SUCCESS]
    assert "new instances are refused" in ready["parts"]["disk"]
    assert again == {SUCCESS: statuses[OUT_OF_RESOURCES]}
    assert service.get("/health/ready")["ready"] is True

    # Full to the last byte while they are analysed: that waits, and is done when there is room.
    wait(lambda: bool(service.events("study.ready")), "an analysis", seconds=60)
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(32 << 20))
    wait(lambda: bool(service.events("analysis.postponed")), "it to fail", seconds=60)
    filler.unlink()
    for study, before in zip(studies, kept, strict=True):
        assert before.items() <= _kept(service, study).items()
        _arrived(recorder, _results(service, study))


# --- The network ----------------------------------------------------------------------------------------------------


class _Network:
    """What lies between a sender and who listens on a port; it breaks as its script says, a word for each C-STORE.

    ``half``: the connection ends in the middle of a PDU of the data set. ``answer``: all of the data set gets through,
    and the connection ends before the answer does. With any other word, and after the last, all gets through.
    """

    def __init__(self, port: int, *script: str) -> None:
        self._script, self._target = iter(script), port
        self.broken = Counter[str]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def stop(self) -> None:
        """Take no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._carry, args=(self._listener.accept()[0],), daemon=True).start()

    def _carry(self, sender: socket.socket) -> None:
        with suppress(OSError), sender, socket.create_connection(("127.0.0.1", self._target)) as listener:
            word = ""
            while True:
                for source in select.select([sender, listener], [], [])[0]:
                    pdu, target = _pdu(source), listener if source is sender else sender
                    if not pdu:
                        return
                    if _STORE in pdu:
                        word = next(self._script, "")
                    elif pdu[0] == _P_DATA_TF and word == ("half" if source is sender else "answer"):
                        target.sendall(pdu[: len(pdu) // 2] if word == "half" else b"")
                        self.broken[word] += 1
                        return
                    target.sendall(pdu)


def _pdu(source: socket.socket) -> bytes:
    """The next PDU, whole; empty at the end."""
    header = source.recv(6, socket.MSG_WAITALL)
    return header and header + source.recv(int.from_bytes(header[2:], "big"), socket.MSG_WAITALL)


def test_results_whose_transfer_breaks_arrive_once(
    service: Service, orthanc: Orthanc, tmp_path: Path, ending: ExitStack
) -> None:
    network = _Network(orthanc.port, "half", "half", "answer", "half", "answer")
    ending.callback(network.stop)
    more = "first_pause_seconds = 1\nlongest_pause_seconds = 1"
    service.add_destination("ORTHANC", network.port, more=more)
    service.start()
    (study,) = _sent(service, tmp_path)
    service.wait_for_study(study.uid, "delivering")

    def one_waits() -> bool:
        waiting = service.get("/api/v1/deliveries?state=retrying")
        return any("Way out: look at the destination" in it["reason"] for it in waiting)

    wait(one_waits, "a result that waits, and says why", seconds=30)
    results = _results(service, study)
    assert network.broken == {"half": 3, "answer": 2}
    assert _held(orthanc, study) == results
    found = [it["found"] for it in service.events("delivery.retrying")]
    assert len(found) == 5
    assert all("the connection broke" in it or "ended by the other side" in it for it in found)
    assert sum(row["attempts"] for row in _rows(service, study)) == 5 + len(results), "those that did not break, too"
    assert _line(service) == "well"


def test_an_instance_whose_transfer_breaks_is_not_acknowledged_and_its_repeat_changes_nothing(
    service: Service, tmp_path: Path, ending: ExitStack
) -> None:
    recorder = _destination(Recorder(tmp_path / "pacs"), service, ending)
    network = _Network(service.dicom_port, "", "half", "", "answer", "half", "half", "", "", "answer")
    ending.callback(network.stop)
    service.routes = '[[sources]]\nae_title = "SENDER"\nquiet_seconds = 4'  # it takes its time
    service.start()
    study = _study(tmp_path)
    whole, spool, breaks = _contents(study.files), tmp_path / "var" / "spool" / study.uid, 0
    while study.acknowledged != set(study.files):
        statuses = _send(study, network.port)
        assert set(statuses) <= {SUCCESS, None}
        breaks += None in statuses
        named = {path.stem: _content(path.read_bytes()) for path in spool.iterdir()}
        assert named.items() <= whole.items(), "what has its final name is whole"
        assert named.keys() >= _contents(study.acknowledged).keys()
    assert network.broken == {"half": 3, "answer": 2}
    assert breaks == 5, "what broke was not acknowledged"
    _arrived(recorder, _results(service, study))
    outcomes = Counter(it["outcome"] for it in service.events("instance.received"))
    assert outcomes == {"received": len(study.files), "repeated": 2}


# --- The PACS -------------------------------------------------------------------------------------------------------


def test_a_pacs_that_dies_while_results_come_has_them_all_once_it_is_back(
    service: Service, orthanc: Orthanc, tmp_path: Path
) -> None:
    more = 'longest_pause_seconds = 3\nprofile = { capture = "findings", gsps = true, ko = true }'
    service.add_destination("ORTHANC", orthanc.port, more=more)
    service.start()
    studies = _sent(service, tmp_path, studies=4)
    wait(lambda: len(service.events("delivery.confirmed")) >= 2, "the first results", seconds=90)
    orthanc.kill()
    wait(lambda: _line(service) == "pausing", "the line to pause", seconds=60)
    (seen,) = service.get("/api/v1/destinations")
    assert seen["failures"] >= 1
    assert "one result at a time tries it" in seen["explained"]
    wait(lambda: len(service.events("line.pausing")) >= 2, "another try", seconds=60)
    before = len(service.events("delivery.confirmed"))
    orthanc.start()
    results = [_results(service, study) for study in studies]
    assert before < sum(map(len, results)) == 24
    assert [_held(orthanc, study) for study in studies] == results
    assert not service.events("delivery.refused")
    assert _line(service) == "well"


class _Forgetful(Recorder):
    """Says Success, and keeps nothing the first two times."""

    def _store(self, event: evt.Event) -> int:
        status, uid = super()._store(event), str(event.dataset.SOPInstanceUID)
        if len(self.came[uid]) <= 2:
            (self._directory / f"{uid}.dcm").unlink()
        return status


class _Committing(Recorder):
    """Reports on the association of the request."""

    doubts = 0  # so many times it says of each object first that it has none such
    is_silent = False  # takes requests, and never reports on them

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        assert self._server
        self._server.contexts.append(build_context(STORAGE_COMMITMENT))
        self._server.bind(evt.EVT_N_ACTION, self._requested)
        self.asked: dict[str, list[str]] = defaultdict(list)  # transactions, by SOP Instance UID

    def _requested(self, event: evt.Event) -> tuple[int, None]:
        request: Any = event.action_information
        (item,) = request.ReferencedSOPSequence
        uid = str(item.ReferencedSOPInstanceUID)
        self.asked[uid].append(str(request.TransactionUID))
        is_there = len(self.asked[uid]) > self.doubts
        told = information([uid]) if is_there else information([], {uid: NO_SUCH_OBJECT})
        told.TransactionUID = request.TransactionUID
        what = (told, 1 if is_there else 2, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
        if not self.is_silent:
            threading.Timer(0.1, event.assoc.send_n_event_report, what).start()
        return SUCCESS, None


def test_what_a_pacs_loses_after_success_is_sent_until_it_is_there(
    service: Service, tmp_path: Path, ending: ExitStack
) -> None:
    forgetful = _destination(_Forgetful(tmp_path / "forgetful"), service, ending, name="forgetful")
    committing = _destination(_Committing(tmp_path / "committing"), service, ending, name="committing")
    committing.doubts, clock = 1, _Clock(service)
    service.start()
    (study,) = _sent(service, tmp_path)
    service.wait_for_study(study.uid, "delivering")

    def is_missed() -> bool:
        rows = _rows(service, study, "forgetful")
        came = all(len(forgetful.came[row["sop_uid"]]) == times for row in rows)
        others_done = all(row["state"] == "confirmed" for row in _rows(service, study, "committing"))
        return came and others_done and all("not to be found there yet" in row["reason"] for row in rows)

    for times in (1, 2):
        wait(is_missed, "the results to be missed", seconds=60)
        clock.set(30.0 * times)  # it has 25 s to find them
    results = _results(service, study)
    _arrived(forgetful, results, times=3)
    _arrived(committing, results, times=2)
    assert all(len(set(committing.asked[uid])) == 2 for uid in results), "a new transaction for each request"
    reasons = [it["reason"] for it in service.events("delivery.queued")]
    assert sum("not to be found there; it is sent again" in it for it in reasons) == 2 * len(results)
    assert sum("did not commit: 0112" in it for it in reasons) == len(results)


# --- The database ---------------------------------------------------------------------------------------------------


def _lock(service: Service) -> sqlite3.Connection:
    """Take the database away from all others who write, until this is closed."""
    path = service.folder / "var" / "overread.sqlite"
    database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    database.execute("BEGIN IMMEDIATE")
    return database


class _Locking(Recorder):
    """Locks the service's database for three seconds when the first result comes."""

    service: Service

    def _store(self, event: evt.Event) -> int:
        if not self.came:
            threading.Timer(3.0, _lock(self.service).close).start()
        return super()._store(event)


def test_a_database_that_another_process_locks_is_waited_for(
    service: Service, tmp_path: Path, ending: ExitStack
) -> None:
    recorder = _destination(_Locking(tmp_path / "pacs"), service, ending)
    recorder.service = service
    service.start()
    threading.Timer(3.0, _lock(service).close).start()
    (study,) = _sent(service, tmp_path)
    evidence = tmp_path / "var" / "evidence" / study.uid / "0"
    wait(lambda: bool(service.events("study.ready")), "the analysis", seconds=60)
    with closing(_lock(service)):
        assert not evidence.exists()
        wait(evidence.exists, "the evidence", seconds=60)
        time.sleep(2)
        assert service.get(f"/api/v1/studies/{study.uid}")["state"] == "analysing"
    _arrived(recorder, _results(service, study))
    assert '"level": "error"' not in service.log()


# --- The clock ------------------------------------------------------------------------------------------------------


class _Clock:
    """The service's wall clock; to be made before its start."""

    def __init__(self, service: Service) -> None:
        self._file = service.folder / "clock"
        self.set(0.0)
        service.environment[FILE] = str(self._file)
        service.command = ("-m", "tests.acceptance.moved_clock")

    def set(self, seconds: float) -> None:
        """Set it so many seconds off."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._file)


class _Full(Recorder):
    """Has no room."""

    is_full = True

    def _store(self, event: evt.Event) -> int:
        return OUT_OF_RESOURCES if self.is_full else super()._store(event)


def test_a_clock_that_is_set_back_holds_nothing_up(service: Service, tmp_path: Path, ending: ExitStack) -> None:
    """While a study comes in, results wait to be tried again, a line pauses, and commitments are awaited."""
    full = _destination(_Full(tmp_path / "full"), service, ending, name="full")
    committing = _Committing(tmp_path / "committing")
    _destination(committing, service, ending, name="committing", more='confirm = "commitment"')
    committing.is_silent, away_port, clock = True, free_port(), _Clock(service)
    service.add_destination("DEMOPACS", away_port, name="away", more="longest_pause_seconds = 3")
    service.routes = '[[sources]]\nae_title = "SENDER"\nquiet_seconds = 5'  # a slow machine is no pause of the sender
    service.start()
    (early,), late = _sent(service, tmp_path), _study(tmp_path, 1)
    service.wait_for_study(early.uid, "delivering")

    def all_wait() -> bool:
        tried = all(row["state"] == "retrying" for row in _rows(service, early, "full"))
        awaited = all(row["state"] == "sent" for row in _rows(service, early, "committing"))
        return tried and awaited and len(committing.asked) == 2 and _line(service, "away") == "pausing"

    def after() -> None:
        if len(late.acknowledged) in (10, 20):  # amid its instances, and after the last one
            time.sleep(0.3)  # it is seen
            clock.set(-_TWO_HOURS * len(late.acknowledged) / 20)

    wait(all_wait, "all to wait", seconds=60)
    assert set(_send(late, service.dicom_port, after=after)) == {SUCCESS}
    full.is_full = committing.is_silent = False
    away = Recorder(tmp_path / "away", port=away_port)
    ending.callback(away.stop)
    for study in (early, late):
        results = _results(service, study)
        for pacs in (full, committing, away):
            _arrived(pacs, results)
    assert sum(it["seconds"] for it in service.events("clock.set_back")) == pytest.approx(_TWO_HOURS, abs=2)


def test_a_clock_that_is_set_forward_starts_nothing_early(service: Service, tmp_path: Path, ending: ExitStack) -> None:
    recorder, clock = _destination(Recorder(tmp_path / "pacs"), service, ending), _Clock(service)
    service.routes = '[[sources]]\nae_title = "SENDER"\nquiet_seconds = 5'
    service.start()
    study, statuses = _study(tmp_path), list[int | None]()

    def after() -> None:
        if len(study.acknowledged) == 10:
            time.sleep(0.5)  # it is seen
            clock.set(_TWO_HOURS)
            time.sleep(2)

    while study.acknowledged != set(study.files):
        statuses += _send(study, service.dicom_port, after=after)
    _arrived(recorder, _results(service, study))
    assert len(service.events("study.ready")) == 1
    assert set(statuses) == {SUCCESS}, "no clock ends an association"
