"""[edge: fastapi] What is on its way, and what an operator may decide about it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from service.api import examples, shapes
from service.api.doors import Operator, Viewer
from service.api.examples import shown
from service.api.looked import decided_about
from service.api.parameters import MOST, Limit, Offset, Some
from service.api.problems import Problem
from service.api.rows import delivery_row
from service.api.seen import Seen
from service.config import Config
from service.overview import Overview
from service.types import OPEN, DeliveryState


class Chosen(BaseModel):
    """Which deliveries: those of these numbers, or all of a destination that were refused."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"numbers": [17]}, {"destination": "pacs"}]}
    )

    numbers: list[Annotated[int, Field(ge=1, le=MOST)]] = Field(
        default=[], max_length=10_000, description="As `delivery_id` gives them."
    )
    destination: Some = Field(default="", description="Its name in the configuration.")
    reason: str = Field(
        default="",
        max_length=500,
        pattern=r"^[^\x00]*$",
        description="Why they are dropped; UIDs only, no patient data.",
    )


class Retried(shapes.Shape):
    """The deliveries that are tried again."""

    retried: list[int] = Field(description="Their numbers; what is confirmed or replaced is left alone.")


class Dropped(shapes.Shape):
    """The deliveries that are not to be sent."""

    dropped: list[int] = Field(description="Their numbers; what was sent is left alone.")


def router(seen: Seen) -> APIRouter:
    """The routes of deliveries."""
    store = seen.store
    made = APIRouter(prefix="/api/v1", tags=["deliveries"])

    @made.get("/deliveries", summary="List deliveries", responses=shown([examples.DELIVERY]))
    def deliveries(
        caller: Viewer,
        state: Annotated[
            list[DeliveryState] | None, Query(description="Where they are; several are joined by OR.")
        ] = None,
        destination: Annotated[Some, Query(description="Only to this destination.")] = "",
        limit: Limit = 100,
        offset: Offset = 0,
    ) -> list[shapes.DeliveryRow]:
        """Deliveries in the order in which they go; those that wait for an operator have the state `refused`."""
        rows = store.deliveries(states=state or (), destination=destination, limit=limit, offset=offset)
        return [delivery_row(row) for row in rows]

    @made.post("/deliveries/retry", summary="Try deliveries again", responses=shown({"retried": [17]}))
    def retry(chosen: Chosen, caller: Operator) -> Retried:
        """Try deliveries again, at once: refused, dropped or unconfirmed ones too."""
        _some(chosen)
        retried = store.retry_deliveries(numbers=chosen.numbers, destination=chosen.destination)
        decided_about(retried, store, caller)
        return Retried(retried=retried)

    @made.post("/deliveries/drop", summary="Drop deliveries", responses=shown({"dropped": [17]}))
    def drop(chosen: Chosen, caller: Operator) -> Dropped:
        """Decide that deliveries are not to be sent; what was sent is left alone."""
        _some(chosen)
        dropped = store.drop_deliveries(numbers=chosen.numbers, destination=chosen.destination, reason=chosen.reason)
        decided_about(dropped, store, caller)
        return Dropped(dropped=dropped)

    return made


def queues_of(config: Config, store: Overview, lines: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each destination with its queue, and in a sentence why that is as it is."""
    queues = store.queues()
    listed = []
    for destination in config.destinations:
        queue = queues.get(destination.name, {"states": {}, "waiting_since": None, "confirmed_at": None})
        line = lines.get(destination.name, {})
        listed.append(
            {
                "name": destination.name,
                "ae_title": destination.ae_title,
                "address": f"{destination.host}:{destination.port}",
                "confirm": destination.confirm,
                **queue,
                **line,
                "explained": _explained(queue["states"], line),
            }
        )
    return listed


def _explained(states: dict[str, int], line: dict[str, Any]) -> str:
    waiting = sum(states.get(state, 0) for state in OPEN)
    words = [f"{waiting} wait" if waiting else "nothing waits"]
    if line.get("line", "well") != "well":
        words.append(
            f"no association came about {line['failures']} times in a row, so one result at a time tries it, "
            f"the next in {line['next_try_in_seconds']:g} s. {line['reason']}"
        )
    elif states.get("retrying"):
        words.append(f"{states['retrying']} of them failed by themselves and are tried again, each by its own reason")
    if states.get("sent"):
        words.append(f"{states['sent']} were stored there, the receipt is still to come")
    if states.get("refused"):
        words.append(f"{states['refused']} were refused for good: each says what to change; then retry or drop them")
    return "; ".join(words)


def _some(chosen: Chosen) -> None:
    if bool(chosen.numbers) == bool(chosen.destination):
        raise Problem(
            422,
            doing="deciding about deliveries",
            found="both numbers and a destination" if chosen.numbers else "neither numbers nor a destination",
            rule="either says which deliveries are meant",
            way_out="name one of them",
        )
