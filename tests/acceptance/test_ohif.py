"""Our results as radiologists see them: in OHIF, in a real browser, from a real PACS.

Where a lesion must be on the screen is computed from the DICOM files, and for the phantom from its formula. The real
series proves the chain, not clinical accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import UID
from scipy import ndimage

from service.analysis.schedule import Scheduler
from service.backend import open_backend
from service.codes import ALL_ALGORITHMS_NO_FINDINGS, SUCCEEDED, derive_uid
from service.models import available, installed, is_installed, model_of
from service.results.identity import DISCLAIMER
from service.settings.analysis import Analysis
from service.spec import read_spec
from service.types import Outcome
from tests.bare import BareBackend
from tests.browser import phantom
from tests.browser.phantom import Abdomen
from tests.browser.places import alike, colour_of, coloured, corners, expected, match, outlined, sampled, segments_on
from tests.browser.stage import Case, Stage, opened, put, read, written
from tests.browser.viewer import View
from tests.support import REPOSITORY, missing, real_series
from tests.toys import write_model

MODELS, LIVER = REPOSITORY / "models", "ct-liver-lesion"
PLANES = {"axial": phantom.AXIAL, "oblique": phantom.OBLIQUE}
MOST_LINES = 5  # OHIF writes no more beside a measurement

Bools = NDArray[np.bool_]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with opened(tmp_path_factory.mktemp("ohif")) as made:
        yield made


@pytest.fixture(scope="module", params=PLANES)
def abdomen(
    request: pytest.FixtureRequest, stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Case, Abdomen]:
    """The phantom in one of the planes, and what the toy model finds in it."""
    folder = tmp_path_factory.mktemp(request.param)
    made = phantom.write(folder / "series", request.param, PLANES[request.param])
    return _found_by_the_toy(stage, made, folder / "models"), made


@pytest.fixture(scope="module")
def liver(stage: Stage) -> tuple[Case, Path]:
    """The real series, what the real model finds in it, and the folder of its truth."""
    folder = real_series("ircadb-17")
    if not all(is_installed(MODELS, spec) for spec in available(MODELS) if spec.name == LIVER):
        missing(f"the model {LIVER} (make models)")
    scheduler = Scheduler(open_backend(Analysis()))
    try:
        return put(stage, folder / "dicom", installed(MODELS, [LIVER]), scheduler), folder
    finally:
        scheduler.close()


def _found_by_the_toy(stage: Stage, abdomen: Abdomen, models: Path) -> Case:
    """A phantom, and what the toy model finds in it."""
    folder = write_model(models)
    scheduler = Scheduler(BareBackend())
    try:
        return put(stage, abdomen.folder, [model_of(read_spec(folder), folder, models)], scheduler)
    finally:
        scheduler.close()


# --- Segmentation ---------------------------------------------------------------------------------------------------


def test_the_segmentation_lies_on_the_lesions(stage: Stage, abdomen: tuple[Case, Abdomen]) -> None:
    case, truth = abdomen
    (content,) = case.contents("SEG")
    assert not any(series.unsupported for series in stage.viewer.open(case.study_uid))
    assert "Do you want to open this Segmentation?" in stage.viewer.show(str(read(content).SeriesInstanceUID))
    words = stage.viewer.panel("panelSegmentation")
    for segment in read(content).SegmentSequence:
        assert segment.SegmentLabel in words
    areas = truth.lesions.sum(axis=(1, 2))
    for index in (int(np.argmax(areas)), int(np.flatnonzero(areas)[-1]) - 1):
        view = look_at(stage, case, index)
        seen = coloured(view, colour_of(content))
        for wanted in (truth.lesions[index], segments_on(content, case.images[index])):
            found = match(seen, expected(view, wanted))
            assert found.is_good(), (index, found)
        assert view.troubles == ()
    empty = look_at(stage, case, int(np.flatnonzero(areas == 0)[0]))
    assert not coloured(empty, colour_of(content)).any()


def test_a_mirrored_segmentation_is_noticed(stage: Stage, abdomen: tuple[Case, Abdomen]) -> None:
    """What the test before this one sees is not seen in whatever OHIF draws."""
    case, truth = abdomen
    mirrored = read(case.contents("SEG")[0])
    rows = mirrored.pixel_array.reshape(-1, mirrored.Rows, mirrored.Columns)[:, ::-1]
    mirrored.PixelData = np.packbits(rows.ravel(), bitorder="little").tobytes()
    mirrored.SeriesInstanceUID = UID(derive_uid("mirrored", case.study_uid))
    mirrored.SOPInstanceUID = UID(derive_uid("mirrored", case.study_uid, "1"))
    mirrored.file_meta.MediaStorageSOPInstanceUID = mirrored.SOPInstanceUID
    content = written(mirrored)
    stage.pacs.store(content)
    stage.viewer.open(case.study_uid)
    stage.viewer.show(mirrored.SeriesInstanceUID)
    index = int(np.argmax(truth.lesions.sum(axis=(1, 2))))
    view = look_at(stage, case, index)
    seen = coloured(view, colour_of(content))
    assert match(seen, expected(view, segments_on(content, case.images[index]))).is_good()  # OHIF obeyed it
    assert not match(seen, expected(view, truth.lesions[index])).is_good()


def test_the_segmentation_lies_on_the_real_tumour(stage: Stage, liver: tuple[Case, Path]) -> None:
    case, folder = liver
    (content,) = case.contents("SEG")
    stage.viewer.open(case.study_uid)
    stage.viewer.show(str(read(content).SeriesInstanceUID))
    for tumour in ("livertumor1", "livertumor2"):
        masks = {path.name: dcmread(path).pixel_array > 0 for path in (folder / "masks" / tumour).iterdir()}
        name = max(masks, key=lambda each: int(masks[each].sum()))
        index = next(i for i, path in enumerate(case.files) if path.name == name)
        view = look_at(stage, case, index)
        seen, wanted = coloured(view, colour_of(content)), expected(view, masks[name])
        found = match(seen, expected(view, segments_on(content, case.images[index])))
        assert found.is_good(), (tumour, found)
        assert match(touching(seen, wanted), wanted).dice > 0.5, (tumour, match(touching(seen, wanted), wanted))


# --- Report ---------------------------------------------------------------------------------------------------------


def test_the_reports_measurements_are_written_beside_their_outlines(
    stage: Stage, abdomen: tuple[Case, Abdomen]
) -> None:
    _measurements_are_shown(stage, abdomen[0])


def test_the_measurements_of_the_real_tumours_are_shown(stage: Stage, liver: tuple[Case, Path]) -> None:
    _measurements_are_shown(stage, liver[0])


def _measurements_are_shown(stage: Stage, case: Case) -> None:
    """Of each report and its first findings: the numbers are beside an outline, and it lies on the segment."""
    (segmentation,) = case.contents("SEG")
    reports = case.contents("SR")
    assert reports
    for content in reports:
        stage.viewer.open(case.study_uid)
        stage.viewer.show(str(read(content).SeriesInstanceUID))
        findings = measured(read(content))
        assert len(findings) == len(case.answer.findings)
        for number, lines in enumerate(findings[:2], start=1):
            if number > 1:
                stage.viewer.next()
            view = stage.viewer.look(f"{case.images[0].Modality}-report-{number}")
            header = case.image(view.image)
            view = stage.viewer.look(f"{case.images[0].Modality}-report-{number}", corners(header))
            assert set(lines[:MOST_LINES]) <= set(view.lines), (lines, view.lines)
            seen, segments = outlined(view), expected(view, segments_on(segmentation, header))
            found = match(seen, touching(segments, seen))
            assert found.is_good(), (number, found)
            assert view.troubles == ()


def test_a_report_without_findings_is_read_as_text(stage: Stage, tmp_path: Path) -> None:
    """An answer even when nothing was found: what was looked for, how it ended, by what, and that it is research."""
    made = phantom.write(tmp_path / "series", "healthy", lesions=False)
    case = _found_by_the_toy(stage, made, tmp_path / "models")
    assert case.answer.outcome is Outcome.NO_FINDINGS
    assert not case.contents("SEG")
    (content,) = case.contents("SR")
    stage.viewer.open(case.study_uid)
    stage.viewer.show(str(read(content).SeriesInstanceUID))
    view = stage.viewer.look("no-findings")
    for words in (ALL_ALGORITHMS_NO_FINDINGS.meaning, SUCCEEDED.meaning, DISCLAIMER, "It looks for"):
        assert words in view.words
    assert view.troubles == ()
    _capture_is_shown(stage, case)


# --- Secondary Capture ----------------------------------------------------------------------------------------------


def test_the_capture_is_shown(stage: Stage, abdomen: tuple[Case, Abdomen]) -> None:
    _capture_is_shown(stage, abdomen[0])


def test_the_capture_of_the_real_tumours_is_shown(stage: Stage, liver: tuple[Case, Path]) -> None:
    _capture_is_shown(stage, liver[0])


def _capture_is_shown(stage: Stage, case: Case) -> None:
    """The first Secondary Capture of the answer is on the screen, pixel by pixel."""
    wanted = read(case.contents("SC")[0])
    stage.viewer.open(case.study_uid)
    stage.viewer.show(str(wanted.SeriesInstanceUID))
    stage.viewer.go_to(str(wanted.SOPInstanceUID))
    view = stage.viewer.look("capture")
    assert view.image == wanted.SOPInstanceUID
    assert alike(sampled(view, wanted.Rows, wanted.Columns), wanted.pixel_array) > 0.95


# --- What they share ------------------------------------------------------------------------------------------------


def look_at(stage: Stage, case: Case, index: int) -> View:
    """One of the images, with its corners' places."""
    stage.viewer.go_to(str(case.images[index].SOPInstanceUID))
    view = stage.viewer.look(f"{case.images[index].Modality}-{index}", corners(case.images[index]))
    assert view.image == case.images[index].SOPInstanceUID
    return view


def touching(parts: Bools, other: Bools) -> Bools:
    """Those connected parts of a region that another one touches."""
    labels, _ = ndimage.label(parts)
    return np.isin(labels, np.setdiff1d(labels[other], [0]))


def measured(report: Dataset) -> list[list[str]]:
    """By finding, what a report says of it in numbers, in the words of OHIF."""
    lines: dict[str, list[str]] = {}
    container = next(i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "126010")
    for group in container.ContentSequence:
        uid = next(i.UID for i in group.ContentSequence if i.ValueType == "UIDREF")
        for item in group.ContentSequence:
            if item.ValueType == "NUM":
                (value,) = item.MeasuredValueSequence
                unit = value.MeasurementUnitsCodeSequence[0].CodeValue
                name = item.ConceptNameCodeSequence[0].CodeMeaning
                lines.setdefault(str(uid), []).append(f"{name}: {float(value.NumericValue):.2f} {unit}")
    return list(lines.values())
