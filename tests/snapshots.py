"""A snapshot of a service that has nothing to do, for tests that change what matters to them."""

from __future__ import annotations

from typing import Any

from service.gauges import Figures
from service.snapshot import Snapshot


def figures(**changes: Any) -> Figures:
    """Of an empty store."""
    nothing: dict[str, Any] = {
        "studies": {},
        "in_state_since": {},
        "unanswered_since": None,
        "deliveries": {},
        "undelivered_since": {},
        "last_instance_at": None,
    }
    return Figures(**{**nothing, **changes})


def snapshot(**changes: Any) -> Snapshot:
    """Of an idle service without destinations."""
    idle: dict[str, Any] = {
        "now": 1000.0,
        "version": "1.2.3",
        "backend": "onnxruntime CPU",
        "parts": {},
        "figures": figures(),
        "destinations": [],
        "disk_free_bytes": 50,
        "disk_size_bytes": 100,
        "disk_reserved_bytes": 10,
    }
    return Snapshot(**{**idle, **changes})
