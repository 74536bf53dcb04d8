"""Proof of our own objects: their bytes are decoded again, apart from what wrote them, and held against the findings.

Promise 5: what does not prove is not sent. Here is what holds for every object: whose it is, what it refers to, who
made it. `proof_segments`, `proof_report` and `proof_pictures` hold what each kind says against what was found.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from pydicom import Dataset, dcmread

from service import codes
from service.errors import EncodingError
from service.forms import Kind
from service.results import charset, proof_pictures
from service.results.identity import Making, device_uid, predecessors
from service.results.proof_report import prove_report
from service.results.proof_segments import Seen, all_lesions_once, prove_segmentation
from service.results.reading import Fault, described_segments, items, references
from service.results.required import missing
from service.types import Conclusion, Picture, ResultObject, SourceVolume

_SAME_PATIENT = (
    "PatientID",
    "PatientName",
    "StudyInstanceUID",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def prove(
    making: Making,
    conclusion: Conclusion,
    source: SourceVolume | None,
    objects: Sequence[ResultObject],
    pictures: Sequence[Picture] = (),
) -> None:
    """Hold the bytes of all objects of one answer against what they must say.

    Parameters
    ----------
    making
        Of what they were made.
    conclusion
        What the objects must say.
    source
        The analysed series; None where there was none.
    objects
        All objects of the answer; a report behind the segmentations of its form.
    pictures
        Those that Secondary Captures show.

    Raises
    ------
    EncodingError
        If any object is not what it must be.
    """
    series = [source.series] if source else making.study.series
    known = {instance.sop_instance_uid for one in series for instance in one.instances}
    known |= {made.sop_instance_uid for made in objects}
    known |= {report.sop_instance_uid for report in making.earlier}
    header = source.ordered[0].header if source else making.study.series[0].header
    segments: dict[str, dict[str, Seen]] = {}  # by form, then by SOP Instance UID: what the segmentations hold
    for made in objects:
        try:
            dataset = dcmread(io.BytesIO(made.content))
            _prove_identity(dataset, made, header, known)
            _prove_maker(dataset, making)
            if made.kind is Kind.SR:
                _prove_predecessors(dataset, made, making)
            for lack in missing(dataset):
                raise Fault(lack, "an object has what its IOD requires (PS3.3 Annex A)")
            match made.kind:
                case Kind.SEG:
                    assert source  # there is nothing to segment without one
                    seen = prove_segmentation(dataset, source, conclusion.lesions, making)
                    segments.setdefault(made.form, {})[made.sop_instance_uid] = seen
                case Kind.SR:
                    prove_report(dataset, source, conclusion, segments.get(made.form, {}))
                case Kind.SC:
                    proof_pictures.prove_capture(dataset, _shown(made, pictures))
                case Kind.KO:
                    assert source
                    proof_pictures.prove_key_objects(dataset, source, conclusion.findings)
                case Kind.PR:
                    assert source
                    proof_pictures.prove_presentation(dataset, source, conclusion.findings)
                case _:
                    raise Fault(f"an object of the kind {made.kind}", "what is not proved is not sent")
        except Fault as fault:
            raise _error(made, fault.found, fault.rule) from None
        except Exception as exc:  # whatever a reader may stumble over
            raise _error(made, f"{type(exc).__name__} while decoding it", "our own bytes can be read again") from exc
    for form, seen_of_form in segments.items():
        try:
            all_lesions_once(seen_of_form.values(), conclusion.lesions)
        except Fault as fault:
            first = next(made for made in objects if made.kind is Kind.SEG and made.form == form)
            raise _error(first, fault.found, fault.rule) from None


def _prove_identity(dataset: Dataset, made: ResultObject, header: Dataset, known: set[str]) -> None:
    """SOP Common, patient, study and every reference."""
    for place in (dataset, dataset.file_meta):
        prefix = "" if place is dataset else "MediaStorage"
        if place[f"{prefix}SOPInstanceUID"].value != made.sop_instance_uid:
            raise Fault("another SOP Instance UID", "the object is kept under its own UID (PS3.3 C.12.1)")
        if place[f"{prefix}SOPClassUID"].value != made.sop_class_uid:
            raise Fault("another SOP Class UID", "the object is sent as its own class (PS3.3 C.12.1)")
    if dataset.file_meta.TransferSyntaxUID != made.transfer_syntax_uid:
        raise Fault("another Transfer Syntax UID", "the object is sent as it is encoded (PS3.10 section 7.1)")
    for keyword in _SAME_PATIENT:
        if charset.said(dataset, keyword) != charset.said(header, keyword):
            raise Fault(f"another {keyword} than the sources'", "a result is its sources' patient's (PS3.3 A.1.2)")
    strangers = {uid for uid in references(dataset) if uid not in known}
    if strangers:
        raise Fault(
            f"{len(strangers)} references to unknown instances, one is {min(strangers)}",
            "every reference is to a source or to another object of the answer (PS3.3 10.8)",
        )


def _prove_maker(dataset: Dataset, making: Making) -> None:
    """The model's name, version and weights, as Contributing Equipment and in Algorithm Identification alike."""
    spec = making.model.spec
    equipment = [
        (item.ManufacturerModelName, item.SoftwareVersions, item.get("DeviceUID"))
        for item in dataset.ContributingEquipmentSequence
        if item.PurposeOfReferenceCodeSequence[0].CodeValue == codes.PROCESSING_EQUIPMENT.value
    ]
    if equipment != [(spec.name, spec.version, device_uid(making.model))]:
        raise Fault("another model as its Contributing Equipment", "it names what made it (PS3.3 C.12.1.5)")
    for segment in described_segments(dataset):
        for item in segment.SegmentationAlgorithmIdentificationSequence:
            if (item.AlgorithmName, item.AlgorithmVersion) != (spec.name, spec.version):
                raise Fault("another algorithm in a segment", "a model is named alike wherever it stands (TID 4019)")
    for concept, wanted in ((codes.ALGORITHM_NAME, spec.name), (codes.ALGORITHM_VERSION, spec.version)):
        if {str(item.TextValue) for item in items(dataset, concept.value)} - {wanted}:
            raise Fault(f"another {concept.meaning} in a group", "a model is named alike wherever it stands (TID 4019)")


def _prove_predecessors(dataset: Dataset, made: ResultObject, making: Making) -> None:
    """The reports that it supersedes, and no other (PS3.3 C.17.2)."""
    named = sorted(uid for study in dataset.get("PredecessorDocumentsSequence", ()) for uid in references(study))
    wanted = sorted(report.sop_instance_uid for report in predecessors(making, made.base, made.form))
    if named != wanted:
        raise Fault(f"{len(named)} predecessors where there are {len(wanted)}", "a report names what it supersedes")


def _shown(made: ResultObject, pictures: Sequence[Picture]) -> Picture:
    """The picture that a Secondary Capture shows: its parts are the sheet, then the findings by their numbers."""
    for picture in pictures:
        if picture.finding == made.part - 1:
            return picture
    raise Fault(f"part {made.part} of the pictures", "a Secondary Capture shows one of the answer's pictures")


def _error(made: ResultObject, found: str, rule: str) -> EncodingError:
    return EncodingError(
        doing=f"proving the {made.kind} {made.sop_instance_uid}",
        found=found,
        rule=rule,
        way_out="it is not sent; report this as a fault of Overread, with the log",
    )
