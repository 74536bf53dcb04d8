"""A side is said where it is beyond doubt, and nowhere else: a wrong one hurts more than none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from service import codes
from service.analysis.sides import side_of
from service.codes import Code
from service.errors import EncodingError
from service.results.proof import prove
from service.results.reading import items
from service.types import SourceVolume
from tests import phantoms
from tests.unit.test_results_identity import conclusion_of, objects_of, read
from tests.unit.test_results_proof import planted


@pytest.fixture
def source(tmp_path: Path) -> SourceVolume:
    return phantoms.make(tmp_path).source


def body(
    source: SourceVolume, *, width_mm: float = 400.0, middle_mm: float = 0.0, turned: bool = False
) -> SourceVolume:
    """A body of 300 mm across in air, its middle at an x; axial, or sagittal where the slices run along x."""
    pixel = width_mm / 100
    array = np.full((10, 100, 100) if not turned else (100, 100, 10), -1000, np.float32)
    affine = np.eye(4)
    axis = 0 if turned else 2
    affine[:3, :3] = np.diag([1.0, 1.0, 1.0])[:, [2, 1, 0]] if not turned else np.eye(3)
    affine[:3, axis] *= pixel
    affine[0, 3] = -width_mm / 2 + pixel / 2 + middle_mm
    inside = np.abs((np.arange(100) + 0.5) * pixel - width_mm / 2) < 150
    if turned:
        array[inside] = 40
    else:
        array[:, :, inside] = 40
    volume = hd.Volume(array, affine, coordinate_system="PATIENT", frame_of_reference_uid="1.2.3")
    return replace(source, volume=volume)


@pytest.mark.parametrize("turned", [False, True], ids=["axial", "sagittal"])
@pytest.mark.parametrize(
    ("x", "side"), [(80.0, codes.LEFT), (-80.0, codes.RIGHT), (15.0, None), (-15.0, None), (0.0, None)]
)
def test_the_side_is_the_patient_s_by_lps(source: SourceVolume, turned: bool, x: float, side: Code | None) -> None:
    assert side_of(body(source, turned=turned), (x, 0.0, 0.0)) == side


def test_no_side_is_said_where_the_two_middles_disagree(source: SourceVolume) -> None:
    # The origin was taken away, as de-identification does: all x are positive.
    shifted = body(source, middle_mm=200.0)
    assert side_of(shifted, (120.0, 0.0, 0.0)) is None, "right of the body, left of the scanner's middle"
    assert side_of(shifted, (300.0, 0.0, 0.0)) == codes.LEFT


def test_no_side_is_said_of_a_part_of_the_body(source: SourceVolume) -> None:
    assert side_of(body(source, width_mm=250.0), (80.0, 0.0, 0.0)) is None


def test_no_side_is_said_of_air(source: SourceVolume) -> None:
    empty = body(source)
    empty.volume.array[:] = -1000
    assert side_of(empty, (80.0, 0.0, 0.0)) is None


def test_segment_and_report_say_the_side_and_the_proof_holds_them_to_it(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    first, second = phantom.lesions
    phantom = replace(phantom, findings=(replace(first, laterality=codes.LEFT), second))
    segmentation, report = objects_of(phantom)
    prove(phantom.making, conclusion_of(phantom), phantom.source, (segmentation, report))
    regions = [segment.AnatomicRegionSequence[0] for segment in read(segmentation).SegmentSequence]
    assert regions[0].AnatomicRegionModifierSequence[0].CodeValue == codes.LEFT.value
    assert "AnatomicRegionModifierSequence" not in regions[1]
    sides = [item.ConceptCodeSequence[0].CodeValue for item in items(read(report), codes.LATERALITY.value)]
    assert sides == [codes.LEFT.value] * 5  # of the five groups of the first finding

    def other_side(dataset: object) -> None:
        for item in items(dataset, codes.LATERALITY.value):  # type: ignore[arg-type]
            item.ConceptCodeSequence[0].CodeValue = codes.RIGHT.value

    for broken in (
        (segmentation, planted(report, other_side)),
        (
            planted(
                segmentation,
                lambda dataset: delattr(
                    dataset.SegmentSequence[0].AnatomicRegionSequence[0], "AnatomicRegionModifierSequence"
                ),
            ),
            report,
        ),
    ):
        with pytest.raises(EncodingError, match=r"side|modifiers"):
            prove(phantom.making, conclusion_of(phantom), phantom.source, broken)
