"""MONAI's intensity transforms, put together, give the network the values that MONAI gives it.

The right-hand sides are MONAI's formulas, written out by hand on the same image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.analysis.intensity import Scaling
from service.imports.bundle import read_plan
from service.imports.refusal import CannotImport
from tests.bundles import with_intensities

Array = NDArray[np.float32]


def _image() -> Array:
    generator = np.random.default_rng(3)
    image = generator.normal(60, 300, (6, 9, 7)).astype(np.float32)
    image[:2] = 0  # an image with a background of 0
    return image


def _range(x: Array, a: float, b: float, low: float, high: float) -> Array:
    return np.asarray((x - a) / (b - a) * (high - low) + low, np.float32)


def _percentiles(x: Array, lower: float, upper: float, low: float, high: float) -> Array:
    a, b = np.percentile(x, (lower, upper))
    return np.clip(_range(x, float(a), float(b), low, high), low, high)


def _nonzero(x: Array) -> Array:
    result = x.copy()
    result[x != 0] = (x[x != 0] - x[x != 0].mean()) / x[x != 0].std()
    return result


def T(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": name, **arguments}


RANGE = T("ScaleIntensityRanged", a_min=-57, a_max=164, b_min=0, b_max=1, clip=True)
SCALE = T("ScaleIntensityd", minv=-1.0, maxv=1.0)
STANDARD = T("NormalizeIntensityd")
CASES: list[tuple[list[dict[str, Any]], Any]] = [
    ([RANGE], lambda x: np.clip(_range(x, -57, 164, 0, 1), 0, 1)),
    ([RANGE | {"clip": False}], lambda x: _range(x, -57, 164, 0, 1)),
    ([RANGE | {"b_min": None, "b_max": None, "clip": False}], lambda x: _range(x, -57, 164, 0, 1)),
    ([RANGE | {"b_min": 1, "b_max": -1, "clip": False}], lambda x: _range(x, -57, 164, 1, -1)),
    ([SCALE], lambda x: _range(x, x.min(), x.max(), -1, 1)),
    ([T("ScaleIntensityd")], lambda x: _range(x, x.min(), x.max(), 0, 1)),
    ([T("ScaleIntensityd", minv=None, maxv=None, factor=-0.5)], lambda x: x * 0.5),
    ([STANDARD], lambda x: (x - x.mean()) / x.std()),
    ([STANDARD | {"nonzero": True, "channel_wise": True}], _nonzero),
    ([STANDARD | {"nonzero": "True"}], _nonzero),
    ([STANDARD | {"subtrahend": 90.0, "divisor": 120.0}], lambda x: (x - 90) / 120),
    ([STANDARD | {"subtrahend": [90.0], "divisor": [120.0], "channel_wise": True}], lambda x: (x - 90) / 120),
    (
        [T("ScaleIntensityRangePercentilesd", lower=5, upper=95, b_min=-1, b_max=2, clip=True)],
        lambda x: _percentiles(x, 5, 95, -1, 2),
    ),
    (
        [T("ScaleIntensityRangePercentilesd", lower=5, upper=90, b_min=0, b_max=10, clip=True, relative=True)],
        lambda x: _percentiles(x, 5, 90, 0.5, 9),
    ),
    ([T("ClipIntensityPercentilesd", lower=2, upper=98)], lambda x: np.clip(x, *np.percentile(x, (2, 98)))),
    (
        [T("ClipIntensityPercentilesd", lower=2, upper=98), STANDARD],
        lambda x: (c := np.clip(x, *np.percentile(x, (2, 98)))) * 0 + (c - c.mean()) / c.std(),
    ),
    ([T("ThresholdIntensityd", threshold=-100, above=True, cval=-100)], lambda x: np.maximum(x, -100)),
    (
        [
            T("ThresholdIntensityd", threshold=-100, cval=-100),
            T("ThresholdIntensityd", threshold=250, above=False, cval=250),
        ],
        lambda x: np.clip(x, -100, 250),
    ),
    (
        [T("ShiftIntensityd", offset=1024), T("ScaleIntensityd", minv=None, maxv=None, factor=1)],
        lambda x: (x + 1024) * 2,
    ),
    ([RANGE, STANDARD], lambda x: (c := np.clip(x, -57, 164)) * 0 + (c - c.mean()) / c.std()),
    (
        [RANGE | {"b_min": 1, "b_max": 0, "clip": False}, T("ThresholdIntensityd", threshold=0.2, cval=0.2)],
        lambda x: np.maximum(_range(x, -57, 164, 1, 0), 0.2),
    ),
    (
        [RANGE | {"b_min": 1, "b_max": 0, "clip": False}, STANDARD],
        lambda x: ((y := _range(x, -57, 164, 1, 0)) - y.mean()) / y.std(),
    ),
    ([T("ScaleIntensityd"), STANDARD], lambda x: (x - x.mean()) / x.std()),
    ([STANDARD, SCALE], lambda x: _range(x, x.min(), x.max(), -1, 1)),
    (
        [RANGE | {"b_min": 1, "b_max": 0, "clip": False}, SCALE],
        lambda x: _range(y := _range(x, -57, 164, 1, 0), y.min(), y.max(), -1, 1),
    ),
    (
        [RANGE | {"a_min": -500, "a_max": 500, "b_min": -500, "b_max": 500}, RANGE],
        lambda x: np.clip(_range(x, -57, 164, 0, 1), 0, 1),
    ),
    (
        [T("monai.transforms.ScaleIntensityRangeD", **{k: v for k, v in RANGE.items() if k != "_target_"})],
        lambda x: np.clip(_range(x, -57, 164, 0, 1), 0, 1),
    ),
]


@pytest.mark.parametrize(("transforms", "by_hand"), CASES)
def test_the_network_sees_what_it_sees_in_MONAI(transforms: list[dict[str, Any]], by_hand: Any) -> None:
    plan = read_plan(with_intensities(*transforms), doing="testing")
    image = _image()
    expected = by_hand(image.astype(np.float64)).astype(np.float32)
    Scaling.measured(rule := plan.before.chain.intensity(outside=0.0), image).apply(image)
    np.testing.assert_allclose(image, expected, atol=2e-4, rtol=1e-4)
    assert rule.scale != 0


@pytest.mark.parametrize(
    ("transforms", "why"),
    [
        ([STANDARD | {"nonzero": True}, SCALE], "ScaleIntensityd .* left out of an earlier"),
        ([STANDARD | {"nonzero": True}, T("ShiftIntensityd", offset=1)], "values of 0, which were left out before"),
        ([RANGE, STANDARD | {"nonzero": True}], "nonzero: what is 0 there is another value"),
        ([STANDARD, T("ThresholdIntensityd", threshold=0.0)], "clips values that were normalised"),
        ([RANGE | {"clip": False}, T("ThresholdIntensityd", threshold=0.5, cval=0.0)], "only a clip"),
        ([STANDARD | {"subtrahend": 5.0}], "only both numbers"),
        ([T("ScaleIntensityRangePercentilesd", lower=1, upper=99, b_min=0, b_max=1)], "clip is not true"),
        (
            [RANGE, T("ScaleIntensityRangePercentilesd", lower=1, upper=99, b_min=0, b_max=1, clip=True)],
            "percentiles of",
        ),
        ([RANGE | {"b_min": 0, "b_max": 0}], "leave nothing"),
        ([RANGE | {"b_min": 1, "b_max": 0}], "1 to 0 is no range"),
        ([RANGE | {"a_max": -57}], "are the same"),
        ([RANGE | {"a_min": "@pixdim"}], r"a_min is \[2\.0, 2\.0, 2\.5\], not a number"),
        ([RANGE | {"clip": "False"}], "neither true nor false"),
        ([RANGE, RANGE | {"a_min": 5, "a_max": 6}], "clips away what an earlier clip kept"),
        ([RANGE | {"dtype": "$torch.float16"}], "only float32"),
    ],
)
def test_what_no_rule_here_says_is_refused(transforms: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(CannotImport, match=why):
        read_plan(with_intensities(*transforms), doing="testing")
