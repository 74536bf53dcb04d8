"""A picture shows the lesion where it is, with its outline around it, in its true proportions."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from service.results.capture import _lines, picture
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
