"""The hospital's OpenID Connect provider: where somebody signs in, and how we know that it says so.

Authorization code flow with PKCE (OpenID Connect Core 1.0 section 3.1, RFC 7636) for browsers; signed access tokens
(RFC 9068) as bearer tokens for programs.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from service.api.provider import NotGenuine, ProviderFacts, away, verified
from service.errors import ConfigError
from service.settings.doors import ClientTls, Oidc, Role
from service.tls import reloading_client

_SIGNS_OF_A_NAME = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Whom the provider named."""

    name: str  # for the audit trail
    role: Role | None  # none: no group of his may do anything here


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A sign-in that has begun: what the browser carries meanwhile, so that only it can end it."""

    state: str
    nonce: str
    verifier: str  # of PKCE


def begin() -> Begun:
    """A new sign-in."""
    return Begun(state=secrets.token_urlsafe(24), nonce=secrets.token_urlsafe(24), verifier=secrets.token_urlsafe(48))


class Provider:
    """The provider, as the configuration names it. It is asked when somebody signs in, not before.

    Raises
    ------
    ConfigError
        If our own secret, or the authorities to be believed, can't be read.
    """

    def __init__(self, oidc: Oidc) -> None:
        self._oidc = oidc
        self._facts = ProviderFacts(oidc.issuer, reloading_client(ClientTls(ca_file=oidc.ca_file)))
        self._secret()

    def address(self, begun: Begun, *, back_to: str) -> str:
        """Where a browser is sent to sign in.

        Raises
        ------
        ProviderUnavailable
            If the provider does not say where.
        """
        digest = hashlib.sha256(begun.verifier.encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": self._oidc.client_id,
            "redirect_uri": back_to,
            "scope": " ".join(self._oidc.scopes),
            "state": begun.state,
            "nonce": begun.nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        place = self._facts.endpoint("authorization_endpoint")
        return f"{place}{'&' if '?' in place else '?'}{urlencode(asked)}"

    def finish(self, begun: Begun, answer: Mapping[str, str], *, back_to: str) -> Person:
        """Who signed in, by what the provider sent the browser back with.

        Raises
        ------
        NotGenuine
            If it is no answer to this sign-in, or refuses it.
        ProviderUnavailable
            If the provider does not answer us.
        """
        if not hmac.compare_digest(answer.get("state", "").encode(), begun.state.encode()):
            raise NotGenuine("the answer belongs to another sign-in")
        if answer.get("iss", self._oidc.issuer) != self._oidc.issuer:  # RFC 9207
            raise NotGenuine("the answer is another provider's")
        if not answer.get("code"):
            raise NotGenuine("the provider did not let this user in")
        tokens = self._exchange(answer["code"], begun.verifier, back_to)
        claims = verified(
            str(tokens.get("id_token", "")),
            self._facts,
            issuer=self._oidc.issuer,
            audience=self._oidc.client_id,
            nonce=begun.nonce,
        )
        if isinstance(claims["aud"], list) and len(claims["aud"]) > 1 and claims.get("azp") != self._oidc.client_id:
            raise NotGenuine("the token was made for another client")
        if _found(claims, self._oidc.role_claim) is None:  # some name roles only where they are asked for the user
            claims = {**self._user(str(tokens.get("access_token", "")), claims["sub"]), **claims}
        return self._person(claims)

    def bearer(self, token: str) -> Person:
        """Whose access token it is.

        Raises
        ------
        NotGenuine
            If it is none of this provider's for us, or has ended.
        ProviderUnavailable
            If the provider's keys can't be had.
        """
        audience = self._oidc.audience or self._oidc.client_id
        return self._person(verified(token, self._facts, issuer=self._oidc.issuer, audience=audience))

    def _exchange(self, code: str, verifier: str, back_to: str) -> dict[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": back_to,
            "code_verifier": verifier,
            "client_id": self._oidc.client_id,
        }
        headers = {"Accept": "application/json"}
        secret = self._secret()
        if secret and "client_secret_basic" in self._facts.listed(
            "token_endpoint_auth_methods_supported", default=("client_secret_basic",)
        ):
            pair = f"{quote(self._oidc.client_id, safe='')}:{quote(secret, safe='')}"  # RFC 6749 section 2.3.1
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        elif secret:
            form["client_secret"] = secret
        place = self._facts.endpoint("token_endpoint")
        request = urllib.request.Request(place, urlencode(form).encode(), headers)
        try:
            return self._facts.asked(request)
        except urllib.error.HTTPError as exc:
            if exc.code not in (400, 401):
                raise away(place, f"status {exc.code}") from exc
            raise NotGenuine(f"the provider did not redeem the code (status {exc.code})") from exc

    def _user(self, token: str, subject: str) -> dict[str, Any]:
        """What the provider says of a user beside his ID token (OpenID Connect Core 1.0 section 5.3)."""
        place = self._facts.endpoint("userinfo_endpoint", needed=False)
        if not place or not token:
            return {}
        request = urllib.request.Request(place, headers={"Authorization": f"Bearer {token}"})
        try:
            claims = self._facts.asked(request)
        except urllib.error.HTTPError as exc:
            raise away(place, f"status {exc.code}") from exc
        if claims.get("sub") != subject:
            raise NotGenuine("the provider speaks of another user")
        return claims

    def _person(self, claims: Mapping[str, Any]) -> Person:
        named = next(
            (claims[key] for key in ("preferred_username", "email") if isinstance(claims.get(key), str)), claims["sub"]
        )
        name = "".join(sign for sign in named if sign.isprintable())[:_SIGNS_OF_A_NAME]
        found = _found(claims, self._oidc.role_claim)
        groups = {found} if isinstance(found, str) else {it for it in found or () if isinstance(it, str)}
        roles: tuple[tuple[Role, tuple[str, ...]], ...] = (
            ("admin", self._oidc.admins),
            ("operator", self._oidc.operators),
            ("viewer", self._oidc.viewers),
        )
        return Person(name=name, role=next((role for role, those in roles if groups & set(those)), None))

    def _secret(self) -> str:
        """Ours, read each time: it may be changed without a stop."""
        file = self._oidc.client_secret_file
        if file is None:
            return ""
        try:
            secret = file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise _no_secret(f"{file}: {getattr(exc, 'strerror', None) or 'it is no text'}") from exc
        if not secret:
            raise _no_secret(f"{file} is empty")
        return secret


def _found(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by the way that leads into it."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, str | list) else None


def _no_secret(found: str) -> ConfigError:
    return ConfigError(
        doing="reading our secret for the OpenID Connect provider",
        found=found,
        rule="[api.oidc] client_secret_file is a file with the secret, which the service may read",
        way_out="put it there, or leave client_secret_file out where the provider gave none",
    )
