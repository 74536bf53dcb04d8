"""[edge: network] The audit trail on its way to the site's audit record repository, by syslog.

By TLS (RFC 5425; PS3.15 section A.6), by TCP (RFC 6587, octet counting), or by UDP (RFC 5426; PS3.15 section A.7). It
promises that a message by TLS or TCP counts as sent only when the repository has read it, and that it is sent again
until then, for as long as the repository is away, within the limit of how many may wait. By UDP nobody knows what
arrived.

Syslog has no answers. What shows that all was read is the end of a connection: we end our side, and the repository,
having read up to there, ends its own. A repository that was killed resets the connection instead, or its system did not
acknowledge the last bytes. So each connection carries what has gathered, and is ended; of what it carried, all or
nothing counts.
"""

from __future__ import annotations

import fcntl
import os
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final, TextIO

from service import log
from service.audit.events import recording_stopped
from service.audit.message import Origin, line
from service.audit.tail import Tail
from service.errors import ServiceError
from service.settings.doors import Audit, ClientTls
from service.tls import reloading_client

_GATHER_SECONDS: Final = 2.0  # between two connections
_LINES: Final = 1000  # on one connection
_TIMEOUT_SECONDS: Final = 10.0
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 3.0
_DATAGRAM_SECONDS: Final = 0.002  # between two datagrams: a receiver's buffer holds some hundred
_REFUSAL_SECONDS: Final = 0.1  # for the word that nobody listens there

Context = Callable[[ClientTls], ssl.SSLContext]


class Unconfirmed(OSError):
    """The connection ended before the repository had read all."""


class Forwarder:
    """Sends the lines of a file, in a thread of its own.

    Parameters
    ----------
    audit
        Where to, and how.
    file
        The trail.
    name
        Of this process, for messages about what could not be sent.
    context
        Makes the TLS side of a connection. It is asked for each, so that new certificates are taken up.
    """

    def __init__(self, audit: Audit, file: Path, *, name: str, context: Context | None = None) -> None:
        self._audit, self._file, self._context = audit, file, context or _context
        self._origin = Origin(name=name, ae_title="", host=socket.gethostname(), process_id=os.getpid())
        self._problem, self._waiting = "", 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="syslog", daemon=True)

    def start(self) -> None:
        """Begin to send; nothing happens where the settings name no repository."""
        if self._audit.syslog:
            self._thread.start()

    def stop(self) -> None:
        """Send what is there, if that is quickly done, and end; the rest is sent after the next start."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def problem(self) -> str:
        """Why messages are not sent; empty: they are."""
        return self._problem

    def waiting(self) -> int | None:
        """How many messages the repository lacked when it was tried last; None: there is no repository."""
        return self._waiting if self._audit.syslog else None

    def _run(self) -> None:
        pause, lock = _FIRST_PAUSE_SECONDS, None
        while True:
            last = self._stopping.is_set()
            try:
                lock = lock or _lock(self._file.with_name(f".{self._file.name}.lock"))
                tail = Tail(self._file)
                self._send_all(tail)
            except BlockingIOError:
                self._problem = "another process sends this trail"
            except OSError as exc:
                self._failed(f"{type(exc).__name__}: {exc.filename or ''} {exc.strerror or exc}")
            except ServiceError as exc:  # our certificate, or their authority, is no good file
                self._failed(f"{exc.doing}: {exc.found}")
            except Exception as exc:  # our own bug: it is said, and tried again
                log.failure("audit.not_sent", exc)
                self._failed(type(exc).__name__)
            else:
                if self._problem:
                    log.event("audit.repository_back", repository=self._audit.syslog)
                self._problem, self._waiting, pause = "", 0, _FIRST_PAUSE_SECONDS
            if last:
                break
            self._stopping.wait(pause if self._problem else _GATHER_SECONDS)
            if self._problem:
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if lock:
            lock.close()

    def _send_all(self, tail: Tail) -> None:
        while True:
            lines = tail.read(_LINES)
            untold = tail.place.untold()
            if not lines and not untold:
                return
            if untold:
                notice = recording_stopped(self._origin, words=untold)
                lines = [line(notice, self._origin, datetime.now().astimezone()), *lines]
            send(self._audit, lines, self._context)
            tail.done(told=bool(untold))

    def _failed(self, reason: str) -> None:
        waiting = self._waiting
        with suppress(OSError):
            waiting = self._waiting = Tail(self._file).limit(self._audit.maximum_waiting)
        if not self._problem:
            log.warning("audit.repository_away", repository=self._audit.syslog, reason=reason, waiting=waiting)
        self._problem = f"{self._audit.syslog} takes no audit messages ({reason}); {waiting} wait"


def send(audit: Audit, lines: Sequence[bytes], context: Context) -> None:
    """Send messages on a connection of their own.

    Raises
    ------
    OSError
        If they did not all arrive, as far as the protocol can tell.
    """
    host, _, port = audit.syslog.rpartition(":")
    if audit.protocol == "udp":
        _send_datagrams(host, int(port), lines)
        return
    # Octet counting: RFC 5425 section 4.3, RFC 6587 section 3.4.1.
    data = b"".join(b"%d %s" % (len(each), each) for each in lines)
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_SECONDS) as plain:
        if audit.protocol == "tcp":
            plain.sendall(data)
            plain.shutdown(socket.SHUT_WR)
            _see_the_end(plain)
            return
        with context(audit.tls).wrap_socket(plain, server_hostname=audit.tls.server_name or host) as secure:
            secure.sendall(data)
            _end_tls(secure)
            _see_the_end(secure)


def _end_tls(secure: ssl.SSLSocket) -> None:
    """Say in TLS, and then in TCP, that nothing more comes."""
    try:
        # Reads what the repository says, also why it refuses our certificate, which TLS 1.3 tells after the handshake.
        secure.unwrap()
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, TimeoutError):
        pass  # it ends without a word, or waits for the end of our side: what follows tells
    except ssl.SSLError:
        raise
    except OSError as exc:
        if exc.errno:  # Python says an end without a word in this way, too: errno 0
            raise
    secure.shutdown(socket.SHUT_WR)


def _see_the_end(connection: socket.socket) -> None:
    """Wait for the other side's end, and see that all our bytes were acknowledged before."""
    while connection.recv(4096):
        pass
    (unacknowledged,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4))
    if unacknowledged:
        raise Unconfirmed("the repository ended the connection before it had read all")


def _send_datagrams(host: str, port: int, lines: Sequence[bytes]) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as sender:
        sender.connect(address)  # so that it is told where nobody listens
        for each in lines:
            sender.send(each)
            time.sleep(_DATAGRAM_SECONDS)
        time.sleep(_REFUSAL_SECONDS)
        if refused := sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(refused, os.strerror(refused))


def _context(settings: ClientTls) -> ssl.SSLContext:
    """The client's side of TLS, with the certificates as they lie on the disk now."""
    return reloading_client(settings)()


def _lock(path: Path) -> TextIO:
    """Be the only one who sends a file."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
