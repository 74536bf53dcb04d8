"""Codes, judged by their scheme, their meaning there, and their context group."""

from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from service.codes import Code
from service.vocabulary import Role, judge

CODES: dict[str, tuple[tuple[str, str, str], Role, str, str]] = {
    "a lesion": (("52988006", "SCT", "Lesion"), "finding", "ok", "CID 7159"),
    "a category": (("49755003", "SCT", "Morphologically Abnormal Structure"), "category", "ok", "CID 7150"),
    "an organ": (("10200004", "SCT", "Liver"), "site", "ok", "CID"),
    "an organ in other words": (("41216001", "SCT", "Prostate gland"), "site", "warning", "'Prostate'"),
    "no meaning": (("52988006", "SCT", ""), "finding", "WRONG", "no meaning"),
    "no value": (("", "SCT", "Lesion"), "finding", "WRONG", "no value"),
    "a meaning too long": (("52988006", "SCT", "Lesion" * 12), "finding", "WRONG", "72 characters"),
    "another code's meaning": (("10200004", "SCT", "Kidney"), "site", "WRONG", "means 'Liver'"),
    "a lesion for a site": (("52988006", "SCT", "Lesion"), "site", "warning", "no context group for a site"),
    "an organ for a category": (("10200004", "SCT", "Liver"), "category", "warning", "CID 7150"),
    "a digit wrong": (("52988007", "SCT", "Lesion"), "finding", "WRONG", "no SNOMED CT concept has that number"),
    "digits changed round": (("59288006", "SCT", "Lesion"), "finding", "WRONG", "no SNOMED CT concept"),
    "a description's number": (("52988113", "SCT", "Lesion"), "finding", "WRONG", "no SNOMED CT concept"),
    "a concept that DICOM does not list": (("393564001", "SCT", "Glioma"), "finding", "warning", "not in PS3.16"),
    "a code that DCM has not": (("999999", "DCM", "Lesion"), "finding", "WRONG", "DCM has no such code"),
    "a LOINC number wrong": (("99999-1", "LN", "Lesion"), "finding", "WRONG", "no LOINC term"),
    "a retired scheme": (("M-01000", "SRT", "Lesion"), "finding", "WRONG", "SRT is retired"),
    "a scheme that there is not": (("1", "SNOMED", "Lesion"), "finding", "WRONG", "no scheme 'SNOMED'"),
    "a private scheme": (("1", "99SITE", "Lesion"), "finding", "warning", "not in PS3.16"),
}


@pytest.mark.parametrize("name", CODES)
def test_a_code_is_judged(name: str) -> None:
    code, role, level, words = CODES[name]
    verdict = judge(Code(*code), role)
    assert verdict.level == level, verdict
    assert words in verdict.words
    assert (verdict.way_out == "") == (level == "ok")


def test_the_check_digits_of_what_the_standard_lists_are_right() -> None:
    """Else right codes would be called wrong: the rule is tried on codes that are known, as if they were not."""
    from service import vocabulary

    snomed = {concept.value for concept in codes.SCT.concepts.values()}
    assert len(snomed) > 8000
    wrong = {value for value in snomed if not vocabulary._is_snomed(value)}
    assert wrong == {"115347700"}, "the standard's own misprint, and no other"
    loinc = {concept.value for concept in codes.LN.concepts.values() if concept.value[:1].isdigit()}
    assert [value for value in loinc if not vocabulary._is_loinc(value)] == ["11524-0"]
