"""An answer as a structured report: Comprehensive 3D SR, TID 1500 Measurement Report (PS3.16).

How the analysis ended is said once, in the report's Qualitative Evaluations (TID 1500 row 12), and so is what was found
without a place (see `groups`), and not in a measurement group: OHIF 3.13 stumbles over a group without coordinates and
then draws none at all. Over a report without any group it stumbles too, if that is titled Imaging Measurement Report;
under the other title that TID 1500 has for such reports (CID 7021) it shows the whole report as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes as standard
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from service import __version__, codes
from service.forms import Kind
from service.results import copied, frames, groups, identity
from service.results.identity import Making, Name, code
from service.results.keyobjects import observer, once
from service.results.seg import Segmented
from service.types import Conclusion, Judgement, Lesion, Mark, Outcome, Report, ResultObject, SourceVolume

_CONTAINS = sr.RelationshipTypeValues.CONTAINS
_ABOUT_IMAGES = sr.RelationshipTypeValues.HAS_ACQ_CONTEXT

_STATUS = {  # CID 6042
    Outcome.FINDINGS: codes.SUCCEEDED,
    Outcome.NO_FINDINGS: codes.SUCCEEDED,
    Outcome.PARTIAL: codes.PARTIALLY_SUCCEEDED,
    Outcome.UNSUITABLE: codes.NOT_ATTEMPTED,
    Outcome.FAILED: codes.FAILED,
}


def summary_of(conclusion: Conclusion) -> codes.Code:
    """CAD Processing and Findings Summary, of CID 6047."""
    match conclusion.outcome, bool(conclusion.findings):
        case Outcome.PARTIAL, found:
            return codes.NOT_ALL_WITH_FINDINGS if found else codes.NOT_ALL_NO_FINDINGS
        case Outcome.FINDINGS, _:
            return codes.ALL_ALGORITHMS_WITH_FINDINGS
        case Outcome.NO_FINDINGS, _:
            return codes.ALL_ALGORITHMS_NO_FINDINGS
        case _:
            return codes.NO_ALGORITHM_SUCCEEDED


def report(
    making: Making,
    conclusion: Conclusion,
    *,
    source: SourceVolume | None,
    segmented: Sequence[Segmented] = (),
    form: str = "",
) -> ResultObject:
    """Say in a report how a model's work on a study ended, and what it found.

    Parameters
    ----------
    making
        Of what, by what and when.
    conclusion
        How the work ended, and what was found.
    source
        The analysed series; None where there was none. Then the study's first image stands for the study.
    segmented
        The lesions' Segmentations, each lesion in one of them; none: each lesion is drawn on all its slices instead.
    form
        The form of those (`SegForm.key`), or `OUTLINES`; empty where there are no lesions.

    Returns
    -------
    ResultObject
        A Comprehensive 3D SR instance (Explicit VR Little Endian), unverified.
    """
    headers = copied.complete_headers(source) if source else [copied.complete_header(making.study.series[0].header)]
    comments = list(_comments(making, conclusion))
    findings = conclusion.findings
    placed = list(_groups(conclusion, headers, source, segmented, making)) if source else []
    title = standard.cid7021.ImagingMeasurementReport if placed else standard.cid7021.OncologyMeasurementReport
    root = sr.ContainerContentItem(name=title, template_id="1500")
    root.ContentSequence = sr.ContentSequence()
    root.ContentSequence.extend(_context(headers[0]))
    root.ContentSequence.extend(_image_library(headers))
    if placed:
        measurements = sr.ContainerContentItem(name=standard.DCM.ImagingMeasurements, relationship_type=_CONTAINS)
        measurements.ContentSequence = sr.ContentSequence()
        for group in placed:
            measurements.ContentSequence.extend(group)
        root.ContentSequence.append(measurements)
    judged = [
        groups.judgement(finding, headers, source, making)
        for finding in findings
        if source and isinstance(finding, Judgement)
    ]
    root.ContentSequence.append(_evaluations(conclusion, judged, comments))

    base = identity.base_uid(making, source, Name(kind=Kind.SR, outcome=conclusion.outcome, form=form))
    earlier = identity.predecessors(making, base, form)
    superseded = " ".join(report.sop_instance_uid for report in earlier)
    name = Name(kind=Kind.SR, outcome=conclusion.outcome, form=form, supersedes=superseded)
    evidence = [*headers, *(_reference(it.object, making) for it in segmented)]
    real_class = headers[0].SOPClassUID
    if not source:
        # highdicom looks up by the class where the patient's attributes are, and knows no private ones.
        headers[0].SOPClassUID = CTImageStorage
    made = sr.Comprehensive3DSR(
        evidence=evidence,
        content=root,
        is_complete=not conclusion.dropped and conclusion.outcome not in (Outcome.FAILED, Outcome.PARTIAL),
        previous_versions=[_reference(report, making) for report in earlier] or None,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **identity.series_of_ours(making, source, name),
    )
    if conclusion.causes:
        made.CodingSchemeIdentificationSequence = [identity.own_scheme()]
    if not source:
        study = made.CurrentRequestedProcedureEvidenceSequence[0]
        study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPClassUID = real_class
    else:
        frames.restore(made, source)
    return identity.finish(made, making, source, headers[0], name)


def _groups(
    conclusion: Conclusion,
    headers: Sequence[Dataset],
    source: SourceVolume,
    segmented: Sequence[Segmented],
    making: Making,
) -> Iterator[sr.ContentSequence]:
    """The measurement groups of all findings that have a place."""
    for finding in conclusion.findings:
        match finding:
            case Lesion():
                yield from groups.lesion(finding, headers, source, segmented, making)
            case Mark():
                yield groups.mark(finding, headers, source, making)


# --- What it is about -----------------------------------------------------------------------------------------------


def _context(header: Dataset) -> sr.ContentSequence:
    """Language, observer and procedure (TID 1204, 1001, 100)."""
    content = sr.ContentSequence()
    content.extend(sr.LanguageOfContentItemAndDescendants(sr.CodedConcept("en", "RFC5646", "English")))
    content.extend(sr.ObservationContext(observer_device_context=observer()))
    content.append(
        sr.CodeContentItem(
            name=standard.DCM.ProcedureReported,
            value=_procedure(header),
            relationship_type=sr.RelationshipTypeValues.HAS_CONCEPT_MOD,
        )
    )
    return content


def _procedure(header: Dataset) -> sr.CodedConcept:
    """The imaging procedure by the sources' own code, if that is one of CID 100, else by modality."""
    known = {(concept.scheme_designator, concept.value): concept for concept in standard.cid100.concepts.values()}
    for keyword in ("ProcedureCodeSequence", "RequestedProcedureCodeSequence"):
        for item in header.get(keyword) or ():
            concept = known.get((item.get("CodingSchemeDesignator"), item.get("CodeValue")))
            if concept:
                return sr.CodedConcept.from_code(concept)
    return code(codes.PROCEDURE_BY_MODALITY.get(header.get("Modality", ""), codes.PROCEDURE_UNKNOWN))


def _image_library(headers: Sequence[Dataset]) -> sr.ContentSequence:
    """The images the report is about (TID 1600), with what they have in common said once (TID 1602, 1604).

    highdicom's own library repeats it for each image: 985 kB for 250 slices. Nothing, where there are no images.
    """
    first = headers[0]
    if "Rows" not in first:
        return sr.ContentSequence()
    group = sr.ContainerContentItem(name=standard.DCM.ImageLibraryGroup, relationship_type=_CONTAINS)
    group.ContentSequence = sr.ContentSequence()
    for modality in standard.cid29.concepts.values():
        if modality.value == first.get("Modality"):
            group.ContentSequence.append(
                sr.CodeContentItem(name=standard.DCM.Modality, value=modality, relationship_type=_ABOUT_IMAGES)
            )
    if first.get("FrameOfReferenceUID"):
        group.ContentSequence.append(
            sr.UIDRefContentItem(
                name=standard.DCM.FrameOfReferenceUID,
                value=first.FrameOfReferenceUID,
                relationship_type=_ABOUT_IMAGES,
            )
        )
    group.ContentSequence.extend(_numbers(first))
    group.ContentSequence.extend(
        sr.ImageContentItem(
            name=standard.SCT.Source,
            referenced_sop_class_uid=header.SOPClassUID,
            referenced_sop_instance_uid=header.SOPInstanceUID,
            relationship_type=_CONTAINS,
        )
        for header in once(headers)
    )
    library = sr.ContainerContentItem(name=standard.DCM.ImageLibrary, relationship_type=_CONTAINS)
    library.ContentSequence = sr.ContentSequence([group])
    return sr.ContentSequence([library])


def _numbers(header: Dataset) -> Iterable[sr.NumContentItem]:
    """Size and spacing of the images (TID 1602, 1604), as far as the header says."""
    spacing = header.PixelSpacing if "PixelSpacing" in header and header["PixelSpacing"].VM == 2 else (None, None)
    pixels, mm = sr.CodedConcept("{pixels}", "UCUM", "Pixels"), standard.UCUM.Millimeter
    for name, value, unit in (
        (standard.DCM.PixelDataRows, header.get("Rows"), pixels),
        (standard.DCM.PixelDataColumns, header.get("Columns"), pixels),
        (standard.DCM.HorizontalPixelSpacing, spacing[1], mm),
        (standard.DCM.VerticalPixelSpacing, spacing[0], mm),
        (standard.DCM.SliceThickness, header.get("SliceThickness"), mm),
        (standard.DCM.SpacingBetweenSlices, header.get("SpacingBetweenSlices"), mm),
    ):
        if value and isinstance(value, int | float):
            yield sr.NumContentItem(name=name, value=float(value), unit=unit, relationship_type=_ABOUT_IMAGES)


def _reference(made: ResultObject | Report, making: Making) -> Dataset:
    """What another object of ours is referred to by."""
    reference = Dataset()
    reference.StudyInstanceUID = making.study.study_instance_uid
    reference.SeriesInstanceUID = made.series_instance_uid
    reference.SOPClassUID, reference.SOPInstanceUID = made.sop_class_uid, made.sop_instance_uid
    return reference


# --- How it ended ---------------------------------------------------------------------------------------------------


def _evaluations(
    conclusion: Conclusion, judged: Iterable[sr.CodeContentItem], comments: Iterable[str]
) -> sr.ContainerContentItem:
    """Outcome and why, what was found without a place, and remarks (TID 1500 rows 12 to 14)."""
    said = (
        (codes.CAD_SUMMARY, summary_of(conclusion)),
        (codes.SUMMARY_OF_DETECTIONS, _STATUS[conclusion.outcome]),
        *((codes.REASON, codes.CAUSES[cause]) for cause in conclusion.causes),
    )
    container = sr.ContainerContentItem(name=code(codes.QUALITATIVE_EVALUATIONS), relationship_type=_CONTAINS)
    container.ContentSequence = sr.ContentSequence(
        [
            *(
                sr.CodeContentItem(name=code(concept), value=code(value), relationship_type=_CONTAINS)
                for concept, value in said
            ),
            *judged,
            *(
                sr.TextContentItem(name=code(codes.COMMENT), value=comment, relationship_type=_CONTAINS)
                for comment in comments
            ),
        ]
    )
    return container


def _comments(making: Making, conclusion: Conclusion) -> Iterable[str]:
    spec = making.model.spec
    yield (
        f"{identity.DISCLAIMER}. {spec.title}: model {spec.name} {spec.version} by {spec.manufacturer}, "
        f"run by {identity.NAME} {__version__} on {making.backend}."
    )
    yield f"It looks for: {identity.looked_for(spec)}."
    for finding in conclusion.findings:
        if isinstance(finding, Judgement):
            yield groups.in_words(finding)
    if conclusion.reason:
        yield conclusion.reason
    if conclusion.dropped:
        yield f"{conclusion.dropped} more finding(s), less probable than these, are not listed."
    for note in conclusion.notes:
        yield f"Accepted as it is: {note}"
    for exclusion in conclusion.excluded:
        yield f"Series {exclusion.series_instance_uid} was left out: {exclusion.reason}"
