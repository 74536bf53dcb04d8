"""The measurement groups of a report: one tracking UID for each finding, each number beside what it was measured on.

The segment carries what was measured in the volume (PS3.16 TID 1411); outline and axes on the key slice carry what was
measured there (TID 1410). The outline comes first: OHIF draws a finding's first coordinates, and nothing without any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from highdicom import sr
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes as standard
from scipy import ndimage

from service import codes
from service.results import identity
from service.results.identity import Making, code
from service.types import Finding, Line, ResultObject, SourceVolume


def volume(
    finding: Finding, headers: Sequence[Dataset], segmentation: ResultObject, making: Making
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """TID 1411: the segment, and what was measured in it."""
    measurements = [
        _measured(codes.VOLUME, finding.volume_ml, codes.MILLILITRE),
        _measured(codes.CERTAINTY, finding.probability * 100, codes.PERCENT),
    ]
    if headers[0].get("Modality") == "CT":
        measurements.append(_measured(codes.ATTENUATION, finding.mean, codes.HOUNSFIELD, derivation=codes.MEAN))
    segment = sr.ReferencedSegment(
        sop_class_uid=segmentation.sop_class_uid,
        sop_instance_uid=segmentation.sop_instance_uid,
        segment_number=finding.number,
        source_images=[
            sr.SourceImageForSegmentation(header.SOPClassUID, header.SOPInstanceUID)
            for header in headers[finding.box[0]]
        ],
    )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=segment, measurements=measurements, **_what(finding, making)
    )


def key_slice(
    finding: Finding, headers: Sequence[Dataset], source: SourceVolume, making: Making
) -> Iterator[sr.PlanarROIMeasurementsAndQualitativeEvaluations]:
    """TID 1410: outline, long and short axis on the slice of greatest area, each with what was measured on it."""
    area = finding.mask[finding.key_slice - finding.box[0].start]
    area_mm2 = float(area.sum()) * float(source.volume.spacing[1]) * float(source.volume.spacing[2])
    header = headers[finding.key_slice]
    for points, measurement, purpose in (
        (
            outline(area) + np.array([finding.box[2].start, finding.box[1].start]),
            sr.Measurement(standard.SCT.Area, _rounded(area_mm2), standard.UCUM.SquareMillimeter),
            standard.DCM.Outline,
        ),
        (_ends(finding.long_axis), _measured(codes.LONG_AXIS, finding.long_axis_mm, codes.MILLIMETRE), None),
        (_ends(finding.short_axis), _measured(codes.SHORT_AXIS, finding.short_axis_mm, codes.MILLIMETRE), None),
    ):
        yield sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            referenced_region=sr.ImageRegion(
                graphic_type=sr.GraphicTypeValues.POLYLINE,
                graphic_data=points,
                source_image=sr.SourceImageForRegion(header.SOPClassUID, header.SOPInstanceUID),
            ),
            measurements=[measurement],
            geometric_purpose=purpose,
            **_what(finding, making),
        )


def _ends(line: Line) -> NDArray[np.float64]:
    """float64 [2, (column, row)] of a line's ends as SCOORD counts: a pixel's centre lies at its index and a half."""
    return np.array([(column + 0.5, row + 0.5) for _, row, column in line])


def _what(finding: Finding, making: Making) -> dict[str, Any]:
    """What all groups of a finding say: which one it is, what, where, and by which algorithm (TID 4108, 4019)."""
    spec = making.model.spec
    return {
        "tracking_identifier": sr.TrackingIdentifier(uid=finding.tracking_uid, identifier=identity.label(finding)),
        "finding_category": code(spec.findings.category),
        "finding_type": code(finding.finding),
        "finding_sites": [sr.FindingSite(anatomic_location=code(finding.site))],
        "algorithm_id": sr.AlgorithmIdentification(name=spec.name, version=spec.version),
    }


def _measured(
    name: codes.Code, value: float, unit: codes.Code, *, derivation: codes.Code | None = None
) -> sr.Measurement:
    """A number as TID 300 has it."""
    return sr.Measurement(
        name=code(name), value=_rounded(value), unit=code(unit), derivation=code(derivation) if derivation else None
    )


def _rounded(value: float) -> float:
    """Five significant digits: more than any of our measurements has, and well within a DS (PS3.5 section 6.2)."""
    return float(f"{value:.5g}")


def outline(area: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The outer border of the largest part of an area, along the pixels' edges.

    Parameters
    ----------
    area
        bool [rows, columns], not empty.

    Returns
    -------
    numpy.ndarray
        float64 [points, (column, row)], closed (the last point is the first), as SCOORD counts: 0, 0 is the top left
        corner of the top left pixel (PS3.3 C.18.6.1.1).
    """
    labels, count = ndimage.label(area)
    part = labels == 1 + int(np.argmax(ndimage.sum_labels(area, labels, range(1, count + 1))))
    padded = np.pad(part, 1)
    # Clockwise round each pixel, the inside to the right: along its top, right, bottom and left edge.
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    corners = ((0, 0), (0, 1), (1, 1), (1, 0))
    leaving: dict[tuple[int, int], set[int]] = {}  # by corner: the directions of the edges that start there
    for direction, (neighbour, (down, right)) in enumerate(zip(neighbours, corners, strict=True)):
        for row, column in np.argwhere(part & ~neighbour):
            leaving.setdefault((int(row) + down, int(column) + right), set()).add(direction)
    row, column = (int(index) for index in np.argwhere(part)[0])
    start, direction, points = (row, column), 0, [(column, row)]
    while True:
        row, column = row + (0, 1, 0, -1)[direction], column + (1, 0, -1, 0)[direction]
        if (row, column) == start:
            return np.array([*points, points[0]], np.float64)
        # Where two pixels touch at a corner only, turning right stays with the same one.
        turn = next(turn for turn in (1, 0, 3) if (direction + turn) % 4 in leaving[row, column])
        if turn:
            points.append((column, row))
        direction = (direction + turn) % 4
