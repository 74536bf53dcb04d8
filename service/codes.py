"""Coded concepts, derived UIDs and DIMSE statuses: each has its one home, with its section, here."""

from __future__ import annotations

import uuid
from typing import Final, NamedTuple

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

SUMMARY_OF_DETECTIONS: Final = Code("111064", "DCM", "Summary of Detections")  # TID 4000, value set CID 6042
SUCCEEDED: Final = Code("111222", "DCM", "Succeeded")
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
COMMENT: Final = Code("121106", "DCM", "Comment")
LONG_AXIS: Final = Code("103339001", "SCT", "Long axis")
SHORT_AXIS: Final = Code("103340004", "SCT", "Short axis")
VOLUME: Final = Code("118565006", "SCT", "Volume")
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

# --- DIMSE ----------------------------------------------------------------------------------------------------------

SUCCESS: Final = 0x0000
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
    for known in (status, status & 0xFF00, status & 0xF000):
        if known in STATUS_WORDS:
            return STATUS_WORDS[known]
    return "Unknown status"


def status_may_pass(status: int) -> bool:
    """Whether a refusal with this status may pass by itself: out of resources (A7xx), processing failure (0110)."""
    return status & 0xFF00 == 0xA700 or status == 0x0110
