"""The measurement groups of a report: one tracking UID for each finding, each number beside what it was measured on.

A lesion's segment carries what was measured in the volume (PS3.16 TID 1411), or its outlines on all its slices do, for
a destination that takes no segments; outline and axes on the key slice carry what was measured there (TID 1410). The
outline comes first: OHIF draws a finding's first coordinates, and nothing without any. A mark has one group: its
rectangle or its point on the key slice (TID 1410).

A judgement has no coordinates, and so no group. The standard's group for it would be TID 1501, but of a report with
such a group OHIF 3.13 reads the first coordinates that are not there, and ends with an error in place of the report.
It stands as a coded Finding in the Qualitative Evaluations of TID 1500 instead, with the same content as a group has.
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
from service.results import frames, identity
from service.results.identity import Making, code
from service.results.seg import Segmented
from service.types import Finding, Judgement, Lesion, Line, Mark, SourceVolume


def lesion(
    finding: Lesion, headers: Sequence[Dataset], source: SourceVolume, segmented: Sequence[Segmented], making: Making
) -> Iterator[sr.ContentSequence]:
    """All groups of a lesion."""
    yield _volume(finding, headers, source, segmented, making)
    yield from _key_slice(finding, headers, source, making)


def _volume(
    finding: Lesion, headers: Sequence[Dataset], source: SourceVolume, segmented: Sequence[Segmented], making: Making
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """TID 1411: the segment or the outlines of all slices, and what was measured in it."""
    measurements = [
        _measured(codes.VOLUME, finding.volume_ml, codes.MILLILITRE),
        _measured(codes.CERTAINTY, finding.probability * 100, codes.PERCENT),
    ]
    if headers[0].get("Modality") == "CT":
        measurements.append(_measured(codes.ATTENUATION, finding.mean, codes.HOUNSFIELD, derivation=codes.MEAN))
    numbers = ((it.object, it.number_of(finding)) for it in segmented)
    made, number = next(((it, number) for it, number in numbers if number), (None, 0))
    if made is None:
        regions = list(_outlines(finding, headers, source))
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_regions=regions,
            measurements=measurements,
            geometric_purpose=standard.DCM.Outline,
            **_what(finding, making),
        )
    segment = sr.ReferencedSegment(
        sop_class_uid=made.sop_class_uid,
        sop_instance_uid=made.sop_instance_uid,
        segment_number=number,
        source_images=[
            sr.SourceImageForSegmentation(
                headers[index].SOPClassUID, headers[index].SOPInstanceUID, frames.numbers(source.ordered[index])
            )
            for index in range(finding.box[0].start, finding.box[0].stop)
        ],
    )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=segment, measurements=measurements, **_what(finding, making)
    )


def _outlines(finding: Lesion, headers: Sequence[Dataset], source: SourceVolume) -> Iterator[sr.ImageRegion]:
    """A lesion's outer borders on all its slices; the key slice first, since OHIF draws the first one only."""
    borders = outlines(finding)
    for index in sorted(borders, key=lambda index: (index != finding.key_slice, index)):
        for points in borders[index]:
            yield _region(sr.GraphicTypeValues.POLYLINE, points, headers, source, index)


def _key_slice(
    finding: Lesion, headers: Sequence[Dataset], source: SourceVolume, making: Making
) -> Iterator[sr.PlanarROIMeasurementsAndQualitativeEvaluations]:
    """TID 1410: outline, long and short axis on the slice of greatest area, each with what was measured on it.

    The area comes last, with the outline once more: OHIF writes the first five numbers of a finding beside it, and
    the diameters are to be among them.
    """
    area = finding.mask[finding.key_slice - finding.box[0].start]
    area_mm2 = float(area.sum()) * float(source.volume.spacing[1]) * float(source.volume.spacing[2])
    border = outline(area) + np.array([finding.box[2].start, finding.box[1].start])
    measured_area = sr.Measurement(standard.SCT.Area, _rounded(area_mm2), standard.UCUM.SquareMillimeter)
    for points, measurement, purpose in (
        (border, None, standard.DCM.Outline),
        (ends(finding.long_axis), _measured(codes.LONG_AXIS, finding.long_axis_mm, codes.MILLIMETRE), None),
        (ends(finding.short_axis), _measured(codes.SHORT_AXIS, finding.short_axis_mm, codes.MILLIMETRE), None),
        (border, measured_area, standard.DCM.Outline),
    ):
        yield sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            referenced_region=_region(sr.GraphicTypeValues.POLYLINE, points, headers, source, finding.key_slice),
            measurements=[measurement] if measurement else None,
            geometric_purpose=purpose,
            **_what(finding, making),
        )


def mark(
    finding: Mark, headers: Sequence[Dataset], source: SourceVolume, making: Making
) -> sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    """TID 1410: the box's rectangle on the slice in its middle, and its edges; or the point."""
    measurements = [_measured(codes.CERTAINTY, finding.probability * 100, codes.PERCENT)]
    if finding.size_mm:
        across, down, along = finding.size_mm  # slices, rows and columns
        edges = [(codes.WIDTH, along), (codes.HEIGHT, down), (codes.DEPTH, across)]
        # A network of single slices says nothing of the depth.
        measurements += [_measured(name, edge, codes.MILLIMETRE) for name, edge in edges if edge]
    points = corners(finding) if finding.size_mm else corners(finding)[:1]
    graphic = sr.GraphicTypeValues.POLYLINE if finding.size_mm else sr.GraphicTypeValues.POINT
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_region=_region(graphic, points, headers, source, finding.key_slice),
        measurements=measurements,
        geometric_purpose=standard.DCM.Outline if finding.size_mm else standard.DCM.Center,
        **_what(finding, making),
    )


def corners(finding: Mark) -> NDArray[np.float64]:
    """float64 [5, (column, row)] of a box's rectangle, closed, as SCOORD counts; of a point, five times the point."""
    (_, top, left), (_, bottom, right) = finding.low, finding.high
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]) + 0.5


def judgement(
    finding: Judgement, headers: Sequence[Dataset], source: SourceVolume, making: Making
) -> sr.CodeContentItem:
    """A coded Finding without a place (TID 1500 row 13), with what a group says (TID 4108, 4019, 1501)."""
    spec, kind, header = making.model.spec, finding.kind, headers[finding.key_slice]
    said, context, properties = (
        sr.RelationshipTypeValues.HAS_CONCEPT_MOD,
        sr.RelationshipTypeValues.HAS_OBS_CONTEXT,
        sr.RelationshipTypeValues.HAS_PROPERTIES,
    )
    item = sr.CodeContentItem(
        name=code(codes.FINDING), value=code(kind.finding), relationship_type=sr.RelationshipTypeValues.CONTAINS
    )
    item.ContentSequence = sr.ContentSequence(
        [
            sr.TextContentItem(code(codes.TRACKING_IDENTIFIER), identity.label(finding), context),
            sr.UIDRefContentItem(code(codes.TRACKING_UNIQUE_IDENTIFIER), finding.tracking_uid, context),
            sr.CodeContentItem(code(codes.FINDING_CATEGORY), code(kind.category), said),
            sr.CodeContentItem(code(codes.FINDING_SITE), code(kind.site), said),
            sr.TextContentItem(code(codes.ALGORITHM_NAME), spec.name, said),
            sr.TextContentItem(code(codes.ALGORITHM_VERSION), spec.version, said),
            sr.NumContentItem(
                code(codes.CERTAINTY),
                _rounded(finding.probability * 100),
                code(codes.PERCENT),
                relationship_type=properties,
            ),
            sr.ImageContentItem(
                code(codes.SOURCE_OF_MEASUREMENT),
                header.SOPClassUID,
                header.SOPInstanceUID,
                referenced_frame_numbers=frames.numbers(source.ordered[finding.key_slice]),
                relationship_type=sr.RelationshipTypeValues.INFERRED_FROM,
            ),
        ]
    )
    return item


def in_words(finding: Judgement) -> str:
    """What a judgement says, for people whose viewer shows them comments only."""
    about = "of this image alone" if finding.level == "image" else f"of the {finding.level}; this image decided"
    return (
        f"{identity.label(finding)} ({finding.kind.site.meaning}), {finding.probability * 100:.0f} %. "
        f"Slice {finding.key_slice + 1}: said {about}. No place in it is meant."
    )


def _region(
    graphic: sr.GraphicTypeValues,
    points: NDArray[np.float64],
    headers: Sequence[Dataset],
    source: SourceVolume,
    index: int,
) -> sr.ImageRegion:
    """Points (column, row) on a slice."""
    header = headers[index]
    return sr.ImageRegion(
        graphic_type=graphic,
        graphic_data=points,
        source_image=sr.SourceImageForRegion(
            header.SOPClassUID, header.SOPInstanceUID, frames.numbers(source.ordered[index])
        ),
    )


def ends(line: Line) -> NDArray[np.float64]:
    """float64 [2, (column, row)] of a line's ends as SCOORD counts: a pixel's centre lies at its index and a half."""
    return np.array([(column + 0.5, row + 0.5) for _, row, column in line])


def _what(finding: Finding, making: Making) -> dict[str, Any]:
    """What all groups of a finding say: which one it is, what, where, and by which algorithm (TID 4108, 4019)."""
    spec, kind = making.model.spec, finding.kind
    return {
        "tracking_identifier": sr.TrackingIdentifier(uid=finding.tracking_uid, identifier=identity.label(finding)),
        "finding_category": code(kind.category),
        "finding_type": code(kind.finding),
        "finding_sites": [
            sr.FindingSite(
                anatomic_location=code(kind.site),
                laterality=code(finding.laterality) if finding.laterality else None,
            )
        ],
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


def outlines(finding: Lesion) -> dict[int, list[NDArray[np.float64]]]:
    """By slice of axis 0: the outer borders of all parts of a lesion, float64 [points, (column, row)], closed."""
    corner = np.array([finding.box[2].start, finding.box[1].start])
    found: dict[int, list[NDArray[np.float64]]] = {}
    for offset, area in enumerate(finding.mask):
        labels, count = ndimage.label(area)
        for part in range(1, count + 1):
            found.setdefault(finding.box[0].start + offset, []).append(outline(labels == part) + corner)
    return found


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
