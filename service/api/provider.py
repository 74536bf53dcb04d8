"""What the OpenID Connect provider publishes of itself, its addresses and its keys (OpenID Connect Discovery 1.0); and
whether a token is of its making (RFC 7519, RFC 8725).
"""

from __future__ import annotations

import json
import math
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key, OctKey

from service import log
from service.errors import ProviderUnavailable
from service.handshakes import explain
from service.web import opener

# Signatures by a key pair only: with HS256 whoever knows the public key could sign, with "none" whoever likes.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")

_LEEWAY_SECONDS = 30  # between its clock and ours
_PATIENCE_SECONDS = 5.0
_LARGEST = 1 << 20  # bytes of an answer
_KEPT_SECONDS = 3600.0  # then it is asked anew; while it is away, what it said last counts
_PAUSE_SECONDS = 10.0  # after it did not answer
_KEYS_PAUSE_SECONDS = 60.0  # before it is asked again for a key that nobody knows: anybody can make one up


class ProviderFacts:
    """The provider's addresses and keys, asked for when they are needed, and seldom."""

    def __init__(
        self, issuer: str, context: Callable[[], ssl.SSLContext], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._issuer, self._context = issuer, context
        self._facts = _Kept[dict[str, Any]](clock)
        self._keys = _Kept[list[Key]](clock)

    def endpoint(self, name: str, *, needed: bool = True) -> str:
        """One of its addresses; empty if it has none, and none is needed.

        Raises
        ------
        ProviderUnavailable
            If it does not say.
        """
        found = self._facts.get(self._discover).get(name)
        if isinstance(found, str) and found.startswith(("https://", "http://")):
            return found
        if needed:
            raise away(self._issuer, f"it names no {name}")
        return ""

    def listed(self, name: str, *, default: tuple[str, ...]) -> tuple[str, ...]:
        """One of its lists."""
        found = self._facts.get(self._discover).get(name)
        return tuple(map(str, found)) if isinstance(found, list) else default

    def key(self, kid: str | None) -> Key | None:
        """The key of that identifier; without one, its only key."""

        def known(keys: list[Key]) -> Key | None:
            if kid is None:
                return keys[0] if len(keys) == 1 else None
            return next((key for key in keys if key.kid == kid), None)

        return known(self._keys.get(self._read_keys)) or known(
            self._keys.get(self._read_keys, again_after=_KEYS_PAUSE_SECONDS)
        )

    def asked(self, request: urllib.request.Request) -> dict[str, Any]:
        """What it answers, as an object.

        Raises
        ------
        HTTPError
            If it refuses.
        ProviderUnavailable
            If it does not answer, or something else.
        """
        place = request.full_url
        try:
            with opener(self._context()).open(request, timeout=_PATIENCE_SECONDS) as answer:
                found = json.loads(answer.read(_LARGEST))
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as exc:
            raise away(
                place, explain(exc.reason)[0] if isinstance(exc.reason, ssl.SSLError) else str(exc.reason)
            ) from exc
        except (OSError, ValueError) as exc:
            raise away(place, type(exc).__name__) from exc
        if not isinstance(found, dict):
            raise away(place, "no JSON object")
        return found

    def _discover(self) -> dict[str, Any]:
        place = self._issuer.rstrip("/") + "/.well-known/openid-configuration"
        facts = self._read(place)
        if facts.get("issuer") != self._issuer:  # section 4.3: else another could speak in its name
            raise away(place, "its issuer is not the one of [api.oidc], letter by letter")
        return facts

    def _read_keys(self) -> list[Key]:
        place = self.endpoint("jwks_uri")
        keys: list[Key] = []
        published = self._read(place).get("keys")
        for entry in published if isinstance(published, list) else []:
            try:
                key = JWKRegistry.import_key(entry)
            except (JoseError, ValueError, TypeError, KeyError):
                continue  # of a kind that nobody here knows (RFC 7517 section 5)
            # A shared secret is no public key, and one for encryption signs nothing.
            if not isinstance(key, OctKey) and entry.get("use", "sig") == "sig":
                keys.append(key)
        if not keys:
            raise away(place, "no public key of a known kind")
        return keys

    def _read(self, place: str) -> dict[str, Any]:
        try:
            return self.asked(urllib.request.Request(place, headers={"Accept": "application/json"}))
        except urllib.error.HTTPError as exc:
            raise away(place, f"status {exc.code}") from exc


def verified(
    token: str, facts: ProviderFacts, *, issuer: str, audience: str, nonce: str | None = None
) -> dict[str, Any]:
    """The claims of a token, once its signature, issuer, audience and times are right.

    Parameters
    ----------
    nonce
        That of the sign-in for which an ID token was made; none: it is an access token.

    Raises
    ------
    NotGenuine
        If one of them is not.
    ProviderUnavailable
        If the provider's keys can't be had.
    """
    rules: dict[str, Any] = {
        "iss": {"essential": True, "value": issuer},
        "aud": {"essential": True, "value": audience},
        "exp": {"essential": True},
        "sub": {"essential": True},
    }
    if nonce is not None:
        rules["nonce"] = {"essential": True, "value": nonce}
    try:
        kid = jws.extract_compact(token.encode("utf-8", "replace")).headers().get("kid")
        key = facts.key(kid) if isinstance(kid, str | None) else None
        if key is None:
            raise NotGenuine("the token is signed by none of the provider's keys")
        claims = jwt.decode(token, key, algorithms=ALGORITHMS).claims
        jwt.JWTClaimsRegistry(leeway=_LEEWAY_SECONDS, **rules).validate(claims)
    except (JoseError, ValueError, TypeError) as exc:
        raise NotGenuine(f"the token does not hold ({type(exc).__name__})") from exc
    return claims


class NotGenuine(Exception):
    """A token, or an answer to a sign-in, that is not the provider's for us; in words without anything of it."""


def away(place: str, found: str) -> ProviderUnavailable:
    """The provider does not say what we need."""
    return ProviderUnavailable(
        doing=f"asking the OpenID Connect provider at {place}",
        found=found,
        rule="the provider of [api.oidc] answers there, by TLS that ca_file or the system trusts",
        way_out="see whether it runs and [api.oidc] names it; tokens of [[api.tokens]] count meanwhile",
    )


T = TypeVar("T")


class _Kept(Generic[T]):
    """Something that the provider published, as it was read last."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._value: T | None = None
        self._read_at = self._tried_at = -math.inf
        self._why: dict[str, str] = {}

    def get(self, read: Callable[[], T], *, again_after: float = _KEPT_SECONDS) -> T:
        """It, read again if that was so long ago; as it was, while the provider is away."""
        with self._lock:  # whoever needs it meanwhile waits for the same answer
            now = self._clock()
            if now - self._read_at >= again_after and now - self._tried_at >= _PAUSE_SECONDS:
                self._tried_at = now
                try:
                    self._value, self._read_at = read(), now
                except ProviderUnavailable as exc:
                    self._why = exc.parts()
                    log.warning("oidc.away", exc)
            if self._value is None:
                raise ProviderUnavailable(**self._why)
            return self._value
