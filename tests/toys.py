"""Models that anybody can check by hand, one of each task, as real folders with real ONNX graphs; and studies for them.

The first one finds what is denser than 200 HU; its study is the tiny phantom with a ball of 400 HU in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from pydicom import Dataset

from service.demo.phantom import Phantom, tiny
from service.demo.phantom_dicom import write_series
from service.types import Array, Instance, Point, Series, SourceVolume
from tests import toy_graphs as graphs
from tests.toy_graphs import REACH as REACH
from tests.toy_graphs import WINDOW as WINDOW

MODEL_TOML = """\
name = "{name}"
version = "1.0"
title = "Bright balls"
manufacturer = "Overread tests"
licence = "Apache-2.0"
[source]
words = "made by the tests"
[select]
modality = "CT"
orientation = "any"
slices = [4, 1000]
slice_spacing_mm = [0.5, 8.0]
[[stages]]
name = "ball"
orientation = "{orientation}"
spacing_mm = [2.5, 2.5, 2.5]
input = {{ name = "input", shape = [24, 24, 24] }}
output = {{ name = "probability", shape = [16, 16, 16] }}
intensity = {{ clip = [-1000.0, 1000.0], offset = 1000.0, scale = 0.0005 }}
threshold = 0.5
[[classes]]
finding = ["52988006", "SCT", "Lesion"]
site = ["10200004", "SCT", "Liver"]
[findings]
minimum_volume_ml = 0.1
"""


_INTENSITY = "clip = [-1000.0, 1000.0], offset = 1000.0, scale = 0.0005"
_STAGES = {
    "two-class": """
spacing_mm = [2.5, 2.5, 2.5]
input = { name = "input", shape = [16, 16, 16] }
output = { name = "logits", channels = 3, shape = [16, 16, 16] }
intensity = { INTENSITY }
activation = "softmax"
labels = "exclusive"
overlap = 0.25
blend = "gaussian"
""",
    "heat": """
spacing_mm = [2.5, 2.5, 2.5]
input = { name = "input", shape = [16, 16, 16] }
output = { name = "heat", shape = [16, 16, 16] }
intensity = { INTENSITY }
overlap = 0.5
""",
    "boxes": """
spacing_mm = [2.5, 2.5, 2.5]
input = { name = "input", shape = [16, 20, 24] }
output = { name = "boxes", channels = 4, shape = [NUMBERS] }
scores = { name = "scores", channels = 4, shape = [] }
boxes = "FORM"
intensity = { INTENSITY }
activation = "sigmoid"
overlap = 0.5
""",
    "slices": """
spacing_mm = [0.0, 0.0, 0.0]
fit = "pad"
input = { name = "input", channels = 3, shape = [32, 40] }
output = { name = "logits", channels = 2, shape = [] }
intensity = { INTENSITY, channel_mean = [0.5, 0.4, 0.3], channel_std = [0.2, 0.25, 0.5] }
activation = "softmax"
""",
    "next-slice": """
spacing_mm = [0.0, 2.0, 2.0]
channels_hold = "neighbours"
input = { name = "input", channels = 3, shape = [32, 40] }
output = { name = "logits", shape = [32, 40] }
intensity = { INTENSITY }
activation = "sigmoid"
""",
    "ensemble": """
ensemble = ["ENSEMBLE-second"]
spacing_mm = [2.5, 2.5, 2.5]
input = { name = "input", shape = [16, 16, 16] }
output = { name = "probability", shape = [16, 16, 16] }
intensity = { INTENSITY }
""",
}
_CLASS = """
[[classes]]
finding = ["52988006", "SCT", "Lesion"]
site = ["10200004", "SCT", "Liver"]
"""
BRIGHT, DARK = 1, 2  # channels of the network of several classes


def write_model(models: Path, name: str = "bright", *, orientation: str = "LPS") -> Path:
    """Write a model folder with its network and return it."""
    _write_network(models / name, graphs.bright())
    (models / name / "model.toml").write_text(MODEL_TOML.format(name=name, orientation=orientation))
    (models / name / "card.md").write_text("# A toy\n\n## Intended use and data\n\nTests.\n\n## Limits\n\nIt is one.\n")
    return models / name


def write_two_class_model(models: Path, name: str = "two-class", *, orientation: str = "LPS") -> Path:
    """Segmentation by labels that exclude each other: balls that are bright (channel 1) and dark (channel 2)."""
    classes = _CLASS + f"channel = {DARK}\n" + _CLASS.replace("52988006", "27925004").replace("Lesion", "Nodule")
    return _write(models, name, "two-class", graphs.classes(), orientation, classes=classes + f"channel = {BRIGHT}\n")


def write_heatmap_model(models: Path, name: str = "heat", *, orientation: str = "LPS") -> Path:
    """A heat map whose peaks are the middles of bright balls."""
    return _write(models, name, "heat", graphs.heat(), orientation, task="heatmap")


def write_detection_model(
    models: Path, name: str = "boxes", *, orientation: str = "LPS", boxes: str = "corners"
) -> Path:
    """Detection: a box of 20 x 25 x 30 mm along the network's axes (or its centre) around what is brightest."""
    folder = _write(models, name, "boxes", graphs.boxes(boxes), orientation, task="detection")
    text = (folder / "model.toml").read_text()
    text = text.replace("FORM", boxes).replace("NUMBERS", "3" if boxes == "centres" else "6")
    (folder / "model.toml").write_text(text)
    return folder


def write_classification_model(models: Path, name: str = "slices", *, orientation: str = "SPL") -> Path:
    """Classification of single slices: nothing (channel 0), or a bright ball in it (channel 1)."""
    judgement = '[judgement]\nlevel = "series"\n'
    classes = _CLASS + "channel = 0\nnormal = true\n" + _CLASS + "channel = 1\n"
    return _write(
        models, name, "slices", graphs.judge(), orientation, task="classification", classes=classes + judgement
    )


def write_neighbour_model(models: Path, name: str = "next-slice", *, orientation: str = "SPL") -> Path:
    """Segmentation in 2.5D: a slice is asked, and the answer is what is bright in the one behind it."""
    return _write(models, name, "next-slice", graphs.next_slice(), orientation)


def write_ensemble_model(models: Path, name: str = "ensemble", *, orientation: str = "LPS") -> Path:
    """Two checkpoints, in two folders: one says that a ball is there, the other that it is so by half."""
    _write_network(models / f"{name}-second", graphs.share(0.5))
    folder = _write(models, name, "ensemble", graphs.share(1.0), orientation)
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(text.replace("ENSEMBLE", name))
    return folder


def _write(
    models: Path,
    name: str,
    kind: str,
    network: onnx.ModelProto,
    orientation: str,
    *,
    task: str = "segmentation",
    classes: str = _CLASS,
) -> Path:
    head = MODEL_TOML[: MODEL_TOML.index("[[stages]]")].format(name=name)
    stage = _STAGES[kind].replace("INTENSITY", _INTENSITY)
    text = head.replace("[source]", f'task = "{task}"\n[source]', 1)
    text += f'[[stages]]\nname = "{kind}"\norientation = "{orientation}"{stage}{classes}'
    _write_network(models / name, network)
    (models / name / "model.toml").write_text(text)
    return models / name


def _write_network(folder: Path, network: onnx.ModelProto) -> None:
    (folder / "1").mkdir(parents=True)
    onnx.save(network, str(folder / "1" / "model.onnx"))


class Bare:
    """Runs the networks of a models directory with nothing between: what a scheduler must answer, one by one."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self.asked: list[str] = []  # the network of each patch, in order

    def map(self, stream: object, network: str, patches: Iterable[Array]) -> Iterator[tuple[Array, ...]]:
        """As `service.analysis.infer.Runner` says."""
        session = onnxruntime.InferenceSession(
            str(self._models / network / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        for patch in patches:
            self.asked.append(network)
            yield tuple(answer[0] for answer in session.run(None, {"input": patch[np.newaxis]}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ball:
    """What was put into a study."""

    centre_lps_mm: Point
    volume_ml: float  # of its voxels
    mask: NDArray[np.bool_]  # [slices, rows, columns]


def bright_phantom(
    *,
    affine: NDArray[np.float64] | None = None,
    shape: tuple[int, int, int] = (20, 48, 48),
    seed: int = 0,
    radius_mm: float = 14.0,
) -> tuple[Phantom, Ball]:
    """The tiny phantom with a ball of 400 HU, off the centre along every axis."""
    made = tiny(affine=affine, shape=shape, seed=seed)
    volume = made.volume
    # On a voxel's centre, off the middle in each axis, so that a flip or a swap of axes shows.
    centre = volume.affine @ np.array([shape[0] // 2 + 2, shape[1] // 2 - 6, shape[2] // 2 + 4, 1])
    points = volume.map_indices_to_reference(np.indices(shape).reshape(3, -1).T).reshape(*shape, 3)
    distance = np.linalg.norm(points - centre[:3], axis=-1)
    mask = distance <= radius_mm
    array = made.hu.copy()
    array[distance <= radius_mm + 8] = 0  # the threshold lies half-way between the ball and what is around it
    array[mask] = 400
    phantom = Phantom(
        volume=hd.Volume(array, volume.affine, coordinate_system="PATIENT"), lesions=(), masks={}, seed=seed
    )
    middle = points[mask].mean(axis=0)
    ball = Ball(
        centre_lps_mm=(float(middle[0]), float(middle[1]), float(middle[2])),
        volume_ml=float(mask.sum() * volume.voxel_volume / 1000),
        mask=mask,
    )
    return phantom, ball


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoBalls:
    """A volume with a ball of 400 HU and one of -900 HU in soft tissue of 0 HU."""

    source: SourceVolume
    phantom: Phantom  # the same, to be written as a series
    bright: Ball
    dark: Ball


def two_balls(
    *, affine: NDArray[np.float64], shape: tuple[int, int, int] = (22, 44, 52), radius_mm: float = 14.0
) -> TwoBalls:
    """Two balls, off the middle of each axis, each by another way, so that a flip or a swap of axes shows."""
    indices = np.indices(shape).reshape(3, -1).T
    points = (affine[:3, :3] @ indices.T).T + affine[:3, 3]
    array = np.zeros(shape, np.float32)
    balls = []
    for value, place in ((400, (shape[0] // 2 - 3, shape[1] // 2 - 9, shape[2] // 2 + 11)),
                         (-900, (shape[0] // 2 + 2, shape[1] // 2 + 10, shape[2] // 2 - 12))):  # fmt: skip
        centre = affine @ (*place, 1)
        mask = (np.linalg.norm(points - centre[:3], axis=-1) <= radius_mm).reshape(shape)
        array[mask] = value
        volume_ml = float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
        balls.append(Ball(centre_lps_mm=_point(centre), volume_ml=volume_ml, mask=mask))
    volume = hd.Volume(array, affine, coordinate_system="PATIENT")
    stored = hd.Volume(array.astype(np.int16), affine, coordinate_system="PATIENT")
    return TwoBalls(
        source=source_of(volume),
        phantom=Phantom(volume=stored, lesions=(), masks={}, seed=0),
        bright=balls[0],
        dark=balls[1],
    )


def source_of(volume: hd.Volume) -> SourceVolume:
    """A volume that came from no files."""
    instance = Instance(
        sop_instance_uid="2.25.1",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        path=Path("nowhere"),
        header=Dataset(),
    )
    series = Series(series_instance_uid="2.25.2", modality="CT", instances=(instance,))
    return SourceVolume(series=series, volume=volume, ordered=(instance,) * volume.spatial_shape[0], notes=())


def _point(values: NDArray[np.float64]) -> Point:
    return float(values[0]), float(values[1]), float(values[2])


def bright_study(folder: Path, *, seed: int = 0, **attributes: object) -> Ball:
    """Write such a study into a folder; other seeds are other studies."""
    phantom, ball = bright_phantom(seed=seed)
    write_series(phantom, folder, attributes=attributes)
    return ball
