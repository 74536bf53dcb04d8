"""Every alert rings once by its real cause: a real service, a real Prometheus with our rules, and what goes wrong.

The rules are quickened (minutes are seconds, ages a 600th), nothing else of them is changed.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from pynetdicom import AE

from tests.acceptance.conftest import Orthanc, Service, wait
from tests.acceptance.test_clear_answers import small_disk as small_disk
from tests.acceptance.test_many_models import engine_pid, push, studies
from tests.acceptance.test_profiles import storescp
from tests.prometheus_server import RULES, Prometheus, quickened
from tests.slow_models import write_greedy_model, write_hanging_model, write_slow_model
from tests.support import free_port
from tests.toys import write_model
from tests.words import tables

FULL = os.environ.get("OVERREAD_FULL") == "1"
slow = pytest.mark.skipif(not FULL, reason="takes minutes: OVERREAD_FULL=1")
Watch = Callable[[Service], Prometheus]


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    """What is undone at the end, the last first."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def watch(tmp_path: Path, ending: ExitStack) -> Watch:
    """Start a service, and a Prometheus that has seen it well."""

    def watched(service: Service) -> Prometheus:
        ending.callback(service.stop)
        service.start()
        made = Prometheus(
            folder=tmp_path / "prometheus",
            targets=[f"127.0.0.1:{service.http_port}"],
            rules=quickened(RULES.read_text()),
        )
        ending.callback(made.stop)
        made.start()
        made.wait_until(lambda: bool(made.ask("count_over_time(up[30s]) > 3")), "a few scrapes", seconds=60)
        return made

    return watched


def rings(prometheus: Prometheus, name: str, *, seconds: float = 60, **labels: str) -> dict[str, Any]:
    """Wait until an alert rings with these labels; it says in words that somebody has to look, and at what."""
    found: list[dict[str, Any]] = []

    def is_heard() -> bool:
        found[:] = [it for it in prometheus.firing().get(name, []) if labels.items() <= it["labels"].items()]
        return bool(found)

    prometheus.wait_until(is_heard, f"{name} {labels}", seconds=seconds)
    said = found[0]["annotations"]
    assert not [words for words in said.values() if "{{" in words or "error" in words.lower()], said
    assert said["runbook"].endswith(f"#{name}")
    print(f"{name}: {said['summary']}")
    return found[0]


def is_silent(prometheus: Prometheus, *names: str) -> None:
    """None of these rings now."""
    assert not set(names) & set(prometheus.firing())


@contextmanager
def _meanwhile(work: Callable[[], None], stop: threading.Event) -> Iterator[None]:
    """Do something in a thread, until the end of the block stops it."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# --- What the tests do to the rules ---------------------------------------------------------------------------------


def test_the_quickened_rules_are_the_same_but_for_their_times() -> None:
    before, after = (yaml.safe_load(text)["groups"] for text in (RULES.read_text(), quickened(RULES.read_text())))
    times, limits = re.compile(r"\b\d+[smh]\b"), re.compile(r"(?<=> )\d+")
    for old, new in zip(before[1]["rules"], after[1]["rules"], strict=True):
        assert {**old, "expr": "", "for": ""} == {**new, "expr": "", "for": ""}
        assert ("for" in old) == ("for" in new)
        bare_old, bare_new = (limits.sub("", times.sub("", it["expr"])) for it in (old, new))
        assert bare_old == bare_new
        for was, it in zip(limits.findall(old["expr"]), limits.findall(new["expr"]), strict=True):
            assert int(it) == (int(was) if int(was) < 1000 else int(was) // 600), "how many stays how many"
        assert not re.search(r"\d[mh]\b", new["expr"] + new.get("for", "")), "all of them are seconds now"
    by_name = {rule["alert"]: rule for rule in after[1]["rules"]}
    assert by_name["OverreadDestinationAway"]["for"] == "10s"
    assert "[15s]" in by_name["OverreadProofFailed"]["expr"]
    assert by_name["OverreadStudyStuck"]["expr"].endswith("> 24")
    assert "offset 12s" in by_name["OverreadNoStudies"]["expr"]
    assert after[0]["rules"][1] == {"record": "overread:working_hours", "expr": "vector(1)"}


def test_every_alert_has_its_real_cause_here() -> None:
    text = Path(__file__).read_text()
    caused = set(re.findall(r'rings\(\s*prometheus, "(\w+)"', text))
    assert caused == {rule["alert"] for rule in tables.alerts()}


# --- Destinations ---------------------------------------------------------------------------------------------------


def test_a_pacs_that_is_killed(service: Service, orthanc: Orthanc, tmp_path: Path, watch: Watch) -> None:
    service.add_destination("ORTHANC", orthanc.port, more="longest_pause_seconds = 2")
    prometheus = watch(service)
    first, second = studies(tmp_path, 2)
    service.wait_for_study(push(first, service))
    is_silent(prometheus, "OverreadDestinationAway", "OverreadDeliveriesWait", "OverreadStudyStuck")
    orthanc.kill()
    uid = push(second, service)
    assert rings(prometheus, "OverreadDeliveriesWait")["labels"]["destination"] == "pacs"
    rings(prometheus, "OverreadDestinationAway", destination="pacs")
    rings(prometheus, "OverreadStudyStuck", state="delivering")
    orthanc.start()
    service.wait_for_study(uid)
    prometheus.wait_until(lambda: not set(prometheus.firing()) - {"OverreadNoStudies"}, "peace", seconds=60)


def test_a_pacs_that_refuses_and_one_that_gives_no_receipt(
    service: Service, orthanc: Orthanc, tmp_path: Path, watch: Watch, ending: ExitStack
) -> None:
    service.add_destination("NOBODY", orthanc.port, name="refusing")
    mute = ending.enter_context(storescp(tmp_path / "mute", "SegmentationStorage", "Comprehensive3DSRStorage"))
    service.add_destination("MUTE", mute, name="mute")
    prometheus = watch(service)
    is_silent(prometheus, "OverreadDeliveryRefused", "OverreadDeliveryUnconfirmed")
    (folder,) = studies(tmp_path, 1)
    push(folder, service)
    rings(prometheus, "OverreadDeliveryRefused", destination="refusing")
    assert rings(prometheus, "OverreadDeliveryUnconfirmed")["labels"]["destination"] == "mute"


# --- Models ---------------------------------------------------------------------------------------------------------


def test_a_network_that_hangs(service: Service, tmp_path: Path, watch: Watch) -> None:
    write_hanging_model(service.models)
    service.extra_analysis = "patch_seconds = 1.0"
    prometheus = watch(service)
    is_silent(prometheus, "OverreadBackendFails", "OverreadAnswersFail", "OverreadNotReady")
    for folder in studies(tmp_path, 3):
        push(folder, service)
    rings(prometheus, "OverreadBackendFails", network="hanging")
    rings(prometheus, "OverreadAnswersFail", model="hanging")
    rings(prometheus, "OverreadNotReady", part="models")
    is_silent(prometheus, "OverreadProofFailed", "OverreadDeviceMemoryShort")


def test_an_engine_that_dies_again_and_again(service: Service, tmp_path: Path, watch: Watch) -> None:
    write_slow_model(service.models)
    prometheus = watch(service)
    for folder in studies(tmp_path, 6):
        push(folder, service)
    stop, batches = threading.Event(), "sum(overread_batch_seconds_count) + sum(overread_batch_failures_total)"

    def kill() -> None:
        while not stop.wait(0.3):
            with suppress(ProcessLookupError):
                os.kill(engine_pid(service), signal.SIGSEGV)

    wait(lambda: bool(prometheus.ask(f"{batches} > 0")), "patches to run", seconds=60)
    with _meanwhile(kill, stop):
        rings(prometheus, "OverreadBackendFails", network="slow")


def test_a_network_that_wants_more_memory_than_there_is(service: Service, tmp_path: Path, watch: Watch) -> None:
    write_greedy_model(service.models)
    prometheus = watch(service)
    is_silent(prometheus, "OverreadDeviceMemoryShort")
    (folder,) = studies(tmp_path, 1)
    push(folder, service)
    rings(prometheus, "OverreadDeviceMemoryShort")


def test_results_that_lie_beside_their_finding(
    service: Service, orthanc: Orthanc, tmp_path: Path, watch: Watch
) -> None:
    service.command = ("-m", "tests.acceptance.shifted_results")
    service.add_destination("ORTHANC", orthanc.port)
    prometheus = watch(service)
    is_silent(prometheus, "OverreadProofFailed")
    (folder,) = studies(tmp_path, 1)
    uid = push(folder, service)
    rings(prometheus, "OverreadProofFailed", model="bright")
    (answer,) = service.wait_for_study(uid)["answers"]
    assert answer["outcome"] == "failed"
    assert {it["Modality"] for it in orthanc.find(uid)} == {"SR"}, "what did not prove was not sent"


def test_more_studies_than_are_analysed(service: Service, tmp_path: Path, watch: Watch) -> None:
    (service.models / "bright").rename(tmp_path / "aside")
    write_slow_model(service.models, rounds=2000)
    service.extra_analysis = "studies_at_once = 1"
    prometheus = watch(service)
    is_silent(prometheus, "OverreadAnalysisWaits")
    for folder in studies(tmp_path, 4):
        push(folder, service)
    rings(prometheus, "OverreadAnalysisWaits", queue="analysis")


# --- Receiving ------------------------------------------------------------------------------------------------------


def _receivers(service: Service) -> list[int]:
    """The numbers of the receiving processes: those children of the service that have its DICOM port open."""
    assert service.process
    listening = re.compile(rf"^\s*\d+: 0100007F:{service.dicom_port:04X} 00000000:0000 0A .*$", re.MULTILINE)
    nodes = {line.split()[9] for line in listening.findall(Path("/proc/net/tcp").read_text())}
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) != service.process.pid:
                continue
            links = {os.readlink(it) for it in (stat.parent / "fd").iterdir()}
            if links & {f"socket:[{node}]" for node in nodes}:
                found.append(int(stat.parent.name))
    return found


def test_receivers_that_are_killed_again_and_again(service: Service, watch: Watch) -> None:
    prometheus = watch(service)
    is_silent(prometheus, "OverreadReceiversMissing")
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.5):
            for number in _receivers(service):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)

    with _meanwhile(kill, stop):
        rings(prometheus, "OverreadReceiversMissing")
    prometheus.wait_until(lambda: not set(prometheus.firing()) - {"OverreadNoStudies"}, "peace", seconds=60)


def test_a_disk_without_room(small_disk: Path, tmp_path: Path, watch: Watch) -> None:
    write_model(tmp_path / "models")
    service = _Careful(folder=tmp_path, models=tmp_path / "models", store=str(small_disk / "var"))
    prometheus = watch(service)
    is_silent(prometheus, "OverreadDiskFull", "OverreadInstancesRefused", "OverreadNotReady")
    disk = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(disk.f_bavail * disk.f_frsize - (2 << 20)))
    (folder,) = studies(tmp_path, 1)
    with suppress(Exception):
        push(folder, service)  # dcmsend ends with an error
    rings(prometheus, "OverreadInstancesRefused", outcome="out_of_space")
    rings(prometheus, "OverreadDiskFull")
    rings(prometheus, "OverreadNotReady", part="disk")


@slow
def test_a_disk_that_fills(small_disk: Path, tmp_path: Path, watch: Watch) -> None:
    write_model(tmp_path / "models")
    service = _Careful(folder=tmp_path, models=tmp_path / "models", store=str(small_disk / "var"))
    prometheus, stop = watch(service), threading.Event()

    def fill() -> None:
        with (small_disk / "filler").open("ab", buffering=0) as filler:
            while not stop.wait(1.0):
                filler.write(bytes(64 << 10))

    with _meanwhile(fill, stop):
        rings(prometheus, "OverreadDiskFills", seconds=150)
    is_silent(prometheus, "OverreadDiskFull")


class _Careful(Service):
    """Keeps 4 MiB of its disk free."""

    @property
    def config(self) -> Path:
        path = super().config
        path.write_text(path.read_text().replace("minimum_free_gib = 0.0", "minimum_free_gib = 0.00390625"))
        return path


def test_a_pacs_that_sends_no_more(service: Service, tmp_path: Path, watch: Watch) -> None:
    prometheus = watch(service)
    (folder,) = studies(tmp_path, 1)
    service.wait_for_study(push(folder, service))
    rings(prometheus, "OverreadNoStudies")


# --- The service ----------------------------------------------------------------------------------------------------


def test_a_service_that_is_killed(service: Service, watch: Watch) -> None:
    prometheus = watch(service)
    is_silent(prometheus, "OverreadDown")
    service.kill()
    rings(prometheus, "OverreadDown")
    service.start()
    prometheus.wait_until(lambda: "OverreadDown" not in prometheus.firing(), "peace", seconds=60)


# --- The doors ------------------------------------------------------------------------------------------------------


def _certificate(folder: Path, name: str, *, days: float) -> str:
    """A certificate that ends in so many days; the settings that name it."""
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1", not_after=datetime.now(UTC) + timedelta(days=days))
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    for number, blob in enumerate(made.cert_chain_pems):
        blob.write_to_path(str(certificate), append=number > 0)
    made.private_key_pem.write_to_path(str(key))
    return f'certificate_file = "{certificate}", key_file = "{key}"'


def test_certificates_that_end(service: Service, tmp_path: Path, watch: Watch) -> None:
    service.extra_intake = f"tls = {{ {_certificate(tmp_path, 'ours', days=2)} }}"
    later, good = (_certificate(tmp_path, f"of-{days}-days", days=days) for days in (10, 60))
    service.add_destination("PACS", free_port(), name="later", more=f"tls = {{ {later} }}")
    service.add_destination("PACS", free_port(), name="good", more=f"tls = {{ {good} }}")
    prometheus = watch(service)
    rings(prometheus, "OverreadCertificateEnds", use="intake")
    rings(prometheus, "OverreadCertificateEndsSoon", use="destination later")
    ringing = [
        it["labels"]["use"] for name, those in prometheus.firing().items() if "Certificate" in name for it in those
    ]
    assert sorted(ringing) == ["destination later", "intake"]


def test_an_audit_repository_that_is_away(service: Service, tmp_path: Path, watch: Watch) -> None:
    service.routes = f'[audit]\nsyslog = "127.0.0.1:{free_port()}"\nprotocol = "tcp"'
    prometheus = watch(service)
    (folder,) = studies(tmp_path, 1)
    push(folder, service)
    rings(prometheus, "OverreadAuditWaits")


def test_somebody_who_tries_ae_titles(service: Service, watch: Watch) -> None:
    prometheus = watch(service)

    def is_let_in(number: int) -> bool:
        ae = AE("SENDER")
        ae.add_requested_context("1.2.840.10008.1.1")
        association = ae.associate("127.0.0.1", service.dicom_port, ae_title=f"GUESS{number}")
        return bool(association.is_established)

    assert not any(is_let_in(number) for number in range(40))
    rings(prometheus, "OverreadStrangers", reason="node_authentication")


def test_somebody_who_tries_tokens(service: Service, watch: Watch) -> None:
    service.destinations += f'\n[[api.tokens]]\nname = "viewer"\nrole = "viewer"\nsha256 = "{"0" * 64}"\n'
    prometheus = watch(service)

    def try_door(number: int) -> int:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{service.http_port}/api/v1/studies", headers={"Authorization": f"Bearer guess-{number}"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=20) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as exc:
            return exc.code

    assert {try_door(number) for number in range(40)} == {401}
    rings(prometheus, "OverreadStrangers", reason="who")
