"""What others' validators say of our objects: dciodvfy of the IOD, PixelMed of the SR templates, DCMTK of reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from service.results import sr
from service.types import Exclusion, Outcome
from tests import phantoms
from tests.integration.validators import dciodvfy, pixelmed, said
from tests.unit.test_results_identity import objects_of
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
    for outcome in (Outcome.NO_FINDINGS, Outcome.UNSUITABLE, Outcome.FAILED):
        report = sr.report(
            phantom.making,
            source=None if outcome is Outcome.UNSUITABLE else phantom.source,
            findings=(),
            outcome=outcome,
            reason="a reason in words",
            dropped=0,
            excluded=(Exclusion(series_instance_uid="1.2.3", reason="a localizer"),),
            segmentation=None,
        )
        made[f"sr-{outcome.name.lower()}"] = report.content
    paths = {name: folder / f"{name}.dcm" for name in made}
    for name, content in made.items():
        paths[name].write_bytes(content)
    return paths


def _strip(dataset: Dataset, _: int) -> None:
    """Take away what real series have been seen to lack."""
    for keyword in ("PatientID", "AccessionNumber", "StudyID", "FrameOfReferenceUID", "SliceThickness", "Manufacturer"):
        delattr(dataset, keyword)


SEGMENTATIONS = ["seg-one", "seg-two", "seg-bare"]
REPORTS = ["sr-one", "sr-two", "sr-bare", "sr-no_findings", "sr-unsuitable", "sr-failed"]


@pytest.mark.parametrize("name", SEGMENTATIONS + REPORTS)
def test_dciodvfy_finds_no_error(objects: dict[str, Path], name: str) -> None:
    assert dciodvfy(objects[name]) == []


@pytest.mark.parametrize("name", ["sr-one", "sr-two", "sr-no_findings", "sr-unsuitable"])  # ten seconds each
def test_pixelmed_finds_no_error(objects: dict[str, Path], name: str) -> None:
    assert pixelmed(objects[name]) == []


@pytest.mark.parametrize("name", REPORTS)
def test_dcmtk_prints_the_report(objects: dict[str, Path], name: str) -> None:
    words = said("dsrdump", objects[name])
    assert 'CONTAINER:(,,"Imaging Measurement Report")' in words
    assert "CAD Processing and Findings Summary" in words
    assert not [line for line in words.splitlines() if line.startswith(("E:", "F:"))]


def _drop(keyword: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, keyword)


def _no_segment(dataset: Dataset) -> None:
    group = next(items(dataset, "125007"))
    group.ContentSequence = [i for i in group.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue != "121191"]


def _unknown_procedure(dataset: Dataset) -> None:
    next(items(dataset, "121058")).ConceptCodeSequence[0].CodeValue = "77477000"  # CT, but not of CID 100


@pytest.mark.parametrize(
    ("name", "fault", "validator"),
    [
        ("seg-one", _drop("SegmentSequence"), dciodvfy),
        ("sr-one", _drop("CompletionFlag"), dciodvfy),
        ("sr-two", _no_segment, pixelmed),
        ("sr-no_findings", _unknown_procedure, pixelmed),
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
