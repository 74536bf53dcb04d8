"""Measure the detector on a real scan: `python measure.py MODELS_DIRECTORY SERIES_FOLDER [SEED ...]`.

First the scan as it is: whatever is found and is no known nodule is a false alarm. Then, per seed, nodules are planted
into its lungs (free, at vessels, at the pleura) and the same pipeline as in service must find them: a finding counts
for the nodule within which its centroid lies. Needs the package `service` on the path, and this model installed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import erf

from service.analysis import regions
from service.analysis.findings import find
from service.analysis.infer import infer
from service.analysis.resample import Grid, resample
from service.analysis.schedule import Scheduler
from service.analysis.volume import read_volume
from service.analysis.waiting import Stream
from service.backend import open_backend
from service.models import installed
from service.run import read_folder
from service.settings.analysis import Analysis
from service.types import Lesion, Model, SourceVolume

Vector = NDArray[np.float64]
KINDS = ("free", "at a vessel", "at the pleura")
DIAMETERS_MM = (4, 5, 6, 8, 10, 12, 16, 20, 25, 28)
COARSE_MM = 2.5
APART_MM = 12.0  # between the surfaces of two planted nodules
BLUR_MM = 0.6  # standard deviation of a nodule's edge
TRIES = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """An ellipsoid of soft tissue."""

    kind: str
    diameter_mm: float  # of the sphere of its volume
    centre_mm: Vector  # [3] from the centre of the source volume's first voxel, along its axes
    half_axes_mm: Vector  # [3]
    turn: NDArray[np.float64]  # [3, 3] rotation: columns are the directions of the half axes
    hu: float


def places(source: SourceVolume) -> dict[str, Any]:
    """Distances, on a coarse grid, by which a nodule's place is chosen.

    Returns
    -------
    dict
        Each [slices, rows, columns] of a 2.5 mm grid: ``air``, ``vessel`` bool; ``wall``, ``tissue`` distance in mm.
    """
    grid = Grid(shape=source.volume.spatial_shape, spacing_mm=source.volume.spacing)
    shape = np.maximum(1, np.round(np.array(grid.shape) * grid.spacing_mm / COARSE_MM))
    coarse = Grid.of(shape, np.full(3, COARSE_MM), np.zeros(3))
    hu = resample(source.volume.array, grid, coarse, outside=-1000.0)
    lung = regions.lungs(hu, coarse.spacing_mm)
    tissue = hu > -500
    wall = np.asarray(ndimage.distance_transform_edt(lung, sampling=COARSE_MM))
    thick = ndimage.binary_dilation(ndimage.binary_erosion(tissue, iterations=2), iterations=3)
    return {
        "air": lung & (hu < -600) & (hu > -960),
        "vessel": (hu > -300) & (wall > 8) & ~thick,
        "wall": wall,
        "tissue": np.asarray(ndimage.distance_transform_edt(~tissue, sampling=COARSE_MM)),
    }


def plan(source: SourceVolume, seed: int, taken_mm: Sequence[Vector]) -> list[Planted]:
    """One nodule of every kind and diameter, where the lung has room for it, away from `taken_mm`."""
    rng = np.random.default_rng(seed)
    at = places(source)
    planted: list[Planted] = []
    for diameter in DIAMETERS_MM:
        r = diameter / 2
        for kind in KINDS:
            fits = {
                "free": at["air"] & (at["tissue"] > min(r + 1.5, 7)) & (at["wall"] > r + 2),
                "at a vessel": at["vessel"] & (at["wall"] > r + 3),
                "at the pleura": at["air"] & (at["wall"] > 0.35 * r) & (at["wall"] < 0.8 * r + 1),
            }[kind]
            for _ in range(TRIES):
                centre = (rng.choice(np.argwhere(fits)) + rng.random(3) - 0.5) * COARSE_MM
                if kind == "at a vessel":
                    direction = rng.normal(size=3)
                    centre = centre + 0.6 * r * direction / np.linalg.norm(direction)
                free = all(np.linalg.norm(centre - t) > 40 for t in taken_mm)
                gaps = [np.linalg.norm(centre - p.centre_mm) - r - p.diameter_mm / 2 for p in planted]
                if free and min(gaps, default=np.inf) > APART_MM:
                    stretch = rng.choice([1.0, rng.uniform(1.15, 1.5)])
                    axes = r * np.array([stretch**0.5, stretch**-0.25, stretch**-0.25])
                    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
                    hu = float(rng.uniform(-20, 60))
                    planted.append(
                        Planted(
                            kind=kind,
                            diameter_mm=diameter,
                            centre_mm=centre,
                            half_axes_mm=axes,
                            turn=turn,
                            hu=hu,
                        )
                    )
                    break
    return planted


def plant(source: SourceVolume, nodules: Sequence[Planted], seed: int) -> SourceVolume:
    """The scan with the nodules in it: blurred at the edge, averaged over the slice, with noise of 12 HU."""
    rng = np.random.default_rng(seed)
    spacing = np.array(source.volume.spacing)
    array = source.volume.array.copy()
    for nodule in nodules:
        reach = nodule.half_axes_mm.max() + 3 * BLUR_MM + spacing
        low = np.maximum(0, np.floor((nodule.centre_mm - reach) / spacing)).astype(int)
        high = np.minimum(array.shape, np.ceil((nodule.centre_mm + reach) / spacing).astype(int) + 1)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        points = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
        offset = points * spacing - nodule.centre_mm
        steps = max(1, round(spacing[0]))
        share = np.zeros(offset.shape[:3])
        for step in (np.arange(steps) + 0.5) / steps - 0.5:
            turned = (offset + step * spacing * [1, 0, 0]) @ nodule.turn / nodule.half_axes_mm
            depth = (1 - np.linalg.norm(turned, axis=-1)) * nodule.diameter_mm / 2
            share += (1 + erf(depth / BLUR_MM / np.sqrt(2))) / 2 / steps
        around = array[box]
        array[box] = np.maximum(around, around + (nodule.hu - around) * share) + rng.normal(0, 12, share.shape) * share
    return replace(source, volume=source.volume.with_array(array))


def detect(source: SourceVolume, model: Model, scheduler: Scheduler) -> list[Lesion]:
    """What the pipeline of the service finds, however much that is."""

    def quiet(*, model: str, stage: str, done: int, total: int) -> None:
        pass

    prediction = infer(source, model.spec, scheduler, stream=Stream(), progress=quiet)
    rules = model.spec.findings.model_copy(update={"maximum_count": 1000})
    spec = model.spec.model_copy(update={"findings": rules})
    findings, _ = find(prediction, source, spec, tracking_uid=lambda channel, place: f"{channel} {place}")
    return [finding for finding in findings if isinstance(finding, Lesion)]


def main(directory: Path, folder: Path, seeds: Sequence[int]) -> None:
    """Print what is found in the scan as it is, then found/planted by kind and diameter."""
    (model,) = installed(directory, ["ct-lung-nodule"])
    scheduler = Scheduler(open_backend(Analysis()))
    scheduler.add(model)
    ((series,),) = (study.series for study in read_folder(folder))
    source = read_volume(series)
    spacing = np.array(source.volume.spacing)
    known = detect(source, model, scheduler)
    for finding in known:
        print(f"as it is: p {finding.probability:.2f}, {finding.volume_ml:.2f} ml at LPS {finding.centroid_lps_mm}")
    centroids = source.volume.map_reference_to_indices(np.array([f.centroid_lps_mm for f in known]).reshape(-1, 3))
    counts: dict[tuple[str, float], list[bool]] = defaultdict(list)
    for seed in seeds:
        nodules = plan(source, seed, list(centroids * spacing))
        found = detect(plant(source, nodules, seed), model, scheduler)
        for nodule in nodules:
            centre = source.volume.map_indices_to_reference((nodule.centre_mm / spacing)[None])[0]
            near = max(nodule.diameter_mm / 2, 2.5)
            hit = any(np.linalg.norm(np.array(f.centroid_lps_mm) - centre) <= near for f in found)
            counts[nodule.kind, nodule.diameter_mm].append(hit)
    print("| planted |", " | ".join(f"{d} mm" for d in DIAMETERS_MM), "|")
    for kind in KINDS:
        cells = (f"{sum(counts[kind, d])}/{len(counts[kind, d])}" for d in DIAMETERS_MM)
        print(f"| {kind} |", " | ".join(cells), "|")
    scheduler.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]])
