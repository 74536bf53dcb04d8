"""The network sees the numbers that the intensity rule says, and a rule's statistics are of the image alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.analysis.axes import Axes
from service.analysis.layout import Map
from service.analysis.resample import Grid
from service.analysis.windows import Windows
from service.stage import Stage
from service.types import Array

UNTURNED = Axes(order=(0, 1, 2), flip=(False, False, False))
SHAPE = (6, 8, 10)


def _image() -> Array:
    image = np.random.default_rng(5).normal(300, 120, SHAPE).astype(np.float32)
    image[:, :3] = 0.0
    return image


def _patches(
    image: Array, intensity: dict[str, Any], *, window: tuple[int, int, int] = SHAPE, region: Map | None = None,
    **more: Any,
) -> list[Array]:  # fmt: skip
    stage = Stage.model_validate(
        {
            "name": "s",
            "spacing_mm": (0, 0, 0),
            "input": {"name": "in", "shape": window, "channels": more.pop("channels", 1)},
            "output": {"name": "out", "shape": window},
            "intensity": {"outside": 0.0, **intensity},
            **more,
        }
    )
    a, b, c = image.shape
    grid = Grid(shape=(a, b, c), spacing_mm=(3.0, 0.7, 0.9))
    maps = {"region": region} if region else {}
    return list(Windows(array=image, grid=grid, stage=stage, axes=UNTURNED, maps=maps))


@pytest.mark.parametrize("over", ["volume", "window"])
def test_a_z_score_has_mean_0_and_deviation_1(over: str) -> None:
    (patch,) = _patches(_image(), {"normalise": "z-score", "over": over})
    expected = (_image() - _image().mean()) / _image().std()
    np.testing.assert_allclose(patch[0], expected, atol=1e-5)


def test_a_range_is_0_to_1_of_what_is_clipped() -> None:
    (patch,) = _patches(_image(), {"normalise": "range", "clip": (100.0, 400.0)})
    np.testing.assert_allclose(patch[0], (np.clip(_image(), 100, 400) - 100) / 300, atol=1e-6)


def test_percentiles_clip() -> None:
    (patch,) = _patches(_image(), {"percentiles": (10, 95)})
    np.testing.assert_allclose(patch[0], np.clip(_image(), *np.percentile(_image(), (10, 95))), atol=1e-4)


@pytest.mark.parametrize("outside", [0.0, -1000.0])
@pytest.mark.parametrize("over", ["volume", "window"])
def test_zeros_are_left_out_and_stay_zero(over: str, outside: float) -> None:
    """Where `outside` is not 0, resampling leaves a rounding error of it on a zero: it is one all the same."""
    rule = {"percentiles": (5, 95), "normalise": "z-score", "nonzero": True, "over": over, "outside": outside}
    (patch,) = _patches(_image(), rule)
    counted = _image()[_image() != 0]
    clipped = np.clip(counted, *np.percentile(counted, (5, 95)))
    expected = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(patch[0][_image() != 0], expected, atol=1e-4)
    assert not patch[0][_image() == 0].any()


def test_zeros_stay_zero_on_a_finer_grid_too() -> None:
    rule = {"normalise": "range", "nonzero": True, "outside": -1000.0}
    (patch,) = _patches(_image(), rule, window=(11, 16, 13), fit="stretch")
    assert not patch[0, 1:-1, 1:5, 1:-1].any(), "between zeros, away from the edge"
    assert patch[0, 1:-1, 6:, 1:-1].all()


def test_offset_and_scale_come_after_that_and_the_channels_own_numbers_last() -> None:
    rule = {"normalise": "range", "offset": 1.0, "scale": 10.0, "channel_mean": (1.0, 2.0), "channel_std": (4.0, 8.0)}
    (patch,) = _patches(_image(), rule, channels=2)
    expected = ((_image() - _image().min()) / np.ptp(_image()) + 1) * 10
    np.testing.assert_allclose(patch, [(expected - 1) / 4, (expected - 2) / 8], atol=1e-5)


def test_each_window_is_scaled_by_its_own_values_and_none_beyond_the_edge() -> None:
    image = np.concatenate([np.full((4, 4, 4), 7.0), np.linspace(0, 1, 3 * 16).reshape(3, 4, 4)]).astype(np.float32)
    rule = {"normalise": "range", "over": "window", "outside": -5.0}
    first, second = _patches(image, rule, window=(4, 4, 4))  # 8 voxels of 7: the last is beyond the edge
    assert not first.any(), "all the same: 0"
    np.testing.assert_allclose(second[0, :3].min(), 0.0, atol=1e-6)
    np.testing.assert_allclose(second[0, :3].max(), 1.0, atol=1e-6)
    np.testing.assert_allclose(second[0, 3], -5.0, atol=1e-5)


def test_the_volume_is_the_whole_one_though_a_region_is_looked_at() -> None:
    image = _image()
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 4:6, 4:6] = True
    region = Map(grid=Grid(shape=SHAPE, spacing_mm=(3.0, 0.7, 0.9)), mask=mask, probability=None)
    (patch,) = _patches(image, {"normalise": "z-score"}, window=(2, 2, 2), region=region, within={"stage": "region"})
    np.testing.assert_allclose(patch[0], ((image - image.mean()) / image.std())[2:4, 4:6, 4:6], atol=1e-5)


@pytest.mark.parametrize(
    "rule",
    [
        {"normalise": "range", "clip": (0.0, 1000.0)},
        {"normalise": "range", "over": "window"},
        {"channel_mean": (100.0,), "channel_std": (2.0,)},
    ],
)
def test_the_value_outside_a_region_is_the_networks_own_whatever_the_rule(rule: dict[str, Any]) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 4:6, 4:6] = True
    mask[2, 4, 4] = False
    region = Map(grid=Grid(shape=SHAPE, spacing_mm=(3.0, 0.7, 0.9)), mask=mask, probability=None)
    within = {"stage": "region", "outside": -7.0}
    (patch,) = _patches(_image(), rule, window=(2, 2, 2), region=region, within=within)
    assert patch[0, 0, 0, 0] == -7.0
    assert (patch[0].ravel()[1:] != -7.0).all()


@pytest.mark.parametrize("normalise", ["z-score", "range"])
@pytest.mark.parametrize("nonzero", [True, False])
def test_an_image_of_one_value_is_no_division_by_zero(normalise: str, nonzero: bool) -> None:
    for value in (0.0, 100.3):
        rule = {"normalise": normalise, "nonzero": nonzero, "percentiles": (1, 99)}
        (patch,) = _patches(np.full(SHAPE, value, np.float32), rule)
        np.testing.assert_allclose(patch, 0.0, atol=1e-3)
