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

from service.results.capture import picture
from service.types import SourceVolume
from tests import phantoms

COLOUR = (10, 250, 20)


def drawn(source: SourceVolume, number: int, tmp_path: Path) -> NDArray[np.uint8]:
    """uint8 [rows, columns, RGB] of a phantom's picture."""
    phantom = phantoms.make(tmp_path)
    made = picture(source, phantom.findings[number - 1], "Phantom lesions on CT", colour=COLOUR)
    assert made.finding == number
    return np.asarray(Image.open(io.BytesIO(made.png)))


def outlined(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """bool [rows, columns]: the inside of the outline on the whole slice, which stands left and 768 wide."""
    border = (pixels[12:780, 12:780] == COLOUR).all(axis=-1)
    inside: NDArray[np.bool_] = ndimage.binary_fill_holes(border) & ~border
    return inside


def test_outline_is_around_the_lesion_and_not_on_it(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    pixels = drawn(phantom.source, 1, tmp_path)
    inside = outlined(pixels)
    finding, scale = phantom.findings[0], 768 / 48
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
    lung = replace(phantom.findings[0], site=phantoms.LUNG)
    made = picture(phantom.source, lung, "x", colour=COLOUR)
    pixels = np.asarray(Image.open(io.BytesIO(made.png)))
    middle = ndimage.binary_erosion(outlined(pixels), iterations=12)
    assert np.median(pixels[12:780, 12:780][middle]) == round((-20 + 1350) / 1500 * 255)


def test_another_modality_and_a_flat_image_are_drawn(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    flat = phantom.source.volume.with_array(np.zeros(phantom.source.volume.spatial_shape, np.float32))
    source = replace(phantom.source, series=replace(phantom.source.series, modality="MR"), volume=flat)
    assert picture(source, phantom.findings[0], "x").png.startswith(b"\x89PNG")
