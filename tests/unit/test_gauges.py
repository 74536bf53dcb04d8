"""What the store's rows come to, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.gauges import Figures, Gauges
from service.tables import DELIVERIES, STUDIES, TABLES, database_url, open_engine
from service.types import DeliveryState, StudyState


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    lite = request.param == "SQLite"
    made = open_engine(database_url(tmp_path, "") if lite else str(request.getfixturevalue("postgresql")))
    TABLES.drop_all(made)
    TABLES.create_all(made)
    yield made
    made.dispose()


def _study(tx: sa.Connection, uid: str, state: StudyState, **times: Any) -> None:
    row = {"study_uid": uid, "state": state, "revision": 0, "first_at": 1.0, "last_at": 1.0, **times}
    tx.execute(sa.insert(STUDIES).values(row))


def _delivery(tx: sa.Connection, sop: int, destination: str, state: DeliveryState, queued_at: float) -> None:
    names = ("study_uid", "kind", "class_uid", "series_uid", "path")
    row: dict[str, Any] = {**dict.fromkeys(names, "1"), "sop_uid": str(sop), "destination": destination, "state": state}
    tx.execute(sa.insert(DELIVERIES).values(**row, queued_at=queued_at, changed_at=queued_at))


def test_an_empty_store_has_nothing(engine: sa.Engine) -> None:
    assert Gauges(engine).read() == Figures(
        studies={}, in_state_since={}, unanswered_since=None, deliveries={}, undelivered_since={}, last_instance_at=None
    )


def test_studies_are_as_old_as_their_state(engine: sa.Engine) -> None:
    with engine.begin() as tx:
        _study(tx, "1", StudyState.RECEIVING, last_at=300.0)
        _study(tx, "2", StudyState.RECEIVING, first_at=1.0, last_at=200.0)
        _study(tx, "3", StudyState.ANALYSING, last_at=5.0, started_at=40.0, holder="worker-0", next_at=1e12)
        _study(tx, "4", StudyState.ANALYSING, last_at=5.0, started_at=60.0)
        _study(tx, "5", StudyState.ANALYSING, last_at=5.0, started_at=50.0)
        _study(tx, "6", StudyState.DELIVERING, started_at=5.0, answered_at=70.0)
        _study(tx, "7", StudyState.DONE, last_at=900.0, started_at=1.0, answered_at=2.0)
        _study(tx, "8", StudyState.UNDELIVERED, started_at=1.0, answered_at=2.0)
    found = Gauges(engine).read()
    assert found.studies == {"receiving": 2, "analysing": 3, "delivering": 1, "done": 1, "undelivered": 1}
    assert found.in_state_since == {"receiving": 200.0, "analysing": 40.0, "delivering": 70.0}
    assert found.unanswered_since == 50.0, "somebody is at work on the older one"
    with engine.begin() as tx:
        tx.execute(sa.update(STUDIES).where(STUDIES.c.study_uid == "3").values(next_at=1.0))
    assert Gauges(engine).read().unanswered_since == 40.0, "whoever was is gone: nobody renews it"
    assert found.last_instance_at == 900.0


def test_deliveries_wait_until_they_end(engine: sa.Engine) -> None:
    states = list(DeliveryState)
    with engine.begin() as tx:
        for number, state in enumerate(states):
            _delivery(tx, number, "pacs", state, 100.0 - number)
            _delivery(tx, 100 + number, "pacs", state, 500.0)
        _delivery(tx, 200, "archive", DeliveryState.CONFIRMED, 1.0)
    found = Gauges(engine).read()
    assert found.deliveries == {("archive", "confirmed"): 1} | {("pacs", str(state)): 2 for state in states}
    last_open = max(states.index(it) for it in (DeliveryState.QUEUED, DeliveryState.RETRYING, DeliveryState.SENT))
    assert found.undelivered_since == {"pacs": 100.0 - last_open}


def test_a_reader_waits_for_no_writer(engine: sa.Engine) -> None:
    """What an operator looks at when the service is busy must not wait for it."""
    with engine.begin() as tx:
        _study(tx, "1", StudyState.RECEIVING, last_at=300.0)
        assert Gauges(engine).read().studies == {}
