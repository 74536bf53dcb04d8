"""A model's map becomes findings: components, tested by the model's rules, measured and located. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

from service.spec import FindingRules, ModelSpec
from service.types import Box, Finding, Line, Point, Prediction, SourceVolume

_TOUCHING = np.ones((3, 3, 3))  # 26-connected: voxels that share a corner belong together
Mask = NDArray[np.bool_]


def find(
    prediction: Prediction, source: SourceVolume, spec: ModelSpec, *, tracking_uid: Callable[[Point], str]
) -> tuple[tuple[Finding, ...], int]:
    """Find and measure the lesions in a map.

    Parameters
    ----------
    tracking_uid
        Gives a finding its UID by its centroid (LPS mm), the same one whenever the same sources are analysed.

    Returns
    -------
    findings
        The most probable first, at most ``maximum_count``.
    dropped
        How many more there were.
    """
    rules = spec.findings
    labels, count = ndimage.label(prediction.probability > spec.stages[-1].threshold, structure=_TOUCHING)
    if count == 0:
        return (), 0
    found = []
    for label, place in enumerate(ndimage.find_objects(labels), start=1):
        if place is None:
            continue
        mask = labels[place] == label
        score = float(prediction.probability[place][mask].max())
        if score >= rules.score_threshold and _passes(mask, source.volume.spacing, rules):
            box = tuple(slice(b.start + p.start, b.start + p.stop) for b, p in zip(prediction.box, place, strict=True))
            found.append((score, (box[0], box[1], box[2]), mask))
    found.sort(key=lambda entry: (-entry[0], -int(entry[2].sum()), entry[1][0].start))
    kept = found[: rules.maximum_count]
    findings = tuple(
        measure(mask, box, source, rules, number=number, probability=score, tracking_uid=tracking_uid)
        for number, (score, box, mask) in enumerate(kept, start=1)
    )
    return findings, len(found) - len(kept)


def measure(
    mask: Mask,
    box: Box,
    source: SourceVolume,
    rules: FindingRules,
    *,
    number: int,
    probability: float,
    tracking_uid: Callable[[Point], str],
) -> Finding:
    """Measure one component on the source grid.

    Parameters
    ----------
    mask
        bool [slices, rows, columns] of `box`.
    box
        Where that lies in the source grid.
    """
    volume = source.volume
    indices = np.argwhere(mask) + [b.start for b in box]
    points = volume.map_indices_to_reference(indices)
    centroid = _point(points.mean(axis=0))
    key = int(np.argmax(mask.sum(axis=(1, 2))))
    spacing = (float(volume.spacing[1]), float(volume.spacing[2]))
    long_axis, long_mm, short_axis, short_mm = _diameters(mask[key], spacing)
    offset = (box[0].start + key, box[1].start, box[2].start)
    return Finding(
        number=number,
        tracking_uid=tracking_uid(centroid),
        finding=rules.finding,
        site=rules.site,
        probability=probability,
        mask=mask,
        box=box,
        centroid_lps_mm=centroid,
        extent_lps_mm=(_point(points.min(axis=0)), _point(points.max(axis=0))),
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
