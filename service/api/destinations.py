"""[edge: fastapi] Each destination and source: how it is doing, and whether it answers now."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter

from service.api import examples, queues, shapes
from service.api.doors import Operator, Viewer
from service.api.examples import Responses, shown
from service.api.neighbours import Neighbours
from service.api.parameters import DestinationName, SourceTitle
from service.api.problems import example
from service.api.seen import Seen
from service.overview import Overview, Wanted
from service.settings.intake import Source
from service.types import StudyState

_TOO_MANY: Final[Responses] = {status: example(status) for status in (409, 503)}


def router(seen: Seen) -> APIRouter:
    """The routes of destinations and sources."""
    made = APIRouter(prefix="/api/v1", tags=["neighbours"])
    config, neighbours = seen.config, Neighbours(seen.config)

    @made.get("/destinations", summary="List destinations", responses=shown([examples.DESTINATION]))
    def destinations(caller: Viewer) -> list[shapes.DestinationRow]:
        """Each destination: how it is doing, what waits for it, and in a sentence why."""
        return [shapes.DestinationRow(**row) for row in queues.queues_of(config, seen.store, seen.lines())]

    @made.post(
        "/destinations/{name}/echo",
        summary="Ask a destination whether it is there",
        responses=shown(examples.ECHO) | _TOO_MANY,
    )
    async def echo_destination(name: DestinationName, caller: Operator) -> shapes.Echo:
        """Live C-ECHO, on an association of its own: whether it answered, and how fast."""
        return await neighbours.echo("destination", name)

    @made.get("/sources", summary="List sources", responses=shown([examples.SOURCE]))
    def sources(caller: Viewer) -> list[shapes.SourceRow]:
        """Each sender of studies that the configuration names: how it is asked, and what came from it."""
        return [_source_row(source, seen.store) for source in config.sources]

    @made.post(
        "/sources/{ae_title}/echo",
        summary="Ask a source whether it is there",
        responses=shown(examples.ECHO) | _TOO_MANY,
    )
    async def echo_source(ae_title: SourceTitle, caller: Operator) -> shapes.Echo:
        """Ask it, by C-FIND or QIDO-RS as for every study, for a study that nobody has: whether it answered."""
        return await neighbours.echo("source", ae_title)

    return made


def _source_row(source: Source, store: Overview) -> shapes.SourceRow:
    latest = store.studies(Wanted(source=source.ae_title), limit=1)
    where = source.query
    return shapes.SourceRow(
        ae_title=source.ae_title,
        asked_by="C-FIND" if where else "QIDO-RS" if source.qido_url else "",
        address=f"{where.host}:{where.port}" if where else source.qido_url,
        modalities=list(source.modalities),
        studies=store.count_studies(Wanted(source=source.ae_title)),
        last_at=latest[0]["last_at"] if latest else None,
        receiving=store.count_studies(Wanted(source=source.ae_title, state=StudyState.RECEIVING)),
    )
