"""Who may ask us, by address, and how often. Plain ASGI: streams pass unheld."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service import audit
from service.api.problems import Problem
from service.settings.doors import LOOPBACK, Api

_MOST_HEADERS = 100
_MOST_HEAD_BYTES = 32 << 10  # tokens of some providers carry hundreds of groups
_MOST_BUCKETS = 10_000
_PROBES = ("/health/live", "/health/ready")  # asked by the machine that runs us, wherever it stands
_UNCOUNTED = ("/health/live", "/static/")

Network = IPv4Network | IPv6Network


def carries_studies(scope: Scope) -> bool:
    """Whether a request brings images (STOW-RS, PS3.18 section 10.5)."""
    return bool(scope["method"] == "POST" and scope["path"].startswith("/dicom-web/"))


class Buckets:
    """A token bucket for each of many; of those not seen for longest nothing is kept.

    Parameters
    ----------
    per_minute
        How many each may take; as many at once.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = float(per_minute), clock
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()  # how many were left, and when

    def take(self, whose: str) -> None:
        """Take one, if there is one left."""
        self._kept[whose] = (max(0.0, self._left(whose) - 1), self._clock())
        self._kept.move_to_end(whose)
        if len(self._kept) > _MOST_BUCKETS:
            self._kept.popitem(last=False)

    def is_empty(self, whose: str) -> bool:
        """Whether nothing is left."""
        return self._left(whose) < 1

    def seconds(self, whose: str) -> int:
        """How long until one is there again, at least 1."""
        return max(1, math.ceil((1 - self._left(whose)) * 60 / self._most))

    def __len__(self) -> int:
        return len(self._kept)

    def _left(self, whose: str) -> float:
        left, at = self._kept.get(whose, (self._most, self._clock()))
        return min(self._most, left + (self._clock() - at) * self._most / 60)


class Limits:
    """Turns away whom the configuration does not let in, and who asks too often or too much."""

    def __init__(self, app: ASGIApp, api: Api) -> None:
        self._app, self._is_open = app, api.is_open
        self._proxies: tuple[Network, ...] = api.trusted_proxies
        self._addresses: tuple[Network, ...] = api.addresses
        self._asked = Buckets(api.requests_per_minute)
        self._refused = Buckets(api.requests_per_minute)  # of requests that carry studies: those count when refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._see_through_proxies(scope)
        problem = self._problem(scope)
        if problem:
            await problem.response()(scope, receive, send)
        elif carries_studies(scope):
            await self._app(scope, receive, self._counting(scope, send))
        else:
            await self._app(scope, receive, send)

    def _see_through_proxies(self, scope: Scope) -> None:
        """Put the caller's own address and scheme in the place of a proxy's, where the proxy is trusted."""
        headers = Headers(scope=scope)
        address = _host(scope)
        hops = [hop.strip() for line in headers.getlist("x-forwarded-for") for hop in line.split(",")]
        if within(address, self._proxies):
            scheme = headers.get("x-forwarded-proto", scope["scheme"]).strip().lower()
            scope["scheme"] = scheme if scheme in ("http", "https") else scope["scheme"]
        while hops and within(address, self._proxies):
            hop = _plain(hops.pop())
            if not hop:  # no address: who is behind it stays unknown, and counts as the proxy
                break
            address = hop
        scope["client"] = (address, 0)

    def _problem(self, scope: Scope) -> Problem | None:
        address = _host(scope)
        headers = scope["headers"]
        if self._is_too_much(scope, _whose(address)):
            return Problem(
                429,
                doing="counting requests",
                found="too many of them within a minute from this address",
                rule="[api] requests_per_minute",
                way_out="ask less often, or raise the setting",
                headers={"Retry-After": str(self._asked.seconds(_whose(address)))},
            )
        size = len(scope["query_string"]) + len(scope["path"]) + sum(len(name) + len(value) for name, value in headers)
        if len(headers) > _MOST_HEADERS or size > _MOST_HEAD_BYTES:
            words = "a request with too many or too large headers: refused"
            audit.alert(audit.Alert.RESTRICTED_FUNCTION, words=words, address=address)
            return Problem(
                431,
                doing="reading the request's headers",
                found="too many or too large ones, or too long an address",
                rule=f"at most {_MOST_HEADERS} headers, and {_MOST_HEAD_BYTES >> 10} KiB with the address",
                way_out="send fewer; clear the browser's cookies for this host",
                headers={"Connection": "close"},
            )
        if self._addresses and scope["path"] not in _PROBES and not within(address, self._addresses):
            words = "a request from an address that is not in [api] addresses: refused"
            audit.alert(audit.Alert.NODE_AUTHENTICATION, words=words, address=address)
            return Problem(
                403,
                doing="looking where the request comes from",
                found="an address that may not connect",
                rule="[api] addresses names those that may, [api] trusted_proxies the proxies before us",
                way_out="ask the site's administrator to add it",
            )
        return None

    def _is_too_much(self, scope: Scope, whose: str) -> bool:
        if scope["path"].startswith(_UNCOUNTED) or (self._is_open and _host(scope) in LOOPBACK):
            return False  # on loopback without tokens it is this machine's own
        bucket = self._refused if carries_studies(scope) else self._asked
        if bucket.is_empty(whose):
            words = "requests beyond [api] requests_per_minute: refused"
            audit.alert(audit.Alert.RESTRICTED_FUNCTION, words=words, address=_host(scope))
            return True
        if bucket is self._asked:
            bucket.take(whose)
        return False

    def _counting(self, scope: Scope, send: Send) -> Send:
        """Counts a request that carries studies only if it is refused: so a stranger can't go on for ever."""

        async def counted(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start" and message["status"] in (401, 403, 413):
                self._refused.take(_whose(_host(scope)))
            await send(message)

        return counted  # type: ignore[return-value]


def _host(scope: Scope) -> str:
    client: Sequence[object] | None = scope.get("client")
    return _plain(str(client[0])) or str(client[0]) if client else ""


def _plain(text: str) -> str:
    """An address without port, brackets and the disguise of IPv4 as IPv6; empty if it is none."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text)
    except ValueError:
        return ""
    return str(found.ipv4_mapped or found) if isinstance(found, IPv6Address) else str(found)


def within(address: str, networks: Iterable[Network]) -> bool:
    """Whether an address is of one of the networks."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in networks)


def _whose(address: str) -> str:
    """Who counts as one: an IPv4 address, or an IPv6 network of the size that one household or machine is given."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    return str(ip_network(f"{found}/64", strict=False)) if found.version == 6 else address
