"""Where windows lie: on the source's own voxels, over whole images, over single slices and their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from highdicom import PatientOrientationValuesBiped as Direction
from pydantic import ValidationError

from service.analysis.axes import Axes
from service.analysis.layout import Map
from service.analysis.resample import Grid, whole
from service.analysis.windows import Windows
from service.stage import Stage
from service.types import Array

AS_STORED = (Direction.H, Direction.P, Direction.L)  # axial slices from the feet on, supine


def _windows(
    image: Array, window: Sequence[int], *, spacing: tuple[float, float, float] = (3.0, 0.7, 0.9), **more: Any
) -> Windows:
    region = more.pop("region", None)
    stage = Stage.model_validate(
        {
            "name": "s",
            "spacing_mm": (0, 0, 0),
            "orientation": "SPL",
            "input": {"name": "in", "shape": window, "channels": more.pop("channels", 1)},
            "output": {"name": "out", "shape": more.pop("out", window)},
            "intensity": {"outside": -1.0},
            **more,
        }
    )
    a, b, c = image.shape
    grid = Grid(shape=(a, b, c), spacing_mm=spacing)
    maps = {"region": region} if region else {}
    return Windows(array=image, grid=grid, stage=stage, axes=Axes.of(AS_STORED, stage.orientation), maps=maps)


def _noise(*shape: int) -> Array:
    return np.random.default_rng(3).uniform(0, 1, shape).astype(np.float32)


# --- The source's own voxels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(5, 6, 7), (4, 4, 4), (6, 9, 8), (8, 7, 10)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_a_spacing_of_0_is_the_sources_own_voxels_and_none_between(window: tuple[int, ...], overlap: float) -> None:
    image = _noise(5, 6, 7)
    windows = _windows(image, window, overlap=overlap)
    seen = np.zeros(image.shape, int)
    for index, patch in enumerate(windows):
        inside = patch[0] > -0.5
        box = windows.layout.answered_box(index)
        first = np.round(np.array(windows.layout.grid.start_mm) / (3.0, 0.7, 0.9)).astype(int)
        places = np.argwhere(inside) + [axis.start for axis in box] + first
        np.testing.assert_allclose(patch[0][inside], image[tuple(places.T)], atol=1e-6)
        seen[tuple(places.T)] += 1
    assert seen.all()


def test_an_axis_may_have_its_own_spacing_while_the_others_are_given() -> None:
    windows = _windows(_noise(5, 20, 20), (1, 8, 8), spacing_mm=(0, 1.4, 1.8))
    assert windows.layout.grid.spacing_mm == (3.0, 1.4, 1.8)
    assert windows.layout.grid.shape == (5, 16, 16)
    assert windows.layout.grid.start_mm[0] == pytest.approx(0.0)


def test_a_region_on_another_grid_does_not_move_the_sources_own_voxels() -> None:
    image = _noise(9, 9, 9)
    mask = np.zeros((4, 4, 4), bool)
    mask[1:3, 1:3, 1:3] = True
    region = Map(
        grid=Grid(shape=(4, 4, 4), spacing_mm=(2.3, 2.3, 2.3), start_mm=(0.4,) * 3), mask=mask, probability=None
    )
    windows = _windows(image, (4, 4, 4), spacing=(1.0, 1.0, 1.0), region=region, within={"stage": "region"})
    for patch in windows:
        assert np.isin(patch.round(5), np.append(image.round(5), np.float32(-1.0))).all()


# --- The whole image in one window ----------------------------------------------------------------------------------


def test_stretched_the_whole_image_fills_one_window() -> None:
    windows = _windows(np.ones((12, 40, 30), np.float32), (8, 16, 10), fit="stretch")
    (patch,) = windows
    np.testing.assert_allclose(patch, 1.0, atol=1e-5)
    low, high = windows.layout.grid.edges(whole((8, 16, 10)))
    np.testing.assert_allclose(low, (-1.5, -0.35, -0.45))
    np.testing.assert_allclose(high, (34.5, 27.65, 26.55))


def test_stretched_to_half_each_voxel_is_the_mean_of_two() -> None:
    image = _noise(4, 8, 6)
    (patch,) = _windows(image, (4, 4, 3), fit="stretch")
    np.testing.assert_allclose(patch[0], image.reshape(4, 4, 2, 3, 2).mean(axis=(2, 4)), atol=1e-5)


@pytest.mark.parametrize(
    ("spacing_mm", "expected"),
    [((0, 0, 0), (3.0 * 20 / 8, 0.7 * 20 / 8, 0.9 * 20 / 8)), ((3.0, 3.0, 3.0), (18 / 8,) * 3)],
)
def test_padded_the_spacings_keep_their_ratio_and_the_rest_is_outside(
    spacing_mm: tuple[float, float, float], expected: tuple[float, ...]
) -> None:
    """In voxels where they are the source's own, in mm where they are given."""
    image = np.ones((6, 20, 10), np.float32)  # 18 x 14 x 9 mm
    windows = _windows(image, (8, 8, 8), fit="pad", spacing_mm=spacing_mm)
    (patch,) = windows
    spacing = np.array(windows.layout.grid.spacing_mm)
    np.testing.assert_allclose(spacing, expected)
    assert patch[0].max() == pytest.approx(1.0)
    inside = np.abs(patch[0] + 1) > 1e-4
    for axis in range(3):
        along = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
        assert along[0] == 7 - along[-1], "centred"
        assert len(along) == pytest.approx(image.shape[axis] * (3.0, 0.7, 0.9)[axis] / spacing[axis], abs=2)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_of_a_network_of_slices_each_slice_fits_one_window(fit: str) -> None:
    image = np.ones((5, 40, 30), np.float32) * np.arange(5, dtype=np.float32)[:, None, None]
    windows = _windows(image, (20, 24), fit=fit, spacing=(3.0, 0.5, 0.5))
    patches = list(windows)
    assert [patch.shape for patch in patches] == [(1, 20, 24)] * 5
    assert [float(patch[0, 10, 12]) for patch in patches] == pytest.approx([0, 1, 2, 3, 4])
    width = int((patches[1][0, 10] > 0.5).sum())
    assert width == {"stretch": 24, "pad": 14}[fit], "pad: 15 voxels, of which each end holds half a one"


def test_an_output_that_leaves_out_the_rim_of_a_whole_image_is_refused() -> None:
    with pytest.raises(ValidationError, match="leaves out the rim"):
        _windows(_noise(6, 6, 6), (6, 6, 6), out=(4, 4, 4), fit="stretch")


# --- Single slices --------------------------------------------------------------------------------------------------


def test_copies_of_a_slice_stand_in_every_channel() -> None:
    image = _noise(3, 8, 8)
    for index, patch in enumerate(_windows(image, (8, 8), channels=3)):
        assert patch.shape == (3, 8, 8)
        np.testing.assert_allclose(patch, np.broadcast_to(image[index], (3, 8, 8)), atol=1e-6)


@pytest.mark.parametrize("orientation", ["SPL", "IPL"])
def test_neighbours_stand_about_the_slice_that_is_asked_about_and_end_with_the_image(orientation: str) -> None:
    image = np.ones((4, 8, 8), np.float32) * np.arange(4, dtype=np.float32)[:, None, None]
    patches = list(_windows(image, (8, 8), channels=5, channels_hold="neighbours", orientation=orientation))
    seen = [patch[:, 3, 3].round(4).tolist() for patch in patches]
    expected = [[-1, -1, 0, 1, 2], [-1, 0, 1, 2, 3], [0, 1, 2, 3, -1], [1, 2, 3, -1, -1]]
    assert seen == (expected if orientation == "SPL" else [row[::-1] for row in expected])


def test_slices_that_touch_no_region_are_not_asked_about() -> None:
    mask = np.zeros((6, 8, 8), bool)
    mask[2, 1:3, 1:3] = mask[4, 6, 6] = True
    region = Map(grid=Grid(shape=(6, 8, 8), spacing_mm=(3.0, 0.7, 0.9)), mask=mask, probability=None)
    for fit in ("no", "stretch"):
        image = np.ones((6, 8, 8), np.float32) * np.arange(6, dtype=np.float32)[:, None, None]
        windows = _windows(image, (8, 8), region=region, within={"stage": "region"}, fit=fit)
        assert [float(patch.max()) for patch in windows] == pytest.approx([2, 4])


def test_windows_of_a_slice_are_cut_side_by_side() -> None:
    image = _noise(2, 16, 8)
    patches = list(_windows(image, (8, 8)))
    assert len(patches) == 4
    np.testing.assert_allclose(patches[1][0], image[0, 8:], atol=1e-6)
