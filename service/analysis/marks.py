"""Boxes, centres and the peaks of heat maps become marks: one for each place, the best of those that lie there. Pure.

What lies nearer to a better one than the model's rules allow, in millimetres and class by class, is the same thing
seen twice, by overlapping windows or by neighbouring anchors of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from service.spec import FindingClass, FindingRules, ModelSpec
from service.types import BoxPrediction, MapPrediction, Mark, Point, SourceVolume

_NEIGHBOURS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A place that a network marks, within the images."""

    kind: FindingClass
    score: float
    low: Point  # (slice, row, column) in voxels of the source grid; a voxel's centre has its index
    high: Point  # the same as `low` for a point

    @property
    def is_point(self) -> bool:
        """Whether it is a centre or a peak, and no box."""
        return self.low == self.high

    @property
    def middle(self) -> NDArray[np.float64]:
        """Its middle: (slice, row, column)."""
        return (np.array(self.low) + self.high) / 2


def peaks(prediction: MapPrediction, source: SourceVolume, spec: ModelSpec) -> Iterator[Spot]:
    """The peaks of every class's map that reach the score, but those too near to a better one."""
    rules, start = spec.findings, np.array([part.start for part in prediction.box])
    for kind, probability in zip(spec.classes, prediction.probability, strict=True):
        found = [
            Spot(kind=kind, score=float(probability[place]), low=(point := _point(start + place)), high=point)
            for place in _maxima(probability, rules.score_threshold)
        ]
        yield from _best(found, source, rules)


def boxes(prediction: BoxPrediction, source: SourceVolume, spec: ModelSpec) -> Iterator[Spot]:
    """The candidates of every class that reach the score and fit its sizes, but those that a better one covers."""
    rules = spec.findings
    last = np.array(source.volume.spatial_shape, float) - 0.5  # the edge of the last voxel
    for kind in spec.classes:
        found = []
        for candidate in prediction.candidates:
            if candidate.channel != kind.channel or candidate.score < rules.score_threshold:
                continue
            low, high = np.array(candidate.low, float), np.array(candidate.high, float)
            if ((low + high) / 2 < -0.5).any() or ((low + high) / 2 > last).any():
                continue  # in what was set beyond the image's edge, there is nothing
            spot = Spot(
                kind=kind,
                score=float(candidate.score),
                low=_point(np.clip(low, -0.5, last)),
                high=_point(np.clip(high, -0.5, last)),
            )
            if _fits(spot, source, rules):
                found.append(spot)
        yield from _best(found, source, rules)


def rank(spot: Spot) -> tuple[float, ...]:
    """What comes first has the least: the most probable, then the lower one."""
    return -spot.score, *spot.low, spot.kind.channel


def marked(spot: Spot, source: SourceVolume, number: int, tracking_uid: Callable[[int, Point], str]) -> Mark:
    """The finding that a spot is."""
    centre = _point(source.volume.map_indices_to_reference(spot.middle[None])[0])
    return Mark(
        number=number,
        tracking_uid=tracking_uid(spot.kind.channel, centre),
        kind=spot.kind,
        probability=spot.score,
        key_slice=min(max(floor(spot.middle[0] + 0.5), 0), source.volume.spatial_shape[0] - 1),
        centre_lps_mm=centre,
        low=spot.low,
        high=spot.high,
        size_mm=None if spot.is_point else _point(_size_mm(spot, source)),
    )


def _maxima(probability: NDArray[np.float32], threshold: float) -> Iterator[tuple[int, int, int]]:
    """The voxels that none of their neighbours exceeds; of a plateau, the one next to its middle.

    Parameters
    ----------
    probability
        [slices, rows, columns]; beyond its edges it is 0.
    threshold
        Peaks lower than this do not count.
    """
    if not probability.size:
        return
    high = probability >= threshold
    tops = high & (probability == ndimage.maximum_filter(probability, size=3, mode="constant", cval=0.0))
    labels, _ = ndimage.label(tops, structure=_NEIGHBOURS)
    for label, place in enumerate(ndimage.find_objects(labels), start=1):
        # One voxel more on each side: a plateau that goes on there, at the foot of a peak, is no peak.
        around = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in place)
        top = labels[around] == label
        level = probability[around][top][0]
        beside = ndimage.binary_dilation(top, _NEIGHBOURS) & ~top
        if (probability[around][beside] == level).any():
            continue
        voxels = np.argwhere(top) + [part.start for part in around]
        nearest = voxels[np.argmin(np.linalg.norm(voxels - voxels.mean(axis=0), axis=1))]
        yield int(nearest[0]), int(nearest[1]), int(nearest[2])


def _best(found: list[Spot], source: SourceVolume, rules: FindingRules) -> Iterator[Spot]:
    """The best of the spots of one class, then the best of those that it is not the same as, and so on."""
    spots = sorted(found, key=rank)
    # float64 [spots, low and high, 3], mm along slices, rows and columns
    ranges = np.array([[spot.low, spot.high] for spot in spots]).reshape(-1, 2, 3) * source.volume.spacing
    left = np.arange(len(spots))
    while left.size:
        yield spots[left[0]]
        others = left[1:]
        if spots[left[0]].is_point:
            distances = np.linalg.norm((ranges[others] - ranges[left[0]]).mean(axis=1), axis=-1)
            left = others[distances >= rules.merge_mm]
        else:
            shares = _overlap(ranges[left[0]], ranges[others], source.volume.spacing[0])
            left = others[shares <= rules.merge_overlap]


def _overlap(one: NDArray[np.float64], others: NDArray[np.float64], thickness: float) -> NDArray[np.float64]:
    """What part of their union boxes share, by volume.

    Parameters
    ----------
    one
        [low and high, 3], mm along slices, rows and columns.
    others
        [boxes, low and high, 3].
    thickness
        Of a slice: a box on a single slice is as thick.
    """
    one, others = (_thick(boxes, thickness) for boxes in (one, others))
    shared = np.clip(np.minimum(one[1], others[:, 1]) - np.maximum(one[0], others[:, 0]), 0, None).prod(axis=-1)
    union = (one[1] - one[0]).prod() + (others[:, 1] - others[:, 0]).prod(axis=-1) - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), np.float64)


def _thick(boxes: NDArray[np.float64], thickness: float) -> NDArray[np.float64]:
    """Boxes [..., low and high, 3] with those of a single slice made as thick as it."""
    thick = boxes.copy()
    flat = boxes[..., 0, 0] == boxes[..., 1, 0]
    thick[..., 0, 0] -= flat * thickness / 2
    thick[..., 1, 0] += flat * thickness / 2
    return thick


def _fits(spot: Spot, source: SourceVolume, rules: FindingRules) -> bool:
    """Whether a box has a size that the rules let through; the mean of its edges, of those of a slice on one slice."""
    if spot.is_point:
        return True
    edges = _size_mm(spot, source)
    mean = float(edges.mean() if edges[0] else edges[1:].mean())
    return rules.minimum_diameter_mm <= mean <= rules.maximum_diameter_mm


def _size_mm(spot: Spot, source: SourceVolume) -> NDArray[np.float64]:
    """mm along slices, rows and columns."""
    return np.asarray(np.subtract(spot.high, spot.low) * source.volume.spacing, np.float64)


def _point(values: NDArray[np.float64]) -> Point:
    return float(values[0]), float(values[1]), float(values[2])
