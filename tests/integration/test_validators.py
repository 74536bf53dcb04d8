"""What others' validators say of our objects: dciodvfy of the IOD, PixelMed of the SR templates, DCMTK of reading."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from service.results import sr
from service.types import Conclusion, Exclusion, Outcome
from tests import phantoms
from tests.integration.validators import dciodvfy, pixelmed, said
from tests.unit.test_results_identity import objects_of, report_of
from tests.unit.test_results_sr import items


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of every kind of object, by name."""
    folder = tmp_path_factory.mktemp("objects")
    made: dict[str, bytes] = {}
    for name, lesions, orientation in (
        ("one", 1, phantoms.AXIAL),
        ("two", 2, phantoms.OBLIQUE),
        ("bare", 1, phantoms.AXIAL),
    ):
        phantom = phantoms.make(
            folder / name, lesions=lesions, orientation=orientation, edit=_strip if name == "bare" else None
        )
        segmentation, report = objects_of(phantom)
        made |= {f"seg-{name}": segmentation.content, f"sr-{name}": report.content}
    for modality in ("CT", "MR"):
        phantom = phantoms.make(folder / modality, modality=modality)
        segmentation, report = objects_of(phantoms.with_two_classes(phantom))
        made |= {f"seg-classes-{modality}": segmentation.content, f"sr-classes-{modality}": report.content}
        made[f"sr-marks-{modality}"] = report_of(phantoms.with_marks(phantom)).content
        judged = phantoms.with_judgements(phantom)
        made[f"sr-judged-{modality}"] = report_of(judged).content
        made[f"sr-normal-{modality}"] = report_of(replace(judged, findings=())).content
    for outcome in (Outcome.NO_FINDINGS, Outcome.PARTIAL, Outcome.UNSUITABLE, Outcome.FAILED):
        conclusion = Conclusion(
            outcome=outcome,
            reason="a reason in words",
            causes=() if outcome is Outcome.NO_FINDINGS else ("slice-spacing",),
            excluded=(Exclusion(series_instance_uid="1.2.3", reason="a localizer"),),
        )
        source = None if outcome is Outcome.UNSUITABLE else phantom.source
        report = sr.report(phantom.making, conclusion, source=source)
        made[f"sr-{outcome.name.lower()}"] = report.content
    paths = {name: folder / f"{name}.dcm" for name in made}
    for name, content in made.items():
        paths[name].write_bytes(content)
    return paths


def _strip(dataset: Dataset, _: int) -> None:
    """Take away what real series have been seen to lack."""
    for keyword in ("PatientID", "AccessionNumber", "StudyID", "FrameOfReferenceUID", "SliceThickness", "Manufacturer"):
        delattr(dataset, keyword)


KINDS = [f"{kind}-{modality}" for kind in ("classes", "marks", "judged", "normal") for modality in ("CT", "MR")]
SEGMENTATIONS = ["seg-one", "seg-two", "seg-bare", "seg-classes-CT", "seg-classes-MR"]
REPORTS = ["sr-one", "sr-two", "sr-bare", "sr-no_findings", "sr-unsuitable", "sr-failed", *(f"sr-{k}" for k in KINDS)]
# Ten seconds each: each kind once, and both modalities.
OF_PIXELMED = [
    "sr-one", "sr-two", "sr-no_findings", "sr-unsuitable",
    "sr-classes-CT", "sr-classes-MR", "sr-marks-CT", "sr-judged-MR", "sr-normal-MR",
]  # fmt: skip


@pytest.mark.parametrize("name", SEGMENTATIONS + REPORTS)
def test_dciodvfy_finds_no_error(objects: dict[str, Path], name: str) -> None:
    assert dciodvfy(objects[name]) == []


@pytest.mark.parametrize("name", OF_PIXELMED)
def test_pixelmed_finds_no_error(objects: dict[str, Path], name: str) -> None:
    assert pixelmed(objects[name]) == []


@pytest.mark.parametrize("name", REPORTS)
def test_dcmtk_prints_the_report(objects: dict[str, Path], name: str) -> None:
    words = said("dsrdump", objects[name])
    assert re.search(r'CONTAINER:\(,,"(Imaging|Oncology) Measurement Report"\)', words)
    assert "CAD Processing and Findings Summary" in words
    assert not [line for line in words.splitlines() if line.startswith(("E:", "F:"))]


def _drop(keyword: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, keyword)


def _no_segment(dataset: Dataset) -> None:
    group = next(items(dataset, "125007"))
    group.ContentSequence = [i for i in group.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue != "121191"]


def _on_no_image(dataset: Dataset) -> None:
    """A rectangle that is drawn on no image."""
    del next(items(dataset, "111030")).ContentSequence


def _no_value(dataset: Dataset) -> None:
    """A coded finding that does not say which one."""
    del next(items(dataset, "121071")).ConceptCodeSequence


def _unknown_procedure(dataset: Dataset) -> None:
    next(items(dataset, "121058")).ConceptCodeSequence[0].CodeValue = "77477000"  # CT, but not of CID 100


@pytest.mark.parametrize(
    ("name", "fault", "validator"),
    [
        ("seg-one", _drop("SegmentSequence"), dciodvfy),
        ("sr-one", _drop("CompletionFlag"), dciodvfy),
        ("sr-two", _no_segment, pixelmed),
        ("sr-no_findings", _unknown_procedure, pixelmed),
        ("sr-marks-CT", _on_no_image, pixelmed),
        ("sr-judged-MR", _no_value, dciodvfy),
    ],
)
def test_the_validators_find_a_planted_fault(
    objects: dict[str, Path],
    tmp_path: Path,
    name: str,
    fault: Callable[[Dataset], None],
    validator: Callable[[Path], list[str]],
) -> None:
    dataset = dcmread(objects[name])
    fault(dataset)
    broken = tmp_path / "broken.dcm"
    dataset.save_as(broken)
    assert validator(broken)
