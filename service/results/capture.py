"""A finding's key slice as a picture for people: the whole slice, its place enlarged, and what was measured.

No patient data is drawn. The image stands as it is stored, without a flip; letters at its edges say which way it faces.
Whatever is drawn on an image has an edge that contrasts with it, so that it is seen on dark and on light tissue.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from service.results.identity import DISCLAIMER, label
from service.results.planes import WINDOWS, auto_window
from service.results.sheet import (
    AMBER,
    BLACK,
    CYAN,
    GREY,
    MARGIN,
    SIDE,
    WHITE,
    Colour,
    Size,
    encoded,
    font,
    site,
    volume,
    written,
)
from service.types import Finding, Judgement, Lesion, Mark, Picture, SourceVolume

Extent = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the slice; 0 = its corner

_SLICE = 768  # longer side of the whole slice on the canvas, in pixels
_LEAST_FIELD_MM = 40.0  # of the enlargement: a nodule of 5 mm needs its surroundings to be recognised
_LUNG_SITES = {"39607008"}  # SCT Lung
_BAR_MM = (200, 100, 50, 20, 10, 5, 2, 1)
_OPPOSITE = dict(zip("LPHRAF", "RAFLPH", strict=True))
_SMOOTH, AROUND = Image.Resampling.BILINEAR, np.ones((3, 3), bool)


def picture(source: SourceVolume, finding: Finding, title: str) -> Picture:
    """Draw a finding.

    Parameters
    ----------
    source
        The analysed series.
    finding
        The finding, on its grid.
    title
        The model's title, for the caption.

    Returns
    -------
    Picture
        A PNG, RGB, with square pixels whatever the spacing of rows and columns. A lesion has its outline, a box its
        rectangle, a point a cross around it, in the colour of their class; a judgement has no place, but its words.
    """
    whole = _whole(source)
    width, height = _fit(source, _SLICE)
    canvas = Image.new("RGB", (width + SIDE + 3 * MARGIN, _SLICE + 2 * MARGIN))
    slice_ = _drawn(source, finding, whole, (width, height))
    x, y = width + 2 * MARGIN, MARGIN
    if isinstance(finding, Lesion | Mark):
        field = _field(source, finding)
        frame = (*_on(field[:2], whole, slice_.size), *_on(field[2:], whole, slice_.size))
        drawn_rectangle(ImageDraw.Draw(slice_), frame, GREY, width=1)
        canvas.paste(_drawn(source, finding, field, (SIDE, SIDE), axes=True), (x, y))
        y += SIDE + MARGIN
    _directions(ImageDraw.Draw(slice_), source, slice_.size)
    canvas.paste(slice_, (MARGIN, MARGIN))
    draw = ImageDraw.Draw(canvas)
    for words, size, fill in _lines(source, finding, title):
        y = written(draw, (x, y), words, SIDE, size=size, fill=fill, lines=2)
    return Picture(finding=finding.number, png=encoded(canvas))


def window(source: SourceVolume, finding: Finding) -> tuple[float, float]:
    """Centre and width of the window in which a finding is looked at (PS3.3 C.11.2.1.2), in real-world values."""
    if source.series.modality == "CT":
        return WINDOWS["lung" if finding.kind.site.value in _LUNG_SITES else "soft-tissue"]
    return auto_window(source.volume.array[finding.key_slice])


# --- The slice ------------------------------------------------------------------------------------------------------


def _windowed(source: SourceVolume, finding: Finding) -> NDArray[np.uint8]:
    """uint8 [rows, columns] of the key slice, through the window of its organ (linear, PS3.3 C.11.2.1.2)."""
    centre, width = window(source, finding)
    grey = np.clip((source.volume.array[finding.key_slice] - (centre - width / 2)) / width, 0, 1) * 255
    return np.asarray(np.round(grey), np.uint8)


def _whole(source: SourceVolume) -> Extent:
    _, rows, columns = source.volume.spatial_shape
    return 0.0, 0.0, float(columns), float(rows)


def _fit(source: SourceVolume, longest: int) -> Size:
    """Width and height of a whole slice in square pixels, the longer of them given."""
    height_mm, width_mm = np.array(source.volume.spatial_shape[1:]) * source.volume.spacing[1:]
    scale = longest / max(height_mm, width_mm)
    return max(1, round(float(width_mm * scale))), max(1, round(float(height_mm * scale)))


def _field(source: SourceVolume, finding: Lesion | Mark) -> Extent:
    """The part of the key slice that is enlarged: a square in millimetres, around what was found."""
    if isinstance(finding, Lesion):
        _, rows, columns = finding.box
        longest = finding.long_axis_mm
        middle_row, middle_column = (rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2
    else:
        longest = max(finding.size_mm[1:]) if finding.size_mm else 0.0
        _, middle_row, middle_column = np.mean([finding.low, finding.high], axis=0) + 0.5
    side = max(_LEAST_FIELD_MM, 2.2 * longest)
    down, right = (side / float(mm) / 2 for mm in source.volume.spacing[1:])
    return middle_column - right, middle_row - down, middle_column + right, middle_row + down


def _drawn(source: SourceVolume, finding: Finding, extent: Extent, size: Size, *, axes: bool = False) -> Image.Image:
    """Part of the slice at a size, with the finding and a scale on it."""
    pixels = Image.fromarray(_windowed(source, finding))
    part = pixels.transform(size, Image.Transform.EXTENT, extent, resample=Image.Resampling.BICUBIC).convert("RGB")
    colour = finding.kind.colour
    if isinstance(finding, Lesion):
        part = _outlined(part, source, finding, extent)
    draw = ImageDraw.Draw(part)
    match finding:
        case Lesion() if axes:
            for line in (finding.long_axis, finding.short_axis):
                first, last = (np.array(_on((column + 0.5, row + 0.5), extent, size)) for _, row, column in line)
                _dashed(draw, first, last)
        case Mark():
            left, top = _on((finding.low[2] + 0.5, finding.low[1] + 0.5), extent, size)
            right, bottom = _on((finding.high[2] + 0.5, finding.high[1] + 0.5), extent, size)
            if finding.size_mm:
                drawn_rectangle(draw, (left - 2, top - 2, right + 2, bottom + 2), colour, width=2)
            for x, y in () if finding.size_mm else ((1, 0), (-1, 0), (0, 1), (0, -1)):  # the point itself stays free
                drawn_line(draw, (left + 6 * x, top + 6 * y, left + 18 * x, top + 18 * y), colour, width=2)
    drawn_scale(draw, (extent[2] - extent[0]) * float(source.volume.spacing[2]) / size[0], size)
    return part


def _outlined(part: Image.Image, source: SourceVolume, finding: Lesion, extent: Extent) -> Image.Image:
    """A part of the slice with the lesion's border drawn around it and never on it."""
    mask = np.zeros(source.volume.spatial_shape[1:], np.uint8)
    mask[finding.box[1:]] = finding.mask[finding.key_slice - finding.box[0].start] * np.uint8(255)
    filled = Image.fromarray(mask).transform(part.size, Image.Transform.EXTENT, extent, resample=_SMOOTH)
    inside = np.asarray(filled) > 127
    near = ndimage.binary_dilation(inside)
    border = ndimage.binary_dilation(inside, AROUND, iterations=3)
    canvas = np.array(part)
    canvas[ndimage.binary_dilation(border) & ~inside] = edge_of(finding.kind.colour)
    canvas[border & ~near] = finding.kind.colour
    return Image.fromarray(canvas)


def _on(point: tuple[float, float], extent: Extent, size: Size) -> tuple[float, float]:
    """Where a point of the slice (column, row) lies on a part of it that is drawn at a size."""
    left, top, right, bottom = extent
    return (point[0] - left) / (right - left) * size[0], (point[1] - top) / (bottom - top) * size[1]


def _directions(draw: ImageDraw.ImageDraw, source: SourceVolume, size: Size) -> None:
    """Letters of the patient's directions at the four edges (PS3.3 C.7.6.1.1.1)."""
    right, down = (_letter(source.volume.affine[:3, axis]) for axis in (2, 1))
    for letter, place, anchor in (
        (_OPPOSITE[right], (6, size[1] / 2), "lm"),
        (right, (size[0] - 6, size[1] / 2), "rm"),
        (_OPPOSITE[down], (size[0] / 2, 6), "mt"),
        (down, (size[0] / 2, size[1] - 6), "mb"),
    ):
        drawn_word(draw, place, letter, anchor)


def _letter(direction: NDArray[np.float64]) -> str:
    axis = int(np.argmax(np.abs(direction)))
    return ("LPH" if direction[axis] > 0 else "RAF")[axis]


def drawn_scale(draw: ImageDraw.ImageDraw, mm_of_pixel: float, size: Size) -> None:
    """A bar of a round length at the lower left, at most a quarter of the width."""
    length = next((mm for mm in _BAR_MM if mm / mm_of_pixel < size[0] / 4 + 1), _BAR_MM[-1])
    left, y, right = 10.0, size[1] - 10.0, 10.0 + length / mm_of_pixel
    bar = ((left, y, right, y), (left, y - 4, left, y + 4), (right, y - 4, right, y + 4))
    for colour, width in ((BLACK, 5), (WHITE, 3)):
        for line in bar:
            draw.line(line, fill=colour, width=width)
    drawn_word(draw, (left, y - 8), f"{length // 10} cm" if length >= 50 else f"{length} mm", "lb")


# --- Lines that are seen on dark and on light -----------------------------------------------------------------------


def edge_of(colour: Colour) -> Colour:
    """Black or white, whichever contrasts more with a colour: at least 4.5 to 1, as WCAG 2 counts."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
    luminance = float(np.dot((0.2126, 0.7152, 0.0722), linear))
    return BLACK if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else WHITE


def drawn_line(draw: ImageDraw.ImageDraw, line: Extent, colour: Colour, *, width: int) -> None:
    draw.line(line, fill=edge_of(colour), width=width + 2)
    draw.line(line, fill=colour, width=width)


def drawn_rectangle(draw: ImageDraw.ImageDraw, box: Extent, colour: Colour, *, width: int) -> None:
    left, top, right, bottom = box
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=edge_of(colour), width=width + 2)
    draw.rectangle(box, outline=colour, width=width)


def _dashed(draw: ImageDraw.ImageDraw, first: NDArray[np.float64], last: NDArray[np.float64]) -> None:
    """A line through which the lesion is seen."""
    dashes = max(1, round(float(np.linalg.norm(last - first)) / 12))
    for dash in range(dashes):
        start, stop = (first + (last - first) * share / dashes for share in (dash + 0.25, dash + 0.75))
        drawn_line(draw, (*start, *stop), CYAN, width=2)
    for end in (first, last):
        draw.ellipse([*(end - 3), *(end + 3)], outline=BLACK)
        draw.ellipse([*(end - 2), *(end + 2)], outline=CYAN)


def drawn_word(draw: ImageDraw.ImageDraw, place: tuple[float, float], word: str, anchor: str) -> None:
    draw.text(place, word, fill=WHITE, font=font(18), anchor=anchor, stroke_width=2, stroke_fill=BLACK)


# --- What is said ---------------------------------------------------------------------------------------------------


def _lines(source: SourceVolume, finding: Finding, title: str) -> Iterator[tuple[str, int, Colour]]:
    """Words, their size and colour, from the top."""
    count, rows, columns = source.volume.spatial_shape
    middle = np.array([finding.key_slice, rows / 2, columns / 2])
    yield label(finding), 30, WHITE
    yield title, 19, GREY
    yield site(finding), 22, WHITE
    match finding:
        case Lesion():
            yield f"Long axis {finding.long_axis_mm:.1f} mm", 22, CYAN
            yield f"Short axis {finding.short_axis_mm:.1f} mm", 22, CYAN
            yield f"Volume {volume(finding)}", 22, WHITE
            if source.series.modality == "CT":
                yield f"Mean {finding.mean:.0f} HU", 22, WHITE
            middle = np.mean(finding.long_axis, axis=0)
        case Mark():
            if finding.size_mm:
                yield f"Box {finding.size_mm[2]:.1f} x {finding.size_mm[1]:.1f} mm", 22, WHITE
            middle[1:] = np.mean([finding.low, finding.high], axis=0)[1:]
        case Judgement():
            yield f"Said of the {finding.level}:", 22, WHITE
            yield "no place in the image is meant", 22, WHITE
    yield f"Probability {finding.probability * 100:.0f} %", 22, WHITE
    centre = source.volume.affine @ (*middle, 1)
    yield f"Slice {finding.key_slice + 1} of {count}, z {centre[2]:.1f} mm", 19, GREY
    yield DISCLAIMER, 19, AMBER
