"""The HTTP side on a real port, or without one; and what it told the audit trail."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service import audit
from service.api.app import create_app
from service.api.seen import Seen
from service.api.server import make_server
from service.config import Config
from service.settings.store import StoreSection
from service.store import Store
from service.tables import database_url
from tests.snapshots import snapshot

TOKENS = {role: f"{role}-token-of-the-tests" for role in ("viewer", "operator", "admin")}


class Alerts(list[dict[str, Any]]):
    """The security alerts, as they were raised."""

    def of(self, kind: audit.Alert) -> list[str]:
        return [str(alert["words"]) for alert in self if alert["kind"] is kind]


def record_alerts(patch: pytest.MonkeyPatch) -> Alerts:
    """Take down what goes to the audit trail."""
    alerts = Alerts()

    def alert(kind: audit.Alert, **told: Any) -> None:
        alerts.append({"kind": kind, **told})

    patch.setattr(audit, "alert", alert)
    return alerts


def config_of(folder: Path, **api: Any) -> Config:
    """A site's configuration, with a token of each role unless it says otherwise."""
    given = {"tokens": tokens(folder), **api}
    return Config.model_validate({"api": given, "store": StoreSection(directory=folder)})


def tokens(folder: Path) -> tuple[dict[str, Any], ...]:
    """A token of each role, in files."""
    for role, token in TOKENS.items():
        (folder / f"{role}.token").write_text(token + "\n")
    return tuple({"name": f"a-{role}", "role": role, "file": folder / f"{role}.token"} for role in TOKENS)


@contextmanager
def seen_of(config: Config, *, parts: dict[str, str] | None = None) -> Iterator[Seen]:
    """What the HTTP side looks at: a real store, and a service that is well unless ``parts`` say otherwise."""
    store = Store(database_url(config.store.directory, ""))
    store.create_tables()
    try:
        yield Seen(
            config=config,
            store=store,
            readiness=lambda: dict(parts or {"database": ""}),
            progress=lambda _: {},
            waiting=lambda _: None,
            lines=dict,
            networks=list,
            snapshot=snapshot,
        )
    finally:
        store.close()


@contextmanager
def serving(seen: Seen, app: Any = None) -> Iterator[int]:
    """The HTTP side on a port of its own."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = make_server(app or create_app(seen), seen.config.api)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    last = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < last, "the server did not start in time"
        time.sleep(0.01)
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)
        listener.close()
