"""A finding's key slice as a picture for people: the whole slice, its place enlarged, and what was measured.

No patient data is drawn. The image stands as it is stored, without a flip; letters at its edges say which way it faces.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from service.results.identity import DISCLAIMER, label
from service.types import Finding, Judgement, Lesion, Mark, Picture, SourceVolume

Extent = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the slice; 0 = its corner

_SLICE = 768  # longer side of the whole slice on the canvas, in pixels
_SIDE = 384  # the enlarged lesion and the words beside it
_MARGIN = 12
_LEAST_FIELD_MM = 40.0  # of the enlargement: a nodule of 5 mm needs its surroundings to be recognised
_LUNG_SITES = {"39607008"}  # SCT Lung
_SOFT_TISSUE, _LUNG = (40.0, 400.0), (-600.0, 1500.0)  # window centre and width, HU
_AMBER, _WHITE, _GREY, _CYAN = (255, 176, 0), (255, 255, 255), (160, 160, 160), (90, 220, 255)


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
    pixels = Image.fromarray(_windowed(source, finding))
    row_mm, column_mm = (float(mm) for mm in source.volume.spacing[1:])
    height_mm, width_mm = pixels.height * row_mm, pixels.width * column_mm
    scale = _SLICE / max(height_mm, width_mm)
    size = (round(width_mm * scale), round(height_mm * scale))
    whole: Extent = (0.0, 0.0, float(pixels.width), float(pixels.height))
    slice_ = _drawn(pixels, source, finding, whole, size)
    canvas = Image.new("RGB", (size[0] + _SIDE + 3 * _MARGIN, max(size[1], _SLICE) + 2 * _MARGIN))
    top = _MARGIN
    if isinstance(finding, Lesion | Mark):
        field = _field(finding, row_mm, column_mm)
        frame = [*_on(field[:2], whole, size), *_on(field[2:], whole, size)]
        ImageDraw.Draw(slice_).rectangle(frame, outline=_GREY)
        canvas.paste(_drawn(pixels, source, finding, field, (_SIDE, _SIDE), axes=True), (size[0] + 2 * _MARGIN, top))
        top += _SIDE + _MARGIN
    _directions(ImageDraw.Draw(slice_), source, size)
    canvas.paste(slice_, (_MARGIN, _MARGIN))
    _caption(ImageDraw.Draw(canvas), source, finding, title, (size[0] + 2 * _MARGIN, top))
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return Picture(finding=finding.number, png=file.getvalue())


def _windowed(source: SourceVolume, finding: Finding) -> NDArray[np.uint8]:
    """uint8 [rows, columns] of the key slice, through the window of its organ (linear, PS3.3 C.11.2.1.2)."""
    values = source.volume.array[finding.key_slice]
    if source.series.modality == "CT":
        centre, width = _LUNG if finding.kind.site.value in _LUNG_SITES else _SOFT_TISSUE
        low, high = centre - width / 2, centre + width / 2
    else:
        low, high = (float(value) for value in np.percentile(values, (1, 99)))
    grey = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.asarray(np.round(grey), np.uint8)


def _field(finding: Lesion | Mark, row_mm: float, column_mm: float) -> Extent:
    """The part of the key slice that is enlarged: a square in millimetres, around what was found."""
    if isinstance(finding, Lesion):
        _, rows, columns = finding.box
        longest = finding.long_axis_mm
        middle_row, middle_column = (rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2
    else:
        longest = max(finding.size_mm[1:]) if finding.size_mm else 0.0
        _, middle_row, middle_column = np.mean([finding.low, finding.high], axis=0) + 0.5
    side = max(_LEAST_FIELD_MM, 2.2 * longest)
    down, right = side / row_mm / 2, side / column_mm / 2
    return middle_column - right, middle_row - down, middle_column + right, middle_row + down


def _drawn(
    pixels: Image.Image,
    source: SourceVolume,
    finding: Finding,
    extent: Extent,
    size: tuple[int, int],
    *,
    axes: bool = False,
) -> Image.Image:
    """Part of the slice at a size, with the finding on it."""
    part = pixels.transform(size, Image.Transform.EXTENT, extent, resample=Image.Resampling.BICUBIC).convert("RGB")
    match finding:
        case Lesion():
            mask = np.zeros(source.volume.spatial_shape[1:], np.uint8)
            mask[finding.box[1:]] = finding.mask[finding.key_slice - finding.box[0].start] * np.uint8(255)
            part = _outlined(part, Image.fromarray(mask), extent, finding.kind.colour)
            if axes:
                _axes(ImageDraw.Draw(part), finding, extent)
        case Mark():
            _marked(ImageDraw.Draw(part), finding, extent, size)
    return part


def _marked(draw: ImageDraw.ImageDraw, finding: Mark, extent: Extent, size: tuple[int, int]) -> None:
    """A box's rectangle, around it; of a point, four strokes that leave the point itself free."""
    colour = finding.kind.colour
    left, top = _on((finding.low[2] + 0.5, finding.low[1] + 0.5), extent, size)
    right, bottom = _on((finding.high[2] + 0.5, finding.high[1] + 0.5), extent, size)
    if finding.size_mm:
        draw.rectangle([left - 2, top - 2, right + 2, bottom + 2], outline=colour, width=2)
        return
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        draw.line([left + 6 * x, top + 6 * y, left + 18 * x, top + 18 * y], fill=colour, width=2)


def _outlined(part: Image.Image, mask: Image.Image, extent: Extent, colour: tuple[int, int, int]) -> Image.Image:
    """A part of the slice with the mask's border drawn around it and never on it."""
    filled = mask.transform(part.size, Image.Transform.EXTENT, extent, resample=Image.Resampling.BILINEAR)
    inside = np.asarray(filled) > 127
    border = ndimage.binary_dilation(inside, np.ones((3, 3), bool), iterations=2) & ~ndimage.binary_dilation(inside)
    canvas = np.array(part)
    canvas[border] = colour
    return Image.fromarray(canvas)


def _on(point: tuple[float, float], extent: Extent, size: tuple[int, int]) -> tuple[float, float]:
    """Where a point of the slice (column, row) lies on a part of it that is drawn at a size."""
    left, top, right, bottom = extent
    return (point[0] - left) / (right - left) * size[0], (point[1] - top) / (bottom - top) * size[1]


def _axes(draw: ImageDraw.ImageDraw, finding: Lesion, field: Extent) -> None:
    """Long and short axis, dashed, so that the lesion is seen through them."""
    for (_, row0, column0), (_, row1, column1) in (finding.long_axis, finding.short_axis):
        first = np.array(_on((column0 + 0.5, row0 + 0.5), field, (_SIDE, _SIDE)))
        last = np.array(_on((column1 + 0.5, row1 + 0.5), field, (_SIDE, _SIDE)))
        dashes = max(1, round(float(np.linalg.norm(last - first)) / 12))
        for dash in range(dashes):
            start, stop = (first + (last - first) * share / dashes for share in (dash + 0.25, dash + 0.75))
            draw.line([*start, *stop], fill=_CYAN)
        for end in (first, last):
            draw.ellipse([*(end - 2), *(end + 2)], outline=_CYAN)


def _directions(draw: ImageDraw.ImageDraw, source: SourceVolume, size: tuple[int, int]) -> None:
    """Letters of the patient's directions at the four edges (PS3.3 C.7.6.1.1.1)."""
    row_letter = _letter(source.volume.affine[:3, 2])
    column_letter = _letter(source.volume.affine[:3, 1])
    font = ImageFont.load_default(18)
    middle_x, middle_y = size[0] / 2, size[1] / 2
    for letter, place, anchor in (
        (_opposite(row_letter), (6, middle_y), "lm"),
        (row_letter, (size[0] - 6, middle_y), "rm"),
        (_opposite(column_letter), (middle_x, 6), "mt"),
        (column_letter, (middle_x, size[1] - 6), "mb"),
    ):
        draw.text(place, letter, fill=_WHITE, font=font, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def _letter(direction: NDArray[np.float64]) -> str:
    axis = int(np.argmax(np.abs(direction)))
    return ("LPH" if direction[axis] > 0 else "RAF")[axis]


def _opposite(letter: str) -> str:
    return dict(zip("LPHRAF", "RAFLPH", strict=True))[letter]


def _caption(
    draw: ImageDraw.ImageDraw, source: SourceVolume, finding: Finding, title: str, place: tuple[int, int]
) -> None:
    x, y = place
    for words, size, fill in _lines(source, finding, title):
        font = ImageFont.load_default(size)
        while draw.textlength(words, font) > _SIDE and size > 10:
            size -= 1
            font = ImageFont.load_default(size)
        draw.text((x, y), words, fill=fill, font=font)
        y += round(size * 1.5)


def _lines(source: SourceVolume, finding: Finding, title: str) -> Iterator[tuple[str, int, tuple[int, int, int]]]:
    yield label(finding), 30, _WHITE
    yield title, 19, _GREY
    yield finding.kind.site.meaning, 22, _WHITE
    count, rows, columns = source.volume.spatial_shape
    middle = np.array([finding.key_slice, rows / 2, columns / 2])
    match finding:
        case Lesion():
            yield f"Long axis {finding.long_axis_mm:.1f} mm", 22, _CYAN
            yield f"Short axis {finding.short_axis_mm:.1f} mm", 22, _CYAN
            yield f"Volume {finding.volume_ml:.{1 if finding.volume_ml >= 10 else 2}f} ml", 22, _WHITE
            if source.series.modality == "CT":
                yield f"Mean {finding.mean:.0f} HU", 22, _WHITE
            middle = np.mean(finding.long_axis, axis=0)
        case Mark():
            if finding.size_mm:
                yield f"Box {finding.size_mm[2]:.1f} x {finding.size_mm[1]:.1f} mm", 22, _WHITE
            middle[1:] = np.mean([finding.low, finding.high], axis=0)[1:]
        case Judgement():
            yield f"Said of the {finding.level}:", 22, _WHITE
            yield "no place in the image is meant", 22, _WHITE
    yield f"Probability {finding.probability * 100:.0f} %", 22, _WHITE
    centre = source.volume.affine @ (*middle, 1)
    yield f"Slice {finding.key_slice + 1} of {count}, z {centre[2]:.1f} mm", 19, _GREY
    yield DISCLAIMER, 19, _AMBER
