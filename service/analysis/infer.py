"""A volume and a model's stages become a map on the source grid. Pure, but for the calls to the scheduler."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from service.analysis import regions
from service.analysis.resample import Grid, bounds, greatest, resample, whole
from service.analysis.schedule import Scheduler, Stream
from service.analysis.windows import Axes, Map, Windows
from service.errors import RegionNotFound
from service.spec import ModelSpec, Stage
from service.types import Prediction, Progress, SourceVolume

_AIR_HU = -1000.0


def infer(
    source: SourceVolume, spec: ModelSpec, scheduler: Scheduler, *, stream: Stream, progress: Progress
) -> Prediction:
    """Run a model's stages in order.

    Raises
    ------
    RegionNotFound
        If an earlier stage found nothing of that in which a later one works.
    BackendError
        If a network can't be run.
    """
    array = source.volume.array
    grid = Grid(shape=source.volume.spatial_shape, spacing_mm=source.volume.spacing)
    maps: dict[str, Map] = {}
    seconds: dict[str, float] = {}
    for stage in spec.stages:
        began = time.perf_counter()
        if stage.within and not maps[stage.within.stage].mask.any():
            raise RegionNotFound(
                doing=f"looking for the region of {spec.name} in series {source.series.series_instance_uid}",
                found=f"no {stage.within.stage} in the images",
                rule=f"its stage {stage.name} works within the {stage.within.stage}",
                way_out="nothing, if that part of the body was not scanned; else look at the images",
            )
        axes = Axes.of(source.volume.get_closest_patient_orientation(), stage.orientation)
        if stage.rule == "network":
            windows = Windows(array=array, grid=grid, stage=stage, axes=axes, maps=maps)
            total = len(windows)
            progress(model=spec.name, stage=stage.name, done=0, total=total)
            for done, answer in enumerate(scheduler.map(stream, spec.network_of(stage), windows), start=1):
                windows.take(answer)
                progress(model=spec.name, stage=stage.name, done=done, total=total)
            maps[stage.name] = windows.result()
        else:
            progress(model=spec.name, stage=stage.name, done=0, total=1)
            maps[stage.name] = _rule(array, grid, stage, axes)
            progress(model=spec.name, stage=stage.name, done=1, total=1)
        seconds[stage.name] = time.perf_counter() - began
    last = maps[spec.stages[-1].name]
    assert last.probability is not None  # the last stage is a network: spec.py
    low, high = last.grid.edges(bounds(last.probability > 0) or whole((0, 0, 0)))
    reach = np.array(last.grid.spacing_mm) / 2  # from a voxel's edge to where its value has faded to its neighbour's
    box = grid.box(low - reach, high + reach)
    if spec.stages[-1].between == "maximum":
        probability = greatest(last.probability, last.grid, grid.cropped(box))
    else:
        probability = resample(last.probability, last.grid, grid.cropped(box), outside=0.0, antialias=False)
    return Prediction(probability=probability, box=box, seconds=seconds)


def _rule(array: NDArray[np.float32], grid: Grid, stage: Stage, axes: Axes) -> Map:
    """Find a region by rule on a coarse copy of the whole volume."""
    spacing = axes.to_source(stage.spacing_mm)
    shape = np.maximum(1, np.round(np.array(grid.shape) * grid.spacing_mm / spacing))
    coarse = Grid.of(shape, spacing, np.zeros(3))
    find = {"body": regions.body, "lungs": regions.lungs}[stage.rule]
    mask = find(resample(array, grid, coarse, outside=_AIR_HU), coarse.spacing_mm)
    return Map(grid=coarse, mask=mask, probability=None)
