"""[edge: OpenSSL] TLS of every port that we open and of every connection that we make, by BCP 195 (RFC 9325).

TLS 1.2 and 1.3 with forward-secret AEAD suites only, as PS3.15 Annex B asks of DICOM. A certificate that is
renewed on the disk counts from the next connection on; running ones go on with theirs.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from service import log
from service.errors import ConfigError
from service.settings.doors import ClientTls, ServerTls

RULE: Final = "both sides speak TLS 1.2 or 1.3 and trust each other's certificates (PS3.15 Annex B, BCP 195)"
_SUITES: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2 (RFC 9325 section 4.2); all those of 1.3 are as good


def server_context(settings: ServerTls) -> ssl.SSLContext:
    """The TLS of a port that we open; with authorities (`ca_file`), whoever comes must show a certificate.

    Raises
    ------
    ConfigError
        If a file is missing or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    _load_pair(context, settings.certificate_file, settings.key_file)
    if settings.ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_authorities(context, settings.ca_file)
    return context


def client_context(settings: ClientTls) -> ssl.SSLContext:
    """The TLS of a connection that we open: the peer's certificate is verified, and its name compared.

    Raises
    ------
    ConfigError
        If a file is missing or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    context.sslsocket_class = _NotingSocket
    if settings.ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_authorities(context, settings.ca_file)
    if settings.certificate_file is not None and settings.key_file is not None:
        _load_pair(context, settings.certificate_file, settings.key_file)
    return context


def check(settings: ServerTls | ClientTls) -> None:
    """Read all its files as a connection would.

    Raises
    ------
    ConfigError
        If a file is missing or is not what it should be.
    """
    if isinstance(settings, ServerTls):
        server_context(settings)
    else:
        client_context(settings)


def expiry(path: Path) -> float:
    """When the first of a PEM file's certificates to end ends, in seconds since 1970.

    Raises
    ------
    ConfigError
        If there is none.
    """
    return min(certificate.not_valid_after_utc.timestamp() for certificate in _certificates(path))


def files(settings: ServerTls | ClientTls) -> tuple[Path, ...]:
    """The files that it is read from."""
    named = (settings.certificate_file, settings.key_file, settings.ca_file)
    return tuple(path for path in named if path is not None)


class Reloading:
    """A context that is made anew when its files have changed. Thread-safe.

    A new file that is no good leaves the old context in use, and is logged once.

    Parameters
    ----------
    settings
        Of a port or of connections. Made at once: what is wrong with it, is raised.

    Raises
    ------
    ConfigError
        If a file is missing or is not what it should be.
    """

    def __init__(self, settings: ServerTls | ClientTls) -> None:
        self._settings, self._lock = settings, threading.Lock()
        self._seen = self._state()
        self._context = self._make()

    def __call__(self) -> ssl.SSLContext:
        """The context for the next connection."""
        state = self._state()
        if state != self._seen:
            with self._lock:
                if state != self._seen:
                    self._seen = state
                    self._renew()
        return self._context

    def _renew(self) -> None:
        names = [str(path) for path in files(self._settings)]
        try:
            self._context = self._make()
        except ConfigError as exc:
            log.warning("tls.not_reloaded", exc, files=names)
        else:
            log.event("tls.reloaded", files=names)

    def _make(self) -> ssl.SSLContext:
        if isinstance(self._settings, ServerTls):
            return server_context(self._settings)
        return client_context(self._settings)

    def _state(self) -> tuple[object, ...]:
        """What changes when a file is written or replaced, also one that a symbolic link leads to."""
        return tuple(_state_of(path) for path in files(self._settings))


@lru_cache(maxsize=256)
def reloading_client(settings: ClientTls) -> Reloading:
    """The one `Reloading` of these settings, for connections that are opened again and again."""
    return Reloading(settings)


class Dialer:
    """The TLS of one connection that another library opens, and which keeps to itself what went wrong with it.

    Parameters
    ----------
    settings
        Of the connection.

    Raises
    ------
    ConfigError
        If a file is missing or is not what it should be.
    """

    failure: OSError | None = None

    def __init__(self, settings: ClientTls) -> None:
        self._context = reloading_client(settings)()

    def wrap_socket(self, sock: Any, *, server_side: bool = False, server_hostname: str | None = None) -> ssl.SSLSocket:
        """As `ssl.SSLContext.wrap_socket`, for which it stands in."""
        made = self._context.wrap_socket(sock, server_side=server_side, server_hostname=server_hostname)
        cast(_NotingSocket, made).dialer = self
        return made


class _NotingSocket(ssl.SSLSocket):
    """Tells its dialer what failed. A peer that does not like our certificate may say so only after the handshake."""

    dialer: Dialer | None = None

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError as exc:
            self._note(exc)
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except ssl.SSLError as exc:
            self._note(exc)
            raise

    def _note(self, exc: OSError) -> None:
        if self.dialer is not None and self.dialer.failure is None:
            self.dialer.failure = exc


# --- Files ------------------------------------------------------------------------------------------------------------


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.options |= ssl.OP_NO_COMPRESSION


def _load_pair(context: ssl.SSLContext, certificate_file: Path, key_file: Path) -> None:
    certificate = _certificates(certificate_file)[0]
    text = _read(key_file, "a private key")
    try:
        key: Any = load_pem_private_key(text, None)
        matches = key.public_key() == certificate.public_key()
    except (ValueError, TypeError) as exc:
        raise _wrong(
            key_file, "no private key in PEM, or one with a passphrase", "it holds a private key, without passphrase"
        ) from exc
    if not matches:
        raise _wrong(key_file, f"not the key of {certificate_file}", "certificate and key are a pair")
    _with_openssl(lambda: context.load_cert_chain(certificate_file, key_file, lambda: ""), certificate_file)


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    _certificates(path)
    _with_openssl(lambda: context.load_verify_locations(path), path)


def _with_openssl(load: Callable[[], None], path: Path) -> None:
    try:
        load()
    except OSError as exc:  # a key that is too weak, for instance; or the file changed just now
        reason = getattr(exc, "reason", None) or exc.strerror or type(exc).__name__
        raise _wrong(path, f"OpenSSL does not take it: {reason}", "it is as strong as OpenSSL wants it") from exc


def _certificates(path: Path) -> list[x509.Certificate]:
    text = _read(path, "certificates")
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError as exc:
        raise _wrong(path, "no certificate in PEM", "it holds certificates, each between BEGIN and END lines") from exc


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise _wrong(path, exc.strerror or type(exc).__name__, f"a file with {what} is there, and may be read") from exc


def _wrong(path: Path, found: str, rule: str) -> ConfigError:
    return ConfigError(
        doing=f"reading {path} for TLS",
        found=found,
        rule=rule,
        way_out="name the right files, or let the hospital's authority make them anew",
    )


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_ino, state.st_size
