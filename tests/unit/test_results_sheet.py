"""The sheet says what the answer is, whatever it is; its words can be read, overlap nothing and are never cut off."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset

from service.codes import Code
from service.results import capture, sheet
from service.spec import FindingClass
from service.types import Conclusion, Exclusion, Finding, Outcome, Picture
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import conclusion_of

Box = tuple[float, float, float, float]
SECRETS = ("Phantom^Test", "P-0001", "19700102", "A-77", "Referrer")
LONG = FindingClass(
    finding=Code("1", "99TEST", "Metastatic malignant neoplasm, of unknown primary, of very long name"),
    site=Code("2", "99TEST", "Structure of the right lateral part of the left lobe of liver"),
)


@dataclass(slots=True)
class Seen:
    """What is put on canvases."""

    words: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)  # of the words
    heights: set[int] = field(default_factory=set)
    images: list[Box] = field(default_factory=list)

    def forget(self) -> None:
        """What was put before."""
        for found in (self.words, self.boxes, self.heights, self.images):
            found.clear()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What the sheet puts on its canvas, while it is drawn as ever."""
    found = Seen()
    text, paste, font = ImageDraw.ImageDraw.text, Image.Image.paste, sheet.font

    def note_text(draw: ImageDraw.ImageDraw, place: tuple[float, float], words: str, **rest: Any) -> None:
        found.words.append(words)
        found.boxes.append(draw.textbbox(place, words, font=rest["font"]))
        text(draw, place, words, **rest)

    def note_paste(canvas: Image.Image, image: Image.Image, place: tuple[int, int], *rest: Any) -> None:
        found.images.append((*place, place[0] + image.width, place[1] + image.height))
        paste(canvas, image, place, *rest)

    def note_font(height: int) -> ImageFont.FreeTypeFont:
        found.heights.add(height)
        return font(height)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note_text)
    monkeypatch.setattr(Image.Image, "paste", note_paste)
    monkeypatch.setattr(sheet, "font", note_font)
    return found


def pixels_of(made: Picture) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(made.png)))


def many(phantom: Phantom, count: int, kind: FindingClass) -> tuple[Finding, ...]:
    """The phantom's first lesion, that many times, of a class, and as large as numbers get."""
    first = phantom.lesions[0]
    large = replace(first, kind=kind, long_axis_mm=188.8, short_axis_mm=166.6, volume_ml=2888.8, probability=1.0)
    return tuple(replace(large, number=number) for number in range(1, count + 1))


@pytest.mark.parametrize(
    ("outcome", "findings", "words"),
    [
        (Outcome.FINDINGS, 2, "2 findings"),
        (Outcome.FINDINGS, 1, "1 finding"),
        (Outcome.NO_FINDINGS, 0, "No findings"),
        (Outcome.PARTIAL, 2, "Only a part was analysed: 2 findings"),
        (Outcome.PARTIAL, 0, "Only a part was analysed: no findings"),
        (Outcome.UNSUITABLE, 0, "Not analysed: the images are not suitable"),
        (Outcome.FAILED, 0, "Not analysed: the analysis failed"),
    ],
)
def test_it_says_how_the_work_ended(tmp_path: Path, seen: Seen, outcome: Outcome, findings: int, words: str) -> None:
    phantom = phantoms.make(tmp_path)
    conclusion = Conclusion(outcome=outcome, reason="a reason in words", findings=phantom.findings[:findings])
    made = sheet.summary(phantom.making, conclusion, None if outcome is Outcome.UNSUITABLE else phantom.source, ())
    assert made.finding == 0
    said = "\n".join(seen.words)
    for wanted in (
        "Phantom lesions on CT",
        "Model phantom-lesion 1.2.0 by Overread tests",
        "It looks for: Lesion (Liver)",
        words,
        "A reason in words",
        "Research use only, not for diagnosis",
        "2026-03-01 12:30 UTC",
    ):
        assert wanted in said, wanted
    assert ("Analysed: series 3, CT, 12 images" in said) == (outcome is not Outcome.UNSUITABLE)
    assert not [secret for secret in SECRETS if secret in said]


@pytest.mark.parametrize("count", [1, 2, 6, 7, 12, 20, 25])
@pytest.mark.parametrize("kind", [phantoms.LESION_CLASS, LONG], ids=["short", "long"])
def test_nothing_overlaps_and_nothing_is_cut_off(tmp_path: Path, seen: Seen, count: int, kind: FindingClass) -> None:
    phantom = phantoms.make(tmp_path)
    findings = many(phantom, count, kind)
    picture = capture.picture(phantom.source, findings[0], "x")
    seen.forget()
    conclusion = Conclusion(
        outcome=Outcome.PARTIAL,
        reason="and this is a very long reason, " * 12,
        findings=findings,
        dropped=30,
        excluded=(Exclusion(series_instance_uid="1.2.3", reason="a localizer"),),
    )
    making = phantoms.with_spec(phantom.making, title="W" * 64, classes=(kind,) * 9)
    made = sheet.summary(making, conclusion, phantom.source, [replace(picture, finding=it.number) for it in findings])
    assert pixels_of(made).shape == (792, 1188, 3)
    assert min(seen.heights) >= 16
    shown = min(count, 20)
    assert len(seen.images) == shown
    everything = [*seen.boxes, *seen.images]
    for number, (left, top, right, bottom) in enumerate(everything):
        assert left >= 12
        assert top >= 12
        assert right <= 1188 - 12
        assert bottom <= 792 - 4
        for other in everything[:number]:
            apart = left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]
            assert apart, (everything[number], other)
    said = "\n".join(seen.words)
    for number in range(1, shown + 1):
        assert f" {number}" in [words[-1 - len(str(number)) :] for words in seen.words]
    assert said.count("188.8 x 166.6 mm") == shown
    assert said.count("2888.8 ml, 100 %") == shown
    assert f"{count + 30 - shown} more findings" in said
    assert "Left out: a series without a number: a localizer" in said


def test_a_thumbnail_shows_the_outline_and_no_scrap_of_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantoms, "SHAPE", (12, 80, 90))  # so that there is tissue around the second lesion
    phantom = phantoms.make(tmp_path, spacing=(2.5, 2.0, 2.0))
    pictures = [capture.picture(phantom.source, it, "x") for it in phantom.findings]
    pixels = pixels_of(sheet.summary(phantom.making, conclusion_of(phantom), phantom.source, pictures)).astype(int)
    thumbnail = pixels[190:580, 594:980]
    amber = (np.abs(thumbnail - phantoms.COLOUR) < 60).all(axis=-1)
    assert amber.sum() > 500
    rim = np.concatenate([thumbnail[:5].reshape(-1, 3), thumbnail[-5:].reshape(-1, 3), thumbnail[:, :5].reshape(-1, 3)])
    assert np.ptp(rim) < 12, "the grey of the slice: no letter, no bar"


def test_a_finding_whose_picture_failed_has_its_words(tmp_path: Path, seen: Seen) -> None:
    phantom = phantoms.make(tmp_path)
    sheet.summary(phantom.making, conclusion_of(phantom), phantom.source, ())
    assert {"Lesion 1", "Lesion 2", "10.4 x 7.2 mm", "0.40 ml, 85 %"} <= set(seen.words)
    assert not seen.images


def test_marks_and_judgements_have_what_they_have(tmp_path: Path, seen: Seen) -> None:
    phantom = phantoms.make(tmp_path, spacing=(2.5, 0.8, 0.1))  # a narrow slice, too
    for made in (phantoms.with_marks(phantom), phantoms.with_judgements(phantom)):
        pictures = [capture.picture(made.source, it, "x") for it in made.findings]
        sheet.summary(made.making, conclusion_of(made), made.source, pictures)
    said = set(seen.words)
    assert {"Nodule 3", "65 %", "Slice 6 of 12", "Glioma 1", "Meningioma 2", "Slice 3 of 12", "Brain"} <= said


@pytest.mark.parametrize(
    ("count", "words"), [(3, "Left out: series 3: reason 2"), (4, "Left out: 4 series; the report")]
)
def test_series_that_were_left_out_are_called_by_number(tmp_path: Path, seen: Seen, count: int, words: str) -> None:
    phantom = phantoms.make(tmp_path)
    uid = phantom.source.series.series_instance_uid
    excluded = tuple(Exclusion(series_instance_uid=uid, reason=f"reason {number}") for number in range(count))
    conclusion = Conclusion(outcome=Outcome.UNSUITABLE, reason="none fits", excluded=excluded)
    sheet.summary(phantom.making, conclusion, None, ())
    assert words in "\n".join(seen.words)
    assert uid not in "\n".join(seen.words)


def test_same_input_gives_identical_bytes(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    pictures = [capture.picture(phantom.source, it, "x") for it in phantom.findings]
    first, again = (sheet.summary(phantom.making, conclusion_of(phantom), phantom.source, pictures) for _ in range(2))
    assert first.png == again.png


TEXTS = ("short", "", "one two three four five six seven eight nine ten", "W" * 200, "1.2.3.4" * 30, "a " * 90)


@pytest.mark.parametrize("words", TEXTS)
@pytest.mark.parametrize("lines", [1, 2, 5])
@pytest.mark.parametrize(("size", "width"), [(16, 90), (22, 384), (34, 200)])
def test_words_stay_in_their_column(words: str, lines: int, size: int, width: int) -> None:
    canvas = Image.new("RGB", (600, 600))
    bottom = sheet.written(ImageDraw.Draw(canvas), (50, 40), words, width, size=size, lines=lines)
    pixels = np.asarray(canvas)
    outside = pixels.copy()
    outside[40:bottom, 49 : 50 + width + 1] = 0  # a letter may lean out by one
    assert not outside.any()
    assert bottom <= 40 + lines * round(size * 1.3)
    assert pixels.any() == bool(words)


def test_letters_that_the_font_has_not_are_written_by_their_base(seen: Seen) -> None:
    sheet.written(ImageDraw.Draw(Image.new("RGB", (600, 60))), (0, 0), "Lésion hépatique, Läsion, 肝", 600, size=20)
    assert seen.words == ["Lesion hepatique, Lasion, ?"]


def test_a_series_description_is_not_drawn(tmp_path: Path, seen: Seen) -> None:
    def edit(dataset: Dataset, _: int) -> None:
        dataset.SeriesDescription = "Miller, abdomen"

    phantom = phantoms.make(tmp_path, edit=edit)
    sheet.summary(phantom.making, conclusion_of(phantom), phantom.source, ())
    assert not [words for words in seen.words if "Miller" in words]
