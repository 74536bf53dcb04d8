"""What OpenAPI says beside what FastAPI finds out by itself: problems, who may ask, and health."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

from service.api.problems import MEDIA_TYPE

_METHODS: Final = frozenset({"get", "post", "put", "patch", "delete"})
_GUARDED: Final = ("/api/", "/dicom-web/")
_PROBLEM: Final = {
    "type": "object",
    "description": "What went wrong, in four parts (RFC 9457).",
    "required": ["type", "title", "status", "detail", "doing", "found", "rule", "way_out"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "The status in words."},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was found, and the way out."},
        "doing": {"type": "string", "description": "What was being done."},
        "found": {"type": "string", "description": "What was found instead of what was needed."},
        "rule": {"type": "string", "description": "The rule that was broken."},
        "way_out": {"type": "string", "description": "What can be done about it."},
    },
}
_SCHEMES: Final = {
    "token": {"type": "http", "scheme": "bearer", "description": "A token of [[api.tokens]], or of the provider."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "overread",
        "description": "What a browser carries after its sign-in; by TLS it is called __Host-overread.",
    },
}
_TAGS: Final = [
    {"name": "studies", "description": "Where each study is, and what became of it."},
    {"name": "decisions", "description": "What an operator decides about a study."},
    {"name": "deliveries", "description": "What is on its way to which destination."},
    {"name": "neighbours", "description": "Destinations and sources, and whether they answer."},
    {"name": "models", "description": "Models, and the processes that run them."},
    {"name": "events", "description": "What changes, as it changes."},
    {"name": "dicomweb", "description": "The second way in: STOW-RS (PS3.18 section 10.5)."},
    {"name": "health", "description": "For orchestrators, load balancers and Prometheus."},
]


def _json(example: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": list(example)[:1]}
    return {"application/json": {"schema": schema, "example": example}}


_HEALTH: Final[dict[str, tuple[str, dict[str, dict[str, Any]]]]] = {
    "/health/live": ("Ask whether the process answers", {"200": {"content": _json({"status": "live"})}}),
    "/health/ready": (
        "Ask whether all is well",
        {
            "200": {"content": _json({"ready": True, "parts": {"database": "well", "disk": "well"}})},
            "503": {
                "description": "Something is not.",
                "content": _json({"ready": False, "parts": {"database": "OperationalError", "disk": "well"}}),
            },
        },
    ),
    "/metrics": (
        "Read the metrics",
        {
            "200": {
                "content": {
                    "text/plain": {
                        "schema": {"type": "string"},
                        "example": 'overread_studies{state="done"} 1.0\n',
                    }
                }
            }
        },
    ),
}


def describe(app: FastAPI) -> None:
    """Let an application describe itself so."""
    found_out = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(found_out())
        assert app.openapi_schema is not None  # `found_out` keeps what it made there
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(made: dict[str, Any]) -> None:
    parts = made.setdefault("components", {})
    parts.setdefault("schemas", {})["Problem"] = _PROBLEM
    parts.setdefault("securitySchemes", {}).update(_SCHEMES)
    made["tags"] = _TAGS
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            if method not in _METHODS:
                continue
            if path in _HEALTH:
                summary, responses = _HEALTH[path]
                operation["summary"] = summary
                for status, response in responses.items():
                    operation["responses"][status] = operation["responses"].get(status, {}) | response
            if path.startswith(_GUARDED):
                operation["security"] = [{"token": []}, {"session": []}]
            for response in operation["responses"].values():
                content = response.get("content", {})
                if MEDIA_TYPE in content:  # then it is nothing else
                    problem = content[MEDIA_TYPE] | {"schema": {"$ref": "#/components/schemas/Problem"}}
                    response["content"] = {MEDIA_TYPE: problem}
