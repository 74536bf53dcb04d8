"""The median by whole arrays is scipy's median, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from service.analysis import median as module
from service.analysis.median import median

SHAPES = [(1, 1, 1), (2, 1, 3), (1, 7, 5), (5, 7, 9), (3, 90, 130), (13, 33, 31), (45, 6, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("edge", [3, 4, 5])
def test_it_is_what_scipy_says(edge: int, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 2000)  # several pieces, so that their seams show
    random = np.random.default_rng(1)
    for values in (random.normal(0, 100, shape), random.integers(-3, 3, shape), random.integers(0, 2, shape)):
        image = values.astype(np.float32)
        expected = ndimage.median_filter(image, size=edge, mode="nearest")
        assert median(image, edge).tobytes() == expected.tobytes()


def test_the_network_finds_the_median_of_all_zeros_and_ones() -> None:
    """By the 0-1 principle it then does so of all numbers: 8000 cubes that ascend along two axes, each looked at."""
    steps, places, last = module._steps()
    ones = list(module._ones())
    cubes = max(one.bit_length() for one in ones)
    assert cubes == 20**3
    kept = [*ones, *[0] * (places - len(ones))]
    for step in steps:
        one, other = kept[step.one], kept[step.other]
        kept[step.result] = one | other if step.greater else one & other
    counts = [sum(one >> number & 1 for one in ones) for number in range(cubes)]
    assert [kept[last] >> number & 1 for number in range(cubes)] == [int(count >= 14) for count in counts]
    assert len(steps) < 150
