"""Whether destinations and sources answer, asked live of a real PACS: C-ECHO, C-FIND, QIDO-RS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service.settings.destinations import Destination
from service.settings.intake import Query, Source
from tests.apis import http_site
from tests.browser.pacs import WebPacs
from tests.support import free_port


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    pacs = WebPacs(tmp_path_factory.mktemp("pacs"))
    nobody = free_port()

    def destination(name: str, ae_title: str, port: int) -> Destination:
        return Destination(name=name, ae_title=ae_title, host="127.0.0.1", port=port, timeout_seconds=10)

    def source(ae_title: str, *, called: str = "", port: int = 0, url: str = "") -> Source:
        query = Query(ae_title=called, host="127.0.0.1", port=port) if called else None
        return Source(ae_title=ae_title, query=query, qido_url=url, timeout_seconds=10)

    web = f"http://127.0.0.1:{pacs.http_port}"
    try:
        with (
            http_site(
                tmp_path_factory.mktemp("var"),
                destinations=(
                    destination("well", pacs.ae_title, pacs.port),
                    destination("misnamed", "OTHER", pacs.port),
                    destination("away", pacs.ae_title, nobody),
                ),
                sources=(
                    source("FIND", called=pacs.ae_title, port=pacs.port),
                    source("QIDO", url=f"{web}/dicom-web"),
                    source("MISNAMED", called="OTHER", port=pacs.port),
                    source("AWAY", called=pacs.ae_title, port=nobody),
                    source("WRONG", url=f"{web}/elsewhere"),
                    source("CLOCK"),
                ),
            ) as site,
            TestClient(site.app) as made,
        ):
            yield made
    finally:
        pacs.stop()


@pytest.mark.parametrize("path", ["destinations/well", "sources/FIND", "sources/QIDO"])
def test_who_is_there_answers(path: str, client: TestClient) -> None:
    told = client.post(f"/api/v1/{path}/echo").json()
    assert (told["answered"], told["found"], told["way_out"]) == (True, "", "")
    assert 0 < told["milliseconds"] < 10_000


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("destinations/misnamed", "rejected"),
        ("destinations/away", "no connection"),
        ("sources/MISNAMED", "rejected"),
        ("sources/AWAY", "no connection"),
        ("sources/WRONG", "HTTP status 404"),
    ],
)
def test_who_does_not_is_said_in_words(path: str, found: str, client: TestClient) -> None:
    told = client.post(f"/api/v1/{path}/echo").json()
    assert (told["answered"], found in told["found"], bool(told["way_out"])) == (False, True, True), told


def test_who_cant_be_asked_is_a_conflict(client: TestClient) -> None:
    answer = client.post("/api/v1/sources/CLOCK/echo")
    assert (answer.status_code, "qido_url" in answer.json()["rule"]) == (409, True)


def test_sources_are_listed_with_what_came_from_them(client: TestClient) -> None:
    rows = {row["ae_title"]: row for row in client.get("/api/v1/sources").json()}
    assert [rows[name]["asked_by"] for name in ("FIND", "QIDO", "CLOCK")] == ["C-FIND", "QIDO-RS", ""]
    assert rows["FIND"]["last_at"] is None
