"""What is so at one moment, as gauges: whoever is asked for the metrics fills a `Snapshot`, and nothing is kept.

Labels have few values: what is not configured is "other".
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.gauges import SINCE, Figures
from service.types import DeliveryState, StudyState

OTHER: Final = "other"
LOADING: Final = "they are being loaded"  # what `Snapshot.parts` says of the models at the start
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that the gauges say."""

    now: float  # seconds since 1970
    version: str  # of Overread
    backend: str  # its name, with the device
    parts: Mapping[str, str]  # as `/health/ready` names them: empty if well, else what is wrong
    figures: Figures | None  # of the store; None: the database does not answer
    destinations: Collection[str]  # the configured ones
    lines: Mapping[str, bool] = field(default_factory=dict)  # whether associations with each come about; not: no work
    device_used_bytes: int = 0  # by the scheduler's account
    device_limit_bytes: int = 0  # 0: the backend sees to its memory itself
    networks: Mapping[str, int] = field(default_factory=dict)  # the loaded ones, with what each holds while idle, bytes
    disk_free_bytes: int  # of the store's folder, for us
    disk_size_bytes: int
    disk_reserved_bytes: int  # what is kept free: below it instances are refused
    associations: int = 0  # open ones, of all receiving processes
    receivers: int = 0  # receiving processes that listen
    receivers_wanted: int = 0
    processes: Mapping[str, Sequence[int]] = field(default_factory=dict)  # numbers of the processes, by role
    certificates: Mapping[str, float] = field(default_factory=dict)  # when each ends, by use; 0: it can't be read
    audit_waiting: int | None = None  # audit messages that the repository lacks; None: there is no repository


class StateGauges(Collector):
    """A snapshot's gauges."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """The gauges; called by prometheus_client."""
        yield from _service(self._snapshot)
        yield from _machine(self._snapshot)
        yield from _figures(self._snapshot)


def _gauge(name: str, words: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    gauge = GaugeMetricFamily(name, words, labels=labels)
    for key in sorted(values):
        gauge.add_metric(key, values[key])
    return gauge


def _one(name: str, words: str, value: float | None) -> Metric:
    return _gauge(name, words, (), {} if value is None else {(): value})


def _service(it: Snapshot) -> Iterator[Metric]:
    yield _gauge(
        "overread_build_info", "1; the labels say what runs.", ("version", "backend"), {(it.version, it.backend): 1}
    )
    yield _gauge(
        "overread_ready",
        "Whether a part is well, as /health/ready says: 1 or 0.",
        ("part",),
        {(part,): float(not reason) for part, reason in it.parts.items()},
    )
    yield _gauge(
        "overread_destination_up",
        "Whether associations with a destination come about: 1 or 0.",
        ("destination",),
        {(name,): float(well) for name, well in it.lines.items()},
    )
    yield _one("overread_associations", "Open associations of senders.", it.associations)
    yield _one("overread_receivers", "Receiving processes that listen.", it.receivers)
    yield _one("overread_receivers_wanted", "Receiving processes that are to listen.", it.receivers_wanted)
    yield _gauge(
        "overread_certificate_not_after_timestamp_seconds",
        "When a certificate of ours ends, by what it is for; 0: it can't be read.",
        ("use",),
        {(use,): ends for use, ends in it.certificates.items()},
    )
    yield _one("overread_audit_waiting", "Audit messages that the repository does not have yet.", it.audit_waiting)


def _machine(it: Snapshot) -> Iterator[Metric]:
    yield _gauge(
        "overread_device_memory_bytes",
        "Memory that loaded networks and running batches take (used), and may take (limit; 0: the backend sees to it).",
        ("kind",),
        {("used",): it.device_used_bytes, ("limit",): it.device_limit_bytes},
    )
    yield _gauge(
        "overread_network_resident_bytes",
        "What a loaded network holds while it is idle.",
        ("network",),
        {(name,): held for name, held in it.networks.items()},
    )
    yield _one("overread_disk_free_bytes", "Free on the disk of the store's folder.", it.disk_free_bytes)
    yield _one("overread_disk_size_bytes", "Size of the disk of the store's folder.", it.disk_size_bytes)
    yield _one(
        "overread_disk_reserved_bytes", "Kept free there: below it instances are refused.", it.disk_reserved_bytes
    )
    taken: dict[tuple[str, ...], list[tuple[int, int, int]]] = {
        (role,): [_taken(number) for number in numbers] for role, numbers in it.processes.items()
    }
    for name, words, which in (
        ("overread_processes", "Processes of Overread, by role.", 0),
        ("overread_process_resident_bytes", "Memory that they have, shared pages in each.", 1),
        ("overread_process_open_fds", "Files and connections that they have open.", 2),
    ):
        yield _gauge(name, words, ("role",), {role: sum(it[which] for it in those) for role, those in taken.items()})


def _taken(number: int) -> tuple[int, int, int]:
    """Of a process: 1, its resident bytes, its open files; nothing if it is gone (proc_pid_statm(5))."""
    folder = Path("/proc", str(number))
    try:
        return 1, int((folder / "statm").read_text().split()[1]) * _PAGE_BYTES, len(os.listdir(folder / "fd"))
    except (OSError, IndexError):
        return 0, 0, 0


def _figures(it: Snapshot) -> Iterator[Metric]:
    """Of the store; without values where the database does not answer, as `overread_ready` says: 0 would be a lie."""
    kept = it.figures
    studies: dict[tuple[str, ...], float] = {}
    longest: dict[tuple[str, ...], float] = {}
    deliveries: dict[tuple[str, ...], float] = {}
    waiting: dict[tuple[str, ...], float] = {}
    if kept:
        studies = {(state,): kept.studies.get(state, 0) for state in StudyState}
        longest = {(state,): _age(it, kept.in_state_since.get(state)) for state in SINCE}
        deliveries = {(name, state): 0.0 for name in it.destinations for state in DeliveryState}
        for (name, state), count in kept.deliveries.items():
            key = (_known(it, name), state)
            deliveries[key] = deliveries.get(key, 0) + count
        waiting = {("delivery", name): 0.0 for name in it.destinations}
        waiting["analysis", ""] = _age(it, kept.unanswered_since)
        for name, since in kept.undelivered_since.items():
            key = ("delivery", _known(it, name))
            waiting[key] = max(waiting.get(key, 0.0), _age(it, since))
    yield _gauge("overread_studies", "Studies by state.", ("state",), studies)
    yield _gauge(
        "overread_study_longest_in_state_seconds",
        "How long the study has been in its state that is in it for longest; 0: none is.",
        ("state",),
        longest,
    )
    yield _gauge("overread_deliveries", "Deliveries by destination and state.", ("destination", "state"), deliveries)
    yield _gauge(
        "overread_oldest_waiting_seconds",
        "How long the oldest waits: a study for its analysis, a result for its delivery. 0: none waits.",
        ("queue", "destination"),
        waiting,
    )
    yield _one(
        "overread_last_instance_received_timestamp_seconds",
        "When the last instance came.",
        kept.last_instance_at if kept else None,
    )


def _known(it: Snapshot, destination: str) -> str:
    return destination if destination in it.destinations else OTHER


def _age(it: Snapshot, since: float | None) -> float:
    return 0.0 if since is None else max(0.0, it.now - since)
