"""``overread deliveries``: what has not arrived and why; and what an operator decides about it."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from service import audit
from service.config import read_config
from service.errors import ConfigError
from service.patients import Patients
from service.show import console
from service.store import Store, open_store
from service.types import OPEN, DeliveryState

_UNFINISHED = (DeliveryState.REFUSED, DeliveryState.UNCONFIRMED, *OPEN)


def list_deliveries(
    config: Path, *, states: Sequence[str] = (), destination: str = "", limit: int = 100, as_json: bool = False
) -> int:
    """Print deliveries in the order in which they go; by default those that have not arrived."""
    store = _open(config)
    rows = store.deliveries(states=states or _UNFINISHED, destination=destination, limit=limit)
    store.close()
    if as_json:
        shown = [{key: row[key] for key in row if key != "path"} for row in rows]
        console.print(json.dumps(shown, indent=1), markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(_table(rows))
        for row in rows:
            if row["reason"]:
                console.print(f"{row['delivery_id']}: {row['reason']}", markup=False, highlight=False, soft_wrap=True)
    return 0


def retry_deliveries(config: Path, *, numbers: Sequence[int], destination: str) -> int:
    """Try deliveries again at once; a running service does it within a second."""
    _some(numbers, destination)
    store = _open(config)
    return _said("will be tried again", store, store.retry_deliveries(numbers=numbers, destination=destination))


def drop_deliveries(config: Path, *, numbers: Sequence[int], destination: str, reason: str) -> int:
    """Decide that deliveries are not to be sent."""
    _some(numbers, destination)
    store = _open(config)
    dropped = store.drop_deliveries(numbers=numbers, destination=destination, reason=reason)
    return _said("dropped", store, dropped)


def _said(what: str, store: Store, changed: list[int]) -> int:
    _told(store, changed)
    store.close()
    if changed:
        console.print(f"{len(changed)} {what}: {', '.join(map(str, changed))}")
    else:
        console.print(
            "None: there are no such deliveries, or they have arrived. overread deliveries list shows the rest."
        )
    return 0 if changed else 1


def _some(numbers: Sequence[int], destination: str) -> None:
    if bool(numbers) == bool(destination):
        raise ConfigError(
            doing="choosing deliveries",
            found="numbers and a destination" if numbers else "neither numbers nor a destination",
            rule="deliveries are named by their numbers, or all refused ones of one --destination",
            way_out="overread deliveries list --config FILE shows the numbers",
        )


def _open(path: Path) -> Store:
    config = read_config(path)
    if not config.store.database and not (config.store.directory / "overread.sqlite").exists():
        raise ConfigError(
            doing=f"opening the store in {config.store.directory}",
            found="no overread.sqlite in it",
            rule="the service has run at least once with this configuration",
            way_out="name the file with which it runs",
        )
    audit.set_up(config.audit_file, name=config.process.called, ae_title=config.intake.ae_title)
    store = open_store(config.store)
    audit.name_patients(Patients(store.headers_of).of)
    return store


def _told(store: Store, numbers: Sequence[int]) -> None:
    """Write to the audit trail about which studies somebody has decided."""
    for study_uid in sorted({store.delivery(number).study_instance_uid for number in numbers}):
        audit.accessed(study_uid=study_uid, user=getpass.getuser(), address="127.0.0.1", action="U")


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Deliveries")
    for name in ("number", "destination", "kind", "model", "state", "attempts", "queued", "study"):
        table.add_column(name, overflow="fold", justify="right" if name in ("number", "attempts") else "left")
    for row in rows:
        table.add_row(
            str(row["delivery_id"]),
            row["destination"],
            row["kind"],
            row["model"],
            row["state"],
            str(row["attempts"]),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["queued_at"])),
            row["study_uid"],
        )
    return table
