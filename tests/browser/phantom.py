"""A CT of a made-up abdomen with two dense lesions, big enough to be looked at in a viewer.

Nothing in it is symmetrical, and no lesion lies in the middle of anything: what is mirrored or shifted is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from service.codes import derive_uid
from service.demo.phantom import Phantom
from service.demo.phantom_dicom import write_series

SHAPE = (44, 256, 256)  # slices, rows, columns
SPACING = (3.0, 1.4, 1.4)  # mm between them
Plane = tuple[tuple[float, float, float], tuple[float, float, float]]  # directions along a row and along a column
AXIAL: Plane = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
OBLIQUE: Plane = ((0.96, 0.28, 0.0), (-0.1344, 0.4608, 0.8772547))  # nearer to coronal, and turned
LESION_HU = 360  # the toy model finds what is above 200, half-way to the organ around it
_SOFT, _ORGAN = 30, 40
# Centre, radii (mm along slices, rows and columns), and degrees turned in the plane of the slice.
_LESIONS = (((-9.0, -22.0, -78.0), (16.0, 13.0, 24.0), 35.0), ((3.0, 26.0, 94.0), (9.0, 9.0, 9.0), 0.0))

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abdomen:
    """A series on the disk, and the truth about it."""

    folder: Path
    lesions: Bools  # [slices, rows, columns]


def write(folder: Path, name: str, plane: Plane = AXIAL, *, lesions: bool = True) -> Abdomen:
    """Write the series of a patient of that name, who has the lesions or has none."""
    row, column = np.array(plane)
    affine = np.eye(4)
    for axis, (direction, step) in enumerate(zip((-np.cross(row, column), column, row), SPACING, strict=True)):
        affine[:3, axis] = direction * step
    affine[:3, 3] = np.array((12.0, -30.0, 1040.0)) - affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    hu, truth = _scene(with_lesions=lesions)
    volume = hd.Volume(hu, affine, coordinate_system="PATIENT")
    made = Phantom(volume=volume, lesions=(), masks={}, seed=0)
    words = {"SeriesDescription": "Abdomen", "StudyDescription": "Made-up abdomen", "PatientID": f"PHANTOM-{name}"}
    write_series(made, folder, study_uid=derive_uid("abdomen", name), attributes=words)
    return Abdomen(folder=folder, lesions=truth)


def _scene(*, with_lesions: bool) -> tuple[NDArray[np.int16], Bools]:
    """The abdomen in HU, and where its lesions are; mm from the middle along slices, rows and columns."""
    w, v, u = ((np.arange(n) - (n - 1) / 2) * step for n, step in zip(SHAPE, SPACING, strict=True))
    place = np.meshgrid(w, v, u, indexing="ij")

    def oval(centre: tuple[float, float, float], radii: tuple[float, float, float], turn: float = 0.0) -> Bools:
        """An ellipsoid, turned in the plane of the slice by so many degrees."""
        dw, dv, du = (axis - middle for axis, middle in zip(place, centre, strict=True))
        cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        along, across = cosine * du + sine * dv, cosine * dv - sine * du
        inside: Bools = (dw / radii[0]) ** 2 + (across / radii[1]) ** 2 + (along / radii[2]) ** 2 <= 1
        return inside

    long = 500.0  # goes through all slices
    hu = np.full(SHAPE, -1000.0)
    hu[oval((0, 4, 0), (long, 112, 158))] = -95  # fat
    hu[oval((0, 4, 0), (long, 98, 144))] = _SOFT
    hu[oval((0, -10, 10), (long, 70, 118))] = -80
    hu[oval((-6, -12, -62), (76, 62, 70), turn=-14)] = _ORGAN + 70  # liver
    hu[oval((8, 22, 92), (52, 34, 24), turn=30)] = _ORGAN + 80  # spleen
    for side, height in ((-1, 10), (1, -8)):
        hu[oval((height, 48, side * 62), (44, 24, 18), turn=-side * 25)] = 150  # kidneys
    hu[oval((0, 34, 8), (long, 11, 11))] = 165  # aorta
    hu[oval((0, 66, 0), (long, 20, 24))] = 170  # spine
    hu[oval((0, 90, 0), (long, 22, 5))] = 170
    hu[oval((-20, -52, 46), (40, 22, 38), turn=12)] = -700  # gas in the stomach
    lesions = np.zeros(SHAPE, bool)
    for centre, radii, turn in _LESIONS if with_lesions else ():
        hu[oval(centre, (radii[0] + 5, radii[1] + 5, radii[2] + 5), turn)] = _ORGAN
        lesions |= oval(centre, radii, turn)
    hu[lesions] = LESION_HU
    seen = ndimage.gaussian_filter(hu + np.random.default_rng(0).normal(0, 22, SHAPE), 0.6)
    return np.rint(seen).astype(np.int16), lesions
