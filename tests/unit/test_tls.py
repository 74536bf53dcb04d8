"""TLS as OpenSSL really does it: what is offered and taken, who is believed, how files are read again."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import handshakes, tls
from service.errors import ConfigError
from service.settings.doors import ClientTls, ServerTls
from tests.certificates import Authority, Pair

Ends = tuple[OSError | None, OSError | None]

pytestmark = pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def meet(server: ssl.SSLContext, client: Any, *, name: str = "localhost") -> tuple[Ends, tuple[str, str]]:
    """Let both meet on a real connection: what each raised, and the version and suite that they spoke."""
    failed: list[OSError | None] = [None, None]
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        line, _ = listener.accept()
        line.settimeout(10)
        try:
            with server.wrap_socket(line, server_side=True) as secure:
                secure.sendall(b"x")
                secure.recv(1)
        except OSError as exc:
            failed[0] = exc

    thread = threading.Thread(target=serve)
    thread.start()
    made = client.wrap_socket(socket.socket(), server_hostname=name)
    made.settimeout(10)
    try:
        made.connect(listener.getsockname())
        made.recv(1)
    except OSError as exc:
        failed[1] = exc
    spoken = made.version() or "", (made.cipher() or ("",))[0]
    made.close()
    thread.join()
    listener.close()
    return (failed[0], failed[1]), spoken


def plain_client(**changes: Any) -> ssl.SSLContext:
    """A client that believes everybody, and can be of any age."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.set_ciphers("ALL:@SECLEVEL=0")
    made.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    for key, value in changes.items():
        made.set_ciphers(value) if key == "ciphers" else setattr(made, key, value)
    return made


# --- What is spoken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken_with_forward_secret_aead(authority: Authority, version: ssl.TLSVersion) -> None:
    pair = authority.issue("us")
    client = tls.client_context(ClientTls(ca_file=authority.file))
    client.maximum_version = version
    ends, (spoken, suite) = meet(tls.server_context(pair.server()), client)
    assert ends == (None, None)
    assert spoken == version.name.replace("_", ".")
    assert "GCM" in suite or "CHACHA20" in suite
    assert suite.startswith(("ECDHE-", "TLS_"))  # all suites of TLS 1.3 are forward-secret


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"maximum_version": ssl.TLSVersion.TLSv1_1}, "older than 1.2"),
        ({"maximum_version": ssl.TLSVersion.TLSv1}, "older than 1.2"),
        ({"maximum_version": ssl.TLSVersion.TLSv1_2, "ciphers": "AES128-GCM-SHA256"}, "no forward-secret AEAD"),
        ({"maximum_version": ssl.TLSVersion.TLSv1_2, "ciphers": "ECDHE-RSA-AES128-SHA256"}, "no forward-secret AEAD"),
        ({"maximum_version": ssl.TLSVersion.TLSv1_2, "ciphers": "NULL:@SECLEVEL=0"}, "no forward-secret AEAD"),
    ],
)
def test_older_and_weaker_callers_are_refused(authority: Authority, changes: dict[str, Any], words: str) -> None:
    (theirs, ours), _ = meet(tls.server_context(authority.issue("us").server()), plain_client(**changes))
    assert theirs is not None
    assert ours is not None
    assert words in handshakes.explain(theirs)[0]


def test_an_older_server_is_refused(authority: Authority) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    pair = authority.issue("peer")
    old.load_cert_chain(pair.certificate, pair.key)
    (_, ours), _ = meet(old, tls.client_context(ClientTls(ca_file=authority.file)))
    assert ours is not None
    assert handshakes.explain(ours)[0] == "it does not speak TLS 1.2 or newer"


# --- Who is believed --------------------------------------------------------------------------------------------------


def _strange(folder: Path, house: Authority, kind: str) -> Pair:
    if kind == "expired":
        return house.issue("late", days=-1)
    if kind == "self-signed":
        return house.self_signed("alone")
    return Authority(folder, "other").issue("stranger")


@pytest.mark.parametrize(
    ("kind", "words"), [("expired", "has expired"), ("self-signed", "self-signed"), ("other", "does not have")]
)
def test_certificates_that_nobody_should_believe(tmp_path: Path, authority: Authority, kind: str, words: str) -> None:
    strange = _strange(tmp_path, authority, kind)
    (_, ours), _ = meet(tls.server_context(strange.server()), tls.client_context(ClientTls(ca_file=authority.file)))
    assert ours is not None, "as a server's"
    assert words in handshakes.explain(ours)[0]
    assert all(handshakes.explain(ours))
    server = tls.server_context(authority.issue("us").server(authority.file))
    (ours, _), _ = meet(server, tls.client_context(strange.client(authority.file)))
    assert ours is not None, "as a client's"
    assert words in handshakes.explain(ours)[0]


@pytest.mark.parametrize(("name", "right"), [("pacs.house", True), ("10.0.0.7", True), ("ris.house", False)])
def test_the_name_is_compared(authority: Authority, name: str, right: bool) -> None:
    server = tls.server_context(authority.issue("peer", "pacs.house", "10.0.0.7").server())
    (_, ours), _ = meet(server, tls.client_context(ClientTls(ca_file=authority.file)), name=name)
    assert (ours is None) is right
    if ours:
        assert handshakes.explain(ours) == (
            "its certificate is for another name",
            "correct host, or give the name in it as server_name",
        )


def test_who_comes_must_show_a_certificate_where_authorities_are_named(authority: Authority) -> None:
    us = authority.issue("us")
    bare = tls.client_context(ClientTls(ca_file=authority.file))
    (theirs, _), _ = meet(tls.server_context(us.server(authority.file)), bare)
    assert theirs is not None
    assert handshakes.explain(theirs)[0] == "it shows no certificate"
    assert meet(tls.server_context(us.server()), bare)[0] == (None, None)
    shown = tls.client_context(authority.issue("them").client(authority.file))
    assert meet(tls.server_context(us.server(authority.file)), shown)[0] == (None, None)


def test_a_dialer_keeps_what_the_library_around_it_swallows(authority: Authority) -> None:
    dialer = tls.Dialer(ClientTls(ca_file=authority.file))
    meet(tls.server_context(authority.issue("late", days=-1).server()), dialer)
    assert dialer.failure is not None
    assert "expired" in handshakes.explain(dialer.failure)[0]
    late = tls.Dialer(ClientTls(ca_file=authority.file))  # TLS 1.3: the handshake is over before the peer says no
    meet(tls.server_context(authority.issue("us").server(authority.file)), late)
    assert late.failure is not None
    assert handshakes.explain(late.failure)[0] == "it wants a certificate of ours"


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (TimeoutError(), "in time"),
        (ConnectionResetError(), "hung up"),
        (ssl.SSLEOFError(), "hung up"),
        (ssl.SSLError("something new"), "SSLError"),
    ],
)
def test_what_else_goes_wrong_has_words_too(exc: OSError, words: str) -> None:
    found, way_out = handshakes.explain(exc)
    assert words in found
    assert way_out


# --- Files ------------------------------------------------------------------------------------------------------------


def _broken(house: Authority, folder: Path) -> dict[str, tuple[ServerTls | ClientTls, str, str]]:
    """By name: the settings, the file that is to be named, and what is to be said of it."""
    pair, other = house.issue("us"), house.issue("other")
    text, locked = folder / "text.pem", folder / "locked.key"
    text.write_text("no PEM")
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:geheim", "-in", str(pair.key), "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    gone = folder / "gone.pem"

    def of(certificate: Path, key: Path, authority: Path | None = None) -> ServerTls:
        return ServerTls(certificate_file=certificate, key_file=key, ca_file=authority)

    return {
        "no certificate": (of(gone, pair.key), "gone.pem", "No such file"),
        "no key": (of(pair.certificate, gone), "gone.pem", "No such file"),
        "a folder": (of(pair.certificate, folder), folder.name, "Is a directory"),
        "text for a certificate": (of(text, pair.key), "text.pem", "no certificate in PEM"),
        "text for a key": (of(pair.certificate, text), "text.pem", "no private key in PEM"),
        "a key with a passphrase": (of(pair.certificate, locked), "locked.key", "passphrase"),
        "another's key": (of(pair.certificate, other.key), other.key.name, "not the key of"),
        "certificate for key": (of(pair.certificate, pair.certificate), pair.certificate.name, "no private key"),
        "no authority": (of(pair.certificate, pair.key, gone), "gone.pem", "No such file"),
        "text for an authority": (of(pair.certificate, pair.key, text), "text.pem", "no certificate in PEM"),
        "a client's authority": (ClientTls(ca_file=gone), "gone.pem", "No such file"),
        "a client's key": (other.client(house.file).model_copy(update={"key_file": pair.key}), "house-us", "not the"),
    }


def test_each_bad_file_is_named_with_a_way_out(tmp_path: Path, authority: Authority) -> None:
    for name, (settings, file, found) in _broken(authority, tmp_path).items():
        with pytest.raises(ConfigError) as caught:
            tls.Reloading(settings)
        assert file in caught.value.doing, name
        assert found in caught.value.found, name
        assert all(caught.value.parts().values()), name
        assert "geheim" not in str(caught.value)


def test_when_a_certificate_ends(tmp_path: Path, authority: Authority) -> None:
    assert tls.expiry(authority.issue("us", days=10).certificate) == pytest.approx(time.time() + 10 * 86400, abs=60)
    assert tls.expiry(authority.issue("us", days=-3).certificate) < time.time()
    with pytest.raises(ConfigError, match="No such file"):
        tls.expiry(tmp_path / "gone.pem")


def _serial(context: Callable[[], ssl.SSLContext], authority: Authority) -> int:
    client = tls.client_context(ClientTls(ca_file=authority.file))
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        line, _ = listener.accept()
        with context().wrap_socket(line, server_side=True) as secure:
            secure.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    with client.wrap_socket(socket.create_connection(listener.getsockname()), server_hostname="localhost") as made:
        serial = int(str((made.getpeercert() or {})["serialNumber"]), 16)
        made.sendall(b"x")
    thread.join()
    listener.close()
    return serial


def test_a_renewed_certificate_counts_from_the_next_connection_on(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "overread")
    reloading = tls.Reloading(authority.issue("us").server())
    first = reloading()
    assert reloading() is first, "nothing changed"
    before = _serial(reloading, authority)
    authority.issue("us")
    assert _serial(reloading, authority) != before
    assert [record.message for record in caplog.records] == ["tls.reloaded"]


def test_a_broken_new_file_keeps_the_old_certificate_and_is_said_once(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "overread")
    pair = authority.issue("us")
    reloading = tls.Reloading(pair.server())
    good, before = reloading(), pair.certificate.read_bytes()
    pair.certificate.write_text("half written")
    assert [reloading() for _ in range(3)] == [good] * 3
    (record,) = caplog.records
    assert record.message == "tls.not_reloaded"
    fields = vars(record)["fields"]
    assert all(fields[part] for part in ("doing", "found", "rule", "way_out"))
    pair.certificate.unlink()
    assert reloading() is good
    pair.certificate.write_bytes(before)
    assert reloading() is not good
    assert [record.message for record in caplog.records] == ["tls.not_reloaded"] * 2 + ["tls.reloaded"]


def test_a_file_behind_a_link_is_followed(tmp_path: Path, authority: Authority) -> None:
    """As Kubernetes replaces secrets: the names stay, the folder behind them is another."""
    for number in ("1", "2"):
        pair = authority.issue(f"v{number}")
        (tmp_path / number).mkdir()
        (tmp_path / number / "tls.crt").write_bytes(pair.certificate.read_bytes())
        (tmp_path / number / "tls.key").write_bytes(pair.key.read_bytes())
    (tmp_path / "now").symlink_to("1")
    reloading = tls.Reloading(
        ServerTls(certificate_file=tmp_path / "now" / "tls.crt", key_file=tmp_path / "now" / "tls.key")
    )
    before = _serial(reloading, authority)
    (tmp_path / "next").symlink_to("2")
    os.replace(tmp_path / "next", tmp_path / "now")
    assert _serial(reloading, authority) != before


def test_clients_share_a_context_until_a_file_changes(tmp_path: Path, authority: Authority) -> None:
    settings = ClientTls(ca_file=authority.file)
    assert tls.reloading_client(settings) is tls.reloading_client(ClientTls(ca_file=authority.file))
    server = tls.server_context(Authority(tmp_path / "new").issue("peer").server())
    (_, ours), _ = meet(server, tls.Dialer(settings))
    assert ours is not None
    authority.file.write_bytes(authority.file.read_bytes() + (tmp_path / "new" / "house-ca.pem").read_bytes())
    assert meet(server, tls.Dialer(settings))[0] == (None, None)
