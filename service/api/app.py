"""[edge: fastapi] What is seen from outside: health, metrics, where each study is, what waits for whom. UIDs only."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from service import __version__
from service.api import decide, described, destinations, events, health, models, problems, queues, signin, stow, studies
from service.api.bodies import Bodies
from service.api.counted import Counted
from service.api.doors import Doors, Viewer
from service.api.headers import StrictHeaders
from service.api.limits import Limits
from service.api.origin import SameOrigin
from service.api.page import routes as pages
from service.api.page.rendered import say, told_as_page
from service.api.seen import Seen
from service.config import Config

_PAGE = (studies, decide, queues, destinations, models, events, pages)


class _Guarded(FastAPI):
    """An application behind its doors: what they turn away, and every error, passes through the outermost too."""

    def __init__(self, config: Config, **settings: Any) -> None:
        self._api = config.api
        super().__init__(**settings)
        self.state.doors = Doors(config.api, config.store.directory)

    def build_middleware_stack(self) -> ASGIApp:
        asked: ASGIApp = SameOrigin(super().build_middleware_stack(), self._api)
        limited = Limits(Bodies(asked, self._api), self._api)
        return Counted(StrictHeaders(limited, secure=self.state.doors.secure))


def create_app(seen: Seen) -> FastAPI:
    """The application, as far as this process has its parts; it holds no state of its own.

    Raises
    ------
    ConfigError
        If a token or a secret of the configuration can't be read.
    """
    app = _Guarded(
        seen.config,
        title="Overread",
        docs_url=None,  # they load their scripts from outside, and nothing here does
        redoc_url=None,
        openapi_url=None,  # it is below, for those who may see something
        redirect_slashes=False,  # it would repeat the request's own address and Host
        version=__version__,
        description="AI beside the PACS. Models are for research and demonstration, not for diagnosis.",
        responses={status: problems.example(status) for status in (400, 401, 403, 404, 422, 429)},
    )
    has = seen.config.process.parts
    problems.install(app, partial(told_as_page, seen) if "page" in has else None)

    @app.get("/openapi.json", include_in_schema=False)
    def description(caller: Viewer) -> dict[str, Any]:
        return app.openapi()

    for part in (health, stow, *(_PAGE if "page" in has else [])):
        app.include_router(part.router(seen))
    app.include_router(signin.router(app.state.doors, words=say))
    described.describe(app)
    return app
