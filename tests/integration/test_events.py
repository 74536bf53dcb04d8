"""Server-sent events over a real port: what happens is told, once, in order, and again from where one left off."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.sse import ServerSentEvent

from service.api import events, feed
from service.types import DeliveryState
from tests.apis import HttpSite, http_site, listening
from tests.unit.test_store import STUDY, _delivery, _keep

Told = dict[str, Any]


class Ear:
    """Listens in a thread of its own."""

    def __init__(self, port: int, last_event_id: str = "") -> None:
        self.told: list[Told] = []
        self.status, self.ended = 0, threading.Event()
        self._headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        self.comments = 0
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            with self._client.stream("GET", "/api/v1/events", headers=self._headers) as answer:
                self.status = answer.status_code
                self._line = answer.extensions["network_stream"].get_extra_info("socket")
                fields: Told = {}
                for line in answer.iter_lines():
                    if line.startswith(":"):
                        self.comments += 1
                    elif line:
                        name, _, value = line.partition(": ")
                        fields[name] = json.loads(value) if name == "data" else value
                    elif fields:
                        self.told.append(fields)
                        fields = {}
        except httpx.HTTPError:
            pass
        finally:
            self.ended.set()

    def steps(self) -> list[str]:
        return [it["data"]["step"] for it in self.told if it["event"] in ("study", "delivery")]

    def close(self) -> None:
        with suppress(AttributeError, OSError):  # closing alone sends nothing while the thread reads
            self._line.shutdown(socket.SHUT_RDWR)
        self._client.close()


def wait(until: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


@contextmanager
def running(directory: Path, **more: Any) -> Iterator[tuple[HttpSite, int]]:
    stopping = threading.Event()
    with http_site(directory, more={"stopping": stopping.is_set, **more}) as site, listening(site.app) as port:
        try:
            yield site, port
        finally:
            stopping.set()


@pytest.fixture
def lines() -> dict[str, dict[str, Any]]:
    return {"pacs": {"line": "well"}}


@pytest.fixture
def parts() -> dict[str, str]:
    return {"database": ""}


@pytest.fixture
def site(tmp_path: Path, lines: dict[str, Any], parts: dict[str, str]) -> Iterator[tuple[HttpSite, int]]:
    with running(tmp_path, lines=lambda: dict(lines), readiness=lambda: dict(parts)) as made:
        yield made


def test_each_step_is_told_once_to_all_who_listen(site: tuple[HttpSite, int]) -> None:
    store, port = site[0].store, site[1]
    _keep(store, study="1.9")  # before anybody listens
    ears = [Ear(port), Ear(port)]
    for ear in ears:
        wait(lambda ear=ear: ear.told, "the beginning")  # type: ignore[misc]
        assert (ear.told[0]["event"], ear.told[0]["data"]) == ("begin", {"missed": False})
    _keep(store)
    assert store.begin_analysis(STUDY, 0, last_at=100.0)
    assert store.save_answers(STUDY, 0, answers={}, deliveries=[_delivery("9.1")])
    store.note_sent(1, remark="")
    store.note_delivery(1, DeliveryState.CONFIRMED)
    due = ["first instance", "ready", "answered", "sent", "confirmed", "done"]
    for ear in ears:
        wait(lambda ear=ear: len(ear.steps()) >= len(due), "the steps")  # type: ignore[misc]
        assert ear.steps() == due
        kinds = [it["event"] for it in ear.told if it["event"] in ("study", "delivery")]
        assert kinds == ["study", "study", "study", "delivery", "delivery", "study"]
        assert {it["data"]["study_uid"] for it in ear.told if "study_uid" in it["data"]} == {STUDY}
        numbers = [int(it["id"]) for it in ear.told if "id" in it]
        assert numbers == sorted(set(numbers))
        ear.close()


def test_whoever_comes_back_is_told_what_he_missed(site: tuple[HttpSite, int]) -> None:
    store, port = site[0].store, site[1]
    for number in range(5):
        _keep(store, study=f"1.{number}")
    ear = Ear(port, last_event_id=str(store.last_step() - 3))
    wait(lambda: len(ear.steps()) == 3, "what was missed")
    _keep(store, study="1.7")
    wait(lambda: len(ear.steps()) == 4, "what is new")
    uids = [it["data"]["study_uid"] for it in ear.told if it["event"] == "study"]
    assert uids == ["1.2", "1.3", "1.4", "1.7"]
    ear.close()


@pytest.mark.parametrize("number", ["0", "-1", "x", "9" * 18, "9" * 40])
def test_a_number_that_helps_nobody_begins_anew(number: str, site: tuple[HttpSite, int]) -> None:
    ear = Ear(site[1], last_event_id=number)
    wait(lambda: ear.told, "the beginning")
    assert ear.told[0]["event"] == "begin"
    ear.close()


def test_too_much_to_tell_is_said(site: tuple[HttpSite, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_BEHIND", 20)
    for number in range(11):
        _keep(site[0].store, study=f"1.{number}")
    ear = Ear(site[1], last_event_id="1")
    wait(lambda: ear.told, "the beginning")
    assert (ear.told[0]["event"], ear.told[0]["data"]) == ("begin", {"missed": True})
    assert ear.told[0]["id"] == str(site[0].store.last_step())
    ear.close()


def test_a_destination_and_the_readiness_are_told_when_they_change(
    site: tuple[HttpSite, int], lines: dict[str, dict[str, Any]], parts: dict[str, str]
) -> None:
    ear = Ear(site[1])

    def told(kind: str) -> list[Told]:
        return [it["data"] for it in ear.told if it["event"] == kind]

    wait(lambda: told("destination"), "how they are now")
    lines["pacs"] = {"line": "pausing"}
    parts["database"] = "it is away"
    wait(lambda: len(told("destination")) == 2 and len(told("readiness")) == 2, "how they are then")
    assert told("destination") == [{"name": "pacs", "line": "well"}, {"name": "pacs", "line": "pausing"}]
    assert told("readiness") == [{"ready": True}, {"ready": False}]
    ear.close()


def test_a_listener_is_told_nothing_twice_and_never_keeps_more_than_so_much() -> None:
    """What he missed is read while the next steps are told: some come both ways."""
    listener = feed.Listener(told=set())
    for number in (7, 8, 8, 7, 9):
        listener.put(number, ServerSentEvent(event="study", id=str(number)))
    assert [listener.queue.get_nowait()[0] for _ in range(3)] == [7, 8, 9]  # type: ignore[index]
    assert listener.queue.empty()
    for number in range(10, 5000):
        listener.put(number, ServerSentEvent(event="study", id=str(number)))
    kept = [listener.queue.get_nowait() for _ in range(listener.queue.qsize())]
    assert (len(kept), kept[-1]) == (feed._BEHIND + 1, None), "who is too far behind is let go"


def test_a_database_that_is_away_ends_nobodys_listening(
    site: tuple[HttpSite, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, port = site[0].store, site[1]
    ear = Ear(port)
    wait(lambda: ear.told, "the beginning")
    real = store.steps_since
    failed = threading.Event()

    def away(*_: Any, **__: Any) -> Any:
        failed.set()
        raise OSError("away")

    monkeypatch.setattr(store, "steps_since", away)
    assert failed.wait(20)
    monkeypatch.setattr(store, "steps_since", real)
    _keep(store)
    wait(lambda: ear.steps() == ["first instance"], "the step")
    ear.close()


def test_no_more_than_so_many_listen(site: tuple[HttpSite, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MOST_LISTENERS", 2)
    ears = [Ear(site[1]) for _ in range(2)]
    for ear in ears:
        wait(lambda ear=ear: ear.told, "the beginning")  # type: ignore[misc]
    answer = httpx.get(f"http://127.0.0.1:{site[1]}/api/v1/events")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert int(answer.headers["retry-after"]) > 0
    ears[0].close()

    def has_room() -> bool:
        third = Ear(site[1])
        wait(lambda: third.told or third.ended.is_set(), "an answer")
        third.close()
        return third.status == 200

    wait(has_room, "the place of who went")
    ears[1].close()


def test_a_silent_line_is_kept_open_by_comments(site: tuple[HttpSite, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.2)
    ear = Ear(site[1])
    wait(lambda: ear.comments >= 2, "comments")
    ear.close()


def test_nobody_listens_for_ever(site: tuple[HttpSite, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LONGEST_SECONDS", 0.5)
    ear = Ear(site[1])
    assert ear.ended.wait(20)
    assert ear.status == 200


def test_it_looks_only_while_somebody_listens(site: tuple[HttpSite, int], monkeypatch: pytest.MonkeyPatch) -> None:
    store, looks = site[0].store, []
    real = store.steps_since
    monkeypatch.setattr(store, "steps_since", lambda *a, **b: looks.append(1) or real(*a, **b))  # type: ignore[func-returns-value]
    assert httpx.get(f"http://127.0.0.1:{site[1]}/health/live").status_code == 200
    assert looks == []
    ears = [Ear(site[1]) for _ in range(5)]
    for ear in ears:
        wait(lambda ear=ear: ear.told, "the beginning")  # type: ignore[misc]
        ear.close()

    def is_quiet() -> bool:
        before = len(looks)
        time.sleep(3 * feed._LOOK_SECONDS)
        return len(looks) == before

    wait(is_quiet, "it to stop looking")


def test_a_stop_lets_all_go(tmp_path: Path) -> None:
    with running(tmp_path) as (_, port):
        ears = [Ear(port) for _ in range(3)]
        for ear in ears:
            wait(lambda ear=ear: ear.told, "the beginning")  # type: ignore[misc]
    assert all(ear.ended.wait(10) for ear in ears), "`listening` has also seen that the server ended"
