"""A picture shows the lesion where it is, with its outline around it, in its true proportions."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFont
from scipy import ndimage

from service.codes import Code
from service.results import sheet
from service.results.capture import _lines, edge_of, picture
from service.spec import FindingClass
from service.types import Finding, Picture, SourceVolume
from tests import phantoms

COLOUR = (10, 250, 20)


def drawn(source: SourceVolume, number: int, tmp_path: Path) -> NDArray[np.uint8]:
    """uint8 [rows, columns, RGB] of a phantom's picture."""
    phantom = phantoms.make(tmp_path)
    made = picture(source, coloured(phantom.findings[number - 1]), "Phantom lesions on CT")
    assert made.finding == number
    return np.asarray(Image.open(io.BytesIO(made.png)))


def coloured(finding: Finding) -> Finding:
    """The finding in a colour that nothing else has."""
    return replace(finding, kind=finding.kind.model_copy(update={"colour": COLOUR}))


def outlined(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """bool [rows, columns]: the inside of the outline on the whole slice, which stands left and 768 wide."""
    border = (pixels[12:780, 12:780] == COLOUR).all(axis=-1)
    inside: NDArray[np.bool_] = ndimage.binary_fill_holes(border) & ~border
    return inside


def test_outline_is_around_the_lesion_and_not_on_it(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    pixels = drawn(phantom.source, 1, tmp_path)
    inside = outlined(pixels)
    finding, scale = phantom.lesions[0], 768 / 48
    _, rows, columns = finding.box
    found = np.argwhere(inside)
    assert found.min(axis=0) == pytest.approx((rows.start * scale, columns.start * scale), abs=scale / 2)
    assert found.max(axis=0) == pytest.approx((rows.stop * scale, columns.stop * scale), abs=scale / 2)
    # -20 HU in a window of 40 +- 200: what is inside is the lesion as it is, ringed by the brighter tissue.
    middle = ndimage.binary_erosion(inside, iterations=12)
    assert np.median(pixels[12:780, 12:780][middle]) == round((-20 + 160) / 400 * 255)


@pytest.mark.parametrize(("spacing", "size"), [((2.5, 0.8, 0.8), (640, 768)), ((2.5, 1.6, 0.8), (768, 461))])
def test_pixels_are_square_whatever_the_spacing(
    tmp_path: Path, spacing: tuple[float, float, float], size: tuple[int, int]
) -> None:
    phantom = phantoms.make(tmp_path, spacing=spacing)
    made = picture(phantom.source, phantom.findings[0], "x")
    whole = np.asarray(Image.open(io.BytesIO(made.png)))[12 : 12 + size[0], 12 : 12 + size[1]]
    assert (whole.max(axis=-1) > 0).mean() > 0.9  # the slice fills just this
    width = Image.open(io.BytesIO(made.png)).width
    assert width == size[1] + 384 + 3 * 12


def test_lung_is_shown_in_its_own_window(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    kind = phantoms.NODULE_CLASS.model_copy(update={"colour": COLOUR})
    made = picture(phantom.source, replace(phantom.findings[0], kind=kind), "x")
    pixels = np.asarray(Image.open(io.BytesIO(made.png)))
    middle = ndimage.binary_erosion(outlined(pixels), iterations=12)
    assert np.median(pixels[12:780, 12:780][middle]) == round((-20 + 1350) / 1500 * 255)


def test_another_modality_and_a_flat_image_are_drawn(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    flat = phantom.source.volume.with_array(np.zeros(phantom.source.volume.spatial_shape, np.float32))
    source = replace(phantom.source, series=replace(phantom.source.series, modality="MR"), volume=flat)
    assert picture(source, phantom.findings[0], "x").png.startswith(b"\x89PNG")


def _colour_at(made: Picture) -> NDArray[np.int64]:
    """Rows and columns of the whole slice (left, 768 wide) that have the class's colour: int [pixels, 2]."""
    pixels = np.asarray(Image.open(io.BytesIO(made.png)))[12:780, 12:780]
    return np.argwhere((pixels == COLOUR).all(axis=-1))


def test_axes_are_drawn_where_they_were_measured(tmp_path: Path) -> None:
    """Rows 6 to 18 and columns 10 to 18, from edge to edge, in the middle of a field of 40 mm in 384 pixels."""
    phantom = phantoms.make(tmp_path)
    pixels = np.asarray(Image.open(io.BytesIO(picture(phantom.source, phantom.findings[0], "x").png)))
    drawn_at = np.argwhere((pixels[12 : 12 + 384, -12 - 384 : -12] == sheet.CYAN).all(axis=-1))
    half = np.array([13, 9]) * 0.8 / 2 * 384 / 40
    np.testing.assert_allclose(drawn_at.min(axis=0), 192 - half - 2, atol=1)  # the rings at their ends
    np.testing.assert_allclose(drawn_at.max(axis=0), 192 + half + 2, atol=1)


def test_a_box_has_its_rectangle_around_it(tmp_path: Path) -> None:
    phantom = phantoms.with_marks(phantoms.make(tmp_path))
    box = coloured(phantom.findings[0])
    drawn_at = _colour_at(picture(phantom.source, box, "x"))
    # Rows 6 to 18 and columns 10 to 18, at 16 pixels each, and two more on each side.
    assert drawn_at.min(axis=0).tolist() == [6 * 16 - 2, 10 * 16 - 2]
    assert drawn_at.max(axis=0).tolist() == [19 * 16 + 2, 19 * 16 + 2]
    inside = (drawn_at > (6 * 16, 10 * 16)).all(axis=1) & (drawn_at < (19 * 16, 19 * 16)).all(axis=1)
    assert not inside.any()


def test_a_point_has_a_cross_around_it_and_stays_free(tmp_path: Path) -> None:
    phantom = phantoms.with_marks(phantoms.make(tmp_path))
    point = coloured(phantom.findings[2])  # row 8.25, column 30.5
    drawn_at = _colour_at(picture(phantom.source, point, "x"))
    middle = np.array([8.75 * 16, 31 * 16])
    np.testing.assert_allclose(drawn_at.mean(axis=0), middle, atol=1)
    assert 5 <= np.linalg.norm(drawn_at - middle, axis=1).min() <= 7
    assert 17 <= np.linalg.norm(drawn_at - middle, axis=1).max() <= 20


def test_the_enlargement_shows_what_was_marked(tmp_path: Path) -> None:
    phantom = phantoms.with_marks(phantoms.make(tmp_path))
    pixels = np.asarray(Image.open(io.BytesIO(picture(phantom.source, coloured(phantom.findings[2]), "x").png)))
    enlarged = pixels[12 : 12 + 384, -12 - 384 : -12]
    drawn_at = np.argwhere((enlarged == COLOUR).all(axis=-1))
    np.testing.assert_allclose(drawn_at.mean(axis=0), (192, 192), atol=1)


def test_a_judgement_is_the_slice_that_decided_and_its_words(tmp_path: Path) -> None:
    """Nothing is drawn on the slice but the directions: whoever sees it must not look for a place."""
    phantom = phantoms.with_judgements(phantoms.make(tmp_path))
    first, second = (
        np.asarray(Image.open(io.BytesIO(picture(phantom.source, coloured(it), "x").png))) for it in phantom.findings
    )
    middle = (slice(60, 600), slice(60, 700))
    assert not (first == COLOUR).all(axis=-1).any()
    # Slice 2 holds the first ellipsoid, slice 7 the second one: grey is what is there, and only that.
    assert (first[middle] != second[middle]).any()
    assert (np.ptp(first[middle], axis=-1) == 0).all()
    words = (slice(12, 200), slice(-12 - 384, -12))
    assert (first[words] != second[words]).any(), "Glioma 1 and Meningioma 2"
    assert first[words].max() == 255


def test_what_a_caption_says_is_what_its_kind_has(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    kinds = {"lesion": phantom, "mark": phantoms.with_marks(phantom), "judgement": phantoms.with_judgements(phantom)}
    said = {
        name: [words for words, _, _ in _lines(made.source, made.findings[0], "Title")] for name, made in kinds.items()
    }
    assert said["mark"] == [
        "Lesion 1", "Title", "Liver", "Box 7.2 x 10.4 mm", "Probability 85 %", "Slice 4 of 12, z 317.5 mm",
        "Research use only, not for diagnosis",
    ]  # fmt: skip
    assert said["judgement"][2:6] == [
        "Brain", "Said of the series:", "no place in the image is meant", "Probability 85 %"
    ]  # fmt: skip
    assert "Mean -20 HU" in said["lesion"]
    mr = phantoms.make(tmp_path / "mr", modality="MR")
    assert not any("HU" in words for words, _, _ in _lines(mr.source, mr.findings[0], "Title"))


def _pixels(made: Picture) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(made.png)))


def _bar(part: NDArray[np.uint8]) -> int:
    """The longest white line in the lowest rows of a part of a picture, in pixels."""
    runs = [
        len(run)
        for row in part[-20:, :, 0] == 255
        for run in "".join("01"[int(is_white)] for is_white in row).split("0")
    ]
    return max(runs)


@pytest.mark.parametrize(
    ("spacing", "whole_mm", "close_mm"),
    [((2.5, 0.8, 0.8), 5, 10), ((2.5, 1.6, 0.8), 5, 10), ((2.5, 5.0, 8.0), 50, 20)],
)
def test_the_bars_are_true_to_scale(
    tmp_path: Path, spacing: tuple[float, float, float], whole_mm: float, close_mm: float
) -> None:
    phantom = phantoms.make(tmp_path, spacing=spacing)
    pixels = _pixels(picture(phantom.source, phantom.findings[0], "x"))
    height_mm, width_mm = 40 * spacing[1], 48 * spacing[2]
    size = [round(side * 768 / max(height_mm, width_mm)) for side in (height_mm, width_mm)]
    whole = pixels[12 : 12 + size[0], 12 : 12 + size[1]]
    assert _bar(whole) == pytest.approx(whole_mm * size[1] / width_mm, abs=4)  # the ends have a width
    longest = phantom.lesions[0].long_axis_mm
    assert _bar(pixels[12 : 12 + 384, -12 - 384 : -12]) == pytest.approx(close_mm * 384 / max(40, 2.2 * longest), abs=4)


def _luminance(colours: NDArray[np.generic]) -> NDArray[np.float64]:
    """Relative luminance of sRGB colours [..., 3] (WCAG 2.2)."""
    parts = np.asarray(colours, float) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ (0.2126, 0.7152, 0.0722), np.float64)


def _contrast(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.float64]:
    lights = np.stack(np.broadcast_arrays(_luminance(one), _luminance(other)))
    return np.asarray((lights.max(axis=0) + 0.05) / (lights.min(axis=0) + 0.05), np.float64)


def test_every_colour_contrasts_with_its_edge() -> None:
    for colour in np.ndindex(6, 6, 6):
        red, green, blue = (51 * part for part in colour)
        assert _contrast(np.array([red, green, blue]), np.array(edge_of((red, green, blue)))) >= 4.5


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (230, 60, 60), (0, 114, 178), (119, 119, 119)])
@pytest.mark.parametrize("value", [-2000, 40, 3000])
def test_what_is_drawn_is_seen_on_every_grey(tmp_path: Path, value: int, colour: tuple[int, int, int]) -> None:
    """On an image of one grey, what contrasts with it closes around the lesion, and the letters stand out."""
    phantom = phantoms.make(tmp_path)
    array = np.full(phantom.source.volume.spatial_shape, value, np.float32)
    source = replace(phantom.source, volume=phantom.source.volume.with_array(array))
    kind = phantoms.LESION_CLASS.model_copy(update={"colour": colour})
    whole = _pixels(picture(source, replace(phantom.findings[0], kind=kind), "x"))[12 : 12 + 640, 12:780]
    grey = round(float(np.clip((value + 160) / 400, 0, 1)) * 255)
    seen = _contrast(whole, np.array([grey] * 3)) >= 3
    around = ndimage.binary_fill_holes(seen) & ~seen
    middle = (12 + 1) * 16 - 8, (14 + 1) * 16 - 8  # of the first lesion
    assert around[middle]
    for letter in (seen[:30, 370:400], seen[-30:, 370:400], seen[300:340, :30], seen[300:340, -30:]):
        assert letter.sum() > 20


LONG = FindingClass(
    finding=Code("1", "99TEST", "Metastatic malignant neoplasm, of unknown primary, of very long name"),
    site=Code("2", "99TEST", "Structure of the right lateral part of the left lobe of liver"),
    colour=COLOUR,
)


@pytest.mark.parametrize("spacing", [(2.5, 0.8, 0.8), (2.5, 0.8, 3.0), (2.5, 6.0, 0.8)])
@pytest.mark.parametrize("title", ["x", "A title of the sixty-four characters that a title may have here.", "W" * 64])
def test_words_stay_on_the_picture_and_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str, spacing: tuple[float, float, float]
) -> None:
    heights, real = set(), sheet.font

    def font(height: int) -> ImageFont.FreeTypeFont:
        heights.add(height)
        return real(height)

    monkeypatch.setattr(sheet, "font", font)
    for kind in (lambda made: made, phantoms.with_marks, phantoms.with_judgements):
        phantom = kind(phantoms.make(tmp_path, spacing=spacing))
        pixels = _pixels(picture(phantom.source, replace(phantom.findings[0], kind=LONG), title))
        assert pixels.shape[0] == 792
        assert pixels.shape[1] <= 1188
        assert not pixels[:, -11:].any()
        assert not pixels[-11:].any()
    assert min(heights) >= 16


def test_a_small_volume_is_not_said_to_be_none(tmp_path: Path) -> None:
    lesion = phantoms.make(tmp_path).lesions[0]
    assert [sheet.volume(replace(lesion, volume_ml=ml)) for ml in (0.0123, 0.4567, 9.876, 123.45)] == [
        "0.012 ml", "0.46 ml", "9.88 ml", "123.5 ml"
    ]  # fmt: skip
