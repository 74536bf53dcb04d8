"""A model that anybody can check by hand, as a real folder with a real ONNX graph: it finds what is denser than 200 HU.

And a study for it: the tiny phantom with a ball of 400 HU in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from service.demo.phantom import Phantom, tiny
from service.demo.phantom_dicom import write_series
from service.types import Point

WINDOW, REACH = 16, 4  # the network reads 24 voxels along each axis and answers for the middle 16

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
[findings]
finding = ["52988006", "SCT", "Lesion"]
site = ["10200004", "SCT", "Liver"]
minimum_volume_ml = 0.1
"""


def write_model(models: Path, name: str = "bright", *, orientation: str = "LPS") -> Path:
    """Write a model folder with its network and return it."""
    folder = models / name
    (folder / "1").mkdir(parents=True)
    (folder / "model.toml").write_text(MODEL_TOML.format(name=name, orientation=orientation))
    onnx.save(_graph(), str(folder / "1" / "model.onnx"))
    return folder


def _graph() -> onnx.ModelProto:
    constants = {
        "starts": np.full(3, REACH, np.int64),
        "ends": np.full(3, REACH + WINDOW, np.int64),
        "axes": np.array([2, 3, 4], np.int64),
        "limit": np.array(0.6, np.float32),  # 200 HU after the intensity rule
        "slope": np.array(50.0, np.float32),
    }
    nodes = [
        helper.make_node("Slice", ["input", "starts", "ends", "axes"], ["middle"]),
        helper.make_node("Sub", ["middle", "limit"], ["above"]),
        helper.make_node("Mul", ["above", "slope"], ["steep"]),
        helper.make_node("Sigmoid", ["steep"], ["probability"]),
    ]
    size = WINDOW + 2 * REACH
    graph = helper.make_graph(
        nodes,
        "bright",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, size, size, size])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 1, WINDOW, WINDOW, WINDOW])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


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


def bright_study(folder: Path, *, seed: int = 0, **attributes: object) -> Ball:
    """Write such a study into a folder; other seeds are other studies."""
    phantom, ball = bright_phantom(seed=seed)
    write_series(phantom, folder, attributes=attributes)
    return ball
