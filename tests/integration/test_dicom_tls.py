"""DICOM TLS with real counterparts, both ways: DCMTK, Orthanc, and an OpenSSL that is older than it should be."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association

from service import tls
from service.audit import Alert
from service.config import Config
from service.demo.pacs import OrthancPacs, wait_for_port
from service.errors import ConfigError, PeerUnreachable, SourceUnavailable
from service.intake import sources
from service.intake.processes import Receivers
from service.results import deliver, presence
from service.settings.destinations import Destination
from service.settings.doors import ClientTls
from service.settings.intake import Intake, Source
from service.settings.store import StoreSection
from tests.certificates import Authority, Pair
from tests.integration.door import Door, is_ended, opened, pipeline, threads
from tests.integration.receiver import CT, EXPLICIT, VERIFICATION, image, put, wait
from tests.support import counterpart, free_port

OURS = "OVERREAD"


@pytest.fixture
def house(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


@pytest.fixture
def here(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens a port with some settings."""
    stack = ExitStack()

    def make(**settings: Any) -> Door:
        return stack.enter_context(opened(tmp_path / "site", caplog, monkeypatch, **settings))

    with stack:
        yield make


def dcmtk(program: str, port: int, *options: str, more: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """What a program of DCMTK says, called with these options."""
    command = [counterpart(program), *options, "-aec", OURS, "127.0.0.1", str(port), *more]
    environment = os.environ | {"TCP_NODELAY": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


def shown(pair: Pair, authority: Path) -> tuple[str, ...]:
    """The options of DCMTK with which it shows a certificate."""
    return "+tls", str(pair.key), str(pair.certificate), "+cf", str(authority)


def strange(who: str, house: Authority, tmp_path: Path) -> Pair | None:
    """A certificate that nobody should believe, by what is wrong with it; None where there is none."""
    if who == "expired":
        return house.issue("late", days=-1)
    if who == "self-signed":
        return house.self_signed("alone")
    if who == "other":
        return Authority(tmp_path / "tls", "other").issue("them")
    return house.issue("elsewhere", "pacs.house") if who == "name" else None


@contextmanager
def associated(door: Door, context: ssl.SSLContext | tls.Dialer) -> Iterator[Association]:
    """An association by TLS, for C-STORE and C-ECHO."""
    ae = AE("SENDER")
    ae.add_requested_context(CT, EXPLICIT)
    ae.add_requested_context(VERIFICATION)
    association = ae.associate("127.0.0.1", door.port, ae_title=OURS, tls_args=(context, "127.0.0.1"))  # type: ignore[arg-type]
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


# --- Into us ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mutual", [True, False])
def test_dcmtk_sends_by_tls(here: Any, house: Authority, tmp_path: Path, mutual: bool) -> None:
    door = here(tls=house.issue("us").server(house.file if mutual else None))
    made = image(PixelData=os.urandom(300_000))
    _save(made, tmp_path / "one.dcm")
    options = shown(house.issue("ct"), house.file) if mutual else ("+tla", "+cf", str(house.file))
    done = dcmtk("storescu", door.port, *options, more=(str(tmp_path / "one.dcm"),))
    assert done.returncode == 0, done.stderr
    (kept,) = (tmp_path / "site" / "spool").rglob("*.dcm")
    assert kept.read_bytes().endswith(made.PixelData)
    assert dcmtk("echoscu", door.port, *options).returncode == 0
    assert door.alerts == []
    assert not [record for record in door.caplog.records if record.levelname != "INFO"]


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("nobody", "shows no certificate"),
        ("expired", "has expired"),
        ("self-signed", "self-signed"),
        ("other", "an authority that ca_file does not have"),
        ("plain", "does not speak TLS"),
    ],
)
def test_strangers_are_refused_and_audited(here: Any, house: Authority, tmp_path: Path, who: str, words: str) -> None:
    door = here(tls=house.issue("us").server(house.file))
    options: tuple[str, ...] = ("+tla", "+cf", str(house.file)) if who == "nobody" else ()
    if pair := strange(who, house, tmp_path):
        options = shown(pair, house.file)
    assert dcmtk("echoscu", door.port, *options).returncode != 0
    wait(lambda: door.alerts)
    ((kind, said, user, address),) = door.alerts
    assert (kind, user, address) == (Alert.NODE_AUTHENTICATION, "", "127.0.0.1")
    assert words in said
    (line,) = door.lines("association.refused")
    assert all(line[part] for part in ("doing", "found", "rule", "way_out", "address"))
    assert dcmtk("echoscu", door.port, *shown(house.issue("ct"), house.file)).returncode == 0


def test_tls_at_a_plain_port_is_said(here: Any, house: Authority) -> None:
    door = here()
    assert dcmtk("echoscu", door.port, *shown(house.issue("ct"), house.file)).returncode != 0
    wait(lambda: door.alerts)
    ((kind, said, _, _),) = door.alerts
    assert (kind, "it speaks TLS" in said) == (Alert.NODE_AUTHENTICATION, True)


def test_tls_1_1_is_refused(here: Any, house: Authority) -> None:
    door = here(tls=house.issue("us").server())
    command = [counterpart("openssl"), "s_client", "-connect", f"127.0.0.1:{door.port}", "-cipher", "ALL:@SECLEVEL=0"]
    for version, taken in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
        done = subprocess.run([*command, version], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
        assert (done.returncode == 0) is taken, version
    wait(lambda: door.alerts)
    ((kind, said, _, _),) = door.alerts
    assert (kind, "older than 1.2" in said) == (Alert.NODE_AUTHENTICATION, True)


def test_a_caller_who_does_not_trust_us_is_said(here: Any, house: Authority, tmp_path: Path) -> None:
    door = here(tls=house.issue("us").server())
    other = Authority(tmp_path / "tls", "other")
    assert dcmtk("echoscu", door.port, "+tla", "+cf", str(other.file)).returncode != 0
    wait(lambda: door.alerts)
    assert "does not know the authority of our certificate" in door.alerts[0][1]


def test_a_renewed_certificate_stops_nobody(here: Any, house: Authority) -> None:
    pair = house.issue("us")
    door = here(tls=pair.server(house.file))
    client = tls.client_context(house.issue("ct").client(house.file))

    def serial() -> Any:
        with client.wrap_socket(door.connect(), server_hostname="127.0.0.1") as line:
            return (line.getpeercert() or {})["serialNumber"]

    with associated(door, client) as association:
        assert put(association, image()) == 0
        before = serial()
        house.issue("us")
        after = serial()
        assert after != before
        assert put(association, image()) == 0, "what runs goes on"
        with associated(door, client) as another:
            assert put(another, image()) == 0
        pair.certificate.write_text("half written")
        assert [serial() for _ in range(3)] == [after] * 3
        assert put(association, image()) == 0
    assert len(door.lines("tls.reloaded")) == 1
    assert len(door.lines("tls.not_reloaded")) == 1


def test_a_slow_handshake_holds_up_nobody_and_ends(here: Any, house: Authority) -> None:
    door = here(tls=house.issue("us").server(house.file), associate_seconds=3.0)
    client = tls.client_context(house.issue("ct").client(house.file))
    with ExitStack() as stack:
        lines = [stack.enter_context(door.connect()) for _ in range(60)]
        for number, line in enumerate(lines):
            line.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[: 1 + number % 11])
        finished = client.wrap_socket(stack.enter_context(door.connect()), server_hostname="127.0.0.1")
        with associated(door, client) as association:
            assert put(association, image()) == 0
            assert len(threads()) == 1
        assert all(is_ended(line) for line in lines)
        assert is_ended(finished), "a handshake is no request"
    wait(lambda: len(door.alerts) == 61)
    assert {kind for kind, *_ in door.alerts} == {Alert.RESTRICTED_FUNCTION}


def test_probes_of_a_tls_port_leave_no_trace(here: Any, house: Authority) -> None:
    door = here(tls=house.issue("us").server())
    client = tls.client_context(ClientTls(ca_file=house.file))
    for _ in range(20):
        door.connect().close()
        with door.connect() as scanner:
            scanner.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert is_ended(scanner)
        client.wrap_socket(door.connect(), server_hostname="127.0.0.1").close()
    with associated(door, client) as association:
        assert association.send_c_echo().Status == 0
    assert door.caplog.records == []
    assert door.alerts == []


def test_rejections_are_read_by_tls_too(here: Any, house: Authority) -> None:
    door = here(tls=house.issue("us").server(), called_ae_titles=["OTHER"])
    done = dcmtk("echoscu", door.port, "+tla", "+cf", str(house.file))
    assert "Called AE Title Not Recognized" in done.stdout + done.stderr


def test_large_pdus_and_many_senders_by_tls(here: Any, house: Authority) -> None:
    """What OpenSSL has read ahead is no data for poll(2): an association must not wait for more."""
    door = here(tls=house.issue("us").server())
    client = tls.client_context(ClientTls(ca_file=house.file))
    statuses: list[int] = []

    def send() -> None:
        with associated(door, client) as association:
            statuses.extend(put(association, image(PixelData=os.urandom(size))) for size in (2, 16_000, 1 << 20, 30))

    senders = [threading.Thread(target=send) for _ in range(8)]
    began = time.monotonic()
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert statuses == [0] * 32
    assert time.monotonic() - began < 60


def test_requests_in_one_record_of_tls_are_all_answered(here: Any, house: Authority) -> None:
    door = here(tls=house.issue("us").server())
    ae = AE("SENDER")
    ae.add_requested_context(VERIFICATION)
    client = tls.client_context(ClientTls(ca_file=house.file))
    association = ae.associate("127.0.0.1", door.port, ae_title=OURS, tls_args=(client, "127.0.0.1"))
    assert association.is_established
    pipeline(door, association, 30)  # 3 kB
    association.release()


def test_a_stranger_who_goes_on_talking_reads_why(here: Any, house: Authority) -> None:
    """In TLS 1.3 it may have sent its request before we look at its certificate."""
    door = here(tls=house.issue("us").server(house.file))
    client = tls.client_context(house.issue("late", days=-1).client(house.file))
    with client.wrap_socket(door.connect(), server_hostname="127.0.0.1") as line:
        line.sendall(bytes(100_000))
        wait(lambda: door.alerts)
        time.sleep(0.2)
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_EXPIRED"):
            line.recv(1)


def test_a_bad_file_is_a_clear_refusal_to_start(tmp_path: Path, house: Authority) -> None:
    settings = house.issue("us").server(tmp_path / "gone.pem")
    receivers = Receivers(Config(intake=Intake(port=free_port(), tls=settings), store=StoreSection(directory=tmp_path)))
    with pytest.raises(ConfigError, match=r"gone\.pem for TLS: No such file"):
        receivers.start()
    receivers.stop()


# --- From us ----------------------------------------------------------------------------------------------------------


def _save(made: Dataset, path: Path) -> None:
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    made.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=True)


def destination(port: int, settings: ClientTls | None, **more: Any) -> Destination:
    about = {"name": "pacs", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": port, "timeout_seconds": 10.0}
    return Destination.model_validate(about | {"tls": settings} | more)


@contextmanager
def orthanc(tmp_path: Path, house: Authority, **more: Any) -> Iterator[OrthancPacs]:
    """A real Orthanc whose DICOM port speaks TLS, mutual."""
    pair = house.issue("orthanc")
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(pair.certificate),
        "DicomTlsPrivateKey": str(pair.key),
        "DicomTlsTrustedCertificates": str(house.file),
    }
    pacs = OrthancPacs(counterpart("Orthanc"), tmp_path / "orthanc", more=settings | more)
    try:
        yield pacs
    finally:
        pacs.stop()


def _post(pacs: OrthancPacs, path: str, body: bytes) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{pacs.http_port}{path}", body)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def test_results_go_to_orthanc_by_tls_and_it_is_asked_by_tls(tmp_path: Path, house: Authority) -> None:
    made = image()
    _save(made, tmp_path / "one.dcm")
    ours = house.issue("us").client(house.file)
    with orthanc(tmp_path, house) as pacs:
        there = destination(pacs.port, ours)
        deliver.echo(there, our_ae_title=OURS)
        assert deliver.send(tmp_path / "one.dcm", CT, there, our_ae_title=OURS) == ""
        uids = _Uids(made)
        assert presence.is_present(uids, there, our_ae_title=OURS)
        query = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": pacs.port}
        source = Source.model_validate({"ae_title": "ORTHANC", "query": query | {"tls": ours}})
        assert sources.ask(uids.study_instance_uid, source, our_ae_title=OURS).study_instances == 1
        for settings, words in ((None, "no connection, or no answer"), (ClientTls(ca_file=house.file), "certificate")):
            with pytest.raises(PeerUnreachable, match=words):
                deliver.echo(destination(pacs.port, settings), our_ae_title=OURS)
        blind = Source.model_validate(
            {"ae_title": "ORTHANC", "query": query | {"tls": ClientTls(ca_file=tmp_path / "tls" / "house-us.pem")}}
        )
        with pytest.raises(SourceUnavailable, match="ca_file does not have"):
            sources.ask(uids.study_instance_uid, blind, our_ae_title=OURS)


class _Uids:
    """An instance by its UIDs."""

    def __init__(self, made: Dataset) -> None:
        self.study_instance_uid = str(made.StudyInstanceUID)
        self.series_instance_uid = str(made.SeriesInstanceUID)
        self.sop_instance_uid = str(made.SOPInstanceUID)
        self.sop_class_uid = str(made.SOPClassUID)


def test_orthanc_sends_to_us_by_tls(here: Any, tmp_path: Path, house: Authority) -> None:
    door = here(tls=house.issue("us").server(house.file), calling_ae_titles=["ORTHANC"])
    ours = {"AET": OURS, "Host": "127.0.0.1", "Port": door.port, "UseDicomTls": True}
    made = image()
    _save(made, tmp_path / "one.dcm")
    with orthanc(tmp_path, house, DicomModalities={"overread": ours}) as pacs:
        (number,) = [_post(pacs, "/instances", (tmp_path / "one.dcm").read_bytes())["ID"]]
        assert _post(pacs, "/modalities/overread/store", number.encode())["FailedInstancesCount"] == 0
        assert len(list((tmp_path / "site" / "spool").rglob("*.dcm"))) == 1
    wait(lambda: door.transfers)
    assert door.transfers[0]["peer"] == "ORTHANC"
    assert door.alerts == []


@contextmanager
def storescp(tmp_path: Path, *options: str) -> Iterator[int]:
    """DCMTK's storage SCP with some options; its port."""
    port = free_port()
    command = [counterpart("storescp"), "--ignore", *options, str(port)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)


def _unreachable(there: Destination) -> PeerUnreachable:
    with pytest.raises(PeerUnreachable) as caught:
        deliver.echo(there, our_ae_title=OURS)
    assert caught.value.retry, "the line pauses, until somebody has acted"
    assert all(caught.value.parts().values())
    assert "results wait" in caught.value.way_out
    return caught.value


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("expired", "its certificate has expired"),
        ("self-signed", "its certificate is self-signed"),
        ("other", "from an authority that ca_file does not have"),
        ("name", "for another address"),
        ("plain", "it does not speak TLS|it hung up in the TLS handshake"),
        ("silent", "did not end the TLS handshake in time"),
    ],
)
def test_what_is_wrong_with_a_destination_is_said(tmp_path: Path, house: Authority, who: str, words: str) -> None:
    pair = strange(who, house, tmp_path)
    ours = house.issue("us").client(house.file)
    if who == "silent":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            error = _unreachable(destination(listener.getsockname()[1], ours, timeout_seconds=2.0))
    else:
        with storescp(tmp_path, *(shown(pair, house.file) if pair else ())) as port:
            error = _unreachable(destination(port, ours))
            if who == "name":
                named = house.issue("us").client(house.file, server_name="pacs.house")
                deliver.echo(destination(port, named), our_ae_title=OURS)
    assert any(it in error.found for it in words.split("|"))


def test_what_a_destination_does_not_like_about_us_is_said(tmp_path: Path, house: Authority) -> None:
    with storescp(tmp_path, *shown(house.issue("pacs"), house.file)) as port:
        stranger = Authority(tmp_path / "tls", "other").issue("us")
        error = _unreachable(destination(port, stranger.client(house.file)))
        assert "does not know the authority of our certificate" in error.found
        error = _unreachable(destination(port, ClientTls(ca_file=house.file)))
        assert "wants a certificate of ours" in error.found
        deliver.echo(destination(port, house.issue("us").client(house.file)), our_ae_title=OURS)


def test_our_side_takes_renewed_files_without_a_stop(tmp_path: Path, house: Authority) -> None:
    new = Authority(tmp_path / "tls", "new")
    ours = house.issue("us")
    with storescp(tmp_path, *shown(new.issue("pacs"), new.file)) as port:
        there = destination(port, ours.client(house.file))
        assert "ca_file does not have" in _unreachable(there).found
        house.file.write_bytes(new.file.read_bytes())
        assert "does not know the authority of our certificate" in _unreachable(there).found
        fresh = new.issue("us")
        ours.key.write_bytes(fresh.key.read_bytes())
        ours.certificate.write_bytes(fresh.certificate.read_bytes())
        deliver.echo(there, our_ae_title=OURS)


def test_files_that_are_gone_pause_the_line_and_are_named(tmp_path: Path, house: Authority) -> None:
    error = _unreachable(destination(1, ClientTls(ca_file=tmp_path / "gone.pem")))
    assert "gone.pem for TLS: No such file" in error.found
