"""Where the images of a series lie in the patient, read from their headers (PS3.3 C.7.6.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import MissingAttribute
from service.types import Instance

NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Images ordered along their common normal. LPS, mm."""

    ordered: tuple[Instance, ...]
    positions: NDArray[np.float64]  # [images, 3] centre of each image's first pixel
    row_direction: NDArray[np.float64]  # [3] unit vector in which the column index grows
    column_direction: NDArray[np.float64]  # [3] unit vector in which the row index grows
    orientation_spread: float  # greatest deviation of any direction cosine from the first image's
    gaps_mm: NDArray[np.float64]  # [images - 1] distances of neighbours along the normal, >= 0

    @property
    def normal(self) -> NDArray[np.float64]:
        """[3] unit vector along which the images are ordered."""
        return np.cross(self.row_direction, self.column_direction)

    @property
    def spacing_mm(self) -> float:
        """The usual distance of neighbours; 0 for fewer than two images."""
        return float(np.median(self.gaps_mm)) if len(self.gaps_mm) else 0.0

    @property
    def plane(self) -> str:
        """axial, coronal or sagittal: the plane nearest to the images'."""
        return ("sagittal", "coronal", "axial")[int(np.argmax(np.abs(self.normal)))]


def stack(instances: Sequence[Instance]) -> Stack:
    """Order images by position along the normal of the first one, never by InstanceNumber.

    Raises
    ------
    MissingAttribute
        If an image lacks what says where it lies.
    """
    for instance in instances:
        for keyword in NEEDED:
            if instance.header.get(keyword) is None or instance.header.get(keyword) == "":
                raise _missing(instance, keyword, f"no {keyword}")
    orientations = np.array([cosines(i) for i in instances])
    row, column = orientations[0, :3], orientations[0, 3:]
    positions = np.array([numbers(i, "ImagePositionPatient", 3) for i in instances])
    depth = positions @ np.cross(row, column)
    order = np.argsort(depth, kind="stable")
    return Stack(
        ordered=tuple(instances[int(i)] for i in order),
        positions=positions[order],
        row_direction=row,
        column_direction=column,
        orientation_spread=float(np.abs(orientations - orientations[0]).max()),
        gaps_mm=np.diff(depth[order]),
    )


def cosines(instance: Instance) -> NDArray[np.float64]:
    """[6] ImageOrientationPatient as perpendicular unit vectors: headers round them to as few as three digits."""
    row, column = numbers(instance, "ImageOrientationPatient", 6).reshape(2, 3)
    row = row / (np.linalg.norm(row) or 1.0)
    column = column - (column @ row) * row
    column = column / (np.linalg.norm(column) or 1.0)
    if np.linalg.norm(np.cross(row, column)) < 0.5:
        raise _missing(instance, "ImageOrientationPatient", "an ImageOrientationPatient without direction")
    return np.concatenate([row, column])


def numbers(instance: Instance, keyword: str, count: int) -> NDArray[np.float64]:
    """[count] the finite numbers of one attribute.

    Raises
    ------
    MissingAttribute
        If they are not that.
    """
    try:
        values = np.array([float(v) for v in instance.header[keyword].value], np.float64)
    except (KeyError, TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise _missing(instance, keyword, f"a {keyword} that can't be read")
    return values


def _missing(instance: Instance, keyword: str, found: str) -> MissingAttribute:
    return MissingAttribute(
        doing=f"placing the image {instance.sop_instance_uid} in the patient",
        found=found,
        rule=f"{keyword} is needed to place an image (PS3.3 C.7.6.2)",
        way_out="send the original images of the scanner",
    )
