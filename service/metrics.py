"""What is counted, by Prometheus's rules: base units in the names, a bounded set of labels, no patient data.

Each process on a database counts what it did itself: its receivers, which are processes of their own, report to it.
What is so now, and not counted, is in `snapshot.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from service.audit import Alert
from service.errors import BackendError
from service.snapshot import OTHER, Snapshot, StateGauges
from service.types import DeliveryState, Outcome

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each: when it began, which nobody asks

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
INSTANCE_OUTCOMES: Final = (
    *("received", "repeated", "conflicting", "ours"),
    *("out_of_space", "wrong_class", "not_understood", "not_supported", "failed"),
)
REFUSALS: Final = {kind: kind.replace(" ", "_") for kind in Alert}  # as the audit trail names them
REQUEST_REFUSALS: Final = {401: "who", 403: "right", 413: "too_large", 429: "too_many"}  # by HTTP status
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

INSTANCES = Counter("overread_instances_received", "Instances offered by C-STORE, by what became of them.", ["outcome"])
RECEIVED_BYTES = Counter("overread_received_bytes", "Bytes of the data sets that were offered.")
STAGE_SECONDS = Histogram(
    "overread_stage_seconds", "Time of each stage of a model's work on a study.", ["model", "stage"], buckets=_SECONDS
)
PATCHES = Counter("overread_patches", "Patches that networks answered.", ["network"])
BATCH_PATCHES = Histogram(
    "overread_batch_patches",
    "Patches that ran together, of one network.",
    ["network"],
    buckets=(1, 2, 4, 8, 16, 32, 64),
)
BATCH_SECONDS = Histogram(
    "overread_batch_seconds", "Time of a batch on the backend.", ["network"], buckets=(0.005, 0.01, 0.02, *_SECONDS)
)
BATCH_FAILURES = Counter("overread_batch_failures", "Batches that did not come back.", ["network", "reason"])
NETWORK_LOADS = Counter("overread_network_loads", "How often a network was loaded into the device.", ["network"])
ANSWERS = Counter("overread_answers", "Answers to studies, by model and outcome.", ["model", "outcome"])
PROOF_FAILURES = Counter(
    "overread_proof_failures", "Answers whose objects did not prove, and were not sent: a fault of Overread.", ["model"]
)
DELIVERIES = Counter("overread_delivery_attempts", "Attempts to deliver an object.", ["destination", "outcome"])
LAST_SLICE_TO_CONFIRMED = Histogram(
    "overread_last_slice_to_confirmed_seconds",
    "From a study's last instance to the confirmation of a result of a model at a destination.",
    ["model", "destination"],
    buckets=(*_SECONDS, 3600, 14400, 86400),
)


REFUSED_ASSOCIATIONS = Counter(
    "overread_refused_associations", "Associations that were refused, by the kind of security alert.", ["reason"]
)
RECEIVER_DEATHS = Counter("overread_receiver_deaths", "Receiving processes that died, and were replaced.")
REQUESTS = Counter("overread_http_requests", "HTTP requests, by route, not by address.", ["route", "method", "code"])
REQUEST_SECONDS = Histogram(
    "overread_http_request_seconds",
    "From an HTTP request to the begin of its answer.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
REFUSED_REQUESTS = Counter(
    "overread_refused_requests",
    "HTTP requests that were refused, by what was wrong.",
    ["reason"],
)


def prepare(*, models: Iterable[str], networks: Iterable[str], destinations: Iterable[str]) -> None:
    """Let every counter that an alert looks at begin at 0: Prometheus sees no increase where nothing was before."""
    for outcome in INSTANCE_OUTCOMES:
        INSTANCES.labels(outcome=outcome)
    for kind in Alert:
        REFUSED_ASSOCIATIONS.labels(reason=REFUSALS[kind])
    for reason in REQUEST_REFUSALS.values():
        REFUSED_REQUESTS.labels(reason=reason)
    for model in models:
        PROOF_FAILURES.labels(model=model)
        for answer in Outcome:
            ANSWERS.labels(model=model, outcome=answer)
    for network in networks:
        NETWORK_LOADS.labels(network=network)
        for error in _errors(BackendError):
            BATCH_FAILURES.labels(network=network, reason=error)
    for destination in destinations:
        for state in DeliveryState:
            DELIVERIES.labels(destination=destination, outcome=state)


def count_instance(outcome: str, size: int) -> None:
    """Count one C-STORE request: what became of it, and the bytes of its data set."""
    INSTANCES.labels(outcome=outcome if outcome in INSTANCE_OUTCOMES else OTHER).inc()
    RECEIVED_BYTES.inc(size)


def count_refused_association(kind: Alert) -> None:
    """Count an association that was not accepted, by the kind of its security alert."""
    REFUSED_ASSOCIATIONS.labels(reason=REFUSALS[kind]).inc()


def count_request(route: str, method: str, status: int, seconds: float) -> None:
    """Count one HTTP request.

    Parameters
    ----------
    route
        As the application knows it, e.g. ``/api/v1/studies/{study_uid}``; empty: it knows none.
    status
        Of the answer.
    seconds
        Until the answer began.
    """
    route = route or OTHER
    REQUESTS.labels(route=route, method=method if method in _METHODS else OTHER, code=f"{status // 100}xx").inc()
    REQUEST_SECONDS.labels(route=route).observe(seconds)
    if status in REQUEST_REFUSALS:
        REFUSED_REQUESTS.labels(reason=REQUEST_REFUSALS[status]).inc()


def count_batch(network: str, patches: int, seconds: float) -> None:
    """Count a batch that came back."""
    PATCHES.labels(network=network).inc(patches)
    BATCH_PATCHES.labels(network=network).observe(patches)
    BATCH_SECONDS.labels(network=network).observe(seconds)


def exposition(snapshot: Snapshot) -> bytes:
    """All metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(StateGauges(snapshot))
    return generate_latest(REGISTRY) + generate_latest(registry)


def _errors(kind: type[BackendError]) -> Iterable[str]:
    yield kind.__name__
    for below in kind.__subclasses__():
        yield from _errors(below)
