"""Where the windows of a stage lie, on a grid of their own along the source volume's axes. Pure geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from service.analysis.axes import Axes
from service.analysis.resample import Grid, Vector, bounds, resample, whole
from service.stage import Stage
from service.types import Array, Box

_EDGE_MM = 1e-3  # a window that ends so little before the region's edge covers it
_ON_EDGE = 1e-6  # of a voxel: so near to a voxel's edge is on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """What a stage found."""

    grid: Grid
    mask: NDArray[np.bool_]  # [slices, rows, columns] of the grid: where any of its maps is above the threshold
    probability: Array | None  # [maps, slices, rows, columns], 0..1; None for a rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The windows of one stage. All sizes are in the order of the source's axes.

    A network may answer for a smaller window than it reads (valid convolutions, or the slices before and behind the
    one that is asked about): windows are laid out by their answers, and each input reaches as far beyond as needed.
    """

    grid: Grid  # of the answers, all windows together
    read: NDArray[np.int_]  # [3] voxels that the network reads
    answered: NDArray[np.int_]  # [3] voxels for which it answers, in the middle of those
    starts: tuple[tuple[int, int, int], ...]  # first answered voxel of each window
    keep: NDArray[np.bool_] | None  # [slices, rows, columns] of the grid: where an answer counts; None: everywhere

    @property
    def reach(self) -> NDArray[np.int_]:
        """[3] voxels that the network reads before and behind what it answers for."""
        return (self.read - self.answered) // 2

    @property
    def read_grid(self) -> Grid:
        """The grid with what is read beyond its edges; a window begins at the same index in both."""
        spacing = np.array(self.grid.spacing_mm)
        return Grid.of(np.array(self.grid.shape) + 2.0 * self.reach, spacing, self.grid.start_mm - self.reach * spacing)

    def read_box(self, index: int) -> Box:
        """What a window reads, in voxels of `read_grid`."""
        return _box(self.starts[index], self.read)

    def answered_box(self, index: int) -> Box:
        """What a window answers for, in voxels of `grid`."""
        return _box(self.starts[index], self.answered)


def lay_out(grid: Grid, stage: Stage, axes: Axes, region: Map | None) -> Layout:
    """Lay out a network's windows.

    Parameters
    ----------
    grid
        The source's.
    region
        What the stage found in whose mask this one works.
    """
    read, answered = (axes.to_source(sizes).astype(int) for sizes in _sizes(stage))
    low, high = grid.edges(whole(grid.shape))
    spacing, own, fitted = _spacing(grid, stage, axes, (high - low) / answered)
    if region and stage.within:
        margin = max(stage.within.margin_voxels, stage.within.keep_margin_voxels) * spacing
        region_low, region_high = region.grid.edges(bounds(region.mask) or whole((0, 0, 0)))
        low = np.where(fitted, low, np.maximum(low, region_low - margin))
        high = np.where(fitted, high, np.minimum(high, region_high + margin))
    # Voxels of the source's own spacing are the source's voxels themselves, not some between them.
    first, step = np.array(grid.start_mm) - np.array(grid.spacing_mm) / 2, np.array(grid.spacing_mm)
    low = np.where(own, first + np.floor((low - first) / step + _ON_EDGE) * step, low)
    high = np.where(own, first + np.ceil((high - first) / step - _ON_EDGE) * step, high)
    voxels = np.maximum(1, np.ceil((high - low - _EDGE_MM) / spacing)).astype(int)
    voxels = np.where(fitted, answered, voxels)
    along = [_starts(int(n), int(w), stage.overlap) for n, w in zip(voxels, answered, strict=True)]
    shape = np.array([s[-1] for s in along]) + answered
    # Centred: what the windows cover beyond the area is shared by its two sides.
    start = (low + high) / 2 - (shape - 1) / 2 * spacing
    start = np.where(own, low + spacing / 2 - (shape - voxels) // 2 * spacing, start)
    laid = Grid.of(shape, spacing, start)
    keep = on_grid(region, laid, stage.within.keep_margin_voxels) if region and stage.within else None
    starts = tuple((a, b, c) for a, b, c in product(*along) if keep is None or keep[_box((a, b, c), answered)].any())
    return Layout(grid=laid, read=read, answered=answered, starts=starts, keep=keep)


def on_grid(region: Map, grid: Grid, margin_voxels: float) -> NDArray[np.bool_]:
    """A region's mask on another grid, dilated by a margin in voxels of that grid."""
    values = resample(region.mask.astype(np.float32), region.grid, grid, outside=0.0, antialias=False)
    mask: NDArray[np.bool_] = values > 0.5
    if margin_voxels > 0 and mask.any():
        mask = np.asarray(ndimage.distance_transform_edt(~mask) <= margin_voxels)
    return mask


def _sizes(stage: Stage) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Voxels that a window reads and answers for, in the order of the stage's axes; a single slice is one thick."""
    assert stage.input is not None  # a network stage has both: stage.py
    assert stage.output is not None
    answered = stage.output.shape if stage.gives_map else stage.input.shape  # boxes and scores are of all it reads
    if not stage.is_flat:
        return stage.input.shape, answered
    return (stage.input.channels if stage.channels_hold == "neighbours" else 1, *stage.input.shape), (1, *answered)


def _spacing(
    grid: Grid, stage: Stage, axes: Axes, stretched: Vector
) -> tuple[Vector, NDArray[np.bool_], NDArray[np.bool_]]:
    """[3] spacing in mm; along which axes it is the source's own; along which the whole image fits in one window.

    Parameters
    ----------
    stretched
        [3] the spacing at which each axis of the image, by itself, fills a window.
    """
    spacing = axes.to_source(stage.spacing_mm)
    own = spacing == 0
    spacing = np.where(own, grid.spacing_mm, spacing)
    fitted = np.full(3, stage.fit != "no")
    if stage.is_flat:
        fitted[axes.order[0]] = False
    if stage.fit == "pad":  # the spacings keep their ratio; the axis that is longest for its window fills it
        spacing = np.where(fitted, spacing * (stretched / spacing)[fitted].max(initial=0.0), spacing)
    elif stage.fit == "stretch":
        spacing = np.where(fitted, stretched, spacing)
    return spacing, own & ~fitted, fitted


def _starts(voxels: int, window: int, overlap: float) -> list[int]:
    """Where the windows along one axis begin: side by side, beyond the edge at last; or overlapping, edge to edge."""
    if overlap == 0 or voxels <= window:
        return list(range(0, voxels, window))
    count = 1 + int(np.ceil((voxels - window) / (window * (1 - overlap))))
    return [round(v) for v in np.linspace(0, voxels - window, count)]


def _box(start: Sequence[int], shape: NDArray[np.int_]) -> Box:
    a, b, c = (slice(int(s), int(s) + int(n)) for s, n in zip(start, shape, strict=True))
    return a, b, c
