"""When a study is whole: each kind of evidence, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.config import Config
from service.intake.complete import Known, Looked, Next, Stack, judge, pause
from service.intake.counted import Count, CountedSeries, Standing, compare
from service.settings.intake import Query, Source
from service.types import Completeness

OURS = frozenset({"1.9"})
CLOCK = Source(ae_title="PACS", quiet_seconds=30.0, limit_seconds=300.0)
ASKED = Source(
    ae_title="PACS",
    quiet_seconds=30.0,
    limit_seconds=300.0,
    query=Query(ae_title="PACS", host="127.0.0.1", port=104),
)
WEB = Source(ae_title="PACS", quiet_seconds=30.0, limit_seconds=300.0, qido_url="http://127.0.0.1/dicom-web")


def series(uid: str, instances: int | None, modality: str = "CT") -> CountedSeries:
    return CountedSeries(series_instance_uid=uid, modality=modality, instances=instances)


def count(*counted: CountedSeries, total: int | None = None, number: int | None = None) -> Count:
    return Count(series=counted, study_series=number, study_instances=total)


WHOLE = count(series("1.1", 275))
HOLE = Looked(stacks=(Stack(series_instance_uid="1.1", modality="CT", instances=120, missing=3),))
SHORT = Looked(stacks=(Stack(series_instance_uid="1.1", modality="CT", instances=120, missing=3, expected=275),))
PHASES = Looked(stacks=(Stack(series_instance_uid="1.1", modality="CT", instances=120, duplicates=60),), unreadable=2)


# --- What is here against what is counted ---------------------------------------------------------------------------

E, M, F, U = Standing.EQUAL, Standing.MORE, Standing.FEWER, Standing.UNKNOWN


@pytest.mark.parametrize(
    ("held", "counted", "modalities", "standing", "words"),
    [
        # Each series has its number.
        ({"1.1": 275}, count(series("1.1", 275)), (), E, "as many as are here: 275 instances in 1 series"),
        ({"1.1": 275, "1.2": 3}, count(series("1.1", 275), series("1.2", 3)), (), E, "278 instances in 2 series"),
        ({"1.1": 120}, count(series("1.1", 275)), (), M, "CT series 1.1: 120 of 275 instances"),
        ({"1.1": 275}, count(series("1.1", 275), series("1.2", 9, "MR")), (), M, "MR series 1.2: 0 of 9 instances"),
        ({"1.1": 274, "1.2": 10}, count(series("1.1", 275), series("1.2", 9)), (), M, "CT series 1.1: 274 of 275"),
        ({}, count(series("1.1", 275)), (), M, "0 of 275"),
        ({"1.1": 275}, count(series("1.1", 275), series("1.2", 0)), (), E, "275 instances"),
        # The study's totals agree, or say more, or are behind.
        ({"1.1": 5}, count(series("1.1", 5), total=5, number=1), (), E, "5 instances"),
        ({"1.1": 5}, count(series("1.1", 5), total=8, number=1), (), U, "more in the study than in the series"),
        ({"1.1": 5}, count(series("1.1", 5), total=5, number=2), (), U, "more in the study than in the series"),
        ({"1.1": 5}, count(series("1.1", 5), total=3, number=1), (), E, "5 instances"),
        ({"1.1": 4}, count(series("1.1", 5), total=8), (), M, "4 of 5"),
        # Our own results are counted there, and not received here.
        ({"1.1": 5}, count(series("1.1", 5), series("1.9", 2, "SEG"), total=7, number=2), (), E, "5 instances in 1 s"),
        ({"1.1": 5}, count(series("1.1", 5), series("1.9", None, "SEG"), total=7, number=2), (), E, "5 instances"),
        ({"1.1": 4, "1.9": 1}, count(series("1.1", 5), series("1.9", 1)), (), M, "4 of 5"),
        ({"1.1": 5, "1.9": 1}, count(series("1.1", 5)), (), E, "5 instances in 1 series"),
        ({"1.1": 5, "1.2": 0}, count(series("1.1", 5)), (), E, "5 instances in 1 series"),
        # It sends some modalities only.
        ({"1.1": 5}, count(series("1.1", 5), series("1.2", 1, "SR")), ("CT", "MR"), E, "5 instances in 1 series"),
        ({"1.1": 5}, count(series("1.1", 5), series("1.2", 1, "SR")), ("CT", "SR"), M, "SR series 1.2: 0 of 1"),
        ({"1.1": 5, "1.2": 1}, count(series("1.1", 5), series("1.2", 4, "SR")), ("CT",), E, "5 instances in 1 series"),
        ({"1.2": 1}, count(series("1.2", 1, "SR")), ("CT",), U, "no series of the modalities"),
        ({"1.1": 5}, count(series("1.1", 5, "")), ("CT",), E, "5 instances"),
        ({"1.1": 4}, count(series("1.1", 5, "")), ("CT",), M, "series 1.1: 4 of 5"),
        ({"1.1": 5}, count(series("1.1", 5), series("1.2", 9, "")), ("CT",), U, "of which modality"),
        ({"1.1": 4}, count(series("1.1", 5), series("1.2", 9, "")), ("CT",), M, "4 of 5"),
        ({"1.1": 4}, count(series("1.1", 5, ""), series("1.2", 9, "")), ("CT",), M, "series 1.1: 4 of 5"),
        ({"1.1": 5}, count(series("1.1", 5), series("1.2", 9, ""), series("1.3", 7)), ("CT",), M, "1.3: 0 of 7"),
        ({"1.1": 5}, count(series("1.1", 5), series("1.3", 7)), ("CT",), M, "CT series 1.3: 0 of 7"),
        ({"1.1": 5}, count(series("1.1", 5), series("1.2", 9, "")), (), M, "series 1.2: 0 of 9"),
        # It counts fewer: it is behind, or removed some.
        ({"1.1": 276}, count(series("1.1", 275)), (), F, "series 1.1: 276 here, 275 there"),
        ({"1.1": 275, "1.2": 3}, count(series("1.1", 275)), (), F, "series 1.2: 3 here, none there"),
        ({"1.1": 276, "1.2": 1}, count(series("1.1", 275), series("1.2", 2)), (), M, "series 1.2: 1 of 2"),
        # It speaks of something else.
        ({"1.1": 275}, count(series("1.7", 275)), (), U, "none of the series that are here"),
        ({"1.1": 275}, count(series("1.9", 2)), (), U, "none of the series that are here"),
        ({"1.1": 275}, Count(), (), U, "no such study"),
        ({"1.1": 275}, count(total=0, number=0), (), U, "no such study"),
        # Series without a number share what remains of the study's.
        ({"1.1": 5}, count(series("1.1", None)), (), U, "how many instances each series has"),
        ({"1.1": 5}, count(series("1.1", None), series("1.2", None)), (), M, "CT series 1.2: 0 of its instances"),
        ({"1.1": 5}, count(series("1.1", None), total=5), (), E, "5 instances"),
        ({"1.1": 1}, count(series("1.1", None), total=1), (), E, "1 instances"),
        ({"1.1": 5, "1.2": 8}, count(series("1.1", None), series("1.2", 8), total=8), (), F, "series 1.1: 5 of 0"),
        ({"1.1": 5}, count(series("1.1", None), total=9), (), M, "series 1.1: 5 of 9"),
        ({"1.1": 5}, count(series("1.1", None), total=4), (), F, "series 1.1: 5 of 4"),
        ({"1.1": 5, "1.2": 3}, count(series("1.1", None), series("1.2", 3), total=8), (), E, "8 instances in 2"),
        ({"1.1": 4, "1.2": 3}, count(series("1.1", None), series("1.2", 3), total=8), (), M, "series 1.1: 4 of 5"),
        ({"1.1": 5, "1.2": 3}, count(series("1.1", None), series("1.2", 9), total=8), (), M, "series 1.2: 3 of 9"),
        ({"1.1": 5, "1.2": 9}, count(series("1.1", None), series("1.2", 9), total=8), (), U, "how many instances"),
        ({"1.1": 5}, count(series("1.1", None), total=5, number=2), (), U, "more in the study"),
        ({"1.1": 5}, count(series("1.1", None), series("1.9", None, "SEG"), total=7), (), U, "how many instances"),
        ({"1.1": 5}, count(series("1.1", None), series("1.9", 2, "SEG"), total=7), (), E, "5 instances in 1 series"),
        ({"1.1": 5}, count(series("1.1", None), series("1.3", None, "SR"), total=7), ("CT",), U, "how many instances"),
        ({"1.1": 5}, count(series("1.1", None), series("1.3", 2, "SR"), total=7), ("CT",), E, "5 instances in 1 s"),
        # It lists no series: its totals are all there is.
        ({"1.1": 5, "1.2": 3}, count(total=8, number=2), ("CT",), U, "may include what it does not send"),
        ({"1.1": 5}, count(number=1), (), U, "no numbers"),
    ],
)
def test_what_is_here_is_compared_with_what_is_counted(
    held: dict[str, int], counted: Count, modalities: tuple[str, ...], standing: Standing, words: str
) -> None:
    found = compare(held, OURS, counted, modalities)
    assert found.standing is standing, found
    assert words in found.words
    assert compare({}, frozenset(held) | OURS, counted, modalities).standing is not E, "nothing here is never whole"


@pytest.mark.parametrize(
    ("total", "number", "standing", "words"),
    [
        (8, 2, E, "8 instances in 2 series"),
        (8, None, E, "8 instances in 2 series"),
        (9, 2, M, "8 of 9 instances of the study"),
        (9, 3, M, "8 of 9"),
        (7, 2, F, "8 of 7"),
        (8, 3, U, "it counts 3 series, 2 are here"),
    ],
)
def test_totals_alone_are_enough_where_nothing_is_left_out(
    total: int, number: int | None, standing: Standing, words: str
) -> None:
    held = {"1.1": 5, "1.2": 3}
    found = compare(held, frozenset(), count(total=total, number=number))
    assert found.standing is standing
    assert words in found.words
    with_ours = compare(held, OURS, count(total=total, number=number))
    assert with_ours.standing is U, "they may include our own results"
    assert compare(held, frozenset(), count(total=total, number=number), ("CT",)).standing is U


def test_of_very_many_series_the_first_ones_are_named() -> None:
    found = compare({"2.0": 1}, OURS, count(series("2.0", 1), *(series(f"1.{n}", 2) for n in range(100, 200))))
    assert found.standing is M
    assert found.words.count("CT series") == 10
    assert found.words.endswith("and 90 more")
    ten = compare({"2.0": 1}, OURS, count(series("2.0", 1), *(series(f"1.{n}", 2) for n in range(100, 110))))
    assert ten.words.count("CT series") == 10
    assert "more" not in ten.words


def test_what_is_no_code_string_is_not_repeated() -> None:
    found = compare({"1.1": 1}, OURS, count(series("1.1", 2, "Somebody^Else")))
    assert found.words == "series 1.1: 1 of 2 instances"


# --- What is done ---------------------------------------------------------------------------------------------------


def known(quiet_for: float, **more: Any) -> Known:
    return Known(quiet_for=quiet_for, **{"held": {"1.1": 120}, "ours": OURS, **more})


def asked(
    quiet_for: float, counted: Count | None, *, held: int = 120, asks: int = 1, since: float = 0.0, **more: Any
) -> Known:
    """Known after a question that was put after the last instance came."""
    evidence = {"count": counted, "is_fresh": counted is not None, "was_asked": True, "asks": asks, **more}
    return known(quiet_for, held={"1.1": held}, since_asked=since, **evidence)


def asked_before(
    quiet_for: float, counted: Count | None, *, held: int = 120, asks: int = 1, since: float = 0.0, **more: Any
) -> Known:
    """Known after a question, when an instance came since."""
    evidence = {"is_fresh": False, "was_asked": False, **more}
    return asked(quiet_for, counted, held=held, asks=asks, since=since, **evidence)


QUIET, VERIFIED, PARTIAL = Completeness.QUIET, Completeness.VERIFIED, Completeness.PARTIAL
DOWN: dict[str, Any] = {"problem": "no connection, or no answer"}


@pytest.mark.parametrize(
    ("evidence", "source", "then", "how", "words", "left"),
    [
        # Only the clock.
        (known(0), CLOCK, Next.WAIT, None, "instances may still come; ready in 30 s", 30),
        (known(29.0), CLOCK, Next.WAIT, None, "ready in 1.0 s", 1),
        (known(30), CLOCK, Next.LOOK, None, "its stacks are looked at", 0),
        (known(31, is_looking=True), CLOCK, Next.WAIT, None, "its stacks are looked at", 0),
        (known(31, looked=Looked()), CLOCK, Next.START, QUIET, "no instance came for 30 s, and no slice is seen", 0),
        (known(31, looked=PHASES), CLOCK, Next.START, QUIET, "60 of 120 images at a position that another one has", 0),
        (known(31, looked=PHASES), CLOCK, Next.START, QUIET, "2 files can't be read", 0),
        (known(31, looked=HOLE), CLOCK, Next.WAIT, None, "CT series 1.1: 3 slices missing between the 120", 269),
        (known(31, looked=SHORT), CLOCK, Next.WAIT, None, "120 of 275 instances; in 269 s at the latest", 269),
        (known(31, looked=Looked(gone=7)), CLOCK, Next.WAIT, None, "7 instances that came earlier are no longer", 269),
        (known(300, looked=HOLE), CLOCK, Next.START, PARTIAL, "no instance came for 300 s; incomplete: CT series", 0),
        (known(300, looked=Looked(gone=7)), CLOCK, Next.START, PARTIAL, "7 instances that came earlier", 0),
        (known(300), CLOCK, Next.LOOK, None, "", 0),
        (asked(1, WHOLE, held=275), CLOCK, Next.WAIT, None, "ready in 29 s", 29),
        # Instances are coming in.
        (known(0.1), ASKED, Next.WAIT, None, "its source is asked when none has come for 0.2 s", 299.9),
        (asked(0.1, WHOLE, held=275), ASKED, Next.WAIT, None, "instances are coming in", 299.9),
        # It is asked for the first time, once.
        (known(0.2), ASKED, Next.ASK, None, "its source has not answered yet", 29.8),
        (known(0.2), WEB, Next.ASK, None, "its source has not answered yet", 29.8),
        (known(0.3, is_asking=True), ASKED, Next.WAIT, None, "its source is being asked", 29.7),
        # It counts as many.
        (asked(0.3, WHOLE, held=275), ASKED, Next.START, VERIFIED, "as many as are here: 275 instances", 0),
        (asked(0.3, WHOLE, held=275, is_asking=True), ASKED, Next.START, VERIFIED, "", 0),
        (asked(400, WHOLE, held=275), ASKED, Next.START, VERIFIED, "", 0),
        (asked(31, WHOLE, held=275, looked=HOLE), ASKED, Next.START, VERIFIED, "", 0),
        (asked(0.3, WHOLE, held=275, problem="x"), ASKED, Next.START, VERIFIED, "", 0),
        # It did so before the last instance came: it is asked anew, at once, and only once.
        (asked_before(0.3, WHOLE, held=275, asks=9), ASKED, Next.ASK, None, "has not answered yet", 29.7),
        (asked_before(0.3, WHOLE, held=275, asks=9, is_asking=True), ASKED, Next.WAIT, None, "is being asked", 29.7),
        (
            asked_before(0.3, WHOLE, held=275, asks=9, was_asked=True, **DOWN),
            ASKED,
            Next.WAIT,
            None,
            "again in 60",
            29.7,
        ),
        (asked_before(400, WHOLE, held=275, looked=HOLE), ASKED, Next.START, PARTIAL, "3 slices missing", 0),
        # It counts more.
        (asked(1, WHOLE), ASKED, Next.WAIT, None, "incomplete: CT series 1.1: 120 of 275 instances; in 299 s", 299),
        (asked(1, WHOLE), ASKED, Next.WAIT, None, "its source is asked again in 0.5 s", 299),
        (asked(1, WHOLE, since=0.5), ASKED, Next.ASK, None, "120 of 275", 299),
        (asked(9, WHOLE, asks=4, since=3.9), ASKED, Next.WAIT, None, "asked again in 0.1 s", 291),
        (asked(9, WHOLE, asks=4, since=4.0), ASKED, Next.ASK, None, "", 291),
        (asked(99, WHOLE, asks=50, since=59), ASKED, Next.WAIT, None, "asked again in 1.0 s", 201),
        (asked(99, WHOLE, asks=50, since=60), ASKED, Next.ASK, None, "", 201),
        (asked(299, WHOLE, asks=9), ASKED, Next.WAIT, None, "", 1),
        (asked(300, WHOLE, asks=9), ASKED, Next.START, PARTIAL, "no instance came for 300 s; incomplete: CT series", 0),
        (asked(300, WHOLE, is_asking=True), ASKED, Next.START, PARTIAL, "120 of 275", 0),
        (asked(1, WHOLE, gone=155), ASKED, Next.WAIT, None, "155 instances that came earlier are no longer kept", 299),
        (asked(31, WHOLE, looked=Looked()), ASKED, Next.WAIT, None, "120 of 275", 269),
        (asked_before(1, WHOLE, since=0.1), ASKED, Next.WAIT, None, "120 of 275", 299),
        (asked(9, WHOLE, **DOWN), ASKED, Next.WAIT, None, "120 of 275", 291),
        # It does not answer, can't tell, or is behind: the clock decides, and it is asked on.
        (asked(1, None, **DOWN), ASKED, Next.WAIT, None, "gives no answer (no connection, or no answer)", 29),
        (asked(1, None, since=0.5, **DOWN), ASKED, Next.ASK, None, "gives no answer", 29),
        (asked(30, None, since=0.5, **DOWN), ASKED, Next.LOOK, None, "gives no answer", 0),
        (asked(31, None, looked=Looked(), **DOWN), ASKED, Next.START, QUIET, "gives no answer", 0),
        (asked(31, None, looked=HOLE, **DOWN), ASKED, Next.WAIT, None, "gives no answer", 269),
        (asked(31, None, looked=HOLE, since=9, **DOWN), ASKED, Next.ASK, None, "3 slices missing", 269),
        (asked(300, None, looked=HOLE, **DOWN), ASKED, Next.START, PARTIAL, "gives no answer", 0),
        (asked(1, Count()), ASKED, Next.WAIT, None, "its source can't tell (it knows no such study)", 29),
        (asked(31, Count(), looked=Looked()), ASKED, Next.START, QUIET, "it knows no such study", 0),
        (asked(1, WHOLE, held=276), ASKED, Next.WAIT, None, "counts fewer than are here", 29),
        (asked(1, WHOLE, held=276, since=0.5), ASKED, Next.ASK, None, "its count may still grow", 29),
        (asked(31, WHOLE, held=276, looked=Looked()), ASKED, Next.START, QUIET, "276 here, 275 there", 0),
    ],
)
def test_each_evidence_has_its_verdict(
    evidence: Known, source: Source, then: Next, how: Completeness | None, words: str, left: float
) -> None:
    verdict = judge(evidence, source)
    assert (verdict.next, verdict.completeness) == (then, how), verdict
    assert words in verdict.reason
    assert verdict.reason.endswith("; its source is asked") is (then is Next.ASK)
    assert verdict.seconds_left == pytest.approx(left)
    assert bool(verdict.missing) is ("incomplete: " in verdict.reason)
    assert verdict.missing in verdict.reason


@pytest.mark.parametrize(
    ("evidence", "again_in"),
    [
        (known(0.1), 0.1),
        (asked(1, WHOLE), 0.5),
        (asked(299.9, WHOLE), 0.1),
        (asked(29.9, None, asks=9, **DOWN), 0.1),
        (asked(20, None, asks=3, since=1.5, **DOWN), 0.5),
        (known(1, is_asking=True), 29.0),
    ],
)
def test_it_is_judged_again_when_time_alone_may_change_the_verdict(evidence: Known, again_in: float) -> None:
    verdict = judge(evidence, ASKED)
    assert verdict.next is Next.WAIT
    assert verdict.again_in == pytest.approx(again_in)


def test_files_that_can_be_read_are_not_spoken_of() -> None:
    assert judge(known(31, looked=Looked()), CLOCK).reason.endswith("no slice is seen to be missing")


def test_a_first_answer_is_waited_for_even_where_the_quiet_clock_is_shorter() -> None:
    source = ASKED.model_copy(update={"settle_seconds": 60.0, "timeout_seconds": 10.0})
    assert judge(known(59), source).next is Next.WAIT
    assert judge(known(60), source).next is Next.ASK
    assert judge(known(69, is_asking=True), source).next is Next.WAIT
    assert judge(known(70, is_asking=True), source).next is Next.LOOK, "but not longer than an answer may take"
    assert judge(asked(62, None, **DOWN), source).next is Next.LOOK, "nor once it is known that none comes"


def test_pauses_grow_up_to_a_minute() -> None:
    assert [pause(asks) for asks in range(1, 10)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert pause(10**6) == 60


@pytest.mark.parametrize("source", [CLOCK, ASKED, WEB], ids=["clock", "C-FIND", "QIDO-RS"])
@pytest.mark.parametrize(
    "counted", [None, WHOLE, Count(), count(series("1.1", None))], ids=["none", "275", "empty", "?"]
)
@pytest.mark.parametrize("held", [0, 120, 275, 276])
@pytest.mark.parametrize("looked", [None, Looked(), HOLE])
def test_nothing_starts_without_evidence_and_everything_starts_in_the_end(
    source: Source, counted: Count | None, held: int, looked: Looked | None
) -> None:
    """Each combination, over time: the invariants."""
    for quiet_for in (0.0, 0.19, 0.2, 5.0, 29.9, 30.0, 299.0, 300.0, 1e6):
        for fresh in (False, True):
            for problem in ("", "down"):
                for busy in (False, True):
                    evidence = Known(
                        quiet_for=quiet_for,
                        held={"1.1": held} if held else {},
                        count=counted,
                        is_fresh=fresh and counted is not None,
                        was_asked=fresh,
                        asks=int(fresh or counted is not None),
                        problem=problem,
                        is_asking=busy,
                        looked=looked,
                    )
                    verdict = judge(evidence, source)
                    assert verdict.reason
                    assert verdict.seconds_left >= 0
                    if verdict.next is Next.WAIT:
                        assert verdict.again_in > 0, "it would be judged over and over"
                    if verdict.completeness is Completeness.VERIFIED:
                        assert evidence.is_fresh
                        assert held == 275
                        assert source is not CLOCK
                    if verdict.completeness is Completeness.PARTIAL:
                        assert quiet_for >= 300
                        assert verdict.missing
                    if verdict.completeness is Completeness.QUIET:
                        assert quiet_for >= 30
                        assert looked == Looked()
                    if quiet_for == 1e6:
                        assert verdict.next is Next.START or looked is None, verdict
                        later = judge(replace(evidence, looked=Looked()), source)
                        assert later.next is Next.START


def test_a_source_of_the_configuration_can_be_judged() -> None:
    config = Config.model_validate({"sources": [{"ae_title": "PACS", "quiet_seconds": 7}]})
    assert judge(known(0), config.source("PACS")).seconds_left == 7
    assert judge(known(0), config.source("OTHER")).seconds_left == 30
