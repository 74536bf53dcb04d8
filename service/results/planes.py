"""Three orthogonal planes of a volume through one place, turned as radiologists look at them. Pure.

Axial images show the patient from the feet, coronal ones from the front, sagittal ones from the left: the patient's
right is on the image's left, the head is above. A plane runs along the voxels, so it is cut and never interpolated; of
an oblique series each plane has the name of the nearest one, and its letters say which way it really faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from service.types import Array

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Name = Literal["axial", "coronal", "sagittal"]
Window = tuple[float, float]  # centre and width, in real-world values (PS3.3 C.11.2.1.2)

NAMES: Final[tuple[Name, ...]] = get_args(Name)
WINDOWS: Final[dict[str, Window]] = {  # of CT, in HU
    "soft-tissue": (40.0, 400.0),
    "lung": (-600.0, 1500.0),
    "bone": (400.0, 1800.0),
    "liver": (60.0, 160.0),
    "brain": (40.0, 80.0),
}
_LEFT, _BACK, _HEAD = 0, 1, 2  # axes of the patient: where x, y and z of LPS grow to
_TURNS: Final[dict[Name, tuple[int, tuple[int, int], tuple[int, int]]]] = {
    # across which axis of the patient it is cut; along which its columns go to the right, and its rows down: +1 or -1
    "axial": (_HEAD, (_LEFT, 1), (_BACK, 1)),
    "coronal": (_BACK, (_LEFT, 1), (_HEAD, -1)),
    "sagittal": (_LEFT, (_BACK, 1), (_HEAD, -1)),
}
_OBLIQUE = 0.26  # cosine from which a second letter is said: 15 degrees off


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """One plane of a volume, as it is looked at."""

    name: Name
    is_acquired: bool  # whether it is an image of the series itself
    values: Array  # float32 [rows, columns], real-world values
    mask: Bools | None  # [rows, columns], where the finding is; None: it has no outline
    spacing_mm: tuple[float, float]  # between rows, between columns
    letters: tuple[str, str, str, str]  # of the patient's directions at the left, right, upper and lower edge
    cross: tuple[int, int]  # row and column of the place that it goes through
    box: tuple[float, float, float, float] | None  # least row and column, greatest row and column, of a detected box
    number: int  # which slice of its axis, from 1
    count: int  # of how many


def cut(
    array: Array,
    affine: Floats,
    place: tuple[int, int, int],
    *,
    mask: Bools | None = None,
    corners: tuple[Floats, Floats] | None = None,
) -> tuple[Plane, ...]:
    """Cut the three planes of a volume through a voxel.

    Parameters
    ----------
    array
        float32 [slices, rows, columns], real-world values.
    affine
        Voxel index (slice, row, column, 1) -> LPS mm; float64 [4, 4].
    place
        The voxel.
    mask
        As the array: where the finding is.
    corners
        Least and greatest corner of a box, in voxels.

    Returns
    -------
    tuple of Plane
        Axial, coronal, sagittal.
    """
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / steps  # [patient's axes, voxels' axes]
    axes = optimize.linear_sum_assignment(-np.abs(directions))[1]  # the voxels' axis nearest to each of the patient
    planes = []
    for name in NAMES:
        across, (right, right_sign), (down, down_sign) = _TURNS[name]
        fixed, columns, rows = (int(axes[axis]) for axis in (across, right, down))
        turned = (directions[down, rows] * down_sign < 0, directions[right, columns] * right_sign < 0)
        cross = tuple(
            array.shape[axis] - 1 - place[axis] if is_turned else place[axis]
            for axis, is_turned in zip((rows, columns), turned, strict=True)
        )
        to_right = directions[:, columns] * (-1 if turned[1] else 1)
        to_bottom = directions[:, rows] * (-1 if turned[0] else 1)
        planes.append(
            Plane(
                name=name,
                is_acquired=fixed == 0,
                values=_turned(array, place, fixed, rows > columns, turned),
                mask=None if mask is None else _turned(mask, place, fixed, rows > columns, turned),
                spacing_mm=(float(steps[rows]), float(steps[columns])),
                letters=(letters(-to_right), letters(to_right), letters(-to_bottom), letters(to_bottom)),
                cross=(cross[0], cross[1]),
                box=None if corners is None else _box(corners, array.shape, (rows, columns), turned),
                number=place[fixed] + 1,
                count=array.shape[fixed],
            )
        )
    return tuple(planes)


def auto_window(values: Array) -> Window:
    """The window that shows nearly all of a plane, for images whose values have no scale of their own."""
    low, high = (float(value) for value in np.percentile(values, (1, 99)))
    return (low + high) / 2, max(high - low, 1e-6)


def letters(direction: Floats) -> str:
    """Where a direction leads in the patient, as PS3.3 C.7.6.1.1.1 writes it: the nearest letter first."""
    order = np.argsort(-np.abs(direction), kind="stable")
    said = [axis for rank, axis in enumerate(order) if rank == 0 or abs(direction[axis]) > _OBLIQUE]
    return "".join(("LPH" if direction[axis] > 0 else "RAF")[axis] for axis in said)


Scalar = TypeVar("Scalar", np.float32, np.bool_)


def _turned(
    array: NDArray[Scalar], place: tuple[int, int, int], fixed: int, swap: bool, turned: tuple[bool, bool]
) -> NDArray[Scalar]:
    """A slice of an array across one axis, with its rows and columns as they are looked at."""
    plane = np.take(array, place[fixed], axis=fixed)
    plane = plane.T if swap else plane
    return np.ascontiguousarray(plane[:: -1 if turned[0] else 1, :: -1 if turned[1] else 1])


def _box(
    corners: tuple[Floats, Floats], shape: tuple[int, ...], axes: tuple[int, int], turned: tuple[bool, bool]
) -> tuple[float, float, float, float]:
    """Least row and column, greatest row and column of a box on a plane."""
    sides = []
    for axis, is_turned in zip(axes, turned, strict=True):
        pair = [float(corner[axis]) for corner in corners]
        sides.append(sorted(shape[axis] - 1 - value if is_turned else value for value in pair))
    (top, bottom), (left, right) = sides
    return top, left, bottom, right
