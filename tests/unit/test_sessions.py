"""Signing in with a browser by a token: what it carries, how long, and what it is not fooled by."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from joserfc import jwt
from joserfc.jwk import OctKey

from service.api.app import create_app
from service.api.doors import Operator, Viewer
from service.api.sessions import session_key
from service.api.signin import local
from service.audit import Alert
from service.errors import ConfigError
from tests.http_side import TOKENS, Alerts, config_of, record_alerts, seen_of

PAGE = {"Accept": "text/html,*/*"}
OURS = {"Origin": "http://here"}


@pytest.fixture
def alerts(monkeypatch: pytest.MonkeyPatch) -> Alerts:
    return record_alerts(monkeypatch)


@pytest.fixture
def doors(tmp_path: Path, alerts: Alerts) -> Iterator[Any]:
    stack = []

    def make(base_url: str = "http://here", **api: Any) -> TestClient:
        context = seen_of(config_of(tmp_path, **api))
        app = create_app(context.__enter__())
        stack.append(context)

        @app.get("/see")
        def see(caller: Viewer) -> list[str]:
            return [caller.name, caller.role]

        @app.post("/decide")
        def decide(caller: Operator) -> list[str]:
            return [caller.name, caller.role]

        return TestClient(app, follow_redirects=False, client=("10.1.2.3", 1), base_url=base_url)

    yield make
    for context in stack:
        context.__exit__(None, None, None)


def _sign_in(client: TestClient, role: str = "viewer", next: str = "/see") -> Any:
    form = {"token": TOKENS[role], "next": next}
    return client.post("/signin", data=form, headers={"Origin": str(client.base_url).rstrip("/")})


def test_a_browser_is_sent_to_sign_in_and_back(doors: Any, alerts: Alerts) -> None:
    client = doors()
    sent = client.get("/see?page=2", headers=PAGE)
    assert (sent.status_code, sent.headers["location"]) == (303, "/signin?next=%2Fsee%3Fpage%3D2")
    form = client.get(sent.headers["location"], headers=PAGE)
    assert form.status_code == 200
    assert 'name="next" value="/see?page=2"' in form.text
    assert 'href="/signin/oidc' not in form.text
    assert not alerts, "who has not signed in yet is no danger"
    answer = _sign_in(client, next="/see?page=2")
    assert (answer.status_code, answer.headers["location"]) == (303, "/see?page=2")
    assert client.get("/see", headers=PAGE).json() == ["a-viewer", "viewer"]
    (alert,) = alerts
    assert (alert["kind"], alert["user"], alert["succeeded"]) == (Alert.USER_AUTHENTICATION, "a-viewer", True)
    assert client.get("/signin?next=/see").headers["location"] == "/see"
    assert client.get("/signin/style.css").headers["content-type"].startswith("text/css")


def test_a_program_is_not_sent_anywhere(doors: Any) -> None:
    assert doors().get("/see", headers={"Accept": "application/json"}).status_code == 401


@pytest.mark.parametrize("token", ["", "wrong", TOKENS["viewer"][:-1], "<script>alert(1)</script>"])
def test_a_wrong_token_signs_nobody_in(token: str, doors: Any, alerts: Alerts) -> None:
    client = doors()
    answer = client.post("/signin", data={"token": token, "next": "/see"}, headers=OURS)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "<script" not in answer.text
    assert "not known here" in answer.text
    assert alerts.of(Alert.USER_AUTHENTICATION) == ["sign-in at the page: refused, a wrong token"]


def test_the_cookie_is_out_of_reach(doors: Any) -> None:
    plain = _sign_in(doors()).headers["set-cookie"]
    assert plain.startswith("overread=")
    assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=28800"} <= {it.strip() for it in plain.split(";")}
    assert "Secure" not in plain
    guarded = _sign_in(doors("https://here", public_url="https://here")).headers["set-cookie"]
    assert guarded.startswith("__Host-overread=")
    assert {"HttpOnly", "SameSite=strict", "Path=/", "Secure"} <= {it.strip() for it in guarded.split(";")}
    assert "Domain" not in guarded


def test_signing_out_is_forgetting(doors: Any) -> None:
    client = doors()
    _sign_in(client)
    assert client.post("/signout", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/see", headers=PAGE).status_code == 200
    assert client.post("/signout", headers=OURS).headers["location"] == "/signin"
    assert client.get("/see", headers=PAGE).status_code == 303


def test_a_sign_in_ends(doors: Any, monkeypatch: pytest.MonkeyPatch, alerts: Alerts) -> None:
    client = doors(session_hours=2)
    cookie = {"Cookie": _sign_in(client).headers["set-cookie"].partition(";")[0]}
    client.cookies.clear()
    later = time.time() + 2 * 3600 - 60
    monkeypatch.setattr(time, "time", lambda: later)
    assert client.get("/see", headers=cookie).status_code == 200
    monkeypatch.setattr(time, "time", lambda: later + 61)
    assert client.get("/see", headers={**cookie, **PAGE}).status_code == 303
    assert len(alerts) == 1, "that it has ended is no attack"


@pytest.mark.parametrize(
    "headers", [OURS, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {}]
)
def test_only_our_own_page_decides_with_the_cookie(headers: dict[str, str], doors: Any) -> None:
    client = doors()
    _sign_in(client, "operator")
    ours = headers == OURS or "Sec-Fetch-Site" in headers
    assert client.post("/decide", headers=headers).status_code == (200 if ours else 403)


def test_a_viewer_who_is_signed_in_decides_nothing(doors: Any, alerts: Alerts) -> None:
    client = doors()
    _sign_in(client)
    assert client.post("/decide", headers=OURS).status_code == 403
    assert alerts.of(Alert.USER_RIGHTS) == ["POST /decide: refused, a viewer is no operator"]


def test_with_a_token_that_was_changed_or_taken_away_the_sign_in_goes(doors: Any, tmp_path: Path) -> None:
    client = doors()
    _sign_in(client)
    others = tuple({"name": name, "role": "admin", "file": tmp_path / "admin.token"} for name in ("a-viewer",))
    for after in (doors(tokens=others), doors(tokens=({"name": "b", "role": "viewer", "sha256": "0" * 64},))):
        after.cookies = client.cookies
        assert after.get("/see").status_code == 401
    (tmp_path / "viewer.token").write_text("another-token-of-the-tests")
    assert client.get("/see").status_code == 401
    (tmp_path / "viewer.token").write_text(TOKENS["viewer"])
    assert client.get("/see").status_code == 200


def test_a_sign_in_has_the_token_s_role_of_today(doors: Any, tmp_path: Path) -> None:
    before = doors()
    _sign_in(before)
    after = doors(tokens=({"name": "a-viewer", "role": "operator", "file": tmp_path / "viewer.token"},))
    after.cookies = before.cookies
    assert after.get("/see").json() == ["a-viewer", "operator"]


def test_another_process_of_the_site_knows_who_is_signed_in(doors: Any) -> None:
    one, two = doors(), doors()
    _sign_in(one)
    two.cookies = one.cookies
    assert two.get("/see").json() == ["a-viewer", "viewer"]


def _forged(key: bytes, claims: dict[str, Any], alg: str = "HS256") -> str:
    return jwt.encode({"alg": alg}, claims, OctKey.import_key(key), algorithms=[alg])


def test_cookies_of_others_making_are_refused(doors: Any, tmp_path: Path, alerts: Alerts) -> None:
    client = doors()
    real = _sign_in(client).headers["set-cookie"].partition(";")[0].partition("=")[2]
    client.cookies.clear()
    alerts.clear()
    key = session_key(tmp_path)
    good = jwt.decode(real, OctKey.import_key(key)).claims
    assert client.get("/see", headers={"Cookie": f"overread={_forged(key, good)}"}).status_code == 200
    head, body, signature = real.split(".")
    forged = [
        _forged(b"another key of as many bytes 123", good),
        _forged(key, {**good, "aud": "signin"}),  # a sign-in that has only begun
        _forged(key, good, "HS512"),
        "eyJhbGciOiJub25lIn0." + body + ".",
        f"{head}.{body}.{signature[:-2]}AA",
        f"{head}.{body[:-4]}AAAA.{signature}",
        "x",
        "..",
    ]
    for cookie in forged:
        assert client.get("/see", headers={"Cookie": f"overread={cookie}"}).status_code == 401, cookie
    assert len(alerts.of(Alert.USER_AUTHENTICATION)) == len(forged)
    assert "GET /see: refused, a sign-in that is not of our making" in alerts.of(Alert.USER_AUTHENTICATION)
    assert client.get("/see", headers={"Cookie": f"overread={real}"}).status_code == 200


def test_a_sign_in_of_the_provider_counts_only_where_there_is_one(doors: Any, tmp_path: Path) -> None:
    claims = {"by": "oidc", "name": "x", "role": "admin", "aud": "session", "exp": 1 << 33}
    client = doors()
    assert (
        client.get("/see", headers={"Cookie": f"overread={_forged(session_key(tmp_path), claims)}"}).status_code == 401
    )


@pytest.mark.parametrize(
    ("address", "goes_to"),
    [
        ("/studies/1.2.3?finding=1&window=lung", "/studies/1.2.3?finding=1&window=lung"),
        ("/", "/"),
        ("", "/"),
        ("studies", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/%2f", "/%2f"),
        ("https://evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\r\nSet-Cookie: x=y", "/"),
        ("/\t/evil.example", "/"),
        ("/a\x00", "/"),
        ("/ü", "/"),
        ("/" + "a" * 3000, "/"),
    ],
)
def test_after_signing_in_one_stays_here(address: str, goes_to: str, doors: Any) -> None:
    assert local(address) == goes_to
    client = doors()
    assert _sign_in(client, next=address).headers.get("location", goes_to) == goes_to
    _sign_in(client)
    got = client.get("/signin", params={"next": address})
    assert got.headers["location"] == goes_to
    assert got.status_code == 303


def test_what_stands_in_the_form_is_escaped(doors: Any) -> None:
    text = doors().get("/signin", params={"next": '/"><script>alert(1)</script>'}).text
    assert "<script" not in text


def test_a_link_on_another_s_page_leads_in_whoever_is_signed_in(doors: Any) -> None:
    """The browser keeps its strict cookie to itself on the way here, and shows it when our own page asks again."""
    answer = doors().get("/signin?next=/see", headers={**PAGE, "Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200
    assert '<meta http-equiv="refresh" content="0;url=/see">' in answer.text


def test_the_key_is_made_once_and_for_us_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(lambda _: session_key(tmp_path / "new"), range(64)))
    assert len(keys) == 1
    assert len(keys.pop()) == 32
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["session.key"]
    assert stat.S_IMODE((tmp_path / "new" / "session.key").stat().st_mode) == 0o600


def test_a_spoilt_key_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "session.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes"):
        session_key(tmp_path)


def test_where_nobody_signs_in_no_key_is_made(doors: Any, tmp_path: Path) -> None:
    doors(tokens=())
    assert not (tmp_path / "session.key").exists()
