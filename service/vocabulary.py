"""Are a model's codes what they say? Against the context groups of PS3.16 and what a scheme's identifiers look like."""

from __future__ import annotations

import re
from functools import cache
from typing import Literal, NamedTuple

from pydicom.sr.codedict import codes

from service.codes import Code

Role = Literal["finding", "category", "site"]

# The context groups of PS3.16 from which viewers and registries expect each code.
GROUPS: dict[Role, tuple[int, ...]] = {
    "finding": (7159, 7168, 7169, 7199, 6054, 6101, 6104, 6105, 6110, 6113, 6148, 6201, 6204, 7151),
    "category": (7150,),
    "site": (4031, 4030, 4, 7192, 7153, 7154, 7156, 7157, 7160, 7170, 7602, 6300, 6301, 6149, 7600, 7601),
}
# PS3.16 Table 8-1; others are private, and then begin with 99 (PS3.3 section 8.2).
_SCHEMES = frozenset(
    {"SCT", "DCM", "LN", "RADLEX", "UMLS", "FMA", "NCIt", "MSH", "NEU", "BARI", "IBSI", "I10", "ICDO3"}
)
_RETIRED = frozenset({"SRT", "SNM3", "99SDM"})
_LONGEST = {"value": 16, "scheme": 16, "meaning": 64}  # VR SH, SH and LO (PS3.5 section 6.2)


class Verdict(NamedTuple):
    """What is to be said of a code."""

    level: Literal["ok", "warning", "WRONG"]
    words: str
    way_out: str = ""


def judge(code: Code, role: Role) -> Verdict:
    """Judge one code by the scheme that it names, its meaning there, and its context group."""
    said = f"({code.value}, {code.scheme}, {code.meaning!r})"
    for part, longest in _LONGEST.items():
        text = getattr(code, part)
        if not text.strip():
            return Verdict(
                "WRONG", f"{said} has no {part}", "a code is [value, scheme, meaning], each with words in it"
            )
        if len(text) > longest:
            return Verdict("WRONG", f"{said}: its {part} has {len(text)} characters", f"use {longest} at most (PS3.5)")
    if code.scheme in _RETIRED:
        return Verdict("WRONG", f"{said}: {code.scheme} is retired", "use the SCT code of the same concept (PS3.16 8)")
    meanings = _meanings(code.scheme).get(code.value, frozenset())
    if not meanings:
        return _unknown(code, said, role)
    if not any(_words(code.meaning) & _words(meaning) for meaning in meanings):
        return Verdict(
            "WRONG",
            f"{said}: that code means {_quoted(meanings)}",
            "take the code of what is meant, or the meaning of that code",
        )
    groups = [f"CID {group}" for group in GROUPS[role] if (code.scheme, code.value) in _group(group)]
    if not groups:
        return Verdict(
            "warning",
            f"{said} is known, but in no context group for a {role} (CID {', '.join(map(str, GROUPS[role][:3]))}, ...)",
            "viewers may not know it; take one of these groups if one fits",
        )
    if not any(_words(code.meaning) == _words(meaning) for meaning in meanings):
        return Verdict("warning", f"{said}: PS3.16 words it {_quoted(meanings)}", "use these words")
    return Verdict("ok", f"{said}, {groups[0]}")


def _unknown(code: Code, said: str, role: Role) -> Verdict:
    """A code that PS3.16 does not list: may it be one of its scheme at all?"""
    if code.scheme == "DCM":
        return Verdict("WRONG", f"{said}: DCM has no such code", "PS3.16 Annex D lists them all")
    if code.scheme == "SCT" and not _is_snomed(code.value):
        return Verdict(
            "WRONG", f"{said}: no SNOMED CT concept has that number", "copy it again: its check digit is wrong"
        )
    if code.scheme == "LN" and not _is_loinc(code.value):
        return Verdict("WRONG", f"{said}: no LOINC term has that number", "copy it again: its check digit is wrong")
    if code.scheme == "RADLEX" and not re.fullmatch(r"RID\d+", code.value):
        return Verdict("WRONG", f"{said}: RadLex identifiers are RID and a number", "copy it again")
    if code.scheme not in _SCHEMES and not code.scheme.startswith("99"):
        return Verdict(
            "WRONG",
            f"{said}: PS3.16 Table 8-1 knows no scheme {code.scheme!r}",
            "use SCT, or a private scheme whose name begins with 99",
        )
    return Verdict(
        "warning",
        f"{said} is not in PS3.16, nor in a context group for a {role}: its meaning can not be checked here",
        "take a code of PS3.16 if one fits",
    )


@cache
def _meanings(scheme: str) -> dict[str, frozenset[str]]:
    """By value, what PS3.16 calls the codes of a scheme."""
    known = getattr(codes, scheme, None)
    found: dict[str, frozenset[str]] = {}
    for concept in known.concepts.values() if known is not None else ():
        found[concept.value] = found.get(concept.value, frozenset()) | {concept.meaning}
    return found


@cache
def _group(group: int) -> frozenset[tuple[str, str]]:
    concepts = getattr(codes, f"CID{group}").concepts.values()
    return frozenset((concept.scheme_designator, concept.value) for concept in concepts)


def _words(meaning: str) -> frozenset[str]:
    """The words of a meaning that carry it, without SNOMED's type in brackets."""
    plain = re.sub(
        r"\((finding|disorder|body structure|morphologic abnormality|qualifier value)\)", "", meaning.lower()
    )
    return frozenset(re.findall(r"\w+", plain)) - {"of", "the", "and", "structure", "a"}


def _quoted(meanings: frozenset[str]) -> str:
    return " or ".join(repr(meaning) for meaning in sorted(meanings))


def _is_snomed(value: str) -> bool:
    """Whether a number is a SNOMED CT concept identifier: partition 00 or 10, and Verhoeff's check digit."""
    if not re.fullmatch(r"[1-9]\d{5,17}", value) or value[-3:-1] not in ("00", "10"):
        return False
    check = 0
    for place, digit in enumerate(map(int, reversed(value))):
        for _ in range(place % 8):
            digit = _TURNED[digit]
        check = _product(check, digit)
    return check == 0


_TURNED = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)  # Verhoeff's permutation


def _product(a: int, b: int) -> int:
    """In the dihedral group of the pentagon: 0 to 4 turn it, 5 to 9 turn it over."""
    if a < 5:
        return (a + b) % 5 if b < 5 else 5 + (a + b) % 5
    return 5 + (a - b) % 5 if b < 5 else (a - b) % 5


def _is_loinc(value: str) -> bool:
    """Whether a number is a LOINC one: up to seven digits, and a check digit by Luhn."""
    if not re.fullmatch(r"\d{1,7}-\d", value):
        return False
    digits = [int(digit) for digit in reversed(value.replace("-", ""))]
    return sum(digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(digits)) % 10 == 0
