"""[edge: fastapi] The models that are run, the processes that run them, and how they are set."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service import masked
from service.api import examples, shapes
from service.api.doors import Admin, Viewer
from service.api.examples import shown
from service.api.seen import Seen


def router(seen: Seen) -> APIRouter:
    """The routes of models and processes."""
    made = APIRouter(prefix="/api/v1", tags=["models"])

    @made.get("/models", summary="List models", responses=shown([examples.MODEL]))
    def models(caller: Viewer) -> list[shapes.ModelRow]:
        """The models that are run: whether their networks are loaded, what they take, when they were last used."""
        return [shapes.ModelRow(**row) for row in seen.networks()]

    @made.get("/processes", summary="List processes", responses=shown([examples.PROCESS]))
    def processes(caller: Viewer) -> list[shapes.ProcessRow]:
        """The processes that work on this database, and when each said last that it is there."""
        return [shapes.ProcessRow(**row) for row in seen.store.processes()]

    @made.get(
        "/settings",
        summary="Show the settings",
        responses=shown({"intake": {"ae_title": "OVERREAD"}}),
    )
    def settings(caller: Admin) -> dict[str, dict[str, Any]]:
        """Every setting of this process as it counts, by section; secrets are masked. For admins."""
        sections = masked.shown(seen.config, seen.config)
        return {name or "process": {key: it["value"] for key, it in keys.items()} for name, keys in sections}

    return made
