"""[edge: fastapi] Whatever goes wrong is answered as a problem (RFC 9457), with the four parts of our every message.

No part of it repeats what the request said: that might be a patient's name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service import log

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer that is no success.

    Parameters
    ----------
    status
        Of HTTP.
    doing, found, rule, way_out
        As of every error of ours.
    headers
        To go with the answer.
    """

    def __init__(
        self,
        status: int,
        *,
        doing: str,
        found: str,
        rule: str,
        way_out: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status, self.headers = status, headers
        self.parts = {"doing": doing, "found": found, "rule": rule, "way_out": way_out}
        super().__init__(found)

    @property
    def title(self) -> str:
        """The status in words."""
        return HTTPStatus(self.status).phrase

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(
            {
                "type": "about:blank",
                "title": self.title,
                "status": self.status,
                "detail": f"{self.parts['found']}. {self.parts['way_out']}.",
                **self.parts,
            },
            status_code=self.status,
            media_type=MEDIA_TYPE,
            headers=self.headers,
        )


class SignInFirst(Exception):
    """A browser in which nobody is signed in is sent to do that, and from there back."""

    def __init__(self, back_to: str) -> None:
        super().__init__()
        self.back_to = back_to

    def response(self) -> RedirectResponse:
        """The answer."""
        return RedirectResponse(f"/signin?next={quote(self.back_to, safe='')}", status_code=303)


Shown = Callable[[Request, Problem], Response | None]


def install(app: FastAPI, shown: Shown | None = None) -> None:
    """Let an application answer so.

    Parameters
    ----------
    shown
        The problem as a page, if it is a person who asks; else None.
    """

    def answer(request: Request, problem: Problem) -> Response:
        return (shown and shown(request, problem)) or problem.response()

    @app.exception_handler(SignInFirst)
    def sign_in(request: Request, exc: SignInFirst) -> RedirectResponse:
        return exc.response()

    @app.exception_handler(Problem)
    def problem(request: Request, exc: Problem) -> Response:
        return answer(request, exc)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, exc: RequestValidationError) -> Response:
        return answer(
            request,
            Problem(
                422,
                doing="reading the request",
                found="; ".join(_said(error, known_names(app)) for error in exc.errors()),
                rule="parameters and body are as /openapi.json describes them",
                way_out="correct the parameters named here",
            ),
        )

    @app.exception_handler(HTTPException)
    def refused(request: Request, exc: HTTPException) -> Response:
        status = exc.status_code
        return answer(
            request,
            Problem(
                status,
                doing="looking for what was asked for",
                found="there is no such address" if status == 404 else HTTPStatus(status).phrase.lower(),
                rule="addresses and methods are those of /openapi.json",
                way_out="look there",
                headers=dict(exc.headers or {}),
            ),
        )

    @app.exception_handler(ClientDisconnect)
    def gone(request: Request, exc: ClientDisconnect) -> JSONResponse:
        # Nobody hears it, unless `bodies.py` ended the request: then that is what is answered.
        return Problem(
            400,
            doing="reading the request's body",
            found="it ended before its end",
            rule="a body is as long as it says",
            way_out="send it again",
        ).response()

    @app.exception_handler(Exception)
    def failed(request: Request, exc: Exception) -> JSONResponse:
        log.failure("api.failed", exc)
        return Problem(
            500,
            doing="answering the request",
            found="an internal error",
            rule="every request is answered",
            way_out="report it with the line api.failed of the log; nothing was changed halfway",
        ).response()


def _said(error: dict[str, Any], ours: frozenset[str]) -> str:
    """What is wrong with which parameter: names that are ours, never values, nor keys that the request made up."""
    where = ".".join(str(part) for part in error["loc"] if isinstance(part, int) or part in ours)
    return f"{where}: {error['msg']}"


def known_names(app: FastAPI) -> frozenset[str]:
    """All names of parameters and properties in the API's description."""

    def found(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from node.get("properties", {}) if isinstance(node.get("properties"), dict) else ()
            if isinstance(node.get("name"), str) and "in" in node:
                yield node["name"]
        for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from found(inner)

    return frozenset({"body", "path", "query", "header", "cookie", *found(app.openapi())})


def example(status: int) -> dict[str, Any]:
    """An OpenAPI response of that status."""
    shown = Problem(
        status,
        doing="what was being done",
        found="what was found instead",
        rule="the rule that was broken",
        way_out="what can be done about it",
    ).response()
    return {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"example": json.loads(bytes(shown.body))}},
    }
