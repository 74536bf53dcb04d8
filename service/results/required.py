"""Which attributes an object must have: by the standard's tables of IODs and modules that highdicom brings along.

No validator library can be used here: dicom-validator, the best kept one, needs the standard's text, which no package
index carries. The tables are the same text in short: attributes with their types, for each module of each IOD (PS3.3).
They know no conditions and no value lists: dciodvfy and others look at those, in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

from highdicom import _standard_utils as standard  # its tables have no public name; highdicom is pinned
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_CONTENT = "sr-document-content"
_OF_VALUE_TYPES = {  # attributes of a content item that belong to some value types only (PS3.3 C.17.3.2, C.18)
    "ConceptCodeSequence": {"CODE"},
    "ContinuityOfContent": {"CONTAINER"},
    "DateTime": {"DATETIME"},
    "Date": {"DATE"},
    "Time": {"TIME"},
    "PersonName": {"PNAME"},
    "TextValue": {"TEXT"},
    "UID": {"UIDREF"},
    "GraphicData": {"SCOORD", "SCOORD3D"},
    "GraphicType": {"SCOORD", "SCOORD3D"},
    "MeasuredValueSequence": {"NUM"},
    "ReferencedFrameOfReferenceUID": {"SCOORD3D"},
    "ReferencedSOPSequence": {"IMAGE", "COMPOSITE", "WAVEFORM"},
    "TabulatedValuesSequence": {"TABLE"},
    "TemporalRangeType": {"TCOORD"},
}


@dataclass(slots=True, kw_only=True)
class _Attribute:
    """An attribute at its place in an IOD."""

    keyword: str
    tag: int
    type: str  # 1, 1C, 2, 2C or 3 (PS3.5 section 7.4)
    value_types: set[str] | None  # of the content items that have it; None: all
    items: dict[str, _Attribute] = field(default_factory=dict)  # of a sequence, by keyword


def missing(dataset: Dataset) -> Iterator[str]:
    """What an object lacks of its IOD: attributes of Type 1 or 2 that are not there, of Type 1 that are empty.

    Yields
    ------
    str
        The attribute's path, and what is wrong with it.

    Raises
    ------
    KeyError
        If the SOP class is none of the tables'.
    """
    yield from _missing(dataset, _attributes(str(dataset.SOPClassUID)).values(), "")


def _missing(item: Dataset, attributes: Iterable[_Attribute], path: str) -> Iterator[str]:
    for attribute in attributes:
        element = item.get(attribute.tag)
        where = f"{path}{attribute.keyword}"
        if element is None:
            belongs = attribute.value_types is None or item.get("ValueType") in attribute.value_types
            if attribute.type in ("1", "2") and belongs:
                yield f"{where} is missing"
            continue
        if attribute.type in ("1", "1C") and element.is_empty:
            yield f"{where} is empty"
        if attribute.items and element.VR == "SQ":
            for number, child in enumerate(element.value, start=1):
                yield from _missing(child, attribute.items.values(), f"{where}[{number}].")


@cache
def _attributes(sop_class_uid: str) -> dict[str, _Attribute]:
    """The attributes of an IOD, as a tree."""
    top: dict[str, _Attribute] = {}
    modules = standard.get_module_attribute_map()
    for module in standard.get_iod_module_map()[standard.get_sop_class_iod_map()[sop_class_uid]]:
        for row in modules.get(module["key"], ()):
            tag = tag_for_keyword(row["keyword"])
            level = _level(top, row["path"])
            if tag is None or level is None:
                continue
            kind = _type(row["keyword"], tuple(row["path"]), row["type"], is_mandatory=module["usage"] == "M")
            of = _OF_VALUE_TYPES.get(row["keyword"]) if module["key"] == _CONTENT else None
            known = level.setdefault(
                row["keyword"], _Attribute(keyword=row["keyword"], tag=int(tag), type=kind, value_types=of)
            )
            known.type = min(known.type, kind)  # of two modules, the stricter one holds: "1" < "1C" < "2" < "3"
        if module["key"] == _CONTENT:
            content = top["ContentSequence"]
            content.items["ContentSequence"] = content  # content items hold content items
    return top


def _level(top: dict[str, _Attribute], path: Iterable[str]) -> dict[str, _Attribute] | None:
    """The attributes at a path; None where its sequence is not in the tables."""
    level = top
    for keyword in path:
        if keyword not in level:
            return None
        level = level[keyword].items
    return level


def _type(keyword: str, path: tuple[str, ...], kind: str, *, is_mandatory: bool) -> str:
    """An attribute's type, as far as it holds without its conditions."""
    if not path and not is_mandatory:
        return "3"  # the whole module may be absent
    if path and path[-1] in _FUNCTIONAL_GROUPS:  # each may stand in one of the two
        return "1" if (keyword, path[-1]) == ("FrameContentSequence", _FUNCTIONAL_GROUPS[1]) else "3"
    return kind
