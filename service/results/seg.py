"""Lesions as a DICOM Segmentation: one BINARY segment each, on the slices where it is (PS3.3 A.51)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom.sr.codedict import codes as standard
from pydicom.uid import ExplicitVRLittleEndian

from service import codes
from service.results.identity import DISCLAIMER, Making, code, complete_headers, finish, label, series_of_ours, words_of
from service.types import Lesion, Outcome, ResultObject, SourceVolume


def segmentation(source: SourceVolume, findings: Sequence[Lesion], making: Making) -> ResultObject:
    """Encode the findings' masks on the grid of the analysed series.

    Parameters
    ----------
    source
        The analysed series.
    findings
        At least one; numbered from 1 in order. Those of different classes may overlap.
    making
        Of what, by what and when.

    Returns
    -------
    ResultObject
        A Segmentation Storage instance (BINARY, Explicit VR Little Endian). Its frames are where a segment is not
        empty; each has the position of its source image and refers to it.
    """
    first, labels = _labels(source, findings)
    headers = complete_headers(source)[first : first + len(labels)]
    made = hd.seg.Segmentation(
        source_images=headers,
        pixel_array=labels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(finding, making) for finding in findings],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
        content_label="FINDINGS",
        content_description=DISCLAIMER,
        **series_of_ours(making, source, "SEG", Outcome.FINDINGS),
    )
    # highdicom draws this UID by lot; ours are derived.
    dimensions = codes.derive_uid(made.SOPInstanceUID, "dimensions")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return finish(made, making, headers[0], "SEG", words_of(findings))


def _labels(source: SourceVolume, findings: Sequence[Lesion]) -> tuple[int, NDArray[np.uint16 | np.uint8]]:
    """The findings as one label map of the slices that hold any: all that a large series needs of memory.

    Returns
    -------
    int
        First slice of axis 0 that is kept.
    numpy.ndarray
        [slices, rows, columns] of the kept slices, uint16, source grid; 0 or a finding's number. Where findings
        overlap: [slices, rows, columns, findings], 0 or 1.
    """
    first = min(finding.box[0].start for finding in findings)
    last = max(finding.box[0].stop for finding in findings)
    labels = np.zeros((last - first, *source.volume.spatial_shape[1:]), np.uint16)
    for finding in findings:
        part = _part(labels, finding, first)
        if part[finding.mask].any():
            return first, _stacked(labels.shape, findings, first)
        part[finding.mask] = finding.number
    return first, labels


def _stacked(shape: tuple[int, ...], findings: Sequence[Lesion], first: int) -> NDArray[np.uint8]:
    """The findings side by side along a last axis: more memory, but they may overlap."""
    stack = np.zeros((*shape, len(findings)), np.uint8)
    for finding in findings:
        _part(stack[..., finding.number - 1], finding, first)[finding.mask] = 1
    return stack


def _part(slices_kept: NDArray[Any], finding: Lesion, first: int) -> NDArray[Any]:
    """The part of the kept slices in which a finding lies."""
    slices, rows, columns = finding.box
    return slices_kept[slices.start - first : slices.stop - first, rows, columns]


def _segment(finding: Lesion, making: Making) -> hd.seg.SegmentDescription:
    """Segment Description Macro of one finding (PS3.3 C.8.20.4)."""
    spec = making.model.spec
    return hd.seg.SegmentDescription(
        segment_number=finding.number,
        segment_label=label(finding),
        segmented_property_category=code(finding.kind.category),
        segmented_property_type=code(finding.kind.finding),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=spec.name,
            family=standard.DCM.ArtificialIntelligence,
            version=spec.version,
            source=spec.manufacturer,
        ),
        tracking_uid=finding.tracking_uid,
        tracking_id=label(finding),
        anatomic_regions=[code(finding.kind.site)],
        display_color=CIELabColor.from_rgb(*finding.kind.colour),
    )
