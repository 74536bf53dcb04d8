"""[edge: fastapi] Health and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service import metrics
from service.api.doors import Doors
from service.api.seen import Seen


def router(seen: Seen) -> APIRouter:
    """The routes of health and metrics."""
    made = APIRouter(tags=["health"])

    @made.head("/health/live", include_in_schema=False)  # some balancers ask so
    @made.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers; anybody may ask. No thread is needed for it, and none waited for."""
        return {"status": "live"}

    @made.head("/health/ready", include_in_schema=False)
    @made.get("/health/ready")
    def ready(request: Request) -> JSONResponse:
        """Whether all is well, else 503; for a viewer each part, with what is wrong with it."""
        doors: Doors = request.app.state.doors
        parts = seen.readiness()
        well = not any(parts.values())
        shown: dict[str, object] = {"ready": well}
        if doors.known(request):
            shown["parts"] = {name: reason or "well" for name, reason in parts.items()}
        return JSONResponse(shown, status_code=200 if well else 503)

    @made.get("/metrics")
    def prometheus(request: Request) -> Response:
        """All metrics in Prometheus's text format."""
        if not seen.config.api.open_metrics:
            doors: Doors = request.app.state.doors
            doors.caller(request, "viewer")
        text = metrics.exposition(seen.snapshot())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return made
