"""[edge] What is seen from outside: health, metrics, and where each study is. UIDs only; read-only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.responses import FileResponse, JSONResponse

from service import __version__, metrics
from service.config import Config
from service.evidence import folder_of
from service.intake.complete import quiet
from service.store import Store
from service.types import StudyState

Uid = Annotated[str, "A DICOM UID (PS3.5 section 9.1)"]
State = Literal["receiving", "analysing", "delivering", "done", "undelivered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the API shows, and whom it asks."""

    config: Config
    store: Store
    readiness: Callable[[], dict[str, str]]  # by part: empty if it is well, else what is wrong with it
    progress: Callable[[str], dict[str, dict[str, Any]]]  # of a study, by model
    networks: Callable[[], list[dict[str, Any]]]  # the models, with how each of their networks is


def create_app(seen: Seen) -> FastAPI:
    """The application; it holds no state of its own."""
    app = FastAPI(
        title="Overread",
        docs_url=None,  # they load their scripts from outside, and nothing here does
        redoc_url=None,
        version=__version__,
        description="AI beside the PACS. Models are for research and demonstration, not for diagnosis.",
    )

    @app.get("/health/live", tags=["health"])
    def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready", tags=["health"])
    def ready() -> JSONResponse:
        """Each part, with what is wrong with it; 503 unless all are well."""
        parts = seen.readiness()
        well = not any(parts.values())
        return JSONResponse(
            {"ready": well, "parts": {name: reason or "well" for name, reason in parts.items()}},
            status_code=200 if well else 503,
        )

    @app.get("/metrics", tags=["health"])
    def prometheus() -> Response:
        """All metrics in Prometheus's text format."""
        text = metrics.exposition(metrics.StateGauges(*seen.store.counts()))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api/v1/models", tags=["models"])
    def models() -> list[dict[str, Any]]:
        """The models that are run: whether their networks are loaded, what they take, when they were last used."""
        return seen.networks()

    @app.get("/api/v1/studies", tags=["studies"])
    def studies(
        state: State | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> list[dict[str, Any]]:
        """The studies, the latest first."""
        return [_with_wait(row, seen) for row in seen.store.studies(state=state, limit=limit, offset=offset)]

    @app.get("/api/v1/studies/{study_uid}", tags=["studies"])
    def study(study_uid: Uid) -> dict[str, Any]:
        """One study: its state, the series chosen and left out with reasons, findings and deliveries."""
        row = seen.store.study(study_uid)
        if row is None:
            raise HTTPException(404, f"No study {study_uid} has been received. Send it by C-STORE.")
        for delivery in row["deliveries"]:
            delivery.pop("path")
        return {**_with_wait(row, seen), "progress": seen.progress(study_uid)}

    @app.get("/api/v1/studies/{study_uid}/files/{name}", tags=["studies"])
    def file(study_uid: Uid, name: str) -> FileResponse:
        """A result object or a picture of the study's latest answers, by the name that they give it."""
        path = _file(seen, study_uid, name)
        if path is None:
            raise HTTPException(404, f"No file {name} in the latest answers to study {study_uid}.")
        return FileResponse(path, media_type="image/png" if path.suffix == ".png" else "application/dicom")

    return app


def _with_wait(row: dict[str, Any], seen: Seen) -> dict[str, Any]:
    """The row, and while it waits for more instances, why and how long."""
    if row["state"] != StudyState.RECEIVING:
        return row
    verdict = quiet(last_at=row["last_at"], now=time.time(), quiet_seconds=seen.config.intake.quiet_seconds)
    return {**row, "waits": verdict.reason, "seconds_left": round(verdict.seconds_left, 1)}


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
