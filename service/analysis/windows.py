"""A network's windows over a volume: cut, turned, and put together again.

All grids lie along the source volume's axes, so nothing is ever rotated; only the patches themselves are turned into
the order of axes that the network was made for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from highdicom import PatientOrientationValuesBiped
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit

from service.analysis.resample import Grid, Vector, bounds, resample, whole
from service.spec import Shape, Stage
from service.types import Box

_GROWS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "H": (2, 1), "I": (2, -1), "F": (2, -1)}
_EDGE_MM = 1e-3  # a window that ends so little before the region's edge covers it


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """What a stage found."""

    grid: Grid
    mask: NDArray[np.bool_]  # [slices, rows, columns] of the grid
    probability: NDArray[np.float32] | None  # the same, 0..1; None for a rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """How a stage's axes lie on the source's: stage axis k is source axis ``order[k]``, reversed where ``flip[k]``."""

    order: tuple[int, ...]
    flip: tuple[bool, ...]

    @classmethod
    def of(cls, source: Sequence[PatientOrientationValuesBiped], stage: str) -> Axes:
        """From the patient directions in which the source's and the stage's axes grow."""
        own = [_GROWS[direction.value] for direction in source]
        order = tuple(next(i for i, (axis, _) in enumerate(own) if axis == _GROWS[letter][0]) for letter in stage)
        flip = tuple(own[i][1] != _GROWS[letter][1] for i, letter in zip(order, stage, strict=True))
        return cls(order=order, flip=flip)

    def to_source(self, values: Sequence[float]) -> Vector:
        """[3] per-axis values of the stage in the order of the source's axes."""
        result = np.empty(3)
        result[list(self.order)] = values
        return result

    def turn(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """A view of an array of source axes in the stage's axes."""
        return array.transpose(self.order)[self._reversed]

    def turn_back(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """The reverse of `turn`."""
        return array[self._reversed].transpose([int(k) for k in np.argsort(self.order)])

    @property
    def _reversed(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else None) for flip in self.flip)


class Windows:
    """The windows of one stage: an iterable of the network's inputs, and where its answers are put together.

    A network may answer for a smaller window than it reads (valid convolutions): windows are laid out by their
    outputs, and each input reaches as far beyond as the network needs.

    Parameters
    ----------
    array
        float32 [slices, rows, columns], real-world values, on `grid`.
    maps
        What the earlier stages found, by name.
    """

    def __init__(
        self, *, array: NDArray[np.float32], grid: Grid, stage: Stage, axes: Axes, maps: Mapping[str, Map]
    ) -> None:
        assert stage.input is not None  # a network stage has both: spec.py
        assert stage.output is not None
        self._stage, self._axes = stage, axes
        self._input = axes.to_source(stage.input.shape).astype(int)
        self._output = axes.to_source(stage.output.shape).astype(int)
        spacing = axes.to_source(stage.spacing_mm)
        region = maps[stage.within.stage] if stage.within else None
        margin = max(stage.within.margin_voxels, stage.within.keep_margin_voxels) if stage.within else 0.0
        low, high = _area(grid, region, margin * spacing)
        voxels = np.maximum(1, np.ceil((high - low - _EDGE_MM) / spacing)).astype(int)
        starts = [_starts(int(n), int(w), stage.overlap) for n, w in zip(voxels, self._output, strict=True)]
        shape = np.array([s[-1] for s in starts]) + self._output
        # Centred: what the windows cover beyond the area is shared by its two sides.
        self._grid = Grid.of(shape, spacing, (low + high) / 2 - (shape - 1) / 2 * spacing)
        self._keep = on_grid(region, self._grid, stage.within.keep_margin_voxels) if region and stage.within else None
        self._starts = [
            start for start in product(*starts) if self._keep is None or self._keep[_window(start, self._output)].any()
        ]
        self._image = self._prepare(array, grid, region) if self._starts else np.empty((0, 0, 0), np.float32)
        self._sum = np.zeros(self._grid.shape, np.float32)
        self._count = np.zeros(self._grid.shape, np.uint16)
        self._taken = 0

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for start in self._starts:
            patch = self._axes.turn(self._image[_window(start, self._input)])
            yield np.ascontiguousarray(patch[np.newaxis])

    def take(self, answer: NDArray[np.float32]) -> None:
        """Put the next window's answer, [channels, *spatial*], in its place; where windows overlap they average."""
        window = _window(self._starts[self._taken], self._output)
        self._sum[window] += self._axes.turn_back(_activate(answer, self._stage)[self._stage.channel])
        self._count[window] += 1
        self._taken += 1

    def result(self) -> Map:
        """The map, once every window's answer has been taken."""
        probability = self._sum
        probability /= np.maximum(self._count, 1)
        if self._keep is not None:
            probability[~self._keep] = 0.0
        mask = probability > self._stage.threshold
        if self._stage.keep == "largest":
            largest = _largest(mask)
            probability[mask & ~largest] = 0.0
            mask = largest
        return Map(grid=self._grid, mask=mask, probability=probability)

    def _prepare(self, array: NDArray[np.float32], grid: Grid, region: Map | None) -> NDArray[np.float32]:
        """The network's input over all windows and their reach, float32 [slices, rows, columns]."""
        stage = self._stage
        assert stage.intensity
        reach = (self._input - self._output) // 2
        spacing = np.array(self._grid.spacing_mm)
        padded = Grid.of(self._grid.shape + 2 * reach, spacing, self._grid.start_mm - reach * spacing)
        outside = stage.intensity.outside
        if stage.smooth:
            finer = self._axes.to_source(stage.smooth.spacing_mm)
            # The finer grid shares the coarser one's edges, so that its voxels divide the coarser ones evenly.
            low, high = padded.edges(whole(padded.shape))
            fine = Grid.of(np.round((high - low) / finer), finer, low + finer / 2)
            image = resample(array, grid, fine, outside=outside)
            image = ndimage.median_filter(image, size=stage.smooth.median_voxels, mode="nearest")
            image = resample(image, fine, padded, outside=outside)
        else:
            image = resample(array, grid, padded, outside=outside)
        np.clip(image, *stage.intensity.clip, out=image)
        image += np.float32(stage.intensity.offset)
        image *= np.float32(stage.intensity.scale)
        if stage.within and stage.within.outside is not None and region:
            mask = on_grid(region, padded, stage.within.margin_voxels)
            kept = image[box := bounds(mask) or whole((0, 0, 0))]
            kept[~mask[box]] = stage.within.outside
            beyond = (np.clip(outside, *stage.intensity.clip) + stage.intensity.offset) * stage.intensity.scale
            image = np.full_like(image, beyond)
            image[box] = kept
        return image


def on_grid(region: Map, grid: Grid, margin_voxels: float) -> NDArray[np.bool_]:
    """A region's mask on another grid, dilated by a margin in voxels of that grid."""
    values = resample(region.mask.astype(np.float32), region.grid, grid, outside=0.0, antialias=False)
    mask: NDArray[np.bool_] = values > 0.5
    if margin_voxels > 0 and mask.any():
        mask = np.asarray(ndimage.distance_transform_edt(~mask) <= margin_voxels)
    return mask


def _area(grid: Grid, region: Map | None, margin_mm: Vector) -> tuple[Vector, Vector]:
    """[3] least and greatest edge (mm) of what needs an answer: the region with its margin, inside the image."""
    low, high = grid.edges(whole(grid.shape))
    if region is None:
        return low, high
    region_low, region_high = region.grid.edges(bounds(region.mask) or whole((0, 0, 0)))
    return np.maximum(low, region_low - margin_mm), np.minimum(high, region_high + margin_mm)


def _starts(voxels: int, window: int, overlap: float) -> list[int]:
    """Where the windows along one axis begin: side by side, beyond the edge at last; or overlapping, edge to edge."""
    if overlap == 0 or voxels <= window:
        return list(range(0, voxels, window))
    count = 1 + int(np.ceil((voxels - window) / (window * (1 - overlap))))
    return [round(v) for v in np.linspace(0, voxels - window, count)]


def _window(start: Sequence[int], shape: NDArray[np.int_] | Shape) -> Box:
    a, b, c = (slice(int(s), int(s) + int(n)) for s, n in zip(start, shape, strict=True))
    return a, b, c


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest component, sought after one erosion so that a thin bridge does not join two organs."""
    labels, count = ndimage.label(ndimage.binary_erosion(mask))
    if count == 0:
        return mask
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return np.asarray(ndimage.binary_dilation(largest) & mask)


def _activate(answer: NDArray[np.float32], stage: Stage) -> NDArray[np.float32]:
    """Probabilities, 0..1, from the network's answer [channels, *spatial*]."""
    if stage.activation == "sigmoid":
        return np.asarray(expit(answer), np.float32)
    if stage.activation == "softmax":
        powers = np.exp(answer - answer.max(axis=0, keepdims=True))
        return np.asarray(powers / powers.sum(axis=0, keepdims=True), np.float32)
    return answer
