"""The sheet that sums up an answer in one picture, whatever the answer is; and how words stand on our pictures.

No patient data is drawn: a series is called by its number, and a reason names UIDs at most.
"""

from __future__ import annotations

import io
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset

from service import __version__
from service.results.identity import DISCLAIMER, NAME, Making, label, looked_for
from service.types import Conclusion, Finding, Judgement, Lesion, Mark, Outcome, Picture, SourceVolume

Colour = tuple[int, int, int]
Size = tuple[int, int]  # width, height
Line = tuple[str, int, Colour, int]  # words, height of the letters, colour, how many lines they may fill

BLACK, WHITE, GREY = (0, 0, 0), (255, 255, 255), (170, 170, 170)
AMBER, CYAN = (255, 176, 0), (90, 220, 255)
MARGIN = 12
SIDE = 384  # of a picture's enlargement, which stands at its upper right

_SIZE = (1188, 792)  # as large as the largest picture of a finding
_LEFT, _ACROSS = 2 * MARGIN, _SIZE[0] - 4 * MARGIN
_LEAST_WORDS = 16  # height in pixels; smaller ones are not read
_RIM = 56  # of a picture's parts, where letters and scale are: too small to be read in a thumbnail
_MOST = 20  # findings shown
_GRIDS = ((2, (2, 1), 20), (6, (3, 2), 20), (12, (4, 3), 18), (_MOST, (4, 5), 16))  # up to: columns, rows; letters
_LEFT_OUT = 3  # series named; of more, only their number is said


def summary(
    making: Making, conclusion: Conclusion, source: SourceVolume | None, pictures: Sequence[Picture]
) -> Picture:
    """Draw what an answer comes to.

    Parameters
    ----------
    making
        Of what, by what and when.
    conclusion
        How the work ended, and what was found.
    source
        The analysed series; None where there was none.
    pictures
        Of the findings; one that could not be drawn has its words only.

    Returns
    -------
    Picture
        A PNG, RGB, of finding 0: a thumbnail and the numbers of each finding, or words alone.
    """
    canvas = Image.new("RGB", _SIZE)
    draw = ImageDraw.Draw(canvas)
    y = 2 * MARGIN
    shown = conclusion.findings[:_MOST]
    for words, size, fill, lines in _heading(making, conclusion, source, len(shown)):
        y = written(draw, (_LEFT, y), words, _ACROSS, size=size, fill=fill, lines=lines)
    y += MARGIN // 2
    footing = list(_footing(making, conclusion, len(shown)))
    if shown:
        bottom = _SIZE[1] - MARGIN - sum(_step(size) for _, size, _, _ in footing)
        (columns, rows), size = next((grid, size) for most, grid, size in _GRIDS if len(shown) <= most)
        width, height = _ACROSS // columns, (bottom - y) // rows
        by_number = {picture.finding: picture for picture in pictures}
        for place, finding in enumerate(shown):
            corner = _LEFT + place % columns * width, y + place // columns * height
            thumbnail = _thumbnail(by_number.get(finding.number), finding)
            _cell(canvas, corner, (width - MARGIN, height - MARGIN // 2), thumbnail, list(_of(finding, source, size)))
        y = bottom
    for words, size, fill, lines in footing:
        y = written(draw, (_LEFT, y), words, _ACROSS, size=size, fill=fill, lines=lines)
    return Picture(finding=0, png=encoded(canvas if shown else canvas.crop((0, 0, _SIZE[0], y + MARGIN))))


def _heading(making: Making, conclusion: Conclusion, source: SourceVolume | None, shown: int) -> Iterator[Line]:
    spec, findings = making.model.spec, len(conclusion.findings)
    yield spec.title, 32, WHITE, 1
    yield f"Model {spec.name} {spec.version} by {spec.manufacturer}", 18, GREY, 1
    yield f"It looks for: {looked_for(spec)}", 18, GREY, 1 if shown else 3
    complete = conclusion.outcome in (Outcome.FINDINGS, Outcome.NO_FINDINGS)
    yield _ending(conclusion.outcome, findings), 34, WHITE if complete else AMBER, 1
    if conclusion.reason:
        reason = conclusion.reason[0].upper() + conclusion.reason[1:]
        yield reason, 20, WHITE, 1 if shown > 12 else 2 if shown else 6
    if source:
        series = source.series
        yield f"Analysed: {_called(series.header)}, {series.modality}, {len(source.ordered)} images", 18, GREY, 1
    if unseen := findings + conclusion.dropped - shown:
        yield f"{_counted(unseen, 'more finding')}, less probable than these, not shown here", 20, AMBER, 1


def _ending(outcome: Outcome, findings: int) -> str:
    """How the work ended, in words."""
    found = _counted(findings, "finding") if findings else "no findings"
    match outcome:
        case Outcome.PARTIAL:
            return f"Only a part was analysed: {found}"
        case Outcome.UNSUITABLE:
            return "Not analysed: the images are not suitable"
        case Outcome.FAILED:
            return "Not analysed: the analysis failed"
        case _:
            return found.capitalize()


def _footing(making: Making, conclusion: Conclusion, shown: int) -> Iterator[Line]:
    excluded, named = conclusion.excluded, 1 if shown else _LEFT_OUT
    known = {series.series_instance_uid: series.header for series in making.study.series}
    for exclusion in excluded if len(excluded) <= named else ():
        name = _called(known.get(exclusion.series_instance_uid, Dataset()))
        yield f"Left out: {name}: {exclusion.reason}", 17, GREY, 1
    if len(excluded) > named:
        yield f"Left out: {len(excluded)} series; the report says why", 17, GREY, 1
    made = f"{making.made_at:%Y-%m-%d %H:%M %Z}".strip()
    yield f"{NAME} {__version__} on {making.backend}, {made}", 17, GREY, 1
    yield DISCLAIMER, 24, AMBER, 1


def _called(header: Dataset) -> str:
    """A series by its number; its description may hold anything."""
    number = header.get("SeriesNumber")
    return f"series {number}" if number is not None else "a series without a number"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --- Findings -------------------------------------------------------------------------------------------------------


def _of(finding: Finding, source: SourceVolume | None, size: int) -> Iterator[Line]:
    """The words beside a thumbnail."""
    yield label(finding), size + 3 if size > _LEAST_WORDS else size, WHITE, 2
    numbers = measures(finding)
    for words in numbers[:-2] if isinstance(finding, Lesion) else numbers[:-1]:
        yield words, size, CYAN, 2
    yield ", ".join(numbers[-2:] if isinstance(finding, Lesion) else numbers[-1:]), size, WHITE, 1
    if size > _LEAST_WORDS and source:
        yield f"Slice {finding.key_slice + 1} of {len(source.ordered)}", size, GREY, 1
        yield site(finding), size, GREY, 2


def _cell(canvas: Image.Image, corner: Size, size: Size, thumbnail: Image.Image | None, lines: Sequence[Line]) -> None:
    """A thumbnail with its words at its right."""
    (x, y), (width, height) = corner, size
    side = min(height, width - 8 * lines[-1][1])
    if thumbnail:
        scale = side / max(thumbnail.size)
        small = round(thumbnail.width * scale), round(thumbnail.height * scale)
        canvas.paste(thumbnail.resize(small, Image.Resampling.LANCZOS), corner)
    draw, x, width = ImageDraw.Draw(canvas), x + side + MARGIN, width - side - MARGIN
    for words, letters, fill, most in lines:
        y = written(draw, (x, y), words, width, size=letters, fill=fill, lines=most)


def _thumbnail(picture: Picture | None, finding: Finding) -> Image.Image | None:
    """The middle of a picture's enlargement; of a judgement, which has none, of the slice."""
    if not picture:
        return None
    whole: Image.Image = Image.open(io.BytesIO(picture.png))
    left = whole.width - SIDE - 2 * MARGIN
    part = whole.crop((left + MARGIN, MARGIN, whole.width - MARGIN, MARGIN + SIDE))
    if isinstance(finding, Judgement):
        part = whole.crop((MARGIN, MARGIN, left, whole.height - MARGIN))
        part = part.crop(part.getbbox())  # a slice that is no square leaves room below it
    x, y = (min(_RIM, side // 4) for side in part.size)
    return part.crop((x, y, part.width - x, part.height - y))


def measures(finding: Finding) -> list[str]:
    """What was measured of a finding, in short: on the slice, in the volume, and how probable it is."""
    said = []
    match finding:
        case Lesion():
            said += [f"{finding.long_axis_mm:.1f} x {finding.short_axis_mm:.1f} mm", volume(finding)]
        case Mark(size_mm=(_, down, along)):
            said.append(f"{along:.1f} x {down:.1f} mm")
    return [*said, f"{finding.probability * 100:.0f} %"]


def volume(finding: Lesion) -> str:
    """A lesion's volume, with two digits that count at least."""
    digits = 1 if finding.volume_ml >= 10 else 2 if finding.volume_ml >= 0.1 else 3
    return f"{finding.volume_ml:.{digits}f} ml"


def site(finding: Finding) -> str:
    """Where a finding is, in words."""
    return ", ".join([finding.kind.site.meaning, *([finding.laterality.meaning] if finding.laterality else [])])


# --- Words on a canvas ----------------------------------------------------------------------------------------------


def written(
    draw: ImageDraw.ImageDraw,
    place: Size,
    words: str,
    width: int,
    *,
    size: int,
    fill: Colour = WHITE,
    lines: int = 1,
) -> int:
    """Write words into a column: in smaller letters, in several lines, or cut before a number, but never beyond it.

    Parameters
    ----------
    place
        Left end and top of the first line.
    size
        Height of the letters, in pixels; a few less where that helps, but never less than can be read.
    lines
        How many there may be.

    Returns
    -------
    int
        The top of what comes below.
    """
    letters = unicodedata.normalize("NFKD", words)  # the font has those of ASCII only
    plain = "".join(one for one in letters if not unicodedata.combining(one)).encode("ascii", "replace").decode()
    sizes = range(size, max(_LEAST_WORDS, size - 4) - 1, -1)
    broken = {height: list(_broken(draw, plain, width, height)) for height in sizes}
    fitting = (height for most in range(1, lines + 1) for height in sizes if len(broken[height]) <= most)
    height = next(fitting, sizes[-1])
    set_ = broken[height]
    if len(set_) > lines:
        last, end = set_[lines - 1], plain.split()[-1]
        rest = f"... {end}" if end.isdigit() else "..."  # a finding's number is never cut off
        while last and draw.textlength(last + rest, font(height)) > width:
            last = last[:-1]
        set_ = [*set_[: lines - 1], last + rest]
    for number, line in enumerate(set_):
        draw.text((place[0], place[1] + number * _step(height)), line, fill=fill, font=font(height))
    return place[1] + len(set_) * _step(height)


def _broken(draw: ImageDraw.ImageDraw, words: str, width: int, height: int) -> Iterator[str]:
    """Words in lines of a width; a word that is too long for one goes over several."""
    line = ""
    for word in words.split():
        if line and draw.textlength(f"{line} {word}", font(height)) > width:
            yield line
            line = ""
        line = f"{line} {word}".strip()
        while draw.textlength(line, font(height)) > width:
            lengths = [draw.textlength(line[:end], font(height)) for end in range(1, len(line))]
            fits = max(1, bisect_right(lengths, width))
            yield line[:fits]
            line = line[fits:]
    yield line


def _step(height: int) -> int:
    """From one line to the next."""
    return round(height * 1.3)


@cache
def font(height: int) -> ImageFont.FreeTypeFont:
    """The letters that Pillow brings, so that a picture is the same on every machine."""
    found = ImageFont.load_default(height)
    assert isinstance(found, ImageFont.FreeTypeFont)  # of a given size it always is
    return found


def encoded(canvas: Image.Image) -> bytes:
    """A canvas as PNG."""
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()
