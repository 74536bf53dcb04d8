"""Models of every task through the whole pipeline: what becomes of a box, a point, and a word about all the images."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from service import codes
from service.analysis.schedule import Scheduler
from service.analysis.volume import read_volume
from service.demo.phantom import tiny
from service.demo.phantom_dicom import write_series
from service.intake.study import group, read_instance
from service.models import model_of
from service.pipeline import analyse
from service.spec import read_spec
from service.types import Answer, Judgement, Lesion, Mark, Outcome, Study
from tests.bare import BareBackend
from tests.toys import (
    Ball,
    bright_phantom,
    bright_study,
    write_classification_model,
    write_detection_model,
    write_ensemble_model,
    write_heatmap_model,
    write_neighbour_model,
)
from tests.unit.test_pipeline import kinds


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler(BareBackend())
    yield made
    made.close()


@pytest.fixture
def studied(tmp_path: Path) -> tuple[Study, Ball]:
    ball = bright_study(tmp_path / "study")
    return read(tmp_path / "study"), ball


def read(folder: Path) -> Study:
    (study,) = group(read_instance(path) for path in sorted(folder.rglob("*.dcm")))
    return study


def answer_of(study: Study, folder: Path, scheduler: Scheduler) -> Answer:
    model = model_of(read_spec(folder), folder, folder.parent)
    scheduler.add(model)
    (answer,) = analyse(study, [model], scheduler, progress=lambda **_: None).answers
    return answer


@pytest.mark.parametrize("write", [write_detection_model, write_heatmap_model])
def test_what_is_detected_is_marked_in_the_report_and_has_no_segmentation(
    write: object, studied: tuple[Study, Ball], scheduler: Scheduler, tmp_path: Path
) -> None:
    study, ball = studied
    assert callable(write)
    answer = answer_of(study, write(tmp_path / "models"), scheduler)
    assert answer.outcome is Outcome.FINDINGS, answer.reason
    assert kinds(answer) == ["SR"]
    finding = answer.findings[0]
    assert isinstance(finding, Mark)
    assert np.linalg.norm(np.subtract(finding.centre_lps_mm, ball.centre_lps_mm)) < 15
    assert len(answer.pictures) == 1 + len(answer.findings)


@pytest.mark.parametrize("write", [write_ensemble_model, write_neighbour_model])
def test_an_ensemble_and_a_network_of_slices_give_a_segmentation(
    write: object, studied: tuple[Study, Ball], scheduler: Scheduler, tmp_path: Path
) -> None:
    study, _ = studied
    assert callable(write)
    answer = answer_of(study, write(tmp_path / "models"), scheduler)
    assert answer.outcome is Outcome.FINDINGS, answer.reason
    assert kinds(answer) == ["SEG", "SR"]
    assert isinstance(answer.findings[0], Lesion)


def test_a_classification_names_the_slice_that_decided(
    studied: tuple[Study, Ball], scheduler: Scheduler, tmp_path: Path
) -> None:
    study, ball = studied
    answer = answer_of(study, write_classification_model(tmp_path / "models"), scheduler)
    assert answer.outcome is Outcome.FINDINGS, answer.reason
    assert kinds(answer) == ["SR"]
    (finding,) = answer.findings
    assert isinstance(finding, Judgement)
    assert answer.selection is not None
    volume = read_volume(answer.selection.series).volume
    z = volume.map_indices_to_reference(np.array([[finding.key_slice, 0, 0]]))[0, 2]
    assert abs(z - ball.centre_lps_mm[2]) <= 14.0, "it lies in the ball"


def test_a_study_is_judged_by_all_series_that_fit_and_the_most_suspect_one_stands_for_it(
    scheduler: Scheduler, tmp_path: Path
) -> None:
    phantom, _ = bright_phantom()
    write_series(tiny(shape=(20, 48, 48)), tmp_path / "study" / "plain", study_uid="1.2.3", series_number=1)
    write_series(phantom, tmp_path / "study" / "bright", study_uid="1.2.3", series_number=2)
    study = read(tmp_path / "study")
    bright = read_instance(next((tmp_path / "study" / "bright").iterdir())).header.SeriesInstanceUID
    folder = write_classification_model(tmp_path / "models")
    text = (folder / "model.toml").read_text()
    for level, series in (("series", None), ("study", str(bright))):
        (folder / "model.toml").write_text(text.replace('level = "series"', f'level = "{level}"'))
        answer = answer_of(study, folder, scheduler)
        assert answer.selection is not None
        chosen_first = answer.selection.series.series_instance_uid
        if series is None and chosen_first != str(bright):
            assert answer.outcome is Outcome.NO_FINDINGS, "only the chosen series was looked at"
        if series:
            assert answer.outcome is Outcome.FINDINGS
            assert len(answer.excluded) == 1


def test_a_study_of_which_a_series_cannot_be_looked_at_is_answered_in_part(
    scheduler: Scheduler, tmp_path: Path
) -> None:
    """Whatever the others say: what is in that series nobody knows."""
    phantom, _ = bright_phantom()
    write_series(phantom, tmp_path / "study" / "bright", study_uid="1.2.3", series_number=2)
    torn = write_series(tiny(shape=(20, 48, 48)), tmp_path / "study" / "torn", study_uid="1.2.3", series_number=1)
    torn[9].unlink()  # a gap
    study = read(tmp_path / "study")
    folder = write_classification_model(tmp_path / "models")
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(text.replace('level = "series"', 'level = "study"'))
    answer = answer_of(study, folder, scheduler)
    if answer.outcome is Outcome.UNSUITABLE:
        pytest.fail("the torn series was chosen first: this shows nothing")
    assert answer.outcome is Outcome.PARTIAL
    assert answer.findings
    assert answer.causes == ("geometry",)
    assert "could not be looked at" in answer.reason
    assert "uneven gaps" in answer.reason
    report = next(made for made in answer.objects if made.kind == "SR")
    said = dcmread(BytesIO(report.content))
    assert said.CompletionFlag == "PARTIAL"
    assert codes.NOT_ALL_WITH_FINDINGS.value in str(said)
    assert codes.PARTIALLY_SUCCEEDED.value in str(said)
    assert codes.CAUSES["geometry"].value in str(said)
