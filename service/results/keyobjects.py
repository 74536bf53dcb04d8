"""The source images that show an answer's findings: as Key Object Selection, and for whoever refers to them.

Key Object Selection Document (PS3.3 A.35.4), TID 2010 (PS3.16): what viewers list, and jump to, as key images.
"""

from __future__ import annotations

from collections.abc import Iterable

from highdicom import ko, sr
from pydicom import Dataset
from pydicom.sr.codedict import codes as standard
from pydicom.uid import ExplicitVRLittleEndian

from service.forms import Kind
from service.results import copied, frames, identity
from service.results.identity import Making, Name
from service.types import Conclusion, Finding, Instance, ResultObject, SourceVolume


def key_objects(making: Making, conclusion: Conclusion, source: SourceVolume) -> ResultObject:
    """Point at the image, or the frame of one, that shows each finding best.

    Parameters
    ----------
    making
        Of what, by what and when.
    conclusion
        What was found; at least one finding.
    source
        The analysed series.

    Returns
    -------
    ResultObject
        A Key Object Selection Document titled (113000, DCM, "Of Interest"). An image that shows several findings
        is in it once; the first finding's comes first.
    """
    headers = copied.complete_headers(source)
    keys = key_slices(conclusion.findings)
    spec, count = making.model.spec, len(source.ordered)
    shown = "; ".join(f"{identity.label(it)} on slice {it.key_slice + 1} of {count}" for it in conclusion.findings)
    description = f"{identity.DISCLAIMER}. {spec.title}: model {spec.name} {spec.version}. {shown}."
    content = ko.KeyObjectSelection(
        document_title=standard.DCM.OfInterest,
        referenced_objects=[headers[index] for index in keys],
        observer_device_context=observer(),
        description=description,
    )
    name = Name(kind=Kind.KO, outcome=conclusion.outcome)
    made = ko.KeyObjectSelectionDocument(
        evidence=once([headers[index] for index in keys]),
        content=content,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **identity.series_of_ours(making, source, name),
    )
    images = (item for item in made.ContentSequence if item.ValueType == "IMAGE")
    for item, index in zip(images, keys, strict=True):
        item.ReferencedSOPSequence = [reference(source.ordered[index])]
        del item.ConceptNameCodeSequence  # highdicom says "Source", where the template allows no purpose of reference
    made.copy_patient_and_study_information(headers[0])
    frames.restore(made, source)
    return identity.finish(made, making, source, headers[0], name)


def key_slices(findings: Iterable[Finding]) -> list[int]:
    """The slices that show the findings best: in the findings' order, each once."""
    return list(dict.fromkeys(finding.key_slice for finding in findings))


def once(headers: Iterable[Dataset]) -> list[Dataset]:
    """The first of those that are frames of one image, in order."""
    first: dict[str, Dataset] = {}
    for header in headers:
        first.setdefault(str(header.SOPInstanceUID), header)
    return list(first.values())


def reference(instance: Instance) -> Dataset:
    """An item of a sequence that refers to an image, or to a frame of it (PS3.3 Table 10-3)."""
    item = Dataset()
    item.ReferencedSOPClassUID = instance.sop_class_uid
    item.ReferencedSOPInstanceUID = instance.sop_instance_uid
    if numbers := frames.numbers(instance):
        item.ReferencedFrameNumber = numbers
    return item


def observer() -> sr.ObserverContext:
    """Overread, as the device that observed (TID 1002, 1004)."""
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=identity.observer_uid(),
        name=identity.NAME,
        manufacturer_name=identity.NAME,
        model_name=identity.NAME,
        serial_number=identity.SERIAL_NUMBER,
    )
    return sr.ObserverContext(observer_type=standard.DCM.Device, observer_identifying_attributes=device)
