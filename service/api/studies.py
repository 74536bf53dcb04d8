"""[edge: fastapi] Where each study is, why it waits, what became of it, and its results as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import AwareDatetime

from service import audit
from service.api import examples, shapes
from service.api.doors import Viewer
from service.api.examples import Responses, shown
from service.api.looked import Looked
from service.api.parameters import FileName, Limit, ModelName, Offset, Some, StudyUid, links
from service.api.problems import Problem
from service.api.rows import study_detail, study_row, unknown_study
from service.api.seen import Seen
from service.evidence import folder_of
from service.overview import Wanted
from service.types import Outcome, StudyState

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_LISTED: Responses = {
    200: shown([examples.ROW])[200]
    | {
        "description": "A page of them.",
        "headers": {
            "X-Total-Count": {"description": "How many there are on all pages.", "schema": {"type": "integer"}},
            "Link": {
                "description": "The first, previous, next and last page (RFC 8288).",
                "schema": {"type": "string"},
            },
        },
    }
}
_FILE: Responses = {
    200: {
        "description": "The file: a DICOM object, or a picture.",
        "content": {"application/dicom": _BINARY, "image/png": _BINARY},
    }
}

_FILTERS = ("state", "model", "outcome", "destination", "source", "since", "until", "study_uid", "order")


def router(seen: Seen) -> APIRouter:
    """The routes of studies."""
    made = APIRouter(prefix="/api/v1/studies", tags=["studies"])
    looked = Looked()

    @made.get("", summary="List studies", responses=_LISTED)
    def studies(
        request: Request,
        response: Response,
        caller: Viewer,
        state: Annotated[StudyState | None, Query(description="Where they are.")] = None,
        model: Annotated[ModelName, Query(description="That a model of this name answered.")] = "",
        outcome: Annotated[Outcome | None, Query(description="That a model answered so.")] = None,
        destination: Annotated[Some, Query(description="Of which something goes or went to this destination.")] = "",
        source: Annotated[Some, Query(description="That came from this calling AE title, or STOW-RS caller.")] = "",
        since: Annotated[AwareDatetime | None, Query(description="Whose last instance came then or later.")] = None,
        until: Annotated[AwareDatetime | None, Query(description="Whose last instance came before.")] = None,
        study_uid: Annotated[
            str, Query(max_length=64, pattern=r"^[0-9.]*$", description="The one of this Study Instance UID.")
        ] = "",
        order: Annotated[
            Literal["latest", "oldest", "urgent"], Query(description="By their last instance, or by urgency first.")
        ] = "latest",
        limit: Limit = 100,
        offset: Offset = 0,
    ) -> list[shapes.StudyRow]:
        """Studies with their state, why they wait, and what each model came to; filters are joined by AND."""
        wanted = Wanted(
            state=state or "",
            model=model,
            outcome=outcome or "",
            destination=destination,
            source=source,
            since=since.timestamp() if since else None,
            until=until.timestamp() if until else None,
            study_uid=study_uid,
        )
        rows = seen.store.studies(wanted, order=order, limit=limit, offset=offset)
        total = seen.store.count_studies(wanted)
        response.headers["X-Total-Count"] = str(total)
        response.headers["Link"] = links(request.url, known=_FILTERS, total=total, limit=limit, offset=offset)
        return [study_row(row, seen) for row in rows]

    @made.get("/{study_uid}", summary="Show a study", responses=shown(examples.STUDY))
    def study(study_uid: StudyUid, caller: Viewer) -> shapes.StudyDetail:
        """One study: its state, the series chosen and left out with reasons, findings and deliveries."""
        row = seen.store.study(study_uid)
        if row is None:
            raise unknown_study()
        looked.at(study_uid, caller)
        return study_detail(row, seen)

    @made.get("/{study_uid}/timeline", summary="Show what happened to a study", responses=shown(examples.STEPS))
    def timeline(study_uid: StudyUid, caller: Viewer) -> list[shapes.StepRow]:
        """Every step of a study, in order: when it was, what it was, and what is to be said of it."""
        steps = seen.store.steps(study_uid)
        if not steps and seen.store.study(study_uid) is None:
            raise unknown_study()
        looked.at(study_uid, caller)
        return [shapes.StepRow(**step) for step in steps]

    @made.get(
        "/{study_uid}/files/{name}", summary="Get a file of a study", response_class=FileResponse, responses=_FILE
    )
    def file(study_uid: StudyUid, name: FileName, caller: Viewer) -> FileResponse:
        """A result object or a picture of the study's latest answers, by the name that they give it."""
        path = _file(seen, study_uid, name)
        if path is None:
            raise Problem(
                404,
                doing="looking for a file of a study's results",
                found="the latest answers to the study name no such file",
                rule="a file has the name that an answer gives it (`objects`, `findings`, `summary`)",
                way_out="ask for the study, and take a name from its answers",
            )
        if not path.is_file():
            days = seen.config.retention.evidence_days
            raise Problem(
                404,
                doing="looking for a file of a study's results",
                found=f"they were removed {days:g} days after the study was done",
                rule="results are kept for [retention] evidence_days",
                way_out="send the study again; what was delivered where is still shown with it",
            )
        if path.suffix == ".png":
            looked.at(study_uid, caller)
            return FileResponse(path, media_type="image/png", filename=name, content_disposition_type="inline")
        audit.exported(study_uid=study_uid, user=caller.name, address=caller.address, what=name)
        return FileResponse(path, media_type="application/dicom", filename=name)

    return made


def _file(seen: Seen, study_uid: str, name: str) -> Path | None:
    """The path of a file that an answer names; anything else, whatever it looks like, is none."""
    row = seen.store.study(study_uid)
    named = {
        entry
        for answer in (row or {}).get("answers", [])
        for entry in (
            *(made["file"] for made in answer["objects"]),
            *(finding["picture"] for finding in answer["findings"]),
            answer.get("summary"),
        )
    }
    if row is None or name not in named:
        return None
    return folder_of(seen.config.store.directory, study_uid, row["answered_revision"]) / name
