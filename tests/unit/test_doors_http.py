"""Who may ask the HTTP side, how much, from where, and from whose page; and that each refusal is written down."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from service.api.app import create_app
from service.api.bodies import Bodies
from service.api.doors import Admin, Caller, Operator, Viewer
from service.api.headers import STRICT
from service.api.limits import Buckets
from service.api.tokens import Tokens
from service.audit import Alert
from service.errors import ConfigError
from service.settings.doors import Api, Token
from tests.http_side import TOKENS, Alerts, config_of, record_alerts, seen_of

ROLES = ("viewer", "operator", "admin")


@pytest.fixture
def alerts(monkeypatch: pytest.MonkeyPatch) -> Alerts:
    return record_alerts(monkeypatch)


@pytest.fixture
def doors(tmp_path: Path, alerts: Alerts) -> Iterator[Any]:
    """Makes an application with a route for each role, by the keys of ``[api]``."""
    stack = []

    def make(address: str = "10.1.2.3", parts: dict[str, str] | None = None, **api: Any) -> TestClient:
        context = seen_of(config_of(tmp_path, **api), parts=parts)
        app = create_app(context.__enter__())
        stack.append(context)
        _add_routes(app)
        return TestClient(
            app, raise_server_exceptions=False, follow_redirects=False, client=(address, 50000), base_url="http://here"
        )

    yield make
    for context in stack:
        context.__exit__(None, None, None)


def _add_routes(app: FastAPI) -> None:
    def who(caller: Caller) -> list[str]:
        return [caller.name, caller.role, caller.address]

    @app.get("/see")
    def see(caller: Viewer) -> list[str]:
        return who(caller)

    @app.post("/decide/{what}")
    def decide(what: str, caller: Operator) -> list[str]:
        return who(caller)

    @app.get("/rule")
    def rule(caller: Admin) -> list[str]:
        return who(caller)

    @app.get("/break")
    def broken(caller: Viewer) -> None:
        raise RuntimeError("the name of a patient")

    @app.post("/dicom-web/of-the-tests")
    async def stow(request: Request, caller: Operator) -> int:
        return sum([len(chunk) async for chunk in request.stream()])

    @app.post("/body")
    async def body(request: Request) -> int:
        return sum([len(chunk) async for chunk in request.stream()])

    @app.get("/static/page.css")
    def static() -> str:
        return "css"


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- Roles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", ROLES)
@pytest.mark.parametrize("needed", ROLES)
def test_each_role_may_what_those_below_it_may(shown: str, needed: str, doors: Any, alerts: Alerts) -> None:
    method, path = {"viewer": ("GET", "/see"), "operator": ("POST", "/decide/x"), "admin": ("GET", "/rule")}[needed]
    answer = doors().request(method, path, headers=_bearer(TOKENS[shown]))
    if ROLES.index(shown) >= ROLES.index(needed):
        assert answer.json() == [f"a-{shown}", shown, "10.1.2.3"]
        assert not alerts
    else:
        assert answer.status_code == 403
        assert answer.headers["content-type"] == "application/problem+json"
        (alert,) = alerts
        assert (alert["kind"], alert["user"], alert["address"]) == (Alert.USER_RIGHTS, f"a-{shown}", "10.1.2.3")
        assert alert["words"] == f"{method} {re.sub('/x$', '/{what}', path)}: refused, a {shown} is no {needed}"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        _bearer(""),
        _bearer("viewer-token-of-the-test"),
        _bearer("viewer-token-of-the-tests "[:-1] + "\u00e9"),
        _bearer("a.b.c"),
        {"Authorization": "Basic dmlld2VyOnZpZXdlcg=="},
        {"Authorization": f"Token {TOKENS['viewer']}"},
        {"Cookie": "overread=forged"},
        {"X-Overread-User": "admin"},
    ],
)
def test_whoever_does_not_say_who_he_is_is_turned_away(headers: dict[str, str], doors: Any, alerts: Alerts) -> None:
    answer = doors().get("/see", headers={key: value.encode("latin-1") for key, value in headers.items()})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert set(answer.json()) == {"type", "title", "status", "detail", "doing", "found", "rule", "way_out"}
    (alert,) = alerts
    assert (alert["kind"], alert["address"]) == (Alert.USER_AUTHENTICATION, "10.1.2.3")
    assert alert["words"].startswith("GET /see: refused, ")


def test_nothing_of_ours_but_probes_metrics_and_the_sign_in_is_open(doors: Any) -> None:
    """Whoever adds a route must name it here, or ask for a role."""
    client = doors()
    app: Any = client.app
    open_ones = {"/health/live", "/health/ready", "/metrics", "/static/page.css", "/body"}
    asked = 0
    for route in app.routes:
        for path in [getattr(route, "path", ""), *(it.path for it in getattr(route, "routes", []))]:
            for method in getattr(route, "methods", None) or ():
                if path and path not in open_ones and not path.startswith(("/signin", "/signout", "/static/")):
                    answer = client.request(method, path.replace("{", "").replace("}", ""))
                    assert answer.status_code == 401, (method, path)
                    asked += 1
    assert asked >= 4


def test_the_api_s_own_routes_ask_for_a_role(doors: Any) -> None:
    client = doors()
    described = client.get("/openapi.json", headers=_bearer(TOKENS["viewer"])).json()["paths"]
    for path, methods in described.items():
        for method in methods:
            open_one = path in ("/health/live", "/health/ready", "/metrics", "/body", "/static/page.css")
            status = client.request(method, path.replace("{", "").replace("}", "")).status_code
            assert (status == 401) is not open_one, (method, path, status)
    assert "/api/v1/studies" in described


def test_a_token_may_stand_as_digest_in_a_file_or_in_the_environment(
    doors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {name: f"{name}-0123456789-0123456789" for name in ("digest", "file", "variable")}
    monkeypatch.setenv("OVERREAD_TEST_TOKEN", secrets["variable"])
    (tmp_path / "token").write_text(secrets["file"] + "\n")
    client = doors(
        tokens=(
            {"name": "digest", "role": "viewer", "sha256": hashlib.sha256(secrets["digest"].encode()).hexdigest()},
            {"name": "file", "role": "viewer", "file": tmp_path / "token"},
            {"name": "variable", "role": "viewer", "environment": "OVERREAD_TEST_TOKEN"},
        )
    )
    for name, secret in secrets.items():
        assert client.get("/see", headers=_bearer(secret)).json()[0] == name


def test_a_token_s_file_counts_as_it_is_now(doors: Any, tmp_path: Path) -> None:
    client, file, new = doors(), tmp_path / "viewer.token", "another-token-of-the-tests"
    assert client.get("/see", headers=_bearer(TOKENS["viewer"])).status_code == 200
    file.write_text(new)
    assert client.get("/see", headers=_bearer(TOKENS["viewer"])).status_code == 401
    assert client.get("/see", headers=_bearer(new)).status_code == 200
    file.write_text("")
    assert [client.get("/see", headers=_bearer(it)).status_code for it in (new, "")] == [401, 401]
    file.unlink()
    assert client.get("/see", headers=_bearer(new)).status_code == 401
    file.write_text(new)
    assert client.get("/see", headers=_bearer(new)).status_code == 200


@pytest.mark.parametrize("content", [None, b"", b"\n", b"short", b"two words, which are long enough", b"\xff" * 30])
def test_no_start_without_the_tokens(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as found:
        Tokens([Token(name="kiosk", role="viewer", file=file)])
    assert "kiosk" in str(found.value)
    assert "words" not in str(found.value), "nothing of a token is ever said"


def test_no_start_with_an_empty_variable_or_one_token_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OVERREAD_TEST_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="OVERREAD_TEST_TOKEN holds none"):
        Tokens([Token(name="kiosk", role="viewer", environment="OVERREAD_TEST_TOKEN")])
    same = "0" * 64
    with pytest.raises(ConfigError, match="the token of a too"):
        Tokens([Token(name="a", role="viewer", sha256=same), Token(name="b", role="admin", sha256=same)])


# --- On loopback without tokens ---------------------------------------------------------------------------------------

OPEN: dict[str, Any] = {"tokens": (), "address": "127.0.0.1"}


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "LOCALHOST:8080", "[::1]:8080"])
def test_on_loopback_whoever_asks_this_machine_may_do_all(host: str, doors: Any) -> None:
    client = doors(**OPEN)
    assert client.get("/rule", headers={"Host": host}).json() == ["", "admin", "127.0.0.1"]
    assert client.get("/signin?next=/see", headers={"Host": host}).headers["location"] == "/see"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8080", "[evil]", ""]
)
def test_a_name_bent_to_loopback_reads_nothing(host: str, doors: Any, alerts: Alerts) -> None:
    client = doors(**OPEN)
    answer = client.get("/see", headers={"Host": host})
    assert answer.status_code == 421
    assert host not in answer.text or not host
    assert len(alerts.of(Alert.RESTRICTED_FUNCTION)) == 1
    assert client.get("/health/live", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("key", [{"public_url": "https://overread.hospital"}, {"trusted_proxies": ("10.0.0.1",)}])
def test_a_port_without_tokens_stands_behind_no_proxy(key: dict[str, Any], doors: Any) -> None:
    with pytest.raises(ValueError, match="must say who may ask"):
        doors(**OPEN, **key)


# --- Whose page -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, True),  # a program
        ({"Origin": "http://here"}, True),
        ({"Origin": "http://HERE"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://here.evil.example"}, False),
        ({"Origin": "http://here:81"}, False),
        ({"Origin": "null"}, False),
        (
            {"Origin": "http://evil.example", "Host": "evil.example"},
            True,
        ),  # no cookie goes there, and a token is needed
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Cookie": "overread=x"}, False),  # a browser, too old to say whose page it was
    ],
)
def test_pages_of_others_decide_nothing(headers: dict[str, str], passes: bool, doors: Any, alerts: Alerts) -> None:
    answer = doors().post("/decide/x", headers={**_bearer(TOKENS["operator"]), **headers})
    assert answer.status_code == (200 if passes else 403)
    assert len(alerts) == (0 if passes else 1)


def test_a_bent_name_decides_nothing_on_open_loopback(doors: Any) -> None:
    client = doors(**OPEN)
    bent = {"Origin": "http://evil.example", "Host": "evil.example"}
    assert client.post("/decide/x", headers=bent).status_code == 403
    ours = {"Origin": "http://localhost:8080", "Host": "localhost:8080"}
    assert client.post("/decide/x", headers=ours).status_code == 200


def test_behind_tls_only_a_page_that_came_by_tls_decides(doors: Any) -> None:
    client = doors(public_url="https://overread.hospital")
    shown = {**_bearer(TOKENS["operator"]), "Host": "overread.hospital"}
    for origin, status in (("https://overread.hospital", 200), ("http://overread.hospital", 403)):
        assert client.post("/decide/x", headers={**shown, "Origin": origin}).status_code == status


# --- Limits -----------------------------------------------------------------------------------------------------------


def test_one_address_that_asks_too_often_is_told_when_to_come_back(doors: Any, alerts: Alerts) -> None:
    client = doors(requests_per_minute=5)
    shown = _bearer(TOKENS["operator"])
    assert [client.get("/see", headers=shown).status_code for _ in range(5)] == [200] * 5
    answer = client.get("/see", headers=shown)
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 12
    assert alerts.of(Alert.RESTRICTED_FUNCTION) == ["requests beyond [api] requests_per_minute: refused"]
    for path in ("/health/live", "/static/page.css"):
        assert client.get(path).status_code == 200
    assert client.post("/dicom-web/of-the-tests", headers=shown, content=b"x").status_code == 200
    other = TestClient(client.app, client=("10.1.2.4", 1), base_url="http://here")
    assert other.get("/see", headers=shown).status_code == 200


def test_on_loopback_without_tokens_nothing_is_counted(doors: Any) -> None:
    client = doors(**OPEN, requests_per_minute=3)
    assert {client.get("/see").status_code for _ in range(10)} == {200}


def test_studies_are_not_counted_but_strangers_who_bring_some_are(doors: Any) -> None:
    client = doors(requests_per_minute=3)
    operator = _bearer(TOKENS["operator"])
    assert {client.post("/dicom-web/of-the-tests", headers=operator).status_code for _ in range(20)} == {200}
    answers = [client.post("/dicom-web/of-the-tests").status_code for _ in range(5)]
    assert answers == [401, 401, 401, 429, 429]


def test_a_bucket_fills_again_and_forgets_whom_it_has_not_seen_for_longest() -> None:
    now = [0.0]
    buckets = Buckets(60, lambda: now[0])
    for _ in range(60):
        buckets.take("a")
    assert buckets.is_empty("a")
    now[0] = 0.5
    assert buckets.is_empty("a")
    assert buckets.seconds("a") == 1
    now[0] = 1.0
    assert not buckets.is_empty("a")
    for number in range(20_000):
        buckets.take(str(number))
    assert len(buckets) == 10_000


@pytest.mark.parametrize(
    ("peer", "forwarded", "counts_as"),
    [
        ("10.9.0.1", "10.1.2.3", "10.1.2.3"),
        ("10.9.0.1", "6.6.6.6, 10.1.2.3", "10.1.2.3"),  # the first was made up by the caller
        ("10.9.0.1", "10.1.2.3, 10.9.0.2", "10.1.2.3"),
        ("10.9.0.1", "10.1.2.3:4711", "10.1.2.3"),
        ("10.9.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("::ffff:10.9.0.1", "10.1.2.3", "10.1.2.3"),
        ("10.9.0.1", "10.1.2.3, nonsense", "10.9.0.1"),
        ("10.9.0.1", "", "10.9.0.1"),
        ("10.8.0.1", "10.1.2.3", "10.8.0.1"),  # nobody whom we trust
    ],
)
def test_who_is_behind_a_trusted_proxy(peer: str, forwarded: str, counts_as: str, doors: Any) -> None:
    client = doors(address=peer, trusted_proxies=("10.9.0.0/24",))
    answer = client.get("/see", headers={**_bearer(TOKENS["viewer"]), "X-Forwarded-For": forwarded})
    assert answer.json()[2] == counts_as


@pytest.mark.parametrize(("address", "passes"), [("10.1.2.3", True), ("10.2.2.3", False), ("::ffff:10.1.9.9", True)])
def test_only_those_of_the_named_networks_come_in(address: str, passes: bool, doors: Any, alerts: Alerts) -> None:
    client = doors(address=address, addresses=("10.1.0.0/16",))
    answer = client.get("/see", headers={**_bearer(TOKENS["viewer"]), "X-Forwarded-For": "10.1.0.1"})
    assert answer.status_code == (200 if passes else 403)
    assert len(alerts.of(Alert.NODE_AUTHENTICATION)) == (0 if passes else 1)
    assert client.get("/health/live").status_code == 200, "probes come from the machine's own network"
    assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("how", ["announced", "in pieces"])
def test_a_body_has_a_largest_size(how: str, doors: Any, alerts: Alerts) -> None:
    client = doors(maximum_body_mib=3)
    shown = _bearer(TOKENS["operator"])

    def content(mib: int) -> Any:
        return bytes(mib << 20) if how == "announced" else (bytes(1 << 16) for _ in range(mib << 4))

    assert client.post("/body", content=content(1)).json() == 1 << 20
    assert not alerts
    answer = client.post("/body", content=content(2))
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert client.post("/dicom-web/of-the-tests", headers=shown, content=content(3)).json() == 3 << 20
    assert client.post("/dicom-web/of-the-tests", headers=shown, content=content(4)).status_code == 413
    assert {"a body of more than 1 MiB: refused", "a body of more than 3 MiB: refused"} <= {
        *alerts.of(Alert.RESTRICTED_FUNCTION)
    }


def test_a_body_that_stalls_or_trickles_is_ended(alerts: Alerts) -> None:
    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run(pause: float, pieces: int, size: int) -> int:
        sent: list[Message] = []
        left = iter(range(pieces))

        async def receive() -> Message:
            number = next(left)
            await asyncio.sleep(pause)
            return {"type": "http.request", "body": bytes(size), "more_body": number < pieces - 1}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/body", "headers": [], "client": ("10.1.2.3", 1)}
        await Bodies(reads, Api(), stall_seconds=0.5)(scope, receive, send)
        return int(sent[0]["status"])

    assert asyncio.run(run(0.0, 5, 10)) == 200
    assert asyncio.run(run(5.0, 2, 10)) == 408
    assert asyncio.run(run(0.2, 50, 1)) == 408, "each piece comes in time, the whole never"
    assert asyncio.run(run(0.2, 4, 10_000)) == 200, "not fast, but fast enough"
    assert alerts.of(Alert.RESTRICTED_FUNCTION) == ["a body that stalls or trickles: refused"] * 2


def test_headers_have_a_largest_number_and_size(doors: Any, alerts: Alerts) -> None:
    client = doors()
    assert client.get("/health/live", headers={f"x-{n}": "1" for n in range(120)}).status_code == 431
    assert client.get("/health/live", headers={"x": "1" * 40_000}).status_code == 431
    assert len(alerts.of(Alert.RESTRICTED_FUNCTION)) == 2


# --- Answers ----------------------------------------------------------------------------------------------------------

STRANGE = "Geheim^Name"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health/live", 200),
        ("GET", "/see", 200),
        ("GET", f"/{STRANGE}", 404),
        ("GET", f"/see/?{STRANGE}={STRANGE}", 404),
        ("DELETE", "/see", 405),
        ("GET", f"/api/v1/studies?state={STRANGE}", 422),
        ("GET", f"/api/v1/studies?limit={STRANGE}", 422),
        ("GET", "/api/v1/studies/1.2.3", 404),
        ("GET", "/break", 500),
    ],
)
def test_every_answer_is_strict_and_says_nothing_back(method: str, path: str, status: int, doors: Any) -> None:
    answer = doors().request(method, path, headers=_bearer(TOKENS["viewer"]))
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in STRICT} == STRICT
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers
    assert "strict-transport-security" not in answer.headers
    assert STRANGE not in answer.text
    assert "patient" not in answer.text
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert set(answer.json()) == {"type", "title", "status", "detail", "doing", "found", "rule", "way_out"}


@pytest.mark.parametrize("body", [f'{{"{STRANGE}": 1}}', '{"Geheim": 1}', '{"destination": {"Geheim": 1}}', '{"Geheim'])
def test_a_wrong_body_is_told_by_our_names_only(body: str, doors: Any) -> None:
    headers = {**_bearer(TOKENS["operator"]), "Content-Type": "application/json"}
    answer = doors().post("/api/v1/deliveries/retry", content=body, headers=headers)
    assert answer.status_code == 422
    assert "Geheim" not in answer.text
    assert "body" in answer.json()["found"]


def test_browsers_are_told_to_keep_to_tls_where_there_is_some(doors: Any) -> None:
    answer = doors(public_url="https://overread.hospital").get("/health/live")
    assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_strangers_learn_of_readiness_only_whether(doors: Any) -> None:
    client = doors(parts={"database": "", "disk": "1.0 GiB free"})
    assert (client.get("/health/ready").status_code, client.get("/health/ready").json()) == (503, {"ready": False})
    shown = client.get("/health/ready", headers=_bearer(TOKENS["viewer"])).json()
    assert shown == {"ready": False, "parts": {"database": "well", "disk": "1.0 GiB free"}}


def test_metrics_are_open_unless_the_site_closes_them(doors: Any) -> None:
    assert doors().get("/metrics").status_code == 200
    closed = doors(open_metrics=False)
    assert closed.get("/metrics").status_code == 401
    assert closed.get("/metrics", headers=_bearer(TOKENS["viewer"])).status_code == 200


def test_a_stream_passes_piece_by_piece(doors: Any) -> None:
    """What is streamed is not gathered first, or live views would never see anything."""
    client = doors()
    sent: list[bytes] = []

    async def pieces() -> Any:
        for _ in range(3):
            yield b"data: x\n\n"

    async def stream() -> StreamingResponse:
        return StreamingResponse(pieces(), media_type="text/event-stream")

    client.app.add_api_route("/stream", stream, response_model=None)

    async def run() -> None:
        async def receive() -> Message:
            await asyncio.sleep(0)
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body" and message["body"]:
                sent.append(message["body"])

        scope = {
            **{"type": "http", "method": "GET", "path": "/stream", "raw_path": b"/stream", "query_string": b""},
            **{"headers": [(b"host", b"here")], "client": ("10.1.2.3", 1), "server": ("here", 80), "scheme": "http"},
            **{"root_path": "", "http_version": "1.1", "asgi": {"version": "3.0", "spec_version": "2.3"}},
        }
        await client.app(scope, receive, send)

    asyncio.run(run())
    assert sent == [b"data: x\n\n"] * 3
