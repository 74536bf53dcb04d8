"""The filters of `build.py` as ONNX nodes: smoothing, curvature, greatest value in a neighbourhood, opening.

Images are [N, 1, D, H, W], float32. Nothing is padded: docstrings say how many voxels a filter loses at each side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Triple = tuple[int, int, int]

SIGMA = 1.2  # of the smoothing kernel, in voxels; applied twice it is the next half octave (1.2 x sqrt 2)
TAPS = 3  # the kernel's reach at each side, voxels


class Graph:
    """ONNX nodes in the making; every method returns the name of the value that it adds."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str | float, **attributes: Any) -> str:
        """Add one node; a number among the inputs becomes a float32 constant."""
        names = [value if isinstance(value, str) else self.constant(np.float32(value)) for value in inputs]
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], f"{kind}_{output}", **attributes))
        return output

    def constant(self, value: NDArray[np.generic] | np.generic) -> str:
        """Add a constant, once for equal values."""
        array = np.asarray(value)
        name = f"c_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(array, f"c{len(self.constants)}")
        return self.constants[name].name

    def window(self, value: str, start: Sequence[int], stop: Sequence[int]) -> str:
        """Cut a box out of the three spatial axes; a stop of 0 means the end."""
        last = np.iinfo(np.int64).max
        ends = np.array([end or last for end in stop], np.int64)
        axes = self.constant(np.array([2, 3, 4], np.int64))
        return self.op("Slice", value, self.constant(np.array(start, np.int64)), self.constant(ends), axes)

    def crop(self, value: str, margin: int | Sequence[int]) -> str:
        """Drop `margin` voxels at every side, or per axis at both of its sides."""
        z, y, x = (margin,) * 3 if isinstance(margin, int) else margin
        return self.window(value, (z, y, x), (-z, -y, -x)) if z or y or x else value

    def shifted(self, value: str, *steps: int) -> str:
        """Neighbours one voxel away: the inner box (one voxel dropped at every side), moved by -1, 0 or 1 per axis."""
        return self.window(value, [step + 1 for step in steps], [step - 1 for step in steps])

    def flag(self, kind: str, value: str, limit: float) -> str:
        """1 where the value is `kind` ("Less", "Greater") than the limit, else 0."""
        return self.op("Cast", self.op(kind, value, limit), to=TensorProto.FLOAT)

    def chance(self, value: str, even: float, softness: float) -> str:
        """0..1: one half at `even`, 0.73 at one `softness` above."""
        return self.op("Sigmoid", self.op("Mul", self.op("Sub", value, even), 1 / softness))

    def total(self, *values: str) -> str:
        """Sum of the values (a chain of Add: faster here than the one node Sum)."""
        return reduce(lambda left, right: self.op("Add", left, right), values)


def kernel() -> NDArray[np.float32]:
    """Gaussian of `SIGMA`, cut at `TAPS` and normalised to sum 1."""
    taps = np.exp(-0.5 * (np.arange(-TAPS, TAPS + 1) / SIGMA) ** 2)
    return np.asarray(taps / taps.sum(), np.float32)


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
        sides = [graph.shifted(value, *(sign * step for step in unit[one])) for sign in (1, -1)]
        own.append(graph.op("Sub", double, graph.total(*sides)))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        corners = {
            (i, j): graph.shifted(value, *(i * a + j * b for a, b in zip(unit[one], unit[other], strict=True)))
            for i in (1, -1)
            for j in (1, -1)
        }
        equal = graph.total(corners[1, 1], corners[-1, -1])
        unequal = graph.total(corners[1, -1], corners[-1, 1])
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
    twice = graph.op("Mul", graph.op("Mul", d, e), graph.op("Add", f, f))
    down = graph.op("Sub", twice, graph.op("Mul", a, f2))
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
    lost = [int(axis in axes) for axis in range(3)]
    parts = [graph.crop(value, lost)]
    for axis in axes:
        for step in (-1, 1):
            start, stop = list(lost), [-n for n in lost]
            start[axis] += step
            stop[axis] += step
            parts.append(graph.window(value, start, stop))
    return graph.op("Max", *parts)


def opened(graph: Graph, value: str, reach: Triple, axes: tuple[int, ...]) -> str:
    """Grey-value opening: what does not hold the shape of `rounded` is pared down; its reach is lost twice over."""
    pared = graph.op("Neg", rounded(graph, graph.op("Neg", value), reach, axes))
    return rounded(graph, pared, reach, axes)
