"""[edge: fastapi] The pages at their addresses, and what their buttons post to."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from service.api import rows
from service.api.doors import Operator, Viewer
from service.api.looked import Looked, decided, decided_about
from service.api.neighbours import Neighbours
from service.api.page import gathered, study_page
from service.api.page.pictures import AUTO, NoPicture, Pictures, View
from service.api.page.rendered import page
from service.api.problems import Problem
from service.api.queues import queues_of
from service.api.seen import Seen
from service.intake.encoding import is_uid
from service.overview import Wanted
from service.snapshot import LOADING
from service.types import DeliveryState, Priority, StudyState

NO_UID: Final = "A study is looked for by its whole Study Instance UID."
NOT_NOW: Final = "The studies can't be read now."
_PAGE: Final = 25  # studies on a page
_MOST: Final = 2**31 - 1
_REFUSED: Final = 200  # deliveries listed
_DRAWING: Final = 64  # pictures that may wait; of one page there are five
_STATIC: Final = Path(__file__).parent / "static"
_WINDOWS = Literal["soft-tissue", "lung", "bone", "liver", "brain", "auto", ""]


def router(seen: Seen) -> APIRouter:
    """The routes of the page."""
    store, neighbours = seen.store, Neighbours(seen.config)
    made = APIRouter(include_in_schema=False)
    pictures, views = Pictures(seen.config.store.directory, store), Looked()
    pencil = ThreadPoolExecutor(1, thread_name_prefix="pictures")  # one at a time: a volume is large
    drawing = asyncio.Semaphore(_DRAWING)

    @made.get("/", response_class=HTMLResponse)
    def worklist(
        request: Request,
        caller: Viewer,
        state: str = "",
        model: str = "",
        text: str = "",
        number: Annotated[int, Query(alias="page", ge=1, le=100_000)] = 1,
    ) -> Response:
        text = text.strip()
        wanted = Wanted(
            state=state if state in list(StudyState) else "", model=model[:64], study_uid=text if is_uid(text) else ""
        )
        found: list[dict[str, Any]] = []
        total, models = 0, sorted(it["name"] for it in seen.networks())
        trouble, status = "" if not text or is_uid(text) else NO_UID, 200
        try:
            if not trouble:
                total = store.count_studies(wanted)
                found = store.studies(wanted, limit=_PAGE, offset=(number - 1) * _PAGE)
        except Exception:  # the banner says that the database is away
            trouble, status = NOT_NOW, 503
        for row in found:
            row["waiting"], row["left"] = gathered.waits(row, seen)
            row["progress"] = rows.progress(row, seen)
        values = {
            "rows": found,
            "total": total,
            "number": number,
            "pages": max(1, -(-total // _PAGE)),
            "states": list(StudyState),
            "models": models,
            "chosen": {"state": wanted.state, "model": wanted.model, "text": text},
            "trouble": trouble,
        }
        return page("worklist.html", request, caller, seen, values, status=status)

    @made.get("/studies/{study_uid}", response_class=HTMLResponse)
    def study(study_uid: str, request: Request, caller: Viewer, finding: str = "", window: _WINDOWS = "") -> Response:
        row = store.study(study_uid) if is_uid(study_uid) else None
        if row is None:
            return page("unknown.html", request, caller, seen, {}, status=404)
        views.at(study_uid, caller)
        row["waiting"], row["left"] = gathered.waits(row, seen)
        row["progress"] = rows.progress(row, seen)
        values = study_page.values(row, seen.config, store.steps(study_uid), finding=finding, window=window)
        return page("study.html", request, caller, seen, values)

    @made.get("/studies/{study_uid}/pictures/{model}/{number}/{view}.png")
    async def picture(
        study_uid: str,
        model: str,
        number: int,
        view: View,
        caller: Viewer,
        window: _WINDOWS = AUTO,
    ) -> Response:
        if drawing.locked():
            raise _problem(503, "too many pictures are being drawn", "try again in a moment")

        def draw() -> bytes:
            row = store.study(study_uid) if is_uid(study_uid) else None
            if row is None:
                raise NoPicture("no study of that UID has been received")
            views.at(study_uid, caller)
            return pictures.draw(row, model, number, view, window or AUTO)

        async with drawing:
            try:
                png = await asyncio.get_running_loop().run_in_executor(pencil, draw)
            except NoPicture as exc:
                raise _problem(404, str(exc), "look at the picture that was frozen with the answer") from exc
        return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})

    @made.get("/models", response_class=HTMLResponse)
    def models(request: Request, caller: Viewer) -> Response:
        used, limit = seen.memory()
        networks = seen.networks()
        values = {
            "models": networks,
            "parts": seen.readiness(),
            "loading": LOADING,
            "used": used,
            "limit": limit,
            "held": sum(
                (net["envelope"] or {}).get("resident_bytes", 0)
                for it in networks
                for net in it["networks"]
                if net["loaded"]
            ),
            "devices": sorted(
                {net["envelope"]["device"] for it in networks for net in it["networks"] if net["envelope"]}
            ),
            "processes": gathered.processes(seen),
        }
        return page("models.html", request, caller, seen, values)

    def destinations_page(request: Request, caller: Viewer, echo: dict[str, str] | None = None) -> Response:
        values = {
            "queues": queues_of(seen.config, store, seen.lines()),
            "refused": store.deliveries(states=(DeliveryState.REFUSED,), limit=_REFUSED),
            "sources": gathered.sources(seen),
            "echo": echo,
        }
        return page("destinations.html", request, caller, seen, values)

    @made.get("/destinations", response_class=HTMLResponse)
    def destinations(request: Request, caller: Viewer) -> Response:
        return destinations_page(request, caller)

    @made.post("/destinations", response_class=HTMLResponse)
    async def echo(
        request: Request,
        caller: Operator,
        kind: Annotated[Literal["destination", "source"], Form()],
        name: Annotated[str, Form(max_length=64)],
    ) -> Response:
        found = await neighbours.echo(kind, name)
        words = "" if found.answered else f"{found.found}. Way out: {found.way_out}"
        result = {"name": name, "words": words, "ms": f"{found.milliseconds:.0f}"}
        return await run_in_threadpool(destinations_page, request, caller, result)

    @made.post("/studies/{study_uid}/{decision}")
    def decide(
        study_uid: str,
        decision: Literal["rerun", "cancel", "resend", "urgency"],
        caller: Operator,
        priority: Annotated[int, Form(ge=0, le=3)] = 2,
        destination: Annotated[str, Form(max_length=64)] = "",
    ) -> Response:
        if not is_uid(study_uid):
            raise _problem(404, "no study of that UID has been received", "take one of the worklist")
        done, count = "", 1
        match decision:
            case "rerun":
                done = "rerun" if store.rerun(study_uid) else ""
            case "cancel":
                done = "cancelled" if store.cancel(study_uid) else ""
            case "urgency":
                done = "urgency" if store.set_priority(study_uid, Priority(priority)) else ""
            case "resend":
                count = len(store.resend(study_uid, destination))
                done = "resent" if count else ""
        if done:
            decided(study_uid, caller)
        return _back(f"/studies/{study_uid}", done, count)

    @made.post("/deliveries/{decision}")
    def decide_deliveries(
        decision: Literal["retry", "drop"],
        caller: Operator,
        number: Annotated[list[Annotated[int, Form(ge=1, le=_MOST)]] | None, Form(max_length=1000)] = None,
        destination: Annotated[str, Form(max_length=64)] = "",
        study_uid: Annotated[str, Form(max_length=64)] = "",
    ) -> Response:
        numbers = number or []
        if bool(numbers) == bool(destination):
            raise _problem(422, "neither deliveries nor a destination", "go back, and take one that is listed")
        if decision == "retry":
            done, changed = "retried", store.retry_deliveries(numbers=numbers, destination=destination)
        else:
            done, changed = "dropped", store.drop_deliveries(numbers=numbers, destination=destination)
        decided_about(changed, store, caller)
        back = f"/studies/{study_uid}" if is_uid(study_uid) else "/destinations"
        return _back(back, done if changed else "", len(changed))

    @made.get("/static/{name}")
    def static(name: Literal["page.css", "page.js", "icon.svg"]) -> Response:
        return FileResponse(_STATIC / name, headers={"Cache-Control": "max-age=300"})

    return made


def _back(path: str, done: str, count: int) -> Response:
    """To the page from which it was decided; a reload decides nothing again."""
    return RedirectResponse(f"{path}?done={done or 'nothing'}&count={count}", status_code=303)


def _problem(status: int, found: str, way_out: str) -> Problem:
    return Problem(
        status, doing="answering the page", found=found, rule="what a page asks for is there", way_out=way_out
    )
