"""Strangers and crowds at the DICOM port: each is refused by the right words, and none takes another's place."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

from service import audit
from service.audit import Alert
from tests.integration.door import REQUEST, Door, is_ended, opened, pdu, pipeline, threads
from tests.integration.receiver import (
    CT,
    EXPLICIT,
    VERIFICATION,
    associated,
    explicit,
    image,
    put,
    rejection,
    request,
    running,
    wait,
)
from tests.support import counterpart


@pytest.fixture
def here(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens a port with some settings."""
    stack = ExitStack()

    def make(**settings: Any) -> Door:
        return stack.enter_context(opened(tmp_path / "site", caplog, monkeypatch, **settings))

    with stack:
        yield make


def ask(port: int, *, called: str = "OVERREAD", calling: str = "CT1", address: str = "127.0.0.1") -> Association:
    """An association for C-ECHO, or what became of it."""
    ae = AE(calling)
    ae.add_requested_context(VERIFICATION)
    ae.acse_timeout = ae.network_timeout = 20
    return ae.associate("127.0.0.1", port, ae_title=called, bind_address=(address, 0))


def echo(port: int) -> None:
    with associated(port, (VERIFICATION, "1.2.840.10008.1.2")) as association:
        assert association.send_c_echo().Status == 0


# --- Who may call -----------------------------------------------------------------------------------------------------


def test_each_stranger_is_rejected_by_the_right_words(here: Any) -> None:
    door = here(
        calling_ae_titles=["CT1"],
        routes=[{"called_ae_title": "NIGHT", "priority": "low"}],
        destinations=[{"name": "pacs", "ae_title": "PACS", "host": "pacs", "port": 104}],
    )
    assert rejection(door.port, called="WRONG", calling="CT1") == (1, 1, 7)
    assert rejection(door.port, calling="MR1") == (1, 1, 3)
    for called, calling in (("OVERREAD", "CT1"), ("NIGHT", "CT1"), ("OVERREAD", "PACS")):
        welcome = ask(door.port, called=called, calling=calling)
        assert welcome.is_established, (called, calling)
        welcome.release()
    titles = [(line["calling_ae_title"], line["called_ae_title"]) for line in door.lines("association.refused")]
    assert titles == [("CT1", "WRONG"), ("MR1", "OVERREAD")]
    assert all(
        line[part] for line in door.lines("association.refused") for part in ("doing", "found", "rule", "way_out")
    )
    assert [(kind, user, address) for kind, _, user, address in door.alerts] == [
        (Alert.NODE_AUTHENTICATION, "CT1", "127.0.0.1"),
        (Alert.NODE_AUTHENTICATION, "MR1", "127.0.0.1"),
    ]


def test_dcmtk_is_told_why(here: Any) -> None:
    door = here(calling_ae_titles=["CT1"])
    for options, words in (
        (["-aec", "WRONG", "-aet", "CT1"], "Called AE Title Not Recognized"),
        (["-aec", "OVERREAD", "-aet", "MR1"], "Calling AE Title Not Recognized"),
    ):
        command = [counterpart("echoscu"), *options, "127.0.0.1", str(door.port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.returncode != 0
        assert words in done.stdout + done.stderr


def test_what_is_no_ae_title_is_neither_served_nor_repeated(here: Any) -> None:
    door = here()
    with door.connect() as line:
        line.sendall(request(b"GEHEIM\n\x1b[31mNAME", b"GEHEIM\\NAME".ljust(16)))
        assert line.recv(99).hex() == "03000000000400010107"
    wait(lambda: door.lines("association.refused"))
    assert "GEHEIM" not in str(door.lines("association.refused")) + str(door.alerts) + door.caplog.text


def test_titles_that_are_padded_with_zeros_are_served(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    door, send = here(), AssociationSocket.send

    def with_zeros(line: AssociationSocket, sent: bytes) -> None:
        is_request = sent[:1] == b"\x01"
        send(line, sent[:10] + sent[10:42].replace(b" ", b"\0") + sent[42:] if is_request else sent)

    monkeypatch.setattr(AssociationSocket, "send", with_zeros)
    echo(door.port)


def test_another_version_of_the_protocol_is_rejected(here: Any) -> None:
    door = here()
    with door.connect() as line:
        line.sendall(request(b"OVERREAD".ljust(16), b"CT1".ljust(16), version=2))
        assert line.recv(99).hex() == "03000000000400010202"


def test_other_addresses_are_not_even_read(here: Any) -> None:
    door = here(addresses=["127.0.0.2/32", "10.1.0.0/16"])
    welcome = ask(door.port, address="127.0.0.2")
    assert welcome.is_established
    welcome.release()
    for address in ("127.0.0.1", "127.0.0.3"):
        with door.connect(address) as line:
            assert is_ended(line), "closed, though it has said nothing"
    wait(lambda: len(door.alerts) == 2)
    refused = door.lines("association.refused")
    assert [line["address"] for line in refused] == ["127.0.0.1", "127.0.0.3"]
    assert [(kind, address) for kind, _, _, address in door.alerts] == [
        (Alert.NODE_AUTHENTICATION, "127.0.0.1"),
        (Alert.NODE_AUTHENTICATION, "127.0.0.3"),
    ]


def test_too_many_are_rejected_for_now_and_a_place_is_free_again_at_once(here: Any) -> None:
    door = here(maximum_associations=3)
    for _ in range(3):
        opened_ones = [ask(door.port) for _ in range(3)]
        assert all(one.is_established for one in opened_ones)
        assert rejection(door.port) == (2, 3, 2)  # transient, presentation related, local limit exceeded
        for one in opened_ones:
            one.release()
        wait(lambda: not threads())
    assert [kind for kind, *_ in door.alerts] == [Alert.RESTRICTED_FUNCTION] * 3


# --- What is asked ----------------------------------------------------------------------------------------------------


def test_an_impossible_request_is_not_waited_for(here: Any) -> None:
    door = here()
    for length in (0, 10, 67, 1 << 20, 0xFFFFFFFF):
        with door.connect() as line:
            line.sendall(pdu(1, length, bytes(4)))
            assert is_ended(line)
    wait(lambda: len(door.alerts) == 5)
    assert {kind for kind, *_ in door.alerts} == {Alert.RESTRICTED_FUNCTION}
    echo(door.port)


def test_a_pdu_longer_than_agreed_is_aborted_and_not_read(here: Any) -> None:
    door = here(maximum_pdu_bytes=16384)
    for length in (16384 + 2048, 1 << 30, 0xFFFFFFFF):
        with associated(door.port) as association:
            assert association.acceptor.maximum_length == 16384
            line = association.dul.socket
            assert line is not None
            assert line.socket is not None
            line.socket.sendall(pdu(4, length, bytes(1000)))
            wait(lambda: association.is_aborted)
    assert len(door.lines("association.aborted")) == 3
    assert [kind for kind, *_ in door.alerts] == [Alert.RESTRICTED_FUNCTION] * 3
    with associated(door.port) as association:
        assert put(association, image(PixelData=os.urandom(100_000))) == 0  # in PDUs as agreed


def test_an_instance_that_grows_too_large_is_not_kept_in_memory(tmp_path: Path) -> None:
    huge = image(Rows=8192, Columns=8192, PixelData=bytes(8192 * 8192 * 2))  # 128 MiB
    huge.file_meta = FileMetaDataset()
    huge.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    huge.save_as(tmp_path / "huge.dcm", implicit_vr=False, little_endian=True, enforce_file_format=True)
    with running(tmp_path / "site", maximum_instance_mib=8) as site:
        (pid,) = site.pids()
        echo(site.port)
        before = _peak_mib(pid)
        command = [counterpart("storescu"), "-aec", "OVERREAD", "127.0.0.1", str(site.port), str(tmp_path / "huge.dcm")]
        environment = os.environ | {"TCP_NODELAY": "1"}
        assert subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode != 0
        assert _peak_mib(pid) - before < 48
        assert site.files() == []
        with associated(site.port) as association:
            assert put(association, image(PixelData=os.urandom(7 << 20), Rows=1792, Columns=2048)) == 0
        assert len(site.files()) == 1


def _peak_mib(pid: int) -> float:
    (line,) = [it for it in Path(f"/proc/{pid}/status").read_text().splitlines() if it.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def test_an_instance_that_grows_too_large_is_said_and_audited(here: Any) -> None:
    door = here(maximum_instance_mib=1)
    with associated(door.port) as association, pytest.raises((AssertionError, RuntimeError)):
        put(association, image(PixelData=os.urandom(3 << 20)))
    wait(lambda: door.alerts)
    assert [(kind, user) for kind, _, user, _ in door.alerts] == [(Alert.RESTRICTED_FUNCTION, "SENDER")]
    (line,) = door.lines("association.aborted")
    assert "1 MiB" in line["found"]
    wait(lambda: not threads())
    assert door.transfers == []


def test_requests_that_do_not_wait_for_answers_wait_in_the_sender(here: Any) -> None:
    """Some send on without waiting: all are answered, but none piles up here."""
    door = here()
    with associated(door.port, (VERIFICATION, "1.2.840.10008.1.2")) as association:
        assert max(pipeline(door, association, 30)) <= 1


def test_the_limit_is_of_one_instance_not_of_all(here: Any) -> None:
    door = here(maximum_instance_mib=1)
    with associated(door.port) as association:
        assert [put(association, image(PixelData=os.urandom(400_000))) for _ in range(5)] == [0] * 5


# --- Slow ones, and crowds --------------------------------------------------------------------------------------------


def test_who_does_not_ask_is_ended_and_who_asks_slowly_is_audited(here: Any) -> None:
    door = here(associate_seconds=1.0)
    with door.connect() as silent, door.connect() as half, door.connect() as trickling:
        half.sendall(REQUEST)
        stop = threading.Event()

        def trickle() -> None:
            for byte in pdu(1, 208, bytes(208)):
                if stop.wait(0.1):
                    break
                try:
                    trickling.sendall(bytes([byte]))
                except OSError:
                    break

        thread = threading.Thread(target=trickle)
        thread.start()
        assert is_ended(silent)
        assert is_ended(half)
        assert is_ended(trickling), "each byte in time, but not the whole"
        stop.set()
        thread.join()
    wait(lambda: len(door.alerts) == 2)
    assert {kind for kind, *_ in door.alerts} == {Alert.RESTRICTED_FUNCTION}
    assert not threads()


@pytest.mark.parametrize("trickles", [False, True])
def test_who_stops_in_the_middle_of_a_pdu_is_ended(here: Any, trickles: bool) -> None:
    door = here(idle_seconds=1.5)
    with associated(door.port) as association:
        line = association.dul.socket
        assert line is not None
        assert line.socket is not None
        line.socket.sendall(pdu(4, 1000, bytes(10)))
        until = time.monotonic() + 30
        while not door.lines("association.aborted"):
            assert time.monotonic() < until
            time.sleep(0.2)
            if trickles:
                with suppress(OSError):
                    line.socket.sendall(b"x")
        wait(lambda: association.is_aborted)
    wait(lambda: not threads())
    assert [kind for kind, *_ in door.alerts] == [Alert.RESTRICTED_FUNCTION]


def test_a_silent_association_gives_its_place_back(here: Any) -> None:
    door = here(idle_seconds=1.0)
    association = ask(door.port)
    assert association.is_established
    wait(lambda: association.is_aborted)
    wait(lambda: not threads())
    assert door.alerts == []  # that is no offence


def test_probes_leave_no_trace(here: Any) -> None:
    door = here()
    for _ in range(50):
        door.connect().close()
        with door.connect() as scanner:
            scanner.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert is_ended(scanner)
        with door.connect() as reset:
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    echo(door.port)
    assert door.caplog.records == []
    assert door.alerts == []
    wait(lambda: not threads())


def test_half_open_connections_cost_no_thread_and_the_oldest_goes_first(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.intake.entrance._MOST_WAITING", 50)
    door = here(associate_seconds=60)
    before = threading.active_count()
    with ExitStack() as stack:
        first = stack.enter_context(door.connect())
        wait(lambda: len(door.server._entrance._waiting) == 1)
        lines = [stack.enter_context(door.connect()) for _ in range(80)]
        for line in lines[40:]:
            line.sendall(REQUEST)
        wait(lambda: len(door.server._entrance._waiting) == 50)
        assert threading.active_count() == before
        assert is_ended(first)
        lines[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            lines[-1].recv(1)
        echo(door.port)


def test_200_half_open_connections_beside_64_senders_lose_nobody(tmp_path: Path) -> None:
    made = image(Rows=256, Columns=256, PixelData=os.urandom(1 << 17))
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    made.save_as(tmp_path / "one.dcm", implicit_vr=False, little_endian=True, enforce_file_format=True)
    with running(tmp_path / "site", processes=2, associate_seconds=5.0) as site, ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", site.port))) for _ in range(200)]
        for line in held[::2]:
            line.sendall(REQUEST)
        command = [counterpart("storescu"), "-aec", "OVERREAD", "--repeat", "5", "+II", "127.0.0.1", str(site.port)]
        senders = [
            subprocess.Popen([*command, str(tmp_path / "one.dcm")], env=os.environ | {"TCP_NODELAY": "1"})
            for _ in range(64)
        ]
        assert [sender.wait(timeout=180) for sender in senders] == [0] * 64
        assert len(site.rows()) == 64 * 5
        for line in held:
            line.settimeout(30)
            assert is_ended(line)


# --- The audit trail --------------------------------------------------------------------------------------------------


def test_what_came_is_audited_once_per_association_and_study(here: Any) -> None:
    door = here()
    first, second = image(), image()
    with associated(door.port) as association:
        sent = [first, image(StudyInstanceUID=first.StudyInstanceUID), second, first]
        assert [put(association, one) for one in sent] == [0] * 4
        assert put(association, image(StudyInstanceUID="")) == 0xC000
        assert door.transfers == []
    wait(lambda: not threads())
    about = {"incoming": True, "peer": "SENDER", "address": "127.0.0.1"}
    assert door.transfers == [
        about | {"study_uid": str(first.StudyInstanceUID), "instances": {CT: 3}},
        about | {"study_uid": str(second.StudyInstanceUID), "instances": {CT: 1}},
    ]
    echo(door.port)
    wait(lambda: not threads())
    assert len(door.transfers) == 2


def test_an_association_that_breaks_is_audited_too(here: Any) -> None:
    door = here()
    ae = AE("SENDER")
    ae.add_requested_context(CT, EXPLICIT)
    association = ae.associate("127.0.0.1", door.port, ae_title="OVERREAD")
    assert put(association, image()) == 0
    association.abort()
    wait(lambda: len(door.transfers) == 1)


def test_the_port_is_audited_once_however_many_processes_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[bool, str, str]] = []

    def network_entry(*, attached: bool, ae_title: str, address: str) -> None:
        said.append((attached, ae_title, address))

    monkeypatch.setattr(audit, "network_entry", network_entry)
    with running(tmp_path, processes=2) as site:
        assert said == [(True, "OVERREAD", "127.0.0.1")]
        site.receivers.stop()
    assert said == [(True, "OVERREAD", "127.0.0.1"), (False, "OVERREAD", "127.0.0.1")]


def test_bytes_are_as_sent(here: Any, tmp_path: Path) -> None:
    door = here(maximum_pdu_bytes=4096)
    made = image(PixelData=os.urandom(50_000))
    with associated(door.port) as association:
        assert put(association, made) == 0
    (path,) = (tmp_path / "site" / "spool").rglob("*.dcm")
    assert path.read_bytes().endswith(explicit(made))
