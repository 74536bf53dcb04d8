"""What others' programs say of our pictures, key images and presentation states, and what DCMTK makes of them.

dcmp2pgm shows an image through a presentation state, and says which lines the state draws on it; it does not draw them.
So they are drawn here, where it says, on what it shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import Dataset, dcmread

from service.results import keyobjects, presentation, secondary, sheet
from service.spec import FindingClass
from service.types import Conclusion, Exclusion, Outcome
from tests import phantoms
from tests.integration.validators import dciodvfy, pixelmed, said
from tests.phantoms import Phantom
from tests.unit.test_results_identity import conclusion_of
from tests.unit.test_results_keyobjects import multi_frame
from tests.unit.test_results_presentation import states_of
from tests.unit.test_results_secondary import captures_of

KINDS: dict[str, Callable[[Phantom], Phantom]] = {
    "lesions": lambda phantom: phantom,
    "classes": phantoms.with_two_classes,
    "marks": phantoms.with_marks,
    "judged": phantoms.with_judgements,
    "frames": multi_frame,
}
SOURCES = [f"{kind}-{modality}" for kind in KINDS for modality in ("CT", "MR")]
SHEETS = [outcome.name for outcome in Outcome]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of every kind of object, by name."""
    folder = tmp_path_factory.mktemp("objects")
    made: dict[str, bytes] = {}
    for source in SOURCES:
        kind, modality = source.split("-")
        phantom = KINDS[kind](phantoms.make(folder / source, modality=modality, orientation=phantoms.OBLIQUE))
        conclusion = conclusion_of(phantom)
        made[f"sc-{source}"] = captures_of(phantom)[1].content
        made[f"ko-{source}"] = keyobjects.key_objects(phantom.making, conclusion, phantom.source).content
        made[f"pr-{source}"] = states_of(phantom)[0].content
    phantom = phantoms.make(folder / "bare", edit=_strip)
    made["ko-bare"] = keyobjects.key_objects(phantom.making, conclusion_of(phantom), phantom.source).content
    made["pr-bare"] = states_of(phantom)[0].content
    for outcome in Outcome:
        found = phantom.findings if outcome is Outcome.FINDINGS else ()
        conclusion = Conclusion(
            outcome=outcome,
            reason="a reason in words",
            findings=found,
            excluded=(Exclusion(series_instance_uid="1.2.3", reason="a localizer"),),
        )
        volume = None if outcome is Outcome.UNSUITABLE else phantom.source
        picture = sheet.summary(phantom.making, conclusion, volume, ())
        (capture,) = secondary.captures(phantom.making, conclusion, volume, picture, ())
        made[f"sc-{outcome.name}"] = capture.content
    paths = {name: folder / f"{name}.dcm" for name in made}
    for name, content in made.items():
        paths[name].write_bytes(content)
    return paths


def _strip(dataset: Dataset, _: int) -> None:
    """Take away what real series have been seen to lack."""
    for keyword in ("PatientID", "AccessionNumber", "StudyID", "FrameOfReferenceUID", "SliceThickness", "Manufacturer"):
        delattr(dataset, keyword)


ALL = [*(f"{kind}-{source}" for kind in ("sc", "ko", "pr") for source in SOURCES), "ko-bare", "pr-bare"]


@pytest.mark.parametrize("name", [*ALL, *(f"sc-{outcome}" for outcome in SHEETS)])
def test_dciodvfy_finds_no_error(objects: dict[str, Path], name: str) -> None:
    assert dciodvfy(objects[name]) == []


@pytest.mark.parametrize("name", ["ko-lesions-CT", "ko-frames-MR"])
def test_pixelmed_finds_no_error(objects: dict[str, Path], name: str) -> None:
    assert pixelmed(objects[name]) == []


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("ko")])
def test_dcmtk_prints_the_key_objects(objects: dict[str, Path], name: str) -> None:
    words = said("dsrdump", "+Pl", objects[name])
    assert 'CONTAINER:(,,"Of Interest")' in words
    assert "Research use only, not for diagnosis" in words
    assert words.count("contains IMAGE:") == (3 if "marks" in name else 2)
    assert not [line for line in words.splitlines() if line.startswith(("E:", "F:"))]


def _drop(keyword: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, keyword)


def _no_graphic_type(dataset: Dataset) -> None:
    del dataset.GraphicAnnotationSequence[0].GraphicObjectSequence[0].GraphicType


def _purpose(dataset: Dataset) -> None:
    """A purpose of reference, which the template forbids."""
    dataset.ContentSequence[-1].ConceptNameCodeSequence = [dataset.ConceptNameCodeSequence[0]]


@pytest.mark.parametrize(
    ("name", "fault", "validator"),
    [
        ("sc-lesions-CT", _drop("ConversionType"), dciodvfy),
        ("sc-FAILED", _drop("SamplesPerPixel"), dciodvfy),
        ("ko-lesions-CT", _drop("CurrentRequestedProcedureEvidenceSequence"), dciodvfy),
        ("ko-lesions-CT", _purpose, pixelmed),
        ("pr-lesions-CT", _drop("DisplayedAreaSelectionSequence"), dciodvfy),
        ("pr-lesions-CT", _no_graphic_type, dciodvfy),
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


# --- What is seen through a presentation state ----------------------------------------------------------------------

_LINE = re.compile(r"graphic \d+: points=\d+ type=(\w+) filled=no units=(\w+)\nI: +coordinates: ([\d.\\, ]+)")


class Shown:
    """An image as DCMTK shows it through a presentation state, and what that draws on it."""

    def __init__(self, state: Path, image: Path, folder: Path) -> None:
        bitmap = folder / "shown.pgm"
        self.words = said("dcmp2pgm", "-v", "--pstate", state, image, bitmap)
        assert not [line for line in self.words.splitlines() if line.startswith(("E:", "F:"))], self.words
        self.pixels: NDArray[np.uint8] = np.asarray(Image.open(bitmap))
        self.lines = [
            np.array([pair.split("\\") for pair in points.split(", ") if pair], float)
            for kind, units, points in _LINE.findall(self.words)
            if (kind, units) == ("polyline", "pixel")
        ]

    @property
    def enclosed(self) -> NDArray[np.bool_]:
        """bool [rows, columns]: the pixels whose centres the closed lines enclose; 0, 0 is the image's corner."""
        rows, columns = self.pixels.shape
        canvas = Image.new("1", (columns * 10, rows * 10))
        for points in self.lines:
            if len(points) > 3:
                ImageDraw.Draw(canvas).polygon([(column * 10, row * 10) for column, row in points], fill=1)
        return np.asarray(canvas)[5::10, 5::10]


@pytest.mark.parametrize(
    ("kind", "tissue", "lesion"), [(phantoms.LESION_CLASS, 127, 89), (phantoms.NODULE_CLASS, 236, 226)]
)
def test_dcmtk_shows_the_lesions_within_their_outlines_in_the_organs_window(
    tmp_path: Path, kind: FindingClass, tissue: int, lesion: int
) -> None:
    """-20 HU in 40 HU: through the window of soft tissue 89 in 127 of 255, through that of the lung 226 in 236."""
    phantom = phantoms.make(tmp_path / "series", spacing=(2.5, 1.2, 0.8))
    phantom = replace(phantom, findings=tuple(replace(it, kind=kind) for it in phantom.findings))
    state = tmp_path / "state.dcm"
    state.write_bytes(presentation.presentation(phantom.making, conclusion_of(phantom), phantom.source)[0].content)
    for index in {index for it in phantom.lesions for index in range(it.box[0].start, it.box[0].stop)}:
        shown = Shown(state, phantom.source.ordered[index].path, tmp_path)
        assert shown.enclosed.any()
        assert np.abs(shown.pixels[shown.enclosed].astype(int) - lesion).max() <= 1
        assert np.abs(shown.pixels[~shown.enclosed].astype(int) - tissue).max() <= 1
        assert "presentation pixel spacing: X=0.8mm Y=1.2 mm" in shown.words
        keys = [it.number for it in phantom.findings if it.key_slice == index]
        assert [int(number) for number in re.findall(r'text \d+: "\w+ (\d+)', shown.words)] == keys
        assert len([points for points in shown.lines if len(points) == 2]) == 2 * len(keys)


def test_an_outline_that_is_a_pixel_off_is_seen_through_dcmtk(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path / "series")
    (made,) = states_of(phantom)
    state = tmp_path / "state.dcm"
    state.write_bytes(made.content)
    dataset = dcmread(state)
    for annotation in dataset.GraphicAnnotationSequence:
        for item in annotation.GraphicObjectSequence:
            item.GraphicData = [value + 1 for value in item.GraphicData]
    dataset.save_as(state)
    shown = Shown(state, phantom.source.ordered[3].path, tmp_path)
    assert {89, 127} <= set(shown.pixels[shown.enclosed].tolist())
