"""What a report of ours says, in words: read back from the frozen object itself, not from what it was made of. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom import Dataset

from service import codes
from service.results.reading import items


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A report in words."""

    title: str  # what kind of document it is
    summary: str  # CAD Processing and Findings Summary
    status: str  # Summary of Detections: whether it was looked at all that should have been
    causes: tuple[str, ...]  # why it was not, coded
    comments: tuple[str, ...]  # who, what was looked for, notes, series left out
    groups: tuple[tuple[tuple[str, str], ...], ...]  # of each finding with a place: what is said of it
    modality: str  # of the images that it is about
    is_complete: bool  # Completion Flag (0040,A491)


def told(report: Dataset) -> Told:
    """Read a Comprehensive 3D SR of ours (TID 1500)."""
    return Told(
        title=_meaning(report.ConceptNameCodeSequence),
        summary=_first(report, codes.CAD_SUMMARY.value),
        status=_first(report, codes.SUMMARY_OF_DETECTIONS.value),
        causes=tuple(_value(item) for item in items(report, codes.REASON.value)),
        comments=tuple(_value(item) for item in items(report, codes.COMMENT.value)),
        groups=tuple(_group(item) for item in items(report, _MEASUREMENT_GROUP)),
        modality=next((str(it.ConceptCodeSequence[0].CodeValue) for it in items(report, _MODALITY)), ""),
        is_complete=report.get("CompletionFlag") == "COMPLETE",
    )


_MEASUREMENT_GROUP = "125007"  # DCM, TID 1410 and 1411
_MODALITY = "121139"  # DCM, TID 1602
_SAID = ("CODE", "TEXT", "NUM")


def _group(group: Dataset) -> tuple[tuple[str, str], ...]:
    return tuple(
        (_meaning(item.ConceptNameCodeSequence), _value(item))
        for item in group.get("ContentSequence", ())
        if item.ValueType in _SAID and "ConceptNameCodeSequence" in item
    )


def _first(report: Dataset, concept: str) -> str:
    return next((_value(item) for item in items(report, concept)), "")


def _value(item: Dataset) -> str:
    """A content item's value in words (PS3.3 C.17.3.2)."""
    match item.ValueType:
        case "CODE":
            return _meaning(item.ConceptCodeSequence)
        case "NUM":
            number = item.MeasuredValueSequence[0]
            return f"{float(number.NumericValue):g} {number.MeasurementUnitsCodeSequence[0].CodeValue}"
    return str(item.get("TextValue", ""))


def _meaning(sequence: list[Dataset]) -> str:
    return str(sequence[0].CodeMeaning)
