"""What is remembered, on SQLite and on a real PostgreSQL: the same tests on both."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.errors import ConfigError
from service.overview import Wanted
from service.records import Limits, What
from service.settings.store import StoreSection
from service.store import Store, open_store
from service.tables import database_url
from service.types import Completeness, Delivery, DeliveryState, Kept, Priority, StudyState

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
        model="m",
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


def _begin(store: Store, revision: int = 0, *, study: str = STUDY) -> bool:
    """Claim a study as it is now."""
    return store.begin_analysis(study, revision, last_at=_row(store, study)["last_at"])


def _due_studies(store: Store, now: float, *, urgent: bool = False, limit: int = 9) -> list[tuple[str, int, int, Any]]:
    return store.due_studies(now=now, lease_seconds=60, limit=limit, urgent=urgent)


def _due(store: Store, now: float, destination: str = "pacs", *, limit: int = 9) -> list[int]:
    return store.due_deliveries(destination, now=now, lease_seconds=60, limit=limit)


def _row(store: Store, study: str = STUDY) -> dict[str, Any]:
    row = store.study(study)
    assert row is not None
    return row


def _answered(store: Store, *deliveries: Delivery, revision: int = 0, study: str = STUDY) -> list[int]:
    """A study that came, was claimed and answered; the numbers of its deliveries."""
    _keep(store, f"r{revision}", now=100.0, study=study)
    assert _begin(store, revision, study=study)
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
    assert store.receiving() == []


def test_a_repeat_keeps_a_study_waiting_that_still_comes_in(store: Store) -> None:
    _keep(store, now=100.0)
    (first,) = store.receiving()
    _keep(store, now=130.0)
    (second,) = store.receiving()
    assert (first.last_at, second.last_at) == (100.0, 130.0)
    assert not store.begin_analysis(STUDY, 0, last_at=first.last_at), "it was judged before that came"


def test_the_last_sender_is_the_source_that_is_asked(store: Store) -> None:
    for sop, source in (("1", "CT1"), ("2", "PACS")):
        store.keep_instance(
            study_uid=STUDY,
            series_uid="1",
            sop_uid=sop,
            class_uid="1.2",
            sha256="a",
            path=Path("x"),
            now=1.0,
            source=source,
        )
    assert [it.source for it in store.receiving()] == ["PACS"]
    assert store.held(STUDY) == {"1": 2}
    assert store.held("9.9") == {}


def test_other_bytes_under_a_known_uid_are_flagged_each_once(store: Store) -> None:
    _keep(store, sha="a")
    for sha in ("b", "b", "c", "a"):
        _keep(store, sha=sha, now=200.0)
    conflicts = _row(store)["conflicts"]
    assert [(it["sop_uid"], it["received_at"]) for it in conflicts] == [(f"{STUDY}.1.1", 200.0)] * 2
    files, _ = store.files_of(STUDY)
    assert files == [Path("1.dcm")], "the first one is analysed"


@pytest.mark.parametrize("sha", ["a", "b"])
def test_a_repeat_changes_nothing_of_a_study_that_is_analysed(sha: str, store: Store) -> None:
    _keep(store)
    assert _begin(store)
    before = _row(store)
    _keep(store, sha=sha, now=300.0)
    assert {**_row(store), "conflicts": []} == before


def _receiving(store: Store) -> None:
    _keep(store)


def _analysing(store: Store) -> None:
    _receiving(store)
    assert _begin(store)


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


def test_a_study_is_claimed_once_with_the_judgement(store: Store) -> None:
    _keep(store)
    assert _due_studies(store, 200.0) == []
    judged = {"completeness": Completeness.PARTIAL, "judged": "the limit passed", "missing": "3 instances"}
    assert store.begin_analysis(STUDY, 0, last_at=100.0, **judged)  # type: ignore[arg-type]
    assert not store.begin_analysis(STUDY, 0, last_at=100.0)
    assert _due_studies(store, 200.0) == [(STUDY, 0, 0, Priority.ROUTINE)]
    assert store.judgement_of(STUDY) == (Completeness.PARTIAL, "3 instances")
    assert _row(store)["judged"] == "the limit passed"
    _keep(store, "late", now=300.0)
    assert (_row(store)["judged"], _row(store)["missing"]) == ("", ""), "that was another set"


def test_an_instance_between_judgement_and_claim_prevents_the_claim(store: Store) -> None:
    _keep(store)
    (seen,) = store.receiving()
    _keep(store, "2", now=160.0)
    assert not store.begin_analysis(STUDY, seen.revision, last_at=seen.last_at)


def test_a_claim_of_an_earlier_revision_fails(store: Store) -> None:
    _analysing(store)
    _keep(store, "late", now=150.0)
    assert not _begin(store, 0)
    assert _begin(store, 1)


def test_of_many_claims_at_once_one_wins(store: Store) -> None:
    for number in range(5):
        study = f"1.{number}"
        _keep(store, study=study)
        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(lambda _, s=study: store.begin_analysis(s, 0, last_at=100.0), range(6)))
        assert sum(won) == 1


def test_the_most_urgent_studies_are_given_out_first_and_no_more_than_asked_for(store: Store) -> None:
    for number, priority in enumerate((Priority.LOW, Priority.STAT, Priority.HIGH, Priority.ROUTINE, Priority.HIGH)):
        _keep(store, study=f"1.{number}", priority=priority)
        _begin(store, study=f"1.{number}")
    assert [it[0] for it in _due_studies(store, 200.0, limit=2)] == ["1.2", "1.4"]
    assert [it[0] for it in _due_studies(store, 200.0)] == ["1.3", "1.0"]
    assert [it[0] for it in _due_studies(store, 200.0, urgent=True)] == ["1.1"]


def test_of_many_workers_each_due_thing_goes_to_one(store: Store) -> None:
    _answered(store, *(_delivery(f"9.{number}") for number in range(20)))
    for number in range(6):
        _keep(store, study=f"1.{number}")
        _begin(store, study=f"1.{number}")
    with ThreadPoolExecutor(4) as pool:
        deliveries = [it for got in pool.map(lambda _: _due(store, 200.0, limit=20), range(8)) for it in got]
        studies = [it for got in pool.map(lambda _: _due_studies(store, 200.0), range(8)) for it in got]
    assert len(deliveries) == len(set(deliveries)) == 20
    assert len(studies) == len(set(studies)) == 6


def test_answers_and_deliveries_are_saved_once_though_told_twice(store: Store) -> None:
    _analysing(store)
    deliveries = [_delivery("9.1"), _delivery("9.2"), _delivery("9.1", "archive")]
    answers: dict[str, tuple[str, dict[str, Any]]] = {"m": ("findings", {"n": 1}), "k": ("failed", {"n": 2})}
    assert store.save_answers(STUDY, 0, answers=answers, deliveries=deliveries)
    assert store.due_destinations(now=200.0) == ["archive", "pacs"]
    first = [*_due(store, 200.0), *_due(store, 200.0, "archive")]
    store.note_delivery(first[0], CONFIRMED)
    assert not store.save_answers(STUDY, 0, answers={"m": ("no findings", {"n": 3})}, deliveries=iter(deliveries))
    assert len(first) == 3
    row = _row(store)
    assert row["answers"] == [{"n": 2}, {"n": 1}]
    assert [one["state"] for one in row["deliveries"]].count("confirmed") == 1, "a second telling resets nothing"
    assert (row["state"], _due_studies(store, 300.0)) == ("delivering", [])


def test_answers_of_an_earlier_revision_leave_a_reopened_study_waiting(store: Store) -> None:
    _analysing(store)
    _keep(store, "late", now=300.0)
    assert not store.save_answers(STUDY, 0, answers={"m": ("findings", {"revision": 0})}, deliveries=[_delivery("9.1")])
    row = _row(store)
    assert (row["state"], row["answers"], row["deliveries"]) == ("receiving", [], [])
    assert _begin(store, 1)
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
    assert _due(store, 9e9) == []
    store.release()
    assert _row(store)["state"] == "delivering"
    assert _due(store, 9e9) == [number]
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
    assert _due(store, 200.0) == [number]
    store.note_delivery(number, DeliveryState.RETRYING, reason="away", tried=True, next_at=300.0)
    assert (_due(store, 299.0), store.due_destinations(now=299.0)) == ([], [])
    assert _due(store, 300.0) == [number]
    waited = store.note_delivery(number, DeliveryState.SENT, tried=True)
    assert waited == pytest.approx(time.time() - 100.0, abs=5)
    found = store.delivery(number)
    assert (found.attempts, found.state, found.reason) == (2, DeliveryState.SENT, "")
    assert (found.path, found.sop_instance_uid, found.queued_at) == (Path("9.1.dcm"), "9.1", 105.0)
    store.release()
    assert _due(store, 300.0) == [number]
    store.note_delivery(number, CONFIRMED)
    store.release()
    assert _due(store, 9999.0) == []


def test_deliveries_go_by_the_urgency_of_their_study_then_by_age(store: Store) -> None:
    for number, priority in enumerate((Priority.ROUTINE, Priority.STAT, Priority.LOW, Priority.ROUTINE)):
        study = f"1.{number}"
        _keep(store, f"r{number}", study=study, priority=priority)
        _begin(store, study=study)
        made = [_delivery(f"{study}.8", study=study), _delivery(f"{study}.9", study=study)]
        store.save_answers(study, 0, answers={}, deliveries=made)
    order = [store.delivery(number).sop_instance_uid for number in _due(store, 200.0, limit=100)]
    assert order == [f"1.{study}.{kind}" for study in (1, 0, 3, 2) for kind in (8, 9)]
    assert [row["sop_uid"] for row in store.deliveries(limit=3)] == order[:3]


def test_a_receipt_is_remembered_under_its_transaction_only(store: Store) -> None:
    first, second, other = _answered(store, _delivery("9.1"), _delivery("9.2"), _delivery("9.1", "other"))
    for number, transaction in ((first, "7.1"), (second, "7.1"), (other, "7.2")):
        store.note_sent(number, remark="status B000")
        store.ask_commitment(number, transaction)
        store.note_delivery(number, DeliveryState.SENT, next_at=1e12)
    assert store.note_commitment("7.9", committed=("9.1",), failed={}) == 0
    assert store.note_commitment("7.1", committed=("9.1", "9.7"), failed={"9.2": 0x0112}) == 2
    found = [store.delivery(number) for number in (first, second, other)]
    assert [it.commitment for it in found] == ["committed", "0112", ""]
    assert [it.remark for it in found] == ["status B000"] * 3
    assert _due(store, 200.0) == [first, second], "at once"
    assert _due(store, 200.0, "other") == []
    store.release()
    assert store.delivery(other).transaction_uid == "", "whether it was asked for is not known: it is asked for anew"
    assert store.delivery(first).commitment == "committed"
    store.note_delivery(first, CONFIRMED)
    assert store.note_commitment("7.1", committed=("9.1",), failed={}) == 0, "told twice"


def test_what_is_refused_is_retried_or_dropped_by_number_or_by_destination(store: Store) -> None:
    numbers = _answered(store, *(_delivery(f"9.{n}") for n in range(4)), _delivery("9.0", "other"))
    for number in numbers:
        store.note_delivery(number, REFUSED, reason="no", tried=True)
    assert store.retry_deliveries(numbers=[numbers[3]]) == [numbers[3]]
    store.note_delivery(numbers[3], CONFIRMED)
    assert store.retry_deliveries(numbers=[numbers[0], numbers[3], 999]) == [numbers[0]]
    assert _row(store)["state"] == "delivering"
    again = store.delivery(numbers[0])
    assert (again.state, again.attempts) == (DeliveryState.RETRYING, 0)
    assert again.failed_at == 0.0, "its hours begin anew"
    assert _due(store, time.time()) == [numbers[0]]
    assert store.drop_deliveries(destination="pacs", reason="wrong patient") == numbers[1:3]
    assert store.drop_deliveries(numbers=[numbers[3]]) == [], "it is there"
    store.note_delivery(numbers[0], CONFIRMED)
    assert _row(store)["state"] == "undelivered"
    assert store.retry_deliveries(destination="other") == [numbers[4]]
    assert store.drop_deliveries(numbers=[numbers[4]]) == [numbers[4]]
    assert _row(store)["state"] == "done", "nobody has to act any more"
    store.release()
    assert store.due_destinations(now=9e9) == [], "what was dropped stays dropped"


def test_an_operators_decision_stands_whatever_an_attempt_under_way_comes_to(store: Store) -> None:
    first, second = _answered(store, _delivery("9.1"), _delivery("9.2"))
    assert store.drop_deliveries(numbers=[first, second]) == [first, second]
    store.note_sent(first, remark="")
    store.note_delivery(first, DeliveryState.RETRYING, reason="away", tried=True)
    store.replace_delivery(second, reason="not accepted", withdrawn=(), in_its_place=[_delivery("9.3")])
    assert [(it["sop_uid"], it["state"]) for it in _row(store)["deliveries"]] == [
        ("9.1", "dropped"),
        ("9.2", "dropped"),
    ]
    assert _row(store)["state"] == "done"


def test_a_report_waits_until_its_segmentation_was_tried(store: Store) -> None:
    report, other = _delivery("9.1"), replace(_delivery("9.3"), model="other")
    segmentation = replace(_delivery("9.2"), kind="SEG")
    numbers = _answered(store, report, segmentation, other)
    by_uid = {store.delivery(number).sop_instance_uid: number for number in numbers}
    assert set(_due(store, 200.0)) == {by_uid["9.2"], by_uid["9.3"]}
    store.note_delivery(by_uid["9.2"], DeliveryState.RETRYING, tried=True, next_at=1e12)
    assert _due(store, 200.0) == [by_uid["9.1"]], "it is not held up for longer"


def test_other_bytes_in_the_place_of_a_removed_file_are_not_taken_for_it(store: Store) -> None:
    _answered(store)
    limits = Limits(now=1e12, before=dict.fromkeys(What, 1e12), trusted=())
    assert store.forget_files(What.SOURCES, STUDY, limits, take_away=lambda: None)
    uids: Any = {"study_uid": STUDY, "series_uid": f"{STUDY}.1", "sop_uid": f"{STUDY}.1.r0", "class_uid": "1.2"}
    assert store.keep_instance(**uids, sha256="other", path=Path("r0.dcm"), now=1e12) is Kept.OTHER
    assert store.files_of(STUDY)[0] == [Path("r0.dcm.removed")], "which is nowhere: the study is partial"


def test_where_objects_were_frozen_is_known(store: Store) -> None:
    _answered(store, _delivery("9.1"), _delivery("9.2"))
    assert store.delivered(STUDY) == {"9.1": Path("9.1.dcm"), "9.2": Path("9.2.dcm")}


def test_a_name_is_one_processs_and_one_of_them_leads(store: Store, url: str) -> None:
    if not url.startswith("postgresql"):
        assert store.take("a")
        assert store.leads()
        return
    other = Store(url)
    assert store.take("a")
    assert store.take("a"), "it is ours"
    assert not other.take("a")
    assert other.leads()
    assert not store.leads()
    other.close()
    assert store.leads()
    store.close()
    third = Store(url)
    assert third.take("a")
    assert third.leads()
    third.close()


def test_a_lock_is_taken_again_after_the_database_was_away(store: Store, url: str) -> None:
    if not url.startswith("postgresql"):
        return
    assert store.take("a")
    assert store.leads()
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        connection.execute(sa.text(f"{others} AND backend_type = 'client backend'"))
    engine.dispose()
    assert not store.leads(), "the connection is gone, and with it the lock"
    assert store.leads()
    assert not store.take("a")
    assert store.take("a")


def test_a_queue_is_told_by_destination(store: Store) -> None:
    first, second, _ = _answered(store, _delivery("9.1"), _delivery("9.2"), _delivery("9.1", "other"))
    store.note_delivery(first, CONFIRMED)
    store.note_delivery(second, DeliveryState.RETRYING, reason="away")
    queues = store.queues()
    assert queues["pacs"]["states"] == {"confirmed": 1, "retrying": 1}
    assert queues["pacs"]["waiting_since"] == 105.0
    assert queues["pacs"]["confirmed_at"] == pytest.approx(time.time(), abs=60)
    assert queues["other"] == {"states": {"queued": 1}, "waiting_since": 105.0, "confirmed_at": None}


def test_what_waits_for_a_destination_that_is_gone_is_stopped(store: Store) -> None:
    _, other = _answered(store, _delivery("9.1"), _delivery("9.1", "gone"))
    assert store.refuse_unknown(["pacs", "third"]) == 1
    assert store.delivery(other).state is REFUSED
    assert "no longer configured" in store.delivery(other).reason


def test_a_clock_that_was_set_back_makes_nothing_wait(store: Store) -> None:
    (number,) = _answered(store, _delivery("9.1"))
    _keep(store, study="1.5")
    _begin(store, study="1.5")
    store.postpone_study("1.5", 0, until=1e12)
    store.note_delivery(number, DeliveryState.RETRYING, next_at=1e12)
    store.hurry()
    assert _due(store, 1.0) == [number]
    assert [it[0] for it in _due_studies(store, 1.0)] == ["1.5"]


def test_what_is_due_is_given_out_once_until_its_lease_ends(store: Store) -> None:
    _analysing(store)
    assert store.is_analysing(STUDY, 0)
    assert _due_studies(store, 200.0) == [(STUDY, 0, 0, Priority.ROUTINE)]
    assert _due_studies(store, 259.0) == []
    assert _due_studies(store, 260.0) == [(STUDY, 0, 0, Priority.ROUTINE)], "its work may have been lost"
    store.postpone_study(STUDY, 0, until=500.0)
    assert _due_studies(store, 499.0) == []
    assert _due_studies(store, 500.0) == [(STUDY, 0, 1, Priority.ROUTINE)]
    store.release()
    assert _due_studies(store, 501.0) == [(STUDY, 0, 1, Priority.ROUTINE)], "a start waits for no lease"
    _keep(store, "late", now=600.0)
    assert not store.is_analysing(STUDY, 0)
    assert _due_studies(store, 9999.0) == [], "it is receiving again"


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
    assert [row["study_uid"] for row in store.studies(Wanted(state="delivering"))] == ["1.0"]
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
    assert [revision for revision, _ in store.answers(STUDY)] == [0]
    assert set(_due(store, 1e12)).isdisjoint(numbers[:2])


def test_a_postgresql_that_may_forget_is_refused(store: Store, url: str, tmp_path: Path) -> None:
    if not url.startswith("postgresql"):
        return
    open_store(StoreSection.model_construct(directory=tmp_path, database=url)).close()
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("ALTER ROLE overread SET synchronous_commit = off"))
        try:
            with pytest.raises(ConfigError, match="synchronous_commit is off"):
                open_store(StoreSection.model_construct(directory=tmp_path, database=url))
        finally:
            connection.execute(sa.text("ALTER ROLE overread RESET synchronous_commit"))
    engine.dispose()


def test_a_repeat_whose_first_file_is_gone_is_found_where_it_is(store: Store) -> None:
    _keep(store)
    uids: Any = {"study_uid": STUDY, "series_uid": f"{STUDY}.1", "sop_uid": f"{STUDY}.1.1", "class_uid": "1.2"}
    assert store.keep_instance(**uids, sha256="a", path=Path("other.dcm"), now=200.0) is Kept.SAME
    assert store.files_of(STUDY)[0] == [Path("other.dcm")]


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
    assert _begin(store)
    assert _due_studies(store, 200.0, urgent=True) == [(STUDY, 0, 0, Priority.STAT)]


def test_a_repeat_by_an_urgent_way_makes_a_waiting_study_urgent(store: Store) -> None:
    _keep(store)
    assert _keep(store, priority=Priority.STAT) is Kept.SAME
    assert _begin(store)
    assert _due_studies(store, 200.0, urgent=True) == [(STUDY, 0, 0, Priority.STAT)]
