"""[edge: fastapi] A template becomes a page: with its language, its banner, and what whoever asks may do.

Everything that comes from outside is escaped by Jinja; nothing is marked safe.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from service import __version__
from service.api.doors import Caller
from service.api.page import banner, gathered
from service.api.page.words import LANGUAGES, Words, catalogue, language_of
from service.api.problems import Problem
from service.api.seen import Seen
from service.results.identity import DISCLAIMER
from service.types import Priority

COOKIE: Final = "lang"
_FOR_PROGRAMS: Final = ("/api/", "/dicom-web/", "/health/", "/metrics", "/openapi.json", "/static/")
_YEAR: Final = 365 * 86400  # seconds

# Of each state, outcome and urgency: a shape, so that nothing is told by colour alone, and the colour's class.
SHAPES: Final = {
    "receiving": ("▽", "coming"),
    "analysing": ("◐", "busy"),
    "delivering": ("▷", "busy"),
    "done": ("✓", "good"),
    "undelivered": ("✗", "bad"),
    "cancelled": ("■", "off"),
    "queued": ("▽", "coming"),
    "retrying": ("↻", "busy"),
    "sent": ("▷", "busy"),
    "confirmed": ("✓", "good"),
    "unconfirmed": ("?", "odd"),
    "refused": ("✗", "bad"),
    "dropped": ("■", "off"),
    "replaced": ("⇄", "off"),
    "findings": ("◆", "odd"),
    "no findings": ("○", "good"),
    "partial": ("◒", "odd"),
    "unsuitable": ("\N{EN DASH}", "off"),
    "failed": ("✗", "bad"),
    "well": ("✓", "good"),
    "pausing": ("✗", "bad"),
    "trying": ("↻", "busy"),
    "loaded": ("✓", "good"),
    "loading": ("◐", "busy"),
    "not loaded": ("○", "off"),
    "broken": ("✗", "bad"),
}


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("service.api.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(shapes=SHAPES, languages=LANGUAGES, disclaimer=DISCLAIMER, version=__version__)
    made.filters.update(moment=moment, iso=iso, mib=lambda number: f"{number / 2**20:,.0f}")
    return made


def moment(seconds: float) -> str:
    """A moment in the machine's own time, to the second."""
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"


def iso(seconds: float) -> str:
    """A moment as machines read it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


_ENVIRONMENT = _environment()


def language(request: Request) -> str:
    """The language in which a request is answered."""
    return language_of(
        request.query_params.get(COOKIE, ""),
        request.cookies.get(COOKIE, ""),
        request.headers.get("accept-language", ""),
    )


def say(request: Request, english: str) -> str:
    """A sentence of the page on which somebody signs in."""
    return english if language(request) == "en" else catalogue().signin[english]


def page(
    template: str, request: Request, caller: Caller, seen: Seen, values: Mapping[str, Any], *, status: int = 200
) -> HTMLResponse:
    """A page.

    Parameters
    ----------
    template
        Its name.
    values
        What it shows.
    """
    chosen = language(request)
    words = Words(chosen)
    known = gathered.facts(seen)
    query = [(key, value) for key, value in request.query_params.multi_items() if key not in (COOKIE, "done", "count")]
    text = _ENVIRONMENT.get_template(template).render(
        t=words.t,
        said=words.said,
        age=words.age,
        language=chosen,
        in_language={it: "?" + urlencode([*query, (COOKIE, it)]) for it in LANGUAGES},
        path=request.url.path,
        here=request.url.path + ("?" + urlencode(query) if query else ""),
        notices=[_told(notice, words) for notice in banner.notices(known)],
        well=banner.WELL,
        may_decide=caller.role in ("operator", "admin"),
        caller=caller,
        now=time.time(),
        urgency={int(priority): priority.name.lower() for priority in Priority},
        done=_done(request),
        **values,
    )
    answer = HTMLResponse(text, status_code=status, headers={"Cache-Control": "no-store", "Vary": "Cookie"})
    if request.query_params.get(COOKIE) in LANGUAGES:
        answer.set_cookie(
            COOKIE, chosen, max_age=_YEAR, httponly=True, samesite="lax", secure=request.url.scheme == "https"
        )
    return answer


def told_as_page(seen: Seen, request: Request, problem: Problem) -> HTMLResponse | None:
    """A problem on a page of its own, where a browser has asked for a page; None where a program is to read it."""
    if "text/html" not in request.headers.get("accept", "") or request.url.path.startswith(_FOR_PROGRAMS):
        return None
    caller = request.app.state.doors.known(request)
    if caller is None:
        return None
    values = {"problem": problem.parts, "is_there": problem.status != 404}
    answer = page("problem.html", request, caller, seen, values, status=problem.status)
    answer.headers.update(problem.headers or {})
    return answer


def _told(notice: banner.Notice, words: Words) -> dict[str, Any]:
    """A notice in a language."""
    values = {key: words.said(value) if isinstance(value, str) else value for key, value in notice.values.items()}
    return {
        "is_grave": notice.is_grave,
        "found": words.t(notice.found, **values),
        "way_out": words.t(notice.way_out),
        "link": notice.link,
    }


DONE: Final = {  # what a page says after something was decided; any other word says nothing
    "rerun": "The study is analysed again.",
    "cancelled": "The study is cancelled.",
    "resent": "Results are sent once more: {count}.",
    "retried": "Deliveries are tried again now: {count}.",
    "dropped": "Deliveries were dropped: {count}.",
    "urgency": "The urgency was changed.",
    "nothing": "Nothing was changed: its state does not allow it any more.",
}


def _done(request: Request) -> tuple[str, int] | None:
    sentence = DONE.get(request.query_params.get("done", ""))
    count = request.query_params.get("count", "0")
    return (sentence, int(count) if count.isdecimal() and len(count) < 7 else 0) if sentence else None
