"""OpenAPI says all there is to say, its examples are true, and the application keeps to it, whatever it is asked."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi import checks

from service.api import examples, shapes
from service.evidence import folder_of
from service.settings.destinations import Destination
from service.settings.doors import Api, Token
from service.settings.intake import Query, Source
from service.types import DeliveryState
from tests.apis import HttpSite, http_site
from tests.support import free_port
from tests.unit.test_store import _delivery, _keep

STUDY = examples.STUDY.study_uid
SCRIPT = "<script>alert(1)</script>\r\nX-Evil: 1"
_ENDLESS = "/api/v1/events"  # it does not end by itself: tests/integration/test_events.py
_SEVERAL = "multipart/related"  # which the fuzzer can't write: tests/unit/test_stow.py


def fill(site: HttpSite) -> None:
    """Some studies, in several states; one is the examples' own."""
    store = site.store
    body: dict[str, Any] = examples.STUDY.answers[0].model_dump(mode="json") | {"reason": SCRIPT, "notes": [SCRIPT]}
    for uid in (STUDY, "1.5"):
        _keep(store, study=uid)
        assert store.begin_analysis(uid, 0, last_at=100.0, judged=SCRIPT)
        assert store.save_answers(
            uid, 0, answers={"lung-nodule": ("findings", body)}, deliveries=[_delivery(f"9.{uid}", study=uid)]
        )
    store.note_delivery(1, DeliveryState.REFUSED, reason=SCRIPT)
    _keep(store, study="1.6")
    store.note_waiting("1.6", 0, words=SCRIPT, until=1e10)
    store.report("overread-0", parts=["work"], started_at=1.0, status={"words": SCRIPT})
    folder = folder_of(site.config.store.directory, STUDY, 0)
    folder.mkdir(parents=True)
    (folder / "lung-nodule-1.png").write_bytes(b"\x89PNG")
    (folder / "lung-nodule.SR.binary.dcm").write_bytes(b"DICM")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpSite]:
    port = free_port()  # nobody listens there
    more = {
        "networks": lambda: [examples.MODEL.model_dump()],
        "lines": lambda: {"pacs": {"line": "pausing", "failures": 3, "reason": SCRIPT, "next_try_in_seconds": 4.0}},
        "readiness": lambda: {"disk": "", "database": SCRIPT},
    }
    sources = (
        Source(ae_title="CT_SCANNER", query=Query(ae_title="PACS", host="127.0.0.1", port=port)),
        Source(ae_title="silent"),
    )
    destinations = (Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, timeout_seconds=1.0),)
    with http_site(tmp_path_factory.mktemp("var"), more=more, sources=sources, destinations=destinations) as made:
        fill(made)
        yield made


@pytest.fixture(scope="module")
def schema(site: HttpSite) -> dict[str, Any]:
    return site.app.openapi()


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def resolved(part: Any, schema: dict[str, Any]) -> Any:
    """A schema with all it refers to beside it, so that it can be validated against."""
    return {**part, "components": schema["components"]}


# --- What it says -----------------------------------------------------------------------------------------------------


def test_every_operation_says_what_it_does(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema):
        assert operation.get("summary"), name
        assert operation.get("description"), name
        assert operation.get("tags"), name
        assert {tag["name"] for tag in schema["tags"]} >= set(operation["tags"]), name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), f"{name}: {parameter['name']}"


def test_every_success_has_an_example_that_is_true(schema: dict[str, Any]) -> None:
    checked = 0
    for name, operation in operations(schema):
        successes = {status: it for status, it in operation["responses"].items() if status.startswith("2")}
        assert successes, name
        for status, response in successes.items():
            for media_type, content in response["content"].items():
                if "json" in media_type:
                    jsonschema_rs.validate(resolved(content["schema"], schema), content["example"])
                    assert content["schema"], f"{name} {status}: a schema that allows everything says nothing"
                    checked += 1
                elif content["schema"].get("format") != "binary":
                    assert content["example"], name
    assert checked >= 18


def test_every_refusal_is_documented_as_a_problem(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema):
        refusals = {status: it for status, it in operation["responses"].items() if status[0] in "45"}
        assert any(status.startswith("4") for status in refusals), name
        for status, response in refusals.items():
            for media_type, content in response["content"].items():
                assert media_type in ("application/problem+json", "application/json", "application/dicom+json"), name
                if media_type == "application/problem+json":
                    assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, f"{name} {status}"
                    jsonschema_rs.validate(resolved(content["schema"], schema), content["example"])


def test_what_is_not_for_everybody_says_so(schema: dict[str, Any]) -> None:
    schemes = schema["components"]["securitySchemes"]
    assert {it["type"] for it in schemes.values()} == {"http", "apiKey"}
    for name, operation in operations(schema):
        is_open = any(it in name for it in ("/health/", "/metrics"))
        assert (operation.get("security") is None) == is_open, name
        assert is_open or {"401", "403"} <= operation["responses"].keys(), name


def test_a_viewer_decides_nothing_and_a_stranger_sees_nothing(tmp_path: Path, schema: dict[str, Any]) -> None:
    viewer = Token(name="anne", role="viewer", sha256=sha256(b"secret").hexdigest())
    with http_site(tmp_path, api=Api(tokens=(viewer,))) as site, TestClient(site.app) as client:
        for name, operation in operations(schema):
            if "security" not in operation:
                continue
            method, path = name.split()
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    path = path.replace(f"{{{parameter['name']}}}", parameter["schema"]["examples"][0])
            assert client.request(method, path).status_code == 401, name
            if method != "GET":
                answer = client.request(method, path, headers={"Authorization": "Bearer secret"})
                assert answer.status_code == 403, name


def test_every_field_that_is_answered_is_one_of_the_shapes(site: HttpSite) -> None:
    """What a store's row has more than that, such as paths on the disk, does not leave."""
    client = TestClient(site.app)
    study = client.get(f"/api/v1/studies/{STUDY}").json()
    assert study.keys() == shapes.StudyDetail.model_fields.keys()
    assert study["deliveries"][0].keys() == shapes.DeliveryRow.model_fields.keys()
    assert str(site.config.store.directory) not in json.dumps(study)


# --- What it does -----------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """All operations but the endless one and those whose body the fuzzer can't write."""
    with tempfile.TemporaryDirectory() as folder, http_site(Path(folder)) as made:
        return [
            name
            for name, operation in operations(made.app.openapi())
            if _ENDLESS not in name and _SEVERAL not in str(operation.get("requestBody"))
        ]


def kinds() -> list[Any]:
    """Each operation with what it may be asked, and with what it may not, if anything of it can be wrong."""
    with tempfile.TemporaryDirectory() as folder, http_site(Path(folder)) as made:
        asked = {name: it.get("parameters") or it.get("requestBody") for name, it in operations(made.app.openapi())}
    valid = [pytest.param(name, GenerationMode.POSITIVE, id=f"{name}, valid") for name in names()]
    wrong = [pytest.param(name, GenerationMode.NEGATIVE, id=f"{name}, invalid") for name in names() if asked[name]]
    return valid + wrong


@pytest.mark.parametrize(("name", "mode"), kinds())
def test_whatever_is_asked_is_answered_as_described(name: str, mode: GenerationMode, site: HttpSite) -> None:
    method, path = name.split()
    operation = fuzzed(site)[path][method]

    @settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case[Any]) -> None:
        check(case)

    ask()


@pytest.mark.parametrize("name", names())
def test_what_the_examples_ask_is_answered(name: str, site: HttpSite) -> None:
    """The addresses and bodies of the examples are those of a study that is there."""
    method, path = name.split()
    operation = fuzzed(site)[path][method]
    described: dict[str, Any] = operation.definition.raw
    values = {it["name"]: it["schema"]["examples"][0] for it in described.get("parameters", []) if it["in"] == "path"}
    given = {}
    if "requestBody" in described:
        (content,) = described["requestBody"]["content"].values()
        (wanted,) = re.findall(r"schemas/(\w+)", str(content))
        given = {"body": site.app.openapi()["components"]["schemas"][wanted]["examples"][0]}
        given["media_type"] = "application/json"
    status = check(operation.Case(path_parameters=values, **given))
    assert status in (200, 503 if "ready" in name else 200, 409 if "decisions" in described["tags"] else 200)


def fuzzed(site: HttpSite) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", site.app, config=SchemathesisConfig())


def check(case: schemathesis.Case[Any]) -> int:
    """Ask, and hold the answer against the description."""
    answer = case.call()
    assert answer.status_code not in (500, 501, 502, 504), "503 is described where it may be"
    assert "X-Evil" not in str(answer.headers)
    conformance = [
        *(checks.status_code_conformance, checks.content_type_conformance),
        *(checks.response_schema_conformance, checks.response_headers_conformance),
    ]
    case.validate_response(answer, checks=conformance)
    return int(answer.status_code)
