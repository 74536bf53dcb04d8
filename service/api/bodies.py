"""How large a body may be, and how slowly it may come. Plain ASGI: what passes is not held."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import audit
from service.api.limits import carries_studies
from service.api.problems import Problem
from service.settings.doors import Api

_SMALL = 1 << 20  # of all that carry no studies
_STALL_SECONDS = 30.0  # without a byte
_STUDIES_STALL_SECONDS = (
    300.0  # of those that carry some: `[intake] idle_seconds` ends them sooner, and says what was kept
)
_SLOWEST = 10_000  # bytes a second, from when a body has been coming for so long


class Bodies:
    """Ends a request whose body is too large, or stalls; it is answered, unless the answer has begun."""

    def __init__(self, app: ASGIApp, api: Api, *, stall_seconds: float = _STALL_SECONDS) -> None:
        self._app, self._stall = app, stall_seconds
        self._most = api.maximum_body_mib << 20

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        studies = carries_studies(scope)
        limit = self._most if studies else _SMALL
        stall = max(self._stall, _STUDIES_STALL_SECONDS) if studies else self._stall
        body = _Body(scope, receive, send, limit=limit, stall_seconds=stall)
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isascii() and announced.isdigit() and int(announced) > limit:
            body.refuse(_too_large(limit))
        else:
            try:
                await self._app(scope, body.receive, body.send)
            except Exception:
                if body.problem is None:
                    raise  # else it is about the body's end, of which is told below
        await body.answer()


class _Body:
    """One request's body, as it is read."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, limit: int, stall_seconds: float) -> None:
        self.problem: Problem | None = None
        self._scope, self._receive, self._send = scope, receive, send
        self._limit, self._stall = limit, stall_seconds
        self._bytes, self._waited, self._whole, self._answered = 0, 0.0, False, False

    async def receive(self) -> Message:
        if self.problem:
            return {"type": "http.disconnect"}
        if self._whole:  # what comes now is that the caller has gone, whenever that is
            return await self._receive()
        begun = time.monotonic()
        try:
            patience = min(self._stall, self._stall + self._bytes / _SLOWEST - self._waited)
            async with asyncio.timeout(max(patience, 0.001)):
                message = await self._receive()
        except TimeoutError:
            self.refuse(_too_slow(self._stall))
            return {"type": "http.disconnect"}
        self._waited += time.monotonic() - begun
        self._bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._bytes > self._limit:
            self.refuse(_too_large(self._limit))
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        if self.problem is None:
            self._answered = True
            await self._send(message)
        elif self._answered:
            raise OSError("the request has been ended")  # the server closes the connection

    def refuse(self, problem: Problem) -> None:
        """End it."""
        self.problem = problem
        client = self._scope.get("client")
        words = f"{problem.parts['found']}: refused"
        audit.alert(audit.Alert.RESTRICTED_FUNCTION, words=words, address=str(client[0]) if client else "")

    async def answer(self) -> None:
        """Say why, unless something has been said already."""
        if self.problem and not self._answered:
            await self.problem.response()(self._scope, self._receive, self._send)


def _too_large(limit: int) -> Problem:
    return Problem(
        413,
        doing="reading the request's body",
        found=f"a body of more than {limit >> 20} MiB",
        rule="[api] maximum_body_mib for STOW-RS, 1 MiB for all others",
        way_out="send less at once, or raise the setting",
    )


def _too_slow(seconds: float) -> Problem:
    return Problem(
        408,
        doing="reading the request's body",
        found="a body that stalls or trickles",
        rule=f"something of it comes every {seconds:g} seconds, {_SLOWEST // 1000} kB a second on the whole",
        way_out="send it again over a line that holds",
        headers={"Connection": "close"},
    )
