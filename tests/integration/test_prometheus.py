"""A real Prometheus scrapes a real service, by our rules; and the board in Grafana asks it for what there is."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from pynetdicom import AE

from service.demo.pacs import OwnPacs
from tests.acceptance.conftest import Service
from tests.acceptance.test_main_job import push, study_uid_of
from tests.prometheus_server import RULES, Prometheus
from tests.support import REPOSITORY, counterpart
from tests.toys import bright_study, write_model

BOARD: dict[str, Any] = json.loads((REPOSITORY / "deploy" / "grafana" / "overread.json").read_text())
# Of parts that this service does not have: no certificate, no audit record repository.
NOT_HERE = {"overread_certificate_not_after_timestamp_seconds", "overread_audit_waiting"}


def expressions() -> list[str]:
    """Every PromQL expression of the board, as Grafana sends it when all is chosen."""
    found = []
    for panel in BOARD["panels"]:
        found += [target["expr"] for target in panel.get("targets", [])]
    found += [it["query"]["query"] for it in BOARD["templating"]["list"] if it["type"] == "query"]
    chosen = {"$__rate_interval": "1m", "$__range": "1h", "$job": "overread", "$instance": ".*"}
    for name, value in chosen.items():
        found = [it.replace(name, value) for it in found]
    return [re.sub(r"^label_values\((.*), \w+\)$", r"\1", it) for it in found]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Prometheus]]:
    """A service that has answered a study, its page asked; and Prometheus, which has seen both."""
    folder = tmp_path_factory.mktemp("watched")
    write_model(folder / "models")
    bright_study(folder / "study")
    pacs = OwnPacs(folder / "pacs")
    service = Service(folder=folder, models=folder / "models")
    service.add_destination("DEMOPACS", pacs.port)
    prometheus = Prometheus(folder=folder / "prometheus", targets=[f"127.0.0.1:{service.http_port}"])
    try:
        service.start()
        prometheus.start()
        push(folder / "study", service)
        service.wait_for_study(study_uid_of(folder / "study"))
        prometheus.wait_until(
            lambda: bool(prometheus.ask('overread_studies{state="done"} == 1')), "it to see the answer", seconds=30
        )
        yield service, prometheus
    finally:
        prometheus.stop()
        service.stop()
        pacs.stop()


def test_it_sees_the_service(running: tuple[Service, Prometheus]) -> None:
    _, prometheus = running
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert prometheus.ask("up")[0]["value"][1] == "1"


def test_all_rules_can_be_evaluated_and_nothing_rings(running: tuple[Service, Prometheus]) -> None:
    _, prometheus = running
    rules = prometheus.rules_seen
    prometheus.wait_until(lambda: all(it["health"] != "unknown" for it in rules()), "the rules", seconds=30)
    assert [(it["name"], it.get("lastError")) for it in rules() if it["health"] != "ok"] == []
    assert len(rules()) == len(re.findall(r"- (alert|record):", RULES.read_text()))
    assert set(prometheus.firing()) <= {"OverreadNoStudies"}, "all is well"


def test_it_has_whatever_the_rules_and_the_board_name(running: tuple[Service, Prometheus]) -> None:
    _, prometheus = running
    for text in (RULES.read_text(), json.dumps(BOARD)):
        named = set(re.findall(r"\boverread_\w+", text))
        assert named
        assert named - prometheus.names() <= NOT_HERE


def test_the_live_exposition_is_by_prometheuss_rules(running: tuple[Service, Prometheus]) -> None:
    service, _ = running
    text = service.get_bytes("/metrics")
    assert text
    command = [counterpart("promtool"), "check", "metrics"]
    found = subprocess.run(command, input=text, capture_output=True, check=False)
    assert (found.returncode, found.stdout + found.stderr) == (0, b"")


def test_what_the_service_is_shows(running: tuple[Service, Prometheus]) -> None:
    _, prometheus = running

    def value(query: str) -> float:
        (series,) = prometheus.ask(query)
        return float(series["value"][1])

    assert value("min(overread_ready)") == 1
    assert value('overread_instances_received_total{outcome="received"}') > 10
    assert value('overread_studies{state="done"}') == 1
    assert value('overread_oldest_waiting_seconds{queue="delivery",destination="pacs"}') == 0
    assert value("overread_receivers") == value("overread_receivers_wanted") == 2
    assert value('overread_processes{role="receiver"}') == 2
    assert value('overread_processes{role="engine"}') == value('overread_processes{role="main"}') == 1
    assert value('overread_process_resident_bytes{role="engine"}') > 20 << 20
    assert 0 < value('overread_device_memory_bytes{kind="used"}') < value('overread_device_memory_bytes{kind="limit"}')
    assert value("overread_disk_free_bytes") < value("overread_disk_size_bytes")
    assert value("time() - overread_last_instance_received_timestamp_seconds") < 600
    assert value('overread_answers_total{model="bright",outcome="findings"}') == 1
    assert value('overread_answers_total{model="bright",outcome="failed"}') == 0
    assert value('overread_http_requests_total{route="/api/v1/studies/{study_uid}",code="2xx"}') >= 1
    assert not [it for it in prometheus.ask("overread_http_requests_total") if "1.2" in it["metric"]["route"]]


def test_associations_are_seen_while_they_are_open_and_when_they_are_refused(
    running: tuple[Service, Prometheus],
) -> None:
    service, prometheus = running
    ae = AE("SENDER")
    ae.add_requested_context("1.2.840.10008.1.1")
    open_ones = [ae.associate("127.0.0.1", service.dicom_port, ae_title="OVERREAD") for _ in range(3)]
    prometheus.wait_until(lambda: bool(prometheus.ask("overread_associations == 3")), "three", seconds=20)
    for association in open_ones:
        association.release()
    prometheus.wait_until(lambda: bool(prometheus.ask("overread_associations == 0")), "none", seconds=20)
    assert not ae.associate("127.0.0.1", service.dicom_port, ae_title="ANOTHER").is_established
    refused = 'overread_refused_associations_total{reason="node_authentication"} == 1'
    prometheus.wait_until(lambda: bool(prometheus.ask(refused)), "one that was refused", seconds=20)


@pytest.mark.parametrize("expression", expressions())
def test_the_board_asks_for_what_there_is(expression: str, running: tuple[Service, Prometheus]) -> None:
    _, prometheus = running
    prometheus.ask(expression)  # else an HTTP error: it is no PromQL
    named = set(re.findall(r"\boverread_\w+", expression))
    if not named & NOT_HERE:
        assert prometheus.ask(expression), "nothing is labelled so"


def test_a_scrape_goes_on_without_a_database(running: tuple[Service, Prometheus]) -> None:
    """That is when it is needed."""
    service, _ = running

    def rename(old: str, new: str) -> None:
        with closing(sqlite3.connect(service.folder / "var" / "overread.sqlite", timeout=30)) as database:
            database.execute(f"ALTER TABLE {old} RENAME TO {new}")

    rename("studies", "hidden")
    try:
        text = str(service.get("/metrics"))
        assert 'overread_ready{part="disk"} 1.0' in text
        assert "overread_studies{" not in text
    finally:
        rename("hidden", "studies")
    assert service.events("metrics.no_figures")
    assert 'overread_studies{state="done"} 1.0' in str(service.get("/metrics"))
