"""Proof of a report: every finding is in it, once, with its codes, its numbers and its place, and nothing else is.

Places are read as any reader would: coordinates on an image, brought into patient space by that image's own attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress, pairwise

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from scipy import ndimage

from service import codes
from service.results.places import corners, in_space, key_image, off_by, place_of
from service.results.proof_segments import Seen
from service.results.reading import NUMBER_TOLERANCE, PLACE_TOLERANCE_MM, Fault, items, name, same_code
from service.results.reading import same_number as same
from service.types import Conclusion, Finding, Judgement, Lesion, Mark, Outcome, SourceVolume

_REFERENCED_SEGMENT, _IMAGE_REGION, _GROUP = "121191", "111030", "125007"  # DCM
_WITH_FINDINGS = {codes.ALL_ALGORITHMS_WITH_FINDINGS.value, codes.NOT_ALL_WITH_FINDINGS.value}
_STATUSES = {
    Outcome.FINDINGS: codes.SUCCEEDED.value,
    Outcome.NO_FINDINGS: codes.SUCCEEDED.value,
    Outcome.PARTIAL: codes.PARTIALLY_SUCCEEDED.value,
    Outcome.UNSUITABLE: codes.NOT_ATTEMPTED.value,
    Outcome.FAILED: codes.FAILED.value,
}
_TRACKING = codes.TRACKING_UNIQUE_IDENTIFIER.value


def prove_report(
    dataset: Dataset, source: SourceVolume | None, conclusion: Conclusion, segmentations: Mapping[str, Seen]
) -> None:
    """Hold a report against the conclusion.

    Parameters
    ----------
    segmentations
        What the segmentations that it refers to hold, by SOP Instance UID; none: lesions are drawn on their slices.

    Raises
    ------
    Fault
        If it does not say what they are, or says more, or its summary disagrees.
    """
    findings = conclusion.findings
    said: dict[str, list[Dataset]] = {finding.tracking_uid: [] for finding in findings}
    for statement in _statements(dataset):
        uid = next((str(item.UID) for item in statement.ContentSequence if name(item) == _TRACKING), "")
        if uid not in said:
            raise Fault("a finding of an unknown Tracking UID", "each group is a finding's (TID 1411, 1410)")
        said[uid].append(statement)
    for finding in findings:
        assert source  # nothing is found without one
        ours = said[finding.tracking_uid]
        for statement in ours:
            _prove_codes(statement, finding)
        match finding:
            case Lesion():
                _prove_lesion(ours, finding, source, segmentations)
            case Mark():
                _prove_mark(ours, finding, source)
            case Judgement():
                _prove_judgement(ours, finding, source)
            case _:
                raise Fault(f"finding {finding.number} of no known kind", "what is not proved is not sent")
    _prove_ending(dataset, conclusion)


def _prove_ending(dataset: Dataset, conclusion: Conclusion) -> None:
    """How the work ended, and why."""
    summary = next(items(dataset, codes.CAD_SUMMARY.value)).ConceptCodeSequence[0].CodeValue
    if (summary in _WITH_FINDINGS) != bool(conclusion.findings):
        raise Fault(
            f"the summary {summary} for {len(conclusion.findings)} findings", "the summary agrees with them (CID 6047)"
        )
    status = next(items(dataset, codes.SUMMARY_OF_DETECTIONS.value)).ConceptCodeSequence[0].CodeValue
    if status != _STATUSES[conclusion.outcome]:
        raise Fault(f"the status {status} for {conclusion.outcome}", "the status is how it ended (CID 6042)")
    reasons = [item.ConceptCodeSequence[0].CodeValue for item in items(dataset, codes.REASON.value)]
    if reasons != [codes.CAUSES[cause].value for cause in conclusion.causes]:
        raise Fault(f"the reasons {reasons}", "a limited or missing analysis says why")


def _statements(dataset: Dataset) -> Iterator[Dataset]:
    """The measurement groups, and the findings among the qualitative evaluations."""
    yield from items(dataset, _GROUP)
    for container in items(dataset, codes.QUALITATIVE_EVALUATIONS.value):
        yield from (item for item in container.ContentSequence if name(item) == codes.FINDING.value)


def _prove_codes(statement: Dataset, finding: Finding) -> None:
    """What it is, of which category, and where."""
    inside = {name(item): item for item in statement.ContentSequence}
    kind = finding.kind
    what = statement if name(statement) == codes.FINDING.value else inside[codes.FINDING.value]
    for concept, item, wanted in (
        (codes.FINDING, what, kind.finding),
        (codes.FINDING_CATEGORY, inside[codes.FINDING_CATEGORY.value], kind.category),
        (codes.FINDING_SITE, inside[codes.FINDING_SITE.value], kind.site),
    ):
        same_code(f"{concept.meaning} of finding {finding.number}", item.ConceptCodeSequence[0], wanted)
    sides = list(items(inside[codes.FINDING_SITE.value], codes.LATERALITY.value))
    if len(sides) != (finding.laterality is not None):
        raise Fault(
            f"finding {finding.number} with {len(sides)} sides", "a site has the side that was found (TID 1411)"
        )
    if finding.laterality:
        same_code(f"side of finding {finding.number}", sides[0].ConceptCodeSequence[0], finding.laterality)


def _prove_lesion(
    groups: Sequence[Dataset], finding: Lesion, source: SourceVolume, segmentations: Mapping[str, Seen]
) -> None:
    """Its numbers, its segment or its outlines, and its key slice."""
    inside = {name(item): item for group in groups for item in group.ContentSequence}
    area = float(finding.mask[finding.key_slice - finding.box[0].start].sum())
    numbers = [
        (codes.VOLUME, finding.volume_ml),
        (codes.CERTAINTY, finding.probability * 100),
        (codes.LONG_AXIS, finding.long_axis_mm),
        (codes.SHORT_AXIS, finding.short_axis_mm),
        (codes.AREA, area * float(source.volume.spacing[1]) * float(source.volume.spacing[2])),
    ]
    if codes.ATTENUATION.value in inside:
        numbers.append((codes.ATTENUATION, finding.mean))
    for concept, value in numbers:
        _prove_number(inside, concept, value, finding)
    if sum(item.ValueType == "NUM" for group in groups for item in group.ContentSequence) != len(numbers):
        raise Fault(f"finding {finding.number} with other numbers", "each number is said once (TID 1411, 1410)")
    of_volume = [any(name(item) == codes.VOLUME.value for item in group.ContentSequence) for group in groups]
    if _REFERENCED_SEGMENT in inside:
        segment = inside[_REFERENCED_SEGMENT].ReferencedSOPSequence[0]
        held = segmentations.get(str(segment.ReferencedSOPInstanceUID), {})
        if [it.number for it in held.get(int(segment.ReferencedSegmentNumber), ())] != [finding.number]:
            raise Fault(f"finding {finding.number} with another's segment", "a group refers to its segment (TID 1411)")
    elif segmentations:
        raise Fault(f"finding {finding.number} without its segment", "a group refers to its segment (TID 1411)")
    else:
        for group in compress(groups, of_volume):
            _prove_outlines(list(items(group, _IMAGE_REGION)), finding, source)
    on_key_slice = list(compress(groups, (not it for it in of_volume)))
    regions = [item for group in on_key_slice for item in items(group, _IMAGE_REGION)]
    if not regions or any(place_of(region) != key_image(finding, source) for region in regions):
        raise Fault(f"finding {finding.number} on another slice", "its outline is on the key slice (TID 1410)")
    for group in on_key_slice:
        _prove_drawn(group, finding, source)


def _prove_drawn(group: Dataset, finding: Lesion, source: SourceVolume) -> None:
    """What is drawn on the key slice: an axis from end to end beside its length, else the border of the lesion."""
    (region,) = items(group, _IMAGE_REGION)
    points = np.reshape(np.array(region.GraphicData, float), (-1, 2))
    measured = {name(item) for item in group.ContentSequence}
    axes = {codes.LONG_AXIS.value: finding.long_axis, codes.SHORT_AXIS.value: finding.short_axis}
    for concept, line in axes.items():
        if concept in measured:
            wanted = np.asarray(source.volume.map_indices_to_reference(np.array(line)), np.float64)
            seen = in_space(points, source, finding.key_slice)
            if seen.shape != wanted.shape or not off_by(seen, wanted, source) <= PLACE_TOLERANCE_MM:
                raise Fault(f"finding {finding.number} with an axis drawn elsewhere", "an axis is what it measures")
            return
    area = finding.mask[finding.key_slice - finding.box[0].start]
    _prove_border([points], area, finding, finding.key_slice)
    if not (points[0] == points[-1]).all():
        raise Fault(f"finding {finding.number} with an open outline", "an outline is closed (PS3.3 C.18.6)")


def _prove_outlines(regions: Sequence[Dataset], finding: Lesion, source: SourceVolume) -> None:
    """Outlines on each slice of a lesion and on no other, as wide and as high as the lesion is there."""
    slices = {(it.sop_instance_uid, it.frame): index for index, it in enumerate(source.ordered)}
    drawn: dict[int, list[NDArray[np.float64]]] = {}
    for region in regions:
        points = np.reshape(np.array(region.GraphicData, float), (-1, 2))
        drawn.setdefault(slices[place_of(region)], []).append(points)
    wanted = {finding.box[0].start + n: area for n, area in enumerate(finding.mask) if area.any()}
    if drawn.keys() != wanted.keys():
        raise Fault(f"finding {finding.number} drawn on {len(drawn)} slices", f"it is on {len(wanted)} (TID 1411)")
    for index, area in wanted.items():
        _prove_border(drawn[index], area, finding, index)


def _prove_border(borders: Sequence[NDArray[np.float64]], area: NDArray[np.bool_], finding: Lesion, index: int) -> None:
    """Outlines enclose a lesion's pixels on a slice, with their holes, and no others; one alone, a part of them."""
    corner = np.array([finding.box[2].start, finding.box[1].start])
    enclosed = [_enclosed(border - corner, area.shape) for border in borders]
    labels, _ = ndimage.label(area)
    parts = np.isin(labels, np.unique(labels[np.logical_or.reduce(enclosed) & area])) if len(borders) == 1 else area
    # Pixels hold together by their edges, so what surrounds them does by corners: a bay whose mouth is one is outside.
    if (
        not parts.any()
        or (np.logical_or.reduce(enclosed) != ndimage.binary_fill_holes(parts, np.ones((3, 3), bool))).any()
    ):
        raise Fault(f"finding {finding.number} drawn elsewhere on slice {index + 1}", "outlines are its borders")


def _enclosed(points: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """bool [rows, columns]: the pixels inside a closed line (column, row) along pixels' edges; none, if it is none."""
    rows, columns = shape
    flips = np.zeros((rows, columns + 1), bool)
    corners = np.rint(points).astype(int)
    along_edges = np.abs(points - corners).max() < 0.01 and (np.diff(corners, axis=0) == 0).any(axis=1).all()
    if not along_edges or (corners < 0).any() or (corners > (columns, rows)).any():
        return flips[:, :-1]
    for (x, y0), (_, y1) in pairwise(corners):  # where it runs along a column, inside and outside change
        flips[min(y0, y1) : max(y0, y1), x] ^= True
    return np.asarray(np.logical_xor.accumulate(flips, axis=1)[:, :-1])


def _prove_mark(groups: Sequence[Dataset], finding: Mark, source: SourceVolume) -> None:
    """Its numbers, and its corners or its point in patient space."""
    inside = _only(groups, finding)
    _prove_number(inside, codes.CERTAINTY, finding.probability * 100, finding)
    edges = zip((codes.DEPTH, codes.HEIGHT, codes.WIDTH), finding.size_mm or (0.0, 0.0, 0.0), strict=True)
    for concept, edge in edges:
        if edge:
            _prove_number(inside, concept, edge, finding)
        elif concept.value in inside:
            raise Fault(f"finding {finding.number} with a {concept.meaning}", "a point has no size")
    region = inside[_IMAGE_REGION]
    if place_of(region) != key_image(finding, source):
        raise Fault(f"finding {finding.number} on another slice", "it is drawn on the slice in its middle (TID 1410)")
    graphic = "POLYLINE" if finding.size_mm else "POINT"
    if region.GraphicType != graphic:
        raise Fault(f"finding {finding.number} drawn as {region.GraphicType}", f"it is a {graphic} (PS3.3 C.18.6)")
    seen = in_space(np.reshape(np.array(region.GraphicData, float), (-1, 2)), source, finding.key_slice)
    wanted = corners(finding, source) if finding.size_mm else np.array([finding.centre_lps_mm])
    if seen.shape != wanted.shape:
        raise Fault(f"finding {finding.number} drawn with {len(seen)} points", f"it has {len(wanted)} (PS3.3 C.18.6)")
    middles = (seen[:4].mean(axis=0), np.array(finding.centre_lps_mm))
    off = max(off_by(seen, wanted, source), off_by(middles[0][None], middles[1][None], source))
    if not off <= PLACE_TOLERANCE_MM:
        raise Fault(
            f"finding {finding.number} drawn {off:.2f} mm off",
            f"a mark lies within {PLACE_TOLERANCE_MM} mm of where it was found",
        )


def _prove_judgement(statements: Sequence[Dataset], finding: Judgement, source: SourceVolume) -> None:
    """How sure it is, and by which image."""
    inside = _only(statements, finding)
    _prove_number(inside, codes.CERTAINTY, finding.probability * 100, finding)
    decided = inside.get(codes.SOURCE_OF_MEASUREMENT.value)
    if decided is None or place_of(decided) != key_image(finding, source):
        raise Fault(f"finding {finding.number} by another image", "a judgement refers to the image that decided")


def _only(statements: Sequence[Dataset], finding: Finding) -> dict[str, Dataset]:
    """The content items of the one statement of a finding, by their concept names."""
    if len(statements) != 1:
        raise Fault(f"finding {finding.number} said {len(statements)} times", "what was found is said once")
    return {name(item): item for item in statements[0].ContentSequence}


def _prove_number(inside: dict[str, Dataset], concept: codes.Code, value: float, finding: Finding) -> None:
    if concept.value not in inside:
        raise Fault(f"finding {finding.number} without its {concept.meaning}", "what was measured is said")
    written = float(inside[concept.value].MeasuredValueSequence[0].NumericValue)
    same(f"{concept.meaning} of finding {finding.number}", written, value, NUMBER_TOLERANCE)
