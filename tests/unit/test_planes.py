"""Three planes through a place: which way they face, and how far apart things are on them."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.results import viewed
from service.results.planes import NAMES, WINDOWS, Plane, auto_window, cut, letters

SHAPE = (14, 22, 30)  # along the voxels' axes; no two alike
STEPS = (5.0, 1.5, 0.8)  # mm
# Where the patient's directions lead on a plane as radiologists look at it: to the right, and down; LPS.
LOOKED_AT = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
}
LETTERS = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "H", "F"), "sagittal": ("A", "P", "H", "F")}
TURNS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]
Floats = NDArray[np.float64]


def affine_of(order: tuple[int, ...], signs: tuple[float, ...]) -> Floats:
    """Any way in which a volume may lie along the patient's axes."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * STEPS[axis]
    affine[:3, 3] = (11.0, -23.0, 460.0)
    return affine


def ramp(affine: Floats, direction: tuple[float, ...]) -> NDArray[np.float32]:
    """[slices, rows, columns]: each voxel's place along a direction of the patient, mm."""
    indices = np.indices(SHAPE).reshape(3, -1)
    points = affine[:3, :3] @ indices + affine[:3, 3:]
    return np.asarray((np.array(direction) @ points).reshape(SHAPE), np.float32)


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_a_plane_faces_as_radiologists_look_at_it(order: tuple[int, ...], signs: tuple[float, ...]) -> None:
    """However the series was acquired: to the right the patient's left (or back), down the back (or the feet)."""
    affine, place = affine_of(order, signs), (3, 8, 21)
    for name, directions in LOOKED_AT.items():
        for direction, axis in zip(directions, (1, 0), strict=True):
            plane = next(it for it in cut(ramp(affine, direction), affine, place) if it.name == name)
            grown = np.diff(plane.values, axis=axis)
            assert (grown > 0).all(), f"{name} does not grow along {direction}"
            assert grown == pytest.approx(plane.spacing_mm[axis], abs=1e-3), "a step is as long as it says"
            assert plane.letters == LETTERS[name]


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_the_cross_is_where_the_place_is(order: tuple[int, ...], signs: tuple[float, ...]) -> None:
    affine, place = affine_of(order, signs), (3, 8, 21)
    array = np.zeros(SHAPE, np.float32)
    array[place] = 1000
    mask = array > 0
    planes = cut(array, affine, place, mask=mask, corners=(np.array(place) - 1.0, np.array(place) + 2.0))
    assert [plane.name for plane in planes] == list(NAMES)
    assert sum(plane.is_acquired for plane in planes) == 1
    for plane in planes:
        assert plane.values[plane.cross] == 1000
        assert plane.values.sum() == 1000
        assert plane.mask is not None
        assert np.argwhere(plane.mask).tolist() == [list(plane.cross)]
        assert plane.box
        top, left, bottom, right = plane.box
        assert {top - plane.cross[0], bottom - plane.cross[0]} in ({-1.0, 2.0}, {-2.0, 1.0})
        assert {left - plane.cross[1], right - plane.cross[1]} in ({-1.0, 2.0}, {-2.0, 1.0})
        fixed = [axis for axis in range(3) if SHAPE[axis] == plane.count]
        assert place[fixed[0]] + 1 == plane.number


def test_oblique_planes_say_both_letters() -> None:
    assert letters(np.array([0.8, 0.6, 0.0])) == "LP"
    assert letters(np.array([-0.1, -0.2, 0.97])) == "H"
    assert letters(np.array([0.0, -1.0, 0.0])) == "A"


def ball(name: str = "coronal") -> tuple[Plane, float]:
    """A plane through a ball of so many mm, in voxels that are no cubes."""
    affine = affine_of((2, 1, 0), (1.0, 1.0, 1.0))
    indices = np.indices((20, 64, 96)).reshape(3, -1)
    points = affine[:3, :3] @ indices
    place = (9, 30, 40)
    radius = 12.0
    inside = (np.linalg.norm(points - (affine[:3, :3] @ place)[:, None], axis=0) <= radius).reshape(20, 64, 96)
    array = np.where(inside, 400, -1000).astype(np.float32)
    plane = next(it for it in cut(array, affine, place, mask=inside) if it.name == name)
    return plane, radius


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("near", [False, True])
def test_a_ball_is_round_whatever_the_spacing(name: str, near: bool) -> None:
    plane, radius = ball(name)
    png = viewed.drawn(plane, (0, 400), longest=400, near=near)
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)
    orange = np.all(np.abs(picture - viewed.OUTLINE) < 2, axis=2)
    rows, columns = np.nonzero(orange)
    height, width = np.ptp(rows), np.ptp(columns)
    mm = (2.2 * 2 * radius if near else max(np.array(plane.values.shape) * plane.spacing_mm)) / 400
    slack = 2 * max(plane.spacing_mm) / mm + 8  # a voxel at either end, and the width of the line
    assert height == pytest.approx(2 * radius / mm, abs=slack)
    assert width == pytest.approx(2 * radius / mm, abs=slack)
    assert max(picture.shape) == 400


def test_the_outline_leaves_the_finding_free_and_the_cross_too() -> None:
    plane, _ = ball("axial")
    png = viewed.drawn(plane, (0, 400), longest=500, cross=True)
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    scale = 500 / max(np.array(plane.values.shape) * plane.spacing_mm)
    row, column = ((at + 0.5) * mm * scale for at, mm in zip(plane.cross, plane.spacing_mm, strict=True))
    assert (picture[int(row), int(column)] == 255).all(), "the place itself is not drawn on"
    blue = np.all(picture == viewed.CROSS, axis=2)
    assert blue[int(row), :].sum() > 50
    assert blue[:, int(column)].sum() > 50


def test_a_window_maps_its_ends_to_black_and_white() -> None:
    plane, _ = ball("axial")
    for name, (centre, width) in WINDOWS.items():
        low, high = centre - width / 2, centre + width / 2
        values = np.full_like(plane.values, low)
        values[:, ::2] = high
        assert width > 0, name
        shown = viewed.drawn(_with(plane, values), (centre, width), longest=96)
        grey = np.asarray(Image.open(io.BytesIO(shown)).convert("L"))
        assert grey.min() < 30
        assert grey.max() > 225
    centre, width = auto_window(np.linspace(100, 300, 1000, dtype=np.float32))
    assert (centre, width) == pytest.approx((200, 196), abs=1)


def _with(plane: Plane, values: NDArray[np.float32]) -> Plane:
    from dataclasses import replace

    return replace(plane, values=values, mask=None)
