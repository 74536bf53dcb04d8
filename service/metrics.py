"""What is counted, by Prometheus's rules: base units in the names, a bounded set of labels, no patient data.

All counting is done in the worker's process: the receivers report to it what they did.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

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
LAST_SLICE_TO_DELIVERED = Histogram(
    "overread_last_slice_to_delivered_seconds",
    "From a study's last instance to a result's confirmation at a destination.",
    ["destination"],
    buckets=(*_SECONDS, 3600, 14400, 86400),
)


def count_instance(outcome: str, size: int) -> None:
    """Count one C-STORE request: what became of it, and the bytes of its data set."""
    INSTANCES.labels(outcome=outcome).inc()
    RECEIVED_BYTES.inc(size)


def count_batch(network: str, patches: int, seconds: float) -> None:
    """Count a batch that came back."""
    PATCHES.labels(network=network).inc(patches)
    BATCH_PATCHES.labels(network=network).observe(patches)
    BATCH_SECONDS.labels(network=network).observe(seconds)


class StateGauges(Collector):
    """Numbers of things by state, read from the store when they are asked for.

    Parameters
    ----------
    studies
        By state.
    deliveries
        By destination and state.
    """

    def __init__(self, studies: dict[str, int], deliveries: dict[tuple[str, str], int]) -> None:
        self._studies, self._deliveries = studies, deliveries

    def collect(self) -> Iterator[Metric]:
        """The two gauges; called by prometheus_client."""
        studies = GaugeMetricFamily("overread_studies", "Studies by state.", labels=["state"])
        for state, count in sorted(self._studies.items()):
            studies.add_metric([state], count)
        yield studies
        deliveries = GaugeMetricFamily(
            "overread_deliveries", "Deliveries by destination and state.", labels=["destination", "state"]
        )
        for (destination, state), count in sorted(self._deliveries.items()):
            deliveries.add_metric([destination, state], count)
        yield deliveries


def exposition(gauges: StateGauges) -> bytes:
    """All metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(gauges)
    return generate_latest(REGISTRY) + generate_latest(registry)
