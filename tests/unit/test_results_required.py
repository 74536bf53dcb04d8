"""Every object has what its IOD requires, and what is taken away is missed, at every depth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from service.errors import EncodingError
from service.forms import Kind, Profile, SegForm, Wanted
from service.results import objects
from service.results.proof import prove
from service.results.required import missing
from service.types import ResultObject
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import conclusion_of, read
from tests.unit.test_results_proof import planted

EVIDENCE = "CurrentRequestedProcedureEvidenceSequence"
WANTED = Wanted.by(
    [
        Profile(capture="findings", gsps=True, ko=True),
        Profile(seg="labelmap", compression="jpeg-ls"),
        Profile(seg="fractional"),
    ]
)


def made_of(phantom: Phantom) -> tuple[ResultObject, ...]:
    """Every kind and form of object."""
    conclusion = conclusion_of(phantom)
    pictures = objects.pictures_of(phantom.making, conclusion, phantom.source)
    return objects.objects_of(phantom.making, conclusion, phantom.source, WANTED, pictures)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ResultObject]:
    """By kind and form."""
    phantom = phantoms.make(tmp_path_factory.mktemp("phantom"))
    return {f"{it.kind} {it.form}".strip(): it for it in made_of(phantom)}


def test_nothing_is_missing(made: dict[str, ResultObject]) -> None:
    assert {name.split()[0] for name in made} == set(Kind)
    assert {name: list(missing(read(it))) for name, it in made.items()} == {name: [] for name in made}


def _del(*path: str | int) -> Callable[[Dataset], None]:
    def fault(dataset: Dataset) -> None:
        place: Any = dataset
        for step in path[:-1]:
            place = place[step] if isinstance(step, int) else getattr(place, step)
        delattr(place, str(path[-1]))

    return fault


def _empty_manufacturer(dataset: Dataset) -> None:
    dataset.Manufacturer = ""


@pytest.mark.parametrize(
    ("name", "fault", "found"),
    [
        ("SEG binary", _del("SegmentSequence", 1, "SegmentLabel"), "SegmentSequence[2].SegmentLabel is missing"),
        ("SEG binary", _empty_manufacturer, "Manufacturer is empty"),
        ("SEG labelmap-jpeg-ls", _del("ContentLabel"), "ContentLabel is missing"),
        ("SEG fractional", _del("PerFrameFunctionalGroupsSequence", 0, "FrameContentSequence"), "FrameContentSequence"),
        ("SR binary", _del("CompletionFlag"), "CompletionFlag is missing"),
        (
            "SR outlines",
            _del("ContentSequence", 0, "ConceptNameCodeSequence", 0, "CodeMeaning"),
            "ContentSequence[1].ConceptNameCodeSequence[1].CodeMeaning is missing",
        ),
        ("SC", _del("PatientBirthDate"), "PatientBirthDate is missing"),
        ("PR", _del("PresentationCreationDate"), "PresentationCreationDate is missing"),
        ("KO", _del(EVIDENCE), f"{EVIDENCE} is missing"),
    ],
)  # fmt: skip
def test_what_is_taken_away_is_missed(
    made: dict[str, ResultObject], name: str, fault: Callable[[Dataset], None], found: str
) -> None:
    said = list(missing(read(planted(made[name], fault))))
    assert any(found in words for words in said), said


def test_the_proof_lets_nothing_incomplete_through(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    conclusion = conclusion_of(phantom)
    pictures = objects.pictures_of(phantom.making, conclusion, phantom.source)
    made = objects.objects_of(phantom.making, conclusion, phantom.source, Wanted(forms=(SegForm(),)), pictures)
    prove(phantom.making, conclusion, phantom.source, made, pictures)
    broken = (planted(made[0], _del("SegmentSequence", 0, "SegmentLabel")), *made[1:])
    with pytest.raises(EncodingError, match=r"SegmentSequence\[1\]\.SegmentLabel is missing"):
        prove(phantom.making, conclusion, phantom.source, broken, pictures)
