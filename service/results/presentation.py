"""Findings as Grayscale Softcopy Presentation State (PS3.3 A.33.1): outlines and words over the source images.

Coordinates in PIXEL units count as those of the reports do: 0, 0 is the top left corner of the top left pixel, whose
centre lies at 0.5, 0.5 (PS3.3 C.10.5, C.18.6). Only the displayed area counts pixels from 1 (C.10.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import highdicom as hd
import numpy as np
from highdicom import pr
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from service.forms import Kind
from service.results import capture, copied, frames, groups, identity, sheet
from service.results.identity import DISCLAIMER, Making, Name, label
from service.results.keyobjects import once, reference
from service.spec import FindingClass
from service.types import Conclusion, Finding, Instance, Judgement, Lesion, Mark, ResultObject, SourceVolume

_BOX = (0.3, 0.09)  # of three lines of words: parts of the image's width and height
_GAP = 0.015  # between a finding and its words, likewise
_WHITE = 0xFFFF  # Graphic Layer Recommended Display Grayscale Value, where a display has no colours


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """What is drawn of one finding on one slice."""

    finding: Finding
    index: int  # of the slice
    graphics: tuple[pr.GraphicObject, ...] = ()
    texts: tuple[pr.TextObject, ...] = ()


@dataclass(slots=True)
class _Room:
    """Where words are already, by slice: a list of left, top, right, bottom."""

    taken: dict[int, list[tuple[float, float, float, float]]] = field(default_factory=dict)

    def below(self, index: int, left: float, top: float, size: tuple[float, float], bottom: float) -> float:
        """The next top, else the highest, at which a box of a size meets no other; the first, if there is no room."""
        width, height = size
        boxes = self.taken.setdefault(index, [])
        tops = (top, *sorted(box[3] for box in boxes if box[3] > top), 0.0, *sorted(box[3] for box in boxes))
        for free in tops:
            met = (b[0] < left + width and left < b[2] and b[1] < free + height and free < b[3] for b in boxes)
            if free + height <= bottom and not any(met):
                break
        else:
            free = top
        boxes.append((left, free, left + width, free + height))
        return free


def presentation(making: Making, conclusion: Conclusion, source: SourceVolume) -> tuple[ResultObject, ...]:
    """Draw the findings over the images of the analysed series.

    Parameters
    ----------
    making
        Of what, by what and when.
    conclusion
        What was found; at least one finding.
    source
        The analysed series.

    Returns
    -------
    tuple of ResultObject
        One, unless the images are rescaled differently: a presentation state knows one Modality LUT (PS3.3 C.11.1).
        A lesion's outlines are on all its slices, its axes and the words of every finding on the key slice.
    """
    drawn = list(_drawn(conclusion.findings, source))
    rescales: dict[tuple[float, float], list[_Drawn]] = {}
    for one in drawn:
        rescale = _rescale(source.ordered[one.index])
        rescales.setdefault((rescale["rescale_intercept"], rescale["rescale_slope"]), []).append(one)
    return tuple(
        _encode(making, conclusion, source, part, Name(kind=Kind.PR, outcome=conclusion.outcome, part=number))
        for number, part in enumerate(rescales.values(), start=1)
    )


def _encode(
    making: Making, conclusion: Conclusion, source: SourceVolume, drawn: Sequence[_Drawn], name: Name
) -> ResultObject:
    headers = copied.complete_headers(source)
    indices = sorted({one.index for one in drawn})
    layers = {one.finding.kind.channel: _layer(one.finding.kind) for one in drawn}
    made = pr.GrayscaleSoftcopyPresentationState(
        referenced_images=once(headers[index] for index in indices),
        graphic_layers=[layers[channel] for channel in sorted(layers)],
        graphic_annotations=[
            pr.GraphicAnnotation(
                referenced_images=[headers[one.index]],
                graphic_layer=layers[one.finding.kind.channel],
                graphic_objects=one.graphics,
                text_objects=one.texts,
            )
            for one in drawn
        ],
        modality_lut_transformation=hd.ModalityLUTTransformation(**_rescale(source.ordered[indices[0]])),
        voi_lut_transformations=[pr.SoftcopyVOILUTTransformation(0, 1)],  # the true ones are below
        content_label="FINDINGS",
        content_description=DISCLAIMER,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **identity.series_of_ours(making, source, name),
    )
    # highdicom knows frames only together with the whole multi-frame image.
    for annotation, one in zip(made.GraphicAnnotationSequence, drawn, strict=True):
        annotation.ReferencedImageSequence = _references(source, [one.index])
    made.ReferencedSeriesSequence[0].ReferencedImageSequence = _references(source, indices)
    made.SoftcopyVOILUTSequence = list(_windows(conclusion.findings, source, drawn))
    made.add_new("Laterality", "CS", "")  # the images' is not ours to say
    # highdicom takes the pixels for squares, whatever the images say.
    area = made.DisplayedAreaSelectionSequence[0]
    del area.PresentationPixelAspectRatio, area.PixelOriginInterpretation
    # Some sources write more digits than a DS may have (PS3.5 section 6.2).
    area.PresentationPixelSpacing = [DSfloat(float(mm), auto_format=True) for mm in headers[0].PixelSpacing]
    return identity.finish(made, making, source, headers[0], name)


# --- What is drawn --------------------------------------------------------------------------------------------------


def _drawn(findings: Sequence[Finding], source: SourceVolume) -> Iterator[_Drawn]:
    room = _Room()
    for finding in findings:
        key = finding.key_slice
        match finding:
            case Lesion():
                by_slice = groups.outlines(finding)
                for index, borders in by_slice.items():
                    if index != key:
                        yield _Drawn(
                            finding=finding,
                            index=index,
                            graphics=tuple(_graphic(finding, it, source) for it in borders),
                        )
                borders = [*by_slice[key], groups.ends(finding.long_axis), groups.ends(finding.short_axis)]
            case Mark():
                borders = [groups.corners(finding) if finding.size_mm else groups.corners(finding)[:1]]
            case _:
                borders = []
        yield _Drawn(
            finding=finding,
            index=key,
            graphics=tuple(_graphic(finding, it, source) for it in borders),
            texts=(_words(finding, borders[0] if borders else None, source, room),),
        )


def _graphic(finding: Finding, points: NDArray[np.float64], source: SourceVolume) -> pr.GraphicObject:
    """Points (column, row) of one line, or one point (PS3.3 C.10.5)."""
    _, rows, columns = source.volume.spatial_shape
    return pr.GraphicObject(
        graphic_type="POLYLINE" if len(points) > 1 else "POINT",
        graphic_data=np.clip(points, 0, (columns, rows)),
        units="PIXEL",
        tracking_id=label(finding),
        tracking_uid=finding.tracking_uid,
    )


def _words(finding: Finding, around: NDArray[np.float64] | None, source: SourceVolume, room: _Room) -> pr.TextObject:
    """What is said of a finding on its key slice: beside it, or at the upper left of the display if it has no place."""
    *sizes, probability = sheet.measures(finding)
    tracking: dict[str, Any] = {"tracking_id": label(finding), "tracking_uid": finding.tracking_uid}
    if around is None:
        assert isinstance(finding, Judgement)
        words = f"{groups.in_words(finding)} {DISCLAIMER}."
        top = room.below(finding.key_slice, -1.0, 0.02, (0.5, 0.12), 1.0)  # apart from boxes in pixels
        return pr.TextObject(
            words, "DISPLAY", bounding_box=(0.02, top, 0.52, top + 0.12), text_justification="LEFT", **tracking
        )
    lines = [label(finding), *([", ".join(sizes)] if sizes else []), f"{probability}, research use only"]
    _, rows, columns = source.volume.spatial_shape
    (left, top), (right, bottom) = around.min(axis=0), around.max(axis=0)
    width, height = _BOX[0] * columns, _BOX[1] * rows
    at_right = right + _GAP * columns + width <= columns
    x = right + _GAP * columns if at_right else max(0.0, left - _GAP * columns - width)
    y = min(max(0.0, (top + bottom - height) / 2), rows - height)
    y = room.below(finding.key_slice, x, y, (width, height), rows)
    nearest = around[int(np.argmax(around[:, 0]) if at_right else np.argmin(around[:, 0]))]
    return pr.TextObject(
        "\r\n".join(lines),
        "PIXEL",
        bounding_box=(x, y, x + width, y + height),
        anchor_point=tuple(np.clip(nearest, 0, (columns, rows)).tolist()),
        text_justification="LEFT" if at_right else "RIGHT",
        **tracking,
    )


def _layer(kind: FindingClass) -> pr.GraphicLayer:
    """A layer for each class, in its colour (PS3.3 C.10.7)."""
    layer = pr.GraphicLayer(
        layer_name=f"CLASS {kind.channel}",
        order=kind.channel + 1,
        description=kind.finding.meaning[:64],
        display_color=CIELabColor.from_rgb(*kind.colour),
    )
    layer.GraphicLayerRecommendedDisplayGrayscaleValue = _WHITE
    return layer


# --- The images -----------------------------------------------------------------------------------------------------


def _rescale(instance: Instance) -> dict[str, Any]:
    """How an image's stored values become real ones (PS3.3 C.11.1), for highdicom; where it is silent, they are."""
    header = instance.header
    intercept, slope = header.get("RescaleIntercept"), header.get("RescaleSlope")
    if intercept is None or slope is None:
        return {"rescale_intercept": 0.0, "rescale_slope": 1.0, "rescale_type": "US"}
    usual = "HU" if header.get("Modality") == "CT" else "US"
    return {
        "rescale_intercept": float(intercept),
        "rescale_slope": float(slope),
        "rescale_type": str(header.get("RescaleType") or usual),
    }


def _windows(findings: Sequence[Finding], source: SourceVolume, drawn: Sequence[_Drawn]) -> Iterator[Dataset]:
    """The windows of the findings' organs; an image with several findings has that of the most probable one."""
    slices: dict[int, int] = {}  # of each slice, the number of the first finding on it
    for one in drawn:
        slices[one.index] = min(one.finding.number, slices.get(one.index, one.finding.number))
    windows: dict[tuple[float, float], list[int]] = {}
    by_number = {finding.number: capture.window(source, finding) for finding in findings}
    for index in sorted(slices):
        windows.setdefault(by_number[slices[index]], []).append(index)
    for (centre, width), indices in windows.items():
        # As the pictures: by LINEAR, what is narrower than 1 has no window.
        item = pr.SoftcopyVOILUTTransformation(centre, width, voi_lut_function="LINEAR_EXACT")
        if len(windows) > 1:
            item.add_new("ReferencedImageSequence", "SQ", _references(source, indices))
        yield item


def _references(source: SourceVolume, indices: Sequence[int]) -> list[Dataset]:
    """Items that refer to slices, each image once, with its frames (PS3.3 Table 10-3)."""
    by_image: dict[str, list[Instance]] = {}
    for index in indices:
        by_image.setdefault(source.ordered[index].sop_instance_uid, []).append(source.ordered[index])
    items = []
    for instances in by_image.values():
        item = reference(instances[0])
        if numbers := frames.numbers(*instances):
            item.ReferencedFrameNumber = numbers
        items.append(item)
    return items
