"""Solids as signed distances, and the canvas on which they are painted.

A solid answers one question: how many mm is a point from its surface (negative inside)? Organs are then unions,
differences and intersections of simple solids, and an antialiased edge costs one clip. Every point is in patient space:
LPS, millimetres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Floats: TypeAlias = NDArray[np.float32]
Point: TypeAlias = tuple[float, float, float]
Field: TypeAlias = Callable[[Floats, Floats, Floats], Floats]
"""A value at each point: (x, y, z) in LPS mm, arrays that broadcast together, to an array of their common shape."""

FAR = 1e4
SLAB = 8
"""Slices painted at a time: few enough that the temporaries stay in the processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A solid. Its operators read as set algebra: ``a | b``, ``a & b``, ``a - b``."""

    distance: Field  # mm to the surface, negative inside
    low: Point = (-FAR, -FAR, -FAR)  # corner of a box around the solid, LPS mm: only there is it evaluated
    high: Point = (FAR, FAR, FAR)  # the opposite corner

    def __or__(self, other: Shape) -> Shape:
        return merged(self, other, blend_mm=0.0)

    def __and__(self, other: Shape) -> Shape:
        a, b = self.distance, other.distance
        low, high = _each(max, self.low, other.low), _each(min, self.high, other.high)
        return Shape(distance=lambda x, y, z: np.maximum(a(x, y, z), b(x, y, z)), low=low, high=high)

    def __sub__(self, other: Shape) -> Shape:
        a, b = self.distance, other.distance
        return Shape(distance=lambda x, y, z: np.maximum(a(x, y, z), -b(x, y, z)), low=self.low, high=self.high)

    def grown(self, mm: float) -> Shape:
        """Return the solid with its surface moved outward by `mm`, inward where that is negative."""
        a, low, high = self.distance, *_wider(self.low, self.high, max(mm, 0.0))
        return Shape(distance=lambda x, y, z: a(x, y, z) - np.float32(mm), low=low, high=high)

    def wavy(self, amplitude_mm: float, wavelength_mm: float, phase: float = 0.0) -> Shape:
        """Return the solid with a gently uneven surface: no organ is an ellipsoid."""
        a, waves = self.distance, mottle(amplitude_mm, wavelength_mm, phase)
        low, high = _wider(self.low, self.high, 1.5 * amplitude_mm)
        return Shape(distance=lambda x, y, z: a(x, y, z) + waves(x, y, z), low=low, high=high)

    def standing(self, level_mm: float) -> Shape:
        """Return the solid above `level_mm` (LPS z), and its cross-section there as a column going down."""
        a, level = self.distance, np.float32(level_mm)
        low = (self.low[0], self.low[1], -FAR)
        return Shape(distance=lambda x, y, z: a(x, y, np.maximum(z, level)), low=low, high=self.high)


def mottle(amplitude: float, wavelength_mm: float, phase: float = 0.0) -> Field:
    """Return gentle waves in all directions, between about -1.5 and 1.5 times `amplitude`."""
    k = np.float32(2 * np.pi / wavelength_mm)

    def value(x: Floats, y: Floats, z: Floats) -> Floats:
        # Sums of separable waves: the sines are taken of one-dimensional arrays, not of the whole grid.
        flat = np.sin(k * x + phase) * np.sin(0.8 * k * y + (2 * phase + 1))
        upright = np.sin(0.7 * k * y + phase) * np.sin(k * z - phase) + np.sin(0.6 * k * z + 2) * np.sin(k * x)
        return np.asarray(np.float32(amplitude / 2) * (flat + upright), np.float32)

    return value


def ellipsoid(centre: Point, radii: Point, *, turn_deg: Point = (0.0, 0.0, 0.0)) -> Shape:
    """Return an ellipsoid; `turn_deg` turns it about the axes x, y, z (right-handed, LPS), in that order."""
    turn = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    to_unit_ball = (turn.T / np.asarray(radii)[:, None]).astype(np.float32)
    inverse = (1 / np.asarray(radii)).astype(np.float32)
    straight = not any(turn_deg)

    def distance(x: Floats, y: Floats, z: Floats) -> Floats:
        offset = x - np.float32(centre[0]), y - np.float32(centre[1]), z - np.float32(centre[2])
        if straight:
            u = [offset[i] * inverse[i] for i in range(3)]
        else:
            u = [row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2] for row in to_unit_ball]
        # First order in the distance: (|u| - 1) * |u| / |gradient|; exact on the surface, and everywhere for a ball.
        norm = np.sqrt(u[0] ** 2 + u[1] ** 2 + u[2] ** 2)
        slope = np.sqrt((u[0] * inverse[0]) ** 2 + (u[1] * inverse[1]) ** 2 + (u[2] * inverse[2]) ** 2)
        return np.asarray(norm * (norm - 1) / (slope + np.float32(1e-6)), np.float32)

    half = np.sqrt((turn**2) @ np.square(radii))  # of the box around the turned ellipsoid
    return Shape(distance=distance, low=point(np.subtract(centre, half)), high=point(np.add(centre, half)))


def ball(centre: Point, diameter_mm: float) -> Shape:
    """Return a ball."""
    return ellipsoid(centre, (diameter_mm / 2,) * 3)


def capsule(start: Point, end: Point, radius: float, end_radius: float) -> Shape:
    """Return a straight tube with round ends, its radius (mm) going linearly from `radius` to `end_radius`."""
    p, axis = np.asarray(start, np.float32), np.subtract(end, start).astype(np.float32)
    along = axis / max(float(axis @ axis), 1e-6)

    def distance(x: Floats, y: Floats, z: Floats) -> Floats:
        dx, dy, dz = x - p[0], y - p[1], z - p[2]
        t = np.clip(dx * along[0] + dy * along[1] + dz * along[2], 0, 1)
        away = (dx - t * axis[0]) ** 2 + (dy - t * axis[1]) ** 2 + (dz - t * axis[2]) ** 2
        return np.asarray(np.sqrt(away) - (radius + t * (end_radius - radius)), np.float32)

    low, high = _wider(_each(min, start, end), _each(max, start, end), max(radius, end_radius))
    return Shape(distance=distance, low=low, high=high)


def tube(points: Sequence[Point], *radii: float) -> Shape:
    """Return a tube through `points`; one radius (mm) for all of it, or one for each point."""
    each = radii if len(radii) > 1 else radii * len(points)
    pieces = (capsule(points[i], points[i + 1], each[i], each[i + 1]) for i in range(len(points) - 1))
    return reduce(Shape.__or__, pieces)


def half_space(through: Point, outward: Point) -> Shape:
    """Return all that lies behind a plane, seen along its normal `outward`."""
    n = (np.asarray(outward) / np.linalg.norm(outward)).astype(np.float32)
    level = np.float32(n @ np.asarray(through))
    return Shape(distance=lambda x, y, z: np.asarray(n[0] * x + n[1] * y + n[2] * z - level, np.float32))


def merged(*shapes: Shape, blend_mm: float) -> Shape:
    """Return the union, its seams rounded over `blend_mm` (0: left sharp)."""

    def two(a: Shape, b: Shape) -> Shape:
        def distance(x: Floats, y: Floats, z: Floats) -> Floats:
            p, q = a.distance(x, y, z), b.distance(x, y, z)
            if not blend_mm:
                return np.minimum(p, q)
            near = np.clip(1 - np.abs(p - q) / blend_mm, 0, None)  # a quadratic smooth minimum
            return np.asarray(np.minimum(p, q) - near * near * (blend_mm / 4), np.float32)

        low, high = _wider(_each(min, a.low, b.low), _each(max, a.high, b.high), blend_mm / 4)
        return Shape(distance=distance, low=low, high=high)

    return reduce(two, shapes)


class Canvas:
    """A grid of HU in patient space on which shapes are painted.

    Parameters
    ----------
    x, y, z
        Centres of columns, rows and slices, LPS mm. `x` and `y` grow, `z` falls: the first slice is nearest the head.
    background
        HU of the empty canvas.
    """

    def __init__(self, x: Floats, y: Floats, z: Floats, *, background: float) -> None:
        self.x, self.y, self.z = x, y, z
        self.edge_mm = np.float32(x[1] - x[0])  # an edge fades over one pixel
        self.hu: Floats = np.full((len(z), len(y), len(x)), background, np.float32)  # axes (slices, rows, columns)

    def paint(self, shape: Shape, hu: float, texture: Field | None = None) -> None:
        """Lay `shape` over what is there; a voxel on its edge mixes both by the part that is covered.

        `texture`, in HU, comes on top of `hu`.
        """
        for where, (x, y, z) in self._slabs(shape):
            cover = np.clip(np.float32(0.5) - shape.distance(x, y, z) / self.edge_mm, 0, 1)
            value = np.float32(hu) if texture is None else np.float32(hu) + texture(x, y, z)
            part = self.hu[where]
            part += cover * (value - part)

    def mask(self, shape: Shape) -> NDArray[np.bool_]:
        """Return where a voxel's centre lies inside `shape`; bool, axes (slices, rows, columns)."""
        inside = np.zeros(self.hu.shape, np.bool_)
        for where, (x, y, z) in self._slabs(shape):
            inside[where] = shape.distance(x, y, z) < 0
        return inside

    def _slabs(self, shape: Shape) -> Iterator[tuple[tuple[slice, slice, slice], tuple[Floats, Floats, Floats]]]:
        """Yield the parts of the grid in the shape's box: where they are, and their x, y, z to be broadcast."""
        low, high = _wider(shape.low, shape.high, 2 * float(self.edge_mm))
        columns = slice(*np.searchsorted(self.x, (low[0], high[0])))
        rows = slice(*np.searchsorted(self.y, (low[1], high[1])))
        first, last = np.searchsorted(-self.z, (-high[2], -low[2]))
        if columns.start >= columns.stop or rows.start >= rows.stop:
            return
        x, y = self.x[None, None, columns], self.y[None, rows, None]
        for start in range(first, last, SLAB):
            slices = slice(start, min(start + SLAB, last))
            yield (slices, rows, columns), (x, y, self.z[slices, None, None])


def point(values: NDArray[np.floating]) -> Point:
    """Return three numbers of an array as a point."""
    return float(values[0]), float(values[1]), float(values[2])


def _each(choose: Callable[[float, float], float], a: Point, b: Point) -> Point:
    return choose(a[0], b[0]), choose(a[1], b[1]), choose(a[2], b[2])


def _wider(low: Point, high: Point, mm: float) -> tuple[Point, Point]:
    """Return the corners of a box, widened by `mm` on all sides."""
    return (low[0] - mm, low[1] - mm, low[2] - mm), (high[0] + mm, high[1] + mm, high[2] + mm)
