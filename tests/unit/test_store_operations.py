"""What operators and several processes do to the store, on SQLite and on a real PostgreSQL: the same tests on both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.overview import Wanted
from service.store import Store
from service.types import DeliveryState, Priority, Step, StudyState
from tests.unit.test_store import STUDY, _delivery, _keep, store, url

__all__ = ["store", "url"]  # fixtures


def _ready(store: Store, study: str = STUDY, revision: int = 0, now: float = 100.0) -> None:
    assert store.begin_analysis(study, revision, last_at=now, judged="it was quiet")


def _answered(store: Store, study: str = STUDY, *uids: str, findings: int = 2) -> None:
    _keep(store, study=study)
    _ready(store, study)
    body: dict[str, Any] = {"findings": [{}] * findings}
    deliveries = [_delivery(uid, study=study) for uid in uids]
    assert store.save_answers(study, 0, answers={"m": ("findings", body)}, deliveries=deliveries)


def _state(store: Store, study: str = STUDY) -> str:
    row = store.study(study)
    assert row
    return str(row["state"])


def _steps(store: Store, study: str = STUDY) -> list[str]:
    return [row["step"] for row in store.steps(study)]


# --- Studies at which a process ends ----------------------------------------------------------------------------------


def _begun(store: Store, *studies: str) -> None:
    """Taken by a process that ends, and is started again."""
    for study in studies:
        assert store.due_studies(now=time.time(), lease_seconds=60, limit=1, urgent=False, holder="a", only=study)
    store.release("a")


def test_what_has_had_its_process_end_twice_is_doubtful_the_fewest_times_first(store: Store) -> None:
    for study in ("1.1", "1.2", "1.3", "1.4"):
        _keep(store, study=study)
        _ready(store, study)
    _begun(store, "1.1", "1.2", "1.3")
    assert store.doubtful() == [], "a restart has many reasons"
    _begun(store, "1.1", "1.2")
    _begun(store, "1.1")
    assert store.doubtful() == ["1.2", "1.1"]
    assert [store.begun_in_vain(study) for study in ("1.1", "1.2", "1.3", "1.4")] == [3, 2, 1, 0]
    _keep(store, study="1.5")
    _ready(store, "1.5")
    assert store.doubtful() == ["1.2", "1.1"], "what becomes of others says nothing of them"


def test_a_process_that_stops_in_order_is_no_reason_for_doubt(store: Store) -> None:
    _keep(store)
    _ready(store)
    for _ in range(6):
        store.due_studies(now=time.time(), lease_seconds=60, limit=1, urgent=False, holder="a")
        store.note_left([(STUDY, 0), ("9.9", 0)])
        store.release("a")
    assert (store.begun_in_vain(STUDY), store.doubtful()) == (0, [])
    store.cancel(STUDY)
    before = len(_steps(store))
    store.note_left([(STUDY, 0)])
    assert len(_steps(store)) == before, "it is not analysed any more"


def test_what_is_at_work_is_not_begun_again_though_its_lease_has_lapsed(store: Store) -> None:
    _keep(store)
    _ready(store)
    assert store.due_studies(now=1.0, lease_seconds=1, limit=1, urgent=False, holder="a")
    assert not store.due_studies(now=9.0, lease_seconds=1, limit=1, urgent=False, holder="a", but=[(STUDY, 0)])
    assert store.begun_in_vain(STUDY) == 1


def test_whatever_else_became_of_it_ends_the_count(store: Store) -> None:
    _keep(store)
    _ready(store)
    _begun(store, STUDY)
    _begun(store, STUDY)
    store.due_studies(now=time.time(), lease_seconds=60, limit=1, urgent=False, holder="a")
    store.postpone_study(STUDY, 0, until=0.0, words="the backend is away", holder="a")
    assert store.begun_in_vain(STUDY) == 0
    _begun(store, STUDY)
    assert (store.begun_in_vain(STUDY), store.doubtful()) == (1, [])
    _begun(store, STUDY)
    store.cancel(STUDY)
    assert store.rerun(STUDY)
    assert store.begun_in_vain(STUDY) == 0, "an operator wants it tried again"


# --- The time line --------------------------------------------------------------------------------------------------


def test_every_step_of_a_study_stands_in_its_time_line_once(store: Store) -> None:
    _keep(store)
    _keep(store, "2")
    _keep(store, "2", sha="b")  # a conflict is no step of the study
    store.note_waiting(STUDY, 0, words="two series are to come", until=130.0)
    _ready(store)
    store.due_studies(now=1.0, lease_seconds=60, limit=1, urgent=False, holder="a")
    store.postpone_study(STUDY, 0, until=0.0, words="the backend is away", holder="a")
    store.due_studies(now=1.0, lease_seconds=60, limit=1, urgent=False, holder="b")
    store.save_answers(STUDY, 0, answers={"m": ("no findings", {"findings": []})}, deliveries=[_delivery("9.1")])
    store.note_delivery(1, DeliveryState.RETRYING, reason="busy", tried=True, next_at=0.0)
    store.note_sent(1, remark="")
    store.note_delivery(1, DeliveryState.CONFIRMED)
    store.note_delivery(1, DeliveryState.CONFIRMED)
    _keep(store, "3")
    rows = store.steps(STUDY)
    assert [(row["step"], row["words"]) for row in rows] == [
        (Step.FIRST_INSTANCE, ""),
        (Step.READY, "quiet: it was quiet"),
        (Step.BEGUN, "by a"),
        (Step.POSTPONED, "the backend is away"),
        (Step.BEGUN, "by b"),
        (Step.ANSWERED, "m: no findings"),
        (Step.SENT, "SR of m at pacs"),
        (Step.CONFIRMED, "SR of m at pacs"),
        (Step.DONE, ""),
        (Step.REOPENED, ""),
    ]
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    numbers = [number for number, *_ in store.steps_since(0)]
    assert store.steps_since(numbers[-2])[0][:2] == (numbers[-1], STUDY)
    assert store.last_step() == numbers[-1]
    assert store.steps_since(store.last_step()) == []


def test_what_a_study_waits_for_is_told_while_it_waits(store: Store) -> None:
    _keep(store)
    store.note_waiting(STUDY, 0, words="two series are to come", until=130.0)
    (row,) = store.studies()
    assert (row["waits"], row["waits_until"]) == ("two series are to come", 130.0)
    store.note_waiting(STUDY, 1, words="of another revision", until=1.0)
    _ready(store)
    store.note_waiting(STUDY, 0, words="too late", until=1.0)
    assert store.studies()[0]["waits"] == ""


# --- What is wanted -------------------------------------------------------------------------------------------------


def test_studies_are_found_by_what_is_known_of_them(store: Store) -> None:
    _answered(store, "1.1", "9.1")
    _answered(store, "1.2", findings=0)
    _keep(store, study="1.3", now=200.0, priority=Priority.STAT)

    def found(**wanted: Any) -> list[str]:
        assert store.count_studies(Wanted(**wanted)) == len(store.studies(Wanted(**wanted)))
        return sorted(row["study_uid"] for row in store.studies(Wanted(**wanted)))

    assert found() == ["1.1", "1.2", "1.3"]
    assert found(state="receiving") == ["1.3"]
    assert found(model="m") == ["1.1", "1.2"]
    assert found(model="other") == []
    assert found(outcome="findings") == ["1.1", "1.2"]
    assert found(destination="pacs") == ["1.1"]
    assert found(since=150.0) == ["1.3"]
    assert found(until=150.0) == ["1.1", "1.2"]
    assert found(study_uid="1.2") == ["1.2"]
    assert found(study_uid="1.%") == []
    answers = {row["study_uid"]: row["answers"] for row in store.studies()}
    assert answers["1.1"] == [{"model": "m", "outcome": "findings", "findings": 2}]
    assert answers["1.3"] == []
    assert next(row["study_uid"] for row in store.studies(order="urgent")) == "1.3"
    assert [row["study_uid"] for row in store.studies(order="oldest")][-1] == "1.3"


def test_only_the_answers_that_stand_are_shown_with_a_study(store: Store) -> None:
    _answered(store, STUDY)
    assert store.rerun(STUDY)
    assert store.studies()[0]["answers"][0]["findings"] == 2, "the last ones stand until there are new ones"
    assert store.save_answers(STUDY, 1, answers={"m": ("no findings", {"findings": []})}, deliveries=[])
    assert store.studies()[0]["answers"] == [{"model": "m", "outcome": "no findings", "findings": 0}]
    assert store.studies(Wanted(outcome="findings")) == []


# --- What an operator decides ---------------------------------------------------------------------------------------


def test_a_study_is_analysed_again_as_another_revision(store: Store) -> None:
    assert not store.rerun(STUDY), "unknown"
    _keep(store)
    assert not store.rerun(STUDY), "it is still coming in"
    _ready(store)
    assert not store.rerun(STUDY), "it is being analysed"
    assert store.save_answers(STUDY, 0, answers={"m": ("failed", {})}, deliveries=[])
    assert _state(store) == StudyState.DONE
    assert store.rerun(STUDY)
    assert store.is_analysing(STUDY, 1)
    assert store.due_studies(now=time.time(), lease_seconds=60, limit=9, urgent=False)[0][:2] == (STUDY, 1)
    assert _steps(store)[-2:] == [Step.RERUN, Step.BEGUN]


def test_a_cancelled_study_is_not_analysed_until_an_instance_comes_or_somebody_asks(store: Store) -> None:
    _keep(store)
    assert store.cancel(STUDY)
    assert not store.cancel(STUDY)
    assert store.receiving() == []
    assert _keep(store, "2") == "new"
    assert _state(store) == StudyState.RECEIVING
    _ready(store, revision=1)
    assert store.cancel(STUDY)
    assert store.due_studies(now=1.0, lease_seconds=60, limit=9, urgent=False) == []
    assert not store.save_answers(STUDY, 1, answers={"m": ("findings", {})}, deliveries=[_delivery("9.1")])
    assert store.rerun(STUDY)
    assert store.is_analysing(STUDY, 2)


def test_results_that_arrived_are_sent_again_only_when_somebody_asks(store: Store) -> None:
    _answered(store, STUDY, "9.1", "9.2")
    for number, state in ((1, DeliveryState.CONFIRMED), (2, DeliveryState.REFUSED)):
        store.note_delivery(number, state)
    store.drop_deliveries(numbers=[2])
    assert _state(store) == StudyState.DONE
    assert store.resend(STUDY, "other") == []
    assert store.resend(STUDY) == [1], "what was dropped stays so"
    assert _state(store) == StudyState.DELIVERING
    assert store.due_deliveries("pacs", now=time.time(), lease_seconds=60, limit=9) == [1]
    assert _steps(store)[-1] == Step.RESENT


def test_urgency_is_changed_for_what_is_still_to_come(store: Store) -> None:
    assert not store.set_priority(STUDY, Priority.STAT)
    _keep(store)
    _ready(store)
    assert store.due_studies(now=1.0, lease_seconds=0, limit=9, urgent=True) == []
    assert store.set_priority(STUDY, Priority.STAT)
    assert len(store.due_studies(now=1.0, lease_seconds=0, limit=9, urgent=True)) == 1
    assert store.steps(STUDY)[2]["words"] == "stat"


# --- Several processes ----------------------------------------------------------------------------------------------


def test_what_a_process_renews_nobody_else_takes_and_what_it_left_is_taken(store: Store) -> None:
    _answered(store, "1.1", "9.1")
    _keep(store, study="1.2")
    _ready(store, "1.2")
    assert store.due_studies(now=0.0, lease_seconds=60, limit=9, urgent=False, holder="a")[0][:2] == ("1.2", 0)
    assert store.due_deliveries("pacs", now=0.0, lease_seconds=60, limit=9, holder="a") == [1]
    store.renew("b", until=500.0, studies=[("1.2", 0)], deliveries=[1])
    assert store.due_deliveries("pacs", now=30.0, lease_seconds=60, limit=9, holder="b") == []
    store.renew("a", until=100.0, studies=[("1.2", 0)], deliveries=[1])
    assert store.due_studies(now=61.0, lease_seconds=60, limit=9, urgent=False, holder="b") == []
    assert store.due_deliveries("pacs", now=61.0, lease_seconds=60, limit=9, holder="b") == []
    assert len(store.due_studies(now=101.0, lease_seconds=60, limit=9, urgent=False, holder="b")) == 1
    assert store.due_deliveries("pacs", now=101.0, lease_seconds=60, limit=9, holder="b") == [1]
    store.renew("a", until=500.0, studies=[("1.2", 0)], deliveries=[1])
    assert store.due_deliveries("pacs", now=162.0, lease_seconds=60, limit=9, holder="a") == [1], "it is b's, not a's"


def test_a_process_that_starts_again_takes_up_its_own_work_and_leaves_the_others_theirs(store: Store) -> None:
    for number, holder in enumerate("ab", 1):
        study = f"1.{number}"
        _answered(store, f"2.{number}", f"9.{number}")
        _keep(store, study=study)
        _ready(store, study)
        assert store.due_studies(now=0.0, lease_seconds=60, limit=1, urgent=False, holder=holder)
        assert store.due_deliveries("pacs", now=0.0, lease_seconds=60, limit=1, holder=holder) == [number]
    store.release("a")
    assert [row[0] for row in store.due_studies(now=1.0, lease_seconds=60, limit=9, urgent=False)] == ["1.1"]
    assert store.due_deliveries("pacs", now=1.0, lease_seconds=60, limit=9) == [1]
    store.release()
    assert len(store.due_studies(now=1.0, lease_seconds=60, limit=9, urgent=False)) == 2
    assert store.due_deliveries("pacs", now=1.0, lease_seconds=60, limit=9) == [1, 2]


def test_processes_are_known_by_their_names(store: Store, tmp_path: Path) -> None:
    store.report("a", parts=("work", "page"), started_at=1.0, status={"lines": {}})
    store.report("a", parts=("work",), started_at=2.0, status={"lines": {"pacs": 1}})
    (row,) = store.processes()
    assert (row["name"], row["parts"], row["started_at"], row["status"]) == ("a", ["work"], 2.0, {"lines": {"pacs": 1}})


def test_what_is_at_work_is_left_to_whoever_has_it(store: Store) -> None:
    """A report of a commitment, a clock that was set back, and a try of somebody who has lost it take nothing away."""
    _answered(store, "1.1", "9.1")
    assert store.due_deliveries("pacs", now=0.0, lease_seconds=60, limit=9, holder="a") == [1]
    store.note_sent(1, remark="")
    store.ask_commitment(1, "5.5")
    assert store.note_commitment("5.5", committed=["9.1"], failed={}) == 1
    assert store.due_deliveries("pacs", now=30.0, lease_seconds=60, limit=9, holder="b") == []
    _keep(store, study="1.2")
    _ready(store, "1.2")
    assert store.due_studies(now=0.0, lease_seconds=60, limit=9, urgent=False, holder="a")
    store.hurry()
    store.postpone_study("1.2", 0, until=0.0, words="of b's, who has lost it", holder="b")
    assert store.due_studies(now=30.0, lease_seconds=60, limit=9, urgent=False, holder="b") == []
    assert Step.POSTPONED not in _steps(store, "1.2")
    store.cancel("1.2")
    store.postpone_study("1.2", 0, until=0.0, words="of a study that nobody wants", holder="a")
    assert _steps(store, "1.2")[-1] == Step.CANCELLED


def test_a_delivery_that_was_ended_meanwhile_is_not_told_of_again(store: Store) -> None:
    _answered(store, STUDY, "9.1")
    assert store.note_delivery(1, DeliveryState.CONFIRMED) is not None
    assert store.note_delivery(1, DeliveryState.CONFIRMED) is None


def test_progress_does_not_outlive_its_analysis(store: Store) -> None:
    _keep(store)
    _ready(store)
    store.note_progress(STUDY, 0, {"m": {"stage": "infer", "done": 1, "total": 2}})
    assert store.studies()[0]["progress"]
    store.cancel(STUDY)
    assert not store.studies()[0]["progress"]
    store.note_progress(STUDY, 0, {"m": {"stage": "infer", "done": 2, "total": 2}})
    assert not store.studies()[0]["progress"], "it is not analysed any more"


def test_two_that_wait_for_each_other_both_get_through(store: Store, url: str) -> None:
    """Starts, attempts, operators and renewals at once: PostgreSQL ends one of two that wait for each other."""
    for number in range(6):
        _answered(store, f"1.{number}", f"9.{number}", f"8.{number}")
    others = [Store(url) for _ in range(5)]
    until = time.monotonic() + 4.0
    failed: list[BaseException] = []

    def again(act: Callable[[], object]) -> None:
        try:
            while time.monotonic() < until:
                act()
        except BaseException as exc:
            failed.append(exc)

    acts: list[Callable[[], object]] = [
        lambda: others[0].release("a"),
        lambda: [others[1].note_delivery(n, DeliveryState.REFUSED, reason="x") for n in range(12, 0, -1)],
        lambda: others[2].retry_deliveries(numbers=list(range(1, 13))),
        lambda: others[3].due_deliveries("pacs", now=time.time(), lease_seconds=0, limit=12, holder="a"),
        lambda: others[4].renew("a", until=0.0, studies=[("1.5", 0), ("1.1", 0)], deliveries=range(12, 0, -1)),
    ]
    threads = [threading.Thread(target=again, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert failed == []
