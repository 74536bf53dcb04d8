"""Signing in at a real OpenID Connect provider; and whose tokens count, and whose never."""

from __future__ import annotations

import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi.testclient import TestClient
from joserfc import jwt
from joserfc.jwk import Key, RSAKey

from service.api import provider
from service.api.app import create_app
from service.api.doors import Admin, Viewer
from service.audit import Alert
from service.errors import ConfigError
from tests.http_side import TOKENS, Alerts, config_of, record_alerts, seen_of
from tests.oidc import AUDIENCE, Hospital, new_keys

HERE = "https://overread.hospital"
BACK_TO = f"{HERE}/signin/oidc/callback"
PAGE = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    made = Hospital(folder=tmp_path_factory.mktemp("provider"), back_to=BACK_TO)
    with made.running():
        yield made


@pytest.fixture
def alerts(monkeypatch: pytest.MonkeyPatch) -> Alerts:
    return record_alerts(monkeypatch)


@pytest.fixture
def doors(tmp_path: Path, alerts: Alerts) -> Iterator[Any]:
    """Makes an application that knows a provider."""
    with ExitStack() as stack:

        def make(hospital: Hospital, **oidc: Any) -> TestClient:
            config = config_of(tmp_path, oidc=hospital.settings(**oidc), public_url=HERE)
            app = create_app(stack.enter_context(seen_of(config)))

            @app.get("/see")
            def see(caller: Viewer) -> list[str]:
                return [caller.name, caller.role]

            @app.get("/rule")
            def rule(caller: Admin) -> str:
                return caller.name

            return TestClient(app, follow_redirects=False, client=("10.1.2.3", 1), base_url=HERE)

        yield make


def _sign_in(client: TestClient, hospital: Hospital, name: str) -> Any:
    begun = client.get("/signin/oidc?next=/see")
    assert begun.status_code == 303
    return client.get(hospital.sign_in(begun.headers["location"], name))


def _shown(client: TestClient, token: str) -> Any:
    return client.get("/see", headers={"Authorization": f"Bearer {token}"})


# --- Browsers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "role"), [("ada", "admin"), ("bob", "viewer")])
def test_somebody_signs_in_with_the_role_of_his_groups(
    name: str, role: str, hospital: Hospital, doors: Any, alerts: Alerts
) -> None:
    client = doors(hospital)
    assert 'href="/signin/oidc?next=%2Fsee"' in client.get("/signin?next=/see").text.replace("/see", "%2Fsee")
    answer = _sign_in(client, hospital, name)
    assert answer.status_code == 200
    assert 'content="0;url=/see"' in answer.text, "a redirect would not carry the strict cookie"
    cookies = {line.partition("=")[0]: line for line in answer.headers.get_list("set-cookie")}
    assert "SameSite=strict" in cookies["__Host-overread"]
    assert "Max-Age=0" in cookies["__Host-overread-signin"]
    assert client.get("/see", headers=PAGE).json() == [name, role]
    assert client.get("/rule").status_code == (200 if role == "admin" else 403)
    assert (alerts[0]["kind"], alerts[0]["user"], alerts[0]["succeeded"]) == (Alert.USER_AUTHENTICATION, name, True)


def test_somebody_without_a_group_of_ours_may_nothing(hospital: Hospital, doors: Any, alerts: Alerts) -> None:
    client = doors(hospital)
    answer = _sign_in(client, hospital, "cid")
    assert answer.status_code == 403
    assert "__Host-overread=" not in answer.headers.get("set-cookie", "")
    assert client.get("/see").status_code == 401
    assert (alerts[0]["kind"], alerts[0]["user"]) == (Alert.USER_RIGHTS, "cid")


@pytest.mark.parametrize(
    ("client_entry", "claims_at_userinfo"),
    [
        ({"id_token_signed_response_alg": "ES256"}, False),
        ({"id_token_signed_response_alg": "PS256", "token_endpoint_auth_method": "client_secret_post"}, True),
        ({"token_endpoint_auth_method": "none", "grant_types": ["authorization_code"]}, False),
    ],
    ids=["ES256", "PS256, secret in the body, claims elsewhere", "no secret"],
)
def test_providers_differ(client_entry: dict[str, Any], claims_at_userinfo: bool, tmp_path: Path, doors: Any) -> None:
    (tmp_path / "p").mkdir()
    other = Hospital(folder=tmp_path / "p", back_to=BACK_TO, client=client_entry, claims_at_userinfo=claims_at_userinfo)
    public = client_entry.get("token_endpoint_auth_method") == "none"
    if public:
        other.client["client_secret"] = None
    with other.running():
        client = doors(other, **({"client_secret_file": None} if public else {}))
        _sign_in(client, other, "ada")
        assert client.get("/see").json() == ["ada", "admin"]


def test_an_answer_belongs_to_the_browser_that_asked_and_to_no_other(
    hospital: Hospital, doors: Any, alerts: Alerts
) -> None:
    victim, other = doors(hospital), doors(hospital)
    theirs = hospital.sign_in(other.get("/signin/oidc").headers["location"], "ada")
    assert victim.get(theirs).status_code == 401, "it has not even begun to sign in"
    victim.get("/signin/oidc")
    assert victim.get(theirs).status_code == 401, "it is signed in as nobody else"
    assert victim.get("/see").status_code == 401
    assert len(alerts.of(Alert.USER_AUTHENTICATION)) == 3
    assert other.get(theirs).status_code == 200
    again = other.get(theirs)
    assert again.status_code == 401, "a code counts once"


@pytest.mark.parametrize("change", ["state", "iss", "code", "error"])
def test_an_answer_that_was_changed_on_the_way_is_refused(
    change: str, hospital: Hospital, doors: Any, alerts: Alerts
) -> None:
    client = doors(hospital)
    answer = hospital.sign_in(client.get("/signin/oidc").headers["location"], "ada")
    asked = {key: values[0] for key, values in parse_qs(urlsplit(answer).query).items()}
    assert set(asked) == {"state", "iss", "code"}
    if change == "error":
        asked = {"state": asked["state"], "error": "<script>alert(1)</script>"}
    else:
        asked[change] = "https://evil.example"
    got = client.get("/signin/oidc/callback", params=asked)
    assert got.status_code == 401
    assert "evil" not in got.text
    assert "<script" not in got.text
    assert client.get("/see").status_code == 401
    assert len(alerts.of(Alert.USER_AUTHENTICATION)) == 2


def test_an_id_token_with_another_nonce_is_refused(hospital: Hospital, doors: Any, alerts: Alerts) -> None:
    """As if the answer to another sign-in were put in the place of this one's."""
    client = doors(hospital)
    address = client.get("/signin/oidc").headers["location"]
    nonce = parse_qs(urlsplit(address).query)["nonce"][0]
    answer = hospital.sign_in(address.replace(nonce, "another"), "ada")
    assert client.get(answer).status_code == 401
    assert alerts.of(Alert.USER_AUTHENTICATION) == [
        "sign-in at the provider: refused, the token does not hold (InvalidClaimError)"
    ]


# --- Programs ---------------------------------------------------------------------------------------------------------


def test_a_program_shows_the_provider_s_access_token(hospital: Hospital, doors: Any) -> None:
    client = doors(hospital)
    assert _shown(client, hospital.access_token()).json() == ["overread", "viewer"]
    assert _shown(client, TOKENS["admin"]).json() == ["a-admin", "admin"]


def _claims(hospital: Hospital, **changed: Any) -> dict[str, Any]:
    now = int(time.time())
    good = {"iss": hospital.issuer, "aud": AUDIENCE, "sub": "x", "exp": now + 300, "iat": now, "groups": ["it-admins"]}
    return {key: value for key, value in {**good, **changed}.items() if value is not None}


def _signed(key: Key, alg: str, claims: dict[str, Any], **head: Any) -> str:
    return jwt.encode({"alg": alg, **head}, claims, key, algorithms=[alg])


def _text(head: dict[str, Any]) -> str:
    return urlsafe_b64encode(json.dumps(head).encode()).decode().rstrip("=")


def _forgeries(hospital: Hospital) -> dict[str, str]:
    rsa, ec = hospital.keys.keys
    assert isinstance(rsa, RSAKey)
    now = int(time.time())
    good = _claims(hospital)
    body = _signed(rsa, "RS256", good, kid=rsa.kid).split(".")[1]
    as_secret = f"{_text({'alg': 'HS256', 'kid': rsa.kid})}.{body}"
    by_public_key = hmac.digest(rsa.as_pem(private=False), as_secret.encode(), "sha256")
    stranger = new_keys().keys[0]

    def changed(**claims: Any) -> str:
        return _signed(rsa, "RS256", _claims(hospital, **claims), kid=rsa.kid)

    return {
        "none": f"{_text({'alg': 'none'})}.{body}.",
        "none, with the kid": f"{_text({'alg': 'none', 'kid': rsa.kid})}.{body}.",
        "HS256 with the public key": f"{as_secret}.{urlsafe_b64encode(by_public_key).decode().rstrip('=')}",
        "a stranger's key": _signed(stranger, "RS256", good, kid=stranger.kid),
        "a stranger's key under a kid of the provider": _signed(stranger, "RS256", good, kid=rsa.kid),
        "a stranger's key, sent along": _signed(stranger, "RS256", good, jwk=stranger.as_dict(private=False)),
        "the other key's kid": _signed(rsa, "RS256", good, kid=ec.kid),
        "no kid": _signed(rsa, "RS256", good),
        "another issuer": changed(iss="https://evil.example"),
        "no issuer": changed(iss=None),
        "for another": changed(aud="another-api"),
        "for our client, not our API": changed(aud="overread"),
        "for nobody": changed(aud=None),
        "expired": changed(exp=now - 60),
        "never expiring": changed(exp=None),
        "not yet valid": changed(nbf=now + 600),
        "nobody": changed(sub=None),
        "a number for a name": changed(sub=7),
        "no claims": ".".join((_signed(rsa, "RS256", good, kid=rsa.kid).split(".")[0], "W10", "AAAA")),
        "no token": "a.b.c",
        "no Base64": "\u00fc.\u00fc.\u00fc",
    }


def test_forged_tokens_are_refused(hospital: Hospital, doors: Any, alerts: Alerts) -> None:
    client = doors(hospital)
    rsa, ec = hospital.keys.keys
    for key, alg in ((rsa, "RS256"), (rsa, "PS384"), (ec, "ES256")):
        good = _signed(key, alg, _claims(hospital), kid=key.kid)
        assert _shown(client, good).json() == ["x", "admin"], "the forgeries differ from a good one by what they name"
    forged = _forgeries(hospital)
    for what, token in forged.items():
        answer = client.get("/see", headers={"Authorization": f"Bearer {token}".encode()})
        assert answer.status_code == 401, what
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"', what
    assert len(alerts.of(Alert.USER_AUTHENTICATION)) == len(forged)


# --- The provider's keys, and its absence -----------------------------------------------------------------------------


def test_the_provider_changes_its_keys(tmp_path: Path, doors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p").mkdir()
    other = Hospital(folder=tmp_path / "p", back_to=BACK_TO)
    with other.running():
        client = doors(other)
        old = other.access_token()
        assert _shown(client, old).status_code == 200
    other.keys = new_keys()
    with other.running():
        new = other.access_token()
        assert _shown(client, new).status_code == 401, "it was asked just now"
        monkeypatch.setattr(provider, "_KEYS_PAUSE_SECONDS", 0.0)
        monkeypatch.setattr(provider, "_PAUSE_SECONDS", 0.0)
        assert _shown(client, new).status_code == 200
        assert _shown(client, old).status_code == 401, "its old keys count no longer"


def test_while_the_provider_is_away_tokens_count(tmp_path: Path, doors: Any) -> None:
    (tmp_path / "p").mkdir()
    away = Hospital(folder=tmp_path / "p", back_to=BACK_TO)
    client = doors(away)
    assert _shown(client, TOKENS["viewer"]).json() == ["a-viewer", "viewer"]
    answer = _shown(client, "a.b.c".replace("a", "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ"))
    assert answer.status_code in (401, 503)
    good = _signed(away.keys.keys[0], "RS256", _claims(away), kid="x")
    answer = _shown(client, good)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "10"
    assert "Connection refused" in answer.json()["found"]
    page = client.get("/signin/oidc?next=/see")
    assert page.status_code == 503
    assert "does not answer" in page.text
    assert 'name="token"' in page.text, "who has a token signs in by it"


def test_a_provider_whose_certificate_nobody_trusts_is_away(tmp_path: Path, hospital: Hospital, doors: Any) -> None:
    (tmp_path / "p").mkdir()
    stranger = Hospital(folder=tmp_path / "p", back_to=BACK_TO)
    client = doors(hospital, ca_file=stranger.folder / "ca.pem")
    answer = _shown(client, _signed(hospital.keys.keys[0], "RS256", _claims(hospital), kid="x"))
    assert answer.status_code == 503
    assert "ca_file" in answer.json()["found"]


def test_another_s_metadata_are_not_believed(hospital: Hospital, doors: Any) -> None:
    client = doors(hospital, issuer=hospital.issuer.replace("127.0.0.1", "localhost"))
    assert client.get("/signin/oidc").status_code == 503


def test_it_is_asked_seldom_and_its_last_word_counts_while_it_is_away() -> None:
    now, asked = [0.0], [0]

    def read() -> int:
        asked[0] += 1
        if now[0] > 100:
            raise provider.away("https://provider", "no answer")
        return asked[0]

    kept = provider._Kept[int](lambda: now[0])
    assert [kept.get(read), kept.get(read), kept.get(read, again_after=60.0)] == [1, 1, 1]
    now[0] = 59.0
    assert kept.get(read, again_after=60.0) == 1
    now[0] = 60.0
    assert [kept.get(read, again_after=60.0), kept.get(read, again_after=60.0)] == [2, 2]
    now[0] = 3700.0
    assert [kept.get(read), kept.get(read)] == [2, 2]
    assert asked == [3], "while it is away it is not asked at every turn"
    now[0] = 3711.0
    kept.get(read)
    assert asked == [4]


@pytest.mark.parametrize("secret", [None, "", "\n"])
def test_no_start_without_our_secret(secret: str | None, tmp_path: Path, doors: Any) -> None:
    (tmp_path / "p").mkdir()
    hospital = Hospital(folder=tmp_path / "p", back_to=BACK_TO)
    (hospital.folder / "secret").unlink()
    if secret is not None:
        (hospital.folder / "secret").write_text(secret)
    with pytest.raises(ConfigError, match="client_secret_file"):
        doors(hospital)
