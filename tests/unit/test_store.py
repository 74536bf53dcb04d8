"""What is remembered, on SQLite and on a real PostgreSQL: the same tests on both."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.store import Store
from service.tables import database_url
from service.types import Delivery, DeliveryState, Kept, Priority, StudyState

STUDY = "1.2.3"
CONFIRMED, UNCONFIRMED, REFUSED = DeliveryState.CONFIRMED, DeliveryState.UNCONFIRMED, DeliveryState.REFUSED


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "SQLite":
        return database_url(tmp_path, "")
    found = str(request.getfixturevalue("postgresql"))
    engine = sa.create_engine(found, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    made.create_tables()
    yield made
    made.close()


def _keep(
    store: Store,
    sop: str = "1",
    *,
    sha: str = "a",
    now: float = 100.0,
    study: str = STUDY,
    priority: Priority = Priority.ROUTINE,
) -> Kept:
    return store.keep_instance(
        study_uid=study,
        series_uid=f"{study}.1",
        sop_uid=f"{study}.1.{sop}",
        class_uid="1.2.840.10008.5.1.4.1.1.2",
        sha256=sha,
        path=Path(f"{sop}.dcm"),
        now=now,
        priority=priority,
    )


def _delivery(uid: str, destination: str = "pacs", study: str = STUDY) -> Delivery:
    return Delivery(
        delivery_id=0,
        study_instance_uid=study,
        destination=destination,
        kind="SR",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        series_instance_uid=f"{uid}.1",
        sop_instance_uid=uid,
        path=Path(f"{uid}.dcm"),
        state=DeliveryState.QUEUED,
        attempts=0,
        reason="",
        queued_at=105.0,
    )


def _row(store: Store, study: str = STUDY) -> dict[str, Any]:
    row = store.study(study)
    assert row is not None
    return row


def _answered(store: Store, *deliveries: Delivery, revision: int = 0, study: str = STUDY) -> list[int]:
    """A study that came, was claimed and answered; the numbers of its deliveries."""
    _keep(store, f"r{revision}", now=100.0, study=study)
    assert store.begin_analysis(study, revision, before=200.0)
    answers: dict[str, tuple[str, dict[str, Any]]] = {"m": ("findings", {"model": "m", "revision": revision})}
    assert store.save_answers(study, revision, answers=answers, deliveries=deliveries)
    return [one["delivery_id"] for one in _row(store, study)["deliveries"]]


# --- Receiving ------------------------------------------------------------------------------------------------------


def test_an_instance_is_new_once_then_the_same_or_another(store: Store) -> None:
    assert _keep(store, sha="a") is Kept.NEW
    assert _keep(store, sha="a") is Kept.SAME
    assert _keep(store, sha="b") is Kept.OTHER
    assert _keep(store, "2") is Kept.NEW
    files, last = store.files_of(STUDY)
    assert sorted(files) == [Path("1.dcm"), Path("2.dcm")]
    assert last == 100.0


def test_an_instance_that_comes_again_in_another_study_is_new_there(store: Store) -> None:
    """PACS that split or merge studies do that; the second study waits for its answer as well."""
    assert _keep(store, sha="a", study="1.2.1") is Kept.NEW
    assert _keep(store, sha="b", study="1.2.2") is Kept.NEW
    assert _row(store, "1.2.2")["state"] == StudyState.RECEIVING


def test_a_result_of_ours_that_comes_back_starts_nothing(store: Store) -> None:
    _answered(store, _delivery(f"{STUDY}.1.9"))
    assert _keep(store, "9", now=300.0) is Kept.OURS
    assert _row(store)["state"] == StudyState.DELIVERING
    assert store.quiet_studies(before=1e9) == []


def test_a_repeat_keeps_a_study_waiting_that_still_comes_in(store: Store) -> None:
    _keep(store, now=100.0)
    _keep(store, now=130.0)
    assert store.quiet_studies(before=120.0) == []
    assert store.quiet_studies(before=131.0) == [(STUDY, 0)]


@pytest.mark.parametrize("sha", ["a", "b"])
def test_a_repeat_changes_nothing_of_a_study_that_is_analysed(sha: str, store: Store) -> None:
    _keep(store)
    assert store.begin_analysis(STUDY, 0, before=200.0)
    before = _row(store)
    _keep(store, sha=sha, now=300.0)
    assert _row(store) == before


def _receiving(store: Store) -> None:
    _keep(store)


def _analysing(store: Store) -> None:
    _receiving(store)
    assert store.begin_analysis(STUDY, 0, before=200.0)


def _delivering(store: Store) -> None:
    _answered(store, _delivery("9.1"))


def _done(store: Store) -> None:
    _answered(store)


@pytest.mark.parametrize(
    ("bring", "state", "revision"),
    [(_receiving, "receiving", 0), (_analysing, "analysing", 1), (_delivering, "delivering", 1), (_done, "done", 1)],
)
def test_a_new_instance_opens_a_study_again_whatever_its_state(
    bring: Callable[[Store], None], state: str, revision: int, store: Store
) -> None:
    bring(store)
    assert _row(store)["state"] == state
    assert _keep(store, "late", now=300.0) is Kept.NEW
    row = _row(store)
    assert (row["state"], row["revision"], row["last_at"], row["first_at"]) == ("receiving", revision, 300.0, 100.0)
    assert _keep(store, "later", now=301.0) is Kept.NEW
    assert _row(store)["revision"] == revision, "a revision is an analysis, not an instance"


# --- Analysing ------------------------------------------------------------------------------------------------------


def test_studies_become_quiet_the_longest_first(store: Store) -> None:
    _keep(store, now=110.0, study="1.1")
    _keep(store, now=100.0, study="1.2")
    _keep(store, now=190.0, study="1.3")
    assert store.quiet_studies(before=150.0) == [("1.2", 0), ("1.1", 0)]


def test_a_study_is_claimed_once(store: Store) -> None:
    _keep(store)
    assert store.due_studies(now=200.0, lease_seconds=60) == []
    assert store.begin_analysis(STUDY, 0, before=200.0)
    assert not store.begin_analysis(STUDY, 0, before=200.0)
    assert store.due_studies(now=200.0, lease_seconds=60) == [(STUDY, 0, 0, Priority.ROUTINE)]


def test_an_instance_between_look_and_claim_prevents_the_claim(store: Store) -> None:
    _keep(store)
    ((study, revision),) = store.quiet_studies(before=150.0)
    _keep(store, "2", now=160.0)
    assert not store.begin_analysis(study, revision, before=150.0)


def test_a_claim_of_an_earlier_revision_fails(store: Store) -> None:
    _analysing(store)
    _keep(store, "late", now=150.0)
    assert not store.begin_analysis(STUDY, 0, before=200.0)
    assert store.begin_analysis(STUDY, 1, before=200.0)


def test_of_many_claims_at_once_one_wins(store: Store) -> None:
    for number in range(5):
        study = f"1.{number}"
        _keep(store, study=study)
        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(lambda _, s=study: store.begin_analysis(s, 0, before=200.0), range(6)))
        assert sum(won) == 1


def test_answers_and_deliveries_are_saved_once_though_told_twice(store: Store) -> None:
    _analysing(store)
    deliveries = [_delivery("9.1"), _delivery("9.2"), _delivery("9.1", "archive")]
    answers: dict[str, tuple[str, dict[str, Any]]] = {"m": ("findings", {"n": 1}), "k": ("failed", {"n": 2})}
    assert store.save_answers(STUDY, 0, answers=answers, deliveries=deliveries)
    first = store.due_deliveries(now=200.0, lease_seconds=60)
    store.note_delivery(first[0][0], CONFIRMED)
    assert not store.save_answers(STUDY, 0, answers={"m": ("no findings", {"n": 3})}, deliveries=iter(deliveries))
    assert sorted(name for _, name, _ in first) == ["archive", "pacs", "pacs"]
    row = _row(store)
    assert row["answers"] == [{"n": 2}, {"n": 1}]
    assert [one["state"] for one in row["deliveries"]].count("confirmed") == 1, "a second telling resets nothing"
    assert (row["state"], store.due_studies(now=300.0, lease_seconds=60)) == ("delivering", [])


def test_answers_of_an_earlier_revision_leave_a_reopened_study_waiting(store: Store) -> None:
    _analysing(store)
    _keep(store, "late", now=300.0)
    assert not store.save_answers(STUDY, 0, answers={"m": ("findings", {"revision": 0})}, deliveries=[_delivery("9.1")])
    row = _row(store)
    assert (row["state"], row["answers"], row["deliveries"]) == ("receiving", [], [])
    assert store.begin_analysis(STUDY, 1, before=400.0)
    store.save_answers(STUDY, 1, answers={"m": ("findings", {"revision": 1})}, deliveries=[_delivery("9.2")])
    assert _row(store)["answers"] == [{"revision": 1}]


# --- Delivering -----------------------------------------------------------------------------------------------------


def test_a_study_with_nothing_to_deliver_is_done(store: Store) -> None:
    _answered(store)
    row = _row(store)
    assert row["state"] == "done"
    assert row["done_at"] is not None


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ((CONFIRMED, CONFIRMED), "done"),
        ((CONFIRMED, UNCONFIRMED), "done"),
        ((UNCONFIRMED, UNCONFIRMED), "done"),
        ((CONFIRMED, REFUSED), "undelivered"),
        ((CONFIRMED, DeliveryState.SENT), "delivering"),
        ((CONFIRMED, DeliveryState.RETRYING), "delivering"),
        ((REFUSED, DeliveryState.QUEUED), "delivering"),
    ],
)
def test_a_study_is_done_with_its_last_delivery(
    states: tuple[DeliveryState, DeliveryState], state: str, store: Store
) -> None:
    numbers = _answered(store, _delivery("9.1"), _delivery("9.2"))
    for number, one in zip(numbers, states, strict=True):
        assert _row(store)["state"] == "delivering"
        store.note_delivery(number, one)
    assert _row(store)["state"] == state


def test_a_refused_delivery_is_tried_again_after_a_start(store: Store) -> None:
    """Somebody may have mended the configuration, here or there."""
    (number,) = _answered(store, _delivery("9.1"))
    store.note_delivery(number, REFUSED, reason="no room")
    assert _row(store)["state"] == "undelivered"
    assert store.due_deliveries(now=9e9, lease_seconds=60) == []
    store.release()
    assert _row(store)["state"] == "delivering"
    assert [due[0] for due in store.due_deliveries(now=9e9, lease_seconds=60)] == [number]
    store.note_delivery(number, CONFIRMED)
    assert _row(store)["state"] == "done"


def test_the_last_two_deliveries_confirmed_at_once_end_the_study(store: Store) -> None:
    for turn in range(15):
        study = f"1.{turn}"
        made = [_delivery(f"{study}.{kind}", study=study) for kind in (8, 9)]
        numbers = _answered(store, *made, study=study)
        both = threading.Barrier(2)

        def confirm(number: int, both: threading.Barrier = both) -> None:
            both.wait()
            store.note_delivery(number, CONFIRMED)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(confirm, numbers))
        assert _row(store, study)["state"] == "done"


def test_a_delivery_remembers_its_attempts_and_the_last_reason(store: Store) -> None:
    (number,) = _answered(store, _delivery("9.1"))
    assert store.due_deliveries(now=200.0, lease_seconds=60) == [(number, "pacs", 0)]
    store.note_delivery(number, DeliveryState.RETRYING, reason="away", tried=True, next_at=300.0)
    assert store.due_deliveries(now=299.0, lease_seconds=60) == []
    assert store.due_deliveries(now=300.0, lease_seconds=60) == [(number, "pacs", 1)]
    waited = store.note_delivery(number, DeliveryState.SENT, tried=True)
    assert waited == pytest.approx(time.time() - 100.0, abs=5)
    found = store.delivery(number)
    assert (found.attempts, found.state, found.reason) == (2, DeliveryState.SENT, "")
    assert (found.path, found.sop_instance_uid, found.queued_at) == (Path("9.1.dcm"), "9.1", 105.0)
    store.release()
    assert store.due_deliveries(now=300.0, lease_seconds=60) == [(number, "pacs", 2)]
    store.note_delivery(number, CONFIRMED)
    store.release()
    assert store.due_deliveries(now=9999.0, lease_seconds=60) == []


def test_what_is_due_is_given_out_once_until_its_lease_ends(store: Store) -> None:
    _analysing(store)
    assert store.is_analysing(STUDY, 0)
    assert store.due_studies(now=200.0, lease_seconds=60) == [(STUDY, 0, 0, Priority.ROUTINE)]
    assert store.due_studies(now=259.0, lease_seconds=60) == []
    assert store.due_studies(now=260.0, lease_seconds=60) == [(STUDY, 0, 0, Priority.ROUTINE)], (
        "its workflow may have been lost"
    )
    store.postpone_study(STUDY, 0, until=500.0)
    assert store.due_studies(now=499.0, lease_seconds=60) == []
    assert store.due_studies(now=500.0, lease_seconds=60) == [(STUDY, 0, 1, Priority.ROUTINE)]
    store.release()
    assert store.due_studies(now=501.0, lease_seconds=60) == [(STUDY, 0, 1, Priority.ROUTINE)], (
        "a start waits for no lease"
    )
    _keep(store, "late", now=600.0)
    assert not store.is_analysing(STUDY, 0)
    assert store.due_studies(now=9999.0, lease_seconds=60) == [], "it is receiving again"


def test_an_object_sent_before_is_not_queued_again(store: Store) -> None:
    (number,) = _answered(store, _delivery("9.1"))
    store.note_delivery(number, CONFIRMED)
    assert _answered(store, _delivery("9.1"), revision=1) == [number]
    assert _row(store)["state"] == "done", "nothing new is to be delivered"


# --- Seen from outside ----------------------------------------------------------------------------------------------


def test_studies_are_listed_the_latest_first_page_by_page(store: Store) -> None:
    for number in range(4):
        _keep(store, now=100.0 + number, study=f"1.{number}")
    _keep(store, "2", now=103.0, study="1.3")
    _answered(store, _delivery("9.1"), study="1.0")
    assert [(row["study_uid"], row["instances"]) for row in store.studies(limit=2)] == [("1.3", 2), ("1.2", 1)]
    assert [row["study_uid"] for row in store.studies(limit=2, offset=2)] == ["1.1", "1.0"]
    assert [row["study_uid"] for row in store.studies(state="delivering")] == ["1.0"]
    assert store.counts() == ({"receiving": 3, "delivering": 1}, {("pacs", "queued"): 1})
    assert store.study("9.9") is None
    assert store.files_of("9.9") == ([], 0.0)
    store.ping()


def test_what_is_replaced_is_replaced_together(store: Store) -> None:
    """A report must not go without its segmentation; what was sent, and what goes elsewhere, stays as it is."""
    numbers = _answered(store, *(_delivery(uid) for uid in ("9.1", "9.2", "9.3")), _delivery("9.1", "other"))
    store.note_delivery(numbers[2], DeliveryState.SENT)
    waited = store.replace_delivery(
        numbers[0],
        reason="not accepted",
        withdrawn=("9.1", "9.2", "9.3"),
        in_its_place=[_delivery("9.4"), _delivery("9.3")],
    )
    assert waited > 0
    rows = {(one["sop_uid"], one["destination"]): (one["state"], one["reason"]) for one in _row(store)["deliveries"]}
    assert rows == {
        ("9.1", "pacs"): ("replaced", "not accepted"),
        ("9.2", "pacs"): ("replaced", "not accepted"),
        ("9.3", "pacs"): ("sent", ""),
        ("9.4", "pacs"): ("queued", ""),
        ("9.1", "other"): ("queued", ""),
    }
    assert store.answered_revisions(STUDY) == [0]
    assert {delivery for delivery, _, _ in store.due_deliveries(now=1e12, lease_seconds=1)}.isdisjoint(numbers[:2])


def test_a_database_that_is_away_is_told(tmp_path: Path) -> None:
    store = Store(database_url(tmp_path / "nowhere", ""))
    with pytest.raises(sa.exc.OperationalError):
        store.ping()


def test_what_was_committed_is_there_for_the_next_process(url: str, store: Store) -> None:
    _keep(store)
    store.close()
    again = Store(url)
    again.create_tables()
    assert _keep(again) is Kept.SAME
    again.close()


def test_sqlite_waits_for_the_disk_at_each_commit(tmp_path: Path) -> None:
    store = Store(database_url(tmp_path, ""))
    with store._engine.connect() as connection:
        assert connection.execute(sa.text("PRAGMA synchronous")).scalar_one() == 2  # FULL
        assert connection.execute(sa.text("PRAGMA journal_mode")).scalar_one() == "wal"
    store.close()


# --- Several writers ------------------------------------------------------------------------------------------------


def test_writers_in_several_processes_lose_nothing(url: str, store: Store) -> None:
    """Each instance is sent by two of them; each must be new exactly once, and every study whole."""
    store.close()
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = [kept for kepts in pool.map(_write, [(url, n) for n in range(3)]) for kept in kepts]
    assert found.count(Kept.NEW) == 60
    assert found.count(Kept.SAME) == 60
    for study in range(3):
        files, _ = store.files_of(f"1.{study}")
        assert len(files) == 20
        assert _row(store, f"1.{study}")["revision"] == 0


def _write(task: tuple[str, int]) -> list[Kept]:
    url, number = task
    store = Store(url)
    with ThreadPoolExecutor(2) as pool:
        kepts = list(
            pool.map(
                lambda it: _keep(store, str(it[1]), study=f"1.{it[0]}"),
                [((number + shift) % 3, sop) for sop in range(20) for shift in (0, 1)],
            )
        )
    store.close()
    return kepts


# --- What is urgent -------------------------------------------------------------------------------------------------


def test_the_most_urgent_instance_counts_for_its_study(store: Store) -> None:
    _keep(store, "1", priority=Priority.LOW)
    _keep(store, "2", priority=Priority.STAT)
    _keep(store, "3")
    assert store.begin_analysis(STUDY, 0, before=200.0)
    assert store.due_studies(now=200.0, lease_seconds=60) == [(STUDY, 0, 0, Priority.STAT)]


def test_a_repeat_by_an_urgent_way_makes_a_waiting_study_urgent(store: Store) -> None:
    _keep(store)
    assert _keep(store, priority=Priority.STAT) is Kept.SAME
    store.begin_analysis(STUDY, 0, before=200.0)
    assert store.due_studies(now=200.0, lease_seconds=60) == [(STUDY, 0, 0, Priority.STAT)]


def test_tables_of_an_older_version_get_the_column_they_lack(store: Store, url: str) -> None:
    _keep(store)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE studies DROP COLUMN priority"))
    engine.dispose()
    store.create_tables()
    store.create_tables()  # and again: it is there now
    store.begin_analysis(STUDY, 0, before=200.0)
    assert store.due_studies(now=200.0, lease_seconds=60) == [(STUDY, 0, 0, Priority.ROUTINE)]
