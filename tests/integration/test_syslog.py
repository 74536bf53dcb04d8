"""The audit trail reaches a real syslog receiver, by each protocol, and whole, whoever dies or is away in between."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from service import audit, syslog
from service.audit.tail import Tail
from service.errors import ConfigError
from service.settings.doors import Audit, ClientTls
from service.syslog import Forwarder
from tests.audit_lines import taken_apart
from tests.integration.repository import Certificates, Protocol, Repository
from tests.support import REPOSITORY, free_port

CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syslog, "_GATHER_SECONDS", 0.1)
    monkeypatch.setattr(syslog, "_FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(syslog, "_LONGEST_PAUSE_SECONDS", 0.3)
    monkeypatch.setattr(syslog, "_TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr("service.audit.tail._SETTLED_SECONDS", 0.5)


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[Path]:
    """A file that this process's messages go to."""
    path = tmp_path / "trail" / "audit.log"
    audit.set_up(path, name="main")
    yield path
    audit.close()


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "certificates")


@pytest.fixture
def opened() -> Iterator[list[Forwarder | Repository]]:
    """What is ended after the test."""
    all_of_them: list[Forwarder | Repository] = []
    yield all_of_them
    for each in reversed(all_of_them):
        each.stop() if isinstance(each, Forwarder) else each.kill()


Opened = list[Forwarder | Repository]


def _repository(
    opened: Opened, folder: Path, protocol: Protocol, certificates: Certificates | None = None
) -> Repository:
    repository = Repository(folder / "repository", protocol, certificates)
    opened.append(repository)
    repository.start()
    return repository


def _forwarder(opened: Opened, settings: Audit, trail: Path) -> Forwarder:
    forwarder = Forwarder(settings, trail, name="main")
    opened.append(forwarder)
    forwarder.start()
    return forwarder


def _tls(certificates: Certificates) -> ClientTls:
    certificate, key = certificates.client
    return ClientTls(ca_file=certificates.ca_file, certificate_file=certificate, key_file=key)


def _say(number: int) -> None:
    audit.transferred(incoming=True, study_uid=f"1.2.{number}", peer="CT1", address="10.0.0.7", instances={CT: 250})


def _numbers(repository: Repository) -> Counter[int]:
    """Which studies' messages came, and how often."""
    found = Counter[int]()
    for line in repository.received():
        if b"DICOM+RFC3881" in line and b"110104" in line:
            things = taken_apart(line).message.findall("ParticipantObjectIdentification")
            found[int(things[0].get("ParticipantObjectID").rpartition(".")[2])] += 1
    return found


def _all_there(repository: Repository, many: int) -> bool:
    return set(_numbers(repository)) == set(range(many))


def _until(holds: Callable[[], bool]) -> None:
    """Wait; a limit that only a fault reaches."""
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("protocol", ["tls", "tcp", "udp"])
def test_each_protocol_brings_the_lines_as_they_are(
    protocol: Protocol, tmp_path: Path, trail: Path, certificates: Certificates, opened: Opened
) -> None:
    repository = _repository(opened, tmp_path, protocol, certificates)
    audit.application(started=True)
    audit.accessed(study_uid="1.2.3", user="Ерёма 王小明\n<evil>", address="10.0.0.9")
    audit.alert(audit.Alert.NODE_AUTHENTICATION, words="x" * 10_000, user="EVIL", address="10.6.6.6")
    forwarder = _forwarder(opened, repository.audit(_tls(certificates)), trail)
    _until(lambda: Tail(trail).read(10) == [])
    assert forwarder.problem() == ""
    _until(lambda: len([each for each in repository.received() if b"probe" not in each]) == 3)
    assert [each for each in repository.received() if b"probe" not in each] == trail.read_bytes().splitlines()


@pytest.mark.parametrize("protocol", ["tls", "tcp"])
def test_a_repository_that_is_killed_again_and_again_loses_nothing(
    protocol: Protocol, tmp_path: Path, trail: Path, certificates: Certificates, opened: Opened
) -> None:
    """What it has read is its own affair: it is killed with messages before it, and none in its hands."""
    repository = _repository(opened, tmp_path, protocol, certificates)
    forwarder = _forwarder(opened, repository.audit(_tls(certificates)), trail)
    for first in range(0, 1200, 200):
        _until(partial(_all_there, repository, first))
        repository.freeze()
        for number in range(first, first + 200):
            _say(number)
        time.sleep(0.5)  # what its system takes meanwhile, it never reads
        repository.kill()
        repository.start()
    _until(partial(_all_there, repository, 1200))
    _until(lambda: forwarder.problem() == "")


def test_what_a_frozen_repositorys_system_took_is_not_taken_for_sent(
    tmp_path: Path, trail: Path, opened: Opened
) -> None:
    repository = _repository(opened, tmp_path, "tcp")
    forwarder = _forwarder(opened, repository.audit(), trail)
    _say(0)
    _until(lambda: set(_numbers(repository)) == {0})
    repository.freeze()
    _say(1)
    _until(lambda: "takes no audit messages" in forwarder.problem())
    repository.kill()
    repository.start()
    _until(lambda: set(_numbers(repository)) == {0, 1})


def test_an_end_before_all_was_read_is_not_taken_for_sent() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = list[socket.socket]()

        def take() -> None:  # no syslog receiver can be made to do this when it is wanted
            taken.append(listener.accept()[0])
            taken[0].shutdown(socket.SHUT_WR)

        taker = threading.Thread(target=take)
        taker.start()
        settings = Audit(syslog=f"127.0.0.1:{listener.getsockname()[1]}", protocol="tcp")
        with pytest.raises(syslog.Unconfirmed):
            syslog.send(settings, [b"x" * 1000] * 500, syslog._context)
        taker.join()
        taken[0].close()


def test_rotation_and_a_restart_while_the_repository_is_away(tmp_path: Path, trail: Path, opened: Opened) -> None:
    repository = _repository(opened, tmp_path, "tcp")
    forwarder = _forwarder(opened, repository.audit(), trail)
    _say(0)
    _until(lambda: set(_numbers(repository)) == {0})
    repository.kill()
    for number in range(1, 300):
        _say(number)
        if number % 100 == 0:  # as logrotate does, three days on end
            for old in (2, 1):
                if (before := trail.with_name(f"audit.log.{old}")).exists():
                    before.rename(trail.with_name(f"audit.log.{old + 1}"))
            trail.rename(trail.with_name("audit.log.1"))
    _until(lambda: "takes no audit messages" in forwarder.problem())
    forwarder.stop()
    repository.start()
    _forwarder(opened, repository.audit(), trail)
    _until(lambda: set(_numbers(repository)) == set(range(300)))
    assert set(_numbers(repository).values()) == {1}


def test_more_than_may_wait_are_skipped_and_told_by_their_number(tmp_path: Path, trail: Path, opened: Opened) -> None:
    repository = Repository(tmp_path / "repository", "tcp")
    opened.append(repository)
    for number in range(250):
        _say(number)
    forwarder = _forwarder(opened, repository.audit(maximum_waiting=50), trail)
    _until(lambda: "50 wait" in forwarder.problem())
    repository.start()
    _until(lambda: set(_numbers(repository)) == set(range(200, 250)))
    (told,) = [taken_apart(each) for each in repository.received() if b"110133" in each]
    assert "200 messages, the oldest of too many that waited" in told.text
    _say(250)
    _until(lambda: 250 in _numbers(repository))
    assert sum(b"110133" in each for each in repository.received()) == 1


def test_a_sender_that_is_killed_repeats_perhaps_and_loses_nothing(tmp_path: Path, trail: Path, opened: Opened) -> None:
    repository = _repository(opened, tmp_path, "tcp")
    for number in range(900):
        _say(number)
    program = (
        "import sys, time; from pathlib import Path; from service import syslog;"
        "from service.settings.doors import Audit;"
        "syslog._LINES, send = 50, syslog.send; syslog.send = lambda *it: (send(*it), time.sleep(0.05));"
        "syslog.Forwarder(Audit(syslog=sys.argv[1], protocol='tcp'), Path(sys.argv[2]),"
        " name='main').start(); time.sleep(60)"
    )
    runs = 0
    while len(_numbers(repository)) < 900:
        sender = subprocess.Popen(
            [sys.executable, "-c", program, f"127.0.0.1:{repository.port}", str(trail)], cwd=REPOSITORY
        )
        before = len(repository.received())
        _until(lambda before=before: len(repository.received()) > before)  # type: ignore[misc]
        time.sleep(0.1)
        sender.kill()
        sender.wait()
        runs += 1
    assert runs > 1
    assert set(_numbers(repository)) == set(range(900))


@pytest.mark.parametrize("fault", ["authority", "name", "none of ours", "stranger"])
def test_certificates_are_checked_on_both_sides(
    fault: str, tmp_path: Path, trail: Path, certificates: Certificates, opened: Opened
) -> None:
    repository = _repository(opened, tmp_path, "tls", certificates)
    certificate, key = certificates.client
    theirs, their_key = certificates.stranger
    tls = {
        "authority": ClientTls(ca_file=certificates.strange_ca_file, certificate_file=certificate, key_file=key),
        "name": ClientTls(
            ca_file=certificates.ca_file, certificate_file=certificate, key_file=key, server_name="other.hospital"
        ),
        "none of ours": ClientTls(ca_file=certificates.ca_file),
        "stranger": ClientTls(ca_file=certificates.ca_file, certificate_file=theirs, key_file=their_key),
    }[fault]
    _say(0)
    forwarder = _forwarder(opened, repository.audit(tls), trail)
    _until(lambda: forwarder.problem() != "")
    assert "1 wait" in forwarder.problem()
    assert _numbers(repository) == {}
    forwarder.stop()
    _forwarder(
        opened, repository.audit(_tls(certificates).model_copy(update={"server_name": "repository.hospital"})), trail
    )
    _until(lambda: set(_numbers(repository)) == {0})


def test_one_sender_for_a_file(tmp_path: Path, trail: Path, opened: Opened) -> None:
    repository = _repository(opened, tmp_path, "tcp")
    first = _forwarder(opened, repository.audit(), trail)
    _say(0)
    _until(lambda: set(_numbers(repository)) == {0})
    second = _forwarder(opened, repository.audit(), trail)
    _until(lambda: second.problem() == "another process sends this trail")
    _say(1)
    _until(lambda: set(_numbers(repository)) == {0, 1})
    first.stop()
    _until(lambda: second.problem() == "")
    _say(2)
    _until(lambda: set(_numbers(repository)) == {0, 1, 2})
    assert set(_numbers(repository).values()) == {1}


def test_the_last_message_goes_out_when_the_service_stops(
    tmp_path: Path, trail: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syslog, "_GATHER_SECONDS", 600.0)
    repository = _repository(opened, tmp_path, "tcp")
    _say(0)
    forwarder = _forwarder(opened, repository.audit(), trail)
    _until(lambda: Tail(trail).read(10) == [])
    audit.application(started=False)
    forwarder.stop()
    assert [taken_apart(each).event() for each in repository.received()] == ["110104", "110100"]


@pytest.mark.parametrize("protocol", ["tls", "tcp"])
def test_each_message_follows_its_number_of_octets(protocol: Protocol, certificates: Certificates) -> None:
    """rsyslog would take a line end for it, too; RFC 5425 does not."""
    certificate, key = certificates.server
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    taken = list[bytes]()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) if protocol == "tls" else plain as connection:
                while data := connection.recv(4096):
                    taken.append(data)

        taker = threading.Thread(target=take)
        taker.start()
        settings = Audit(syslog=f"127.0.0.1:{listener.getsockname()[1]}", protocol=protocol, tls=_tls(certificates))
        syslog.send(settings, [b"<85>1 a", "<85>1 ж".encode()], syslog._context)
        taker.join()
    assert b"".join(taken) == b"7 <85>1 a8 <85>1 \xd0\xb6"


def test_a_certificate_that_is_no_good_is_said_and_looked_at_again(
    tmp_path: Path, trail: Path, certificates: Certificates, opened: Opened
) -> None:
    repository = _repository(opened, tmp_path, "tls", certificates)
    good = certificates.client[0].read_bytes()
    certificates.client[0].unlink()
    _say(0)
    forwarder = _forwarder(opened, repository.audit(_tls(certificates)), trail)
    _until(lambda: "No such file" in forwarder.problem())
    certificates.client[0].write_bytes(good)
    _until(lambda: set(_numbers(repository)) == {0})


def test_what_the_maker_of_tls_says_is_passed_on(tmp_path: Path, trail: Path, opened: Opened) -> None:
    def refuse(tls: ClientTls) -> ssl.SSLContext:
        raise ConfigError(doing="reading client.pem", found="no certificate", rule="it holds one", way_out="make it")

    repository = Repository(tmp_path / "repository", "tcp")
    opened.append(repository)
    repository.start()
    settings = repository.audit().model_copy(update={"protocol": "tls"})
    _say(0)
    forwarder = Forwarder(settings, trail, name="main", context=refuse)
    opened.append(forwarder)
    forwarder.start()
    _until(lambda: "reading client.pem: no certificate" in forwarder.problem())


def test_without_a_repository_nothing_runs(trail: Path) -> None:
    forwarder = Forwarder(Audit(), trail, name="main")
    forwarder.start()
    forwarder.stop()
    assert forwarder.problem() == ""


def test_a_repository_that_is_away_is_logged_once(
    trail: Path, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    _say(0)
    forwarder = _forwarder(opened, Audit(syslog=f"127.0.0.1:{free_port()}", protocol="udp"), trail)
    _until(lambda: "1 wait" in forwarder.problem())
    time.sleep(1)
    assert caplog.messages.count("audit.repository_away") == 1


# --- The place -------------------------------------------------------------------------------------------------------


def test_the_place_outlives_the_process_and_lines_come_until_they_are_done(trail: Path) -> None:
    for number in range(5):
        _say(number)
    tail = Tail(trail)
    first = tail.read(2)
    assert Tail(trail).read(2) == first == tail.read(2)
    tail.done()
    rest = Tail(trail).read(10)
    assert [*first, *rest] == trail.read_bytes().splitlines()
    names = json.loads(trail.with_name(".audit.log.sent").read_text())
    assert names["offset"] == sum(len(line) + 1 for line in first)


def test_a_line_that_is_being_written_is_waited_for(trail: Path) -> None:
    _say(0)
    whole = trail.read_bytes()
    trail.write_bytes(whole + whole[:300])
    tail = Tail(trail)
    assert tail.read(10) == [whole[:-1]]
    tail.done()
    assert tail.read(10) == []
    trail.write_bytes(whole + whole)
    assert tail.read(10) == [whole[:-1]]


def test_damaged_lines_are_left_out_and_told(trail: Path) -> None:
    _say(0)
    whole = trail.read_bytes()
    trail.write_bytes(whole + whole[:300] + b"\n\n" + b"\r\x00 rubbish\n" + whole)
    tail = Tail(trail)
    assert len(tail.read(10)) == 2
    tail.done()
    assert tail.place.untold() == "not sent: 2 lines that were not whole"
    tail.done(told=True)
    assert Tail(trail).place.untold() == ""


def test_copying_and_truncating_is_a_rotation_too(trail: Path) -> None:
    _say(0)
    _say(1)
    tail = Tail(trail)
    assert len(tail.read(1)) == 1
    tail.done()
    trail.with_name("audit.log.1").write_bytes(trail.read_bytes())
    os.utime(trail.with_name("audit.log.1"), (1, 1))
    os.truncate(trail, 0)
    _say(2)
    studies = []
    while lines := tail.read(10):
        studies += [taken_apart(line).message.find("ParticipantObjectIdentification") for line in lines]
        tail.done()
    assert [study.get("ParticipantObjectID") for study in studies] == ["1.2.1", "1.2.2"]


def test_a_file_that_was_removed_unsent_is_told(trail: Path) -> None:
    _say(0)
    tail = Tail(trail)
    tail.read(1)
    tail.done()
    trail.rename(trail.with_name("audit.log.2"))
    _say(1)
    trail.rename(trail.with_name("audit.log.1"))
    _say(2)
    trail.with_name("audit.log.2").unlink()
    for path in trail.parent.glob("audit.log.*"):
        os.utime(path, (1, 1))
    assert b"1.2.1" in tail.read(10)[0]
    tail.done()
    assert b"1.2.2" in tail.read(10)[0]
    assert tail.place.untold() == "not sent: 1 files that were removed before"


def test_a_rotated_file_is_left_when_nobody_writes_to_it_any_more(trail: Path) -> None:
    _say(0)
    tail = Tail(trail)
    assert len(tail.read(10)) == 1
    tail.done()
    trail.rename(trail.with_name("audit.log-20260301"))
    _say(1)
    assert tail.read(10) == []  # a slow writer may still hold the old one
    with trail.with_name("audit.log-20260301").open("ab") as old:
        old.write(trail.read_bytes().replace(b"1.2.1", b"1.2.9"))
    assert b"1.2.9" in tail.read(10)[0]
    tail.done()
    os.utime(trail.with_name("audit.log-20260301"), (1, 1))
    assert b"1.2.1" in tail.read(10)[0]


def test_a_damaged_place_sends_again(trail: Path) -> None:
    _say(0)
    tail = Tail(trail)
    tail.read(1)
    tail.done()
    trail.with_name(".audit.log.sent").write_text("{")
    assert len(Tail(trail).read(10)) == 1
