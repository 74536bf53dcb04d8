"""Every HTTP request is counted: by the route that answered it, never by its address, which may name a study."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics


class Counted:
    """ASGI middleware, around all others: what they refuse is counted too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it when its answer begins; what never got one counts as 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, counted = time.perf_counter(), False

        def count(status: int) -> None:
            nonlocal counted
            counted = True
            route = getattr(scope.get("route"), "path", "")
            metrics.count_request(route, scope["method"], status, time.perf_counter() - begun)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, tell)
        finally:
            if not counted:
                count(500)
