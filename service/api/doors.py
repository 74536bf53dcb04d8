"""[edge: fastapi] Who is asking, and whether he may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

from fastapi import Depends, Request

from service import audit
from service.api.oidc import Person, Provider
from service.api.problems import Problem, SignInFirst
from service.api.provider import NotGenuine
from service.api.sessions import Cookies, Forged, session_key
from service.api.tokens import Tokens
from service.errors import ProviderUnavailable
from service.settings.doors import Api, Role

_RANKS: tuple[Role, ...] = get_args(Role)  # each may do what those before it may
_SHOW = "show a token of [[api.tokens]] as Authorization: Bearer, or sign in with a browser at /signin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks."""

    name: str  # as the token or the sign-in says; empty where nobody is asked for his name
    role: Role
    address: str  # of his machine

    def may(self, role: Role) -> bool:
        """Whether he has a role's rights."""
        return _RANKS.index(self.role) >= _RANKS.index(role)


class Doors:
    """Knows who may come in, and asks who comes.

    Parameters
    ----------
    folder
        Where the key of the sign-ins is kept: the store's.

    Raises
    ------
    ConfigError
        If a token, a secret or that key can't be read.
    """

    def __init__(self, api: Api, folder: Path) -> None:
        self.api = api
        self.tokens = Tokens(api.tokens)
        self.provider = Provider(api.oidc) if api.oidc else None
        self.secure = api.tls is not None or api.public_url.startswith("https://")
        key = b"nobody signs in here" if api.is_open else session_key(folder)
        self.cookies = Cookies(key, secure=self.secure)

    def known(self, request: Request) -> Caller | None:
        """Who asks, if he shows it; whoever shows nothing, or something wrong, is nobody here."""
        try:
            return self._shown(request)
        except (Problem, _Wrong):
            return None

    def caller(self, request: Request, role: Role) -> Caller:
        """Who asks, if he has a role's rights.

        Raises
        ------
        Problem
            If he does not say who he is, or may not.
        SignInFirst
            If it is a browser in which nobody is signed in.
        """
        try:
            found = self._shown(request)
        except _Wrong as exc:
            refused = self._nobody(request, exc.words, error=exc.error)
            if isinstance(exc.__cause__, Forged) and _is_page(request):
                raise SignInFirst(_back_to(request)) from exc  # of an older key, as a rule
            raise refused from exc
        if found is None:
            if _is_page(request):
                raise SignInFirst(_back_to(request))
            raise self._nobody(request, "nothing says who asks")
        if not found.may(role):
            audit.alert(
                audit.Alert.USER_RIGHTS,
                words=f"{_asked(request)}: refused, a {found.role} is no {role}",
                user=found.name,
                address=found.address,
            )
            raise _may_not(f"the role {found.role}", role)
        return found

    def signed_in(self, name: str, role: Role, *, address: str, way: str) -> None:
        """Write down that somebody signed in with a browser."""
        words = f"signed in at the page by {way}, as {role}"
        audit.alert(audit.Alert.USER_AUTHENTICATION, words=words, user=name, address=address, succeeded=True)

    def role_of(self, person: Person, *, address: str) -> Role:
        """What somebody may do whom the provider named.

        Raises
        ------
        Problem
            If nothing.
        """
        if person.role is None:
            words = "signed in at the provider, whose groups give no role here: refused"
            audit.alert(audit.Alert.USER_RIGHTS, words=words, user=person.name, address=address)
            raise _may_not("a user of the provider without a role", "viewer")
        return person.role

    def _shown(self, request: Request) -> Caller | None:
        address = address_of(request)
        if self.api.is_open:
            return Caller(name="", role="admin", address=address)
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._by_token(shown.strip(), address)
        if scheme:
            raise _Wrong("credentials of another kind than Bearer")
        return self._by_session(request, address)

    def _by_token(self, shown: str, address: str) -> Caller:
        token = self.tokens.find(shown)
        if token:
            return Caller(name=token.name, role=token.role, address=address)
        if self.provider is None or shown.count(".") != 2:
            raise _Wrong("a wrong token", error="invalid_token")
        try:
            person = self.provider.bearer(shown)
        except NotGenuine as exc:
            raise _Wrong(str(exc), error="invalid_token") from exc
        except ProviderUnavailable as exc:
            raise provider_away(exc) from exc
        return Caller(name=person.name, role=self.role_of(person, address=address), address=address)

    def _by_session(self, request: Request, address: str) -> Caller | None:
        try:
            session = self.cookies.read(request, "session")
        except Forged as exc:
            raise _Wrong("a sign-in that is not of our making") from exc
        if session is None:
            return None
        if session["by"] == "oidc" and self.provider:
            return Caller(name=session["name"], role=session["role"], address=address)
        token = self.tokens.standing(session["name"], session["mark"]) if session["by"] == "token" else None
        # Of a token that was taken away since, the sign-in goes too; its role is today's.
        return Caller(name=token.name, role=token.role, address=address) if token else None

    def _nobody(self, request: Request, found: str, *, error: str = "") -> Problem:
        words = f"{_asked(request)}: refused, {found}"
        audit.alert(audit.Alert.USER_AUTHENTICATION, words=words, address=address_of(request))
        return Problem(
            401,
            doing="asking who wants to know",
            found=found,
            rule="whoever asks says who he is",
            way_out=_SHOW,
            headers={"WWW-Authenticate": "Bearer" + (f' error="{error}"' if error else "")},  # RFC 6750 section 3
        )


def need(role: Role) -> Callable[[Request], Caller]:
    """A dependency of a route that lets those of a role through, and those above it."""

    def caller(request: Request) -> Caller:
        doors: Doors = request.app.state.doors
        return doors.caller(request, role)

    return caller


Viewer = Annotated[Caller, Depends(need("viewer"))]
Operator = Annotated[Caller, Depends(need("operator"))]
Admin = Annotated[Caller, Depends(need("admin"))]


def address_of(request: Request) -> str:
    """The address of the caller's machine, as `limits.py` found it."""
    return request.client.host if request.client else ""


def provider_away(exc: ProviderUnavailable) -> Problem:
    """The answer while the provider can't be asked."""
    return Problem(503, **exc.parts(), headers={"Retry-After": "10"})


def _is_page(request: Request) -> bool:
    """Whether a browser asks for a page."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


def _back_to(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


class _Wrong(Exception):
    """What somebody shows does not count."""

    def __init__(self, words: str, *, error: str = "") -> None:
        super().__init__(words)
        self.words, self.error = words, error


def _asked(request: Request) -> str:
    """What was asked for, by the route's own words: an address may hold anything."""
    route = request.scope.get("route")
    return f"{request.method} {getattr(route, 'path', 'of no known address')}"


def _may_not(found: str, needed: Role) -> Problem:
    return Problem(
        403,
        doing="asking whether the caller may do that",
        found=found,
        rule=f"this is for the role {needed} and those above it",
        way_out="ask the site's administrator: [[api.tokens]] role, or the groups of [api.oidc]",
    )
