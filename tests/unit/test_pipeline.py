"""Every model gives an answer to every study, at the same time as the others, whatever becomes of them."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

from service import codes, metrics, pipeline
from service.analysis import faults
from service.analysis.schedule import Scheduler
from service.analysis.volume import read_volume
from service.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ContractBroken,
    EncodingError,
    OutOfMemory,
    Superseded,
)
from service.evidence import answer_from, as_json
from service.forms import Profile
from service.intake.study import group, read_instance
from service.models import model_of
from service.pipeline import analyse
from service.results import capture, proof, sr
from service.results.choice import choose, everything
from service.results.identity import Making
from service.spec import read_spec
from service.types import Answer, Array, Conclusion, Evidence, Lesion, Model, Outcome, Series, SourceVolume, Study
from tests.bare import BareBackend
from tests.toys import Ball, bright_study, write_model

PARTS = {"doing": "running it", "found": "nothing good", "rule": "it runs", "way_out": "mend it"}
MAY_PASS = [BackendUnavailable(**PARTS), OutOfMemory(**PARTS)]
# What hangs does so alone too: the scheduler finds that out, and then it is final.
FINAL: list[Exception] = [
    BackendTimeout(**PARTS),
    ContractBroken(**PARTS),
    ValueError("Mustermann^Erika"),
    MemoryError(),
]
FIRST, SECOND = "bright", "other"


class Backend(BareBackend):
    """A bare one, which records the order of calls and raises for one network where it is told to."""

    name = "onnxruntime CPU"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.dark = False
        self.first: Callable[[], None] = lambda: None

    def infer(self, network: str, patches: Sequence[Array]) -> tuple[Array, ...]:
        if not self.calls:
            self.first()
        self.calls.append(network)
        if network in self.errors:
            raise self.errors[network]
        answers = super().infer(network, patches)
        return tuple(np.zeros_like(answer) for answer in answers) if self.dark else answers


def kinds(answer: Answer) -> list[str]:
    """The kinds of objects that a destination with the usual profile gets."""
    return [made.kind for made in choose(answer_from(as_json(answer)), Profile(), everything).objects]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    folder = tmp_path_factory.mktemp("models")
    return [model_of(read_spec(write_model(folder, name)), folder / name, folder) for name in (FIRST, SECOND)]


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Ball]:
    folder = tmp_path_factory.mktemp("study")
    ball = bright_study(folder)
    (study,) = group(read_instance(path) for path in folder.iterdir())
    return study, ball


@pytest.fixture(scope="module")
def study(studied: tuple[Study, Ball]) -> Study:
    return studied[0]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a backend that is away."""
    monkeypatch.setattr(faults, "PATIENCE_SECONDS", 0.0)


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def scheduler(backend: Backend, models: list[Model]) -> Iterator[Scheduler]:
    made = Scheduler(backend)
    for model in models:
        made.add(model)
    yield made
    made.close()


def _quiet(*, model: str, stage: str, done: int, total: int) -> None:
    pass


def _analyse(study: Study, models: list[Model], scheduler: Scheduler, *, last_try: bool = True) -> Evidence:
    return analyse(study, models, scheduler, progress=_quiet, last_try=last_try)


def _report(answer: Answer) -> Dataset:
    (found,) = [made for made in answer.objects if made.kind == "SR"]
    assert found.sop_class_uid == Comprehensive3DSRStorage
    report = dcmread(io.BytesIO(found.content))
    assert str(report.SOPInstanceUID) == found.sop_instance_uid
    return report


def _words(report: Dataset) -> str:
    return "\n".join(str(element.value) for element in report.iterall())


def test_each_model_finds_the_ball_and_has_its_objects(
    studied: tuple[Study, Ball], models: list[Model], scheduler: Scheduler
) -> None:
    study, ball = studied
    progress: list[tuple[str, str, int, int]] = []
    lock = threading.Lock()

    def told(*, model: str, stage: str, done: int, total: int) -> None:
        with lock:
            progress.append((model, stage, done, total))

    evidence = analyse(study, models, scheduler, progress=told)
    assert evidence.study_instance_uid == study.study_instance_uid
    assert [answer.model.name for answer in evidence.answers] == [FIRST, SECOND]
    for answer in evidence.answers:
        assert answer.outcome is Outcome.FINDINGS
        (finding,) = answer.findings
        assert isinstance(finding, Lesion)
        np.testing.assert_allclose(finding.centroid_lps_mm, ball.centre_lps_mm, atol=0.5)
        assert kinds(answer) == ["SEG", "SR"]
        classes = {made.sop_class_uid for made in answer.objects if made.form == "binary"}
        assert classes == {SegmentationStorage, Comprehensive3DSRStorage}
        assert [picture.finding for picture in answer.pictures] == [0, 1]
        assert set(answer.seconds) == {"select", "volume", "infer", "findings", "draw", "encode", "proof"}
        steps = [step[2:] for step in progress if step[0] == answer.model.name]
        assert steps == [(done, steps[0][1]) for done in range(steps[0][1] + 1)]
    uids = [made.sop_instance_uid for answer in evidence.answers for made in answer.objects]
    assert len(set(uids)) == len(uids) == 8  # of each model: SEG, two reports, and the sheet


def test_the_models_run_at_the_same_time(
    study: Study, models: list[Model], backend: Backend, scheduler: Scheduler
) -> None:
    """Once both have patches waiting, their calls are interleaved, not one model's first."""

    def both_wait() -> None:
        turn = threading.Event()
        for _ in range(5000):
            if scheduler._waiting.networks() == {FIRST, SECOND}:
                return
            turn.wait(0.002)

    backend.first = both_wait
    _analyse(study, models, scheduler)
    calls = backend.calls
    first, second = (sum(size for network, size in backend.batches if network == name) for name in (FIRST, SECOND))
    assert first == second, "patches; a batch goes with one of them where the next one is late"
    assert min(calls.count(FIRST), calls.count(SECOND)) > 2 * 3
    for name in (FIRST, SECOND):
        other = SECOND if name == FIRST else FIRST
        assert calls.index(other) < len(calls) - calls[::-1].index(name) - 1
    assert len({tuple(calls[n : n + 2]) for n in range(len(calls) - 1)} & {(FIRST, SECOND), (SECOND, FIRST)}) == 2


def test_a_series_is_read_once_for_all_models(
    study: Study, models: list[Model], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(series: Series) -> SourceVolume:
        read.append(series.series_instance_uid)
        return read_volume(series)

    monkeypatch.setattr(pipeline, "read_volume", counted)
    _analyse(study, models, scheduler)
    assert len(read) == 1


def test_a_map_without_any_voxel_is_no_finding(
    study: Study, models: list[Model], backend: Backend, scheduler: Scheduler
) -> None:
    backend.dark = True
    (answer,) = _analyse(study, models[:1], scheduler).answers
    assert (answer.outcome, answer.findings, answer.reason) == (Outcome.NO_FINDINGS, (), "")
    assert kinds(answer) == ["SR"]
    assert codes.ALL_ALGORITHMS_NO_FINDINGS.value in _words(_report(answer))


# --- One bad neighbour ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [*MAY_PASS, *FINAL], ids=lambda error: type(error).__name__)
def test_a_model_that_breaks_is_answered_as_failed_and_stops_no_other(
    error: Exception,
    study: Study,
    models: list[Model],
    backend: Backend,
    scheduler: Scheduler,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend.errors[FIRST] = error
    broken, whole = _analyse(study, models, scheduler).answers
    assert whole.outcome is Outcome.FINDINGS
    assert kinds(whole) == ["SEG", "SR"]
    assert (broken.outcome, broken.findings, [it.finding for it in broken.pictures]) == (Outcome.FAILED, (), [0])
    report = _report(broken)
    assert codes.FAILED.value in _words(report)
    reason = "nothing good" if isinstance(error, BackendError) else f"({type(error).__name__})"
    assert reason in broken.reason
    (record,) = [record for record in caplog.records if record.getMessage() == "model.failed"]
    assert "Mustermann" not in broken.reason + _words(report) + json.dumps(getattr(record, "fields", {}))


@pytest.mark.parametrize("error", MAY_PASS, ids=lambda error: type(error).__name__)
def test_what_may_pass_is_raised_while_there_is_another_try(
    error: Exception, study: Study, models: list[Model], backend: Backend, scheduler: Scheduler
) -> None:
    backend.errors[SECOND] = error
    with pytest.raises(type(error)) as caught:
        _analyse(study, models, scheduler, last_try=False)
    assert caught.value is error
    backend.errors.clear()
    assert all(a.outcome is Outcome.FINDINGS for a in _analyse(study, models, scheduler, last_try=False).answers)


@pytest.mark.parametrize("error", FINAL, ids=lambda error: type(error).__name__)
def test_what_is_final_is_the_answer_at_the_first_try(
    error: Exception, study: Study, models: list[Model], backend: Backend, scheduler: Scheduler
) -> None:
    backend.errors[SECOND] = error
    whole, broken = _analyse(study, models, scheduler, last_try=False).answers
    assert (whole.outcome, broken.outcome) == (Outcome.FINDINGS, Outcome.FAILED)


def test_a_model_that_could_not_be_loaded_is_answered_as_failed(
    study: Study, models: list[Model], backend: Backend
) -> None:
    scheduler = Scheduler(backend)
    scheduler.add(models[0])
    network = models[1].networks[0]
    with pytest.raises(ContractBroken):
        scheduler.add(replace(models[1], networks=(replace(network, file=Path("gone.onnx")),)))
    whole, broken = _analyse(study, models, scheduler).answers
    scheduler.close()
    assert (whole.outcome, broken.outcome) == (Outcome.FINDINGS, Outcome.FAILED)
    assert "loading other" in broken.reason


def test_a_superseded_study_is_answered_by_nobody(
    study: Study, models: list[Model], backend: Backend, scheduler: Scheduler
) -> None:
    cancelled = threading.Event()
    backend.first = lambda: scheduler.cancel(cancelled)
    with pytest.raises(Superseded):
        analyse(study, models, scheduler, progress=_quiet, cancelled=cancelled)
    assert len(backend.calls) <= 2


# --- Studies that are not suitable ----------------------------------------------------------------------------------


def test_a_study_that_no_series_fits_is_answered_with_the_reasons(
    study: Study, models: list[Model], backend: Backend, scheduler: Scheduler
) -> None:
    (series,) = study.series
    few = replace(study, series=(replace(series, instances=series.instances[:3]),))
    (answer,) = _analyse(few, models[:1], scheduler, last_try=False).answers
    assert answer.outcome is Outcome.UNSUITABLE
    assert answer.selection is None
    (left,) = answer.excluded
    assert left.series_instance_uid == series.series_instance_uid
    assert left.reason == "3 slices, the model takes 4 to 1000"
    assert left.reason in answer.reason
    assert left.reason in _words(_report(answer))
    assert backend.calls == []


def test_a_series_that_is_no_volume_is_answered_with_the_place(
    study: Study, models: list[Model], scheduler: Scheduler
) -> None:
    """Both models share the one reading, and both are told why it failed."""
    (series,) = study.series
    ordered = sorted(series.instances, key=lambda i: float(i.header.ImagePositionPatient[2]))
    gap = replace(study, series=(replace(series, instances=tuple(ordered[:9] + ordered[10:])),))
    for answer in _analyse(gap, models, scheduler).answers:
        assert answer.outcome is Outcome.UNSUITABLE
        assert "1 uneven gaps, the first of 10.00 mm after slice 9" in answer.reason
        assert answer.selection is not None
        assert answer.reason in _words(_report(answer))


def test_a_file_that_is_gone_is_answered_and_stops_no_other_study(
    study: Study, models: list[Model], scheduler: Scheduler
) -> None:
    (series,) = study.series
    first, *others = series.instances
    gone = replace(study, series=(replace(series, instances=(replace(first, path=Path("gone.dcm")), *others)),))
    (answer,) = _analyse(gone, models[:1], scheduler).answers
    assert answer.outcome is Outcome.UNSUITABLE
    assert "FileNotFoundError" in answer.reason
    assert _report(answer)
    assert _analyse(study, models[:1], scheduler).answers[0].outcome is Outcome.FINDINGS


# --- Results that are not right -------------------------------------------------------------------------------------


def test_objects_that_fail_their_proof_are_not_kept(
    study: Study, models: list[Model], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = proof.prove

    def prove(making: Making, conclusion: Conclusion, *more: Any) -> None:
        if conclusion.findings:
            raise EncodingError(**PARTS)
        real(making, conclusion, *more)

    monkeypatch.setattr(proof, "prove", prove)
    counter = metrics.PROOF_FAILURES.labels(model=FIRST)
    before = counter._value.get()
    (answer,) = _analyse(study, models[:1], scheduler).answers
    assert counter._value.get() == before + 1, "this is what the alert is raised by"
    assert (answer.outcome, answer.findings) == (Outcome.FAILED, ())
    assert kinds(answer) == ["SR"]
    assert codes.FAILED.value in _words(_report(answer))


def test_an_answer_is_kept_though_not_even_its_report_can_be_written(
    study: Study, models: list[Model], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(sr, "report", report)
    (answer,) = _analyse(study, models[:1], scheduler).answers
    assert (answer.outcome, answer.objects) == (Outcome.FAILED, ())
    assert "its report could not be written" in answer.reason


def test_the_same_sources_again_are_the_same_objects(study: Study, models: list[Model], scheduler: Scheduler) -> None:
    made = [_analyse(study, models[:1], scheduler).answers[0] for _ in range(2)]
    uids = [{it.sop_instance_uid for it in answer.objects} for answer in made]
    assert uids[0] == uids[1]
    assert made[0].findings[0].tracking_uid == made[1].findings[0].tracking_uid


def test_a_picture_is_a_finding_as_png(study: Study, models: list[Model], scheduler: Scheduler) -> None:
    (answer,) = _analyse(study, models[:1], scheduler).answers
    assert answer.pictures[0].png.startswith(b"\x89PNG")


def test_a_picture_that_can_not_be_drawn_costs_only_itself(
    study: Study, models: list[Model], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no font")

    monkeypatch.setattr(capture, "picture", fail)
    for answer in _analyse(study, models, scheduler).answers:
        assert answer.outcome is Outcome.FINDINGS
        assert [picture.finding for picture in answer.pictures] == [0]
        assert kinds(answer) == ["SEG", "SR"]
        assert as_json(answer)["findings"][0]["picture"] is None
