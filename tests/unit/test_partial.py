"""A study of which images are missing is answered all the same, and no answer goes without saying what is missing."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageDraw
from pydicom import Dataset, dcmread

from service import codes, evidence
from service.analysis import faults
from service.analysis.schedule import Scheduler
from service.draft import Draft
from service.errors import ContractBroken, UnsuitableGeometry
from service.evidence import answer_from, as_json
from service.forms import Kind, Profile, Wanted
from service.intake.study import group, read_instance
from service.models import model_of
from service.pipeline import analyse
from service.results import identity
from service.results.choice import choose, everything
from service.results.identity import Name
from service.results.reading import items
from service.spec import read_spec
from service.types import Answer, Completeness, Evidence, Model, Outcome, ResultObject, Study
from tests import phantoms
from tests.toys import bright_study, write_model
from tests.unit.test_pipeline import PARTS, Backend

MISSING = "CT series 1.2.3: 120 of 275 instances came"
WORDS = f"images are missing ({MISSING})"
ENDINGS = ("findings", "none", "unsuitable", "no series", "failed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("models")
    return model_of(read_spec(write_model(folder)), folder / "bright", folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    bright_study(folder)
    (study,) = group(read_instance(path) for path in folder.iterdir())
    return study


class Desk:
    """Answers studies, and makes the answer what a test wants."""

    def __init__(self, model: Model) -> None:
        self._model, self._backend = model, Backend()
        self._scheduler = Scheduler(self._backend)
        self._scheduler.add(model)
        self.close = self._scheduler.close

    def ask(self, study: Study, ending: str = "findings", **more: Any) -> Evidence:
        """The evidence of one analysis, whose answer ends as wanted."""
        (series,) = study.series
        ordered = sorted(series.instances, key=lambda i: float(i.header.ImagePositionPatient[2]))
        chosen = {"unsuitable": ordered[:9] + ordered[10:], "no series": ordered[:3]}.get(ending, ordered)
        self._backend.dark = ending == "none"
        self._backend.errors = {"bright": ContractBroken(**PARTS)} if ending == "failed" else {}
        asked = replace(study, series=(replace(series, instances=tuple(chosen)),))
        return analyse(asked, [self._model], self._scheduler, progress=lambda **_: None, **more)

    def answer(self, study: Study, ending: str = "findings", **more: Any) -> Answer:
        """Its one answer."""
        (answer,) = self.ask(study, ending, **more).answers
        return answer


@pytest.fixture
def desk(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(faults, "PATIENCE_SECONDS", 0.0)
    made = Desk(model)
    yield made
    made.close()


def partial(study: Study, missing: str = MISSING) -> Study:
    return replace(study, completeness=Completeness.PARTIAL, missing=missing)


def report_of(answer: Answer) -> Dataset:
    """The report that a destination with the usual profile gets."""
    chosen = {made.sop_instance_uid for made in choose(answer_from(as_json(answer)), Profile(), everything).objects}
    (found,) = [made for made in answer.objects if made.kind is Kind.SR and made.sop_instance_uid in chosen]
    return read(found)


def read(made: ResultObject) -> Dataset:
    return dcmread(io.BytesIO(made.content))


def coded(report: Dataset, concept: codes.Code) -> list[str]:
    return [str(item.ConceptCodeSequence[0].CodeValue) for item in items(report, concept.value)]


def comments(report: Dataset) -> list[str]:
    return [str(item.TextValue) for item in items(report, codes.COMMENT.value)]


# --- What it says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "kinds", "summary"),
    [("findings", {"SEG", "SR", "SC"}, codes.NOT_ALL_WITH_FINDINGS), ("none", {"SR", "SC"}, codes.NOT_ALL_NO_FINDINGS)],
)
def test_what_was_looked_at_is_answered_in_part(
    ending: str, kinds: set[str], summary: codes.Code, whole: Study, desk: Desk
) -> None:
    answer = desk.answer(partial(whole), ending)
    assert answer.outcome is Outcome.PARTIAL
    assert (answer.reason, answer.causes) == (WORDS, ("incomplete",))
    assert bool(answer.findings) == (ending == "findings")
    assert {str(made.kind) for made in answer.objects} == kinds
    report = report_of(answer)
    assert report.CompletionFlag == "PARTIAL"
    assert coded(report, codes.CAD_SUMMARY) == [summary.value]
    assert coded(report, codes.SUMMARY_OF_DETECTIONS) == [codes.PARTIALLY_SUCCEEDED.value]


@pytest.mark.parametrize(
    ("ending", "outcome", "reason", "causes"),
    [
        ("unsuitable", Outcome.UNSUITABLE, "uneven gaps", ("geometry", "incomplete")),
        ("no series", Outcome.UNSUITABLE, "3 slices, the model takes 4 to 1000", ("slices", "incomplete")),
        ("failed", Outcome.FAILED, "nothing good", ("failure", "incomplete")),
    ],
)
def test_what_was_not_looked_at_stays_what_it_is_and_what_is_missing_may_be_why(
    ending: str, outcome: Outcome, reason: str, causes: tuple[str, ...], whole: Study, desk: Desk
) -> None:
    answer = desk.answer(partial(whole), ending)
    assert (answer.outcome, answer.causes) == (outcome, causes)
    assert reason in answer.reason
    assert answer.reason.endswith(f"; {WORDS}")
    assert (answer.reason.removesuffix(f"; {WORDS}"), outcome) == (
        desk.answer(whole, ending).reason,
        desk.answer(whole, ending).outcome,
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_report_says_it_in_words_and_as_a_code(ending: str, whole: Study, desk: Desk) -> None:
    report = report_of(desk.answer(partial(whole), ending))
    assert coded(report, codes.REASON)[-1] == codes.CAUSES["incomplete"].value == "INCOMPLETE"
    assert any(WORDS in words for words in comments(report))


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_sheet_says_it(ending: str, whole: Study, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    text = ImageDraw.ImageDraw.text

    def note(draw: ImageDraw.ImageDraw, place: tuple[float, float], words: str, **rest: Any) -> None:
        drawn.append(words)
        text(draw, place, words, **rest)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    desk.answer(partial(whole), ending)
    said = " ".join(drawn)
    assert WORDS.casefold() in said.casefold()
    assert ("Only a part was analysed" in said) == (ending in ("findings", "none"))


def test_a_series_that_could_not_be_looked_at_is_said_beside_it(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    making = replace(phantom.making, study=partial(phantom.making.study))
    draft = Draft(making, Wanted())
    draft.miss(phantom.source.series, UnsuitableGeometry(**{**PARTS, "found": "a gap"}))
    draft.take(phantom.source, phantom.findings, 0)
    draft.conclude()
    assert draft.conclusion.outcome is Outcome.PARTIAL
    assert draft.conclusion.causes == ("geometry", "incomplete")
    assert "a gap" in draft.conclusion.reason
    assert draft.conclusion.reason.endswith(f"; {WORDS}")


def test_a_report_that_could_not_be_written_does_not_lose_it(
    whole: Study, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("service.results.sr.report", fail)
    answer = desk.answer(partial(whole))
    assert (answer.outcome, answer.causes) == (Outcome.FAILED, ("failure", "incomplete"))
    assert answer.reason.endswith(f"; {WORDS}; and its report could not be written")


def test_nobody_knows_what_is_missing_and_it_is_said_all_the_same(whole: Study, desk: Desk) -> None:
    answer = desk.answer(partial(whole, ""))
    assert (answer.outcome, answer.reason, answer.causes) == (
        Outcome.PARTIAL,
        "images are missing",
        ("incomplete",),
    )


@pytest.mark.parametrize("completeness", [Completeness.QUIET, Completeness.VERIFIED])
def test_a_whole_study_is_answered_without_a_word_of_it(completeness: Completeness, whole: Study, desk: Desk) -> None:
    study = replace(whole, completeness=completeness)
    for ending, outcome in (
        ("findings", Outcome.FINDINGS),
        ("none", Outcome.NO_FINDINGS),
        ("unsuitable", Outcome.UNSUITABLE),
        ("failed", Outcome.FAILED),
    ):
        answer = desk.answer(study, ending)
        assert answer.outcome is outcome
        assert "incomplete" not in answer.causes
        assert "missing" not in answer.reason
    assert (desk.answer(study).reason, desk.answer(study).causes) == ("", ())


# --- What it is called ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_whole_studys_answer_is_another_content_and_supersedes_the_partial_one(
    ending: str, whole: Study, desk: Desk, tmp_path: Path
) -> None:
    """Though both are of the very same images: what was missing was in another series, or is said to be not missing."""
    uid = whole.study_instance_uid
    before = desk.ask(partial(whole), ending)
    evidence.freeze(tmp_path, before, 1)
    bodies = evidence.frozen_answers(evidence.folder_of(tmp_path, uid, 1))
    after = desk.ask(whole, ending, earlier=evidence.reports_of([(1, body) for body in bodies]))
    folder = evidence.freeze(tmp_path, after, 2)
    old, new = before.answers[0], after.answers[0]
    assert not {made.sop_instance_uid for made in old.objects} & {made.sop_instance_uid for made in new.objects}
    for made in new.objects:
        frozen = (folder / evidence.object_name(new, made)).read_bytes()
        assert frozen == made.content, "bytes of the partial one must not stand in for it"
    reports = {made.form: made.sop_instance_uid for made in old.objects if made.kind is Kind.SR}
    for made in new.objects:
        if made.kind is Kind.SR:
            (named,) = read(made).PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
            assert named.ReferencedSOPInstanceUID == reports[made.form]
            assert codes.CAUSES["incomplete"].value not in coded(read(made), codes.REASON)


def test_uids_hang_on_what_is_missing_and_on_nothing_else_of_it(whole: Study, desk: Desk) -> None:
    def uids(study: Study) -> set[str]:
        return {made.sop_instance_uid for made in desk.answer(study).objects}

    first = uids(partial(whole))
    assert uids(partial(whole)) == first, "another try gives the same objects"
    more_came = uids(partial(whole, "CT series 1.2.3: 200 of 275 instances came"))
    quiet, verified = (uids(replace(whole, completeness=it)) for it in (Completeness.QUIET, Completeness.VERIFIED))
    assert quiet == verified, "they say the same"
    assert not first & more_came
    assert not (first | more_came) & quiet


def test_the_whole_studys_uids_are_those_that_were_given_before_there_were_partial_ones(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    name = Name(kind=Kind.SR, outcome=Outcome.FINDINGS)
    given = codes.derive_uid(*identity._origin(phantom.making, phantom.source), "SR", "findings")
    assert identity.base_uid(phantom.making, phantom.source, name) == given
