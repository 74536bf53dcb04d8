"""A plane of a volume as a picture for the operations page: windowed, with outline, crosshair, letters and a scale.

No patient data is drawn, and pixels are square whatever the spacing. What is drawn has an edge that contrasts with it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from service.results.capture import AROUND, Extent, drawn_line, drawn_rectangle, drawn_scale, drawn_word, edge_of
from service.results.planes import Plane, Window
from service.results.sheet import Colour, Size, encoded

OUTLINE: Colour = (230, 159, 0)  # orange of Okabe and Ito's palette: seen by all, and never a tissue's
CROSS: Colour = (86, 180, 233)  # its sky blue
_LEAST_FIELD_MM = 40.0  # of an enlargement: what is small needs its surroundings to be recognised
_GAP = 9  # of the crosshair, so that the place itself stays free
_SMOOTH = Image.Resampling.BILINEAR


def drawn(plane: Plane, window: Window, *, longest: int, near: bool = False, cross: bool = False) -> bytes:
    """Draw a plane.

    Parameters
    ----------
    window
        Centre and width, in the values of the plane.
    longest
        Pixels of the picture's longer side.
    near
        Whether only the finding's surroundings are shown, enlarged: a square.
    cross
        Whether a crosshair points at the place that the plane goes through.

    Returns
    -------
    bytes
        A PNG, RGB.
    """
    extent = _near(plane) if near else (0.0, 0.0, float(plane.values.shape[1]), float(plane.values.shape[0]))
    size = _fit(plane, extent, longest)
    centre, width = window
    grey = np.asarray(np.round(np.clip((plane.values - (centre - width / 2)) / width, 0, 1) * 255), np.uint8)
    part = Image.fromarray(grey).transform(size, Image.Transform.EXTENT, extent, resample=Image.Resampling.BICUBIC)
    picture = part.convert("RGB")
    if plane.mask is not None:
        picture = _outlined(picture, plane, extent)
    draw = ImageDraw.Draw(picture)
    if plane.box is not None:
        top, left, bottom, right = plane.box
        corners = (*_on((top + 0.5, left + 0.5), extent, size), *_on((bottom + 0.5, right + 0.5), extent, size))
        if corners[0] < corners[2]:
            drawn_rectangle(draw, corners, OUTLINE, width=2)
    if cross:
        _cross(draw, plane, extent, size)
    for letter, place, anchor in zip(
        plane.letters,
        ((6, size[1] / 2), (size[0] - 6, size[1] / 2), (size[0] / 2, 6), (size[0] / 2, size[1] - 6)),
        ("lm", "rm", "mt", "mb"),
        strict=True,
    ):
        drawn_word(draw, place, letter, anchor)
    drawn_scale(draw, (extent[2] - extent[0]) * plane.spacing_mm[1] / size[0], size)
    return encoded(picture)


def _fit(plane: Plane, extent: Extent, longest: int) -> Size:
    """Width and height of a part of a plane in square pixels."""
    height = (extent[3] - extent[1]) * plane.spacing_mm[0]
    width = (extent[2] - extent[0]) * plane.spacing_mm[1]
    scale = longest / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _near(plane: Plane) -> Extent:
    """The surroundings of the finding: a square in millimetres around its middle on this plane."""
    middle, longest = (plane.cross[0] + 0.5, plane.cross[1] + 0.5), 0.0
    if plane.mask is not None and plane.mask.any():
        low, high = (np.array(np.nonzero(plane.mask)).min(axis=1), np.array(np.nonzero(plane.mask)).max(axis=1) + 1)
        middle = (float(low[0] + high[0]) / 2, float(low[1] + high[1]) / 2)
        longest = float(np.max((high - low) * plane.spacing_mm))
    elif plane.box is not None:
        top, left, bottom, right = plane.box
        middle = ((top + bottom) / 2 + 0.5, (left + right) / 2 + 0.5)
        longest = max((bottom - top) * plane.spacing_mm[0], (right - left) * plane.spacing_mm[1])
    side = max(_LEAST_FIELD_MM, 2.2 * longest)
    down, right_ = (side / mm / 2 for mm in plane.spacing_mm)
    return middle[1] - right_, middle[0] - down, middle[1] + right_, middle[0] + down


def _outlined(picture: Image.Image, plane: Plane, extent: Extent) -> Image.Image:
    """The picture with the finding's border around it and never on it."""
    assert plane.mask is not None
    filled = Image.fromarray(plane.mask * np.uint8(255)).transform(
        picture.size, Image.Transform.EXTENT, extent, resample=_SMOOTH
    )
    inside = np.asarray(filled) > 127
    border = ndimage.binary_dilation(inside, AROUND, iterations=3)
    canvas = np.array(picture)
    canvas[ndimage.binary_dilation(border) & ~inside] = edge_of(OUTLINE)
    canvas[border & ~ndimage.binary_dilation(inside)] = OUTLINE
    return Image.fromarray(canvas)


def _cross(draw: ImageDraw.ImageDraw, plane: Plane, extent: Extent, size: Size) -> None:
    x, y = _on((plane.cross[0] + 0.5, plane.cross[1] + 0.5), extent, size)
    gap = _GAP
    if plane.mask is not None and plane.mask.any():  # it stops at the finding's border
        rows, columns = np.nonzero(plane.mask)
        reach = max(np.ptp(rows) * plane.spacing_mm[0], np.ptp(columns) * plane.spacing_mm[1]) / 2
        gap = max(_GAP, round(reach * size[0] / ((extent[2] - extent[0]) * plane.spacing_mm[1])) + _GAP)
    for line in ((0, y, x - gap, y), (x + gap, y, size[0], y), (x, 0, x, y - gap), (x, y + gap, x, size[1])):
        if line[0] <= line[2] and line[1] <= line[3]:
            drawn_line(draw, line, CROSS, width=1)


def _on(place: tuple[float, float], extent: Extent, size: Size) -> tuple[float, float]:
    """x and y on the picture of a place (row, column), where 0, 0 is the corner of the first pixel."""
    left, top, right, bottom = extent
    return (place[1] - left) / (right - left) * size[0], (place[0] - top) / (bottom - top) * size[1]
