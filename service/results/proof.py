"""Proof of our own objects: their bytes are decoded again, apart from what wrote them, and held against the findings.

Promise 5: what does not prove is not sent. The segmentation is measured in patient space from what it says itself
(positions, orientation and spacing of its frames), the way any reader would, and not by the library that made it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from service.errors import EncodingError
from service.results.identity import Making, frame_of_reference_uid
from service.results.proof_report import prove_report
from service.results.reading import PLACE_TOLERANCE_MM, VOLUME_TOLERANCE, Fault, references, same_code, same_number
from service.types import Finding, Lesion, ResultObject, SourceVolume

_SAME_PATIENT = ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    """What a reader of the segmentation sees of one segment."""

    tracking_uid: str
    item: Dataset  # its item of the Segment Sequence
    points: NDArray[np.float64]  # [voxels, 3] their centres, LPS mm
    voxel_ml: float


def prove(
    source: SourceVolume | None, findings: Sequence[Finding], objects: Sequence[ResultObject], making: Making
) -> None:
    """Hold the bytes of all objects of one answer against what they must say.

    Parameters
    ----------
    source
        The analysed series; None where there was none.
    findings
        What the objects must hold.
    objects
        All objects of the answer.
    making
        Of what they were made.

    Raises
    ------
    EncodingError
        If any object is not what it must be.
    """
    series = [source.series] if source else making.study.series
    known = {instance.sop_instance_uid for one in series for instance in one.instances}
    known |= {made.sop_instance_uid for made in objects}
    segmentations = {made.sop_instance_uid for made in objects if made.kind == "SEG"}
    header = source.ordered[0].header if source else making.study.series[0].header
    for made in objects:
        try:
            dataset = dcmread(io.BytesIO(made.content))
            _prove_identity(dataset, made, header, known)
            if made.kind == "SEG" and source:
                _prove_segmentation(dataset, source, [it for it in findings if isinstance(it, Lesion)])
            elif made.kind == "SR":
                prove_report(dataset, source, findings, segmentations)
        except Fault as fault:
            raise _error(made, fault.found, fault.rule) from None
        except Exception as exc:  # whatever a reader may stumble over
            raise _error(made, f"{type(exc).__name__} while decoding it", "our own bytes can be read again") from exc


def _prove_identity(dataset: Dataset, made: ResultObject, header: Dataset, known: set[str]) -> None:
    """SOP Common, patient, study and every reference."""
    for place in (dataset, dataset.file_meta):
        prefix = "" if place is dataset else "MediaStorage"
        if place[f"{prefix}SOPInstanceUID"].value != made.sop_instance_uid:
            raise Fault("another SOP Instance UID", "the object is kept under its own UID (PS3.3 C.12.1)")
        if place[f"{prefix}SOPClassUID"].value != made.sop_class_uid:
            raise Fault("another SOP Class UID", "the object is sent as its own class (PS3.3 C.12.1)")
    for keyword in _SAME_PATIENT:
        if str(dataset.get(keyword) or "") != str(header.get(keyword) or ""):
            raise Fault(f"another {keyword} than the sources'", "a result is its sources' patient's (PS3.3 A.1.2)")
    strangers = {uid for uid in references(dataset) if uid not in known}
    if strangers:
        raise Fault(
            f"{len(strangers)} references to unknown instances, one is {min(strangers)}",
            "every reference is to a source or to another object of the answer (PS3.3 10.8)",
        )


def _prove_segmentation(dataset: Dataset, source: SourceVolume, findings: Sequence[Lesion]) -> None:
    """Every finding is there, where it was found and as large."""
    if dataset.FrameOfReferenceUID != frame_of_reference_uid(source):
        raise Fault("another frame of reference", "the segmentation lies where its sources lie (PS3.3 C.7.4.1)")
    segments = _segments(dataset, source)
    if sorted(segments) != [finding.number for finding in findings]:
        raise Fault(f"segments {sorted(segments)} for {len(findings)} findings", "each finding has its segment")
    for finding in findings:
        segment = segments[finding.number]
        name = f"segment {finding.number}"
        if segment.tracking_uid != finding.tracking_uid:
            raise Fault(f"{name} with another Tracking UID", "a segment is tracked as its finding (PS3.3 C.8.20.2)")
        _prove_codes(name, segment.item, finding)
        seen = (segment.points.mean(axis=0), segment.points.min(axis=0), segment.points.max(axis=0))
        wanted = (finding.centroid_lps_mm, *finding.extent_lps_mm)
        for what, ours, theirs in zip(("centroid", "least corner", "greatest corner"), seen, wanted, strict=True):
            distance = float(np.abs(ours - theirs).max())
            if distance > PLACE_TOLERANCE_MM:
                raise Fault(
                    f"{name} with its {what} {distance:.2f} mm off",
                    f"a segment lies within {PLACE_TOLERANCE_MM} mm of its finding",
                )
        same_number(f"volume of {name}", len(segment.points) * segment.voxel_ml, finding.volume_ml, VOLUME_TOLERANCE)


def _prove_codes(name: str, item: Dataset, finding: Lesion) -> None:
    """What a segment is, of which category, and where (PS3.3 C.8.20.4)."""
    kind = finding.kind
    for keyword, wanted in (
        ("SegmentedPropertyTypeCodeSequence", kind.finding),
        ("SegmentedPropertyCategoryCodeSequence", kind.category),
        ("AnatomicRegionSequence", kind.site),
    ):
        same_code(f"{keyword} of {name}", item[keyword].value[0], wanted)


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
    images = {instance.sop_instance_uid: instance.header.ImagePositionPatient for instance in source.ordered}
    points: dict[int, list[NDArray[np.float64]]] = {}
    positions = []
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        position = np.array(macro(frame, "PlanePositionSequence").ImagePositionPatient, float)
        positions.append(position)
        for uid in references(frame):
            if uid in images and np.abs(position - np.array(images[uid], float)).max() > PLACE_TOLERANCE_MM:
                raise Fault(f"frame {index + 1} away from the image it refers to", "a frame is derived from its image")
        rows, columns = np.nonzero(_frame(dataset, index))
        number = int(macro(frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        places = position + rows[:, None] * per_row + columns[:, None] * per_column
        points.setdefault(number, []).append(places)
    spacing = float(measures.SpacingBetweenSlices)
    _prove_spacing(np.array(positions), np.cross(cosines[:3], cosines[3:]), spacing)
    voxel_ml = row_spacing * column_spacing * spacing / 1000
    return {
        int(item.SegmentNumber): _Segment(
            tracking_uid=str(item.TrackingUID),
            item=item,
            points=np.concatenate(points.get(int(item.SegmentNumber), [np.empty((0, 3))])),
            voxel_ml=voxel_ml,
        )
        for item in dataset.SegmentSequence
    }


def _prove_spacing(positions: NDArray[np.float64], normal: NDArray[np.float64], spacing: float) -> None:
    """The frames lie whole slice spacings apart; a twentieth is what a source volume's own slices may deviate."""
    gaps = np.diff(np.unique(np.round(positions @ normal, 3)))
    if gaps.size and np.abs(gaps / spacing - np.maximum(np.round(gaps / spacing), 1)).max() > 0.1:
        raise Fault(
            f"frames {gaps.min():.2f} mm apart for a slice spacing of {spacing:.2f} mm",
            "Spacing Between Slices is the distance of neighbours (PS3.3 C.7.6.16.2.1)",
        )


def _frame(dataset: Dataset, index: int) -> NDArray[np.bool_]:
    """bool [rows, columns] of one frame; frames of single bits follow each other without gaps (PS3.5 section 8.1.1)."""
    size = int(dataset.Rows) * int(dataset.Columns)
    first, last = index * size, (index + 1) * size
    packed = np.frombuffer(dataset.PixelData, np.uint8)[first // 8 : -(-last // 8)]
    bits = np.unpackbits(packed, bitorder="little")[first % 8 :][:size]
    return bits.reshape(int(dataset.Rows), int(dataset.Columns)).astype(bool)


def _error(made: ResultObject, found: str, rule: str) -> EncodingError:
    return EncodingError(
        doing=f"proving the {made.kind} {made.sop_instance_uid}",
        found=found,
        rule=rule,
        way_out="it is not sent; report this as a fault of Overread, with the log",
    )
