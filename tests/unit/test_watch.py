"""The watch begins when it can, and ends when it is told, whichever comes first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.analysis.schedule import Scheduler
from service.config import Config
from service.settings.store import StoreSection
from service.store import Store
from service.tables import database_url
from service.watch import Watch
from tests.fake_backend import FakeBackend


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(database_url(tmp_path, ""))
    made.create_tables()
    yield made
    made.close()


def _watch(store: Store, folder: Path) -> Watch:
    return Watch(Config(store=StoreSection(directory=folder)), store, (), Scheduler(FakeBackend()), name="a")


def test_stopped_before_it_was_started_it_never_looks(store: Store, tmp_path: Path) -> None:
    """Models are loaded by another thread, which may come to its end just as the service is told to stop."""
    watch = _watch(store, tmp_path)
    watch.stop(grace_seconds=0.0)
    watch.start()
    watch._thread.join(20)
    assert not watch.is_watching()
    assert not watch._is_prepared


def test_it_begins_as_soon_as_the_database_answers(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.watch._PREPARE_SECONDS", 0.01)
    release, tries = store.release, [0]

    def away(holder: str | None = None) -> None:
        tries[0] += 1
        if tries[0] < 3:
            raise RuntimeError("away")
        release(holder)

    monkeypatch.setattr(store, "release", away)
    watch = _watch(store, tmp_path)
    watch.start()
    until = time.monotonic() + 20
    while not watch._is_prepared and time.monotonic() < until:
        time.sleep(0.01)
    assert watch.is_watching()
    watch.stop(grace_seconds=0.0)
    assert tries[0] == 3
