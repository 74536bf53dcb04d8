"""A map's components become lesions: tested by the model's rules, measured and located. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

from service.spec import FindingClass, FindingRules, ModelSpec
from service.types import Array, Box, Lesion, Line, MapPrediction, Point, SourceVolume

_TOUCHING = np.ones((3, 3, 3))  # 26-connected: voxels that share a corner belong together
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A part of a class's map above the threshold that the model's rules let through."""

    kind: FindingClass
    score: float  # the greatest probability in it
    mask: Mask  # [slices, rows, columns] of the box
    likelihood: Array  # [slices, rows, columns] of the box, the map where the mask is, else 0
    box: Box  # where that lies in the source grid


def components(prediction: MapPrediction, source: SourceVolume, spec: ModelSpec) -> Iterator[Component]:
    """The components of every class's map, each class by itself."""
    rules = spec.findings
    for kind, probability in zip(spec.classes, prediction.probability, strict=True):
        labels, count = ndimage.label(probability > spec.stages[-1].threshold, structure=_TOUCHING)
        for label, place in enumerate(ndimage.find_objects(labels) if count else (), start=1):
            mask = labels[place] == label
            score = float(probability[place][mask].max())
            if score >= rules.score_threshold and _passes(mask, source.volume.spacing, rules):
                slices, rows, columns = (
                    slice(b.start + p.start, b.start + p.stop) for b, p in zip(prediction.box, place, strict=True)
                )
                likelihood = np.where(mask, probability[place], np.float32(0))
                yield Component(kind=kind, score=score, mask=mask, likelihood=likelihood, box=(slices, rows, columns))


def rank(component: Component) -> tuple[float, ...]:
    """What comes first has the least: the most probable, then the larger, then the lower one."""
    return -component.score, -float(component.mask.sum()), component.box[0].start, component.kind.channel


def measured(
    component: Component, source: SourceVolume, number: int, tracking_uid: Callable[[int, Point], str]
) -> Lesion:
    """Measure a component on the source grid."""
    volume, mask, box = source.volume, component.mask, component.box
    places = volume.map_indices_to_reference(np.argwhere(mask) + [b.start for b in box])
    centroid = _point(places.mean(axis=0))
    key = int(np.argmax(mask.sum(axis=(1, 2))))
    spacing = (float(volume.spacing[1]), float(volume.spacing[2]))
    long_axis, long_mm, short_axis, short_mm = _diameters(mask[key], spacing)
    offset = (box[0].start + key, box[1].start, box[2].start)
    return Lesion(
        number=number,
        tracking_uid=tracking_uid(component.kind.channel, centroid),
        kind=component.kind,
        probability=component.score,
        mask=mask,
        likelihood=component.likelihood,
        box=box,
        centroid_lps_mm=centroid,
        extent_lps_mm=(_point(places.min(axis=0)), _point(places.max(axis=0))),
        volume_ml=float(mask.sum()) * float(volume.voxel_volume) / 1000,
        mean=float(volume.array[box][mask].mean()),
        key_slice=offset[0],
        long_axis=_line(long_axis, offset),
        long_axis_mm=long_mm,
        short_axis=_line(short_axis, offset),
        short_axis_mm=short_mm,
    )


def _passes(mask: Mask, spacing: tuple[float, float, float], rules: FindingRules) -> bool:
    """Whether a component is one that the model's rules let through."""
    volume_mm3 = float(mask.sum()) * float(np.prod(spacing))
    diameter = float(6 * volume_mm3 / np.pi) ** (1 / 3)
    if volume_mm3 / 1000 < rules.minimum_volume_ml:
        return False
    if not rules.minimum_diameter_mm <= diameter <= rules.maximum_diameter_mm:
        return False
    if int(mask.any(axis=(1, 2)).sum()) < rules.minimum_slices:
        return False
    if rules.minimum_compactness == 0:
        return True
    # Padded, because the component fills its box: outside of it is background.
    inscribed = 2 * float(ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing).max())
    return bool(inscribed >= rules.minimum_compactness * diameter)


def _diameters(
    area: Mask, spacing: tuple[float, float]
) -> tuple[NDArray[np.float64], float, NDArray[np.float64], float]:
    """The longest diameter of an area and the longest line perpendicular to it.

    Parameters
    ----------
    area
        bool [rows, columns], not empty.
    spacing
        mm between rows, and between columns.

    Returns
    -------
    long_axis, long_mm, short_axis, short_mm
        Ends as float [2, (row, column)] in pixels, 0 = centre of the first; lengths in mm. Lengths run from edge to
        edge of the pixels, as one measures on a screen.
    """
    # The middles of each pixel's four edges: a lone pixel measures its own width, not its diagonal.
    edges = np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, -0.5], [0.0, 0.5]])
    points = np.unique((np.argwhere(area)[:, None] + edges).reshape(-1, 2), axis=0) * spacing
    hull = points[ConvexHull(points).vertices]
    distances = np.linalg.norm(hull[:, None] - hull[None], axis=2)
    first, last = np.unravel_index(int(np.argmax(distances)), distances.shape)
    long_mm = float(distances[first, last])
    along = (hull[last] - hull[first]) / long_mm
    across = np.array([-along[1], along[0]])
    t, s = hull @ along, hull @ across
    best_t, low, high = _widest(t, s)
    short = np.array([along * best_t + across * low, along * best_t + across * high])
    return np.array([hull[first], hull[last]]) / spacing, long_mm, short / spacing, high - low


def _widest(t: NDArray[np.float64], s: NDArray[np.float64]) -> tuple[float, float, float]:
    """Where a convex polygon (corners t along, s across) is widest across: the place along, and the two edges.

    Its width is a concave function of the place, linear between corners: the greatest one is at a corner.
    """
    best = (float(t[0]), 0.0, 0.0)
    edges = np.stack([t, np.roll(t, -1), s, np.roll(s, -1)], axis=1)
    for place in np.unique(t):
        crossed = (np.minimum(edges[:, 0], edges[:, 1]) <= place) & (place <= np.maximum(edges[:, 0], edges[:, 1]))
        t0, t1, s0, s1 = edges[crossed].T
        share = np.divide(place - t0, t1 - t0, out=np.zeros_like(t0), where=t1 != t0)
        crossing = np.concatenate([s0 + share * (s1 - s0), s1[t1 == t0]])
        if crossing.size and crossing.max() - crossing.min() > best[2] - best[1]:
            best = (float(place), float(crossing.min()), float(crossing.max()))
    return best


def _line(ends: NDArray[np.float64], offset: tuple[int, int, int]) -> Line:
    first, last = ((float(offset[0]), float(offset[1] + end[0]), float(offset[2] + end[1])) for end in ends)
    return first, last


def _point(values: NDArray[np.float64]) -> Point:
    return float(values[0]), float(values[1]), float(values[2])
