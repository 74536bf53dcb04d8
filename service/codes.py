"""Coded concepts, derived UIDs and DIMSE statuses: each has its one home, with its section, here."""

from __future__ import annotations

import uuid
from typing import Final, NamedTuple

from pydicom.uid import UID

from service import __version__


class Code(NamedTuple):
    """A coded concept (PS3.3 section 8): what it is called, in which scheme, in words."""

    value: str
    scheme: str
    meaning: str


PRODUCT: Final = "Overread"  # Manufacturer and model name of all our results

# --- What the reports say -------------------------------------------------------------------------------------------

CAD_SUMMARY: Final = Code("111017", "DCM", "CAD Processing and Findings Summary")  # TID 4000, value set CID 6047
ALL_ALGORITHMS_WITH_FINDINGS: Final = Code("111242", "DCM", "All algorithms succeeded; with findings")
ALL_ALGORITHMS_NO_FINDINGS: Final = Code("111241", "DCM", "All algorithms succeeded; without findings")
NO_ALGORITHM_SUCCEEDED: Final = Code("111245", "DCM", "No algorithms succeeded; without findings")

NOT_ALL_WITH_FINDINGS: Final = Code("111244", "DCM", "Not all algorithms succeeded; with findings")
NOT_ALL_NO_FINDINGS: Final = Code("111243", "DCM", "Not all algorithms succeeded; without findings")

SUMMARY_OF_DETECTIONS: Final = Code("111064", "DCM", "Summary of Detections")  # TID 4000, value set CID 6042
SUCCEEDED: Final = Code("111222", "DCM", "Succeeded")
PARTIALLY_SUCCEEDED: Final = Code("111223", "DCM", "Partially Succeeded")
FAILED: Final = Code("111224", "DCM", "Failed")
NOT_ATTEMPTED: Final = Code("111225", "DCM", "Not Attempted")

QUALITATIVE_EVALUATIONS: Final = Code("C0034375", "UMLS", "Qualitative Evaluations")  # TID 1500
FINDING: Final = Code("121071", "DCM", "Finding")
FINDING_CATEGORY: Final = Code("276214006", "SCT", "Finding category")
FINDING_SITE: Final = Code("363698007", "SCT", "Finding Site")
TRACKING_IDENTIFIER: Final = Code("112039", "DCM", "Tracking Identifier")
TRACKING_UNIQUE_IDENTIFIER: Final = Code("112040", "DCM", "Tracking Unique Identifier")
ALGORITHM_NAME: Final = Code("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION: Final = Code("111003", "DCM", "Algorithm Version")
SOURCE_OF_MEASUREMENT: Final = Code("121112", "DCM", "Source of Measurement")  # CID 7551
LATERALITY: Final = Code("272741003", "SCT", "Laterality")
LEFT: Final = Code("7771000", "SCT", "Left")
RIGHT: Final = Code("24028007", "SCT", "Right")
COMMENT: Final = Code("121106", "DCM", "Comment")
LONG_AXIS: Final = Code("103339001", "SCT", "Long axis")
SHORT_AXIS: Final = Code("103340004", "SCT", "Short axis")
VOLUME: Final = Code("118565006", "SCT", "Volume")
AREA: Final = Code("42798000", "SCT", "Area")
MEAN: Final = Code("373098007", "SCT", "Mean")
WIDTH: Final = Code("103355008", "SCT", "Width")  # CID 7470, as are these two
HEIGHT: Final = Code("121207", "DCM", "Height")
DEPTH: Final = Code("131197000", "SCT", "Depth")
CERTAINTY: Final = Code("111012", "DCM", "Certainty of Finding")
ATTENUATION: Final = Code("112031", "DCM", "Attenuation Coefficient")

MILLIMETRE: Final = Code("mm", "UCUM", "millimeter")
MILLILITRE: Final = Code("ml", "UCUM", "milliliter")
HOUNSFIELD: Final = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
PERCENT: Final = Code("%", "UCUM", "Percent")

PROCESSING_EQUIPMENT: Final = Code("109102", "DCM", "Processing Equipment")  # CID 7005

# The imaging procedure, where the study's own headers carry none; PixelMed's validator takes codes outside CID 100
# for an error, and these are inside.
PROCEDURE_BY_MODALITY: Final = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
}
PROCEDURE_UNKNOWN: Final = Code("363679005", "SCT", "Imaging procedure")

# --- What no standard code says -------------------------------------------------------------------------------------

OWN_SCHEME: Final = "99OVERREAD"  # a private scheme begins with 99 (PS3.3 section 8.2)
REASON: Final = Code("REASON", OWN_SCHEME, "Reason for limited or no analysis")
CAUSES: Final = {  # by the key that errors and exclusions carry
    "no-series": Code("NO_SERIES", OWN_SCHEME, "No series that the model takes"),
    "modality": Code("MODALITY", OWN_SCHEME, "Modality that the model does not take"),
    "own-result": Code("OWN_RESULT", OWN_SCHEME, "Result of an Overread"),
    "derived": Code("DERIVED", OWN_SCHEME, "Localizer, derived or secondary images only"),
    "no-images": Code("NO_IMAGES", OWN_SCHEME, "No images"),
    "description": Code("DESCRIPTION", OWN_SCHEME, "Description that the model excludes"),
    "body-part": Code("BODY_PART", OWN_SCHEME, "Body part that the model does not take, or unknown"),
    "contrast": Code("CONTRAST", OWN_SCHEME, "Contrast agent missing or not wanted"),
    "orientation": Code("ORIENTATION", OWN_SCHEME, "Plane of the slices that the model does not take"),
    "slices": Code("SLICES", OWN_SCHEME, "Number of slices that the model does not take"),
    "slice-spacing": Code("SLICE_SPACING", OWN_SCHEME, "Slice spacing that the model does not take"),
    "rank": Code("RANK", OWN_SCHEME, "Another series of the study fits better"),
    "attribute": Code("ATTRIBUTE", OWN_SCHEME, "Attribute missing or unreadable"),
    "geometry": Code("GEOMETRY", OWN_SCHEME, "Images form no regular volume"),
    "pixels": Code("PIXELS", OWN_SCHEME, "Pixel data can't be decoded"),
    "region": Code("REGION", OWN_SCHEME, "Organ not found in the images"),
    "character-set": Code("CHARACTER_SET", OWN_SCHEME, "Unknown character set"),
    "incomplete": Code("INCOMPLETE", OWN_SCHEME, "Images of the study are missing"),
    "failure": Code("FAILURE", OWN_SCHEME, "The analysis failed"),
}

LABEL_MAP_SEGMENTATION_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.66.7"  # PS3.4 B.5; younger than pydicom 3.0's lists

# --- The audit trail (PS3.15 section A.5, PS3.16 CID 400 to 405) -----------------------------------------------------

AUDIT_APPLICATION: Final = Code("110100", "DCM", "Application Activity")  # events: CID 400
AUDIT_BEGIN_TRANSFERRING: Final = Code("110102", "DCM", "Begin Transferring DICOM Instances")
AUDIT_ACCESSED: Final = Code("110103", "DCM", "DICOM Instances Accessed")
AUDIT_TRANSFERRED: Final = Code("110104", "DCM", "DICOM Instances Transferred")
AUDIT_EXPORT: Final = Code("110106", "DCM", "Export")
AUDIT_NETWORK_ENTRY: Final = Code("110108", "DCM", "Network Entry")
AUDIT_SECURITY_ALERT: Final = Code("110113", "DCM", "Security Alert")
AUDIT_USER_AUTHENTICATION: Final = Code("110114", "DCM", "User Authentication")
APPLICATION_START: Final = Code("110120", "DCM", "Application Start")  # their types: CID 401
APPLICATION_STOP: Final = Code("110121", "DCM", "Application Stop")
LOGIN: Final = Code("110122", "DCM", "Login")
LOGOUT: Final = Code("110123", "DCM", "Logout")
ATTACH: Final = Code("110124", "DCM", "Attach")
DETACH: Final = Code("110125", "DCM", "Detach")
NODE_AUTHENTICATION: Final = Code("110126", "DCM", "Node Authentication")  # types of alerts: CID 403, as are these
RESTRICTED_FUNCTION: Final = Code("110132", "DCM", "Use of Restricted Function")
AUDIT_STOPPED: Final = Code("110133", "DCM", "Audit Recording Stopped")
AUTHORIZATION: Final = Code("110144", "DCM", "Authorization Decision")
ROLE_APPLICATION: Final = Code("110150", "DCM", "Application")  # roles of participants: CID 402
ROLE_DESTINATION: Final = Code("110152", "DCM", "Destination Role ID")
ROLE_SOURCE: Final = Code("110153", "DCM", "Source Role ID")
ROLE_DESTINATION_MEDIA: Final = Code("110154", "DCM", "Destination Media")
STUDY_INSTANCE_UID: Final = Code("110180", "DCM", "Study Instance UID")  # identifiers of objects: CID 404
NODE_ID: Final = Code("110182", "DCM", "Node ID")
PATIENT_NUMBER: Final = Code("2", "RFC-3881", "Patient Number")  # PS3.15 section A.5.1.2.4
MEDIA_URI: Final = Code("110037", "DCM", "URI")  # CID 405

# --- UIDs -----------------------------------------------------------------------------------------------------------

_UID_SPACE: Final = uuid.UUID("6f3c0b62-5f53-5c0e-9a43-0f2a6b1f7d51")


def derive_uid(*parts: str) -> str:
    """One UID for one content: the same parts always give the same UID (PS3.5 section B.2, root 2.25).

    Parameters
    ----------
    parts
        What the object is made of and what it is: source UIDs, model, version, settings, kind.

    Returns
    -------
    str
        ``2.25.`` and a name-based UUID as a decimal number; at most 44 characters.
    """
    return f"2.25.{uuid.uuid5(_UID_SPACE, chr(0x1F).join(parts)).int}"


# Who we are, on each association and in each file (PS3.7 D.3.3.2, PS3.10 section 7.1); a name has 16 characters.
IMPLEMENTATION_CLASS_UID: Final = derive_uid("implementation")
IMPLEMENTATION_VERSION_NAME: Final = f"OVERREAD_{__version__.rpartition('.')[0]}"


def uid_name(uid: str) -> str:
    """What the standard calls a UID (PS3.6 Annex A)."""
    return "Label Map Segmentation Storage" if uid == LABEL_MAP_SEGMENTATION_STORAGE else str(UID(uid).name)


# --- DIMSE ----------------------------------------------------------------------------------------------------------

SUCCESS: Final = 0x0000
CLASS_NOT_SUPPORTED: Final = 0x0122
WARNINGS: Final = frozenset({0xB000, 0xB006, 0xB007})  # stored, with a remark (PS3.4 Table B.2-1)
STATUS_WORDS: Final = {
    0x0000: "Success",
    0x0110: "Processing failure",
    0x0112: "No such SOP instance",
    0x0122: "SOP class not supported",
    0x0124: "Not authorized",
    0xA700: "Refused: out of resources",
    0xA900: "Error: data set does not match SOP class",
    0xB000: "Warning: coercion of data elements",
    0xB006: "Warning: elements discarded",
    0xB007: "Warning: data set does not match SOP class",
    0xC000: "Error: cannot understand",
}


def status_word(status: int) -> str:
    """The standard's words for a C-STORE status, by its exact value or by its class (PS3.4 Table B.2-1)."""
    classes = (status & 0xFF00, status & 0xF000) if status >= 0xA000 else ()  # below, each is its own (PS3.7 Annex C)
    for known in (status, *classes):
        if known in STATUS_WORDS:
            return STATUS_WORDS[known]
    return "Unknown status"


def status_may_pass(status: int) -> bool:
    """Whether a refusal with this status may pass by itself: out of resources (A7xx), processing failure (0110)."""
    return status & 0xFF00 == 0xA700 or status == 0x0110


# --- Storage commitment ---------------------------------------------------------------------------------------------

STORAGE_COMMITMENT: Final = "1.2.840.10008.1.20.1"  # Push Model SOP Class (PS3.4 section J.3)
STORAGE_COMMITMENT_INSTANCE: Final = "1.2.840.10008.1.20.1.1"  # its well-known instance (PS3.4 section J.3.5)
PROCESSING_FAILURE: Final = 0x0110
UNRECOGNIZED_OPERATION: Final = 0x0211  # one that was not agreed upon (PS3.7 section C.5.23)
N_STATUS_WORDS: Final = {  # of N-ACTION (PS3.7 section 10.1.4.1.10)
    0x0110: "Processing failure",
    0x0112: "No such SOP Instance",
    0x0114: "No such argument",
    0x0115: "Invalid argument value",
    0x0117: "Invalid SOP Instance",
    0x0118: "No such SOP Class",
    0x0119: "Class-Instance conflict",
    0x0122: "SOP class not supported",
    0x0123: "No such action",
    0x0124: "Not authorized",
    0x0210: "Duplicate invocation",
    0x0211: "Unrecognized operation",
    0x0212: "Mistyped argument",
    0x0213: "Resource limitation",
}
FAILURE_REASON_WORDS: Final = {  # Failure Reason (0008,1197), why an object was not committed to (PS3.3 C.14.1.1)
    0x0110: "Processing failure",
    0x0112: "No such object instance",
    0x0119: "Class / Instance conflict",
    0x0122: "Referenced SOP Class not supported",
    0x0131: "Duplicate transaction UID",
    0x0213: "Resource limitation",
}
