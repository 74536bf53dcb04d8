"""Where our objects say that findings are: references to images and coordinates on them, in patient space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from service.types import Finding, Mark, SourceVolume


def key_image(finding: Finding, source: SourceVolume) -> tuple[str, int | None]:
    """The image, or the frame of one, that shows a finding best."""
    instance = source.ordered[finding.key_slice]
    return instance.sop_instance_uid, instance.frame


def place_of(item: Dataset) -> tuple[str, int | None]:
    """The image, or the frame of one, that a content item or the coordinates in it refer to; empty, if to several."""
    found = (
        [item]
        if "ReferencedSOPSequence" in item
        else [it for it in item.ContentSequence if "ReferencedSOPSequence" in it]
    )
    images = [reference for it in found for reference in it.ReferencedSOPSequence]
    if len(images) != 1:
        return "", None
    frame = images[0].get("ReferencedFrameNumber")
    return str(images[0].ReferencedSOPInstanceUID), None if frame is None else int(frame)


def in_space(points: NDArray[np.float64], source: SourceVolume, key_slice: int) -> NDArray[np.float64]:
    """Points on an image in patient space, by its own attributes (PS3.3 C.7.6.2.1.1, C.18.6.1.1).

    Parameters
    ----------
    points
        [points, (column, row)]; 0, 0 is the corner of the first pixel.
    source
        The analysed series.
    key_slice
        The image's slice.

    Returns
    -------
    numpy.ndarray
        float64 [points, 3], LPS mm.
    """
    header = source.ordered[key_slice].header
    cosines = np.array(header.ImageOrientationPatient, float)
    row_spacing, column_spacing = (float(value) for value in header.PixelSpacing)
    columns, rows = (points - 0.5).T[..., None]
    places = columns * column_spacing * cosines[:3] + rows * row_spacing * cosines[3:]
    return np.asarray(places + np.array(header.ImagePositionPatient, float), np.float64)


def corners(finding: Mark, source: SourceVolume) -> NDArray[np.float64]:
    """The corners of a box where its middle is, in turn and closed: float64 [5, 3], LPS mm."""
    (front, top, left), (back, bottom, right) = finding.low, finding.high
    ring = ((top, left), (top, right), (bottom, right), (bottom, left), (top, left))
    indices = np.array([((front + back) / 2, row, column) for row, column in ring])
    return np.asarray(source.volume.map_indices_to_reference(indices), np.float64)


def off_by(seen: NDArray[np.float64], wanted: NDArray[np.float64], source: SourceVolume) -> float:
    """How far points are off, mm: within the slice; across it, beyond the half slice by which its middle may differ."""
    affine = np.asarray(source.volume.affine, float)
    normal = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    across = (seen - wanted) @ normal
    within = np.linalg.norm(seen - wanted - across[:, None] * normal, axis=1)
    beyond = np.abs(across) - float(source.volume.spacing[0]) / 2
    return float(max(within.max(), beyond.max()))
