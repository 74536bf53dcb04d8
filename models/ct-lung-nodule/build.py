"""Build the detector of solid lung nodules as one ONNX graph: `python build.py MODELS_DIRECTORY`.

The graph is written down, not trained: a blob is soft tissue that curves inwards along *all three* axes, a vessel does
so along two and a pleura or fissure along one. So the least of the three curvatures (eigenvalues of the Hessian matrix
at the scale of the blob) is high at a nodule and near zero at what nodules are mistaken for. `card.md` names the
sources of the idea and what was measured.
"""

from __future__ import annotations

import sys
from functools import reduce
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

NAME = "ct-lung-nodule"
OUTPUT = (96, 96, 96)  # voxels of 1 mm along z, y, x of what a patch answers for
CONTEXT = (80, 56, 56)  # voxels more at each side of the input, for the deepest level and the capsule to see
INPUT = tuple(out + 2 * more for out, more in zip(OUTPUT, CONTEXT, strict=True))

# The input is clip(HU, -1000, 100), moved and scaled to 0 (air) ... 1 (soft tissue and all that is denser); lung has 0.14.
LUNG = 1 / 11  # -900 HU: thinner than any lung, so that noise in air is no structure
TISSUE = 0.5  # -400 HU, half way from lung to tissue: where a nodule ends
EDGE = 2.5  # slope of the mask's edge: from 0 to 1 within 400 HU, so that the edge survives resampling

SIGMA = 1.2  # of the smoothing kernel, in voxels of a level; applied twice it is the next half octave (1.2 x sqrt 2)
TAPS = 3  # the kernel's reach at each side, voxels
# Per level (voxels of 1, 2, 4, 8 mm) and smoothing: the least curvature that makes an even chance of a nodule, where a
# perfect sphere of the matching radius (sqrt 3 times the scale) has 1. Small scales ask for more: vessels live there.
EVEN = ((0.40, 0.37), (0.32, 0.28), (0.25, 0.25), (0.22,))
SOFTNESS = 0.04  # curvature from an even chance to a chance of 0.73
REACH = (2, 3)  # how far a nodule extends around its centre, voxels of the level, per smoothing
CAPSULE = (7, 2, 2)  # what heart, wall and liver hold, voxels of 4 mm: 60 mm high, 28 mm across
ROOM = 0.03  # thinner than -967 HU: the air of the room, which hems in nothing
BALL = (2, 2, 2)  # what a mass holds and a vessel does not, voxels of 4 mm: 28 mm across
MASS_EVEN = 0.55  # tissue (0..1) in such a ball that makes an even chance of a mass
MASS_SOFTNESS = 0.06
BODY = 0.3  # smoothed tissue below this is a vessel thinner than half the nodule: no part of it


Triple = tuple[int, int, int]


class Graph:
    """ONNX nodes in the making; every method returns the name of the value that it adds."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str | float, **attributes: object) -> str:
        """Add one node; a number among the inputs becomes a float32 constant."""
        names = [value if isinstance(value, str) else self.constant(np.float32(value)) for value in inputs]
        output = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, names, [output], name=f"{kind}_{len(self.nodes)}", **attributes)
        )
        return output

    def constant(self, value: NDArray[np.generic] | np.generic) -> str:
        """Add a constant, once for equal values."""
        array = np.asarray(value)
        name = f"c_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(array, f"c{len(self.constants)}")
        return self.constants[name].name

    def window(self, value: str, start: Triple, stop: Triple) -> str:
        """Cut a box out of the three spatial axes; a stop of 0 means the end."""
        last = np.iinfo(np.int64).max
        ends = np.array([end or last for end in stop], np.int64)
        axes = self.constant(np.array([2, 3, 4], np.int64))
        return self.op("Slice", value, self.constant(np.array(start, np.int64)), self.constant(ends), axes)

    def crop(self, value: str, margin: int | Triple) -> str:
        """Drop `margin` voxels at every side, or per axis at both of its sides."""
        z, y, x = (margin,) * 3 if isinstance(margin, int) else margin
        return self.window(value, (z, y, x), (-z, -y, -x)) if z or y or x else value

    def shifted(self, value: str, *steps: int) -> str:
        """Neighbours one voxel away: the inner box (one voxel dropped at every side), moved by -1, 0 or 1 per axis."""
        start = (1 + steps[0], 1 + steps[1], 1 + steps[2])
        stop = (steps[0] - 1, steps[1] - 1, steps[2] - 1)
        return self.window(value, start, stop)

    def total(self, *values: str) -> str:
        """Sum of the values (a chain of Add: faster here than the one node Sum)."""
        return reduce(lambda left, right: self.op("Add", left, right), values)


def kernel() -> NDArray[np.float32]:
    """Gaussian of `SIGMA`, cut at `TAPS` and normalised to sum 1."""
    taps = np.exp(-0.5 * (np.arange(-TAPS, TAPS + 1) / SIGMA) ** 2)
    return (taps / taps.sum()).astype(np.float32)


def unit_curvature(times: int) -> float:
    """Curvature, at the centre, of a sphere of tissue in air whose radius is sqrt 3 times the scale.

    Worked out with the very kernel and differences of the graph, so that cutting the kernel costs no calibration.

    Parameters
    ----------
    times
        How often the image is smoothed with `kernel`.
    """
    half = times * TAPS + 1
    axis = np.arange(-half, half + 1)
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    image = np.clip(np.sqrt(3 * times) * SIGMA - distance + 0.5, 0, 1)
    for _ in range(times):
        for direction in range(3):
            image = np.apply_along_axis(np.convolve, direction, image, kernel(), "valid")
    return float(2 * image[1, 1, 1] - image[0, 1, 1] - image[2, 1, 1])


def smoothed(graph: Graph, value: str) -> str:
    """Gaussian smoothing along the three axes; `TAPS` voxels are lost at every side."""
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 2 * TAPS + 1
        value = graph.op("Conv", value, graph.constant(kernel().reshape(shape)))
    return value


def largest_cosine(graph: Graph, value: str) -> str:
    """cos(acos(r) / 3) without trigonometry, which not every accelerator has.

    It is the root c in [1/2, 1] of 4 c^3 - 3 c = r: a guess exact at both ends, then two steps of Newton's.
    """
    bounded = graph.op("Clip", value, -1.0, 1.0)
    guess = graph.op("Sqrt", graph.op("Add", graph.op("Mul", bounded, 0.125), 0.125 + 1e-4))
    root = graph.op("Add", guess, 0.5)
    for _ in range(2):
        square = graph.op("Mul", root, root)
        above = graph.op("Add", graph.op("Mul", graph.op("Mul", square, root), 8.0), bounded)
        root = graph.op("Div", above, graph.op("Add", graph.op("Mul", square, 12.0), -3.0))
    return root


def least_curvature(graph: Graph, value: str) -> str:
    """Smallest eigenvalue of minus the Hessian matrix (closed form); one voxel is lost at every side."""
    middle = graph.shifted(value, 0, 0, 0)
    double = graph.op("Mul", middle, 2.0)
    unit = np.eye(3, dtype=int).tolist()
    own, mixed = [], []
    for one in range(3):
        sides = graph.total(
            graph.shifted(value, *unit[one]), graph.shifted(value, *(-step for step in unit[one]))
        )
        own.append(graph.op("Sub", double, sides))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        plus = [a + b for a, b in zip(unit[one], unit[other], strict=True)]
        minus = [a - b for a, b in zip(unit[one], unit[other], strict=True)]
        equal = graph.total(graph.shifted(value, *plus), graph.shifted(value, *(-step for step in plus)))
        unequal = graph.total(graph.shifted(value, *minus), graph.shifted(value, *(-step for step in minus)))
        mixed.append(graph.op("Mul", graph.op("Sub", unequal, equal), 0.25))
    return smallest_eigenvalue(graph, own, mixed)


def smallest_eigenvalue(graph: Graph, own: list[str], mixed: list[str]) -> str:
    """Smallest eigenvalue of symmetric 3 x 3 matrices.

    Parameters
    ----------
    own
        Diagonal elements 00, 11, 22.
    mixed
        Elements 01, 02, 12.
    """
    mean = graph.op("Mul", graph.total(*own), 1 / 3)
    a, b, c = (graph.op("Sub", element, mean) for element in own)
    d, e, f = mixed
    d2, e2, f2 = (graph.op("Mul", element, element) for element in mixed)
    squares = graph.total(*(graph.op("Mul", element, element) for element in (a, b, c)))
    spread2 = graph.op("Mul", graph.total(squares, *(graph.total(x, x) for x in (d2, e2, f2))), 1 / 6)
    spread = graph.op("Sqrt", graph.op("Add", spread2, 1e-12))
    down = graph.op(
        "Sub", graph.op("Mul", graph.op("Mul", d, e), graph.op("Add", f, f)), graph.op("Mul", a, f2)
    )
    cross = graph.total(graph.op("Mul", b, e2), graph.op("Mul", c, d2))
    determinant = graph.op("Add", graph.op("Mul", graph.op("Mul", a, b), c), graph.op("Sub", down, cross))
    cube = graph.op("Mul", graph.op("Add", spread2, 1e-12), spread)
    third = largest_cosine(graph, graph.op("Div", graph.op("Mul", determinant, -0.5), cube))
    return graph.op("Sub", mean, graph.op("Mul", graph.op("Mul", spread, third), 2.0))


def spread(graph: Graph, value: str, reach: Triple) -> str:
    """Maximum within a box that reaches so far at both sides, per axis; as many voxels are lost."""
    for axis in range(3):
        if reach[axis]:
            shape = [1, 1, 1]
            shape[axis] = 2 * reach[axis] + 1
            value = graph.op("MaxPool", value, kernel_shape=shape)
    return value


def rounded(graph: Graph, value: str, reach: Triple, axes: tuple[int, ...]) -> str:
    """Maximum within a box with its corners cut: the box, then the neighbours along `axes`."""
    value = spread(graph, value, reach)
    lost: Triple = (int(0 in axes), int(1 in axes), int(2 in axes))
    parts = [graph.crop(value, lost)]
    for axis in axes:
        for step in (-1, 1):
            start, stop = list(lost), [-n for n in lost]
            start[axis] += step
            stop[axis] += step
            parts.append(graph.window(value, (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])))
    return graph.op("Max", *parts)


def opened(graph: Graph, value: str, reach: Triple, axes: tuple[int, ...]) -> str:
    """Grey-value opening: what does not hold the shape of `rounded` is pared down; its reach is lost twice over."""
    pared = graph.op("Neg", rounded(graph, graph.op("Neg", value), reach, axes))
    return rounded(graph, pared, reach, axes)


def mass_chance(graph: Graph, image: str, whole: str) -> str:
    """Chance of a mass: tissue that holds a ball of `BALL` but no upright capsule of `CAPSULE`.

    A large tumour lies at the chest wall or the mediastinum and so is no blob to the curvatures. But it has lung above
    and below; wall, heart and liver have not, and vessels hold no such ball.

    Parameters
    ----------
    image
        [N, 1, D, H, W], tissue 0..1, voxels of 4 mm, z first and upright.
    """
    room = graph.op("Cast", graph.op("Less", whole, ROOM), to=TensorProto.FLOAT)
    skin = (0, 1, 1)
    solid = graph.op("Max", graph.crop(image, skin), spread(graph, room, skin))
    capsule = opened(graph, solid, CAPSULE, (1, 2))
    lost = tuple(2 * reach + 3 * (axis > 0) for axis, reach in enumerate(CAPSULE))
    within = graph.op("Sub", graph.crop(image, (lost[0], lost[1], lost[2])), capsule)
    mass = opened(graph, within, BALL, (0, 1, 2))
    left = [more // 4 - gone - 2 * (ball + 1) for more, gone, ball in zip(CONTEXT, lost, BALL, strict=True)]
    logit = graph.op(
        "Mul", graph.op("Sub", graph.crop(mass, (left[0], left[1], left[2])), MASS_EVEN), 1 / MASS_SOFTNESS
    )
    return graph.op("Sigmoid", logit)


def level_chance(graph: Graph, image: str, even: tuple[float, ...], context: Triple) -> str:
    """Chance of a nodule around each voxel of one level, the larger over its smoothings.

    Parameters
    ----------
    image
        [N, 1, D, H, W], tissue 0..1, voxels of the level.
    even
        Curvature of an even chance, per smoothing.
    context
        Voxels of the level to lose at every side.
    """
    chances = []
    lost = len(even) * TAPS + 1 + REACH[len(even) - 1]
    value = graph.crop(image, (context[0] - lost, context[1] - lost, context[2] - lost))
    for times, (threshold, reach) in enumerate(zip(even, REACH, strict=False), start=1):
        value = smoothed(graph, value)
        lost -= TAPS
        lean = graph.crop(value, lost - 1 - reach)
        curvature = graph.op("Mul", least_curvature(graph, lean), 1 / unit_curvature(times))
        logit = graph.op("Mul", graph.op("Sub", curvature, threshold), 1 / SOFTNESS)
        chance = spread(graph, graph.op("Sigmoid", logit), (reach, reach, reach))
        body = graph.op("Cast", graph.op("Greater", graph.crop(lean, 1 + reach), BODY), to=TensorProto.FLOAT)
        chances.append(graph.op("Mul", chance, body))
    return chances[0] if len(chances) == 1 else graph.op("Max", *chances)


def model() -> onnx.ModelProto:
    """The whole graph, checked."""
    graph = Graph()
    tissue = graph.op("Div", graph.op("Sub", "input", LUNG), 1 - LUNG)
    tissue = image = graph.op("Clip", tissue, 0.0, 1.0)
    whole = "input"
    chances = []
    for depth, even in enumerate(EVEN):
        size = 2**depth
        if depth:
            whole = graph.op("AveragePool", whole, kernel_shape=[2, 2, 2], strides=[2, 2, 2])
            image = graph.op("AveragePool", image, kernel_shape=[2, 2, 2], strides=[2, 2, 2])
        chance = level_chance(
            graph, image, even, (CONTEXT[0] // size, CONTEXT[1] // size, CONTEXT[2] // size)
        )
        if size == 4:
            chance = graph.op("Max", chance, mass_chance(graph, image, whole))
        if depth:
            scales = graph.constant(np.array([1, 1, size, size, size], np.float32))
            how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            chance = graph.op("Resize", chance, "", scales, **how)
        chances.append(chance)
    tissue = graph.op("Add", graph.op("Mul", graph.crop(tissue, CONTEXT), EDGE), 0.5 - EDGE * TISSUE)
    probability = graph.op("Min", graph.op("Clip", tissue, 0.0, 1.0), graph.op("Max", *chances))
    graph.nodes[-1].output[0] = "probability"
    assert probability != "probability"
    patch = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, *INPUT])
    answer = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 1, *OUTPUT])
    body = helper.make_graph(graph.nodes, NAME, [patch], [answer], list(graph.constants.values()))
    made = helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="overread",
        doc_string=__doc__,
    )
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
