"""[edge: fastapi] Whether a destination or a source answers now: asked as for results and studies, a few at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

import anyio
from anyio import to_thread

from service.api import shapes
from service.api.problems import Problem
from service.codes import derive_uid
from service.config import Config
from service.errors import ServiceError
from service.intake import sources
from service.results import deliver

_ECHOES: Final = 4  # at the same time; each may take as long as its timeout allows
_NOBODYS_STUDY: Final = derive_uid("a study that nobody has")  # asked for, it shows whether a source answers


class Neighbours:
    """Those of the configuration."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._places, self._threads = anyio.Semaphore(_ECHOES), anyio.CapacityLimiter(_ECHOES)

    async def echo(self, kind: Literal["destination", "source"], name: str) -> shapes.Echo:
        """Ask one, on an association of its own: whether it answered, how fast, and else what to change.

        A source is asked by C-FIND or QIDO-RS for a study that nobody has: a C-ECHO proves nothing of its query.

        Raises
        ------
        Problem
            404, 409 or 503 if there is none of that name, it can't be asked anywhere, or too many are being asked.
        """
        ask = self._destination(name) if kind == "destination" else self._source(name)
        try:
            self._places.acquire_nowait()
        except anyio.WouldBlock:
            raise Problem(
                503,
                doing="asking whether somebody answers",
                found=f"{_ECHOES} are being asked",
                rule="so many at the same time",
                way_out="ask again a little later",
                headers={"Retry-After": "5"},
            ) from None
        try:
            return await to_thread.run_sync(_timed, ask, limiter=self._threads)
        finally:
            self._places.release()

    def _destination(self, name: str) -> Callable[[], object]:
        found = self._config.destination(name)
        if found is None:
            raise _unknown("destination")
        return partial(deliver.echo, found, our_ae_title=self._config.intake.ae_title)

    def _source(self, ae_title: str) -> Callable[[], object]:
        found = next((it for it in self._config.sources if it.ae_title == ae_title), None)
        if found is None:
            raise _unknown("source")
        if not (found.query or found.qido_url):
            raise Problem(
                409,
                doing="asking a source whether it is there",
                found="the configuration does not say where it could be asked",
                rule="a source is asked where [[sources]] has a query or a qido_url",
                way_out="name one of them; until then only the clock says when its studies are whole",
            )
        return partial(sources.ask, _NOBODYS_STUDY, found, our_ae_title=self._config.intake.ae_title)


def _timed(ask: Callable[[], object]) -> shapes.Echo:
    begun = time.monotonic()
    found = way_out = ""
    try:
        ask()
    except ServiceError as exc:
        found, way_out = exc.found, exc.way_out
    milliseconds = round((time.monotonic() - begun) * 1000, 1)
    return shapes.Echo(answered=not found, milliseconds=milliseconds, found=found, way_out=way_out)


def _unknown(what: str) -> Problem:
    return Problem(
        404,
        doing=f"looking for a {what}",
        found=f"the configuration names no such {what}",
        rule=f"a {what} is one of [[{what}s]]",
        way_out=f"take a name from /api/v1/{what}s",
    )
