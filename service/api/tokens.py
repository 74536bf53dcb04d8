"""Bearer tokens of the configuration, known by their SHA-256 alone."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from service import log
from service.errors import ConfigError
from service.settings.doors import Token

_LEAST = 20  # characters: what `overread token` makes has 43
_RULE = f"a token is one line of at least {_LEAST} letters, digits and signs, without spaces"


class Tokens:
    """Who may ask, by token.

    Raises
    ------
    ConfigError
        If a token can't be had from where the configuration says, is none, or belongs to two.
    """

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._kept = [_Kept(token) for token in tokens]
        names: dict[bytes, str] = {}
        for kept in self._kept:
            other = names.setdefault(kept.digest, kept.token.name)
            if other != kept.token.name:
                raise ConfigError(
                    doing=f"reading the token of {kept.token.name}",
                    found=f"it is the token of {other} too",
                    rule="a token says who asks, so it belongs to one",
                    way_out="make another one: overread token NAME",
                )

    def find(self, shown: str) -> Token | None:
        """Whose token it is. All are compared, each in constant time, so that the time taken tells nothing."""
        digest = hashlib.sha256(shown.encode("utf-8", "replace")).digest()
        found = None
        for kept in self._kept:
            if hmac.compare_digest(kept.now(), digest):
                found = kept.token
        return found

    def mark(self, token: Token) -> str:
        """What a sign-in with a token remembers of it, to know later whether it is still the same."""
        kept = next(kept for kept in self._kept if kept.token.name == token.name)
        return hashlib.sha256(b"mark" + kept.now()).hexdigest()[:32]

    def standing(self, name: str, mark: str) -> Token | None:
        """The token of a sign-in, if it still counts."""
        for kept in self._kept:
            if kept.token.name == name and hmac.compare_digest(self.mark(kept.token), mark):
                return kept.token
        return None


class _Kept:
    """One token, and where it is read again when that has changed."""

    def __init__(self, token: Token) -> None:
        self.token = token
        self._seen: object = None
        self.digest = bytes.fromhex(token.sha256)
        if token.environment:
            self.digest = _digest(token, os.environ.get(token.environment, ""), f"the variable {token.environment}")
        if token.file:
            self._seen = _stamp(token.file)
            self.digest = _digest(token, _text(token, token.file), f"the file {token.file}")

    def now(self) -> bytes:
        """The digest as it is now; of a file that is gone or spoilt, one that nobody's token has."""
        if self.token.file is None:
            return self.digest
        stamp = _stamp(self.token.file)
        if stamp != self._seen:
            try:
                self.digest = _digest(self.token, _text(self.token, self.token.file), f"the file {self.token.file}")
                log.event("api.token_read", token=self.token.name)
            except ConfigError as exc:
                self.digest = os.urandom(32)
                log.failure("api.token_lost", exc, token=self.token.name)
            self._seen = stamp
        return self.digest


def _stamp(file: Path) -> object:
    """What changes when a file is written or put in another's place."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _text(token: Token, file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            doing=f"reading the token of {token.name}",
            found=f"{file}: {getattr(exc, 'strerror', None) or 'it is no text'}",
            rule="[[api.tokens]] file is a file that the service may read",
            way_out="put the token there, or correct the path",
        ) from exc


def _digest(token: Token, text: str, where: str) -> bytes:
    text = text.strip()
    if len(text) < _LEAST or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(
            doing=f"reading the token of {token.name}",
            found=f"{where} holds none" if not text else f"{where} holds something too short, or with other signs",
            rule=_RULE,
            way_out="make one: overread token NAME",
        )
    return hashlib.sha256(text.encode("ascii")).digest()
