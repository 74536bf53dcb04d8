"""What all our objects share: who made them, of what, when, and under which UIDs.

The same sources, model, settings and outcome always give the same UIDs and, with the same ``made_at``, the same bytes
(promise 3).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import highdicom as hd
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.uid import UID

from service import __version__, codes
from service.forms import Kind
from service.results import charset
from service.spec import ModelSpec
from service.types import (
    Completeness,
    Finding,
    Model,
    Outcome,
    Point,
    Report,
    ResultObject,
    Series,
    SourceVolume,
    Study,
)

NAME = codes.PRODUCT
SERIAL_NUMBER = f"{NAME}-{__version__}"  # Type 1 in a SEG; the program has no number but its version
DISCLAIMER = "Research use only, not for diagnosis"

_LAYOUT = "2"  # of our objects; raised when the same findings are written otherwise: one UID, one content

_SERIES_NUMBER = {Kind.SEG: 9001, Kind.SR: 9002, Kind.SC: 9003, Kind.PR: 9004, Kind.KO: 9005}  # behind scanners' own


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """Of what, by what and when the objects of one answer are made."""

    study: Study
    model: Model
    backend: str  # where the networks ran, in words
    made_at: datetime  # aware; every date and time of ours in the objects
    earlier: tuple[Report, ...] = ()  # what this model's earlier analyses of the study reported


# --- UIDs -----------------------------------------------------------------------------------------------------------


def is_result(header: Dataset) -> bool:
    """Whether an instance is a result of an Overread."""
    return {header.get("Manufacturer"), header.get("ManufacturerModelName")} == {NAME}


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """Which of an answer's objects: its UIDs are derived from this, and from what the answer is made of."""

    kind: Kind
    outcome: Outcome  # another outcome of the same sources is another object
    form: str = ""  # see `ResultObject`
    part: int = 1
    supersedes: str = ""  # SOP Instance UIDs of the reports that this one names as its predecessors


def series_uid(making: Making, source: SourceVolume | None, name: Name) -> str:
    """Series Instance UID: one for each kind and form, and for each part of a segmentation (viewers show one each)."""
    part = str(name.part) if name.kind is Kind.SEG else ""
    return codes.derive_uid(*_origin(making, source), name.kind, name.form, part, "series")


def instance_uid(making: Making, source: SourceVolume | None, name: Name) -> str:
    """SOP Instance UID."""
    return codes.derive_uid(base_uid(making, source, name), name.form, str(name.part), name.supersedes)


def base_uid(making: Making, source: SourceVolume | None, name: Name) -> str:
    """What the SOP Instance UID is derived from, whatever the form and the predecessor: one for one content."""
    study = making.study
    # What is missing is said in every object's answer: with the same images, another lack is another content.
    lack = [study.missing] if study.completeness is Completeness.PARTIAL else []
    return codes.derive_uid(*_origin(making, source), name.kind, name.outcome, *lack)


def predecessors(making: Making, base: str, form: str) -> list[Report]:
    """The last earlier report of another content than this base's, which a new report supersedes.

    Of that analysis it is the report of the same form; if there is none, all: nobody knows here which of them a
    destination has.
    """
    others = [report for report in making.earlier if report.base != base]
    last = max((report.revision for report in others), default=0)
    of_last = [report for report in others if report.revision == last]
    return [report for report in of_last if report.form == form] or of_last


def tracking_uid(series: Series, model_name: str, channel: int, place: Point | None) -> str:
    """Tracking UID of a finding (TID 4108): the same lesion in the same images keeps it, whatever its rank or size.

    Parameters
    ----------
    series
        The analysed series.
    model_name
        The model that found it.
    channel
        Of its class: two classes may have a finding each in one place.
    place
        Its centre, LPS mm; rounded to whole millimetres, so that another device's last digits do not matter. None
        where it is said of all the images.
    """
    where = " ".join(str(round(coordinate)) for coordinate in place) if place else "all images"
    parts = [_digest(instance.sop_instance_uid for instance in series.instances), model_name, where]
    # The first class is not named: so its findings keep the UIDs of the time when models had no others.
    return codes.derive_uid(*parts, *([f"class {channel}"] if channel else []))


def device_uid(model: Model) -> str:
    """Device UID (0018,1002) of a model: other weights are another device."""
    return codes.derive_uid("device", model.spec.name, model.spec.version, model.weights_sha256)


def observer_uid() -> str:
    """Device UID of Overread itself, the observer of the reports (TID 1004)."""
    return codes.derive_uid("device", NAME, __version__)


def frame_of_reference_uid(source: SourceVolume) -> str:
    """Frame of Reference UID of the analysed series, or one of our own where its images carry none."""
    return str(
        source.volume.frame_of_reference_uid
        or codes.derive_uid("frame of reference", source.series.series_instance_uid)
    )


def _origin(making: Making, source: SourceVolume | None) -> tuple[str, ...]:
    """What an object is made of and by what; the whole study where no series was analysed."""
    # Without results of another Overread: two of them would answer each other for ever.
    every = [source.series] if source else [s for s in making.study.series if not is_result(s.header)]
    sources = _digest(instance.sop_instance_uid for series in every for instance in series.instances)
    model = making.model
    settings = hashlib.sha256(model.spec.model_dump_json().encode()).hexdigest()
    what = (model.spec.name, model.spec.version, model.weights_sha256, settings)
    return making.study.study_instance_uid, sources, *what, _LAYOUT


def _digest(uids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(uids)).encode("ascii")).hexdigest()


# --- What is ours ---------------------------------------------------------------------------------------------------


def code(concept: codes.Code) -> CodedConcept:
    """A concept of ours as highdicom takes it."""
    return CodedConcept(concept.value, concept.scheme, concept.meaning)


def label(finding: Finding) -> str:
    """What people call a finding: segment label and tracking identifier; an LO of at most 64 characters."""
    return f"{finding.kind.finding.meaning[:58]} {finding.number}"


def looked_for(spec: ModelSpec) -> str:
    """What a model looks for, in words."""
    return ", ".join(f"{kind.finding.meaning} ({kind.site.meaning})" for kind in spec.classes if not kind.normal)


def series_of_ours(making: Making, source: SourceVolume | None, name: Name) -> dict[str, Any]:
    """Arguments of highdicom's constructors that say which series and instance this is, and of which equipment."""
    return {
        "specific_character_set": None,  # `finish` sets it; highdicom would refuse some that are in use
        "series_instance_uid": series_uid(making, source, name),
        "series_number": _SERIES_NUMBER[name.kind],
        "sop_instance_uid": instance_uid(making, source, name),
        "instance_number": name.part,
        "series_description": _series_description(making.model.spec.title),
        "manufacturer": NAME,
        "manufacturer_model_name": NAME,
        "device_serial_number": SERIAL_NUMBER,
        "software_versions": __version__,
    }


def finish(made: hd.SOPClass, making: Making, source: SourceVolume | None, header: Dataset, name: Name) -> ResultObject:
    """Put our stamp on an object, and make it the bytes that are kept, proved and sent.

    Parameters
    ----------
    made
        The object as highdicom made it.
    making, source
        Of what it was made.
    header
        The completed header that patient and study were copied from.
    name
        Which object it is.
    """
    date, time = making.made_at.strftime("%Y%m%d"), making.made_at.strftime("%H%M%S")
    moments = ("InstanceCreation", "Series", *(("PresentationCreation",) if name.kind is Kind.PR else ("Content",)))
    for moment in moments:
        setattr(made, f"{moment}Date", date)
        setattr(made, f"{moment}Time", time)
    # In place of highdicom's own item, whose time is the clock's: one item for the model (IHE AIR 6.5.3.1).
    made.ContributingEquipmentSequence = [_contribution(making)]
    made.file_meta.ImplementationClassUID = UID(codes.IMPLEMENTATION_CLASS_UID)
    made.file_meta.ImplementationVersionName = codes.IMPLEMENTATION_VERSION_NAME
    charset.settle(made, header)
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return ResultObject(
        kind=name.kind,
        form=name.form,
        part=name.part,
        sop_class_uid=str(made.SOPClassUID),
        transfer_syntax_uid=str(made.file_meta.TransferSyntaxUID),
        base=base_uid(making, source, name),
        supersedes=name.supersedes,
        series_instance_uid=str(made.SeriesInstanceUID),
        sop_instance_uid=str(made.SOPInstanceUID),
        content=file.getvalue(),
    )


def own_scheme() -> Dataset:
    """Whose the private scheme of some of our codes is (PS3.3 C.12.1.1.3 Coding Scheme Identification Sequence)."""
    item = Dataset()
    item.CodingSchemeDesignator = codes.OWN_SCHEME
    item.CodingSchemeUID = codes.derive_uid("coding scheme")
    item.CodingSchemeName = f"Codes of {NAME}"
    item.CodingSchemeResponsibleOrganization = NAME
    return item


def _series_description(title: str) -> str:
    """The model's title, marked; an LO of at most 64 characters (PS3.5 section 6.2)."""
    mark = " (research)"
    return title[: 64 - len(mark)].rstrip() + mark


def _contribution(making: Making) -> hd.ContributingEquipment:
    """The model as Contributing Equipment (0018,A001); name and version as in SEG and SR (PS3.3 C.12.1.5)."""
    spec = making.model.spec
    item = hd.ContributingEquipment(
        manufacturer=spec.manufacturer,
        purpose_of_reference=code(codes.PROCESSING_EQUIPMENT),
        manufacturer_model_name=spec.name,
        software_versions=spec.version,
        contribution_datetime=making.made_at,
        contribution_description=f"{spec.title}; run by {NAME} {__version__} on {making.backend}",
    )
    item.DeviceUID = device_uid(making.model)
    return item
