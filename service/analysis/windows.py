"""A network's windows over a volume: its input, prepared on the network's grid, cut and turned.

All grids lie along the source volume's axes, so nothing is ever rotated; only the patches themselves are turned into
the order of axes that the network was made for. What becomes of its answers is in ``answers.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from service.analysis.axes import Axes
from service.analysis.intensity import Scaling, by_channel
from service.analysis.layout import Map, lay_out, on_grid
from service.analysis.median import median
from service.analysis.resample import Grid, bounds, resample, whole
from service.stage import Stage
from service.types import Array, Box


class Windows:
    """The windows of one stage: an iterable of the network's inputs, the same ones each time.

    Parameters
    ----------
    array
        float32 [slices, rows, columns], real-world values, on `grid`.
    maps
        What the earlier stages found, by name.
    """

    def __init__(self, *, array: Array, grid: Grid, stage: Stage, axes: Axes, maps: Mapping[str, Map]) -> None:
        assert stage.intensity is not None  # a network stage has both: stage.py
        assert stage.input is not None
        region = maps[stage.within.stage] if stage.within else None
        self.stage, self.axes, self.source = stage, axes, grid
        self.layout = lay_out(grid, stage, axes, region)
        self._rule, self._channels = stage.intensity, stage.input.channels
        measures = self._rule.percentiles is not None or self._rule.normalise != "none"
        self._scaling = None if measures and self._rule.over == "window" else Scaling.measured(self._rule, array)
        self._hidden: NDArray[np.bool_] | None = None  # what `within.outside` replaces in each patch, not before
        self._inside = whole((0, 0, 0))  # what of the image lies on its grid
        self._image = self._prepare(array, region) if self.layout.starts else np.empty((0, 0, 0), np.float32)

    def __len__(self) -> int:
        return len(self.layout.starts)

    def __iter__(self) -> Iterator[Array]:
        for index in range(len(self)):
            box = self.layout.read_box(index)
            patch = self.axes.turn(self._image[box] if self._scaling else self._scaled_by_itself(box))
            if self.stage.channels_hold == "copies":
                patch = patch[0] if self.stage.is_flat else patch
                patch = np.broadcast_to(patch, (self._channels, *patch.shape))
            patch = by_channel(self._rule, patch)
            if self._hidden is not None and self.stage.within:
                patch = self._hide(patch, self.axes.turn(self._hidden[box]))
            yield np.ascontiguousarray(patch)

    def _scaled_by_itself(self, box: Box) -> Array:
        """A window of the image, scaled by the values that it has of the image, not of what is assumed beyond it."""
        values = self._image[box].copy()
        a, b, c = (
            slice(max(inside.start - own.start, 0), max(inside.stop - own.start, 0))
            for inside, own in zip(self._inside, box, strict=True)
        )
        within = values[a, b, c]
        Scaling.measured(self._rule, within if within.size else values).apply(values)
        return values

    def _hide(self, patch: Array, hidden: NDArray[np.bool_]) -> Array:
        """Set what lies outside the region, in each channel; of neighbouring slices each has its own."""
        assert self.stage.within
        assert self.stage.within.outside is not None
        place = hidden[0] if self.stage.is_flat and self.stage.channels_hold == "copies" else hidden
        return np.where(place, np.float32(self.stage.within.outside), patch)

    def _prepare(self, array: Array, region: Map | None) -> Array:
        """The network's input over all windows and their reach, float32 [slices, rows, columns]."""
        stage, grid, outside = self.stage, self.layout.read_grid, self._rule.outside
        if stage.smooth:
            finer = self.axes.to_source(stage.smooth.spacing_mm)
            # The finer grid shares the coarser one's edges, so that its voxels divide the coarser ones evenly.
            low, high = grid.edges(whole(grid.shape))
            fine = Grid.of(np.round((high - low) / finer), finer, low + finer / 2)
            image = resample(array, self.source, fine, outside=outside)
            image = median(image, stage.smooth.median_voxels)
            image = resample(image, fine, grid, outside=outside)
        else:
            image = resample(array, self.source, grid, outside=outside)
        self._inside = grid.box(*self.source.edges(whole(self.source.shape)))
        mask = None
        if stage.within and stage.within.outside is not None and region:
            mask = on_grid(region, grid, stage.within.margin_voxels)
            self._inside = bounds(mask) or whole((0, 0, 0))
            _fill_beyond(image, self._inside, outside)
        if self._scaling:
            self._scaling.apply(image)
        if mask is not None and stage.within:
            hidden = np.zeros(mask.shape, bool)
            hidden[self._inside] = ~mask[self._inside]
            if self._scaling and not self._rule.channel_mean:
                image[hidden] = stage.within.outside
            else:  # the value is the network's own: set when all else is done
                self._hidden = hidden
        return image


def _fill_beyond(image: Array, box: Box, value: float) -> None:
    """Set all that is not in a box."""
    for axis, edge in enumerate(box):
        along = np.moveaxis(image, axis, 0)
        along[: edge.start] = value
        along[edge.stop :] = value
