"""What our objects copy from the sources: whose they are, of which study, and how the images lie.

The patient and the study are copied as they are; only what no reader could take (an impossible date, a missing frame of
reference) is put right, and only in our copies.
"""

from __future__ import annotations

from contextlib import suppress

from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.valuerep import DA, TM, DSfloat

from service.results import charset, frames
from service.results.identity import frame_of_reference_uid
from service.types import SourceVolume

_TYPE_2 = (  # Patient, General Study and Frame of Reference modules (PS3.3 C.7.1.1, C.7.2.1, C.7.4.1)
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
_FOREIGN_REFERENCES = (  # to what we have not seen; archives leave them incomplete
    "ReferencedStudySequence",
    "ReferencedPatientSequence",
    "ReferencedPerformedProcedureStepSequence",
)
_COPIED_GROUPS = frozenset({0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0028, 0x0032, 0x0040})


def complete_header(header: Dataset) -> Dataset:
    """A copy of a source's header that every reader of ours takes; the source itself is never changed.

    Parameters
    ----------
    header
        As received. Its names and texts are decoded by its own Specific Character Set (0008,0005), which the copy
        keeps.

    Returns
    -------
    Dataset
        Missing Type 2 attributes of patient and study are empty, and so are dates, times and sexes that the standard
        does not allow (PS3.5 section 6.2). Values that can't be decoded at all are left out.
    """
    copy = Dataset()
    for tag in header.keys():  # noqa: SIM118 - iterating the header itself would decode every element
        # The group lengths of old archives (gggg,0000) are retired, and Private attributes are not ours to copy.
        if tag.group in _COPIED_GROUPS and tag.element:
            with suppress(Exception):  # whatever the decoding of a broken value raises
                copy[tag] = charset.element(header, tag)
    for keyword in _FOREIGN_REFERENCES:
        if keyword in copy:
            del copy[keyword]
    for keyword in _TYPE_2:
        if copy.get(keyword) is None:
            _put(copy, keyword, "")
    if copy.PatientSex not in ("", "F", "M", "O"):
        _put(copy, "PatientSex", "")
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(getattr(copy, keyword))
        except ValueError:
            _put(copy, keyword, "")
    return copy


def complete_headers(source: SourceVolume) -> list[Dataset]:
    """Copies of the headers of the analysed images, made consistent with each other.

    Returns
    -------
    list of Dataset
        One for each slice of axis 0. All share what a series shares by definition (PS3.3 A.1.4), one frame of
        reference (there are archives in which each slice has its own), one orientation and the volume's slice
        spacing; each has its own position and UID.
    """
    shared = complete_header(source.ordered[0].header)
    spacing = DSfloat(float(source.volume.spacing[0]), auto_format=True)
    _put(shared, "FrameOfReferenceUID", frame_of_reference_uid(source))
    _put(shared, "SpacingBetweenSlices", spacing)
    thickness = shared.get("SliceThickness")
    if not (isinstance(thickness, float) and thickness > 0):
        _put(shared, "SliceThickness", spacing)
    copies = []
    for instance in source.ordered:
        copy = Dataset()
        copy.update(shared)
        _put(copy, "SOPClassUID", frames.class_for_highdicom(instance, source.series.modality))
        _put(copy, "SOPInstanceUID", instance.sop_instance_uid)
        _put(copy, "ImagePositionPatient", list(instance.header.ImagePositionPatient))
        copies.append(copy)
    return copies


def _put(header: Dataset, keyword: str, value: object) -> None:
    """Set an attribute by a new element; ``header.keyword = value`` would change the one that copies share."""
    header.add_new(keyword, dictionary_VR(keyword), value)
