"""On which side of a paired organ a finding lies, where the images leave no doubt. Pure.

A wrong side hurts more than none: it is said only where the middle of the body and the scanner's middle agree, and
the images and what is in them are as wide as a trunk: of a limb, or one side, there is no middle to go by.
"""

from __future__ import annotations

import numpy as np

from service import codes
from service.codes import Code
from service.types import Point, SourceVolume

_MARGIN_MM = 20.0  # nearer to the middle no side is said
_LEAST_WIDTH_MM = 300.0  # of the images along the patient's left and right: a field of view of one side has less
_LEAST_BODY_MM = 200.0  # of what is not air, without its outer tenths: a limb has less
_STEP = 4  # voxels; of the body's middle a coarse look is enough
_AIR_HU = -500.0


def side_of(source: SourceVolume, place: Point) -> Code | None:
    """The side of the patient on which a place lies.

    Parameters
    ----------
    source
        The analysed series; patient coordinates are LPS, so +x is the patient's left (PS3.3 C.7.6.2.1.1).
    place
        LPS mm.

    Returns
    -------
    Code or None
        Left or Right (CID 244); None in doubt.
    """
    volume = source.volume
    corners = np.array([(s, r, c) for s in (0, 1) for r in (0, 1) for c in (0, 1)]) * (
        np.array(volume.spatial_shape) - 1
    )
    across = np.asarray(volume.map_indices_to_reference(corners))[:, 0]
    if across.max() - across.min() < _LEAST_WIDTH_MM:
        return None
    middle = _body_middle(source)
    beside = (place[0] - middle, place[0]) if middle is not None else (0.0,)
    if min(beside) > _MARGIN_MM:
        return codes.LEFT
    if max(beside) < -_MARGIN_MM:
        return codes.RIGHT
    return None


def _body_middle(source: SourceVolume) -> float | None:
    """Median x of what is not air, LPS mm; None where that is nothing, or too narrow for a trunk."""
    values = source.volume.array[::_STEP, ::_STEP, ::_STEP]
    threshold = _AIR_HU if source.series.modality == "CT" else float(np.percentile(values, 99)) * 0.1
    inside = np.argwhere(values > threshold) * _STEP
    if not len(inside):
        return None
    across = np.asarray(source.volume.map_indices_to_reference(inside))[:, 0]
    right, middle, left = np.percentile(across, (10, 50, 90))
    return float(middle) if left - right >= _LEAST_BODY_MM else None
