"""What is counted, in Prometheus's text format, with labels that cannot grow without bound."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from service import metrics
from service.metrics import StateGauges


def _samples(gauges: StateGauges) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.exposition(gauges).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


NOTHING = StateGauges({}, {})
BYTES = ("overread_received_bytes_total", ())
STORED = ("overread_instances_received_total", (("outcome", "a test"),))


def test_an_instance_and_its_bytes_are_counted() -> None:
    before = _samples(NOTHING)
    metrics.count_instance("a test", 500)
    metrics.count_instance("a test", 20)
    after = _samples(NOTHING)
    assert after[STORED] - before.get(STORED, 0) == 2
    assert after[BYTES] - before[BYTES] == 520


def test_states_are_read_anew_each_time() -> None:
    gauges = StateGauges({"receiving": 2, "done": 7}, {("pacs", "queued"): 3})
    samples = _samples(gauges)
    assert samples["overread_studies", (("state", "done"),)] == 7
    assert samples["overread_deliveries", (("destination", "pacs"), ("state", "queued"))] == 3
    assert not [name for name, _ in _samples(NOTHING) if name in ("overread_studies", "overread_deliveries")]


def test_names_end_in_their_base_unit_and_labels_are_of_few_values() -> None:
    metrics.STAGE_SECONDS.labels(model="m", stage="infer").observe(0.2)
    metrics.ANSWERS.labels(model="m", outcome="findings").inc()
    metrics.DELIVERIES.labels(destination="pacs", outcome="sent").inc()
    metrics.LAST_SLICE_TO_DELIVERED.labels(destination="pacs").observe(100)
    gauges = StateGauges({"done": 1}, {("pacs", "sent"): 1})
    ours = [it for it in _samples(gauges) if it[0].startswith("overread_")]
    assert {label for _, labels in ours for label, _ in labels} <= {
        "outcome", "model", "stage", "destination", "state", "network", "reason", "le"
    }  # fmt: skip
    families = text_string_to_metric_families(metrics.exposition(gauges).decode())
    for family in families:
        if family.name.startswith("overread_"):
            assert family.documentation
            assert not family.name.endswith(("_ms", "_milliseconds", "_mb", "_minutes"))
