"""What is counted, in Prometheus's text format, with labels that cannot grow without bound."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service import metrics
from service.api.counted import Counted
from service.audit import Alert
from service.intake import keep
from service.snapshot import Snapshot
from service.types import DeliveryState, StudyState
from tests.snapshots import figures, snapshot
from tests.support import counterpart

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _samples(of: Snapshot | None = None) -> Samples:
    families = text_string_to_metric_families(metrics.exposition(of or snapshot()).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def _of(samples: Samples, name: str) -> dict[str, float]:
    """A metric's values by its labels' values, in the order of their names."""
    return {",".join(value for _, value in labels): it for (found, labels), it in samples.items() if found == name}


BYTES = ("overread_received_bytes_total", ())


def test_an_instance_and_its_bytes_are_counted() -> None:
    before = _samples()
    metrics.count_instance("repeated", 500)
    metrics.count_instance("repeated", 20)
    metrics.count_instance("WHAT CAME", 3)
    after = _samples()
    for outcome, more in (("repeated", 2), ("other", 1)):
        key = ("overread_instances_received_total", (("outcome", outcome),))
        assert after[key] - before.get(key, 0) == more
    assert after[BYTES] - before[BYTES] == 523
    assert "WHAT CAME" not in metrics.exposition(snapshot()).decode()


def test_every_outcome_of_an_instance_is_a_known_one() -> None:
    assert {*keep._OUTCOMES.values(), keep.FAILED} == set(metrics.INSTANCE_OUTCOMES)


def test_a_refused_association_is_counted_by_the_kind_of_its_alert() -> None:
    def refused() -> dict[str, float]:
        return _of(_samples(), "overread_refused_associations_total")

    metrics.prepare(models=[], networks=[], destinations=[])
    before = refused()
    metrics.count_refused_association(Alert.NODE_AUTHENTICATION)
    assert refused() == {**before, "node_authentication": before["node_authentication"] + 1}


def test_states_are_read_anew_each_time() -> None:
    samples = _samples(
        snapshot(
            lines={"pacs": False, "archive": True},
            destinations=["pacs", "archive"],
            figures=figures(studies={"receiving": 2, "done": 7}, deliveries={("pacs", "queued"): 3}),
        )
    )
    assert _of(samples, "overread_destination_up") == {"pacs": 0, "archive": 1}
    assert _of(samples, "overread_studies") == dict.fromkeys(map(str, StudyState), 0) | {"receiving": 2, "done": 7}
    deliveries = _of(samples, "overread_deliveries")
    assert deliveries.pop("pacs,queued") == 3
    assert len(deliveries) == 2 * len(DeliveryState) - 1
    assert set(deliveries.values()) == {0}


def test_what_waits_is_as_old_as_its_oldest() -> None:
    samples = _samples(
        snapshot(
            now=1000.0,
            destinations=["pacs", "idle"],
            figures=figures(
                in_state_since={"receiving": 400.0, "delivering": 1001.0},
                unanswered_since=990.0,
                undelivered_since={"pacs": 100.0, "gone": 700.0, "long gone": 600.0},
                last_instance_at=950.0,
            ),
        )
    )
    assert _of(samples, "overread_oldest_waiting_seconds") == {
        ",analysis": 10,
        "pacs,delivery": 900,
        "idle,delivery": 0,
        "other,delivery": 400,
    }
    longest = _of(samples, "overread_study_longest_in_state_seconds")
    assert longest == {"receiving": 600, "analysing": 0, "delivering": 0}
    assert _of(samples, "overread_last_instance_received_timestamp_seconds") == {"": 950}


def test_destinations_that_are_configured_no_more_are_one() -> None:
    gone = {("pacs", "sent"): 1, ("old", "refused"): 2, ("older", "refused"): 3}
    samples = _samples(snapshot(destinations=["pacs"], figures=figures(deliveries=gone)))
    counted = {key: count for key, count in _of(samples, "overread_deliveries").items() if count}
    assert counted == {"pacs,sent": 1, "other,refused": 5}


def test_without_a_database_the_rest_is_still_told() -> None:
    samples = _samples(snapshot(figures=None, parts={"database": "OperationalError", "disk": ""}))
    assert _of(samples, "overread_ready") == {"database": 0, "disk": 1}
    assert not _of(samples, "overread_studies")
    assert not _of(samples, "overread_oldest_waiting_seconds"), "0 would say that nothing waits"


def test_processes_are_added_up_by_their_role() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    try:
        samples = _samples(snapshot(processes={"main": [os.getpid()], "receiver": [child.pid, os.getpid(), gone.pid]}))
    finally:
        child.communicate()
    assert _of(samples, "overread_processes") == {"main": 1, "receiver": 2}
    held = _of(samples, "overread_process_resident_bytes")
    assert held["receiver"] > held["main"] > 10 << 20
    assert _of(samples, "overread_process_open_fds")["main"] >= 3


def test_every_counter_that_an_alert_looks_at_begins_at_zero() -> None:
    metrics.prepare(models=["quiet-model"], networks=["quiet-network"], destinations=["quiet-pacs"])
    samples = _samples()
    assert _of(samples, "overread_proof_failures_total")["quiet-model"] == 0
    assert _of(samples, "overread_answers_total")["quiet-model,failed"] == 0
    assert _of(samples, "overread_batch_failures_total")["quiet-network,OutOfMemory"] == 0
    assert _of(samples, "overread_batch_failures_total")["quiet-network,BackendCrashed"] == 0
    assert _of(samples, "overread_delivery_attempts_total")["quiet-pacs,unconfirmed"] == 0
    assert set(metrics.INSTANCE_OUTCOMES) <= set(_of(samples, "overread_instances_received_total"))
    assert set(_of(samples, "overread_refused_requests_total")) == set(metrics.REQUEST_REFUSALS.values())


@pytest.fixture
def application() -> FastAPI:
    app = FastAPI()

    @app.get("/of/{uid}")
    def of(uid: str) -> str:
        if uid == "1.2.3":
            raise HTTPException(403)
        if uid == "9":
            raise RuntimeError
        return uid

    app.add_middleware(Counted)
    return app


def test_requests_are_counted_by_route_and_never_by_address(application: FastAPI) -> None:
    client = TestClient(application, raise_server_exceptions=False)
    before = _samples()
    for path in ("/of/1.2.840.77", "/of/1.2.3", "/of/9", "/nowhere/1.2.840.78"):
        client.get(path)
    client.request("PROPFIND", "/of/5")
    after = _samples()

    def more(name: str) -> dict[str, float]:
        was = _of(before, name)
        return {key: value - was.get(key, 0) for key, value in _of(after, name).items() if value != was.get(key, 0)}

    assert more("overread_http_requests_total") == {
        "2xx,GET,/of/{uid}": 1,
        "4xx,GET,/of/{uid}": 1,
        "5xx,GET,/of/{uid}": 1,
        "4xx,GET,other": 1,
        "4xx,other,/of/{uid}": 1,
    }
    assert more("overread_refused_requests_total") == {"right": 1}
    assert more("overread_http_request_seconds_count") == {"/of/{uid}": 4, "other": 1}
    assert "1.2.840.7" not in metrics.exposition(snapshot()).decode()


def test_prometheus_has_nothing_against_the_names() -> None:
    full = snapshot(
        parts={"disk": ""},
        destinations=["pacs"],
        lines={"pacs": True},
        networks={"network": 5},
        processes={"main": [os.getpid()]},
        certificates={"intake": 5.0},
        audit_waiting=3,
        figures=figures(
            studies={"done": 1},
            in_state_since={"receiving": 1.0},
            deliveries={("pacs", "sent"): 1},
            undelivered_since={"pacs": 1.0},
            last_instance_at=1.0,
        ),
    )
    metrics.prepare(models=["m"], networks=["n"], destinations=["pacs"])
    metrics.STAGE_SECONDS.labels(model="m", stage="infer").observe(0.2)
    metrics.LAST_SLICE_TO_CONFIRMED.labels(model="m", destination="pacs").observe(100)
    metrics.count_batch("n", 3, 0.1)
    metrics.count_request("/", "GET", 200, 0.1)
    text = metrics.exposition(full)
    found = subprocess.run([counterpart("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (found.returncode, found.stdout + found.stderr) == (0, b"")
    families = {it.name: it for it in text_string_to_metric_families(text.decode()) if it.name.startswith("overread_")}
    empty = [name for name, family in families.items() if not family.samples]
    assert not empty, "each was looked at"
    labels = {label for family in families.values() for sample in family.samples for label in sample.labels}
    assert labels <= {
        *("outcome", "model", "stage", "destination", "state", "network", "reason", "le", "part", "queue", "kind"),
        *("role", "use", "version", "backend", "route", "method", "code"),
    }
