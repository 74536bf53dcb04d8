"""The alerting rules speak of metrics that exist."""

from __future__ import annotations

import re

from tests.support import REPOSITORY
from tests.words import tables


def test_alerts_name_metrics_that_exist() -> None:
    rules = (REPOSITORY / "deploy" / "alerts.yml").read_text()
    named = set(re.findall(r"overread_\w+", rules))
    assert named
    known = set(re.findall(r"`(overread_\w+)`", tables.tables()["metrics"]))
    assert named <= known
