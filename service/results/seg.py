"""Lesions as DICOM Segmentations, on the slices where they are (PS3.3 A.51, A.86), in each form that is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom.sr.codedict import codes as standard

from service import codes
from service.codecs import prefer_what_does_not_end_us
from service.forms import Kind, SegForm
from service.results import frames
from service.results.copied import complete_headers
from service.results.identity import (
    DISCLAIMER,
    Making,
    Name,
    code,
    finish,
    label,
    series_of_ours,
    tracking_uid,
)
from service.types import Lesion, Outcome, ResultObject, SourceVolume

prefer_what_does_not_end_us()

_VOXELS_AT_ONCE = 1 << 26  # of a stack of segments: 256 MB of float32; more are several objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What one segment holds: a lesion, or all of a class."""

    label: str
    tracking_uid: str
    lesions: tuple[Lesion, ...]  # at least one, all of one class

    @property
    def slices(self) -> frozenset[int]:
        """Slices of axis 0 of the source grid on which it is not empty."""
        return frozenset(
            int(index) + lesion.box[0].start
            for lesion in self.lesions
            for index in np.flatnonzero(lesion.mask.any(axis=(1, 2)))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmented:
    """A segmentation object, and which segment of it is whose."""

    object: ResultObject
    segments: tuple[Segment, ...]  # segment number 1 first

    def number_of(self, lesion: Lesion) -> int:
        """The Segment Number (0062,0004) in which a lesion lies; 0 if in none of them."""
        return next((n for n, segment in enumerate(self.segments, start=1) if _holds(segment, lesion)), 0)


def _holds(segment: Segment, lesion: Lesion) -> bool:
    return any(it.number == lesion.number for it in segment.lesions)


def segmentations(
    source: SourceVolume, lesions: Sequence[Lesion], making: Making, form: SegForm, *, outcome: Outcome
) -> tuple[Segmented, ...]:
    """Encode the lesions' masks on the grid of the analysed series.

    Parameters
    ----------
    source
        The analysed series; single-frame images, or frames of a multi-frame image.
    lesions
        At least one. Those of different classes may overlap.
    making
        Of what, by what and when.
    form
        BINARY and FRACTIONAL are Segmentation Storage, LABELMAP is Label Map Segmentation Storage.
    outcome
        Of the answer.

    Returns
    -------
    tuple of Segmented
        One, unless it would have more frames than the form allows or, of a label map, segments that overlap. Each
        frame has the position of its source image and refers to it.
    """
    segments = _segments(source, lesions, making, form)
    return tuple(
        _encode(source, part, making, form, Name(kind=Kind.SEG, outcome=outcome, form=form.key, part=number))
        for number, part in enumerate(_parts(source, segments, form), start=1)
    )


def _segments(source: SourceVolume, lesions: Sequence[Lesion], making: Making, form: SegForm) -> list[Segment]:
    if form.segments == "finding":
        return [Segment(label=label(it), tracking_uid=it.tracking_uid, lesions=(it,)) for it in lesions]
    by_class: dict[int, list[Lesion]] = {}
    for lesion in lesions:
        by_class.setdefault(lesion.kind.channel, []).append(lesion)
    return [
        Segment(
            label=f"{of_class[0].kind.finding.meaning[:58]} ({len(of_class)})",
            tracking_uid=tracking_uid(source.series, making.model.spec.name, channel, None),
            lesions=tuple(of_class),
        )
        for channel, of_class in by_class.items()
    ]


def _parts(source: SourceVolume, segments: Iterable[Segment], form: SegForm) -> list[list[Segment]]:
    """The segments, in turn, in as few objects as the form allows; a segment is never cut."""
    parts: list[list[Segment]] = []
    for segment in segments:
        if parts and _fits(source, [*parts[-1], segment], form):
            parts[-1].append(segment)
        else:
            parts.append([segment])
    return parts


def _fits(source: SourceVolume, part: Sequence[Segment], form: SegForm) -> bool:
    slices, rows, columns = source.volume.spatial_shape
    each = [segment.slices if form.omit_empty_frames else frozenset(range(slices)) for segment in part]
    count = len(frozenset().union(*each)) if form.type == "labelmap" else sum(len(one) for one in each)
    if count > form.maximum_frames:
        return False
    overlaps = _overlap(part)
    if form.type == "labelmap":
        return not overlaps
    stacked = overlaps or form.type == "fractional"
    first, last = _extent(source, part, form)
    return not stacked or (last - first) * rows * columns * len(part) <= _VOXELS_AT_ONCE


def _overlap(part: Sequence[Segment]) -> bool:
    """Whether any voxel is in two segments; lesions of one class are components, and never share one."""
    lesions = [(number, lesion) for number, segment in enumerate(part) for lesion in segment.lesions]
    for index, (number, one) in enumerate(lesions):
        for other_number, other in lesions[index + 1 :]:
            if number != other_number and _share(one, other):
                return True
    return False


def _share(one: Lesion, other: Lesion) -> bool:
    both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one.box, other.box, strict=True)]
    if any(side.start >= side.stop for side in both):
        return False
    first, second = (
        lesion.mask[tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(both, lesion.box, strict=True))]
        for lesion in (one, other)
    )
    return bool((first & second).any())


def _extent(source: SourceVolume, part: Sequence[Segment], form: SegForm) -> tuple[int, int]:
    """First and behind the last slice of axis 0 that is kept: all that a large series needs of memory."""
    if not form.omit_empty_frames:
        return 0, source.volume.spatial_shape[0]
    lesions = [lesion for segment in part for lesion in segment.lesions]
    return min(it.box[0].start for it in lesions), max(it.box[0].stop for it in lesions)


def _encode(source: SourceVolume, part: Sequence[Segment], making: Making, form: SegForm, name: Name) -> Segmented:
    first, last = _extent(source, part, form)
    headers = complete_headers(source)[first:last]
    made = hd.seg.Segmentation(
        source_images=headers,
        pixel_array=_pixels(source, part, form, (first, last)),
        segmentation_type=form.type.upper(),
        segment_descriptions=[_description(segment, n, making) for n, segment in enumerate(part, start=1)],
        transfer_syntax_uid=form.transfer_syntax_uid,
        omit_empty_frames=form.omit_empty_frames,
        content_label="FINDINGS",
        content_description=DISCLAIMER,
        **series_of_ours(making, source, name),
    )
    # highdicom describes the background as segment 0, which Pixel Padding Value says already (PS3.3 C.8.20.2); OHIF
    # counts it as one, and gives each segment its neighbour's colour.
    made.SegmentSequence = [item for item in made.SegmentSequence if item.SegmentNumber != 0]
    frames.restore(made, source)
    # highdicom draws this UID by lot; ours are derived.
    dimensions = codes.derive_uid(made.SOPInstanceUID, "dimensions")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return Segmented(object=finish(made, making, source, headers[0], name), segments=tuple(part))


def _pixels(
    source: SourceVolume, part: Sequence[Segment], form: SegForm, extent: tuple[int, int]
) -> NDArray[np.uint16 | np.uint8 | np.float32]:
    """The segments as highdicom takes them.

    Returns
    -------
    numpy.ndarray
        [slices, rows, columns] of the kept slices, uint16, source grid: 0 or a segment's number. Where segments
        overlap: [slices, rows, columns, segments], uint8, 0 or 1; of a FRACTIONAL one float32, 0..1.
    """
    first, last = extent
    shape = (last - first, *source.volume.spatial_shape[1:])
    if form.type == "fractional":
        stack = np.zeros((*shape, len(part)), np.float32)
        for index, segment in enumerate(part):
            for lesion in segment.lesions:
                # What rounds to 0 of 255 would not be in the segment any more.
                likelihood = np.clip(lesion.likelihood[lesion.mask], 1 / 255, 1)
                _where(stack[..., index], lesion, first)[lesion.mask] = likelihood
        return stack
    if _overlap(part):
        binary = np.zeros((*shape, len(part)), np.uint8)
        for index, segment in enumerate(part):
            for lesion in segment.lesions:
                _where(binary[..., index], lesion, first)[lesion.mask] = 1
        return binary
    labels = np.zeros(shape, np.uint16)
    for number, segment in enumerate(part, start=1):
        for lesion in segment.lesions:
            _where(labels, lesion, first)[lesion.mask] = number
    return labels


def _where(slices_kept: NDArray[Any], lesion: Lesion, first: int) -> NDArray[Any]:
    """The part of the kept slices in which a lesion lies."""
    slices, rows, columns = lesion.box
    return slices_kept[slices.start - first : slices.stop - first, rows, columns]


def _description(segment: Segment, number: int, making: Making) -> hd.seg.SegmentDescription:
    """Segment Description Macro (PS3.3 C.8.20.4)."""
    spec, kind = making.model.spec, segment.lesions[0].kind
    made = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=code(kind.category),
        segmented_property_type=code(kind.finding),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=spec.name,
            family=standard.DCM.ArtificialIntelligence,
            version=spec.version,
            source=spec.manufacturer,
        ),
        tracking_uid=segment.tracking_uid,
        tracking_id=segment.label,
        anatomic_regions=[code(kind.site)],
        display_color=CIELabColor.from_rgb(*kind.colour),
    )
    sides = {lesion.laterality for lesion in segment.lesions}
    if len(sides) == 1 and (side := sides.pop()):
        made.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [code(side)]
    return made
