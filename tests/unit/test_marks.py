"""Peaks, boxes and centres become marks: what is near a better one goes, in millimetres, and each place is measured."""

from __future__ import annotations

from typing import Any

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray

from service.analysis.findings import find
from service.spec import FindingRules
from service.types import BoxPrediction, Candidate, MapPrediction, Mark, Point, Prediction, SourceVolume
from tests.phantoms import LESION_CLASS, NODULE_CLASS, Phantom, make

SHAPE = (12, 30, 40)
SPACING = (3.0, 0.5, 2.0)  # of slices, rows, columns: what is near in voxels may be far in millimetres
ORIGIN = (-10.0, 20.0, 100.0)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    return make(tmp_path_factory.mktemp("series"))


def _source(phantom: Phantom) -> SourceVolume:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = SPACING
    affine[:, 3] = (*ORIGIN, 1)
    return SourceVolume(
        series=phantom.source.series,
        volume=hd.Volume(np.zeros(SHAPE, np.float32), affine, coordinate_system="PATIENT"),
        ordered=phantom.source.ordered,
        notes=(),
    )


def _find(phantom: Phantom, prediction: Prediction, task: str, **rules: Any) -> tuple[list[Mark], int]:
    spec = phantom.making.model.spec.model_copy(
        update={"task": task, "classes": (LESION_CLASS, NODULE_CLASS), "findings": FindingRules(**rules)}
    )

    def uid(channel: int, place: Point | None) -> str:
        assert place is not None
        return f"{channel} at {place[0]:g} {place[1]:g} {place[2]:g}"

    findings, dropped = find(prediction, _source(phantom), spec, tracking_uid=uid)
    marks = [finding for finding in findings if isinstance(finding, Mark)]
    assert len(marks) == len(findings)
    assert [mark.number for mark in marks] == list(range(1, len(marks) + 1))
    return marks, dropped


# --- Heat maps ------------------------------------------------------------------------------------------------------


def _peaks(
    phantom: Phantom,
    values: dict[tuple[int, int, int], float],
    *,
    other: dict[tuple[int, int, int], float] | None = None,
    start: tuple[int, int, int] = (0, 0, 0),
    **rules: Any,
) -> tuple[list[Mark], int]:
    """What is found in the maps of two classes, given by their voxels."""
    maps = np.zeros((2, *(n - s for n, s in zip(SHAPE, start, strict=True))), np.float32)
    for channel, voxels in enumerate((values, other or {})):
        for (k, j, i), value in voxels.items():
            maps[channel, k - start[0], j - start[1], i - start[2]] = value
    a, b, c = (slice(s, n) for s, n in zip(start, SHAPE, strict=True))
    return _find(phantom, MapPrediction(probability=maps, box=(a, b, c), seconds={}), "heatmap", **rules)


def _indices(marks: list[Mark]) -> list[Point]:
    return [mark.low for mark in marks]


@pytest.mark.parametrize("start", [(0, 0, 0), (2, 5, 11)])
def test_a_peak_is_a_point_where_the_map_is_greatest(phantom: Phantom, start: tuple[int, int, int]) -> None:
    ((mark,), dropped) = _peaks(phantom, {(4, 10, 20): 0.75, (4, 11, 20): 0.6, (5, 10, 21): 0.7}, start=start)
    assert dropped == 0
    assert mark.probability == 0.75
    assert mark.low == mark.high == (4, 10, 20)
    assert mark.size_mm is None
    assert mark.key_slice == 4
    assert mark.centre_lps_mm == pytest.approx((30.0, 25.0, 112.0))
    assert mark.tracking_uid == "0 at 30 25 112"
    assert mark.kind == LESION_CLASS


def test_peaks_below_the_score_do_not_count(phantom: Phantom) -> None:
    values = {(2, 5, 5): 0.75, (8, 20, 30): 0.5}
    assert _indices(_peaks(phantom, values, score_threshold=0.5)[0]) == [(2, 5, 5), (8, 20, 30)]
    assert _indices(_peaks(phantom, values, score_threshold=0.51)[0]) == [(2, 5, 5)]


def test_peaks_nearer_than_the_rule_to_a_better_one_go(phantom: Phantom) -> None:
    """8 rows are 4 mm and 4 columns 8 mm: it is millimetres that count."""
    values = {(4, 10, 20): 0.9, (4, 18, 20): 0.8, (4, 10, 24): 0.7}
    assert _indices(_peaks(phantom, values, merge_mm=5)[0]) == [(4, 10, 20), (4, 10, 24)]
    assert len(_peaks(phantom, values, merge_mm=4)[0]) == 3, "just as far as the rule says is far enough"


def test_what_goes_takes_nothing_with_it(phantom: Phantom) -> None:
    """A chain of peaks 4 mm apart: the second goes for the first, and the third is far from the first."""
    values = {(4, 5, 20): 0.9, (4, 13, 20): 0.8, (4, 21, 20): 0.7}
    assert _indices(_peaks(phantom, values, merge_mm=5)[0]) == [(4, 5, 20), (4, 21, 20)]


def test_a_plateau_is_one_peak_in_its_middle(phantom: Phantom) -> None:
    """A saturated network gives 1.0 in many voxels: 2 x 20 mm here, more than the merging reaches."""
    values = {(4, 10 + j, 15 + i): 1.0 for j in range(5) for i in range(11)}
    assert _indices(_peaks(phantom, values, merge_mm=1)[0]) == [(4, 12, 20)]


def test_a_plateau_that_holds_together_by_corners_is_one_peak(phantom: Phantom) -> None:
    values = {(4, 10 + n, 20 + n): 1.0 for n in range(3)}
    assert _indices(_peaks(phantom, values, merge_mm=1)[0]) == [(4, 11, 21)]


def test_a_terrace_on_a_slope_is_no_peak(phantom: Phantom) -> None:
    """Voxels of 0.7 in a row that leads up to 0.9: those at its far end have no greater neighbour."""
    values = {(4, 10, 15 + i): 0.7 for i in range(8)} | {(4, 10, 23): 0.9}
    assert _indices(_peaks(phantom, values, merge_mm=1)[0]) == [(4, 10, 23)]


def test_classes_have_peaks_each_of_its_own(phantom: Phantom) -> None:
    marks, _ = _peaks(phantom, {(4, 10, 20): 0.7}, other={(4, 10, 20): 0.8, (11, 29, 39): 0.6})
    assert [(mark.kind.channel, mark.low) for mark in marks] == [(1, (4, 10, 20)), (0, (4, 10, 20)), (1, (11, 29, 39))]


@pytest.mark.parametrize("shape", [(0, 0, 0), SHAPE])
def test_an_empty_heat_map_has_no_peaks(phantom: Phantom, shape: tuple[int, int, int]) -> None:
    a, b, c = (slice(0, n) for n in shape)
    maps = np.zeros((2, *shape), np.float32)
    assert _find(phantom, MapPrediction(probability=maps, box=(a, b, c), seconds={}), "heatmap") == ([], 0)


def test_peaks_beyond_the_limit_are_counted(phantom: Phantom) -> None:
    values = {(k, 10, 20): 0.6 + k / 100 for k in (1, 4, 7, 10)}
    marks, dropped = _peaks(phantom, values, maximum_count=3)
    assert ([mark.key_slice for mark in marks], dropped) == ([10, 7, 4], 1)


def test_of_a_random_map_the_peaks_are_those_of_a_plain_search(phantom: Phantom) -> None:
    random = np.random.default_rng(5)
    probability: NDArray[np.float32] = np.round(random.random(SHAPE, np.float32) ** 4, 2)
    prediction = MapPrediction(
        probability=np.stack([probability, np.zeros_like(probability)]),
        box=(slice(0, 12), slice(0, 30), slice(0, 40)),
        seconds={},
    )
    marks, _ = _find(phantom, prediction, "heatmap", merge_mm=7, score_threshold=0.8, maximum_count=1000)
    left = sorted(
        ((-float(probability[index]), index) for index in map(tuple, np.argwhere(probability >= np.float32(0.8)))),
    )
    for mark in marks:
        index = tuple(int(value) for value in mark.low)
        around = probability[tuple(slice(max(value - 1, 0), value + 2) for value in index)]
        assert probability[index] == around.max() == np.float32(mark.probability)
    for one in marks:
        for other in marks[one.number :]:
            assert np.linalg.norm(np.subtract(one.low, other.low) * SPACING) >= 7
    # Nothing is left out: whatever is high lies on the slope of a peak, or near one that is at least as high.
    for value, index in left:
        around = probability[tuple(slice(max(part - 1, 0), part + 2) for part in index)]
        better = [mark for mark in marks if mark.probability >= -value]
        near = [mark for mark in better if np.linalg.norm(np.subtract(mark.low, index) * SPACING) < 7 + 3]
        assert near or around.max() > -value


# --- Boxes and centres ----------------------------------------------------------------------------------------------


def _box(low: Point, high: Point, score: float, channel: int = 0) -> Candidate:
    return Candidate(channel=channel, score=score, low=low, high=high)


def _boxes(phantom: Phantom, *candidates: Candidate, **rules: Any) -> tuple[list[Mark], int]:
    return _find(phantom, BoxPrediction(candidates=candidates, seconds={}), "detection", **rules)


def test_a_box_is_measured_where_it_lies(phantom: Phantom) -> None:
    """Slices 1.5 to 5.5, rows 7.5 to 19.5, columns 9.5 to 14.5: 12 x 6 x 10 mm."""
    ((mark,), dropped) = _boxes(phantom, _box((1.5, 7.5, 9.5), (5.5, 19.5, 14.5), 0.8))
    assert dropped == 0
    assert mark.size_mm == pytest.approx((12, 6, 10))
    assert mark.centre_lps_mm == pytest.approx((-10 + 2 * 12, 20 + 13.5 / 2, 100 + 3 * 3.5))
    assert (mark.low, mark.high) == ((1.5, 7.5, 9.5), (5.5, 19.5, 14.5))
    assert mark.key_slice == 4, "of two in the middle the upper"
    assert mark.tracking_uid == "0 at 14 26.75 110.5"


def test_boxes_of_a_class_that_share_more_than_the_rule_are_one(phantom: Phantom) -> None:
    """10 of 20 columns shared: a third of the union."""
    better, worse = _box((2, 5, 5), (4, 15, 20), 0.9), _box((2, 5, 12.5), (4, 15, 27.5), 0.8)
    assert [m.low for m in _boxes(phantom, worse, better, merge_overlap=0.33)[0]] == [better.low]
    assert len(_boxes(phantom, worse, better, merge_overlap=0.34)[0]) == 2
    other = _box(worse.low, worse.high, 0.8, channel=1)
    assert len(_boxes(phantom, other, better, merge_overlap=0.33)[0]) == 2, "another class is another thing"


def test_boxes_on_a_single_slice_merge_on_it_and_not_across(phantom: Phantom) -> None:
    """A network of single slices gives boxes without depth; their volume would be nothing."""
    one, same, next_slice = (
        _box((4, 5, 5), (4, 15, 15), 0.9), _box((4, 5, 6), (4, 15, 16), 0.8), _box((5, 5, 5), (5, 15, 15), 0.7)
    )  # fmt: skip
    marks, _ = _boxes(phantom, one, same, next_slice, merge_overlap=0.3)
    assert [mark.low for mark in marks] == [one.low, next_slice.low]
    assert marks[0].size_mm == pytest.approx((0, 5, 20))


def test_a_box_within_a_much_larger_one_is_another_thing(phantom: Phantom) -> None:
    inner, outer = _box((4, 10, 15), (6, 14, 18), 0.9), _box((1, 2, 5), (10, 25, 30), 0.8)
    assert len(_boxes(phantom, inner, outer)[0]) == 2


def test_centres_nearer_than_the_rule_are_one(phantom: Phantom) -> None:
    """Two columns apart are 4 mm, two rows 1 mm, and one slice 3 mm."""
    centres = [(4.0, 10.0, 20.0), (4.0, 10.0, 22.0), (4.0, 12.0, 20.0), (5.0, 10.0, 20.0)]
    candidates = [_box(place, place, 0.9 - 0.1 * n) for n, place in enumerate(centres)]
    marks, _ = _boxes(phantom, *candidates, merge_mm=3.5)
    assert [mark.low for mark in marks] == centres[:2]
    assert all(mark.size_mm is None for mark in marks)


@pytest.mark.parametrize(
    ("drops", "keeps"),
    [
        ({"score_threshold": 0.81}, {"score_threshold": 0.8}),
        ({"minimum_diameter_mm": 9.34}, {"minimum_diameter_mm": 9.33}),  # (12 + 6 + 10) / 3
        ({"maximum_diameter_mm": 9.33}, {"maximum_diameter_mm": 9.34}),
    ],
)
def test_a_rule_drops_the_boxes_that_it_says(phantom: Phantom, drops: dict[str, Any], keeps: dict[str, Any]) -> None:
    box = _box((1.5, 7.5, 9.5), (5.5, 19.5, 14.5), 0.8)
    assert _boxes(phantom, box, **drops) == ([], 0)
    assert len(_boxes(phantom, box, **keeps)[0]) == 1


def test_the_mean_edge_of_a_box_on_a_single_slice_is_that_of_its_rectangle(phantom: Phantom) -> None:
    flat = _box((4, 5, 5), (4, 15, 10), 0.8)  # 5 x 10 mm
    assert _boxes(phantom, flat, minimum_diameter_mm=7.4)[0]
    assert not _boxes(phantom, flat, minimum_diameter_mm=7.6)[0]


def test_points_have_no_size_that_a_rule_could_drop(phantom: Phantom) -> None:
    assert _boxes(phantom, _box((4, 5, 5), (4, 5, 5), 0.8), minimum_diameter_mm=4)[0]


def test_a_box_ends_with_the_image_and_one_beyond_it_is_nothing(phantom: Phantom) -> None:
    across, beyond = _box((-3, 18, 33), (5, 40, 45), 0.9), _box((2, 5, 38), (4, 9, 46), 0.8)
    ((mark,), dropped) = _boxes(phantom, across, beyond)
    assert (mark.low, mark.high) == ((-0.5, 18.0, 33.0), (5.0, 29.5, 39.5)), "to the edge of the outermost voxels"
    assert dropped == 0
    assert mark.key_slice == 2
    assert mark.size_mm == pytest.approx((16.5, 5.75, 13.0))


def test_the_key_slice_is_one_of_the_images(phantom: Phantom) -> None:
    marks, _ = _boxes(phantom, _box((-0.5, 5, 5), (-0.5, 5, 5), 0.9), _box((11.5, 5, 5), (11.5, 5, 5), 0.8))
    assert [mark.key_slice for mark in marks] == [0, 11]


def test_a_candidate_of_a_class_that_the_model_does_not_name_is_left_out(phantom: Phantom) -> None:
    assert _boxes(phantom, _box((1, 5, 5), (3, 9, 9), 0.9, channel=2)) == ([], 0)


def test_boxes_beyond_the_limit_are_counted_after_merging(phantom: Phantom) -> None:
    apart = [_box((4, 2 + 8 * n, 5), (6, 6 + 8 * n, 9), 0.6 + n / 10) for n in range(3)]
    marks, dropped = _boxes(phantom, *apart, *apart, maximum_count=2)
    assert ([mark.low[1] for mark in marks], dropped) == ([18, 10], 1)


def test_thousands_of_candidates_leave_what_pairwise_merging_leaves(phantom: Phantom) -> None:
    random = np.random.default_rng(7)
    low = random.random((300, 3)) * (8, 20, 30)
    high = low + random.random((300, 3)) * (4, 9, 9)
    candidates = [
        _box((*map(float, a),), (*map(float, b),), float(score))  # type: ignore[arg-type]
        for a, b, score in zip(low, high, random.random(300), strict=True)
    ]
    marks, _ = _boxes(phantom, *candidates, maximum_count=1000, merge_overlap=0.1, score_threshold=0.01)
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: -c.score):
        if candidate.score >= 0.01 and all(_union(candidate, better) <= 0.1 for better in kept):
            kept.append(candidate)
    assert len(marks) < 300
    assert [mark.probability for mark in marks] == [candidate.score for candidate in kept]


def _union(one: Candidate, other: Candidate) -> float:
    """Shared part of the union of two boxes, by hand."""
    shared, volumes = 1.0, [1.0, 1.0]
    for axis, mm in enumerate(SPACING):
        shared *= max(min(one.high[axis], other.high[axis]) - max(one.low[axis], other.low[axis]), 0) * mm
        for n, box in enumerate((one, other)):
            volumes[n] *= (box.high[axis] - box.low[axis]) * mm
    return shared / (sum(volumes) - shared)
