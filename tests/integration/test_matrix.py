"""Every kind of answer, in every form, with every kind of picture: what others' validators say of each object.

dciodvfy judges the IODs, PixelMed the templates of reports (here what `test_validators` has not), and dicom-validator
in `test_dicom_validator` what both do not know. Their few warnings are explained here, and no other may come.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service.forms import Kind, Profile, SegForm, Wanted
from service.results import objects
from service.results.proof import prove
from service.types import Conclusion, Exclusion, Outcome, ResultObject
from tests import phantoms
from tests.integration.validators import complaints, pixelmed, said
from tests.phantoms import Phantom
from tests.unit.test_multi_frame import enhanced
from tests.unit.test_results_identity import conclusion_of

PICTURES = Profile(capture="findings", gsps=True, ko=True)
FORMS = (
    SegForm(),
    SegForm(omit_empty_frames=False),
    SegForm(segments="class"),
    SegForm(maximum_frames=5),
    SegForm(type="labelmap"),
    SegForm(type="labelmap", compression="rle"),
    SegForm(type="labelmap", compression="jpeg-ls"),
    SegForm(type="fractional"),
    SegForm(type="fractional", compression="rle"),
)
EVERYTHING = replace(Wanted.by([PICTURES]), forms=FORMS)
KINDS: dict[str, Callable[[Phantom], Phantom]] = {
    "lesions": phantoms.with_two_classes,
    "marks": phantoms.with_marks,
    "judgements": phantoms.with_judgements,
}
EXPLAINED = {
    "Device UID of Contributing Equipment (0018,1002), asked for by IHE AIR, is younger than this dciodvfy": (
        r"Attribute is not present in standard DICOM IOD - \(0x0018,0x1002\) UI Device UID",
        r"Dicom dataset contains attributes not present in standard DICOM IOD",
    ),
    "reasons for no analysis have no standard codes; the private scheme is identified (PS3.3 section 8.2)": (
        r"Unrecognized defined term <99OVERREAD> for value 1 of attribute <Coding Scheme Designator>",
        r"Unrecognized defined term <2\.25\.\d+> for value 1 of attribute <Coding Scheme UID>",
    ),
    "highdicom writes an empty Laterality (Type 2C); whether the part is a paired one the sources do not say": (
        r"is only permitted to be empty when actually unknown.*<Laterality>",
    ),
}
# Label maps are younger than Debian's dciodvfy: it looks at none of their modules, and takes their class for none of
# segmentations where a report refers to it.
UNKNOWN_TO_DCIODVFY = (
    r"Information Object Not found",
    r"Shall not be present for Referenced SOP Class that is not segmentation - attribute <ReferencedSegmentNumber>",
)


def made_of(phantom: Phantom, conclusion: Conclusion) -> tuple[ResultObject, ...]:
    """All objects of an answer, proved."""
    source = None if conclusion.outcome is Outcome.UNSUITABLE else phantom.source
    pictures = objects.pictures_of(phantom.making, conclusion, source)
    made = objects.objects_of(phantom.making, conclusion, source, EVERYTHING, pictures)
    prove(phantom.making, conclusion, source, made, pictures)
    return made


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of every cell, by "answer kind form part"."""
    folder = tmp_path_factory.mktemp("matrix")
    answers: dict[str, tuple[ResultObject, ...]] = {}
    for modality in ("CT", "MR"):
        phantom = phantoms.make(folder / modality, modality=modality)
        for name, kind in KINDS.items():
            found = kind(phantom)
            answers[f"{modality}-{name}"] = made_of(found, conclusion_of(found))
    framed = enhanced(folder, phantoms.make(folder / "single"))
    answers["frames"] = made_of(framed, conclusion_of(framed))
    why = "slice spacing 12.00 mm, the model takes 0.3 to 5 mm"
    for outcome in Outcome:
        findings = phantom.findings if outcome in (Outcome.FINDINGS, Outcome.PARTIAL) else ()
        conclusion = Conclusion(
            outcome=outcome,
            findings=findings,
            reason="" if outcome in (Outcome.FINDINGS, Outcome.NO_FINDINGS) else why,
            causes=() if outcome in (Outcome.FINDINGS, Outcome.NO_FINDINGS) else ("slice-spacing",),
            dropped=3 if findings else 0,
            excluded=(Exclusion(series_instance_uid="1.2.3", reason="localizers only", cause="derived"),),
            notes=("the images name no frame of reference; one was derived from the series",),
        )
        answers[outcome.name] = made_of(phantom, conclusion)
    paths = {}
    for answer, made in answers.items():
        for number, it in enumerate(made):
            path = folder / f"{answer}-{number}.dcm"
            path.write_bytes(it.content)
            paths[f"{answer} {it.kind} {it.form} {it.part}"] = path
    return paths


def test_the_matrix_is_full(matrix: dict[str, Path]) -> None:
    """Each answer has its report and its sheet; each with lesions every form of segmentation and every picture."""
    for outcome in Outcome:
        kinds = {name.split(" ")[1] for name in matrix if name.startswith(f"{outcome.name} ")}
        lesions = outcome in (Outcome.FINDINGS, Outcome.PARTIAL)
        assert kinds == (set(Kind) if lesions else {"SR", "SC"})
        for form in FORMS if lesions else ():
            assert f"{outcome.name} SEG {form.key} 1" in matrix


def test_dciodvfy_finds_no_error_and_warns_of_nothing_else(matrix: dict[str, Path]) -> None:
    errors: dict[str, list[str]] = {}
    warnings: dict[str, list[str]] = {}
    expected = [pattern for patterns in EXPLAINED.values() for pattern in patterns]
    for name, path in matrix.items():
        wrong, odd = complaints(path)
        if "labelmap" in name:
            wrong = [line for line in wrong if not any(re.search(pattern, line) for pattern in UNKNOWN_TO_DCIODVFY)]
        odd = [line for line in odd if not any(re.search(pattern, line) for pattern in expected)]
        errors |= {name: wrong} if wrong else {}
        warnings |= {name: odd} if odd else {}
    assert (errors, warnings) == ({}, {})


@pytest.mark.parametrize(
    "name", ["PARTIAL SR outlines 1", "CT-lesions SR labelmap-jpeg-ls 1", "frames SR binary 1", "FAILED SR  1"]
)
def test_pixelmed_finds_no_error(matrix: dict[str, Path], name: str) -> None:
    assert pixelmed(matrix[name]) == []


def test_dcmtk_prints_every_report(matrix: dict[str, Path]) -> None:
    """But those of label maps: DCMTK of today takes their class for none that has segments."""
    for name, path in matrix.items():
        if " SR " in name and "labelmap" not in name:
            lines = said("dsrdump", path).splitlines()
            assert not [line for line in lines if line.startswith(("E:", "F:"))], name
