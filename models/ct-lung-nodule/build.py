"""Build the detector of solid lung nodules as one ONNX graph: `python build.py MODELS_DIRECTORY`.

The graph is written down, not trained. A nodule is soft tissue that curves inwards along *all three* axes; a vessel
does so along two, a pleura or fissure along one. So the least of the three curvatures (eigenvalues of the Hessian
matrix at the nodule's scale) is high at a nodule and near zero at what nodules are mistaken for. A large tumour at the
chest wall is no such blob; it is told by the lung above and below it. `card.md` names the sources and the figures.

Everything is computed without padding, at 1, 2, 4 and 8 mm: windows whose starts differ by multiples of 8 voxels agree
where they overlap. A program that imports this file puts its folder first in `sys.path`, for `filters`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from filters import TAPS, Graph, least_curvature, opened, smoothed, spread, unit_curvature
from onnx import TensorProto, helper

NAME = "ct-lung-nodule"
OUTPUT = (96, 96, 96)  # voxels of 1 mm along z, y, x of what a patch answers for
CONTEXT = (80, 56, 56)  # voxels more at each side of the input, for the deepest level and the capsule to see
INPUT = tuple(out + 2 * more for out, more in zip(OUTPUT, CONTEXT, strict=True))

# The input is clip(HU, -1100, 100), moved and scaled to 0 (beyond the scan) ... 1 (soft tissue and all that is denser).
BEYOND = 0.02  # thinner than any CT number of air: the -1100 HU that stand beyond the scan
LUNG = 1 / 6  # -900 HU: thinner than any lung, so that noise in air is no structure
TISSUE = 0.5  # -400 HU, half way from lung to tissue: where a nodule ends
EDGE = 2.5  # slope of the mask's edge: from 0 to 1 within 400 HU, so that the edge survives resampling

# Per level (voxels of 1, 2, 4, 8 mm) and smoothing: the least curvature that makes an even chance of a nodule, where a
# perfect sphere of the matching radius (sqrt 3 times the scale) has 1. Small scales ask for more: vessels live there.
EVEN = ((0.38, 0.36), (0.34, 0.32), (0.28, 0.27), (0.24,))
SOFTNESS = 0.04  # curvature from an even chance to a chance of 0.73
REACH = (2, 3)  # how far a nodule extends around its centre, voxels of the level, per smoothing
CAPSULE = (7, 2, 2)  # what heart, wall and liver hold, voxels of 4 mm: 60 mm high, 28 mm across
ROOM = 0.11  # thinner than -968 HU: the air of the room, which hems in nothing
BALL = (2, 2, 2)  # what a mass holds and a vessel does not, voxels of 4 mm: 28 mm across
MASS_EVEN = 0.45  # tissue (0..1) in such a ball that makes an even chance of a mass
MASS_SOFTNESS = 0.06
BODY = 0.3  # smoothed tissue below this is a vessel thinner than half the nodule: no part of it


def mass_chance(graph: Graph, image: str, whole: str) -> str:
    """Chance of a mass: tissue that holds a ball of `BALL` but no upright capsule of `CAPSULE`.

    A large tumour lies at the chest wall or the mediastinum and so is no blob to the curvatures. But it has lung above
    and below; wall, heart and liver have not, and vessels hold no such ball.

    Parameters
    ----------
    image
        [N, 1, D, H, W], tissue 0..1, voxels of 4 mm, z first and upright.
    whole
        The same grid and the room's air told from lung: as the graph's input.
    """
    room = graph.flag("Less", whole, ROOM)
    # Where room and skin share a voxel it looks like lung: the room reaches one voxel further in the slice.
    skin = (0, 1, 1)
    solid = graph.op("Max", graph.crop(image, skin), spread(graph, room, skin))
    capsule = opened(graph, solid, CAPSULE, (1, 2))
    lost = [2 * reach + 3 * (axis > 0) for axis, reach in enumerate(CAPSULE)]
    mass = opened(graph, graph.op("Sub", graph.crop(image, lost), capsule), BALL, (0, 1, 2))
    left = [more // 4 - gone - 2 * (ball + 1) for more, gone, ball in zip(CONTEXT, lost, BALL, strict=True)]
    return graph.chance(graph.crop(mass, left), MASS_EVEN, MASS_SOFTNESS)


def level_chance(graph: Graph, image: str, beyond: str, even: tuple[float, ...], size: int) -> str:
    """Chance of a nodule around each voxel of one level, the largest over its smoothings.

    Parameters
    ----------
    image
        [N, 1, D, H, W], tissue 0..1, voxels of the level, `CONTEXT` at each side.
    beyond
        The same grid, 1 beyond the scan: a vessel cut by the scan's end looks round there and is not judged.
    even
        Curvature of an even chance, per smoothing.
    size
        A voxel's edge, mm.
    """
    chances = []
    left = len(even) * TAPS + 1 + REACH[len(even) - 1]  # voxels at each side that are still to be lost
    value = graph.crop(image, [more // size - left for more in CONTEXT])
    for times, (threshold, reach) in enumerate(zip(even, REACH, strict=False), start=1):
        value = smoothed(graph, value)
        left -= TAPS
        here = graph.crop(value, left - 1 - reach)
        curvature = graph.op("Mul", least_curvature(graph, here), 1 / unit_curvature(times))
        near = spread(graph, graph.crop(beyond, [more // size - 2 * reach - 1 for more in CONTEXT]), (reach + 1,) * 3)
        seed = graph.op("Mul", graph.chance(curvature, threshold, SOFTNESS), graph.op("Sub", 1.0, near))
        body = graph.flag("Greater", graph.crop(here, 1 + reach), BODY)
        chances.append(graph.op("Mul", spread(graph, seed, (reach,) * 3), body))
    return graph.op("Max", *chances)


def model() -> onnx.ModelProto:
    """The whole graph, checked."""
    graph = Graph()
    whole = "input"
    tissue = graph.op("Clip", graph.op("Mul", graph.op("Sub", whole, LUNG), 1 / (1 - LUNG)), 0.0, 1.0)
    image, beyond = tissue, graph.flag("Less", whole, BEYOND)
    halved = {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}
    chances = []
    for depth, even in enumerate(EVEN):
        size = 2**depth
        if depth:
            whole, image = graph.op("AveragePool", whole, **halved), graph.op("AveragePool", image, **halved)
            beyond = graph.op("MaxPool", beyond, **halved)
        chance = level_chance(graph, image, beyond, even, size)
        if size == 4:
            chance = graph.op("Max", chance, mass_chance(graph, image, whole))
        if depth:
            scales = graph.constant(np.array([1, 1, size, size, size], np.float32))
            how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            chance = graph.op("Resize", chance, "", scales, **how)
        chances.append(chance)
    edge = graph.op("Mul", graph.op("Sub", graph.crop(tissue, CONTEXT), TISSUE - 0.5 / EDGE), EDGE)
    graph.op("Min", graph.op("Clip", edge, 0.0, 1.0), graph.op("Max", *chances))
    graph.nodes[-1].output[0] = "probability"
    patch = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, *INPUT])
    answer = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 1, *OUTPUT])
    body = helper.make_graph(graph.nodes, NAME, [patch], [answer], list(graph.constants.values()))
    opset = [helper.make_opsetid("", 17)]
    made = helper.make_model(body, opset_imports=opset, ir_version=8, producer_name="overread")
    onnx.checker.check_model(made, full_check=True)
    return made


def build(models: Path) -> list[Path]:
    """Write `models`/ct-lung-nodule/1/model.onnx; the same bytes every time.

    Parameters
    ----------
    models
        The model repository's folder.

    Returns
    -------
    list[Path]
        The files written.
    """
    path = models / NAME / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model().SerializeToString(deterministic=True))
    return [path]


if __name__ == "__main__":
    print(*build(Path(sys.argv[1])), sep="\n")
