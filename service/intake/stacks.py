"""What the headers of a series say of itself: slices missing between others, and how many there should be.

A false alarm lets a study wait for minutes and marks its results as partial, so only what is beyond doubt counts: of a
stack that is not uniform otherwise, nothing is said. What is overlooked here is seen when the volume is built.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from service.intake.complete import Looked, Stack
from service.intake.encoding import is_uid

_TAGS = [
    "ImageType",
    "Modality",
    "SeriesInstanceUID",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "ImagesInAcquisition",
    "NumberOfSeriesRelatedInstances",
    "NumberOfFrames",
    "NumberOfSlices",
]
_FEWEST_POSITIONS = 4  # with three, two gaps differ, and nobody knows which is the usual one
_COSINE_TOLERANCE = 1e-3  # of a direction cosine, about 0.06 degrees
_SAME_POSITION_MM = 0.01
_FARTHEST_MM = 1e6
_GAP_TOLERANCE = 0.1  # of the usual gap, also for a multiple of it: positions are written with few digits
_LEAST_USUAL = 0.5  # of all gaps; where fewer are the usual ones, it is no usual gap


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """The little that is needed of an image."""

    position: tuple[float, ...]  # ImagePositionPatient, LPS mm; empty: it has none
    orientation: tuple[float, ...]  # ImageOrientationPatient
    number: int | None  # InstanceNumber
    is_original: bool  # not derived from others (PS3.3 C.7.6.1.1.2): those copy numbers that are not theirs
    is_localizer: bool
    frames: int
    acquisition: int | None
    in_acquisition: int | None  # ImagesInAcquisition
    in_series: int | None  # NumberOfSeriesRelatedInstances
    slices: int | None  # NumberOfSlices


@dataclass(frozen=True, slots=True, kw_only=True)
class _Uniform:
    """A stack of images whose gaps are all a multiple of the usual one."""

    positions: int  # different ones
    usual_mm: float
    missing: int  # slices
    duplicates: int  # images at a position that another one has


def look(paths: Iterable[Path]) -> Looked:
    """Read the headers of a study's files, and say what is seen to be missing. It never raises."""
    images: dict[str, list[_Image]] = defaultdict(list)
    modalities: dict[str, str] = {}
    unreadable = gone = 0
    for path in paths:
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            series_uid, image = str(header.SeriesInstanceUID), _image(header)
            if not is_uid(series_uid):
                raise ValueError("no UID")
            images[series_uid].append(image)
            modalities[series_uid] = str(*_values(header, "Modality")[:1])
        except FileNotFoundError:
            gone += 1
        except Exception:  # damaged files make pydicom raise anything; the analysis says of each what it is
            unreadable += 1
    uniform = {uid: _uniform(members) for uid, members in images.items()}
    named = _named_by_acquisition(images, uniform)
    return Looked(
        stacks=tuple(_stack(uid, modalities[uid], images[uid], uniform[uid], named.get(uid)) for uid in sorted(images)),
        unreadable=unreadable,
        gone=gone,
    )


def _stack(
    series_uid: str, modality: str, images: Sequence[_Image], uniform: _Uniform | None, named: int | None
) -> Stack:
    """What is said of a series.

    Parameters
    ----------
    named
        How many images its acquisition has, where that is the number of its own.
    """
    stack = Stack(series_instance_uid=series_uid, modality=modality, instances=len(images))
    expected = [_same(image.in_series for image in images) or 0]  # of the series by definition, whatever its images are
    if uniform:
        stack = replace(stack, missing=uniform.missing, duplicates=uniform.duplicates)
        expected.append(named or 0)
        if modality == "PT" and all(image.is_original for image in images):
            # The most slices of any time slot or gate (PS3.3 C.8.9.1): positions, not images, are compared with it.
            lacking = (_same(image.slices for image in images) or 0) - uniform.positions
            expected.append(len(images) + lacking if lacking > 0 else 0)
    return replace(stack, expected=max(expected) if max(expected) > len(images) else None)


def _named_by_acquisition(
    images: Mapping[str, Sequence[_Image]], uniform: Mapping[str, _Uniform | None]
) -> dict[str, int]:
    """By series, ImagesInAcquisition (0020,1002), where it is the number of the series' own images.

    The attribute counts an acquisition, and a series may be part of one, made of several, or a reconstruction of one
    beside others. So it counts only if the series is one uniform stack of original images, each at a position of its
    own, of one acquisition; if no image has a greater InstanceNumber; and if no other series that names the same
    acquisition and number has other gaps: then one of them is thinner, and the number is not both theirs.
    """
    named: dict[str, int] = {}
    gaps: dict[tuple[int, int], list[float]] = defaultdict(list)
    for uid, members in images.items():
        stack = uniform[uid]
        number, acquisition = (
            _same(image.in_acquisition for image in members),
            _same(image.acquisition for image in members),
        )
        if stack is None or number is None or acquisition is None:
            continue
        gaps[acquisition, number].append(stack.usual_mm)
        is_its_own = stack.positions == len(members) and all(
            image.is_original and (image.number or 0) <= number for image in members
        )
        if is_its_own:
            named[uid] = number
    return {
        uid: number
        for uid, number in named.items()
        if np.ptp(gaps[images[uid][0].acquisition or 0, number]) <= _SAME_POSITION_MM
    }


def _uniform(images: Sequence[_Image]) -> _Uniform | None:
    """The uniform stack that a series' images are, localizers left out; None if they are none."""
    placed = [image for image in images if image.position and not image.is_localizer]
    if len(placed) < _FEWEST_POSITIONS or any(image.frames > 1 for image in images):
        return None  # of multi-frame images each is whole or is not there
    cosines = np.array([image.orientation for image in placed])
    if np.ptp(cosines, axis=0).max() > _COSINE_TOLERANCE:
        return None
    normal = np.cross(cosines[0, :3], cosines[0, 3:])
    along = np.array([image.position for image in placed]) @ normal  # mm
    if not np.abs(along).max() < _FARTHEST_MM:
        return None
    order = np.argsort(along, kind="stable")
    firsts = np.flatnonzero(np.diff(along[order], prepend=-np.inf) > _SAME_POSITION_MM)
    if len(firsts) < _FEWEST_POSITIONS:
        return None
    gaps = np.diff(along[order][firsts])
    usual = float(np.median(gaps))
    steps = np.rint(gaps / usual)
    is_usual = steps == 1
    if steps.min() < 1 or np.abs(gaps - steps * usual).max() > _GAP_TOLERANCE * usual or is_usual.mean() < _LEAST_USUAL:
        return None
    numbers = _numbers([placed[index] for index in order], firsts)
    missing = (steps - 1).sum() - _left_out_on_purpose(steps, numbers)
    return _Uniform(positions=len(firsts), usual_mm=usual, missing=int(missing), duplicates=len(placed) - len(firsts))


def _numbers(ordered: Sequence[_Image], firsts: NDArray[np.intp]) -> NDArray[np.float64]:
    """The least InstanceNumber (0020,0013) at each position; NaN where none has one. float64 [positions]."""
    numbers = np.array([np.nan if image.number is None else image.number for image in ordered])
    return np.fmin.reduceat(numbers, firsts)


def _left_out_on_purpose(steps: NDArray[np.float64], numbers: NDArray[np.float64]) -> int:
    """How many slices lie in holes across which the numbering goes on as everywhere: none were made there.

    So it is where one series covers two regions of the body.
    """
    rises = np.abs(np.diff(numbers))
    usual = float(np.median(rises[steps == 1]))  # NaN if any is
    return int((steps - 1)[(steps > 1) & (rises == usual)].sum()) if usual > 0 else 0


def _image(header: Dataset) -> _Image:
    kinds = [str(word).upper() for word in _values(header, "ImageType")]
    position, orientation = (
        _decimals(header, "ImagePositionPatient", 3),
        _decimals(header, "ImageOrientationPatient", 6),
    )
    return _Image(
        position=position if orientation else (),
        orientation=orientation,
        number=_whole(header, "InstanceNumber"),
        is_original=kinds[:1] == ["ORIGINAL"],
        is_localizer="LOCALIZER" in kinds,
        frames=_whole(header, "NumberOfFrames") or 1,
        acquisition=_whole(header, "AcquisitionNumber"),
        in_acquisition=_whole(header, "ImagesInAcquisition"),
        in_series=_whole(header, "NumberOfSeriesRelatedInstances"),
        slices=_whole(header, "NumberOfSlices"),
    )


def _values(header: Dataset, keyword: str) -> list[object]:
    """The values of an attribute; none where it is absent, empty or damaged: the image is there all the same."""
    try:
        value = header.get(keyword)
    except Exception:  # pydicom converts when it is asked, and raises anything
        return []
    if value is None or isinstance(value, str):
        return [value] if value else []
    return list(value) if hasattr(value, "__iter__") else [value]


def _decimals(header: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(str(value)) for value in _values(header, keyword))
    except ValueError:
        return ()
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else ()


def _whole(header: Dataset, keyword: str) -> int | None:
    try:
        return int(str(_values(header, keyword)[0]))
    except (IndexError, ValueError):
        return None


def _same(numbers: Iterable[int | None]) -> int | None:
    """The number, if all say the same one."""
    different = set(numbers)
    return different.pop() if len(different) == 1 else None
