"""Grids along the axes of the source volume, and linear resampling between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from service.stage import Shape, Triple
from service.types import Box

Vector = NDArray[np.float64]
_SAME_PLACE = 1e-6  # of a voxel: so near to its centre is on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Voxels along the source volume's axes; mm are counted from the centre of its voxel (0, 0, 0)."""

    shape: Shape  # [slices, rows, columns]
    spacing_mm: Triple
    start_mm: Triple = (0.0, 0.0, 0.0)  # centre of voxel (0, 0, 0)

    @classmethod
    def of(cls, shape: Vector, spacing_mm: Vector, start_mm: Vector) -> Grid:
        """A grid from arrays of three numbers."""
        return cls(shape=_shape(shape), spacing_mm=_triple(spacing_mm), start_mm=_triple(start_mm))

    def edges(self, box: Box) -> tuple[Vector, Vector]:
        """[3] least and greatest edge, in mm, of the voxels in a box of this grid."""
        first = np.array([b.start for b in box]) - 0.5
        last = np.array([b.stop for b in box]) - 0.5
        start, spacing = np.array(self.start_mm), np.array(self.spacing_mm)
        return start + first * spacing, start + last * spacing

    def box(self, low_mm: Vector, high_mm: Vector) -> Box:
        """The voxels of this grid whose centres lie between two points."""
        start, spacing = np.array(self.start_mm), np.array(self.spacing_mm)
        first = np.clip(np.ceil((low_mm - start) / spacing), 0, self.shape).astype(int)
        stop = np.clip(np.floor((high_mm - start) / spacing) + 1, first, self.shape).astype(int)
        a, b, c = (slice(int(f), int(s)) for f, s in zip(first, stop, strict=True))
        return a, b, c

    def cropped(self, box: Box) -> Grid:
        """The grid of a box of this grid."""
        start = np.array(self.start_mm) + np.array([b.start for b in box]) * self.spacing_mm
        return Grid.of(np.array([b.stop - b.start for b in box]), np.array(self.spacing_mm), start)


def whole(shape: tuple[int, ...]) -> Box:
    """The box of everything."""
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


def bounds(mask: NDArray[np.bool_]) -> Box | None:
    """The smallest box around the True voxels; None if there are none."""
    edges = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        if not hit.size:
            return None
        edges.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return edges[0], edges[1], edges[2]


def resample(
    array: NDArray[np.float32], grid: Grid, target: Grid, *, outside: float, antialias: bool = True
) -> NDArray[np.float32]:
    """Resample linearly, one axis after the other.

    Parameters
    ----------
    array
        float32, on `grid`.
    outside
        Value assumed beyond the edge.
    antialias
        Where the target is coarser, average over its voxel's width instead of picking between two neighbours.

    Returns
    -------
    numpy.ndarray
        float32, on `target`.
    """
    result = array - np.float32(outside)
    # The axis that shrinks most goes first: the others then have less to do.
    for axis in sorted(range(3), key=lambda a: target.shape[a] / grid.shape[a]):
        weights = _weights(
            grid.shape[axis],
            target.shape[axis],
            first=(target.start_mm[axis] - grid.start_mm[axis]) / grid.spacing_mm[axis],
            step=target.spacing_mm[axis] / grid.spacing_mm[axis],
            antialias=antialias,
        )
        result = _along(result, weights, axis)
    result += np.float32(outside)
    return result


def greatest(array: NDArray[np.float32], grid: Grid, target: Grid) -> NDArray[np.float32]:
    """The greatest of the (up to eight) voxels of `grid` around each voxel of `target`; beyond the edge is 0.

    Parameters
    ----------
    array
        float32, >= 0, on `grid`.

    Returns
    -------
    numpy.ndarray
        float32, on `target`.
    """
    result = np.pad(array, 1)
    for axis in range(3):
        step = target.spacing_mm[axis] / grid.spacing_mm[axis]
        first = (target.start_mm[axis] - grid.start_mm[axis]) / grid.spacing_mm[axis]
        places = first + step * np.arange(target.shape[axis])
        below, above = (
            np.clip(near.astype(int) + 1, 0, grid.shape[axis] + 1)
            for near in (np.floor(places + _SAME_PLACE), np.ceil(places - _SAME_PLACE))
        )
        result = np.maximum(result.take(below, axis), result.take(above, axis))
    return result


def _weights(count: int, target: int, *, first: float, step: float, antialias: bool) -> sparse.csr_matrix:
    """[target, count] weights: between two neighbours, or the share of each voxel in a target voxel wider than it."""
    centres = first + step * np.arange(target)[:, None]
    reach = max(step, 1.0)
    columns = np.floor(centres - reach).astype(int) + np.arange(int(np.ceil(2 * reach)) + 2)
    if antialias and step > 1:
        low, high = centres - step / 2, centres + step / 2
        weights = np.clip(np.minimum(columns + 0.5, high) - np.maximum(columns - 0.5, low), 0, None) / step
    else:
        weights = np.clip(1 - np.abs(columns - centres), 0, None)
    rows = np.broadcast_to(np.arange(target)[:, None], columns.shape)
    inside = (columns >= 0) & (columns < count) & (weights > 0)
    # What falls outside keeps its share of the weight: there the array is `outside`, which is zero here.
    return sparse.csr_matrix(
        (weights[inside].astype(np.float32), (rows[inside], columns[inside])), shape=(target, count)
    )


def _along(array: NDArray[np.float32], weights: sparse.csr_matrix, axis: int) -> NDArray[np.float32]:
    shape = array.shape
    if axis == 0:
        flat = weights @ array.reshape(shape[0], -1)
        return np.asarray(flat, np.float32).reshape(weights.shape[0], shape[1], shape[2])
    if axis == 1:
        result = np.empty((shape[0], weights.shape[0], shape[2]), np.float32)
        for index in range(shape[0]):
            result[index] = weights @ array[index]
        return result
    result = np.empty((shape[0], shape[1], weights.shape[0]), np.float32)
    for index in range(shape[0]):
        result[index] = (weights @ np.ascontiguousarray(array[index].T)).T
    return result


def _shape(values: Vector) -> Shape:
    return int(values[0]), int(values[1]), int(values[2])


def _triple(values: Vector) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])
