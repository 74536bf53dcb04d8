"""The studies that are coming in, on a clock of our own: who is asked when, and what starts."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from service import faults, log
from service.config import Config
from service.errors import SourceUnavailable
from service.intake.arrivals import Arrivals
from service.intake.complete import Looked, Next, Stack, judge
from service.intake.counted import Count, CountedSeries
from service.settings.intake import Source
from service.types import Completeness, Receiving

CONFIG = Config.model_validate(
    {
        "intake": {"ae_title": "OURSELVES"},
        "sources": [
            {"ae_title": "PACS", "query": {"ae_title": "PACS", "host": "127.0.0.1", "port": 104}},
            {"ae_title": "OTHER", "qido_url": "http://127.0.0.1/dicom-web"},
            {"ae_title": "CLOCK"},
        ],
    }
)
UID, SERIES = "1.2", "1.2.1"


@dataclass
class Memory:
    """A store in memory."""

    rows: dict[str, Receiving] = field(default_factory=dict)
    numbers: dict[str, dict[str, int]] = field(default_factory=dict)
    ours: frozenset[str] = frozenset()
    files: list[Path] = field(default_factory=list)
    begun: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    wall: float = 1e9
    breaks: set[str] = field(default_factory=set)  # studies of which nothing can be read

    def come(self, study_uid: str = UID, *, source: str = "PACS", instances: int = 1, series: str = SERIES) -> None:
        """Let instances come."""
        self.wall += 0.01
        old = self.rows.get(study_uid)
        self.rows[study_uid] = Receiving(
            study_instance_uid=study_uid, revision=old.revision if old else 0, source=source, last_at=self.wall
        )
        numbers = self.numbers.setdefault(study_uid, {})
        numbers[series] = numbers.get(series, 0) + instances

    def receiving(self) -> list[Receiving]:
        return list(self.rows.values())

    def held(self, study_uid: str) -> dict[str, int]:
        self.calls.append(f"held {study_uid}")
        if study_uid in self.breaks:
            raise RuntimeError("odd")
        return dict(self.numbers[study_uid])

    def own_series(self, study_uid: str) -> frozenset[str]:
        return self.ours

    def files_of(self, study_uid: str) -> tuple[list[Path], float]:
        self.calls.append(f"files {study_uid}")
        if study_uid in self.breaks:
            raise RuntimeError("odd")
        return self.files, 0.0

    def note_waiting(self, study_uid: str, revision: int, *, words: str, until: float) -> None:
        self.calls.append(f"waits {study_uid}: {words}")

    def begin_analysis(self, study_uid: str, revision: int, *, last_at: float, **words: Any) -> bool:
        row = self.rows.get(study_uid)
        if row is None or (row.revision, row.last_at) != (revision, last_at):
            return False
        del self.rows[study_uid]
        self.begun.append({"study": study_uid, **words})
        return True


class Stage:
    """Arrivals with a clock, a source and threads that do as they are told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.store = Memory()
        self.answer: Count | Exception = Count()
        self.asked: list[float] = []
        self.looked_at: list[float] = []
        self.looked = Looked()
        self.aside: list[tuple[str, Callable[[], None]]] = []
        self.room = 8
        self.is_slow = False
        self.arrivals = Arrivals(
            CONFIG, self.store, aside=self._take, clock=lambda: self.now, ask=self._ask, look=self._look
        )

    def _take(self, key: str, work: Callable[[], None]) -> bool:
        if len(self.aside) >= self.room or key in dict(self.aside):
            return False
        self.aside.append((key, work))
        return True

    def _ask(self, study_uid: str, source: Source, *, our_ae_title: str) -> Count:
        assert our_ae_title == "OURSELVES"
        self.asked.append(round(self.now, 1))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def _look(self, paths: Iterable[Path]) -> Looked:
        self.looked_at.append(round(self.now, 1))
        list(paths)
        return self.looked

    def finish(self) -> None:
        """Let the other threads do what they were given."""
        while self.aside:
            self.aside.pop(0)[1]()

    def run(self, seconds: float, *, each: Callable[[], None] = lambda: None) -> None:
        """Ten ticks a second."""
        for _ in range(round(seconds * 10)):
            self.now = round(self.now + 0.1, 1)
            each()
            self.arrivals.tick()
            if not self.is_slow:
                self.finish()

    @property
    def how(self) -> list[tuple[str, Completeness]]:
        return [(it["study"], it["completeness"]) for it in self.store.begun]


def counted(number: int, **more: Any) -> Count:
    return Count(series=(CountedSeries(series_instance_uid=SERIES, modality="CT", instances=number),), **more)


def down(found: str = "no connection, or no answer") -> SourceUnavailable:
    return SourceUnavailable(doing="asking", found=found, rule="it answers", way_out="start it")


@pytest.fixture
def stage() -> Stage:
    return Stage()


VERIFIED, QUIET, PARTIAL = Completeness.VERIFIED, Completeness.QUIET, Completeness.PARTIAL


# --- With a count ---------------------------------------------------------------------------------------------------


def test_a_study_that_is_counted_starts_at_once(stage: Stage) -> None:
    stage.answer = counted(5)
    stage.run(2, each=lambda: stage.store.come() if len(stage.store.calls) == 0 and stage.now < 100.55 else None)
    assert stage.how == [(UID, VERIFIED)]
    assert stage.asked == [100.7], "0.2 s after the last instance, which came at 100.5"
    assert stage.store.begun[0]["judged"] == "its source counts as many as are here: 5 instances in 1 series"
    assert stage.store.begun[0]["missing"] == ""
    assert stage.store.calls == [f"held {UID}"], "nothing is counted while instances come"
    assert stage.looked_at == [], "a verified count needs no look"


def test_it_is_asked_again_with_growing_pauses_and_waits_up_to_the_limit(stage: Stage) -> None:
    stage.answer = counted(275)
    stage.store.come(instances=120)
    stage.run(299)
    assert stage.how == []
    pauses = [round(b - a, 1) for a, b in zip(stage.asked, stage.asked[1:], strict=False)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert stage.store.calls == [f"held {UID}"]
    verdict = stage.arrivals.waiting(UID)
    assert verdict is not None
    assert verdict.reason.startswith("incomplete: CT series 1.2.1: 120 of 275 instances; in ")
    assert verdict.seconds_left == pytest.approx(1.1, abs=0.2)
    stage.run(2)
    assert stage.how == [(UID, PARTIAL)]
    assert stage.store.begun[0]["missing"] == "CT series 1.2.1: 120 of 275 instances"
    assert stage.looked_at == []


def test_after_a_long_gap_the_last_slice_starts_it_at_once(stage: Stage) -> None:
    stage.answer = counted(275)
    stage.store.come(instances=120)
    stage.run(120)
    before = len(stage.asked)
    stage.store.come(instances=155)
    stage.run(0.2)
    assert len(stage.asked) == before
    stage.run(0.2)
    assert stage.how == [(UID, VERIFIED)]
    assert len(stage.asked) == before + 1


def test_a_trickle_is_no_reason_to_ask_all_the_time(stage: Stage) -> None:
    stage.answer = counted(275)
    for _ in range(100):
        stage.store.come()
        stage.run(0.7)
    assert len(stage.asked) < 25


def test_our_own_results_are_not_waited_for(stage: Stage) -> None:
    ours = CountedSeries(series_instance_uid="1.2.9", modality="SEG", instances=2)
    stage.answer = replace(counted(5), series=(*counted(5).series, ours))
    stage.store.come(instances=5)
    stage.store.ours = frozenset({"1.2.9"})
    stage.run(1)
    assert stage.how == [(UID, VERIFIED)]


def test_a_count_that_grows_is_waited_for(stage: Stage) -> None:
    stage.answer = counted(10)
    stage.store.come(instances=5)
    stage.run(1)
    stage.answer = counted(20)
    stage.store.come(instances=5)
    stage.run(1)
    assert stage.how == []
    stage.store.come(instances=10)
    stage.run(1)
    assert stage.how == [(UID, VERIFIED)]


def test_an_answer_counts_for_the_instances_for_which_it_was_asked(stage: Stage) -> None:
    stage.answer, stage.is_slow = counted(5), True
    stage.store.come(instances=5)
    stage.run(0.5)
    assert [key for key, _ in stage.aside] == [f"ask {UID}"]
    stage.store.come(instances=1)  # while the question is on its way
    stage.run(0.1)
    stage.finish()
    stage.run(0.1)
    assert stage.how == []
    stage.answer, stage.is_slow = counted(6), False
    stage.run(0.5)
    assert stage.how == [(UID, VERIFIED)]
    assert len(stage.asked) == 2


def test_an_instance_between_the_answer_and_the_claim_wins(stage: Stage) -> None:
    stage.answer = counted(5)
    stage.store.come(instances=5)
    begin = stage.store.begin_analysis

    def late(study_uid: str, revision: int, **words: Any) -> bool:
        if stage.store.numbers[UID][SERIES] == 5:
            stage.store.come()
        return begin(study_uid, revision, **words)

    stage.store.begin_analysis = late  # type: ignore[method-assign]
    stage.run(0.4)
    assert stage.how == []
    stage.answer = counted(6)
    stage.run(3)
    assert stage.how == [(UID, VERIFIED)]


def test_an_answer_for_fewer_instances_is_asked_for_again_even_if_it_fits_by_now(stage: Stage) -> None:
    stage.answer, stage.is_slow = counted(6), True
    stage.store.come(instances=5)
    stage.run(0.5)
    stage.store.come(instances=1)
    stage.run(0.1)
    stage.finish()
    stage.is_slow = False
    stage.answer = counted(7)
    stage.run(1)
    assert (stage.how, len(stage.asked)) == ([], 2)


def test_a_source_that_is_down_is_not_asked_all_the_time_when_all_is_here(stage: Stage) -> None:
    stage.answer = counted(275)
    stage.store.come(instances=120)
    stage.run(120)
    stage.answer = down()
    stage.store.come(instances=155)
    before = len(stage.asked)
    stage.run(4)
    assert len(stage.asked) == before + 1, "at once, and then with pauses"
    stage.answer = counted(275)
    stage.run(6)
    assert stage.how == [(UID, VERIFIED)]


def test_instances_shorten_a_pause_that_had_grown(stage: Stage) -> None:
    stage.answer = counted(275)
    stage.store.come(instances=120)
    stage.run(120)
    before = len(stage.asked)
    stage.store.come(instances=50)
    stage.run(4.3)
    assert len(stage.asked) == before + 1


def test_what_becomes_known_while_it_is_judged_is_not_lost(stage: Stage) -> None:
    stage.answer, stage.is_slow = counted(5), True
    stage.store.come(instances=5)
    stage.run(0.4)
    assert len(stage.aside) == 1

    def clock() -> float:
        if stage.aside:
            stage.aside.pop()[1]()
        return stage.now

    vars(stage.arrivals)["_clock"] = clock
    stage.run(0.2)
    assert stage.how == [(UID, VERIFIED)]


def test_what_waits_is_left_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[float] = []

    def count(*evidence: Any) -> Any:
        judged.append(stage.now)
        return judge(*evidence)

    monkeypatch.setattr("service.intake.arrivals.judge", count)
    stage.store.come(source="CLOCK")
    stage.run(25)
    assert len(judged) == 1


def test_what_is_under_way_is_said(stage: Stage) -> None:
    stage.is_slow = True
    stage.store.come(instances=5)
    stage.store.come("1.3", source="CLOCK")
    stage.run(1)
    asking = stage.arrivals.waiting(UID)
    assert asking is not None
    assert asking.next is Next.WAIT
    assert asking.reason.endswith("its source is being asked")
    stage.run(30)
    looking = stage.arrivals.waiting("1.3")
    assert looking is not None
    assert looking.next is Next.WAIT
    assert looking.reason.endswith("its stacks are looked at")


@pytest.mark.parametrize("source", ["PACS", "OTHER"])
def test_both_ways_to_ask_are_ways(source: str, stage: Stage) -> None:
    stage.answer = counted(5)
    stage.store.come(instances=5, source=source)
    stage.run(0.5)
    assert stage.how == [(UID, VERIFIED)]


def test_a_source_that_takes_over_is_the_one_to_ask(stage: Stage) -> None:
    stage.answer = counted(2)
    stage.store.come(source="CLOCK")
    stage.run(1)
    assert stage.asked == []
    stage.store.come(source="PACS")
    stage.run(1)
    assert stage.how == [(UID, VERIFIED)]


# --- Without one ----------------------------------------------------------------------------------------------------


def test_the_clock_decides_where_nobody_can_be_asked(stage: Stage) -> None:
    stage.store.come(source="CLOCK")
    stage.run(30)
    assert (stage.how, stage.looked_at) == ([], [])
    stage.run(0.4)
    assert stage.how == [(UID, QUIET)]
    assert len(stage.looked_at) == 1
    assert (stage.asked, stage.store.calls) == ([], [f"files {UID}"])
    assert stage.store.begun[0]["judged"] == "no instance came for 30 s, and no slice is seen to be missing"


def test_a_hole_in_a_stack_is_waited_for_and_then_said(stage: Stage) -> None:
    stage.looked = Looked(stacks=(Stack(series_instance_uid=SERIES, modality="CT", instances=19, missing=1),))
    stage.store.come(source="CLOCK")
    stage.run(299)
    assert stage.how == []
    assert len(stage.looked_at) == 1, "once for these instances"
    stage.store.come(source="CLOCK")
    stage.run(200)
    assert stage.how == [], "its time begins anew"
    assert len(stage.looked_at) == 2
    stage.run(101)
    assert stage.how == [(UID, PARTIAL)]
    assert "1 slices missing" in stage.store.begun[0]["missing"]


def test_a_look_counts_for_the_instances_that_it_saw(stage: Stage) -> None:
    stage.is_slow = True
    stage.store.come(source="CLOCK")
    stage.run(31)
    assert [key for key, _ in stage.aside] == [f"look {UID}"]
    stage.store.come(source="CLOCK")
    stage.run(0.1)
    stage.finish()
    stage.is_slow = False
    stage.run(29)
    assert stage.how == []
    stage.run(2)
    assert stage.how == [(UID, QUIET)]
    assert len(stage.looked_at) == 2


@pytest.mark.parametrize("answer", [down(), Count(), counted(4), ValueError("a bug")], ids=lambda it: type(it).__name__)
def test_a_source_that_is_of_no_help_leaves_it_to_the_clock(answer: Any, stage: Stage) -> None:
    stage.answer = answer
    stage.store.come(instances=5)
    stage.run(29)
    assert stage.how == []
    assert 5 <= len(stage.asked) <= 7
    verdict = stage.arrivals.waiting(UID)
    assert verdict is not None
    assert "its source " in verdict.reason
    assert "ready in " in verdict.reason
    stage.run(2)
    assert stage.how == [(UID, QUIET)]
    assert "its source " in stage.store.begun[0]["judged"]


def test_a_source_that_comes_back_is_believed(stage: Stage) -> None:
    stage.answer = down()
    stage.store.come(instances=5)
    stage.run(10)
    stage.answer = counted(5)
    stage.run(8)
    assert stage.how == [(UID, VERIFIED)]


def test_what_is_still_missing_is_remembered_while_a_source_is_down(stage: Stage) -> None:
    stage.answer = counted(275)
    stage.store.come(instances=5)
    stage.run(1)
    stage.answer = down()
    stage.run(60)
    assert stage.how == []
    stage.run(300)
    assert stage.how == [(UID, PARTIAL)]


def test_a_source_that_hangs_holds_up_its_own_studies_only(stage: Stage) -> None:
    stage.answer = counted(1)
    for number in range(100, 120):
        stage.store.come(f"1.{number}")
    stage.run(5)
    assert len(stage.how) == 20
    stage.is_slow = True
    for number in range(20):
        stage.store.come(f"1.{number}")
    stage.run(1)
    assert len(stage.aside) == 3
    stage.aside.pop(0)[1]()
    stage.run(0.5)
    assert len(stage.aside) == 3
    stage.store.come("1.77", source="OTHER")
    stage.run(0.5)
    assert [key for key, _ in stage.aside][3:] == ["ask 1.77"]
    stage.run(35)
    looks = [key for key, _ in stage.aside if key.startswith("look")]
    assert looks, "the clock goes on"
    stage.is_slow = False
    stage.finish()
    stage.run(60)
    assert len(stage.how) == 41


def test_work_that_no_thread_is_free_for_is_tried_again(stage: Stage) -> None:
    stage.room = 0
    stage.answer = counted(5)
    stage.store.come(instances=5)
    stage.store.come("1.3", source="CLOCK")
    stage.run(40)
    assert (stage.how, stage.asked) == ([], [])
    stage.room = 8
    stage.run(0.3)
    assert sorted(stage.how) == [(UID, QUIET), ("1.3", QUIET)]


# --- Files that are gone --------------------------------------------------------------------------------------------


@pytest.fixture
def came_back(stage: Stage, tmp_path: Path) -> Stage:
    """A study of five whose first four files were removed before the fifth instance came."""
    stage.store.come(instances=5)
    stage.store.rows[UID] = replace(stage.store.rows[UID], revision=1)
    last = tmp_path / "5.dcm"
    last.touch()
    stage.store.files = [*(tmp_path / f"{number}.dcm" for number in range(1, 5)), last]
    return stage


def test_files_that_were_removed_are_missing_whatever_is_counted(came_back: Stage) -> None:
    stage = came_back
    stage.answer = counted(5)
    stage.looked = Looked(stacks=(Stack(series_instance_uid=SERIES, modality="CT", instances=1),))
    stage.run(299)
    assert stage.how == []
    stage.run(2)
    assert stage.how == [(UID, PARTIAL)]
    assert stage.store.begun[0]["missing"] == (
        "CT series 1.2.1: 1 of 5 instances; 4 instances that came earlier are no longer kept"
    )


def test_of_a_study_that_came_back_with_all_its_files_nothing_is_missing(came_back: Stage) -> None:
    stage = came_back
    stage.store.files = stage.store.files[4:] * 5
    stage.answer = counted(5)
    stage.run(1)
    assert stage.how == [(UID, VERIFIED)]
    assert stage.looked_at == []


def test_files_that_come_again_are_counted_again(came_back: Stage) -> None:
    stage = came_back
    stage.answer = counted(5)
    stage.looked = Looked(stacks=(Stack(series_instance_uid=SERIES, modality="CT", instances=1),))
    stage.run(10)
    for path in stage.store.files:
        path.touch()
    stage.answer = counted(6)
    stage.store.come(instances=0)
    stage.run(1)
    verdict = stage.arrivals.waiting(UID)
    assert verdict is not None
    assert verdict.missing == "CT series 1.2.1: 5 of 6 instances"
    stage.answer = counted(5)
    stage.run(10)
    assert stage.how == [(UID, VERIFIED)]


# --- The memory -----------------------------------------------------------------------------------------------------


def test_the_wall_clock_may_be_set(stage: Stage) -> None:
    stage.store.come(source="CLOCK")
    stage.run(20)
    stage.store.wall = 10.0  # back by many years
    stage.store.come(source="CLOCK")
    stage.run(20)
    stage.store.wall = 1e12
    stage.store.come(source="CLOCK")
    stage.run(29)
    assert stage.how == []
    stage.run(2)
    assert stage.how == [(UID, QUIET)]


def test_what_is_no_longer_coming_in_is_forgotten(stage: Stage) -> None:
    stage.is_slow = True
    for number in range(1000):
        stage.store.come(f"1.{number}")
    stage.run(1)
    assert stage.arrivals.waiting("1.7") is not None
    assert stage.arrivals.waiting("1.7777") is None
    stage.store.rows.clear()
    stage.run(0.1)
    assert stage.arrivals.waiting("1.7") is None
    stage.finish()  # answers that nobody waits for
    stage.run(0.1)
    assert (vars(stage.arrivals)["_arrivals"], vars(stage.arrivals)["_asking"]) == ({}, {})


def test_a_new_revision_is_judged_anew(stage: Stage) -> None:
    stage.answer = counted(5)
    stage.store.come(instances=5)
    stage.run(1)
    stage.store.come(instances=1)
    stage.store.rows[UID] = replace(stage.store.rows[UID], revision=1)
    stage.answer = counted(6)
    stage.run(1)
    assert stage.how == [(UID, VERIFIED)] * 2


def test_an_odd_study_holds_up_no_other(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.answer = counted(5)
    stage.store.come("1.0", instances=5)
    stage.store.come("1.1", instances=5)
    stage.store.breaks = {"1.0"}
    with caplog.at_level(logging.INFO, logger="overread"):
        stage.run(10)
    assert stage.how == [("1.1", VERIFIED)]
    failures = [record for record in caplog.records if record.getMessage() == "arrival.failed"]
    assert 2 <= len(failures) <= 3, "not ten times a second"
    stage.store.breaks = set()
    stage.run(6)
    assert stage.how == [("1.1", VERIFIED), ("1.0", VERIFIED)]


def test_a_study_whose_files_can_t_be_looked_at_starts_all_the_same(stage: Stage) -> None:
    stage.store.come(source="CLOCK")
    stage.store.breaks = {UID}
    stage.run(31)
    assert stage.how == [(UID, QUIET)]


def test_each_moment_has_its_verdict(stage: Stage) -> None:
    stage.answer = counted(275)
    stage.store.come(instances=120)
    stage.run(10)
    first = stage.arrivals.waiting(UID)
    stage.now += 0.9  # between two ticks
    second = stage.arrivals.waiting(UID)
    assert first is not None
    assert second is not None
    assert first.seconds_left - second.seconds_left == pytest.approx(0.9)
    assert first.next in (Next.WAIT, Next.ASK)


def test_what_it_does_is_said(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    log.set_up()
    stage.answer = down()
    stage.store.come(instances=5)
    stage.run(10)
    stage.answer = counted(5)
    stage.run(10)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["source.unavailable", "study.ready"], "once, not with each question"
    assert (lines[0]["study_uid"], lines[0]["source"], lines[0]["way_out"]) == (UID, "PACS", "start it")
    assert {key: lines[1][key] for key in ("study_uid", "revision", "completeness")} == {
        "study_uid": UID,
        "revision": 0,
        "completeness": "verified",
    }
    assert lines[1]["reason"] == "its source counts as many as are here: 5 instances in 1 series"


def test_it_passes_the_places_of_a_crash(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[tuple[str, int]] = []
    monkeypatch.setattr(faults, "point", lambda name: passed.append((name, len(stage.store.begun))))
    stage.answer = counted(5)
    stage.store.come(instances=5)
    stage.run(1)
    assert passed == [("study.judged", 0), ("study.begun", 1)]


def test_many_threads_at_once() -> None:
    """Real threads and a real clock: each study starts once, whoever looks meanwhile."""
    stage = Stage()
    threads: list[threading.Thread] = []

    def aside(_: str, work: Callable[[], None]) -> bool:
        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return True

    def ask(study_uid: str, source: Source, *, our_ae_title: str) -> Count:
        time.sleep(0.005)
        return counted(1)

    arrivals = Arrivals(CONFIG, stage.store, aside=aside, ask=ask, look=lambda paths: Looked())
    for number in range(60):
        stage.store.come(f"1.{number}")
    done = threading.Event()
    failed: list[BaseException] = []

    def watch() -> None:
        try:
            while not done.is_set():
                for number in range(60):
                    arrivals.waiting(f"1.{number}")
        except BaseException as exc:
            failed.append(exc)

    watcher = threading.Thread(target=watch)
    watcher.start()
    until = time.monotonic() + 20
    while len(stage.store.begun) < 60 and time.monotonic() < until:
        arrivals.tick()
        time.sleep(0.01)
    done.set()
    for thread in (*threads, watcher):
        thread.join()
    assert not failed
    assert sorted(stage.how) == sorted((f"1.{number}", VERIFIED) for number in range(60))
