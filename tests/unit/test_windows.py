"""Windows cover what they should, each once at its place, and a network sees the neighbourhood it was made for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from highdicom import PatientOrientationValuesBiped as Direction
from numpy.typing import NDArray
from scipy import ndimage

from service.analysis.answers import Maps
from service.analysis.axes import Axes
from service.analysis.layout import Map
from service.analysis.resample import Grid, bounds, greatest, resample, whole
from service.analysis.windows import Windows
from service.stage import Stage

Array = NDArray[np.float32]
AS_STORED = (Direction.H, Direction.P, Direction.L)  # axial slices from the feet on, supine
UNTURNED = Axes(order=(0, 1, 2), flip=(False, False, False))
ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*axes)
]


def _stage(shape_in: tuple[int, int, int], shape_out: tuple[int, int, int], **more: Any) -> Stage:
    return Stage.model_validate(
        {
            "name": "s",
            "spacing_mm": (1.0, 1.0, 1.0),
            "input": {"name": "in", "shape": shape_in},
            "output": {"name": "out", "shape": shape_out, "channels": more.pop("channels", 1)},
            "intensity": {"clip": (-1e4, 1e4), "outside": 0.0, **more.pop("intensity", {})},
            **more,
        }
    )


def _windows(
    array: Array, stage: Stage, axes: Axes = UNTURNED, grid: Grid | None = None, region: Map | None = None
) -> Windows:
    grid = grid or Grid(shape=_shape(array), spacing_mm=(1.0, 1.0, 1.0))
    return Windows(array=array, grid=grid, stage=stage, axes=axes, maps={"region": region} if region else {})


def _middle(patch: Array, stage: Stage) -> Array:
    """What a network of valid convolutions that changes nothing answers."""
    assert stage.output
    reach = [(a - b) // 2 for a, b in zip(patch.shape[1:], stage.output.shape, strict=True)]
    a, b, c = (slice(r, r + n) for r, n in zip(reach, stage.output.shape, strict=True))
    return patch[:, a, b, c]


def _answered_by(windows: Windows, answers: Iterable[Array]) -> Map:
    """The one map of the stage's own channel: [slices, rows, columns]."""
    maps = Maps(windows, (windows.stage.channel,))
    for answer in answers:
        maps.take((answer,))
    found = maps.result()
    assert found.probability is not None
    (probability,) = found.probability
    return replace(found, probability=probability)


def _run(windows: Windows, stage: Stage) -> Map:
    return _answered_by(windows, (_middle(patch, stage) for patch in windows))


def _shape(array: NDArray[Any]) -> tuple[int, int, int]:
    return array.shape[0], array.shape[1], array.shape[2]


def _noise(shape: tuple[int, int, int], seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


# --- Cut and put together -------------------------------------------------------------------------------------------

CASES = {
    "one window, just fitting": ((8, 8, 8), (8, 8, 8), 0, 0.0),
    "one window, too large": ((5, 8, 3), (8, 8, 8), 2, 0.0),
    "several windows": ((16, 24, 8), (8, 8, 8), 2, 0.0),
    "several that do not fit": ((13, 22, 9), (8, 7, 5), 3, 0.0),
    "a third overlapping": ((13, 22, 9), (8, 6, 5), 2, 1 / 3),
    "nearly all overlapping": ((12, 11, 12), (8, 8, 8), 1, 0.75),
    "a voxel more than a window": ((9, 9, 9), (8, 8, 8), 0, 0.5),
}


@pytest.mark.parametrize("orientation", ["SPL", "RAS", "IRA"])
@pytest.mark.parametrize("case", CASES)
def test_a_network_that_changes_nothing_gives_the_image_back(case: str, orientation: str) -> None:
    shape, out, reach, overlap = CASES[case]
    axes = Axes.of(AS_STORED, orientation)
    turned = [out[k] for k in axes.order]
    stage = _stage(_triple([n + 2 * reach for n in turned]), _triple(turned), overlap=overlap, orientation=orientation)
    image = _noise(shape)
    windows = _windows(image, stage, axes)
    found = _run(windows, stage)
    assert found.probability is not None
    back = resample(found.probability, found.grid, Grid(shape=shape, spacing_mm=(1.0, 1.0, 1.0)), outside=0.0)
    if all((n - g) % 2 == 0 for n, g in zip(shape, found.grid.shape, strict=True)):
        np.testing.assert_allclose(back, image, atol=1e-5)  # voxel on voxel
    expected = resample(image, Grid(shape=shape, spacing_mm=(1.0, 1.0, 1.0)), found.grid, outside=0.0)
    np.testing.assert_allclose(found.probability, expected, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_every_voxel_of_the_image_is_answered(case: str) -> None:
    shape, out, reach, overlap = CASES[case]
    stage = _stage(_triple([n + 2 * reach for n in out]), out, overlap=overlap)
    grid = Grid(shape=shape, spacing_mm=(1.7, 0.6, 1.0))
    windows = _windows(_noise(shape), stage, grid=grid)
    found = _answered_by(windows, [np.ones((1, *out), np.float32)] * len(windows))
    assert found.probability is not None
    np.testing.assert_allclose(found.probability, 1.0, rtol=1e-6)
    low, high = found.grid.edges(whole(found.grid.shape))
    least, most = grid.edges(whole(shape))
    assert (low <= least + 2e-3).all()
    assert (high >= most - 2e-3).all()


def test_windows_that_overlap_are_averaged() -> None:
    stage = _stage((4, 4, 4), (4, 4, 4), overlap=0.5)
    windows = _windows(np.zeros((6, 4, 4), np.float32), stage)
    assert len(windows) == 2
    found = _answered_by(windows, [np.full((1, 4, 4, 4), value, np.float32) for value in (0.2, 0.6)])
    assert found.probability is not None
    np.testing.assert_allclose(found.probability[:, 0, 0], [0.2, 0.2, 0.4, 0.4, 0.6, 0.6], atol=1e-6)
    np.testing.assert_array_equal(found.mask[:, 0, 0], [0, 0, 0, 0, 1, 1])


def test_a_patch_holds_the_prepared_intensities_and_the_outside() -> None:
    intensity = {"clip": (-100.0, 100.0), "offset": 100.0, "scale": 0.005, "outside": -1000.0}
    stage = _stage((6, 4, 4), (4, 2, 2), intensity=intensity)
    image = np.full((4, 2, 2), 50.0, np.float32)
    image[0, 0, 0] = 3000.0
    (patch,) = _windows(image, stage)
    assert patch.shape == (1, 6, 4, 4)
    assert patch.dtype == np.float32
    assert patch.flags.c_contiguous
    assert patch[0, 1, 1, 1] == pytest.approx(1.0), "clipped to the greatest"
    assert patch[0, 2, 1, 1] == pytest.approx(0.75)
    rim = np.ones(patch.shape[1:], bool)
    rim[1:5, 1:3, 1:3] = False
    np.testing.assert_allclose(patch[0][rim], 0.0, atol=1e-6)


def test_a_filter_takes_a_lone_voxel_away_before_the_network_sees_it() -> None:
    image = np.zeros((12, 12, 12), np.float32)
    image[5, 5, 5] = 1000.0
    image[8:, :, :] = 10.0
    smooth = {"spacing_mm": (1.0, 1.0, 1.0), "median_voxels": 3}
    stage = _stage((12, 12, 12), (12, 12, 12), smooth=smooth)
    (patch,) = _windows(image, stage)
    assert patch[0, 5, 5, 5] == 0
    assert patch[0, 10, 6, 6] == 10


# --- Within an earlier stage ----------------------------------------------------------------------------------------


def _region(shape: tuple[int, int, int], *boxes: tuple[int, int]) -> Map:
    mask = np.zeros(shape, bool)
    for low, high in boxes:
        mask[low:high, low:high, low:high] = True
    return Map(grid=Grid(shape=shape, spacing_mm=(1.0, 1.0, 1.0)), mask=mask, probability=None)


SHAPE = (24, 24, 24)


@pytest.mark.parametrize("margin", [0.0, 1.0, 2.5])
def test_the_result_counts_inside_the_region_and_its_kept_margin_only(margin: float) -> None:
    region = _region(SHAPE, (8, 14))
    stage = _stage((10, 10, 10), (6, 6, 6), within={"stage": "region", "keep_margin_voxels": margin})
    windows = _windows(np.ones(SHAPE, np.float32), stage, region=region)
    found = _run(windows, stage)
    assert found.probability is not None
    on_source = resample(found.probability, found.grid, region.grid, outside=0.0)
    wanted = ndimage.distance_transform_edt(~region.mask) <= margin
    np.testing.assert_array_equal(on_source > 0.5, wanted)


def test_windows_that_touch_no_region_are_not_run() -> None:
    stage = _stage((6, 6, 6), (6, 6, 6), within={"stage": "region"})
    far_apart = _windows(np.ones(SHAPE, np.float32), stage, region=_region(SHAPE, (0, 6), (18, 24)))
    assert len(far_apart) == 2
    found = _run(far_apart, stage)
    assert int(found.mask.sum()) == 2 * 6**3


def test_an_empty_region_runs_nothing_and_finds_nothing() -> None:
    stage = _stage((10, 10, 10), (6, 6, 6), within={"stage": "region", "margin_voxels": 3.0, "outside": -0.5})
    windows = _windows(np.ones(SHAPE, np.float32), stage, region=_region(SHAPE))
    assert len(windows) == 0
    assert list(windows) == []
    found = _answered_by(windows, [])
    assert found.probability is not None
    assert not found.mask.any()
    assert not found.probability.any()


def test_without_an_outside_value_the_image_goes_on_around_the_region() -> None:
    stage = _stage((10, 10, 10), (6, 6, 6), within={"stage": "region"})
    (patch,) = _windows(np.full(SHAPE, 7.0, np.float32), stage, region=_region(SHAPE, (9, 15)))
    assert (patch == 7.0).all()


def test_with_an_outside_value_the_image_ends_at_the_dilated_regions_box() -> None:
    """Inside the dilated mask the image, in its box the outside value, beyond the box the padding of `intensity`."""
    region = _region(SHAPE, (10, 14))
    region.mask[13, 13, 13] = False  # a corner of the box that is not in the mask
    stage = _stage(
        (12, 12, 12), (4, 4, 4), within={"stage": "region", "margin_voxels": 1.0, "outside": -0.5},
        intensity={"clip": (-10.0, 10.0), "offset": 1.0, "scale": 0.5, "outside": -40.0},
    )  # fmt: skip
    patches = list(_windows(np.full(SHAPE, 7.0, np.float32), stage, region=region))
    patch = next(p for p in patches if p[0, 6, 6, 6] == 4.0)
    assert np.unique(patch).tolist() == [-4.5, -0.5, 4.0]  # (-10 + 1) / 2, the outside value, (7 + 1) / 2
    inside = bounds(patch[0] == 4.0)
    assert inside is not None
    edges = [axis.stop - axis.start for axis in inside]
    assert edges == [6, 6, 6], "4 voxels and one of margin on either side"
    box = patch[0][inside]
    assert int((box == 4.0).sum()) == 63 + 6 * 16 - 3 + 1, "the cube less its corner, and what is a voxel away"
    assert set(np.unique(box)) == {np.float32(-0.5), np.float32(4.0)}


# --- What becomes of the answer -------------------------------------------------------------------------------------


def _answered(answer: Array, **more: Any) -> Map:
    stage = _stage((4, 4, 4), (4, 4, 4), channels=answer.shape[0], **more)
    windows = _windows(np.zeros((4, 4, 4), np.float32), stage)
    return _answered_by(windows, [answer])


@pytest.mark.parametrize(
    ("activation", "channel", "expected"),
    [("none", 0, 0.0), ("none", 1, 1.0), ("sigmoid", 0, 0.268941), ("sigmoid", 1, 0.880797), ("softmax", 1, 0.952574)],
)
def test_the_activation_makes_a_probability_of_the_right_channel(
    activation: str, channel: int, expected: float
) -> None:
    answer = np.stack([np.full((4, 4, 4), value, np.float32) for value in (-1.0, 2.0)])
    found = _answered(answer, activation=activation, channel=channel)
    assert found.probability is not None
    np.testing.assert_allclose(found.probability, expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow")
def test_great_numbers_do_not_overflow() -> None:
    answer = np.stack([np.full((4, 4, 4), value, np.float32) for value in (-2000.0, 2000.0)])
    for activation in ("softmax", "sigmoid"):
        for channel, expected in ((0, 0.0), (1, 1.0)):
            found = _answered(answer, activation=activation, channel=channel)
            assert found.probability is not None
            np.testing.assert_allclose(found.probability, expected)


def test_a_voxel_belongs_to_the_mask_above_the_threshold() -> None:
    answer = np.full((1, 4, 4, 4), 0.25, np.float32)
    answer[0, 0, 0, 0] = 0.26
    assert int(_answered(answer, threshold=0.25).mask.sum()) == 1


def test_the_largest_part_is_kept_though_a_thread_joins_it_to_another() -> None:
    answer = np.zeros((1, 24, 24, 24), np.float32)
    answer[0, 2:10, 2:10, 2:10] = 0.9
    answer[0, 14:20, 14:20, 14:20] = 0.8
    answer[0, 9:15, 9, 9] = answer[0, 14, 9:15, 9] = answer[0, 14, 14, 9:15] = 0.7
    stage = _stage((24, 24, 24), (24, 24, 24), keep="largest")
    windows = _windows(np.zeros((24, 24, 24), np.float32), stage)
    found = _answered_by(windows, [answer])
    assert found.probability is not None
    assert found.mask[2:10, 2:10, 2:10].sum() >= 8**3 * 0.8
    assert not found.mask[14:20, 15:20, 15:20].any()
    assert not found.probability[14:20, 15:20, 15:20].any()
    whole_kept = _answered(np.zeros((1, 4, 4, 4), np.float32), keep="largest")
    assert not whole_kept.mask.any()


def test_the_connected_part_is_the_one_that_touches_at_a_corner_at_least() -> None:
    answer = np.zeros((1, 24, 24, 24), np.float32)
    answer[0, 2:8, 2:8, 2:8] = 0.9
    answer[0, 8, 8, 8] = 0.7  # touches it at a corner
    answer[0, 10:15, 10:15, 10:15] = 0.8
    found = _answered_by(
        _windows(np.zeros((24, 24, 24), np.float32), _stage((24, 24, 24), (24, 24, 24), keep="connected")), [answer]
    )
    assert found.probability is not None
    assert int(found.mask.sum()) == 6**3 + 1
    assert found.mask[8, 8, 8]
    assert not found.probability[..., 10:15, 10:15, 10:15].any()
    assert not _answered(np.zeros((1, 4, 4, 4), np.float32), keep="connected").mask.any()


# --- Axes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_array_turned_and_turned_back_is_the_same(orientation: str) -> None:
    axes = Axes.of(AS_STORED, orientation)
    array = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    turned = axes.turn(array)
    np.testing.assert_array_equal(axes.turn_back(turned), array)
    np.testing.assert_array_equal(axes.to_source(turned.shape), array.shape)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_each_axis_grows_where_its_letter_says(orientation: str) -> None:
    """A ramp to the patient's head, back and left, each on the source's axis of AS_STORED."""
    axes = Axes.of(AS_STORED, orientation)
    ramps = dict(zip("SPL", np.indices((3, 4, 5), dtype=np.float32), strict=True))
    opposite = {"S": "I", "P": "A", "L": "R"}
    for k, letter in enumerate(orientation):
        towards = letter if letter in ramps else next(a for a, b in opposite.items() if b == letter)
        slope = np.diff(axes.turn(ramps[towards]), axis=k)
        assert (slope == (1 if letter in ramps else -1)).all()


# --- Resampling -----------------------------------------------------------------------------------------------------


def test_a_grids_box_edges_and_crop_agree() -> None:
    grid = Grid(shape=(10, 12, 14), spacing_mm=(2.0, 0.7, 1.5), start_mm=(-3.0, 4.0, 0.5))
    box = (slice(2, 7), slice(0, 12), slice(5, 6))
    low, high = grid.edges(box)
    assert grid.box(low, high) == box
    np.testing.assert_allclose(grid.cropped(box).edges(whole((5, 12, 1))), (low, high))
    empty = grid.box(high + 100, high + 200)
    assert all(axis.start == axis.stop for axis in empty)


def test_bounds_are_the_smallest_box() -> None:
    mask = np.zeros((5, 6, 7), bool)
    assert bounds(mask) is None
    mask[1, 2, 3] = mask[3, 2, 6] = True
    assert bounds(mask) == (slice(1, 4), slice(2, 3), slice(3, 7))


@pytest.mark.parametrize("antialias", [True, False])
def test_resampling_to_the_same_grid_changes_nothing(antialias: bool) -> None:
    image = _noise((5, 6, 7))
    grid = Grid(shape=(5, 6, 7), spacing_mm=(2.5, 0.7, 0.7), start_mm=(1.0, 2.0, 3.0))
    np.testing.assert_allclose(resample(image, grid, grid, outside=-1000.0, antialias=antialias), image, atol=1e-3)


def test_a_ramp_stays_a_ramp_on_a_finer_grid() -> None:
    coarse = Grid(shape=(6, 6, 6), spacing_mm=(3.0, 2.0, 1.5))
    fine = Grid(shape=(11, 9, 8), spacing_mm=(1.1, 0.9, 0.8), start_mm=(1.0, 0.5, 0.3))
    k, j, i = np.indices(coarse.shape)
    ramp = (3.0 * k * 1 + 2.0 * j * 10 + 1.5 * i * 100).astype(np.float32)
    k, j, i = np.indices(fine.shape)
    expected = (1.0 + 1.1 * k) * 1 + (0.5 + 0.9 * j) * 10 + (0.3 + 0.8 * i) * 100
    np.testing.assert_allclose(resample(ramp, coarse, fine, outside=0.0), expected, rtol=1e-4)


def test_a_coarser_voxel_is_the_mean_of_what_it_holds() -> None:
    image = _noise((6, 6, 9))
    fine = Grid(shape=(6, 6, 9), spacing_mm=(1.0, 1.0, 1.0))
    coarse = Grid(shape=(3, 2, 3), spacing_mm=(2.0, 3.0, 3.0), start_mm=(0.5, 1.0, 1.0))
    expected = image.reshape(3, 2, 2, 3, 3, 3).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(resample(image, fine, coarse, outside=0.0), expected, atol=1e-5)


def test_beyond_the_edge_is_the_outside_value() -> None:
    grid = Grid(shape=(2, 2, 2), spacing_mm=(1.0, 1.0, 1.0))
    target = Grid(shape=(2, 2, 7), spacing_mm=(1.0, 1.0, 0.5), start_mm=(0.0, 0.0, -1.5))
    row = resample(np.full((2, 2, 2), 100.0, np.float32), grid, target, outside=-1000.0)[0, 0]
    np.testing.assert_allclose(row, [-1000, -1000, -450, 100, 100, 100, -450], atol=1e-3)


@pytest.mark.parametrize("noise", [0.0, 1e-13, -1e-13])
def test_the_greatest_neighbour_of_a_place_on_a_voxel_is_that_voxel(noise: float) -> None:
    """Rounding must not make a lesion a slice longer where the two grids' slices lie on each other."""
    image = np.zeros((9, 1, 1), np.float32)
    image[4] = 1.0
    grid = Grid(shape=(9, 1, 1), spacing_mm=(3.0, 1.0, 1.0))
    target = Grid(shape=(9, 1, 1), spacing_mm=(3.0 + noise, 1.0, 1.0), start_mm=(noise, 0.0, 0.0))
    np.testing.assert_array_equal(greatest(image, grid, target)[:, 0, 0], image[:, 0, 0])


def _triple(values: Any) -> tuple[int, int, int]:
    a, b, c = values
    return int(a), int(b), int(c)
