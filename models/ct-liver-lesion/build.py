"""Build the liver network and the liver lesion network as ONNX files.

The weights come from the wheel ``pyliverlesionseg`` 0.3 (KU Leuven, Apache-2.0), which holds them as two
Keras HDF5 files without the layers. The layers are written down here, so that neither TensorFlow nor Keras
is needed; ``parity.py`` beside this file compares the result with TensorFlow's own numbers.

    python build.py WHEEL MODELS_DIRECTORY

writes ``ct-liver/1/model.onnx`` and ``ct-liver-lesion/1/model.onnx`` under MODELS_DIRECTORY, the layout of a
Triton model repository. The same wheel always gives the same bytes.

Both networks are U-Nets over four grids. Arrays are float32 and channels first, (N, channel, x, y, z); N is
free, the rest is fixed.
"""

import argparse
import hashlib
import io
import math
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WHEEL_NAME = "pyliverlesionseg 0.3"
WHEEL_SHA256 = "ffe1576aefff5922ea8d1cfa2c50864cda97798798559542b9517689fd290cb8"
WHEEL_AUTHORS = "Xikai Tang and Georg Schramm, KU Leuven"
WHEEL_LICENCE = "Apache-2.0"

OPSET = 17
IR_VERSION = 8

LEAK = 0.01
"""Slope of the leaky ReLU below zero."""

DEVIATION_FLOOR = 1e-7
"""Added to the deviation before dividing by it."""

Size: TypeAlias = tuple[int, int, int]


class BuildError(Exception):
    """The wheel is not the expected one, or its weights do not fit the layers written here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """One convolution of stride 1."""

    kernel: Size  # voxels along x, y, z
    features: int  # channels it gives


@dataclass(frozen=True, slots=True, kw_only=True)
class Pathway:
    """The convolutions on one grid of the U-Net."""

    down: tuple[Convolution, ...]  # before the next coarser grid
    up: tuple[Convolution, ...]  # after it; empty on the coarsest grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What distinguishes one network from the other."""

    folder: str  # name of the model in the Triton repository
    title: str  # for people
    weights: str  # HDF5 file inside the wheel
    pathways: tuple[Pathway, ...]  # from the finest grid to the coarsest
    factor: int  # voxels along each axis of one grid that make one of the next coarser grid
    padded: bool  # convolutions keep the size, with zeros around ("same"), or lose the border ("valid")
    interpolated: bool  # back to the finer grid by linear interpolation, or by repeating voxels
    residual: bool  # each group of convolutions adds what went into it
    input_size: Size  # voxels along x, y, z
    output_size: Size  # voxels along x, y, z: the centre of the input
    voxel_mm: tuple[float, float, float]  # along x, y, z


def _pathways(coarsest: Size) -> tuple[Pathway, ...]:
    """Give the pathways, the same in both networks but for the first kernel on the coarsest grid."""
    flat, full = (3, 3, 1), (3, 3, 3)

    def grid(features: int) -> Pathway:
        return Pathway(
            down=(
                Convolution(kernel=flat, features=features),
                Convolution(kernel=full, features=2 * features),
            ),
            up=(
                Convolution(kernel=full, features=2 * features),
                Convolution(kernel=flat, features=features),
            ),
        )

    bottom = (Convolution(kernel=coarsest, features=160), Convolution(kernel=full, features=160))
    return grid(20), grid(40), grid(80), Pathway(down=bottom, up=())


LIVER = Network(
    folder="ct-liver",
    title="Liver in CT",
    weights="pyliverlesionseg/trained_models/model_unet_ct_mr_liv_seg_resize_1.5mm_med_3_resize_3mm_20201011"
    "_dice_loss_val_binary_dice_mean.hdf5",
    pathways=_pathways(coarsest=(3, 3, 3)),
    factor=3,
    padded=True,
    interpolated=True,
    residual=False,
    input_size=(189, 162, 162),
    output_size=(163, 136, 136),
    voxel_mm=(3.0, 3.0, 3.0),
)

LESION = Network(
    folder="ct-liver-lesion",
    title="Liver lesions in CT",
    weights="pyliverlesionseg/trained_models/model_unet_ct_mr_lesion_seg_resize_1mm_1mm_3mm_20220207"
    "_dice_loss_val_binary_dice_mean.hdf5",
    pathways=_pathways(coarsest=(3, 3, 1)),
    factor=2,
    padded=False,
    interpolated=False,
    residual=True,
    input_size=(180, 172, 86),
    output_size=(92, 84, 42),
    voxel_mm=(1.0, 1.0, 3.0),
)


class Weights:
    """The weights in one HDF5 file, handed out once each, in the order in which Keras numbered them."""

    def __init__(self, file: h5py.File) -> None:
        """Read every array of the file.

        Parameters
        ----------
        file
            Holds ``conv3d_K/conv3d_K/kernel:0`` and ``.../bias:0`` for K from 1 up, float32, and
            ``header/voxel_size`` in mm along x, y, z.
        """
        self._arrays: dict[str, NDArray[np.float32]] = {}
        self._taken = 0

        def keep(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                self._arrays[name] = item[()]

        file.visititems(keep)
        voxel = self._arrays.pop("header/voxel_size", np.zeros(0, np.float32))
        self.voxel_mm = tuple(float(step) for step in voxel)

    def take(
        self, channels: int, convolution: Convolution
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give the next convolution its weights.

        Parameters
        ----------
        channels
            Channels that go into the convolution.
        convolution
            The layer that wants them.

        Returns
        -------
        kernel, bias
            Shapes (features, channels, x, y, z), as ONNX has it, and (features,). Keras keeps
            (x, y, z, channels, features).
        """
        self._taken += 1
        layer = f"conv3d_{self._taken}"
        kernel = self._pop(f"{layer}/{layer}/kernel:0", (*convolution.kernel, channels, convolution.features))
        bias = self._pop(f"{layer}/{layer}/bias:0", (convolution.features,))
        return np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2)), bias

    def finish(self) -> None:
        """Refuse weights that no layer took."""
        if self._arrays:
            left = ", ".join(sorted(self._arrays))
            raise BuildError(
                f"{self._taken} convolutions took their weights, but these were left over: {left}"
            )

    def _pop(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        array = self._arrays.pop(name, None)
        if array is None:
            raise BuildError(f"the network has a convolution {self._taken}, but the weights hold no {name}")
        if array.shape != shape or array.dtype != np.float32:
            raise BuildError(f"{name} is {array.dtype} {array.shape}; the layer needs float32 {shape}")
        if not np.isfinite(array).all():
            raise BuildError(f"{name} holds values that are not finite")
        return array


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A value that flows through the graph: float32, shape (N, channels, *size)."""

    name: str
    channels: int
    size: Size  # voxels along x, y, z


class Graph:
    """Collects the nodes of an ONNX graph; each method adds one step and gives what comes out of it."""

    def __init__(self, weights: Weights) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._weights = weights
        self._convolutions = 0

    def convolve(self, tensor: Tensor, convolution: Convolution, *, padded: bool) -> Tensor:
        """Convolve with the next weights; padded keeps the size, otherwise the kernel's border is lost."""
        self._convolutions += 1
        name = f"conv{self._convolutions}"
        kernel, bias = self._weights.take(tensor.channels, convolution)
        inputs = [tensor.name, self._constant(f"{name}.kernel", kernel), self._constant(f"{name}.bias", bias)]
        border = [extent // 2 if padded else 0 for extent in convolution.kernel]
        size = [
            extent + 2 * pad - kernel_extent + 1
            for extent, pad, kernel_extent in zip(tensor.size, border, convolution.kernel, strict=True)
        ]
        attributes = {"kernel_shape": list(convolution.kernel), "pads": border + border}
        return self._node("Conv", inputs, _size(size), convolution.features, name=name, **attributes)

    def activate(self, tensor: Tensor) -> Tensor:
        """Bring each channel of each sample to mean 0 and deviation 1, then bend it (leaky ReLU).

        The sums go axis by axis, which is why this is no InstanceNormalization. A channel has up to five
        million voxels, and most may hold the same value (air, or what lies outside the liver). Added one
        after the other in float32 each of them is rounded the same way, and the errors add up. Seen on
        parity.py's images: probabilities moved by up to 0.14 with ONNX Runtime's InstanceNormalization on a
        CPU, by up to 0.6 with TensorFlow's own float32 sums, and by 0.000035 as written here.
        """
        axes = (4, 3, 2)
        mean = tensor
        for axis in axes:
            mean = self._reduce("ReduceMean", mean, axis)
        centred = norm = self._node("Sub", [tensor.name, mean.name], tensor.size, tensor.channels)
        for axis in axes:
            norm = self._reduce("ReduceL2", norm, axis)
        voxels = math.prod(tensor.size)
        root = self._constant(f"root_of_{voxels}", np.array(math.sqrt(voxels), np.float32))
        floor = self._constant("deviation_floor", np.array(DEVIATION_FLOOR, np.float32))
        deviation = self._node("Div", [norm.name, root], norm.size, norm.channels)
        divisor = self._node("Add", [deviation.name, floor], norm.size, norm.channels)
        normal = self._node("Div", [centred.name, divisor.name], tensor.size, tensor.channels)
        return self._node("LeakyRelu", [normal.name], tensor.size, tensor.channels, alpha=LEAK)

    def shrink(self, tensor: Tensor, factor: int) -> Tensor:
        """Go to the coarser grid: the maximum of each block of factor x factor x factor voxels."""
        if any(extent % factor for extent in tensor.size):
            raise BuildError(f"{tensor.name} has {tensor.size} voxels: they make no whole blocks of {factor}")
        size = _size([extent // factor for extent in tensor.size])
        cube = [factor] * 3
        return self._node("MaxPool", [tensor.name], size, tensor.channels, kernel_shape=cube, strides=cube)

    def repeat(self, tensor: Tensor, factor: int) -> Tensor:
        """Go to the finer grid: repeat each voxel along each axis."""
        size = _size([extent * factor for extent in tensor.size])
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self._resize(tensor, size, [float(factor)] * 3, modes)

    def interpolate(self, tensor: Tensor, factor: int) -> Tensor:
        """Go to the finer grid: interpolate linearly between voxels.

        The original repeats voxels and then takes the mean of ``factor`` neighbours, without padding. That
        is this interpolation, and it leaves what lies between the first and the last voxel of each axis.
        """
        size = _size([factor * (extent - 1) + 1 for extent in tensor.size])
        # The next larger float, as the new size is the old one times the scale, rounded down. The values do
        # not depend on the scale here: with aligned corners they follow from the two sizes.
        ratios = [np.float32(want / have) for want, have in zip(size, tensor.size, strict=True)]
        scales = [float(np.nextafter(ratio, np.float32(np.inf))) for ratio in ratios]
        modes = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
        return self._resize(tensor, size, scales, modes)

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
        inputs = [self._constant(name, np.array(values, np.int64)) for name, values in bounds.items()]
        return self._node("Slice", [tensor.name, *inputs], size, tensor.channels)

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """Put the channels of the second after those of the first."""
        names = [first.name, second.name]
        return self._node("Concat", names, first.size, first.channels + second.channels, axis=1)

    def add(self, first: Tensor, second: Tensor) -> Tensor:
        """Add two values of the same shape."""
        return self._node("Add", [first.name, second.name], first.size, first.channels)

    def sigmoid(self, tensor: Tensor, name: str) -> Tensor:
        """Give probabilities, as the value called ``name``."""
        return self._node("Sigmoid", [tensor.name], tensor.size, tensor.channels, name=name)

    def _reduce(self, operator: str, tensor: Tensor, axis: int) -> Tensor:
        extents = list(tensor.size)
        extents[axis - 2] = 1
        return self._node(operator, [tensor.name], _size(extents), tensor.channels, axes=[axis], keepdims=1)

    def _resize(self, tensor: Tensor, size: Size, scales: Sequence[float], modes: dict[str, str]) -> Tensor:
        # Scales and not sizes: before operator set 18 sizes would have to state N.
        constant = self._constant(f"{tensor.name}.scales", np.array([1.0, 1.0, *scales], np.float32))
        return self._node("Resize", [tensor.name, "", constant], size, tensor.channels, **modes)

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def _node(
        self,
        operator: str,
        inputs: Sequence[str],
        size: Size,
        channels: int,
        name: str = "",
        **attributes: Any,
    ) -> Tensor:
        name = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return Tensor(name=name, channels=channels, size=size)


def _size(extents: Sequence[int]) -> Size:
    """Make a sequence of three a Size."""
    x, y, z = extents
    return x, y, z


def _group(
    graph: Graph,
    tensor: Tensor,
    convolutions: Sequence[Convolution],
    network: Network,
    *,
    is_first: bool = False,
) -> Tensor:
    """Add the convolutions on one grid, in one direction, and the way around them where there is one.

    Parameters
    ----------
    graph
        Grows by the group.
    tensor
        What goes in.
    convolutions
        One after the other, each preceded by normalisation and activation.
    network
        Says how.
    is_first
        The group reads the image itself, which is neither normalised nor bent.

    Returns
    -------
    tensor
        What comes out: neither normalised nor bent.
    """
    shortcut = tensor
    for number, convolution in enumerate(convolutions):
        if not (is_first and number == 0):
            tensor = graph.activate(tensor)
        tensor = graph.convolve(tensor, convolution, padded=network.padded)
    if not network.residual:
        return tensor
    shortcut = graph.crop(shortcut, tensor.size)
    if shortcut.channels != tensor.channels:
        one = Convolution(kernel=(1, 1, 1), features=tensor.channels)
        shortcut = graph.convolve(shortcut, one, padded=False)
    return graph.add(tensor, shortcut)


def convert(network: Network, file: h5py.File) -> onnx.ModelProto:
    """Put the layers and their weights together.

    Parameters
    ----------
    network
        The layers.
    file
        Keras's weights for them.

    Returns
    -------
    model
        Input ``input``, (N, 1, x, y, z) of the network's input size; output ``probability``, (N, 1, x, y, z)
        of its output size, from 0 to 1, for the centre of the input. Both float32.

    Raises
    ------
    BuildError
        Layers and weights do not fit.
    """
    weights = Weights(file)
    if weights.voxel_mm != network.voxel_mm:
        raise BuildError(
            f"weights for voxels of {weights.voxel_mm} mm; {network.folder} has {network.voxel_mm}"
        )
    graph = Graph(weights)
    tensor = Tensor(name="input", channels=1, size=network.input_size)

    finer: list[Tensor] = []
    for depth, pathway in enumerate(network.pathways):
        if depth:
            finer.append(tensor)
            tensor = graph.shrink(tensor, network.factor)
        tensor = _group(graph, tensor, pathway.down, network, is_first=depth == 0)

    # Where two grids lie half a voxel apart the original averages neighbours before it joins them. Odd
    # kernels and these factors never do that: every crop here has an even margin, which Graph.crop holds.
    for pathway in reversed(network.pathways[:-1]):
        enlarge = graph.interpolate if network.interpolated else graph.repeat
        tensor = enlarge(tensor, network.factor)
        tensor = graph.join(graph.crop(finer.pop(), tensor.size), tensor)
        tensor = _group(graph, tensor, pathway.up, network)

    tensor = graph.activate(tensor)
    tensor = graph.convolve(tensor, Convolution(kernel=(1, 1, 1), features=1), padded=False)
    tensor = graph.sigmoid(tensor, "probability")
    weights.finish()
    if tensor.size != network.output_size:
        raise BuildError(f"the layers give {tensor.size} voxels; {network.folder} has {network.output_size}")
    return _model(network, graph)


def _model(network: Network, graph: Graph) -> onnx.ModelProto:
    """Wrap the nodes, say where they come from, and let ONNX's own checker infer every shape again."""
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            network.folder,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, *network.input_size])],
            [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 1, *network.output_size])],
            initializer=list(graph.constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="overread models/ct-liver-lesion/build.py",
    )
    origin = {
        "name": network.folder,
        "title": network.title,
        "version": WHEEL_NAME.split()[-1],
        "licence": WHEEL_LICENCE,
        "authors": WHEEL_AUTHORS,
        "source": f"wheel {WHEEL_NAME}, SHA-256 {WHEEL_SHA256}",
        "weights": network.weights,
        "axes": "N, channel, x, y, z; x runs to the patient's right, y to the front, z to the head",
        "voxel_mm": " ".join(map(str, network.voxel_mm)),
        "values": "2.5 * clip(HU / 1000, -0.2, 0.2)",
    }
    helper.set_model_props(model, origin)
    onnx.checker.check_model(model, full_check=True)
    return model


def open_wheel(wheel: Path) -> zipfile.ZipFile:
    """Open the wheel, and no other.

    Parameters
    ----------
    wheel
        The file of ``pyliverlesionseg`` 0.3.

    Returns
    -------
    archive
        Its files.

    Raises
    ------
    BuildError
        It is another file.
    """
    packed = wheel.read_bytes()
    digest = hashlib.sha256(packed).hexdigest()
    if digest != WHEEL_SHA256:
        raise BuildError(f"{wheel.name} has SHA-256 {digest}; {WHEEL_NAME} has {WHEEL_SHA256}")
    return zipfile.ZipFile(io.BytesIO(packed))


def build(wheel: Path, models: Path) -> list[Path]:
    """Write both networks.

    Parameters
    ----------
    wheel
        The file of ``pyliverlesionseg`` 0.3.
    models
        The model repository; folders that are missing are made.

    Returns
    -------
    written
        The two ONNX files: liver, lesion.

    Raises
    ------
    BuildError
        It is another wheel, or its weights do not fit the layers.
    """
    written = []
    with open_wheel(wheel) as archive:
        for network in (LIVER, LESION):
            with h5py.File(io.BytesIO(archive.read(network.weights)), "r") as file:
                model = convert(network, file)
            target = models / network.folder / "1" / "model.onnx"
            target.parent.mkdir(parents=True, exist_ok=True)
            # Whole or not at all: a server may be watching the repository.
            partial = target.with_suffix(".partial")
            partial.write_bytes(model.SerializeToString(deterministic=True))
            partial.replace(target)
            written.append(target)
    return written


def main() -> int:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description="Write the liver and liver lesion networks as ONNX files.")
    parser.add_argument("wheel", type=Path, help=f"the wheel of {WHEEL_NAME}")
    parser.add_argument("models", type=Path, help="the model repository to write into")
    arguments = parser.parse_args()
    try:
        for path in build(arguments.wheel, arguments.models):
            print(path)
    except (BuildError, OSError) as problem:
        print(f"build.py: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
