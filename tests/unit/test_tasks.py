"""A network of each task is asked through `infer`, and what it says lies where it is in the patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.analysis.infer import infer
from service.analysis.waiting import Stream
from service.spec import read_spec
from service.types import BoxPrediction, MapPrediction, Prediction, ScorePrediction, SourceVolume
from tests import toy_graphs, toys

Vector = NDArray[np.float64]


def _affine(slices: Vector, rows: Vector, columns: Vector) -> Vector:
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = slices, rows, columns
    affine[:3, 3] = (-31.0, 17.0, 240.0)
    return affine


X, Y, Z = np.eye(3)
_TURN = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, 0.96, 0.28], [0, -0.28, 0.96]])
GRIDS = {
    "axial": _affine(3 * Z, 2.0 * Y, 2.0 * X),
    "axial, feet first, prone": _affine(-3 * Z, -2.0 * Y, -2.0 * X),
    "sagittal": _affine(3 * X, -2.0 * Z, 2.0 * Y),
    "oblique": _affine(*(length * axis for length, axis in zip((3, 2, 2), _TURN[::-1], strict=True))),
}
LETTERS = {"L": X, "R": -X, "P": Y, "A": -Y, "S": Z, "I": -Z}


def _infer(folder: Path, source: SourceVolume, bare: toys.Bare | None = None) -> Prediction:
    runner = bare or toys.Bare(folder.parent)
    return infer(source, read_spec(folder), runner, stream=Stream(), progress=lambda **_: None)


def _whole(found: Prediction, source: SourceVolume) -> NDArray[np.float32]:
    """[classes, slices, rows, columns] the maps on the whole source grid."""
    assert isinstance(found, MapPrediction)
    result = np.zeros((len(found.probability), *source.volume.spatial_shape), np.float32)
    result[(slice(None), *found.box)] = found.probability
    return result


def _lps(source: SourceVolume, index: object) -> Vector:
    return np.asarray((source.volume.affine @ (*np.asarray(index, float), 1.0))[:3])


def _centroid(source: SourceVolume, mask: NDArray[np.bool_]) -> Vector:
    return _lps(source, np.argwhere(mask).mean(axis=0))


def _dice(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    """Dice coefficient."""
    return 2 * float((truth & found).sum()) / float(truth.sum() + found.sum())


# --- Maps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["LPS", "IRA"])
@pytest.mark.parametrize("grid", GRIDS)
def test_each_class_has_a_map_of_its_own_in_the_order_of_the_spec(grid: str, orientation: str, tmp_path: Path) -> None:
    balls = toys.two_balls(affine=GRIDS[grid])
    found = _whole(_infer(toys.write_two_class_model(tmp_path, orientation=orientation), balls.source), balls.source)
    assert len(found) == 2
    for one, truth in zip(found, (balls.dark, balls.bright), strict=True):  # as the spec has them, not by channel
        mask = one > 0.5
        np.testing.assert_allclose(_centroid(balls.source, mask), truth.centre_lps_mm, atol=0.5)
        assert _dice(truth.mask, mask) > 0.9
        assert one.max() > 0.99
        assert one.min() >= 0.0


@pytest.mark.parametrize("orientation", ["LPS", "SAR"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_heat_maps_peak_is_in_the_middle_of_the_ball(grid: str, orientation: str, tmp_path: Path) -> None:
    balls = toys.two_balls(affine=GRIDS[grid])
    (heat,) = _whole(_infer(toys.write_heatmap_model(tmp_path, orientation=orientation), balls.source), balls.source)
    peak = _lps(balls.source, np.unravel_index(heat.argmax(), heat.shape))
    assert np.linalg.norm(peak - balls.bright.centre_lps_mm) < 4
    assert heat.max() > 0.8


@pytest.mark.parametrize("orientation", ["SPL", "IPL", "LSA"])
@pytest.mark.parametrize("grid", ["axial", "sagittal", "oblique"])
def test_neighbouring_slices_stand_in_the_order_of_the_first_letter(
    grid: str, orientation: str, tmp_path: Path
) -> None:
    """The network answers with what is in the slice behind: all lies one slice before the ball."""
    balls = toys.two_balls(affine=GRIDS[grid])
    folder = toys.write_neighbour_model(tmp_path, orientation=orientation)
    (found,) = _whole(_infer(folder, balls.source), balls.source)
    step = max(balls.source.volume.affine[:3, :3].T, key=lambda axis: abs(axis @ LETTERS[orientation[0]]))
    towards = step if step @ LETTERS[orientation[0]] > 0 else -step
    expected = np.array(balls.bright.centre_lps_mm) - towards
    np.testing.assert_allclose(_centroid(balls.source, found > 0.5), expected, atol=0.3)


def test_an_ensembles_networks_are_averaged(tmp_path: Path) -> None:
    balls = toys.two_balls(affine=GRIDS["axial"])
    folder = toys.write_ensemble_model(tmp_path)
    bare = toys.Bare(tmp_path)
    (found,) = _whole(_infer(folder, balls.source, bare), balls.source)
    middle = tuple(np.round(np.argwhere(balls.bright.mask).mean(axis=0)).astype(int))
    assert found[middle] == pytest.approx(0.745, abs=1e-3), "of 0.993 and of half of it"
    assert found.max() < 0.751
    half = len(bare.asked) // 2
    assert bare.asked == ["ensemble"] * half + ["ensemble-second"] * half, "they change places once"


def test_an_ensembles_progress_counts_each_network(tmp_path: Path) -> None:
    balls = toys.two_balls(affine=GRIDS["axial"])
    told: list[tuple[int, int]] = []

    def progress(*, model: str, stage: str, done: int, total: int) -> None:
        told.append((done, total))

    bare = toys.Bare(tmp_path)
    spec = read_spec(toys.write_ensemble_model(tmp_path))
    infer(balls.source, spec, bare, stream=Stream(), progress=progress)
    total = len(bare.asked)
    assert told == [(done, total) for done in range(total + 1)]


# --- Boxes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["corners", "centre-size", "centres"])
@pytest.mark.parametrize("orientation", ["LPS", "IRA", "ASR"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_box_lies_around_the_ball_with_its_edges_on_the_right_axes(
    grid: str, orientation: str, form: str, tmp_path: Path
) -> None:
    balls = toys.two_balls(affine=GRIDS[grid])
    source = balls.source
    found = _infer(toys.write_detection_model(tmp_path, orientation=orientation, boxes=form), source)
    assert isinstance(found, BoxPrediction)
    assert all(candidate.score >= 0.25 for candidate in found.candidates), "half of what is reported"
    best = max(found.candidates, key=lambda candidate: candidate.score)
    assert best.channel == 0
    assert best.score > 0.9
    low, high = np.array(best.low), np.array(best.high)
    assert np.linalg.norm(_lps(source, (low + high) / 2) - balls.bright.centre_lps_mm) < 4
    edges = dict(zip(orientation, toy_graphs.BOX_VOXELS, strict=True))
    for axis, step in enumerate(source.volume.affine[:3, :3].T):
        letter = max(edges, key=lambda known: abs(step @ LETTERS[known]) / float(np.linalg.norm(step)))
        expected = 0.0 if form == "centres" else edges[letter] * 2.5
        assert (high[axis] - low[axis]) * np.linalg.norm(step) == pytest.approx(expected, abs=1e-3)


# --- Scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["SPL", "IAR"])
def test_a_slice_is_judged_by_what_is_in_it(orientation: str, tmp_path: Path) -> None:
    balls = toys.two_balls(affine=GRIDS["axial"])
    found = _infer(toys.write_classification_model(tmp_path, orientation=orientation), balls.source)
    assert isinstance(found, ScorePrediction)
    assert found.scores.shape == (22, 2)
    assert sorted(found.slices) == list(range(22)), "each of the source's own slices, once"
    np.testing.assert_allclose(found.scores.sum(axis=1), 1.0, rtol=1e-6)
    bright = {number for number, scores in zip(found.slices, found.scores, strict=True) if scores[1] > 0.5}
    truth = set(np.flatnonzero(balls.bright.mask.any(axis=(1, 2))).tolist())
    assert bright <= truth
    assert len(truth - bright) <= 2, "where the ball is but a spot"


def test_slices_across_the_sources_own_are_judged_too(tmp_path: Path) -> None:
    """An axial network on sagittal images: its slices are cut from the volume, and lie about the middle of it."""
    balls = toys.two_balls(affine=GRIDS["sagittal"])
    found = _infer(toys.write_classification_model(tmp_path), balls.source)
    assert isinstance(found, ScorePrediction)
    assert len(found.scores) == 44, "rows grow to the feet there: one slice for each"
    assert set(found.slices) <= {10, 11}
    judged = np.flatnonzero(found.scores[:, 1] > 0.5)
    truth = np.flatnonzero(balls.bright.mask.any(axis=(0, 2)))
    assert set(judged) <= set(truth), "windows go along the source's axes"
    assert len(judged) >= len(truth) - 2
