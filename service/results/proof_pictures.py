"""Proof of what viewers show without segmentations and reports: pictures, key images, outlines and words.

Each is read as any reader would, from plain data elements: pixels as bytes, coordinates brought into patient space by
the attributes of the image that they refer to, numbers out of the words in which they stand.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from service.results.identity import DISCLAIMER, label
from service.results.places import corners, in_space, key_image, off_by, place_of
from service.results.reading import PLACE_TOLERANCE_MM, Fault
from service.types import Finding, Judgement, Lesion, Line, Mark, Picture, SourceVolume

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_OF_INTEREST = "113000"  # DCM
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_SIZES, _VOLUME, _PERCENT = rf"{_NUMBER} x {_NUMBER} mm", rf"{_NUMBER} ml", rf"{_NUMBER} %"


# --- Secondary Capture ----------------------------------------------------------------------------------------------


def prove_capture(dataset: Dataset, picture: Picture) -> None:
    """Hold a Secondary Capture against its picture.

    Raises
    ------
    Fault
        If any pixel differs, or it is not marked as what it is: derived, with words burned in, without one scale.
    """
    pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB"))
    layout = (dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PlanarConfiguration)
    if layout != ("RGB", 3, 0) or (dataset.Rows, dataset.Columns) != pixels.shape[:2] or dataset.BitsAllocated != 8:
        raise Fault(f"an image of {dataset.Rows} x {dataset.Columns}, {layout}", "a capture is its picture, in RGB")
    if dataset.PixelData[: pixels.size] != pixels.tobytes():
        raise Fault("other pixels than its picture's", "a capture is its picture (PS3.3 C.7.6.3)")
    if list(dataset.ImageType[:2]) != ["DERIVED", "SECONDARY"] or dataset.get("BurnedInAnnotation") != "YES":
        raise Fault("a picture that is not marked as one", "it is derived, and its words are burned in (C.7.6.1)")
    if DISCLAIMER not in str(dataset.get("ImageComments")):
        raise Fault("a picture without the disclaimer", "every result says what it is not for")
    for keyword in _SPACINGS:
        if keyword in dataset:
            raise Fault(f"a picture with {keyword}", "it has several scales, and nobody may measure by one (C.8.6.1)")


# --- Key Object Selection -------------------------------------------------------------------------------------------


def prove_key_objects(dataset: Dataset, source: SourceVolume, findings: Sequence[Finding]) -> None:
    """Hold a Key Object Selection against the findings.

    Raises
    ------
    Fault
        If it selects other images than those that show them best, or in another order.
    """
    if dataset.ConceptNameCodeSequence[0].CodeValue != _OF_INTEREST:
        raise Fault("another title", "its images are of interest (CID 7010)")
    selected = [place_of(item) for item in dataset.ContentSequence if item.ValueType == "IMAGE"]
    wanted = list(dict.fromkeys(key_image(finding, source) for finding in findings))
    if selected != wanted:
        raise Fault(f"{len(selected)} key images that are not the {len(wanted)} of the findings", "each has its own")
    evidence = [
        (str(series.SeriesInstanceUID), str(image.ReferencedSOPInstanceUID))
        for study in dataset.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for image in series.ReferencedSOPSequence
    ]
    if sorted(evidence) != sorted({(source.series.series_instance_uid, uid) for uid, _ in wanted}):
        raise Fault(f"evidence of {len(evidence)} images", "the evidence is what is selected (PS3.3 C.17.6.2)")


# --- Presentation State ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Drawn:
    """What a presentation state shows of one finding, by slice."""

    closed: dict[int, list[NDArray[np.float64]]] = field(default_factory=dict)  # [points, (column, row)]
    open: dict[int, list[NDArray[np.float64]]] = field(default_factory=dict)
    words: dict[int, list[str]] = field(default_factory=dict)


def prove_presentation(dataset: Dataset, source: SourceVolume, findings: Sequence[Finding]) -> None:
    """Hold a presentation state against the findings on the images that are rescaled as it says.

    Raises
    ------
    Fault
        If anything is drawn where its finding is not, is missing where it is, or says other numbers.
    """
    covered = frozenset(index for index in range(len(source.ordered)) if _rescaled_alike(dataset, source, index))
    drawn = _drawn(dataset, source, findings)
    annotated = {index for one in drawn.values() for part in (one.closed, one.open, one.words) for index in part}
    if annotated - covered:
        raise Fault("an image that is rescaled otherwise", "one Modality LUT holds for all images (PS3.3 C.11.1)")
    _prove_images(dataset, source, annotated)
    for finding in findings:
        one = drawn[finding.number]
        match finding:
            case Lesion():
                _prove_lesion(one, finding, source, covered)
            case Mark():
                _prove_mark(one, finding, source, covered)
            case _:
                if one.closed or one.open:
                    raise Fault(f"finding {finding.number} with a place", "a judgement has none")
        _prove_words(one.words, finding, covered)


def _rescaled_alike(dataset: Dataset, source: SourceVolume, index: int) -> bool:
    """Whether an image's values become real ones as the presentation state says; where it is silent, they are."""
    header = source.ordered[index].header
    silent = header.get("RescaleIntercept") is None or header.get("RescaleSlope") is None
    theirs = (0.0, 1.0) if silent else (float(header.RescaleIntercept), float(header.RescaleSlope))
    return (float(dataset.RescaleIntercept), float(dataset.RescaleSlope)) == theirs


def _drawn(dataset: Dataset, source: SourceVolume, findings: Iterable[Finding]) -> dict[int, _Drawn]:
    """All that is drawn, by the number of its finding."""
    slices = {(it.sop_instance_uid, it.frame): index for index, it in enumerate(source.ordered)}
    numbers = {finding.tracking_uid: finding.number for finding in findings}
    found = {number: _Drawn() for number in numbers.values()}
    for annotation in dataset.GraphicAnnotationSequence:
        image = _image(annotation.ReferencedImageSequence)
        if image not in slices:
            raise Fault("an annotation of another image", "each is of one image of the series (PS3.3 C.10.5)")
        index = slices[image]
        for item in (*annotation.get("GraphicObjectSequence", ()), *annotation.get("TextObjectSequence", ())):
            number = numbers.get(str(item.get("TrackingUID")))
            if number is None:
                raise Fault("an annotation of no finding", "each is tracked as its finding (PS3.3 C.10.5)")
            if "UnformattedTextValue" in item:
                found[number].words.setdefault(index, []).append(str(item.UnformattedTextValue))
                continue
            if item.GraphicAnnotationUnits != "PIXEL" or item.GraphicType not in ("POLYLINE", "POINT"):
                raise Fault(f"a {item.GraphicType} in {item.GraphicAnnotationUnits}", "lines count pixels (C.10.5)")
            points = np.reshape(np.array(item.GraphicData, float), (int(item.NumberOfGraphicPoints), 2))
            is_closed = len(points) > 3 and bool((points[0] == points[-1]).all())
            (found[number].closed if is_closed else found[number].open).setdefault(index, []).append(points)
    return found


def _image(references: Sequence[Dataset]) -> tuple[str, int | None]:
    """The one image, or the one frame, that is referred to; empty, if there are several."""
    if len(references) != 1:
        return "", None
    frame = references[0].get("ReferencedFrameNumber")
    if isinstance(frame, Sequence) and not isinstance(frame, str):
        return "", None
    return str(references[0].ReferencedSOPInstanceUID), None if frame is None else int(frame)


def _prove_images(dataset: Dataset, source: SourceVolume, annotated: Iterable[int]) -> None:
    """The images it is for are those that it draws on, shown in their true proportions."""
    listed: set[tuple[str, int | None]] = set()
    for series in dataset.ReferencedSeriesSequence:
        if series.SeriesInstanceUID != source.series.series_instance_uid:
            raise Fault("another series", "it is for the analysed series (PS3.3 C.11.11)")
        for image in series.ReferencedImageSequence:
            frames = image.get("ReferencedFrameNumber")
            several = [None] if frames is None else np.ravel(frames).tolist()
            listed |= {(str(image.ReferencedSOPInstanceUID), frame and int(frame)) for frame in several}
    if listed != {(source.ordered[i].sop_instance_uid, source.ordered[i].frame) for i in annotated}:
        raise Fault(f"{len(listed)} images", "it is for the images that it draws on (PS3.3 C.11.11)")
    spacing = np.array(source.ordered[0].header.PixelSpacing, float)
    for area in dataset.DisplayedAreaSelectionSequence:
        if not np.allclose(np.array(area.PresentationPixelSpacing, float), spacing):
            raise Fault("images in other proportions", "a pixel is as wide and as high as it is (PS3.3 C.10.4)")


def _prove_lesion(one: _Drawn, finding: Lesion, source: SourceVolume, covered: frozenset[int]) -> None:
    """Its borders on each of its slices and on no other, and its axes on the key slice."""
    first, corner = finding.box[0].start, [finding.box[1].start, finding.box[2].start]
    voxels = {first + n: np.argwhere(area) + corner for n, area in enumerate(finding.mask) if area.any()}
    wanted = {index: places for index, places in voxels.items() if index in covered}
    if one.closed.keys() != wanted.keys():
        raise Fault(f"finding {finding.number} outlined on {len(one.closed)} slices", f"it is on {len(wanted)}")
    half = np.abs(np.asarray(source.volume.affine, float)[:3, 1:3]).sum(axis=1) / 2  # from a voxel's centre to its edge
    seen = {i: in_space(np.concatenate(parts), source, i) for i, parts in one.closed.items()}
    for index, places in wanted.items():
        centres = source.volume.map_indices_to_reference(np.c_[np.full(len(places), index), places])
        _prove_extent(seen[index], (centres.min(axis=0), centres.max(axis=0)), half, finding)
    if wanted.keys() == voxels.keys():
        low, high = (np.array(point) for point in finding.extent_lps_mm)
        _prove_extent(np.concatenate(list(seen.values())), (low, high), half, finding)
    lines = [finding.long_axis, finding.short_axis] if finding.key_slice in covered else []
    if {index: len(parts) for index, parts in one.open.items()} != ({finding.key_slice: 2} if lines else {}):
        raise Fault(f"finding {finding.number} without its two axes", "they are drawn on its key slice")
    for points, line in zip(one.open.get(finding.key_slice, ()), lines, strict=True):
        _prove_line(points, line, finding, source)


def _prove_extent(
    seen: NDArray[np.float64],
    centres: tuple[NDArray[np.float64], NDArray[np.float64]],
    half: NDArray[np.float64],
    finding: Finding,
) -> None:
    """Points in space reach as far as voxels do, of which the least and the greatest centre are given."""
    off = max(
        float(np.abs(seen.min(axis=0) - (centres[0] - half)).max()),
        float(np.abs(seen.max(axis=0) - (centres[1] + half)).max()),
    )
    if not off <= PLACE_TOLERANCE_MM:
        raise Fault(
            f"finding {finding.number} outlined {off:.2f} mm off",
            f"outlines lie within {PLACE_TOLERANCE_MM} mm of the borders of what was found",
        )


def _prove_line(points: NDArray[np.float64], line: Line, finding: Finding, source: SourceVolume) -> None:
    seen = in_space(points, source, finding.key_slice)
    wanted = np.asarray(source.volume.map_indices_to_reference(np.array(line)), np.float64)
    off = off_by(seen, wanted, source) if seen.shape == wanted.shape else float("nan")
    if not off <= PLACE_TOLERANCE_MM:
        raise Fault(f"an axis of finding {finding.number} {off:.2f} mm off", "an axis ends where it was measured")


def _prove_mark(one: _Drawn, finding: Mark, source: SourceVolume, covered: frozenset[int]) -> None:
    """Its rectangle or its point, on the slice in its middle."""
    graphics, others = (one.closed, one.open) if finding.size_mm else (one.open, one.closed)
    on_slices = {index: len(parts) for index, parts in graphics.items()}
    if others or on_slices != ({finding.key_slice: 1} if finding.key_slice in covered else {}):
        raise Fault(f"finding {finding.number} marked on {len(on_slices)} slices", "it is on the slice in its middle")
    for index, (points,) in graphics.items():
        seen = in_space(points, source, index)
        wanted = corners(finding, source) if finding.size_mm else np.array([finding.centre_lps_mm])
        off = off_by(seen, wanted, source) if seen.shape == wanted.shape else float("nan")
        if not off <= PLACE_TOLERANCE_MM:
            raise Fault(f"finding {finding.number} marked {off:.2f} mm off", "a mark is where it was found")


def _prove_words(words: Mapping[int, Sequence[str]], finding: Finding, covered: frozenset[int]) -> None:
    """What it is called and its numbers, once, on the key slice."""
    if {index: len(texts) for index, texts in words.items()} != (
        {finding.key_slice: 1} if finding.key_slice in covered else {}
    ):
        raise Fault(f"finding {finding.number} in words on {len(words)} slices", "they stand on its key slice, once")
    numbers: dict[str, tuple[float, ...]] = {_PERCENT: (finding.probability * 100,)}
    match finding:
        case Lesion():
            numbers |= {_SIZES: (finding.long_axis_mm, finding.short_axis_mm), _VOLUME: (finding.volume_ml,)}
        case Mark(size_mm=(_, down, along)):
            numbers[_SIZES] = (along, down)
        case Judgement() | Mark():
            pass
    for text in (text for texts in words.values() for text in texts):
        if label(finding) not in text or "research use" not in text.lower():
            raise Fault(f"finding {finding.number} by another name", "words say what it is, and what for")
        for pattern, wanted in numbers.items():
            written = re.search(pattern, text)
            if not written or not all(map(_rounds_to, wanted, written.groups())):
                raise Fault(f"finding {finding.number} with other numbers in words", "they are the finding's")


def _rounds_to(value: float, written: str) -> bool:
    """Whether a number is what is written, to the last digit that is."""
    _, _, digits = written.partition(".")
    return abs(float(written) - value) <= 0.5001 * 0.1 ** len(digits)
