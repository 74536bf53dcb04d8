"""The ONNX graph of a U-Net, written step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from weights import BuildError, Weights

OPSET = 17
IR_VERSION = 8

LEAK = 0.01  # slope of the leaky ReLU below zero
DEVIATION_FLOOR = 1e-7  # added to the deviation before dividing by it

Size: TypeAlias = tuple[int, ...]  # voxels along x, y, z


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """One convolution of stride 1."""

    kernel: Size
    features: int  # channels it gives


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A value that flows through the graph: float32, shape (N, channels, *size)."""

    name: str
    channels: int
    size: Size


class Graph:
    """Collects the nodes of an ONNX graph; each method adds one step and gives what comes out of it."""

    def __init__(self, weights: Weights, *, padded: bool) -> None:
        """Begin without nodes.

        Parameters
        ----------
        weights
            Each convolution takes the next.
        padded
            Convolutions keep the size, with zeros around ("same"), or lose the kernel's border ("valid").
        """
        self._weights = weights
        self._padded = padded
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._convolutions = 0

    def convolve(self, tensor: Tensor, convolution: Convolution) -> Tensor:
        """Convolve with the next weights."""
        self._convolutions += 1
        name = f"conv{self._convolutions}"
        extents = convolution.kernel
        kernel, bias = self._weights.take((*extents, tensor.channels, convolution.features))
        border = [extent // 2 if self._padded else 0 for extent in extents]
        lost = [extent - 1 - 2 * pad for extent, pad in zip(extents, border, strict=True)]
        return self._node(
            "Conv",
            tensor,
            self._constant(f"{name}.kernel", kernel),
            self._constant(f"{name}.bias", bias),
            size=tuple(have - gone for have, gone in zip(tensor.size, lost, strict=True)),
            channels=convolution.features,
            name=name,
            kernel_shape=extents,
            pads=border + border,
        )

    def activate(self, tensor: Tensor) -> Tensor:
        """Bring each channel of each sample to mean 0 and deviation 1, then bend it (leaky ReLU).

        The sums go axis by axis, which is why this is no InstanceNormalization. A channel has up to five million
        voxels, and most may hold the same value (air, or what lies outside the liver). Added one after the other in
        float32 each of them is rounded the same way, and the errors add up. Seen on parity.py's images:
        probabilities moved by up to 0.14 with ONNX Runtime's InstanceNormalization on a CPU, by up to 0.6 with
        TensorFlow's own float32 sums, and by 0.000035 as written here.
        """
        axes = (4, 3, 2)
        mean = tensor
        for axis in axes:
            mean = self._reduce("ReduceMean", mean, axis)
        centred = norm = self._node("Sub", tensor, mean.name)
        for axis in axes:
            norm = self._reduce("ReduceL2", norm, axis)
        voxels = math.prod(tensor.size)
        root = self._constant(f"root_of_{voxels}", np.array(math.sqrt(voxels), np.float32))
        floor = self._constant("deviation_floor", np.array(DEVIATION_FLOOR, np.float32))
        deviation = self._node("Div", norm, root)
        divisor = self._node("Add", deviation, floor)
        return self._node("LeakyRelu", self._node("Div", centred, divisor.name), alpha=LEAK)

    def shrink(self, tensor: Tensor, factor: int) -> Tensor:
        """Go to the coarser grid: the maximum of each block of factor x factor x factor voxels."""
        if any(extent % factor for extent in tensor.size):
            raise BuildError(f"{tensor.name} has {tensor.size} voxels: they make no whole blocks of {factor}")
        size = tuple(extent // factor for extent in tensor.size)
        cube = [factor] * 3
        return self._node("MaxPool", tensor, size=size, kernel_shape=cube, strides=cube)

    def repeat(self, tensor: Tensor, factor: int) -> Tensor:
        """Go to the finer grid: repeat each voxel along each axis."""
        size = tuple(extent * factor for extent in tensor.size)
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self._resize(tensor, size, [factor] * 3, modes)

    def interpolate(self, tensor: Tensor, factor: int) -> Tensor:
        """Go to the finer grid: interpolate linearly between voxels.

        The original repeats voxels and then takes the mean of ``factor`` neighbours, without padding. That is this
        interpolation, and it leaves what lies between the first and the last voxel of each axis.
        """
        size = tuple(factor * (extent - 1) + 1 for extent in tensor.size)
        # The next larger float, as the new size is the old one times the scale, rounded down. The values do not
        # depend on the scale here: with aligned corners they follow from the two sizes.
        ratios = [np.float32(want / have) for want, have in zip(size, tensor.size, strict=True)]
        scales = [float(np.nextafter(ratio, np.float32(np.inf))) for ratio in ratios]
        return self._resize(tensor, size, scales, {"mode": "linear", "coordinate_transformation_mode": "align_corners"})

    def crop(self, tensor: Tensor, size: Size) -> Tensor:
        """Keep the centre."""
        if tensor.size == size:
            return tensor
        margins = [have - want for have, want in zip(tensor.size, size, strict=True)]
        if any(margin < 0 or margin % 2 for margin in margins):
            raise BuildError(f"{tensor.name} has {tensor.size} voxels, which have no centre of {size}")
        starts = [margin // 2 for margin in margins]
        stops = [start + want for start, want in zip(starts, size, strict=True)]
        bounds = {f"{tensor.name}.starts": starts, f"{tensor.name}.stops": stops, "spatial_axes": [2, 3, 4]}
        names = [self._constant(name, np.array(values, np.int64)) for name, values in bounds.items()]
        return self._node("Slice", tensor, *names, size=size)

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """Put the channels of the second after those of the first."""
        return self._node("Concat", first, second.name, channels=first.channels + second.channels, axis=1)

    def add(self, first: Tensor, second: Tensor) -> Tensor:
        """Add two values of the same shape."""
        return self._node("Add", first, second.name)

    def sigmoid(self, tensor: Tensor, name: str) -> Tensor:
        """Give probabilities, as the value called ``name``."""
        return self._node("Sigmoid", tensor, name=name)

    def model(self, name: str, image: Tensor, answer: Tensor, origin: Mapping[str, str]) -> onnx.ModelProto:
        """Wrap the nodes, say where they come from, and let ONNX's own checker infer every shape again.

        Parameters
        ----------
        name
            Of the graph.
        image, answer
            What goes in and what comes out; N is free.
        origin
            Metadata of the file.

        Raises
        ------
        BuildError
            Weights were left over.
        """
        self._weights.finish()
        ends = [
            helper.make_tensor_value_info(end.name, TensorProto.FLOAT, ["N", end.channels, *end.size])
            for end in (image, answer)
        ]
        model = helper.make_model(
            helper.make_graph(self._nodes, name, ends[:1], ends[1:], initializer=list(self._constants.values())),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="overread models/ct-liver-lesion/build.py",
        )
        helper.set_model_props(model, dict(origin))
        onnx.checker.check_model(model, full_check=True)
        return model

    def _reduce(self, operator: str, tensor: Tensor, axis: int) -> Tensor:
        size = tuple(1 if place == axis else extent for place, extent in enumerate(tensor.size, start=2))
        return self._node(operator, tensor, size=size, axes=[axis], keepdims=1)

    def _resize(self, tensor: Tensor, size: Size, scales: list[float] | list[int], modes: dict[str, Any]) -> Tensor:
        # Scales and not sizes: before operator set 18 sizes would have to state N.
        constant = self._constant(f"{tensor.name}.scales", np.array([1, 1, *scales], np.float32))
        return self._node("Resize", tensor, "", constant, size=size, **modes)

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def _node(
        self,
        operator: str,
        tensor: Tensor,
        *others: str,
        size: Size | None = None,
        channels: int | None = None,
        name: str = "",
        **attributes: Any,
    ) -> Tensor:
        """Add a node that reads a tensor and others by name; what comes out has the tensor's shape unless told."""
        name = name or f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, [tensor.name, *others], [name], name=name, **attributes))
        return Tensor(name=name, channels=channels or tensor.channels, size=size or tensor.size)
