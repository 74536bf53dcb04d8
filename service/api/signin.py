"""[edge: fastapi] How somebody signs in with a browser: by a token, or at the hospital's provider; and signs out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, select_autoescape

from service import audit, log
from service.api import oidc
from service.api.doors import Doors, address_of, provider_away
from service.api.provider import NotGenuine
from service.api.sessions import Forged
from service.errors import ProviderUnavailable

Words = Callable[[Request, str], str]
"""Says an English text in the language that the browser wants."""

_PAGES = Path(__file__).parent / "pages"
_MINUTES = 10  # to sign in at the provider
# Printable ASCII that begins with one slash: no other host, and no second line of a header.
_LOCAL = re.compile(r"^/(?![/\\])[!-\[\]-~]*$")


def as_it_is(request: Request, text: str) -> str:
    """Every text in English."""
    return text


def router(doors: Doors, words: Words = as_it_is) -> APIRouter:
    """The routes of signing in and out."""
    made = APIRouter(include_in_schema=False)
    pages = Environment(loader=FileSystemLoader(_PAGES), autoescape=select_autoescape())

    def page(request: Request, name: str, *, status: int = 200, **shown: object) -> HTMLResponse:
        template = pages.get_template(name)
        return HTMLResponse(template.render(t=lambda text: words(request, text), **shown), status_code=status)

    def form(request: Request, back_to: str, *, status: int = 200, problem: str = "") -> HTMLResponse:
        ways = {"by_token": bool(doors.api.tokens), "by_provider": doors.provider is not None}
        return page(request, "signin.html", status=status, next=back_to, problem=problem, **ways)

    def way_back(request: Request) -> str:
        """Our own callback, as the provider knows it."""
        own = doors.api.public_url or f"{'https' if doors.secure else 'http'}://{request.headers.get('host', '')}"
        return f"{own}/signin/oidc/callback"

    @made.get("/signin")
    def signin(request: Request, next: str = "/") -> Response:
        """The form; whoever is signed in goes where he wanted."""
        back_to = local(next)
        if request.headers.get("sec-fetch-site") == "cross-site":
            # A link on another's page led here, and the browser keeps its cookie to itself on the way. Asked again by
            # a page of ours, it shows it.
            return page(request, "onward.html", next=back_to)
        if doors.known(request):
            return RedirectResponse(back_to, status_code=303)
        return form(request, back_to)

    @made.post("/signin")
    def signin_by_token(
        request: Request,
        token: Annotated[str, Form(max_length=8192)] = "",
        next: Annotated[str, Form(max_length=2048)] = "/",
    ) -> Response:
        """Sign in by a token of the configuration."""
        found = doors.tokens.find(token.strip())
        if found is None:
            words_of_it = "sign-in at the page: refused, a wrong token"
            audit.alert(audit.Alert.USER_AUTHENTICATION, words=words_of_it, address=address_of(request))
            return form(request, local(next), status=401, problem="This token is not known here.")
        doors.signed_in(found.name, found.role, address=address_of(request), way="token")
        answer = RedirectResponse(local(next), status_code=303)
        claims = {"by": "token", "name": found.name, "mark": doors.tokens.mark(found)}
        doors.cookies.put(answer, "session", claims, seconds=doors.api.session_hours * 3600)
        return answer

    @made.get("/signin/style.css")
    def style() -> FileResponse:
        return FileResponse(_PAGES / "signin.css", media_type="text/css")

    @made.post("/signout")
    def signout(request: Request) -> Response:
        """Let the browser forget who was signed in."""
        caller = doors.known(request)
        if caller and caller.name:
            audit.authenticated(user=caller.name, address=caller.address, login=False, succeeded=True)
        answer = RedirectResponse("/signin", status_code=303)
        doors.cookies.clear(answer, "session")
        return answer

    provider = doors.provider
    if provider is None:
        return made

    @made.get("/signin/oidc")
    def signin_at_provider(request: Request, next: str = "/") -> Response:
        """Send the browser to the provider."""
        begun = oidc.begin()
        try:
            answer = RedirectResponse(provider.address(begun, back_to=way_back(request)), status_code=303)
        except ProviderUnavailable:
            return form(request, local(next), status=503, problem="The sign-in service does not answer.")
        claims = {**asdict(begun), "next": local(next)}
        doors.cookies.put(answer, "signin", claims, seconds=_MINUTES * 60)
        return answer

    @made.get("/signin/oidc/callback")
    def signed_in_at_provider(request: Request) -> Response:
        """Take the browser back from the provider."""
        try:
            carried = doors.cookies.read(request, "signin")
            if carried is None:
                raise NotGenuine("no sign-in has begun in this browser, or too long ago")
            begun = oidc.Begun(**{key: carried[key] for key in ("state", "nonce", "verifier")})
            person = provider.finish(begun, request.query_params, back_to=way_back(request))
        except (NotGenuine, Forged) as exc:
            words_of_it = f"sign-in at the provider: refused, {exc or 'it is not of our making'}"
            audit.alert(audit.Alert.USER_AUTHENTICATION, words=words_of_it, address=address_of(request))
            log.event("signin.refused", reason=str(exc))
            return form(request, "/", status=401, problem="The sign-in did not succeed. Try again.")
        except ProviderUnavailable as exc:
            raise provider_away(exc) from exc
        role = doors.role_of(person, address=address_of(request))
        doors.signed_in(person.name, role, address=address_of(request), way="the provider")
        # No redirect: on one that began at the provider the browser would keep the new cookie to itself.
        answer = page(request, "onward.html", next=local(carried["next"]))
        claims = {"by": "oidc", "name": person.name, "role": role}
        doors.cookies.put(answer, "session", claims, seconds=doors.api.session_hours * 3600)
        doors.cookies.clear(answer, "signin")
        return answer

    return made


def local(address: str) -> str:
    """The address, if it is one of ours; else the front page."""
    return address if _LOCAL.match(address) and len(address) <= 2048 else "/"
