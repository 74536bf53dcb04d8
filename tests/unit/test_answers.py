"""What a network answers is averaged, ranked and placed as `Stage` says; what is no number is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from service.analysis.answers import Boxes, Maps, Scores
from service.analysis.axes import Axes
from service.analysis.layout import Map
from service.analysis.resample import Grid
from service.analysis.windows import Windows
from service.errors import ContractBroken
from service.stage import Stage
from service.types import Array, Candidate

UNTURNED = Axes(order=(0, 1, 2), flip=(False, False, False))


def _windows(
    shape: tuple[int, int, int], *, window: Sequence[int] = (4, 4, 4), region: Map | None = None,
    axes: Axes = UNTURNED, grid: Grid | None = None, **more: Any,
) -> Windows:  # fmt: skip
    stage = Stage.model_validate(
        {
            "name": "s",
            "spacing_mm": (1.0, 1.0, 1.0),
            "input": {"name": "in", "shape": window},
            "output": {"name": "out", "shape": window, "channels": more.pop("channels", 1)},
            "intensity": {"outside": 0.0},
            **more,
        }
    )
    grid = grid or Grid(shape=shape, spacing_mm=(1.0, 1.0, 1.0))
    maps = {"region": region} if region else {}
    return Windows(array=np.zeros(grid.shape, np.float32), grid=grid, stage=stage, axes=axes, maps=maps)


def _even(*values: float, window: Sequence[int] = (4, 4, 4)) -> Array:
    return np.stack([np.full(window, value, np.float32) for value in values])


def _maps(windows: Windows, channels: Sequence[int], answers: Sequence[Array], networks: int = 1) -> Array:
    maps = Maps(windows, channels, networks=networks)
    for answer in answers:
        maps.take((answer,))
    found = maps.result().probability
    assert found is not None
    return found


# --- Maps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(0,), (2, 0), (1, 2)])
def test_maps_come_in_the_order_that_was_asked_for(channels: tuple[int, ...]) -> None:
    found = _maps(_windows((4, 4, 4), channels=3), channels, [_even(0.1, 0.5, 0.9)])
    np.testing.assert_allclose(found[:, 0, 0, 0], [(0.1, 0.5, 0.9)[channel] for channel in channels])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [((0.7, 0.3), (0.7, 0.3)), ((0.5, 0.3, 0.2), (0.6, 0.4, 0.35)), ((0.4, 0.4, 0.2), (0.5, 0.5, 0.4))],
)
def test_a_class_that_excludes_others_is_as_far_up_as_it_is_ahead(
    answer: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    windows = _windows((4, 4, 4), channels=len(answer), labels="exclusive")
    found = _maps(windows, range(len(answer)), [_even(*answer)])
    np.testing.assert_allclose(found[:, 1, 2, 3], expected, atol=1e-6)


SPLIT = [(0.4, 0.6, 0.0), (0.4, 0.0, 0.6)]  # neither says 0; of their mean, 0 is the first


def test_the_class_that_is_ahead_is_that_of_an_ensembles_mean() -> None:
    windows = _windows((4, 4, 4), channels=3, labels="exclusive")
    found = _maps(windows, (0, 2), [_even(*answer) for answer in SPLIT], networks=2)
    np.testing.assert_allclose(found[:, 0, 0, 0], [0.55, 0.45], atol=1e-6)


def test_the_class_that_is_ahead_is_that_of_the_mean_where_windows_overlap() -> None:
    windows = _windows((6, 4, 4), channels=3, labels="exclusive", overlap=0.5)
    found = _maps(windows, (0, 2), [_even(*answer) for answer in SPLIT])
    np.testing.assert_allclose(found[0, :, 0, 0], [0.4, 0.4, 0.55, 0.55, 0.4, 0.4], atol=1e-6)
    np.testing.assert_allclose(found[1, :, 0, 0], [0.2, 0.2, 0.45, 0.45, 0.6, 0.6], atol=1e-6)


def test_nobody_is_ahead_outside_the_region() -> None:
    mask = np.zeros((8, 4, 4), bool)
    mask[:2] = True
    region = Map(grid=Grid(shape=(8, 4, 4), spacing_mm=(1.0, 1.0, 1.0)), mask=mask, probability=None)
    windows = _windows(
        (8, 4, 4), channels=3, labels="exclusive", overlap=0.5, within={"stage": "region"}, region=region
    )
    found = _maps(windows, (0,), [_even(0.8, 0.1, 0.1)] * len(windows))
    assert set(np.unique(found.round(4))) == {np.float32(0.0), np.float32(0.85)}


def test_gaussian_weights_fall_from_a_windows_centre() -> None:
    windows = _windows((12, 8, 8), window=(8, 8, 8), overlap=0.5, blend="gaussian")
    found = _maps(windows, (0,), [_even(0.2, window=(8, 8, 8)), _even(0.8, window=(8, 8, 8))])
    weight = np.exp(-0.5 * (np.arange(8) - 3.5) ** 2)  # an eighth of 8
    expected = np.full(12, 0.2)
    expected[8:] = 0.8
    expected[4:8] = (0.2 * weight[4:] + 0.8 * weight[:4]) / (weight[4:] + weight[:4])
    np.testing.assert_allclose(found[0, :, 0, 0], expected, atol=1e-6)
    np.testing.assert_allclose(found[0, :, 3, 6], expected, atol=1e-6)


@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
def test_an_answer_that_is_no_number_is_refused(activation: str) -> None:
    """As "no" it would pass for "nothing there"."""
    for value in (np.nan, np.inf) if activation != "sigmoid" else (np.nan,):
        answer = _even(0.3, 0.4)
        answer[1, 2, 2, 2] = value
        with pytest.raises(ContractBroken) as refused:
            _maps(_windows((4, 4, 4), channels=2, activation=activation), (1,), [answer])
        assert "not finite" in refused.value.found


# --- Boxes ----------------------------------------------------------------------------------------------------------


def _candidates(
    rows: list[list[float]], scores: list[Any], *, wanted: Sequence[int] = (0,), boxes: str = "corners", **more: Any
) -> tuple[Candidate, ...]:
    """What becomes of the rows of one window of 8 voxels over an image of 8."""
    window = more.pop("window", (8, 8, 8))
    classes = np.shape(scores)[1:]
    windows = _windows(
        more.pop("shape", (8, 8, 8)), window=window, boxes=boxes,
        output={"name": "out", "channels": len(rows), "shape": [len(rows[0])]},
        scores={"name": "scores", "channels": len(rows), "shape": classes}, **more,
    )  # fmt: skip
    found = Boxes(windows, wanted, score=0.25)
    for _ in range(len(windows)):
        found.take((np.array(rows, np.float32), np.array(scores, np.float32)))
    return found.result()


BOX = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_row_below_the_score_is_left_out_though_it_is_no_number() -> None:
    (found,) = _candidates([BOX, [np.nan] * 6, BOX], [0.9, 0.0, 0.24])
    assert (found.low, found.high) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert found.score == pytest.approx(0.9)


@pytest.mark.parametrize(("box", "score"), [([np.nan] * 6, 0.9), (BOX, np.nan)])
def test_a_box_that_is_no_number_is_refused(box: list[float], score: float) -> None:
    with pytest.raises(ContractBroken):
        _candidates([box], [score])


def test_each_wanted_class_has_candidates_of_its_own() -> None:
    found = _candidates([BOX, BOX], [[0.9, 0.3, 0.8], [0.1, 0.6, 0.5]], wanted=(1, 2))
    assert [(one.channel, round(one.score, 3)) for one in found] == [(1, 0.3), (1, 0.6), (2, 0.8), (2, 0.5)]


def test_of_classes_that_exclude_each_other_a_box_has_the_best() -> None:
    found = _candidates(
        [BOX, BOX], [[0.9, 0.3, 0.8], [0.1, 0.6, 0.5]], wanted=(1, 2), labels="exclusive"
    )  # the first is of a class that nobody wants
    assert [(one.channel, round(one.score, 3)) for one in found] == [(1, 0.6)]


def test_what_reaches_beyond_the_image_ends_at_its_edge_and_what_is_beyond_is_left_out() -> None:
    rows = [[-3.0, 2.0, 3.0, 4.0, 5.0, 9.5], [-5.0, 1.0, 1.0, -1.0, 2.0, 2.0]]
    (found,) = _candidates(rows, [0.9, 0.9])
    assert (found.low, found.high) == ((-0.5, 2.0, 3.0), (4.0, 5.0, 7.5))


def test_a_candidate_counts_by_its_centre_inside_the_region() -> None:
    mask = np.zeros((8, 8, 8), bool)
    mask[:4] = True
    region = Map(grid=Grid(shape=(8, 8, 8), spacing_mm=(1.0, 1.0, 1.0)), mask=mask, probability=None)
    rows = [[2.0, 2.0, 2.0, 4.0, 4.0, 4.0], [3.0, 2.0, 2.0, 5.0, 4.0, 4.0]]
    found = _candidates(rows, [0.9, 0.9], region=region, within={"stage": "region", "keep_margin_voxels": 0.0})
    # The window lies about the region: its first voxel is two before the image.
    assert [one.low[0] for one in found] == [0.0, 1.0]
    far = _candidates([[5.0, 2.0, 2.0, 7.0, 4.0, 4.0]], [0.9], region=region, within={"stage": "region"})
    assert far == ()


def test_windows_place_their_boxes_where_they_are() -> None:
    found = _candidates([BOX], [0.9], shape=(16, 8, 8))
    assert [one.low for one in found] == [(1.0, 2.0, 3.0), (9.0, 2.0, 3.0)]


@pytest.mark.parametrize(
    ("boxes", "row", "low", "high"),
    [
        ("corners", [1.0, 2.0, 4.0, 6.0], (-0.5, 1.0, 2.0), (0.5, 4.0, 6.0)),
        ("centre-size", [2.5, 4.0, 3.0, 4.0], (-0.5, 1.0, 2.0), (0.5, 4.0, 6.0)),
        ("centres", [2.5, 4.0], (0.0, 2.5, 4.0), (0.0, 2.5, 4.0)),
    ],
)
def test_a_box_on_a_slice_is_as_thick_as_the_slice(
    boxes: str, row: list[float], low: tuple[float, ...], high: tuple[float, ...]
) -> None:
    found = _candidates([row], [0.9], boxes=boxes, window=(8, 8), shape=(3, 8, 8))
    assert [(one.low[1:], one.high[1:]) for one in found] == [(low[1:], high[1:])] * 3
    assert [(one.low[0], one.high[0]) for one in found] == [(n + low[0], n + high[0]) for n in range(3)]


# --- Scores ---------------------------------------------------------------------------------------------------------


def test_an_ensembles_scores_are_averaged_after_the_activation_and_placed() -> None:
    windows = _windows(
        (5, 8, 8), window=(8, 8), output={"name": "out", "channels": 2, "shape": ()}, activation="sigmoid",
        grid=Grid(shape=(5, 8, 8), spacing_mm=(2.0, 1.0, 1.0)), spacing_mm=(4.0, 1.0, 1.0),
    )  # fmt: skip
    scores = Scores(windows)
    for logits in ((0.0, 20.0), (20.0, 0.0)):
        for _ in range(3):
            scores.take((np.array(logits, np.float32),))
    found, slices = scores.result()
    np.testing.assert_allclose(found, np.full((3, 2), 0.75), atol=1e-6)
    assert slices == (0, 2, 4)
