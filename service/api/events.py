"""[edge: fastapi] What changed, as server-sent events (HTML Living Standard, section 9.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from service.api.doors import Viewer
from service.api.feed import Feed, Listener
from service.api.problems import example
from service.api.seen import Seen

_LONGEST_SECONDS: Final = 3600.0  # then he comes again, and is asked again who he is
_DESCRIBED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Events, until either side ends it; a comment at least every 15 s.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'event: study\ndata: {"study_uid": "1.2.826.0.1.3680043.8.498.1", '
                '"step": "answered", "at": 1764144055.1}\nid: 4711\n\n',
            }
        },
    },
    503: example(503),
}


def router(seen: Seen) -> APIRouter:
    """The route of events."""
    made = APIRouter(prefix="/api/v1", tags=["events"])
    feed = Feed(seen)

    async def listening(
        caller: Viewer,
        last_event_id: Annotated[
            str, Header(alias="Last-Event-ID", max_length=64, description="The last event that was seen.")
        ] = "",
    ) -> AsyncIterator[Listener]:
        listener = await feed.open(last_event_id)
        try:
            yield listener
        finally:
            feed.close(listener)

    heard = Depends(listening)

    @made.get("/events", summary="Listen for what changes", response_class=EventSourceResponse, responses=_DESCRIBED)
    async def events(listener: Listener = heard) -> AsyncIterator[ServerSentEvent]:
        """Hints to look again: `study` and `delivery` (a step of a study), `destination`, `readiness`.

        It starts with `begin`, or with what was missed since Last-Event-ID; `begin` with `missed` says that this was
        too much, so that all is to be read anew. Whoever is too far behind, or has listened for an hour, is let go.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _LONGEST_SECONDS
        while (left := until - loop.time()) > 0:
            try:
                told = await asyncio.wait_for(listener.queue.get(), left)
            except TimeoutError:
                return
            if told is None:
                return
            yield told[1]

    return made
