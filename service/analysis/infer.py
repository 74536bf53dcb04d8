"""A volume and a model's stages become a prediction on the source grid. Pure, but for the calls to the scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from service.analysis import regions
from service.analysis.answers import Boxes, Maps, Scores
from service.analysis.axes import Axes
from service.analysis.kept import StageKeeper
from service.analysis.layout import Map
from service.analysis.resample import Grid, bounds, greatest, resample, whole
from service.analysis.waiting import Stream
from service.analysis.windows import Windows
from service.errors import RegionNotFound
from service.spec import ModelSpec
from service.stage import Stage
from service.types import (
    Array,
    Box,
    BoxPrediction,
    Candidate,
    MapPrediction,
    Prediction,
    Progress,
    ScorePrediction,
    SourceVolume,
)

_AIR_HU = -1000.0


class Runner(Protocol):
    """Runs patches. Implemented by ``schedule.Scheduler``."""

    def map(self, stream: Stream, network: str, patches: Iterable[Array]) -> Iterator[tuple[Array, ...]]:
        """For each patch, [channels, *shape], in order one array for each of the network's outputs."""


def infer(
    source: SourceVolume,
    spec: ModelSpec,
    scheduler: Runner,
    *,
    stream: Stream,
    progress: Progress,
    kept: StageKeeper | None = None,
) -> Prediction:
    """Run a model's stages in order.

    Parameters
    ----------
    kept
        Where results of stages before the last are kept, and found again by another try; None: nowhere.

    Returns
    -------
    Prediction
        Of the last stage, by the model's task: maps, one for each of its classes; candidates of detection, those of at
        least half the score that is reported; or the scores of each window.

    Raises
    ------
    RegionNotFound
        If an earlier stage found nothing of that in which a later one works.
    BackendError
        If a network can't be run, or its answers are no numbers.
    """
    work = _Work(source=source, spec=spec, scheduler=scheduler, stream=stream, progress=progress, kept=kept)
    maps: dict[str, Map] = {}
    seconds: dict[str, float] = {}
    for stage in spec.stages[:-1]:
        work.check(stage, maps)
        with _timed(seconds, stage.name):
            maps[stage.name] = work.region(stage, maps)
    last = spec.stages[-1]
    work.check(last, maps)
    channels = tuple(known.channel for known in spec.classes)
    if spec.task == "detection":
        with _timed(seconds, last.name):
            candidates = work.boxes(last, maps, channels)
        return BoxPrediction(candidates=candidates, seconds=seconds)
    if spec.task == "classification":
        with _timed(seconds, last.name):
            scores, slices = work.scores(last, maps)
        return ScorePrediction(scores=scores, slices=slices, seconds=seconds)
    with _timed(seconds, last.name):
        found = work.maps(last, maps, channels)
    probability, box = _on_source(found, last, work.grid)
    return MapPrediction(probability=probability, box=box, seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One model's work on one volume."""

    source: SourceVolume
    spec: ModelSpec
    scheduler: Runner
    stream: Stream
    progress: Progress
    kept: StageKeeper | None

    @property
    def grid(self) -> Grid:
        """The source's."""
        return Grid(shape=self.source.volume.spatial_shape, spacing_mm=self.source.volume.spacing)

    def check(self, stage: Stage, maps: Mapping[str, Map]) -> None:
        """Refuse to go on without that in which a stage works."""
        if stage.within and not maps[stage.within.stage].mask.any():
            raise self._not_found(stage, f"no {stage.within.stage} in the images")

    def region(self, stage: Stage, maps: Mapping[str, Map]) -> Map:
        """What a stage finds for those behind it: their mask only. An earlier try may have found it already."""
        within = maps[stage.within.stage] if stage.within else None
        if self.kept and (known := self.kept.find(stage, within)):
            self.progress(model=self.spec.name, stage=stage.name, done=1, total=1)
            return known
        began = time.perf_counter()
        found = self.maps(stage, maps, (stage.channel,)) if stage.rule == "network" else self.rule(stage)
        found = replace(found, probability=None)
        if self.kept:
            self.kept.keep(stage, within, found, seconds=time.perf_counter() - began)
        return found

    def maps(self, stage: Stage, maps: Mapping[str, Map], channels: tuple[int, ...]) -> Map:
        """Run a network that gives maps; those of some channels."""
        windows = self._windows(stage, maps)
        collected = Maps(windows, channels, networks=len(self.spec.networks_of(stage)))
        self._run(stage, windows, collected.take)
        del windows  # its image is as large as a map
        return collected.result()

    def boxes(self, stage: Stage, maps: Mapping[str, Map], channels: tuple[int, ...]) -> tuple[Candidate, ...]:
        """Run a detection network."""
        windows = self._windows(stage, maps)
        collected = Boxes(windows, channels, score=self.spec.findings.score_threshold / 2)
        self._run(stage, windows, collected.take)
        return collected.result()

    def scores(self, stage: Stage, maps: Mapping[str, Map]) -> tuple[Array, tuple[int, ...]]:
        """Run a classification network."""
        windows = self._windows(stage, maps)
        collected = Scores(windows)
        self._run(stage, windows, collected.take)
        return collected.result()

    def rule(self, stage: Stage) -> Map:
        """Find a region by rule on a coarse copy of the whole volume."""
        self.progress(model=self.spec.name, stage=stage.name, done=0, total=1)
        grid = self.grid
        spacing = self._axes(stage).to_source(stage.spacing_mm)
        spacing = np.where(spacing == 0, grid.spacing_mm, spacing)
        shape = np.maximum(1, np.round(np.array(grid.shape) * grid.spacing_mm / spacing))
        coarse = Grid.of(shape, spacing, np.zeros(3))
        find = {"body": regions.body, "lungs": regions.lungs}[stage.rule]
        mask = find(resample(self.source.volume.array, grid, coarse, outside=_AIR_HU), coarse.spacing_mm)
        self.progress(model=self.spec.name, stage=stage.name, done=1, total=1)
        return Map(grid=coarse, mask=mask, probability=None)

    def _windows(self, stage: Stage, maps: Mapping[str, Map]) -> Windows:
        windows = Windows(
            array=self.source.volume.array, grid=self.grid, stage=stage, axes=self._axes(stage), maps=maps
        )
        if not len(windows) and stage.within:
            raise self._not_found(stage, f"so little of the {stage.within.stage} that it fills no voxel")
        return windows

    def _run(self, stage: Stage, windows: Windows, take: Callable[[tuple[Array, ...]], None]) -> None:
        """One network after the other, so that two that do not fit into the memory together change places once."""
        networks = self.spec.networks_of(stage)
        done, total = 0, len(windows) * len(networks)
        self.progress(model=self.spec.name, stage=stage.name, done=done, total=total)
        for network in networks:
            for answers in self.scheduler.map(self.stream, network, windows):
                take(answers)
                done += 1
                self.progress(model=self.spec.name, stage=stage.name, done=done, total=total)

    def _axes(self, stage: Stage) -> Axes:
        return Axes.of(self.source.volume.get_closest_patient_orientation(), stage.orientation)

    def _not_found(self, stage: Stage, found: str) -> RegionNotFound:
        region = stage.within.stage if stage.within else ""
        return RegionNotFound(
            doing=f"looking for the region of {self.spec.name} in series {self.source.series.series_instance_uid}",
            found=found,
            rule=f"its stage {stage.name} works within the {region}",
            way_out="nothing, if that part of the body was not scanned; else look at the images",
        )


def _on_source(found: Map, stage: Stage, grid: Grid) -> tuple[Array, Box]:
    """The last stage's maps on the source grid, cropped to where any of them is not zero."""
    assert found.probability is not None  # the last stage is a network: spec.py
    low, high = found.grid.edges(bounds(np.asarray((found.probability > 0).any(axis=0))) or whole((0, 0, 0)))
    reach = np.array(found.grid.spacing_mm) / 2  # from a voxel's edge to where its value has faded to its neighbour's
    box = grid.box(low - reach, high + reach)
    target = grid.cropped(box)
    result = np.empty((len(found.probability), *target.shape), np.float32)
    for index, one in enumerate(found.probability):
        if stage.between == "maximum":
            result[index] = greatest(one, found.grid, target)
        else:
            result[index] = resample(one, found.grid, target, outside=0.0, antialias=False)
    return result, box


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began
