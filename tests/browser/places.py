"""Where on the screen something of the patient must be, and where something is: computed from DICOM files and pixels.

OHIF is asked for one thing only: where three points of the patient, the corners of an image, are on the screen.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import Dataset, dcmread
from scipy import ndimage

from tests.browser.viewer import View

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def corners(header: Dataset) -> Floats:
    """[3, LPS mm] the centres of an image's first pixel, the last of its row, and the last of its column (C.7.6.2)."""
    first, row, column = _plane(header)
    down, across = (float(value) for value in header.PixelSpacing)
    return np.array([first, first + row * across * (header.Columns - 1), first + column * down * (header.Rows - 1)])


def segments_on(content: bytes, header: Dataset) -> Bools:
    """[rows, columns] of an image: where a Segmentation has any segment, by the positions of its frames alone."""
    seg = dcmread(io.BytesIO(content))
    shared = seg.SharedFunctionalGroupsSequence[0]
    axes = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    first, row, column = _plane(header)
    found = np.zeros((header.Rows, header.Columns), bool)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)  # of a single frame too
    for frame, item in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        corner = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        if abs((corner - first) @ np.cross(row, column)) > 0.1:
            continue
        rows, columns = np.nonzero(frame)
        places = corner + np.outer(columns * float(spacing[1]), axes[:3]) + np.outer(rows * float(spacing[0]), axes[3:])
        down, across = (float(value) for value in header.PixelSpacing)
        i, j = ((places - first) @ column / down).round().astype(int), ((places - first) @ row / across).round()
        found[i, j.astype(int)] = True
    return found


def colour_of(content: bytes) -> tuple[int, int, int]:
    """RGB in which a Segmentation wants its first segment shown, computed from CIELab (C.10.7.1.1; D50 to sRGB)."""
    stored = dcmread(io.BytesIO(content), stop_before_pixels=True).SegmentSequence[0].RecommendedDisplayCIELabValue
    light, a, b = stored[0] / 65535 * 100, stored[1] / 65535 * 255 - 128, stored[2] / 65535 * 255 - 128
    middle = (light + 16) / 116
    cubes = np.array([middle + a / 500, middle, middle - b / 200])
    xyz = np.where(cubes > 6 / 29, cubes**3, (cubes - 4 / 29) * 3 * (6 / 29) ** 2) * (0.9642, 1.0, 0.8251)
    matrix = np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]])
    linear = np.clip(matrix @ xyz, 0, 1)
    red, green, blue = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear) * 255
    return round(red), round(green), round(blue)


def expected(view: View, mask: Bools) -> Bools:
    """[rows, columns] of the screen: where pixels of an image must be, whose corners are the view's points."""
    rows, columns = np.indices(view.pixels.shape[:2]) + 0.5  # a screen pixel's centre
    start, right, low = view.points
    steps = np.stack([(right - start) / (mask.shape[1] - 1), (low - start) / (mask.shape[0] - 1)], axis=1)
    column, row = np.tensordot(np.linalg.inv(steps), np.stack([columns - start[0], rows - start[1]]), 1)
    i, j = np.rint(row).astype(int), np.rint(column).astype(int)
    inside = (i >= 0) & (i < mask.shape[0]) & (j >= 0) & (j < mask.shape[1])
    there = np.zeros(view.pixels.shape[:2], bool)
    there[inside] = mask[i[inside], j[inside]]
    return there


def coloured(view: View, colour: Sequence[int]) -> Bools:
    """[rows, columns] of the screen: what has a colour's hue, whatever grey it is laid over."""
    wanted = np.array(colour, float) - np.mean(colour)
    pixels = view.pixels - view.pixels.mean(axis=2, keepdims=True)
    strength = pixels @ (wanted / np.linalg.norm(wanted))
    found: Bools = (strength > 25) & (strength > 0.95 * np.linalg.norm(pixels, axis=2))
    return found


def outlined(view: View) -> Bools:
    """[rows, columns] of the screen: what lies within the outlines drawn."""
    fine = 4  # to each pixel, for small outlines are drawn too
    rows, columns = view.pixels.shape[:2]
    canvas = Image.new("L", (columns * fine, rows * fine))
    for points in view.outlines:
        ImageDraw.Draw(canvas).polygon([(x * fine - 0.5, y * fine - 0.5) for x, y in points], fill=1)
    inside: Bools = np.asarray(canvas).reshape(rows, fine, columns, fine).mean(axis=(1, 3)) > 0.5
    return inside


def sampled(view: View, rows: int, columns: int) -> NDArray[np.uint8]:
    """[rows, columns, RGB] what is on the screen at each pixel of the image that is shown."""
    row, column = np.indices((rows, columns))
    start, right, low = view.corners
    along, down = (right - start) / (columns - 1), (low - start) / (rows - 1)
    x, y = (start[axis] + along[axis] * column + down[axis] * row for axis in (0, 1))
    height, width = view.pixels.shape[:2]
    seen: NDArray[np.uint8] = view.pixels[y.astype(int).clip(0, height - 1), x.astype(int).clip(0, width - 1)]
    return seen


def alike(seen: NDArray[np.uint8], picture: NDArray[np.uint8]) -> float:
    """How two pictures agree ([rows, columns, RGB]; 1: wholly), without the bands where OHIF writes its own words."""
    band = len(picture) // 6
    # Thin letters are thinner on a smaller screen.
    both = [ndimage.gaussian_filter(np.asarray(each[band:-band], float), (2, 2, 0)) for each in (seen, picture)]
    assert both[1].std() > 5, "a picture of nothing would be found anywhere"
    return float(np.corrcoef(both[0].ravel(), both[1].ravel())[0, 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How what is seen agrees with what must be seen."""

    apart: float  # between the centres, in pixels of the screen
    ratio: float  # of the areas, seen by expected
    dice: float

    def is_good(self) -> bool:
        """Nothing is off but the width of a line around it."""
        return self.apart < 3 and 0.8 < self.ratio < 1.25 and self.dice > 0.85


def match(seen: Bools, wanted: Bools) -> Match:
    """Compare two regions of the screen."""
    assert wanted.any(), "nothing is expected here: the check would check nothing"
    if not seen.any():
        return Match(apart=float("inf"), ratio=0.0, dice=0.0)
    apart = np.linalg.norm(np.argwhere(seen).mean(axis=0) - np.argwhere(wanted).mean(axis=0))
    dice = 2 * (seen & wanted).sum() / (seen.sum() + wanted.sum())
    return Match(apart=float(apart), ratio=float(seen.sum() / wanted.sum()), dice=float(dice))


def _plane(header: Dataset) -> tuple[Floats, Floats, Floats]:
    """First pixel's centre, and unit vectors along a row and along a column."""
    axes = np.array(header.ImageOrientationPatient, float)
    return np.array(header.ImagePositionPatient, float), axes[:3], axes[3:]
