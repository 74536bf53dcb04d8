"""[edge: sockets] The open port of one process: who connects waits here, in one thread, until he has asked properly.

It promises that a connection costs a thread and a place among the associations only once its whole A-ASSOCIATE-RQ has
come and nothing speaks against it. So connections that are open and silent, or send slowly, or end a TLS handshake
never, take nobody's place, and end with their time. Load balancers that connect and hang up leave no trace.
"""

from __future__ import annotations

import errno
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from service import handshakes, log, tls
from service.audit import Alert
from service.intake.callers import Caller
from service.intake.doors import ASSOCIATE_RQ, FIXED, FULL, Doors, pad

LARGEST_REQUEST: Final = 1 << 19  # bytes of an A-ASSOCIATE-RQ; 128 contexts with every transfer syntax have 230 kB
TICK_SECONDS: Final = 0.25  # between two looks at whose time is over
_MOST_WAITING: Final = 512  # connections of this process that have not asked yet; the oldest goes for a new one
_BACKLOG: Final = 1024  # connections that the kernel keeps for us; it takes no more than its own limit
_LINGER_SECONDS: Final = 2.0  # for a rejected one to read why, and hang up
_HANDSHAKE: Final = 0x16  # the first byte of TLS (RFC 8446 section 5.1)
_HEAD: Final = 6  # bytes of a PDU's type and length (PS3.8 section 9.3.1)


class Entrance:
    """The open port of one process.

    Parameters
    ----------
    doors
        Who may come in.
    secure
        The TLS that the port speaks; None for plain connections.
    associate_seconds
        From the connection to the last byte of the request.
    is_full
        Whether no more associations may be opened for now.
    admit
        Takes over a caller that has asked, its `line` in blocking mode. It must return soon.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        doors: Doors,
        secure: tls.Reloading | None,
        associate_seconds: float,
        is_full: Callable[[], bool],
        admit: Callable[[Caller], None],
    ) -> None:
        self._doors, self._secure, self._seconds = doors, secure, associate_seconds
        self._is_full, self._admit = is_full, admit
        self._waiting: dict[int, Caller] = {}  # by file descriptor, in the order in which they came
        self._looked_at, self._closing = 0.0, False
        self._selector = selectors.DefaultSelector()
        self._listener = _listen(host, port)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="entrance", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port, and who has not asked yet is gone."""
        self._closing = True
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            try:
                for key, _ in self._selector.select(TICK_SECONDS):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fd in self._waiting:  # one before it in this list may have had it dropped
                        self._go_on(self._waiting[key.fd])
                self._end_the_late()
            except Exception as exc:  # not foreseen: the port stays open all the same
                log.failure("entrance.failed", exc)
                time.sleep(TICK_SECONDS)
        for caller in list(self._waiting.values()):
            self._drop(caller)
        self._selector.close()
        self._listener.close()

    # --- Connections --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(_BACKLOG):
            try:
                line, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._drop_oldest()
                    time.sleep(0.01)
                return  # else it hung up before we looked
            caller = Caller(line=line, peer=peer, until=time.monotonic() + self._seconds, next=self._look)
            if not self._doors.admit(caller.host):
                line.close()
                caller.refuse(
                    Alert.NODE_AUTHENTICATION,
                    found="its address is in none of the ranges that may connect",
                    rule="[intake] addresses names who may connect",
                    way_out="add its range, if it is one of the house",
                )
                continue
            if len(self._waiting) >= _MOST_WAITING:
                self._drop_oldest()
            self._keep(caller, line)

    def _go_on(self, caller: Caller) -> None:
        try:
            while caller.next(caller):
                pass
        except (BlockingIOError, ssl.SSLWantReadError):
            self._selector.modify(caller.line, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._selector.modify(caller.line, selectors.EVENT_WRITE)
        except OSError:  # it hung up
            self._drop(caller)
        except Exception as exc:
            log.failure("connection.failed", exc)
            self._drop(caller)

    def _end_the_late(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < TICK_SECONDS:
            return
        self._looked_at = now
        for caller in [one for one in self._waiting.values() if one.until < now]:
            self._drop(caller)
            if caller.has_spoken and not caller.is_told:
                caller.refuse(
                    Alert.RESTRICTED_FUNCTION,
                    found=f"only a part of its request came in {self._seconds:g} s",
                    rule="the whole request comes within [intake] associate_seconds",
                    way_out="look at who connects, and at the network",
                )

    def _drop_oldest(self) -> None:
        if self._waiting:
            self._drop(next(iter(self._waiting.values())))

    def _keep(self, caller: Caller, line: socket.socket) -> None:
        line.setblocking(False)
        caller.line = line
        self._waiting[line.fileno()] = caller
        self._selector.register(line, selectors.EVENT_READ)

    def _let_go(self, caller: Caller) -> None:
        self._waiting.pop(caller.line.fileno(), None)
        self._selector.unregister(caller.line)

    def _drop(self, caller: Caller) -> None:
        self._let_go(caller)
        caller.line.close()

    # --- What a caller does, in its order -----------------------------------------------------------------------------

    def _look(self, caller: Caller) -> bool:
        """Its first byte says what it speaks: load balancers hang up, scanners talk HTTP. Neither leaves a trace."""
        first = caller.line.recv(1, socket.MSG_PEEK)
        if first == bytes([_HANDSHAKE if self._secure else ASSOCIATE_RQ]):
            caller.has_spoken = True
            caller.next = self._begin_tls if self._secure else self._read
            return True
        self._drop(caller)
        if first == bytes([ASSOCIATE_RQ]):
            found, way_out = "it does not speak TLS", "let it send by TLS, or take [intake] tls away"
        elif first == bytes([_HANDSHAKE]):
            found, way_out = "it speaks TLS", "set [intake] tls, or let it send plain"
        else:
            return False
        rule = "the port speaks TLS only" if self._secure else "the port speaks no TLS"
        caller.refuse(Alert.NODE_AUTHENTICATION, found=found, rule=rule, way_out=way_out)
        return False

    def _begin_tls(self, caller: Caller) -> bool:
        assert self._secure is not None
        self._let_go(caller)
        plain = caller.line
        try:
            line = self._secure().wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError):  # it hung up
            plain.close()
            return False
        self._keep(caller, line)
        caller.next = self._shake_hands
        return True

    def _shake_hands(self, caller: Caller) -> bool:
        assert isinstance(caller.line, ssl.SSLSocket)
        try:
            caller.line.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLEOFError, ConnectionError):
            raise
        except ssl.SSLError as exc:
            found, way_out = handshakes.explain(exc)
            caller.refuse(Alert.NODE_AUTHENTICATION, found=found, rule=tls.RULE, way_out=way_out)
            self._let_go(caller)
            self._keep(caller, socket.socket(fileno=caller.line.detach()))
            caller.until = time.monotonic() + _LINGER_SECONDS
            caller.next = self._linger  # OpenSSL has told it why
            return True
        caller.next = self._read
        return True

    def _read(self, caller: Caller) -> bool:
        """Its A-ASSOCIATE-RQ (PS3.8 section 9.3.2), and no byte more."""
        request = caller.request
        length = struct.unpack_from(">L", request, 2)[0] if len(request) >= _HEAD else 0
        piece = caller.line.recv(min(1 << 16, _HEAD + length - len(request)))
        request += piece
        if not piece or request[0] != ASSOCIATE_RQ:
            self._drop(caller)
            return False
        if len(request) < _HEAD:
            return True
        (length,) = struct.unpack_from(">L", request, 2)
        if not FIXED <= _HEAD + length <= LARGEST_REQUEST:
            self._drop(caller)
            caller.refuse(
                Alert.RESTRICTED_FUNCTION,
                found=f"it announces a request of {length} bytes",
                rule=f"an A-ASSOCIATE-RQ has {FIXED - _HEAD} to {LARGEST_REQUEST - _HEAD} bytes (PS3.8 Table 9-11)",
                way_out="look at who connects",
            )
            return False
        if len(request) == _HEAD + length:
            caller.next = self._decide
        return True

    def _decide(self, caller: Caller) -> bool:
        pad(caller.request)
        caller.rejection = self._doors.rejection(caller.request) or (FULL if self._is_full() else None)
        if caller.rejection is None:
            self._let_go(caller)
            caller.line.setblocking(True)
            try:
                self._admit(caller)
            except Exception as exc:  # no more threads, for instance
                log.failure("connection.failed", exc)
                caller.line.close()
            return False
        caller.refuse(
            Alert.RESTRICTED_FUNCTION if caller.rejection is FULL else Alert.NODE_AUTHENTICATION,
            found=caller.rejection.found,
            rule=caller.rejection.rule,
            way_out=caller.rejection.way_out,
        )
        caller.until = time.monotonic() + _LINGER_SECONDS
        caller.next = self._reject
        return True

    def _reject(self, caller: Caller) -> bool:
        assert caller.rejection is not None
        caller.line.send(caller.rejection.pdu)
        caller.next = self._linger
        return True

    def _linger(self, caller: Caller) -> bool:
        """Whoever is rejected hangs up (PS3.8 section 9.2.2); if we did first, it might not get to read why."""
        if caller.line.recv(1 << 16):
            return True
        self._drop(caller)
        return False


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket beside those of other processes: the kernel deals new connections out among them."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
