"""What every answer says to a browser: run nothing of others, show it nowhere else, keep nothing, tell nobody."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STRICT = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: with it browsers post our own forms too with "Origin: null", as a stranger's page does.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "accelerometer=(), camera=(), clipboard-read=(), display-capture=(), geolocation=(), "
    "gyroscope=(), microphone=(), payment=(), usb=()",
}
HSTS = "max-age=31536000"


def strict(*, secure: bool) -> list[tuple[str, str]]:
    """The headers of every answer.

    Parameters
    ----------
    secure
        Whether browsers reach us by TLS only; then they are told to keep to it.
    """
    return [*STRICT.items(), *([("Strict-Transport-Security", HSTS)] if secure else [])]


class StrictHeaders:
    """Puts them on every answer."""

    def __init__(self, app: ASGIApp, *, secure: bool) -> None:
        self._app, self._strict = app, strict(secure=secure)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._strict:
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                del headers["Server"]
            await send(message)

        await self._app(scope, receive, strictly if scope["type"] == "http" else send)
