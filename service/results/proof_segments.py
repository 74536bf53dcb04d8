"""Proof of a segmentation: measured in patient space from what it says itself, the way any reader would.

Positions, orientation and spacing of its frames, and the pixels, are read apart from the library that wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from service.codes import LABEL_MAP_SEGMENTATION_STORAGE
from service.results.identity import Making, frame_of_reference_uid, tracking_uid
from service.results.reading import (
    PLACE_TOLERANCE_MM,
    VOLUME_TOLERANCE,
    Fault,
    described_segments,
    same_code,
    same_number,
)
from service.types import Lesion, SourceVolume

Seen = Mapping[int, tuple[Lesion, ...]]  # by Segment Number: the lesions that it was seen to hold


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    """What a reader of the segmentation sees of one segment."""

    item: Dataset  # its item of the Segment Sequence
    points: NDArray[np.float64]  # [voxels, 3] their centres, LPS mm
    values: NDArray[np.float64]  # [voxels] 0..1; 1 where values are no fractions
    voxel_ml: float


def prove_segmentation(dataset: Dataset, source: SourceVolume, lesions: Sequence[Lesion], making: Making) -> Seen:
    """Every segment lies where its lesions were found and is as large.

    Returns
    -------
    Seen
        Which segment holds which lesions.

    Raises
    ------
    Fault
        If it does not.
    """
    if dataset.FrameOfReferenceUID != frame_of_reference_uid(source):
        raise Fault("another frame of reference", "the segmentation lies where its sources lie (PS3.3 C.7.4.1)")
    held: dict[int, tuple[Lesion, ...]] = {}
    for number, segment in _segments(dataset, source).items():
        inside = _lesions_of(segment, source, lesions, making)
        held[number] = inside
        name = f"segment {number}"
        _prove_codes(name, segment.item, inside)
        if not len(segment.points):
            raise Fault(f"{name} is empty", "each finding has its segment")
        seen = (segment.points.mean(axis=0), segment.points.min(axis=0), segment.points.max(axis=0))
        for what, ours, theirs in zip(
            ("centroid", "least corner", "greatest corner"), seen, _wanted(inside), strict=True
        ):
            distance = float(np.abs(ours - theirs).max())
            if not distance <= PLACE_TOLERANCE_MM:
                raise Fault(
                    f"{name} with its {what} {distance:.2f} mm off",
                    f"a segment lies within {PLACE_TOLERANCE_MM} mm of its finding",
                )
        volume = sum(lesion.volume_ml for lesion in inside)
        same_number(f"volume of {name}", len(segment.points) * segment.voxel_ml, volume, VOLUME_TOLERANCE)
        step = 1 / dataset.MaximumFractionalValue if dataset.SegmentationType == "FRACTIONAL" else 0.0
        _prove_voxels(name, segment, inside, source, step)
    return held


def _prove_voxels(name: str, segment: _Segment, lesions: Sequence[Lesion], source: SourceVolume, step: float) -> None:
    """A segment has its lesions' voxels and no other; a fractional one, the model's probability in each.

    Parameters
    ----------
    step
        Of the fractions that can be written; 0 where they are none.
    """
    low = np.min([[side.start for side in lesion.box] for lesion in lesions], axis=0)
    high = np.max([[side.stop for side in lesion.box] for lesion in lesions], axis=0)
    wanted = np.zeros(high - low, np.float32)
    for lesion in lesions:
        slices, rows, columns = (
            slice(side.start - at, side.stop - at) for side, at in zip(lesion.box, low, strict=True)
        )
        values = np.clip(lesion.likelihood[lesion.mask], step, 1) if step else 1
        wanted[slices, rows, columns][lesion.mask] = values
    exact = np.asarray(source.volume.map_reference_to_indices(segment.points), np.float64)
    indices = np.rint(exact).astype(int) - low
    if (indices < 0).any() or (indices >= wanted.shape).any():
        raise Fault(f"{name} reaches beyond its findings", "a segment has its finding's voxels")
    seen = np.zeros(wanted.shape, np.float32)
    seen[tuple(indices.T)] = segment.values
    if ((seen > 0) != (wanted > 0)).any() or np.abs(seen - wanted).max() > step + 1e-6:
        raise Fault(f"{name} with other voxels", "a segment has its finding's voxels")


def all_lesions_once(segmentations: Iterable[Seen], lesions: Sequence[Lesion]) -> None:
    """Hold the segmentations of one form together against the findings.

    Raises
    ------
    Fault
        If a finding has no segment, or two.
    """
    held = sorted(lesion.number for seen in segmentations for inside in seen.values() for lesion in inside)
    if held != sorted(lesion.number for lesion in lesions):
        raise Fault(f"segments of the findings {held} for {len(lesions)} findings", "each finding has its segment")


def _lesions_of(
    segment: _Segment, source: SourceVolume, lesions: Sequence[Lesion], making: Making
) -> tuple[Lesion, ...]:
    """Whose a segment is by its Tracking UID: a finding's, or a class's."""
    uid = str(segment.item.TrackingUID)
    one = tuple(lesion for lesion in lesions if lesion.tracking_uid == uid)
    name = making.model.spec.name
    all_ = tuple(it for it in lesions if tracking_uid(source.series, name, it.kind.channel, None) == uid)
    if not one and not all_:
        raise Fault(
            f"segment {segment.item.SegmentNumber} with another Tracking UID",
            "a segment is tracked as its finding (PS3.3 C.8.20.2)",
        )
    return one or all_


def _wanted(lesions: Sequence[Lesion]) -> tuple[NDArray[np.float64], ...]:
    """Centroid, least and greatest corner of lesions together, LPS mm: by the model's masks and the volume's affine."""
    volumes = np.array([lesion.volume_ml for lesion in lesions])
    centroids = np.array([lesion.centroid_lps_mm for lesion in lesions])
    extents = np.array([lesion.extent_lps_mm for lesion in lesions])
    return (volumes @ centroids) / volumes.sum(), extents[:, 0].min(axis=0), extents[:, 1].max(axis=0)


def _prove_codes(name: str, item: Dataset, lesions: Sequence[Lesion]) -> None:
    """What a segment is, of which category, where, and on which side (PS3.3 C.8.20.4)."""
    kind = lesions[0].kind
    for keyword, wanted in (
        ("SegmentedPropertyTypeCodeSequence", kind.finding),
        ("SegmentedPropertyCategoryCodeSequence", kind.category),
        ("AnatomicRegionSequence", kind.site),
    ):
        same_code(f"{keyword} of {name}", item[keyword].value[0], wanted)
    sides = {lesion.laterality for lesion in lesions}
    side = sides.pop() if len(sides) == 1 else None
    modifiers = item.AnatomicRegionSequence[0].get("AnatomicRegionModifierSequence", [])
    if len(modifiers) != (side is not None):
        raise Fault(f"{name} with {len(modifiers)} modifiers of its site", "it is on its finding's side")
    if side:
        same_code(f"laterality of {name}", modifiers[0], side)


def _segments(dataset: Dataset, source: SourceVolume) -> dict[int, _Segment]:
    """Measure each segment from the object alone (PS3.3 C.7.6.16.2, C.8.20.2)."""
    shared = dataset.SharedFunctionalGroupsSequence[0]

    def macro(frame: Dataset, keyword: str) -> Dataset:
        """A functional group of a frame: its own, or the one that all frames share."""
        item: Dataset = (frame if keyword in frame else shared)[keyword].value[0]
        return item

    measures = shared.PixelMeasuresSequence[0]
    row_spacing, column_spacing = (float(value) for value in measures.PixelSpacing)
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    per_column, per_row = cosines[:3] * column_spacing, cosines[3:] * row_spacing
    images = {(it.sop_instance_uid, it.frame): it.header.ImagePositionPatient for it in source.ordered}
    is_labelmap = dataset.SOPClassUID == LABEL_MAP_SEGMENTATION_STORAGE
    points: dict[int, list[NDArray[np.float64]]] = {}
    values_of: dict[int, list[NDArray[np.float64]]] = {}
    positions = []
    read = _frames(dataset)
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        position = np.array(macro(frame, "PlanePositionSequence").ImagePositionPatient, float)
        positions.append(position)
        _prove_place(frame, index, position, images)
        values = read(index)
        rows, columns = np.nonzero(values)
        places = position + rows[:, None] * per_row + columns[:, None] * per_column
        if is_labelmap:
            found = values[rows, columns]
            for number in np.unique(found):
                points.setdefault(int(number), []).append(places[found == number])
                values_of.setdefault(int(number), []).append(np.ones(int((found == number).sum())))
            continue
        number = int(macro(frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        points.setdefault(number, []).append(places)
        values_of.setdefault(number, []).append(values[rows, columns] / dataset.get("MaximumFractionalValue", 1))
    spacing = float(measures.SpacingBetweenSlices)
    _prove_spacing(np.array(positions), np.cross(cosines[:3], cosines[3:]), spacing)
    described = {int(item.SegmentNumber): item for item in described_segments(dataset)}
    if points.keys() - described.keys():
        raise Fault("frames of a segment that is not described", "each segment is described (PS3.3 C.8.20.2)")
    return {
        number: _Segment(
            item=item,
            points=np.concatenate(points.get(number, [np.empty((0, 3))])),
            values=np.concatenate(values_of.get(number, [np.empty(0)])),
            voxel_ml=row_spacing * column_spacing * spacing / 1000,
        )
        for number, item in described.items()
    }


def _prove_place(
    frame: Dataset, index: int, position: NDArray[np.float64], images: Mapping[tuple[str, int | None], Sequence[float]]
) -> None:
    """A frame refers to the image, or the frame of one, that lies where it lies (PS3.3 C.7.6.16.2.6)."""
    sources = [image for it in frame.get("DerivationImageSequence", ()) for image in it.SourceImageSequence]
    for image in sources:
        key = (str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber"))
        place = images.get(key)
        if place is None or np.abs(position - np.array(place, float)).max() > PLACE_TOLERANCE_MM:
            raise Fault(f"frame {index + 1} away from the image it refers to", "a frame is derived from its image")
    if not sources:
        raise Fault(f"frame {index + 1} refers to no image", "a frame is derived from its image")


def _prove_spacing(positions: NDArray[np.float64], normal: NDArray[np.float64], spacing: float) -> None:
    """The frames lie whole slice spacings apart; a twentieth is what a source volume's own slices may deviate."""
    gaps = np.diff(np.unique(np.round(positions @ normal, 3)))
    if gaps.size and np.abs(gaps / spacing - np.maximum(np.round(gaps / spacing), 1)).max() > 0.1:
        raise Fault(
            f"frames {gaps.min():.2f} mm apart for a slice spacing of {spacing:.2f} mm",
            "Spacing Between Slices is the distance of neighbours (PS3.3 C.7.6.16.2.1)",
        )


def _frames(dataset: Dataset) -> Callable[[int], NDArray[Any]]:
    """A reader of frames by index: [rows, columns].

    Frames of single bits follow each other without gaps (PS3.5 section 8.1.1); pydicom decodes the others.
    """
    shape = (int(dataset.Rows), int(dataset.Columns))
    if dataset.BitsAllocated > 1:
        pixels = dataset.pixel_array.reshape(-1, *shape)
        return lambda index: np.asarray(pixels[index])

    def unpacked(index: int) -> NDArray[Any]:
        first, last = index * shape[0] * shape[1], (index + 1) * shape[0] * shape[1]
        packed = np.frombuffer(dataset.PixelData, np.uint8)[first // 8 : -(-last // 8)]
        bits = np.unpackbits(packed, bitorder="little")[first % 8 :][: last - first]
        return bits.reshape(shape)

    return unpacked
