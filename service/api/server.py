"""[edge: uvicorn] The port of the HTTP side: TLS, patience, and room for those who connect."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from service import audit
from service.api.headers import strict
from service.api.limits import Network, within
from service.api.problems import Problem
from service.handshakes import explain
from service.settings.doors import Api
from service.tls import Reloading

_HEAD_BYTES = 32 << 10  # of a request that is not whole yet
_HEAD_SECONDS = 15.0  # from its first byte to its last
_HANDSHAKE_SECONDS = 10.0
_IDLE_SECONDS = 15  # between two requests
_PARTING_SECONDS = 2.0  # in which whoever is refused may read why: a connection that is cut takes the answer with it
_TAKEN_SECONDS = 60.0  # in which something of an answer is taken
_MOST = 900  # connections: a process has 1,024 files by default, and needs some itself
_MOST_OF_ONE = 400  # address


def make_server(app: ASGIApp, api: Api) -> uvicorn.Server:
    """A server for the application; its ``run([listener])`` serves an open port until ``should_exit``.

    Raises
    ------
    ConfigError
        If a certificate, its key or the authorities can't be read.
    """
    room = _Room(api.trusted_proxies)
    connection: Callable[..., asyncio.Protocol] = partial(_Connection, room=room, secure=bool(api.tls))
    if api.tls:
        connection = partial(_Handshake, room=room, tls=Reloading(api.tls), then=connection)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=connection,  # type: ignore[arg-type]  # it is only ever called
            loop="asyncio",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # `limits.py` believes those of trusted proxies, and no others
            server_header=False,
            h11_max_incomplete_event_size=_HEAD_BYTES,
            timeout_keep_alive=_IDLE_SECONDS,
        )
    )


class _Room:
    """How many are connected, and from where."""

    def __init__(self, proxies: tuple[Network, ...]) -> None:
        self._proxies = proxies  # many come through one
        self._of: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Whether there is room for one more; if so, he is in."""
        full = self._of.total() >= _MOST
        if full or (self._of[address] >= _MOST_OF_ONE and not within(address, self._proxies)):
            words = "more connections than are kept: refused"
            audit.alert(audit.Alert.RESTRICTED_FUNCTION, words=words, address=address)
            return False
        self._of[address] += 1
        return True

    def leave(self, address: str) -> None:
        """One of them has gone."""
        self._of[address] -= 1
        if not self._of[address]:
            del self._of[address]


class _Connection(H11Protocol):
    """A connection whose head comes in time, and whose answer is taken in time; uvicorn itself waits for ever."""

    def __init__(self, *, room: _Room, secure: bool, **server: Any) -> None:
        super().__init__(**server)
        self._room, self._secure = room, secure
        self._address, self._is_in, self._is_over = "", False, False
        self._head: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._address = _address(transport)
        self._is_in = self._room.enter(self._address)
        if self._is_in:
            super().connection_made(transport)
            self._watch_head()
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_in:
            self._room.leave(self._address)
            self._head, self._taking = _stopped(self._head), _stopped(self._taking)
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_in and not self._is_over:
            if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
                self._head = _stopped(self._head)  # its first byte: only now the time begins
            super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self.loop.call_later(_TAKEN_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taking = _stopped(self._taking)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "no request, or one with a head that is too large", "it is HTTP/1.1 as RFC 9112 has it")

    def _watch_head(self) -> None:
        """Give the next head its time; while a request is answered, none is awaited."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._head = _stopped(self._head)
        elif self._head is None:
            self._head = self.loop.call_later(_HEAD_SECONDS, self._late)

    def _late(self) -> None:
        self._head = None
        if self.conn.trailing_data[0] and self.conn.their_state is h11.IDLE:
            self._refuse(408, "a request whose head does not end", f"it comes within {_HEAD_SECONDS:g} s")
        else:  # nothing was asked; or a body goes on that nobody reads
            self.transport.close()

    def _refuse(self, status: int, found: str, rule: str) -> None:
        """Answer what never became a request."""
        if self.transport.is_closing():
            return
        audit.alert(audit.Alert.RESTRICTED_FUNCTION, words=f"{found}: refused", address=self._address)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            problem = Problem(
                status, doing="reading the request", found=found, rule=rule, way_out="look at who asks, and how"
            )
            answer = problem.response()
            more = [*strict(secure=self._secure), ("Cache-Control", "no-store"), ("Connection", "close")]
            headers = [*answer.headers.items(), *more]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=problem.title.encode()),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self._is_over = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_PARTING_SECONDS, self.transport.close)


class _Handshake(asyncio.Protocol):
    """The TLS handshake of a connection; asyncio's own says of a failed one neither that it was nor who it was."""

    def __init__(self, *, room: _Room, tls: Reloading, then: Callable[..., asyncio.Protocol], **server: Any) -> None:
        self._room, self._tls, self._then, self._server = room, tls, then, server
        self._early = bytearray()
        self._is_lost = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        address = _address(transport)
        if self._room.enter(address):
            self._task = asyncio.get_running_loop().create_task(self._shake(transport, address))
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._early += data  # what came with the last of the handshake

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True

    async def _shake(self, transport: asyncio.Transport, address: str) -> None:
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport, self, self._tls(), server_side=True, ssl_handshake_timeout=_HANDSHAKE_SECONDS
            )
        except ConnectionResetError:
            return  # a probe of the port, or somebody who thought better of it
        except OSError as exc:
            words = f"TLS on the HTTP port: refused, {explain(exc)[0]}"
            audit.alert(audit.Alert.NODE_AUTHENTICATION, words=words, address=address)
            return
        finally:
            self._room.leave(address)
        if secured is None or self._is_lost:
            return
        connection = self._then(**self._server)
        secured.set_protocol(connection)
        connection.connection_made(secured)
        if self._early:
            connection.data_received(bytes(self._early))


def _address(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""


def _stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Stop a timer: there is none then."""
    if timer:
        timer.cancel()
    return None
