"""What retention promises: nothing goes before it is confirmed and old, and nothing that is needed, ever."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from pynetdicom import evt

from service import faults, retention
from service.config import Config
from service.errors import OutOfSpace
from service.intake.receive import StorageHandler
from service.intake.spool import Spool
from service.records import Folder, What
from service.retention import Forgotten, forget, limits_of, why_kept
from service.settings.destinations import Destination
from service.settings.intake import Intake, Source
from service.settings.store import Retention, StoreSection
from service.store import Store
from service.tables import CONFLICTS, INSTANCES, STUDIES, TABLES
from service.types import ENDED, Delivery, DeliveryState, StudyState
from tests.support import missing
from tests.unit.encoded import EXPLICIT, encode
from tests.unit.test_store import url as url

CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY, DAY = "1.2.3", 86400.0
QUIET_SECONDS = 30.0  # the least age of images
GONE = Forgotten(sources=1, evidence=1, records=1)
CONFIRMED, UNCONFIRMED = DeliveryState.CONFIRMED, DeliveryState.UNCONFIRMED


@dataclass(kw_only=True)
class Site:
    """A store with its folder, a receiver, and what was done of the studies."""

    directory: Path
    store: Store
    config: Config
    outcomes: list[str] = field(default_factory=list)
    before_row: Callable[[], object] = lambda: None  # called when a file is kept and has no row yet

    def receive(self, number: int = 1, *, study: str = STUDY, series: int = 1, content: str = "") -> int:
        """Send it an instance; the status."""
        made = Dataset()
        made.SOPClassUID, made.SOPInstanceUID = CT, f"{study}.{series}.{number}"
        made.StudyInstanceUID, made.SeriesInstanceUID, made.SeriesDescription = study, f"{study}.{series}", content
        spool, data = Spool(self.directory, 0), encode(made, EXPLICIT)
        real_keep = spool.keep

        def keep(data: bytes, **which: Any) -> Any:
            kept = real_keep(data, **which)
            hook, self.before_row = self.before_row, lambda: None
            hook()
            return kept

        spool.keep = keep  # type: ignore[method-assign]
        handler = StorageHandler(spool, self.store, lambda word, _: self.outcomes.append(word))
        event = SimpleNamespace(
            request=SimpleNamespace(
                AffectedSOPClassUID=CT,
                AffectedSOPInstanceUID=made.SOPInstanceUID,
                DataSet=SimpleNamespace(getvalue=lambda: data),
            ),
            assoc=SimpleNamespace(requestor=SimpleNamespace(ae_title="SENDER", primitive=None)),
            context=SimpleNamespace(transfer_syntax=EXPLICIT, abstract_syntax=CT),
        )
        answer = handler(cast(evt.Event, event))
        return answer if isinstance(answer, int) else int(answer.Status)

    def answer(self, *states: tuple[str, DeliveryState], study: str = STUDY) -> None:
        """Analyse it as it is, and deliver it with these ends."""
        row = self.study(study)
        assert self.store.begin_analysis(study, row["revision"], last_at=row["last_at"])
        folder = self.directory / "evidence" / study / str(row["revision"])
        folder.mkdir(parents=True)
        (folder / "answers.json").write_text("[]")
        deliveries = [_delivery(self.directory, study, number, name) for number, (name, _) in enumerate(states)]
        answers: Any = {"m": ("findings", {"model": "m"})}
        assert self.store.save_answers(study, row["revision"], answers=answers, deliveries=deliveries)
        for delivery, (_, state) in zip(self.study(study)["deliveries"], states, strict=True):
            self.store.note_delivery(delivery["delivery_id"], state)

    def done(self, *studies: str, instances: int = 2) -> Site:
        """Studies that came, and were answered and confirmed."""
        for study in studies or (STUDY,):
            for number in range(1, instances + 1):
                assert self.receive(number, study=study) == 0
            self.answer(("pacs", CONFIRMED), study=study)
        return self

    def study(self, study: str = STUDY) -> dict[str, Any]:
        row = self.store.study(study)
        assert row is not None
        return row

    def forget(self, *, days: float = 9999.0, limit: int = 50) -> Forgotten:
        """What is forgotten so many days from now."""
        return forget(self.config, self.store, now=time.time() + days * DAY, limit=limit)

    def age(self, days: float = 8.0, *, study: str = STUDY) -> None:
        """Let it be done since so many days."""
        self.set(study, done_at=time.time() - days * DAY, sources_at=time.time() - days * DAY)

    def files(self, folder: str = "spool") -> list[str]:
        root = self.directory / folder
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())

    def rows(self, table: sa.Table, *columns: str) -> list[Any]:
        with self.store._engine.begin() as tx:
            return list(tx.execute(sa.select(*[table.c[name] for name in columns or table.c.keys()])))

    def here(self) -> list[Path]:
        """The files of instances that were not removed since they came."""
        return [Path(row.path) for row in self.rows(INSTANCES) if row.gone_at is None]

    def set(self, study: str = STUDY, **values: Any) -> None:
        """Change a study's row."""
        with self.store._engine.begin() as tx:
            tx.execute(sa.update(STUDIES).where(STUDIES.c.study_uid == study).values(**values))


def _delivery(directory: Path, study: str, number: int, destination: str) -> Delivery:
    return Delivery(
        delivery_id=0,
        study_instance_uid=study,
        destination=destination,
        model="m",
        kind="SR",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        series_instance_uid=f"{study}.9",
        sop_instance_uid=f"{study}.9.{number}",
        path=directory / "evidence" / study / "0" / f"{number}.dcm",
        state=DeliveryState.QUEUED,
        attempts=0,
        reason="",
        queued_at=time.time(),
    )


def _config(directory: Path, confirm: Any = "auto", **days: float) -> Config:
    pacs = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=104, confirm=confirm)
    return Config(
        destinations=(pacs,), store=StoreSection(directory=directory), retention=Retention.model_validate(days)
    )


@pytest.fixture
def site(url: str, tmp_path: Path) -> Iterator[Site]:
    store = Store(url)
    store.create_tables()
    yield Site(directory=tmp_path, store=store, config=_config(tmp_path))
    store.close()


# --- Never before it is confirmed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", DeliveryState)
def test_a_study_is_kept_until_its_deliveries_are_settled(state: DeliveryState, site: Site) -> None:
    for number, confirm in enumerate(("auto", "commitment", "query", "none")):
        site.config, study = _config(site.directory, confirm), f"1.2.{number}"
        site.receive(study=study)
        site.answer(("pacs", CONFIRMED), ("pacs", state), study=study)
        site.set(study, state=StudyState.DONE, done_at=time.time())  # by itself only where nothing is under way
        settled = state in ("confirmed", "replaced", "dropped") or (state == "unconfirmed" and confirm == "none")
        words = why_kept(site.study(study), site.config, now=time.time() + 9999 * DAY)
        assert site.forget() == (GONE if settled else Forgotten())
        left = [site.directory / "spool" / study, site.directory / "evidence" / study, *site.study(study)["series"]]
        assert [not isinstance(it, Path) or it.exists() for it in left] == ([False, False] if settled else [True] * 3)
        if settled:
            assert words == "; ".join(f"{what}: until the next look" for what in What)
            assert why_kept(site.study(study), site.config, now=0.0) == ""
        else:
            assert f"1 {state} at pacs" in words
            assert words.startswith("sources, evidence, records: not every delivery is confirmed")
            site.set(study, state=StudyState.UNDELIVERED)  # out of the way of the next one


@pytest.mark.parametrize("state", [state for state in StudyState if state not in ENDED])
def test_only_a_study_that_is_done_or_cancelled_is_forgotten(state: StudyState, site: Site) -> None:
    site.done()
    site.set(state=state)
    assert site.forget() == Forgotten()
    assert f"not done yet ({state})" in why_kept(site.study(), site.config, now=time.time())


def test_success_is_not_enough_at_a_destination_that_nobody_configures_any_more(site: Site) -> None:
    site.receive()
    site.answer(("old", UNCONFIRMED), ("pacs", CONFIRMED))
    assert site.study()["state"] == StudyState.DONE
    assert site.forget() == Forgotten()
    assert "1 unconfirmed at old" in why_kept(site.study(), site.config, now=time.time())


def test_a_study_without_deliveries_is_forgotten_too(site: Site) -> None:
    site.receive()
    site.answer()
    assert site.study()["state"] == StudyState.DONE
    assert site.forget() == GONE


# --- Not before it is old --------------------------------------------------------------------------------------------


def test_each_thing_goes_when_its_days_are_over(site: Site) -> None:
    site.config = _config(site.directory, sources_days=7, evidence_days=90, records_days=365)
    site.done()
    assert re.fullmatch(
        r"sources: for 7\.0 days; evidence: for 90\.0 days; records: for 365\.0 days",
        why_kept(site.study(), site.config, now=time.time()),
    )
    for days, expected in (
        (6.99, Forgotten()),
        (7.01, Forgotten(sources=1)),
        (89.99, Forgotten()),
        (90.01, Forgotten(evidence=1)),
        (364.99, Forgotten()),
        (365.01, Forgotten(records=1)),
        (9999, Forgotten()),
    ):
        assert site.forget(days=days) == expected


def test_results_are_kept_as_long_as_the_images_and_records_as_long_as_both(site: Site) -> None:
    site.config = _config(site.directory, sources_days=30, evidence_days=2, records_days=1)
    site.done()
    assert site.forget(days=29.9) == Forgotten()
    assert re.fullmatch(
        r"(sources|evidence|records): for 30\.0 days(; |$)" * 3, why_kept(site.study(), site.config, now=time.time())
    )
    assert site.forget(days=30.1) == GONE


def test_days_are_counted_from_the_last_image_also_where_it_came_again_after_all_was_done(site: Site) -> None:
    site.done()
    site.set(done_at=time.time() - 30 * DAY, sources_at=time.time() - 30 * DAY)
    before = site.study()
    site.receive()
    assert {**site.study(), "sources_at": before["sources_at"]} == before
    assert site.forget(days=6.9) == Forgotten()
    assert site.forget(days=7.1) == Forgotten(sources=1)


def test_results_and_records_wait_for_images_that_came_again(site: Site) -> None:
    site.done()
    site.set(done_at=time.time() - 100 * DAY)
    assert site.forget(days=1) == Forgotten()
    assert why_kept(site.study(), site.config, now=time.time()).startswith("sources: for 7.0 days; evidence: for 7.0 d")
    assert site.forget(days=8) == Forgotten(sources=1, evidence=1)
    site.set(done_at=time.time() - 500 * DAY)
    site.receive()
    assert site.forget(days=1) == Forgotten()
    assert site.forget(days=8) == Forgotten(sources=1, records=1)


def test_days_are_counted_from_when_a_study_is_done(site: Site) -> None:
    site.done()
    site.set(sources_at=time.time() - 30 * DAY)
    assert site.forget(days=6.9) == Forgotten()
    assert site.forget(days=7.1) == Forgotten(sources=1)


def test_without_any_days_images_stay_as_long_as_more_of_the_study_may_come(site: Site) -> None:
    days = Retention(sources_days=0, evidence_days=0, records_days=0)
    site.config = site.config.model_copy(update={"retention": days})
    site.done()
    assert site.forget(days=(QUIET_SECONDS - 5) / DAY) == Forgotten()
    slow = Source(ae_title="SLOW", quiet_seconds=2 * QUIET_SECONDS)
    site.config = site.config.model_copy(update={"sources": (slow,)})
    assert site.forget(days=(QUIET_SECONDS + 5) / DAY) == Forgotten()
    assert site.forget(days=(2 * QUIET_SECONDS + 5) / DAY) == GONE
    assert limits_of(Config(intake=Intake(quiet_seconds=4.0), retention=days), 100.0).before[What.SOURCES] == 96.0


# --- What stays, and what may come again -----------------------------------------------------------------------------


def test_what_was_delivered_where_is_never_forgotten(site: Site) -> None:
    site.done()
    site.receive(1, content="other bytes under a known UID")
    before = site.study()
    assert len(before["conflicts"]) == 1
    assert site.forget() == GONE
    after = site.study()
    for name in ("state", "revision", "answers", "answered_revision", "deliveries", "done_at", "first_at", "last_at"):
        assert after[name] == before[name]
    assert (after["series"], after["conflicts"]) == ([], [])
    assert site.files() == site.files("evidence") == []
    assert not (site.directory / "spool" / STUDY).exists()
    assert not (site.directory / "evidence" / STUDY).exists()


def test_an_image_that_comes_again_after_its_file_went_starts_nothing_and_goes_again(site: Site) -> None:
    site.done()
    assert site.forget(days=8) == Forgotten(sources=1)
    assert (site.files(), site.here()) == ([], [])
    before = site.study()
    assert site.receive(2) == 0
    assert site.outcomes == ["received", "received", "repeated"]
    assert {**site.study(), "sources_at": None} == before
    assert [str(path) for path in site.here()] == [str(site.directory / f"spool/{STUDY}/{STUDY}.1.2.dcm")]
    assert site.forget(days=6.9) == Forgotten()
    assert site.forget(days=7.1) == Forgotten(sources=1)
    assert (site.files(), site.here()) == ([], [])


def test_what_comes_again_under_another_name_is_found_there(site: Site) -> None:
    """The first name is free again, or somebody else's."""
    site.done(instances=1)
    site.forget(days=8)
    assert site.receive(1, content="other") == 0xB007
    assert site.receive(1) == 0
    (path,) = site.here()
    assert path.name.count(".") == 6
    assert b"other" not in path.read_bytes()
    site.age()
    site.before_row = lambda: site.forget(days=0)
    assert site.receive(1) == 0  # found under that name, then removed, then written under the first one
    (path,) = site.here()
    assert path.name == f"{STUDY}.1.1.dcm"
    assert path.exists()


def test_a_late_slice_reopens_a_study_whose_images_went(site: Site) -> None:
    site.done(instances=3)
    site.age()
    site.forget(days=0)
    assert site.receive(1) == 0  # before the late slice
    assert site.receive(9) == 0
    row = site.study()
    assert (row["state"], row["revision"]) == (StudyState.RECEIVING, 1)
    assert len(site.here()) == 2
    assert site.receive(2) == 0  # after it
    assert len(site.here()) == 3
    assert site.study()["revision"] == 1
    site.answer(("pacs", CONFIRMED))
    assert site.study()["state"] == StudyState.DONE
    assert site.receive(2) == 0  # it was looked at: nothing is to be done
    assert site.study()["state"] == StudyState.DONE
    assert site.receive(3) == 0  # the answer had to do without it
    assert (site.study()["state"], site.study()["revision"]) == (StudyState.RECEIVING, 2)
    assert all(path.exists() for path in site.here())
    site.answer(("pacs", CONFIRMED))
    assert site.forget() == GONE


def test_an_image_that_comes_again_while_it_is_analysed_without_it_makes_a_new_revision(site: Site) -> None:
    site.done()
    site.age()
    site.forget(days=0)
    site.receive(9)
    assert site.store.begin_analysis(STUDY, 1, last_at=site.study()["last_at"])
    site.receive(9)
    assert site.study()["state"] == StudyState.ANALYSING
    site.receive(1)
    assert (site.study()["state"], site.study()["revision"]) == (StudyState.RECEIVING, 2)


def test_a_reopened_study_is_kept_and_forgotten_once_more(site: Site) -> None:
    site.done()
    assert site.forget() == GONE
    site.receive(1)
    assert (site.study()["revision"], site.outcomes[-1]) == (1, "received")  # nobody remembers that it was here
    assert site.forget() == Forgotten()
    site.receive(2)
    site.answer(("pacs", CONFIRMED))
    assert len(site.study()["deliveries"]) == 1  # one UID, one content: it is not sent again
    assert (len(site.files()), site.files("evidence")) == (2, [f"{STUDY}/1/answers.json"])
    assert site.forget() == GONE


def test_a_result_of_ours_is_recognised_for_ever(site: Site) -> None:
    site.done()
    site.forget()
    before = site.study()
    assert site.receive(0, series=9) == 0
    assert site.outcomes[-1] == "ours"
    assert (site.study(), site.files()) == (before, [])


# --- What comes in at the same moment --------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "content", "status"), [(1, "", 0), (9, "", 0), (1, "other", 0xB007)])
def test_a_file_removed_before_its_row_came_is_written_again(
    number: int, content: str, status: int, site: Site
) -> None:
    """Same, new and other bytes: what is acknowledged is there."""
    site.done()
    site.age()
    forgotten = list[Forgotten]()
    site.before_row = lambda: forgotten.append(site.forget(days=0))
    assert site.receive(number, content=content) == status
    assert forgotten == [Forgotten(sources=1)]
    _acknowledged(site, number, other=bool(content))


def _acknowledged(site: Site, number: int, *, other: bool = False) -> None:
    """The instance is there, with its row, and stays."""
    assert site.forget(days=0) == Forgotten()
    table = CONFLICTS if other else INSTANCES
    (path,) = [row.path for row in site.rows(table) if row.sop_uid == f"{STUDY}.1.{number}"]
    assert Path(path).exists()
    if not other:
        assert Path(path) in site.here()


@pytest.mark.parametrize("number", [1, 9])
def test_a_row_that_came_first_keeps_the_files(number: int, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came between the choice of what is old enough and its removal."""
    site.done()
    site.age()
    monkeypatch.setattr(faults, "point", lambda name: site.receive(number) if name == "forget.begun" else None)
    assert site.forget(days=0) == Forgotten()
    monkeypatch.undo()
    assert len(site.here()) == (2 if number == 1 else 3)
    assert all(path.exists() for path in site.here())
    _acknowledged(site, number)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("number", [1, 9])
def test_a_row_that_comes_while_files_are_taken_away_waits_until_they_are(
    number: int, known: bool, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a study that is known; and of files that a crash left without any row."""
    if known:
        site.done()
        site.age()
    else:
        _leave(site.directory / "spool" / STUDY / f"{STUDY}.1.1.dcm", days=99)
    kept, waiting = threading.Event(), list[bool]()
    site.before_row = kept.set
    with ThreadPoolExecutor() as pool:
        came = list[Future[int]]()
        real_take = retention._Aside.take

        def take(aside: retention._Aside) -> None:
            came.append(pool.submit(site.receive, number))
            assert kept.wait(10)
            time.sleep(0.3)  # time enough for its row, if nothing held it up
            waiting.append(not came[0].done())
            real_take(aside)

        monkeypatch.setattr(retention._Aside, "take", take)
        assert site.forget(days=0) == (Forgotten(sources=1) if known else Forgotten(astray=1))
        assert [future.result() for future in came] == [0]
    assert waiting == [True]
    monkeypatch.undo()
    _acknowledged(site, number)


def test_an_image_that_is_known_stays_known_while_its_row_is_looked_up(site: Site) -> None:
    """Its record can't be forgotten between two looks at it."""
    site.done()
    site.age()
    site.forget(days=0)
    site.set(done_at=1000.0)
    site.set(evidence_gone_at=2000.0)
    limits, forgotten = limits_of(site.config, time.time()), list[Future[int | None]]()

    def after(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("INSERT INTO instances") and not forgotten:
            forgotten.append(pool.submit(site.store.forget_records, STUDY, limits))
            wait(forgotten, timeout=0.3)

    with ThreadPoolExecutor() as pool:
        sa.event.listen(site.store._engine, "after_cursor_execute", after)
        assert site.receive(1) == 0
        assert forgotten[0].result() is None
    assert (site.outcomes[-1], len(site.rows(INSTANCES))) == ("repeated", 2)


@pytest.mark.parametrize("moment", ["before the link", "after the link"])
def test_a_folder_that_is_taken_away_under_a_writer_is_made_anew(
    moment: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.done()
    site.age()
    forgotten, real_link = list[Forgotten](), os.link

    def link(source: Path, target: Path) -> None:
        if moment == "after the link":
            real_link(source, target)
        if not forgotten:
            forgotten.append(site.forget(days=0))
        if moment == "before the link":
            real_link(source, target)

    monkeypatch.setattr(os, "link", link)
    assert site.receive(9) == 0
    assert forgotten == [Forgotten(sources=1)]
    _acknowledged(site, 9)


def test_senders_and_retention_at_once_lose_nothing(site: Site) -> None:
    """Whatever retention does meanwhile: what was acknowledged is there, or is known to be gone."""
    site.done(instances=4)
    stop, forgotten = threading.Event(), list[int]()

    def tidy() -> None:
        while not stop.is_set():
            site.age()  # at any moment; in truth retention waits for minutes
            forgotten.append(site.forget(days=0).sources)

    with ThreadPoolExecutor() as pool:
        tidying = pool.submit(tidy)
        lost = [number for turn in range(60) if (number := 1 + turn % 4) and _lost(site, number)]
        stop.set()
        tidying.result()
    assert lost == []
    assert sum(forgotten) > 3


def _lost(site: Site, number: int) -> list[str]:
    """The files that should be there and are not, after an instance came."""
    while site.receive(number):  # refused, as its folder was taken away twice: the sender tries again
        pass
    with site.store._engine.begin() as tx:
        tx.execute(sa.update(STUDIES).values(revision=STUDIES.c.revision))  # nothing changes until the end
        here = tx.scalars(sa.select(INSTANCES.c.path).where(INSTANCES.c.gone_at.is_(None)))
        return [path for path in here if not Path(path).exists()]


def test_two_at_once_forget_each_study_once(site: Site) -> None:
    studies = [f"1.2.{number}" for number in range(12)]
    site.done(*studies, instances=3)
    with ThreadPoolExecutor() as pool:
        done = [future.result() for future in [pool.submit(site.forget) for _ in range(3)]]
    for what in ("sources", "evidence", "records"):
        assert sum(getattr(one, what) for one in done) + getattr(site.forget(), what) == len(studies)
    assert site.files() == site.files("evidence") == []


# --- Ended anywhere --------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def test_killed_at_any_place_the_next_call_comes_to_the_same_end(site: Site) -> None:
    # Of two studies, images and results: chosen, a first file removed, all removed. Then chosen and forgotten.
    places = 2 * 2 * 3 + 2 * 2
    for passage in range(1, places + 2):
        site.done(f"1.2.{passage}.1", f"1.2.{passage}.2")
        passed = list[str]()

        def point(name: str, passage: int = passage, passed: list[str] = passed) -> None:
            passed.append(name)
            if len([name for name in passed if name.startswith("forget.")]) == passage:
                raise Killed

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(faults, "point", point)
            try:
                site.forget()
            except Killed:
                died = True
            else:
                died = False
        assert died == (passage <= places)
        site.forget()
        _nothing_left(site)
        assert site.forget() == Forgotten()


def _nothing_left(site: Site) -> None:
    assert site.rows(INSTANCES) == site.files() == site.files("evidence") == []
    for folder in Folder:
        assert [it for it in (site.directory / folder).glob("*") if it.name != "incoming"] == []
    gone = ("sources_at", "evidence_gone_at", "records_gone_at")
    assert all(
        (row.sources_at is None, row.evidence_gone_at is None, row.records_gone_at is None) == (True, False, False)
        for row in site.rows(STUDIES, *gone)
    )


def test_all_places_are_passed_in_their_order(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.done(instances=1)
    passed = list[str]()
    monkeypatch.setattr(faults, "point", passed.append)
    site.forget()
    of_files = ["forget.begun", "forget.removing", "forget.removed"]
    assert passed == [*of_files, *of_files, "forget.begun", "forget.forgotten"]
    assert set(passed) == {name for name in faults.POINTS if name.startswith("forget.")}


@pytest.mark.parametrize("turn", [1, 2])
def test_killed_between_files_and_rows_nothing_is_remembered_and_the_next_call_goes_on(
    turn: int, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.done()
    real_take, turns = retention._Aside.take, list[int]()

    def take(aside: retention._Aside) -> None:
        real_take(aside)
        turns.append(1)
        if len(turns) == turn:
            raise Killed

    monkeypatch.setattr(retention._Aside, "take", take)
    with pytest.raises(Killed):
        site.forget()
    monkeypatch.undo()
    row = site.study()
    assert (row["sources_at"] is None, row["evidence_gone_at"]) == (turn == 2, None)
    site.forget()
    _nothing_left(site)


@pytest.mark.parametrize("folder", ["spool", "evidence"])
def test_a_folder_that_cannot_be_removed_keeps_nobody_elses(
    folder: str, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does anything go that comes after it."""
    site.done("1.2.1", "1.2.2")
    real_rename = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path == site.directory / folder / "1.2.1":
            raise PermissionError(13, "Permission denied")
        return real_rename(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert site.forget() == Forgotten(sources=1 + (folder == "evidence"), evidence=1, records=1)
    assert "study.not_forgotten" in caplog.messages
    assert len(site.rows(INSTANCES)) == 2
    assert {name.split("/")[0] for name in site.files(folder)} == {"1.2.1"}
    monkeypatch.undo()
    assert site.forget() == Forgotten(sources=1 - (folder == "evidence"), evidence=1, records=1)


# --- Nothing outside -------------------------------------------------------------------------------------------------


def test_links_are_not_followed_out_of_the_store(
    site: Site, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    for name in ("file.dcm", "folder/file.dcm", "1/answers.json"):
        (outside / name).parent.mkdir(exist_ok=True)
        (outside / name).write_text("not ours")
    site.done("1.2.1", "1.2.2")
    folder = site.directory / "spool" / "1.2.1"
    (folder / "link.dcm").symlink_to(outside / "file.dcm")
    (folder / "link").symlink_to(outside / "folder")
    (site.directory / "evidence" / "1.2.2").rename(site.directory / "moved")
    (site.directory / "evidence" / "1.2.2").symlink_to(outside)
    for root in Folder:
        (site.directory / root).mkdir(exist_ok=True)
        (site.directory / root / "1.2.9").symlink_to(outside)
        (site.directory / root / ".forgotten-1").symlink_to(outside)
    assert site.forget() == Forgotten(sources=2, evidence=2, records=2)
    assert sorted(str(path.relative_to(outside)) for path in outside.rglob("*") if path.is_file()) == [
        "1/answers.json",
        "file.dcm",
        "folder/file.dcm",
    ]
    assert not folder.exists()
    assert "study.not_forgotten" not in caplog.messages


def test_no_path_is_made_of_what_is_no_uid(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.done()
    site.age()
    site.set(study_uid="../evidence")
    assert site.forget(days=0) == Forgotten()
    assert "study.not_forgotten" in caplog.messages
    assert site.files("evidence") == [f"{STUDY}/0/answers.json"]


# --- What nobody knows -----------------------------------------------------------------------------------------------


def _leave(path: Path, *, days: float) -> None:
    """A file that has been lying there for so long, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"left")
    for one in (path, path.parent):
        os.utime(one, (time.time() - days * DAY,) * 2)


@pytest.mark.parametrize(("folder", "days"), [("spool", 7), ("evidence", 90), ("work", 7)])
def test_folders_of_unknown_studies_go_when_they_are_old(
    folder: str, days: float, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.done("1.2.1")
    _leave(site.directory / folder / "1.2.8" / "left", days=days - 0.1)
    _leave(site.directory / folder / "1.2.9" / "left", days=days + 0.1)
    _leave(site.directory / folder / "1.2.10" / "old", days=999)
    _leave(site.directory / folder / "1.2.10" / "young", days=0)
    os.utime(site.directory / folder / "1.2.10", (0, 0))
    _leave(site.directory / folder / "incoming" / "left", days=999)
    _leave(site.directory / folder / "no-study" / "left", days=999)
    assert site.forget(days=0) == Forgotten(astray=1)
    kept = [name for name in site.files(folder) if not name.startswith("1.2.1/")]
    assert kept == ["1.2.10/old", "1.2.10/young", "1.2.8/left", "incoming/left", "no-study/left"]
    assert {row.study_uid for row in site.rows(STUDIES)} == {"1.2.1"}
    assert "study.not_forgotten" not in caplog.messages


@pytest.mark.parametrize("folder", ["spool", "evidence"])
def test_what_is_there_again_without_a_row_goes_when_it_is_old(folder: str, site: Site) -> None:
    """A power cut may undo the new name; an instance may be refused after its file was written."""
    site.done()
    _leave(site.directory / folder / STUDY / "left", days=999)
    assert site.forget(days=0) == Forgotten()  # its study is known, and not forgotten
    site.forget()
    before = site.study()
    _leave(site.directory / folder / STUDY / "left", days=1)
    assert site.forget(days=0) == Forgotten()
    _leave(site.directory / folder / STUDY / "left", days=91)
    assert site.forget(days=0) == Forgotten(astray=1)
    assert (site.files(folder), site.study()) == ([], before)


@pytest.mark.parametrize("state", StudyState)
def test_stages_are_kept_while_their_study_is_to_be_answered(state: StudyState, site: Site) -> None:
    site.receive()
    site.set(state=state)
    _leave(site.directory / "work" / STUDY / "0" / "stage", days=99)
    os.utime(site.directory / "work" / STUDY, (0, 0))
    unanswered = state in (StudyState.RECEIVING, StudyState.ANALYSING)
    assert site.forget(days=0) == Forgotten(astray=0 if unanswered else 1)
    assert bool(site.files("work")) is unanswered


def test_an_instance_of_an_unknown_study_comes_while_its_old_folder_is_looked_at(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is an old one that a crash had left: it is found, not written, so its age says nothing."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "keep_instance", lambda *_, **__: 1 / 0)
        assert site.receive() == 0xA700
    (left,) = site.files()
    for path in (site.directory / "spool" / left, site.directory / "spool" / STUDY):
        os.utime(path, (1000.0, 1000.0))
    real = Store.forget_astray

    def forget_astray(store: Store, folder: Folder, study_uid: str, **rest: Any) -> bool:
        assert site.receive() == 0
        return real(store, folder, study_uid, **rest)

    monkeypatch.setattr(Store, "forget_astray", forget_astray)
    assert site.forget(days=0) == Forgotten()
    assert site.files() == [left]


# --- How much at once ------------------------------------------------------------------------------------------------


def test_work_is_bounded_and_the_oldest_go_first(site: Site) -> None:
    studies = [f"1.2.{number}" for number in range(5)]
    site.done(*studies, instances=1)
    for number, study in enumerate(studies):
        site.set(study, done_at=1000.0 - number, sources_at=1000.0 - number)
        _leave(site.directory / "work" / f"1.3.{number}" / "left", days=999)
    assert site.forget(days=0, limit=2) == Forgotten(sources=2, evidence=2, records=2, astray=2)
    assert {name.split("/")[0] for name in site.files()} == set(studies[:3])
    assert site.forget(days=0, limit=2) == Forgotten(sources=2, evidence=2, records=2, astray=2)
    assert site.forget(days=0, limit=2) == Forgotten(sources=1, evidence=1, records=1, astray=1)
    assert site.forget(days=0, limit=2) == Forgotten()


def test_what_may_not_go_stands_in_nobodys_way(site: Site) -> None:
    for study in ("1.2.1", "1.2.2", "1.2.3"):
        site.receive(study=study)
        site.answer(("pacs", UNCONFIRMED), study=study)
        site.set(study, done_at=1000.0, sources_at=1000.0)
    site.done("1.2.9")
    assert site.forget(limit=1) == GONE
    assert site.study("1.2.9")["records_gone_at"]


@pytest.mark.parametrize("url", ["SQLite"], indirect=True)
@pytest.mark.parametrize("what", What)
def test_studies_that_were_forgotten_are_not_looked_at(what: What, site: Site) -> None:
    """By an index that leads past them: of ten years' studies only the due ones are read."""
    queries = list[str]()
    sa.event.listen(site.store._engine, "before_cursor_execute", lambda *call: queries.append(call[2]))
    limits = limits_of(site.config, time.time())
    site.store.forgettable(what, limits, limit=50)
    (query,) = queries
    with site.store._engine.connect() as connection:
        plan = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + query, tuple("x" * query.count("?"))).all()
    (found,) = [row.detail for row in plan if "studies" in row.detail]
    assert {
        What.SOURCES: "studies_with_sources (state=? AND sources_at<?)",
        What.EVIDENCE: "studies_with_evidence (state=? AND evidence_gone_at=? AND done_at<?)",
        What.RECORDS: "studies_with_records (state=? AND records_gone_at=? AND done_at<?)",
    }[what] in found


# --- What is said ----------------------------------------------------------------------------------------------------


def test_each_removal_is_said_by_uid_and_count(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.done(instances=3)
    _leave(site.directory / "work" / "1.3" / "left", days=999)
    caplog.set_level(logging.INFO, logger="overread")
    caplog.clear()
    site.forget()
    assert [(record.getMessage(), cast(Any, record).fields) for record in caplog.records] == [
        ("study.sources_removed", {"study_uid": STUDY, "files": 3}),
        ("study.evidence_removed", {"study_uid": STUDY, "files": 1}),
        ("study.records_removed", {"study_uid": STUDY, "instances": 3}),
        ("study.astray_removed", {"study_uid": "1.3", "folder": "work", "files": 1}),
    ]


# --- Older stores, full disks ----------------------------------------------------------------------------------------


def test_studies_from_before_there_was_retention_are_forgotten_too(site: Site) -> None:
    site.done()
    later = ["holder", "progress", "waits", "waits_until"]
    added = {
        "studies": ["sources_at", "evidence_gone_at", "records_gone_at", *later],
        "instances": ["gone_at"],
        "deliveries": ["holder"],
        "answers": ["findings"],
    }
    with site.store._engine.begin() as tx:
        for index in (
            *(f"studies_with_{it}" for it in ("sources", "evidence", "records")),
            "deliveries_by_destination",
        ):
            tx.execute(sa.text(f"DROP INDEX {index}"))
        for table, columns in added.items():
            for column in columns:
                tx.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        for table in ("steps", "processes", "alembic_version"):
            tx.execute(sa.text(f"DROP TABLE {table}"))
    site.store._engine.dispose()
    site.store.create_tables()
    site.store.create_tables()
    inspector = sa.inspect(site.store._engine)
    assert {index["name"] for index in inspector.get_indexes("studies")} >= {
        index.name for index in TABLES.tables["studies"].indexes
    }
    assert site.forget(days=6.9) == Forgotten()
    assert site.forget() == GONE


@pytest.mark.parametrize("url", ["SQLite"], indirect=True)
def test_a_full_disk_is_free_again_when_images_are_forgotten(site: Site) -> None:
    """Refused with A700 while less than the minimum is free; taken again, without a restart, as soon as it is."""
    if os.geteuid() != 0:
        missing("the right to mount a tmpfs (root)")
    root = site.directory / "spool"
    root.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", root], capture_output=True)
    if done.returncode:
        missing("the right to mount a tmpfs (CAP_SYS_ADMIN)")
    try:
        spool = Spool(site.directory, 4 << 20)  # made once, as a receiver makes it
        spool.check_space(1 << 20)
        site.done()
        (root / STUDY / "more.dcm").write_bytes(bytes(5 << 20))
        for _ in range(2):
            with pytest.raises(OutOfSpace):
                spool.check_space(1 << 20)
            assert site.forget(days=6) == Forgotten()
        assert site.forget(days=8) == Forgotten(sources=1)
        spool.check_space(1 << 20)
    finally:
        subprocess.run(["umount", root], check=True)
