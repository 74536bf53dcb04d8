"""What a browser carries: signed, short-lived cookies. Nothing is remembered here: any process of a site reads them."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any, Literal

from fastapi import Request, Response
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from service.errors import ConfigError
from service.files import make_folder, sync_folder

Kind = Literal["session", "signin"]  # who is signed in; a sign-in at the provider that has begun

_BYTES = 32
_ALGORITHM = "HS256"


class Forged(Exception):
    """A cookie that is not of our making."""


class Cookies:
    """Signs cookies, and reads those that it signed.

    Parameters
    ----------
    key
        Of the signatures (HMAC-SHA256).
    secure
        Whether browsers reach us by TLS only: the cookies then never travel without (RFC 6265bis, ``__Host-``).
    """

    def __init__(self, key: bytes, *, secure: bool) -> None:
        self._key = OctKey.import_key(key)
        self._secure = secure

    def name(self, kind: Kind) -> str:
        """The cookie's name."""
        return ("__Host-" if self._secure else "") + ("overread" if kind == "session" else "overread-signin")

    def put(self, response: Response, kind: Kind, claims: dict[str, Any], *, seconds: float) -> None:
        """Let a browser carry something for so long, out of reach of any script."""
        ends = int(time.time() + seconds)
        # `aud` keeps the kinds apart: what was signed as one never counts as the other.
        signed = jwt.encode({"alg": _ALGORITHM}, {**claims, "aud": kind, "exp": ends}, self._key)
        self._set(response, kind, signed, max_age=int(seconds))

    def clear(self, response: Response, kind: Kind) -> None:
        """Let a browser forget it."""
        self._set(response, kind, "", max_age=0)

    def read(self, request: Request, kind: Kind) -> dict[str, Any] | None:
        """What a browser carries, unless it carries none or it has ended.

        Raises
        ------
        Forged
            If it is not of our making.
        """
        carried = request.cookies.get(self.name(kind))
        if not carried:
            return None
        try:
            claims = jwt.decode(carried, self._key, algorithms=[_ALGORITHM]).claims
        except (JoseError, ValueError) as exc:
            raise Forged from exc
        if claims.get("aud") != kind:
            raise Forged
        return claims if claims["exp"] > time.time() else None

    def _set(self, response: Response, kind: Kind, value: str, *, max_age: int) -> None:
        response.set_cookie(
            self.name(kind),
            value,
            max_age=max_age,
            path="/",
            secure=self._secure,
            httponly=True,
            # The provider sends the browser back to us: that is a step from another site.
            samesite="strict" if kind == "session" else "lax",
        )


def session_key(folder: Path) -> bytes:
    """The key of the store's folder, made when there is none; all processes of a site have the same.

    Raises
    ------
    ConfigError
        If it can't be made or read.
    """
    file = folder / "session.key"
    try:
        make_folder(folder)
        if not file.exists():
            _make(file)
        key = file.read_bytes()
    except OSError as exc:
        raise _unreadable(file, exc.strerror or type(exc).__name__) from exc
    if len(key) != _BYTES:
        raise _unreadable(file, f"it has {len(key)} bytes")
    return key


def _make(file: Path) -> None:
    """Put it there whole, and only if nobody else was faster."""
    new = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "wb") as stream:
            stream.write(secrets.token_bytes(_BYTES))
            stream.flush()
            os.fsync(handle)
        try:
            os.link(new, file)
        except FileExistsError:
            return
        sync_folder(file.parent)
    finally:
        new.unlink()


def _unreadable(file: Path, found: str) -> ConfigError:
    return ConfigError(
        doing=f"reading the key of the sign-ins, {file}",
        found=found,
        rule=f"it is a file of {_BYTES} bytes that the service made",
        way_out="remove it, and whoever is signed in signs in again; or let the service write in the store's folder",
    )
