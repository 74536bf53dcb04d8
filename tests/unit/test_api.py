"""The API's answers to what a running service is seldom asked."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service import audit
from service.api import examples
from service.api.doors import Caller
from service.api.looked import Looked
from service.api.rows import waits
from service.api.seen import Seen
from service.evidence import folder_of
from service.settings.destinations import Destination
from service.types import DeliveryState
from tests.apis import HttpSite, http_site
from tests.snapshots import snapshot
from tests.support import free_port
from tests.unit.test_store import _delivery, _keep


@pytest.fixture
def api(tmp_path: Path) -> Iterator[TestClient]:
    with http_site(tmp_path) as site, TestClient(site.app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("what", ["retry", "drop"])
def test_a_web_page_decides_nothing(what: str, api: TestClient) -> None:
    """Not even one that has bent a name to our address: a browser always says whose page posts."""
    body = {"destination": "pacs"}
    for headers in ({"Origin": "http://evil.example", "Host": "evil.example"}, {"Origin": "null"}):
        answer = api.post(f"/api/v1/deliveries/{what}", json=body, headers=headers)
        assert answer.status_code == 403
        assert "overread deliveries" in answer.json()["detail"]
    assert api.post(f"/api/v1/deliveries/{what}", json=body).status_code == 200
    assert (
        api.post(f"/api/v1/deliveries/{what}", content="{}", headers={"Content-Type": "text/plain"}).status_code == 422
    )


@pytest.mark.parametrize("body", [{}, {"numbers": [1], "destination": "pacs"}, {"numbers": [10**20]}, {"number": [1]}])
def test_a_decision_names_what_it_is_about(body: dict[str, object], api: TestClient) -> None:
    assert api.post("/api/v1/deliveries/retry", json=body).status_code == 422


@pytest.mark.parametrize("path", ["deliveries", "studies"])
def test_a_page_beyond_all_numbers_is_refused_in_words(path: str, api: TestClient) -> None:
    assert api.get(f"/api/v1/{path}?offset={10**20}").status_code == 422
    assert api.get(f"/api/v1/{path}?offset=5").json() == []


# --- Studies ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Iterator[HttpSite]:
    destinations = (Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=free_port(), timeout_seconds=1.0),)
    with http_site(tmp_path / "var", destinations=destinations) as made:
        yield made


@pytest.fixture
def client(site: HttpSite) -> Iterator[TestClient]:
    with TestClient(site.app, raise_server_exceptions=False) as made:
        yield made


def answered(site: HttpSite, uid: str, *, outcome: str = "findings", findings: int = 1, now: float = 100.0) -> None:
    """A study with an answer of one model, and one object for one destination."""
    body = examples.STUDY.answers[0].model_dump(mode="json")
    body |= {"outcome": outcome, "findings": body["findings"] * findings}
    _keep(site.store, study=uid, now=now)
    assert site.store.begin_analysis(uid, 0, last_at=now)
    answers = {"lung-nodule": (outcome, body)}
    assert site.store.save_answers(uid, 0, answers=answers, deliveries=[_delivery(f"9.{uid}", study=uid)])


def uids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [row["study_uid"] for row in answer.json()]


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_a_balancer_may_ask_for_the_status_alone(path: str, client: TestClient) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (client.get(path).status_code, b"")


def test_studies_are_listed_with_what_came_of_them_and_why_they_wait(site: HttpSite, client: TestClient) -> None:
    answered(site, "1.1", findings=2)
    _keep(site.store, study="1.2", now=200.0)
    site.store.note_waiting("1.2", 0, words="3 of 9 instances are here", until=time.time() + 30)
    waits, done = client.get("/api/v1/studies").json()
    assert (waits["state"], waits["waits"], waits["answers"]) == ("receiving", "3 of 9 instances are here", [])
    assert 0 < waits["seconds_left"] <= 30
    assert (done["state"], done["findings"], done["priority"]) == ("delivering", 2, "routine")
    assert done["answers"] == [{"model": "lung-nodule", "outcome": "findings", "findings": 2}]
    assert done["age_seconds"] == pytest.approx(time.time() - 100, abs=60)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("state=receiving", ["1.3"]),
        ("state=delivering", ["1.2", "1.1"]),
        ("outcome=no findings", ["1.2"]),
        ("model=lung-nodule&outcome=findings", ["1.1"]),
        ("model=other", []),
        ("destination=pacs", ["1.2", "1.1"]),
        ("source=nobody", []),
        ("since=1970-01-01T00:02:30Z", ["1.3", "1.2"]),
        ("until=1970-01-01T03:02:30%2B03:00", ["1.1"]),
        ("study_uid=1.2", ["1.2"]),
        ("order=oldest", ["1.1", "1.2", "1.3"]),
        ("limit=1&offset=1", ["1.2"]),
    ],
)
def test_a_filter_finds_those_and_no_others(query: str, found: list[str], site: HttpSite, client: TestClient) -> None:
    answered(site, "1.1", now=100.0)
    answered(site, "1.2", outcome="no findings", findings=0, now=200.0)
    _keep(site.store, study="1.3", now=300.0)
    assert uids(client.get(f"/api/v1/studies?{query}")) == found


@pytest.mark.parametrize(
    "query",
    [
        *("state=lost", "outcome=x", "limit=0", "limit=1001", "offset=-1", "since=2026-01-01T00:00:00", "order=x"),
        *("study_uid=../1", "model=a%00b", f"source={'s' * 65}"),
    ],
)
def test_a_filter_that_is_none_is_refused(query: str, client: TestClient) -> None:
    answer = client.get(f"/api/v1/studies?{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert query.partition("=")[0] in answer.json()["found"]


def test_all_pages_are_reached_by_their_links(site: HttpSite, client: TestClient) -> None:
    for number in range(7):
        _keep(site.store, study=f"1.{number}", now=100.0 + number)
    url: str | None = "/api/v1/studies?state=receiving&limit=3"
    pages, seen = [], []
    while url:
        answer = client.get(url)
        assert answer.headers["x-total-count"] == "7"
        pages.append(sorted(answer.links))
        seen += uids(answer)
        url = answer.links.get("next", {}).get("url")
    assert seen == [f"1.{number}" for number in reversed(range(7))]
    assert pages == [["first", "last", "next"], ["first", "last", "next", "prev"], ["first", "last", "prev"]]
    assert uids(client.get(answer.links["last"]["url"])) == ["1.0"]
    assert uids(client.get(answer.links["prev"]["url"])) == ["1.3", "1.2", "1.1"]
    beyond = client.get("/api/v1/studies?limit=3&offset=100")
    assert (uids(beyond), beyond.links["prev"]["url"]) == ([], "/api/v1/studies?limit=3&offset=6")


def test_a_link_carries_nothing_that_was_not_asked(client: TestClient) -> None:
    answer = client.get("/api/v1/studies", params={"source": '>; rel="evil", <http://evil.example/'})
    assert {link["url"].partition("?")[0] for link in answer.links.values()} == {"/api/v1/studies"}
    assert set(answer.links) == {"first", "last"}


def test_a_studys_page_has_all_of_it_and_no_path(site: HttpSite, client: TestClient) -> None:
    answered(site, "1.1")
    study = client.get("/api/v1/studies/1.1").json()
    assert study["answers"][0]["excluded"][0]["reason"] == "localizer"
    assert study["series"] == [{"series_uid": "1.1.1", "instances": 1}]
    assert study["progress"] == {}
    assert study["deliveries"][0]["state"] == "queued"
    assert not {"path", "next_at", "transaction_uid"} & study["deliveries"][0].keys()
    steps = client.get("/api/v1/studies/1.1/timeline").json()
    assert [step["step"] for step in steps] == ["first instance", "ready", "answered"]
    for path in ("", "/timeline"):
        assert client.get(f"/api/v1/studies/9.9{path}").status_code == 404


def test_how_far_an_analysis_is_is_told_by_whichever_process_is_asked(site: HttpSite, client: TestClient) -> None:
    answered(site, "1.1")
    assert site.store.rerun("1.1")
    site.store.note_progress("1.1", 1, {"lung-nodule": {"stage": "infer", "done": 1, "total": 9}})
    assert client.get("/api/v1/studies/1.1").json()["progress"]["lung-nodule"]["done"] == 1


def test_an_answer_of_an_older_version_is_shown_too(site: HttpSite, client: TestClient) -> None:
    made = {"kind": "SR", "sop_class_uid": "1.2", "sop_instance_uid": "1.3", "series_instance_uid": "1.4", "file": "a"}
    finding = {"number": 1, "tracking_uid": "1.5", "finding": "Nodule", "site": "Lung", "probability": 0.5, "slice": 2}
    old = {"model": "m", "version": "0", "outcome": "findings", "findings": [finding], "objects": [made]}
    _keep(site.store, study="1.1")
    assert site.store.begin_analysis("1.1", 0, last_at=100.0)
    assert site.store.save_answers("1.1", 0, answers={"m": ("findings", old)}, deliveries=[])
    assert client.get("/api/v1/studies/1.1").json()["answers"][0]["objects"][0]["form"] == ""


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"state": "analysing", "holder": "worker-1"}, "it is analysed by worker-1"),
        ({"state": "analysing", "tries": 1, "next_at": 2.0**40}, "an attempt came to nothing"),
        ({"state": "analysing"}, "it waits for its turn"),
        ({"state": "receiving", "waits": ""}, "it was just received"),
        ({"state": "delivering"}, "on their way"),
        ({"state": "undelivered"}, "retry or drop"),
        ({"state": "done"}, ""),
    ],
)
def test_why_it_waits_is_said_in_each_state(row: dict[str, Any], words: str, site: HttpSite) -> None:
    usual = {"study_uid": "1.1", "holder": "", "tries": 0, "next_at": 0.0, "waits": "", "waits_until": 0.0}
    said, _ = waits(usual | row, Seen(**vars_of(site)))
    assert words in said
    assert bool(said) == bool(words)


def vars_of(site: HttpSite) -> dict[str, Any]:
    nothing: dict[str, Any] = {"readiness": dict, "progress": lambda _: {}, "waiting": lambda _: None}
    return nothing | {"config": site.config, "store": site.store, "lines": dict, "networks": list, "snapshot": snapshot}


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    told: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(audit, "accessed", lambda **fields: told.append(("accessed", fields)))
    monkeypatch.setattr(audit, "exported", lambda **fields: told.append(("exported", fields)))
    return told


def test_files_are_given_by_name_and_written_down(
    site: HttpSite, client: TestClient, audited: list[tuple[str, dict[str, Any]]]
) -> None:
    answered(site, "1.1")
    folder = folder_of(site.config.store.directory, "1.1", 0)
    folder.mkdir(parents=True)
    for name in ("lung-nodule-1.png", "lung-nodule.SR.binary.dcm", "answers.json"):
        (folder / name).write_bytes(name.encode())
    report = client.get("/api/v1/studies/1.1/files/lung-nodule.SR.binary.dcm")
    assert (report.content, report.headers["content-type"]) == (b"lung-nodule.SR.binary.dcm", "application/dicom")
    assert report.headers["content-disposition"] == 'attachment; filename="lung-nodule.SR.binary.dcm"'
    picture = client.get("/api/v1/studies/1.1/files/lung-nodule-1.png")
    assert picture.headers["content-disposition"] == 'inline; filename="lung-nodule-1.png"'
    assert client.get("/api/v1/studies/1.1").status_code == 200
    assert client.get("/api/v1/studies/1.1/files/lung-nodule-1.png").status_code == 200
    assert client.get("/api/v1/studies/1.1/files/answers.json").status_code == 404, "no answer names it"
    assert [what for what, _ in audited] == ["exported", "accessed"], "what is seen, once a minute"
    assert audited[0][1] == {
        "study_uid": "1.1",
        "user": "",
        "address": "testclient",
        "what": "lung-nodule.SR.binary.dcm",
    }


@pytest.mark.parametrize(
    "path",
    [
        *("1.1/files/..%2f..%2f..%2foverread.sqlite", "1.1/files/%2fetc%2fpasswd", "..%2f..%2fetc/files/passwd"),
        *("1.1/files/%2e%2e", "1.1/files/%2e", "1.1/files/a%00.png", "1.1/files/a%0d%0ab", "%2e%2e/timeline"),
    ],
)
def test_no_path_leads_out(path: str, site: HttpSite, client: TestClient) -> None:
    answered(site, "1.1")
    assert client.get(f"/api/v1/studies/{path}").status_code in (404, 422)


def test_an_access_is_written_down_once_a_minute(audited: list[tuple[str, dict[str, Any]]]) -> None:
    now = [1000.0]
    looked = Looked(clock=lambda: now[0])
    anne, ben = (Caller(name=name, role="viewer", address="10.0.0.1") for name in ("anne", "ben"))
    for seconds, study, caller, written in (
        (0, "1.1", anne, 1),
        (59, "1.1", anne, 1),
        (59, "1.1", ben, 2),
        (59, "1.2", anne, 3),
        (60, "1.1", anne, 4),
        (119, "1.1", anne, 4),
        (121, "1.1", anne, 5),
    ):
        now[0] = 1000.0 + seconds
        looked.at(study, caller)
        assert len(audited) == written, (seconds, study)


# --- What an operator decides -----------------------------------------------------------------------------------------


def test_a_study_is_run_again_and_cancelled(
    site: HttpSite, client: TestClient, audited: list[tuple[str, dict[str, Any]]]
) -> None:
    answered(site, "1.1")
    again = client.post("/api/v1/studies/1.1/rerun")
    assert (again.status_code, again.json()["state"], again.json()["revision"]) == (200, "analysing", 1)
    refused = client.post("/api/v1/studies/1.1/rerun")
    assert (refused.status_code, "not answered yet" in refused.json()["found"]) == (409, True)
    ended = client.post("/api/v1/studies/1.1/cancel")
    assert (ended.status_code, ended.json()["state"]) == (200, "cancelled")
    refused = client.post("/api/v1/studies/1.1/cancel")
    assert (refused.status_code, "cancelled" in refused.json()["found"]) == (409, True)
    assert [(it["study_uid"], it["action"]) for _, it in audited] == [("1.1", "U"), ("1.1", "U")]


def test_a_study_whose_images_are_gone_is_not_run_again(site: HttpSite, client: TestClient) -> None:
    answered(site, "1.1")
    with sqlite3.connect(site.config.store.directory / "overread.sqlite") as database:
        database.execute("UPDATE studies SET sources_at = NULL")
    refused = client.post("/api/v1/studies/1.1/rerun")
    assert (refused.status_code, refused.json()["found"]) == (409, "its images were removed")
    assert "sources_days" in refused.json()["rule"]


def test_results_are_sent_again(site: HttpSite, client: TestClient, audited: list[tuple[str, dict[str, Any]]]) -> None:
    answered(site, "1.1")
    refused = client.post("/api/v1/studies/1.1/resend")
    assert (refused.status_code, "nothing of it was sent" in refused.json()["found"]) == (409, True)
    site.store.note_delivery(1, DeliveryState.CONFIRMED)
    assert client.post("/api/v1/studies/1.1/resend", json={"destination": "elsewhere"}).status_code == 404
    assert client.post("/api/v1/studies/1.1/resend", json={"destination": "pacs"}).json() == {"resent": [1]}
    assert client.get("/api/v1/deliveries").json()[0]["state"] == "retrying"
    site.store.note_delivery(1, DeliveryState.CONFIRMED)
    assert client.post("/api/v1/studies/1.1/resend").json() == {"resent": [1]}
    assert len(audited) == 2


@pytest.mark.parametrize("word", ["stat", "high", "routine", "low"])
def test_a_study_is_made_more_or_less_urgent(word: str, site: HttpSite, client: TestClient) -> None:
    answered(site, "1.1")
    assert client.post("/api/v1/studies/1.1/priority", json={"priority": word}).json()["priority"] == word
    assert client.get("/api/v1/deliveries").json()[0]["priority"] == word


@pytest.mark.parametrize("what", ["rerun", "cancel", "resend", "priority"])
def test_what_is_not_there_is_not_decided_about(what: str, client: TestClient) -> None:
    body = {"priority": "stat"} if what == "priority" else None
    answer = client.post(f"/api/v1/studies/9.9/{what}", json=body)
    assert (answer.status_code, answer.json()["found"]) == (404, "no study of that UID has been received")


@pytest.mark.parametrize("body", [{}, {"priority": "urgent"}, {"priority": 0}, {"priority": "stat", "for": "x"}])
def test_an_urgency_that_is_none_is_refused(body: dict[str, Any], client: TestClient) -> None:
    assert client.post("/api/v1/studies/1.1/priority", json=body).status_code == 422


def test_deciding_about_deliveries_is_written_down(
    site: HttpSite, client: TestClient, audited: list[tuple[str, dict[str, Any]]]
) -> None:
    answered(site, "1.1")
    answered(site, "1.2")
    assert client.post("/api/v1/deliveries/drop", json={"numbers": [1, 2, 99]}).json() == {"dropped": [1, 2]}
    assert client.post("/api/v1/deliveries/retry", json={"numbers": [2]}).json() == {"retried": [2]}
    assert [(it["study_uid"], it["action"]) for _, it in audited] == [("1.1", "U"), ("1.2", "U"), ("1.2", "U")]


# --- Neighbours -------------------------------------------------------------------------------------------------------


def test_who_does_not_answer_is_said_with_the_way_out(client: TestClient) -> None:
    told = client.post("/api/v1/destinations/pacs/echo").json()
    assert (told["answered"], "no connection" in told["found"], bool(told["way_out"])) == (False, True, True)
    assert client.post("/api/v1/destinations/nobody/echo").status_code == 404
    assert client.post("/api/v1/sources/nobody/echo").status_code == 404


def test_no_more_than_so_many_are_asked_at_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: Any, **__: Any) -> None:
        inside.release()
        assert go_on.wait(20)

    monkeypatch.setattr("service.results.deliver.echo", slow)
    url, statuses = "/api/v1/destinations/pacs/echo", list[int]()
    threads = [threading.Thread(target=lambda: statuses.append(client.post(url).status_code)) for _ in range(4)]
    for thread in threads:
        thread.start()
        assert inside.acquire(timeout=20)
    busy = client.post(url)
    assert (busy.status_code, int(busy.headers["retry-after"]) > 0) == (503, True)
    assert client.get("/health/live").status_code == 200, "nobody else waits for them"
    go_on.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 4
    assert client.post(url).status_code == 200


def test_processes_and_models_are_listed(tmp_path: Path) -> None:
    model = examples.MODEL.model_dump()
    with http_site(tmp_path, more={"networks": lambda: [model]}) as made, TestClient(made.app) as client:
        made.store.report("overread-0", parts=["receive", "work"], started_at=5.0, status={"gpu": 1})
        (process,) = client.get("/api/v1/processes").json()
        assert (process["name"], process["parts"], process["status"]) == (
            "overread-0",
            ["receive", "work"],
            {"gpu": 1},
        )
        assert client.get("/api/v1/models").json() == [examples.MODEL.model_dump(mode="json")]
