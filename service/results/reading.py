"""How the proof reads our own objects: plain data elements, apart from the library that wrote them."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import Dataset

from service.codes import Code

PLACE_TOLERANCE_MM = 0.5
VOLUME_TOLERANCE = 0.01  # of the volume
NUMBER_TOLERANCE = 0.001  # of a number in the report; it is written with five digits
_REFERENCED_SOP_INSTANCE_UID = 0x00081155


class Fault(Exception):
    """What was found, and the rule it breaks."""

    def __init__(self, found: str, rule: str) -> None:
        self.found, self.rule = found, rule
        super().__init__(found)


def same_number(what: str, written: float, wanted: float, tolerance: float) -> None:
    """Hold a number against the finding's.

    Raises
    ------
    Fault
        If they differ by more than that part of it.
    """
    if not abs(written - wanted) <= tolerance * abs(wanted):  # so that what is no number is caught too
        raise Fault(f"{what} is {written:.5g} and not {wanted:.5g}", f"numbers agree within {tolerance:.1%}")


def same_code(what: str, item: Dataset, wanted: Code) -> None:
    """Hold an item of a code sequence against the model's code.

    Raises
    ------
    Fault
        If they are not the same one (PS3.3 section 8.1).
    """
    written = (str(item.CodeValue), str(item.CodingSchemeDesignator))
    if written != (wanted.value, wanted.scheme):
        raise Fault(
            f"{what} is {' '.join(written)} and not {wanted.value} {wanted.scheme}",
            "a finding says what its model's class is called",
        )


def described_segments(dataset: Dataset) -> list[Dataset]:
    """The items of the Segment Sequence, without the background that a label map has (PS3.3 C.8.20.2.1)."""
    return [item for item in dataset.get("SegmentSequence", ()) if item.SegmentNumber != 0]


def items(item: Dataset, concept: str) -> Iterator[Dataset]:
    """The content items of a concept name, anywhere below."""
    for child in item.get("ContentSequence", ()):
        if name(child) == concept:
            yield child
        yield from items(child, concept)


def name(item: Dataset) -> str:
    """The code value of a content item's concept name; empty where it has none, as the images of a KO document."""
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""


def references(dataset: Dataset) -> Iterator[str]:
    """All Referenced SOP Instance UIDs below."""
    for element in dataset.elements():  # as they stand in the file: only what is asked for is decoded
        if element.VR == "SQ":
            for item in dataset[element.tag].value:
                yield from references(item)
        elif element.tag == _REFERENCED_SOP_INSTANCE_UID:
            yield str(dataset[element.tag].value)
