"""A map becomes lesions: each rule drops what it says, and each measurement is the one done by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray

from service.analysis.findings import find
from service.spec import FindingRules, ModelSpec
from service.types import Finding, Lesion, MapPrediction, Point, SourceVolume
from tests.phantoms import LESION_CLASS, NODULE_CLASS, Phantom, make

SHAPE = (12, 30, 40)
SPACING = (3.0, 0.5, 2.0)  # of slices, rows, columns: a voxel holds 3 mm3
ORIGIN = (-10.0, 20.0, 100.0)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    return make(tmp_path_factory.mktemp("series"))


def _source(phantom: Phantom) -> SourceVolume:
    """An axial volume whose values are 100 times the slice, plus the column."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = SPACING
    affine[:, 3] = (*ORIGIN, 1)
    slices, _, columns = np.indices(SHAPE, dtype=np.float32)
    return SourceVolume(
        series=phantom.source.series,
        volume=hd.Volume(100 * slices + columns, affine, coordinate_system="PATIENT"),
        ordered=phantom.source.ordered,
        notes=(),
    )


def _find(
    phantom: Phantom,
    probability: NDArray[np.float32],
    *,
    start: Sequence[int] = (0, 0, 0),
    threshold: float = 0.5,
    **rules: Any,
) -> tuple[tuple[Lesion, ...], int]:
    stage = phantom.making.model.spec.stages[0].model_copy(update={"threshold": threshold})
    spec: ModelSpec = phantom.making.model.spec.model_copy(
        update={"stages": (stage,), "findings": FindingRules(**rules)}
    )
    a, b, c = (slice(s, s + n) for s, n in zip(start, probability.shape, strict=True))
    prediction = MapPrediction(probability=probability[None], box=(a, b, c), seconds={})
    return _lesions(find(prediction, _source(phantom), spec, tracking_uid=_uid))


def _lesions(found: tuple[tuple[Finding, ...], int]) -> tuple[tuple[Lesion, ...], int]:
    findings, dropped = found
    return tuple(finding for finding in findings if isinstance(finding, Lesion)), dropped


def _uid(channel: int, place: Point | None) -> str:
    assert place is not None
    return f"{channel} at {place[0]:g} {place[1]:g} {place[2]:g}"


def _map(*parts: tuple[tuple[int, ...], float]) -> NDArray[np.float32]:
    """A map that is 0 but for blocks: (first slice, row, column, and the size along each), probability."""
    probability = np.zeros(SHAPE, np.float32)
    for (k, j, i, slices, rows, columns), value in parts:
        probability[k : k + slices, j : j + rows, i : i + columns] = value
    return probability


# --- Measured by hand -----------------------------------------------------------------------------------------------


def test_a_block_measures_what_a_ruler_says(phantom: Phantom) -> None:
    """3 slices, 8 rows, 4 columns from (2, 10, 20) on: 9 x 4 x 8 mm."""
    ((finding,), dropped) = _find(phantom, _map(((2, 10, 20, 3, 8, 4), 0.75)))
    assert dropped == 0
    assert finding.number == 1
    assert finding.probability == 0.75
    assert finding.volume_ml == pytest.approx(3 * 8 * 4 * 3 / 1000)
    # x = -10 + 2 (20 + 1.5), y = 20 + (10 + 3.5) / 2, z = 100 + 3 (2 + 1)
    np.testing.assert_allclose(finding.centroid_lps_mm, (33.0, 26.75, 109.0))
    np.testing.assert_allclose(finding.extent_lps_mm, [(30.0, 25.0, 106.0), (36.0, 28.5, 112.0)])
    assert finding.mean == pytest.approx(300 + 21.5)
    assert finding.box == (slice(2, 5), slice(10, 18), slice(20, 24))
    assert finding.mask.shape == (3, 8, 4)
    assert finding.mask.all()
    assert finding.key_slice == 2, "the first of the slices that are equal"
    assert finding.tracking_uid == "0 at 33 26.75 109"
    assert finding.kind == LESION_CLASS


def test_the_axes_of_a_cross_run_from_edge_to_edge(phantom: Phantom) -> None:
    """A row of 7 columns (14 mm) crossed by a column of 11 rows (5.5 mm), on slice 6 of three."""
    probability = _map(((5, 14, 19, 3, 1, 1), 0.9), ((6, 14, 16, 1, 1, 7), 0.9), ((6, 9, 19, 1, 11, 1), 0.9))
    ((finding,), _) = _find(phantom, probability)
    assert finding.key_slice == 6
    assert finding.long_axis_mm == pytest.approx(14.0)
    assert finding.short_axis_mm == pytest.approx(5.5)
    assert sorted(finding.long_axis) == [(6.0, 14.0, 15.5), (6.0, 14.0, 22.5)]
    assert sorted(finding.short_axis) == [(6.0, 8.5, 19.0), (6.0, 19.5, 19.0)]


def test_places_count_from_the_source_grid_not_from_the_maps_box(phantom: Phantom) -> None:
    whole = _map(((2, 10, 20, 3, 8, 4), 0.75))
    ((expected,), _) = _find(phantom, whole)
    ((found,), _) = _find(phantom, whole[1:8, 5:25, 18:30], start=(1, 5, 18))
    assert found.box == expected.box
    assert found.long_axis == expected.long_axis
    assert found.centroid_lps_mm == expected.centroid_lps_mm
    assert (found.key_slice, found.mean, found.volume_ml) == (expected.key_slice, expected.mean, expected.volume_ml)


def test_a_lone_voxel_at_the_last_corner_is_measured(phantom: Phantom) -> None:
    ((finding,), _) = _find(phantom, _map(((11, 29, 39, 1, 1, 1), 0.9)))
    assert finding.volume_ml == pytest.approx(0.003)
    np.testing.assert_allclose((finding.long_axis_mm, finding.short_axis_mm), (2.0, 0.5))
    assert finding.extent_lps_mm[0] == finding.extent_lps_mm[1] == finding.centroid_lps_mm


# --- What is one finding --------------------------------------------------------------------------------------------


def test_voxels_that_share_a_corner_belong_together(phantom: Phantom) -> None:
    touching = _map(((2, 2, 2, 2, 2, 2), 0.9), ((4, 4, 4, 2, 2, 2), 0.9))
    apart = _map(((2, 2, 2, 2, 2, 2), 0.9), ((4, 4, 5, 2, 2, 2), 0.9))
    assert [len(_find(phantom, it)[0]) for it in (touching, apart)] == [1, 2]


def test_a_neighbour_in_the_same_box_is_not_counted(phantom: Phantom) -> None:
    """A hook around a block: their boxes overlap, their voxels do not."""
    hook = _map(((4, 5, 5, 1, 9, 1), 0.9), ((4, 5, 5, 1, 1, 9), 0.9), ((4, 8, 8, 1, 3, 3), 0.8))
    hooked, block = _find(phantom, hook)[0]
    assert hooked.volume_ml == pytest.approx(17 * 3 / 1000)
    assert block.volume_ml == pytest.approx(9 * 3 / 1000)


def test_the_threshold_itself_does_not_belong(phantom: Phantom) -> None:
    probability = _map(((2, 2, 2, 1, 1, 1), 0.25), ((2, 2, 3, 1, 1, 1), 0.5))
    ((finding,), _) = _find(phantom, probability, threshold=0.25)
    assert int(finding.mask.sum()) == 1


@pytest.mark.parametrize("shape", [(0, 0, 0), (1, 1, 1), SHAPE])
def test_an_empty_map_has_no_findings(shape: tuple[int, int, int], phantom: Phantom) -> None:
    assert _find(phantom, np.zeros(shape, np.float32)) == ((), 0)


# --- What is dropped ------------------------------------------------------------------------------------------------

BLOCK = (2, 10, 20, 2, 12, 3)  # 72 voxels of 3 mm3: 0.216 ml, a sphere of 7.445 mm
BALL_MM = (6 * 216 / np.pi) ** (1 / 3)
RULES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("too improbable", {"score_threshold": 0.81}, {"score_threshold": 0.8}),
    ("too little", {"minimum_volume_ml": 0.217}, {"minimum_volume_ml": 0.215}),
    ("too small across", {"minimum_diameter_mm": BALL_MM + 0.01}, {"minimum_diameter_mm": BALL_MM - 0.01}),
    ("too large across", {"maximum_diameter_mm": BALL_MM - 0.01}, {"maximum_diameter_mm": BALL_MM + 0.01}),
    ("on too few slices", {"minimum_slices": 3}, {"minimum_slices": 2}),
    # The greatest ball of voxels inside reaches 3.0 mm from a centre to the next one outside: 6 mm of the 7.445.
    ("too thin", {"minimum_compactness": 0.82}, {"minimum_compactness": 0.79}),
]


@pytest.mark.parametrize(("name", "drops", "keeps"), RULES, ids=[rule[0] for rule in RULES])
def test_a_rule_drops_what_it_says(name: str, drops: dict[str, Any], keeps: dict[str, Any], phantom: Phantom) -> None:
    probability = _map((BLOCK, 0.8), ((2, 10, 20, 1, 1, 1), 0.8))
    assert _find(phantom, probability, **drops) == ((), 0)
    assert len(_find(phantom, probability, **keeps)[0]) == 1


def test_one_certain_voxel_makes_a_component_certain(phantom: Phantom) -> None:
    probability = _map((BLOCK, 0.6), ((2, 12, 21, 1, 1, 1), 0.95))
    ((finding,), _) = _find(phantom, probability, score_threshold=0.9)
    assert finding.probability == pytest.approx(0.95)
    assert int(finding.mask.sum()) == 72, "the component is measured at the threshold, not at the score"


# --- Which come first -----------------------------------------------------------------------------------------------


def test_the_most_probable_come_first_then_the_larger_then_the_lower(phantom: Phantom) -> None:
    probability = _map(
        ((8, 2, 2, 1, 2, 2), 0.7), ((1, 2, 30, 1, 2, 2), 0.7), ((4, 2, 2, 1, 5, 5), 0.7), ((1, 2, 2, 1, 1, 1), 0.9)
    )  # fmt: skip
    findings, _ = _find(phantom, probability)
    assert [(round(f.probability, 1), int(f.mask.sum()), f.box[0].start) for f in findings] == [
        (0.9, 1, 1), (0.7, 25, 4), (0.7, 4, 1), (0.7, 4, 8)
    ]  # fmt: skip
    assert [f.number for f in findings] == [1, 2, 3, 4]


def test_what_is_beyond_the_greatest_count_is_counted(phantom: Phantom) -> None:
    probability = _map(*[((1 + 2 * n, 2, 2, 1, 2, 2), 0.6 + 0.05 * n) for n in range(5)])
    findings, dropped = _find(phantom, probability, maximum_count=2)
    assert [f.box[0].start for f in findings] == [9, 7]
    assert dropped == 3


def test_what_a_rule_dropped_is_not_counted(phantom: Phantom) -> None:
    probability = _map(((1, 2, 2, 1, 4, 4), 0.7), ((4, 2, 2, 1, 4, 4), 0.6), ((7, 2, 2, 1, 1, 1), 0.9))
    findings, dropped = _find(phantom, probability, maximum_count=1, minimum_volume_ml=0.01)
    assert (len(findings), dropped) == (1, 1)


# --- Names, and several classes -------------------------------------------------------------------------------------


def _of_two(phantom: Phantom, *maps: NDArray[np.float32], **rules: Any) -> tuple[tuple[Lesion, ...], int]:
    """What is found in the maps of two classes, of which the second one's is channel 1."""
    spec = phantom.making.model.spec.model_copy(
        update={"classes": (LESION_CLASS, NODULE_CLASS), "findings": FindingRules(**rules)}
    )
    prediction = MapPrediction(probability=np.stack(maps), box=(slice(0, 12), slice(0, 30), slice(0, 40)), seconds={})
    return _lesions(find(prediction, _source(phantom), spec, tracking_uid=_uid))


def test_a_tracking_uid_is_asked_for_by_the_class_and_the_centroid(phantom: Phantom) -> None:
    ((one, other), _) = _of_two(phantom, _map(((1, 2, 2, 1, 1, 1), 0.7)), _map(((1, 2, 2, 1, 1, 1), 0.6)))
    x, y, z = one.centroid_lps_mm
    assert one.tracking_uid == f"0 at {x:g} {y:g} {z:g}"
    assert other.tracking_uid == f"1 at {x:g} {y:g} {z:g}"


def test_a_ball_within_a_shell_has_a_tracking_uid_of_its_own(phantom: Phantom) -> None:
    shell = _map(((4, 4, 4, 5, 5, 5), 0.6))
    shell[5:8, 5:8, 5:8] = 0
    shell[6, 6, 6] = 0.9
    ball, around = _find(phantom, shell)[0]
    assert ball.centroid_lps_mm == pytest.approx(around.centroid_lps_mm)
    assert (ball.tracking_uid, around.tracking_uid) == ("0 at 2 23 118", "0 at 2 23 119")


def test_classes_are_found_each_by_itself_and_numbered_together(phantom: Phantom) -> None:
    """Blocks of two classes that overlap stay two; the numbers run over all classes by probability."""
    one = _map(((2, 5, 5, 2, 4, 4), 0.7), ((8, 5, 5, 1, 2, 2), 0.95))
    other = _map(((2, 7, 7, 2, 4, 4), 0.8))
    findings, dropped = _of_two(phantom, one, other)
    assert dropped == 0
    assert [(f.number, f.kind.channel, round(f.probability, 2)) for f in findings] == [
        (1, 0, 0.95),
        (2, 1, 0.8),
        (3, 0, 0.7),
    ]
    assert [int(f.mask.sum()) for f in findings] == [4, 32, 32]


def test_the_least_probable_of_any_class_are_dropped(phantom: Phantom) -> None:
    one = _map(((2, 5, 5, 2, 4, 4), 0.7))
    other = _map(((2, 7, 7, 2, 4, 4), 0.8), ((8, 7, 7, 2, 4, 4), 0.6))
    findings, dropped = _of_two(phantom, one, other, maximum_count=2)
    assert ([f.kind.channel for f in findings], dropped) == ([1, 0], 1)
