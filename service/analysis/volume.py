"""A series as one volume: ordered and spaced by position, in real-world values, or a named reason why not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom.pixels.processing import apply_rescale

from service.analysis.frames import frames_of
from service.analysis.geometry import Stack, numbers, stack
from service.codes import derive_uid
from service.decoding import frames
from service.errors import DecoderLost, MissingAttribute, StudyUnsuitable, Undecodable, UnsuitableGeometry
from service.types import Array, Instance, Series, SourceVolume

COSINE_TOLERANCE = 1e-3  # of a direction cosine, about 0.06 degrees
GAP_TOLERANCE = 0.05  # of the slice spacing
SHEAR_TOLERANCE_MM = 0.5  # how far an image may lie off the line through the first and the last
SAME_POSITION_MM = 0.01


def read_volume(series: Series) -> SourceVolume:
    """Read a series as a volume.

    Returns
    -------
    SourceVolume
        float32 [slices, rows, columns], real-world values by the Modality LUT (PS3.3 C.11.1), LPS mm; the slices
        ascend along the normal of the images.

    Raises
    ------
    UnsuitableGeometry
        If the images are not one regular, straight stack; the reason names the place.
    MissingAttribute, StudyUnsuitable
        If an image can't be placed, or its pixels can't be decoded.
    DecoderLost
        If what decodes them was ended by somebody else.
    """
    placed = stack(list(chain.from_iterable(_as_slices(instance) for instance in series.instances)))
    _check(series, placed)
    first = placed.ordered[0].header
    spacing_rows, spacing_columns = numbers(placed.ordered[0], "PixelSpacing", 2)
    step = (placed.positions[-1] - placed.positions[0]) / (len(placed.ordered) - 1)
    affine = np.eye(4)
    affine[:3, 0] = (step @ placed.normal) * placed.normal  # what `_check` lets drift off it is below a voxel
    affine[:3, 1] = placed.column_direction * spacing_rows
    affine[:3, 2] = placed.row_direction * spacing_columns
    affine[:3, 3] = placed.positions[0]
    frame_of_reference, notes = _frame_of_reference(series, placed)
    array = np.empty((len(placed.ordered), int(first.Rows), int(first.Columns)), np.float32)
    by_file: dict[Path, list[int]] = {}  # slices of axis 0
    for index, instance in enumerate(placed.ordered):
        by_file.setdefault(instance.path, []).append(index)
    with ThreadPoolExecutor(max_workers=4) as pool:  # other processes decode
        try:
            for _ in pool.map(lambda slices: _read_file(placed.ordered, slices, array), by_file.values()):
                pass  # raises what was raised there
        except Exception:
            pool.shutdown(wait=False, cancel_futures=True)  # the others need not be read any more
            raise
    return SourceVolume(
        series=series,
        volume=hd.Volume(array, affine, coordinate_system="PATIENT", frame_of_reference_uid=frame_of_reference),
        ordered=placed.ordered,
        notes=notes,
    )


def _check(series: Series, placed: Stack) -> None:
    images = [i.header for i in placed.ordered]
    sizes = {(int(h.Rows), int(h.Columns)) for h in images}
    if len(sizes) > 1:
        raise _unsuitable(series, f"images of {len(sizes)} sizes: {sorted(sizes)}", "all have one size")
    spacings = {tuple(float(v) for v in numbers(i, "PixelSpacing", 2).round(4)) for i in placed.ordered}
    if len(spacings) > 1 or min(min(spacings)) <= 0:
        raise _unsuitable(series, f"pixel spacings {sorted(spacings)} mm", "all have one pixel spacing, above 0")
    if series.modality == "CT" and any(not h.get("RescaleSlope") or h.get("RescaleIntercept") is None for h in images):
        raise MissingAttribute(
            doing=f"reading the values of series {series.series_instance_uid}",
            found="no RescaleSlope or no RescaleIntercept in some images",
            rule="stored values of a CT image become HU by them (Type 1, PS3.3 C.8.2.1)",
            way_out="send the original images of the scanner",
        )
    if len(images) < 2:
        raise _unsuitable(series, "one image", "there are at least two")
    if placed.orientation_spread > COSINE_TOLERANCE:
        raise _unsuitable(
            series, f"direction cosines that differ by {placed.orientation_spread:.3f}", "all are parallel"
        )
    gap = placed.spacing_mm
    same = np.flatnonzero(placed.gaps_mm < SAME_POSITION_MM)
    if same.size:
        raise _unsuitable(
            series,
            f"{same.size} pairs of images at one position, the first at slice {int(same[0]) + 1}",
            "each position has one image; several phases or repeats are several volumes",
        )
    odd = np.flatnonzero(np.abs(placed.gaps_mm - gap) > GAP_TOLERANCE * gap)
    if odd.size:
        raise _unsuitable(
            series,
            f"{odd.size} uneven gaps, the first of {placed.gaps_mm[odd[0]]:.2f} mm after slice {int(odd[0]) + 1}, "
            f"where {gap:.2f} mm is usual",
            f"gaps differ by at most {GAP_TOLERANCE:.0%}",
        )
    line = placed.positions[0] + np.outer(
        np.arange(len(images)) / (len(images) - 1), placed.positions[-1] - placed.positions[0]
    )
    off = float(np.linalg.norm(placed.positions - line, axis=1).max())
    if off > SHEAR_TOLERANCE_MM:
        raise _unsuitable(series, f"an image {off:.2f} mm off the line through the others", "the stack is straight")
    step = placed.positions[-1] - placed.positions[0]
    tilt = float(np.linalg.norm(step - (step @ placed.normal) * placed.normal))
    if tilt > SHEAR_TOLERANCE_MM:
        cosine = float(step @ placed.normal / np.linalg.norm(step))
        raise _unsuitable(
            series,
            f"slices shifted against each other (gantry tilt, cosine {cosine:.3f})",
            "slices lie straight above each other",
        )


def _unsuitable(series: Series, found: str, rule: str) -> UnsuitableGeometry:
    return UnsuitableGeometry(
        doing=f"building a volume of series {series.series_instance_uid}",
        found=found,
        rule=f"the images of a volume form one regular stack: {rule} (PS3.3 C.7.6.2)",
        way_out="send a single, complete reconstruction of the scan",
    )


def _frame_of_reference(series: Series, placed: Stack) -> tuple[str, tuple[str, ...]]:
    """The frame of reference, with a note where the headers are odd about it."""
    found = [str(i.header.get("FrameOfReferenceUID", "") or "") for i in placed.ordered]
    if not any(found):
        return derive_uid(series.series_instance_uid, "frame of reference"), (
            "the images name no frame of reference; one was derived from the series",
        )
    if len(set(found)) > 1:
        # Seen in de-identified series: every image got its own. One regular stack in one series is one frame.
        return next(filter(None, found)), ("the images name several frames of reference; the first one is used",)
    return found[0], ()


def _as_slices(instance: Instance) -> tuple[Instance, ...]:
    """An image as `select` hands it on: frames are frames already."""
    return frames_of(instance) if instance.frame is None else (instance,)


def _read_file(ordered: tuple[Instance, ...], slices: list[int], array: Array) -> None:
    """Put the values of one file's slices where they belong, each after its own rescale slope and intercept.

    Parameters
    ----------
    slices
        Those of axis 0 whose pixels are in the file: one, or several frames.
    array
        float32 [slices, rows, columns], written to.
    """
    first = ordered[slices[0]]
    try:
        wanted = None if first.frame is None else [(ordered[index].frame or 1) - 1 for index in slices]
        for index, pixels in zip(slices, frames(first.path, first.transfer_syntax_uid, wanted), strict=True):
            values = np.asarray(apply_rescale(pixels, ordered[index].header), np.float32)
            if values.shape != array.shape[1:]:
                raise _NotASlice(f"an array of shape {values.shape}")
            array[index] = values
    except DecoderLost:
        raise
    except Exception as exc:  # what the header makes of the values may fail, too
        words = exc.found if isinstance(exc, Undecodable) else type(exc).__name__
        raise StudyUnsuitable(
            doing=f"decoding the pixels of image {first.sop_instance_uid}",
            found=str(exc)
            if isinstance(exc, _NotASlice)
            else f"{words} with transfer syntax {first.transfer_syntax_uid}",
            rule="pixel data are as long and as encoded as the header says, one sample per pixel (PS3.5 section 8)",
            way_out="send the original grey-scale images again, uncompressed if their transfer syntax is a rare one",
        ) from exc


class _NotASlice(Exception):
    """Pixels that are no slice of the volume."""
