"""Whose page asks: a page of another site decides nothing here, nor reads anything under a name bent to our address."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service import audit
from service.api.problems import Problem
from service.settings.doors import LOOPBACK, Api

_SAFE = ("GET", "HEAD", "OPTIONS")


class SameOrigin:
    """Turns away what comes from another site's page.

    A browser says where a page came from that posts (Origin, RFC 6454; Sec-Fetch-Site, Fetch Metadata). And where
    nobody is asked for a token (`Api.is_open`), only names that can be nobody else's are answered: else a page could
    have its own name lead to 127.0.0.1, and read what is here (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, api: Api) -> None:
        self._app, self._api = app, api
        self._tls = api.tls is not None or api.public_url.startswith("https:")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem:
            words = f"{problem.parts['found']}: refused"
            audit.alert(audit.Alert.RESTRICTED_FUNCTION, words=words, address=(scope.get("client") or ("",))[0])
            await problem.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        known = not self._api.is_open or self._is_known(host, scope)
        if scope["method"] not in _SAFE and not self._is_ours(headers, host if known else ""):
            return Problem(
                403,
                doing="deciding something",
                found="the request comes from a web page of another site",
                rule="web pages of others decide nothing here",
                way_out="use the operations page under its own address ([api] public_url, behind a proxy), or "
                "overread deliveries",
            )
        if not known and scope["path"] != "/health/live":
            return Problem(
                421,
                doing="looking for which host is asked",
                found="a Host that is not this machine's own name",
                rule="without tokens only 127.0.0.1, [::1] and localhost are answered",
                way_out="ask there; or set [[api.tokens]] or [api.oidc]",
            )
        return None

    def _is_known(self, host: str, scope: Scope) -> bool:
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        # The address to which the request came is nobody's name either.
        server = (scope.get("server") or ("",))[0]
        return bool(host) and name in (*LOOPBACK, server)

    def _is_ours(self, headers: Headers, host: str) -> bool:
        origin = headers.get("origin", "").lower()
        if not origin:
            site = headers.get("sec-fetch-site")
            # A program says neither; a browser that says neither is an old one, and shows itself by its cookie.
            return site in ("same-origin", "none") if site else "cookie" not in headers
        if self._api.public_url and origin == self._api.public_url.lower():
            return True
        found = urlsplit(origin)
        schemes = ("https",) if self._tls else ("http", "https")
        return bool(host) and found.netloc == host and found.scheme in schemes
