"""Tiny ONNX files that crop the middle of a patch, right and wrong, for one set of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

Size = int | str


def write_crop(
    file: Path,
    *,
    size: Sequence[Size] = ("N", 1, 24, 24, 24),
    answer: Sequence[Size] = ("N", 1, 16, 16, 16),
    names: tuple[str, str] = ("input", "probability"),
    kinds: tuple[int, int] = (TensorProto.FLOAT, TensorProto.FLOAT),
    opset: int = 17,
    second_input: bool = False,
) -> Path:
    """Write a network that crops the middle; unchecked, so that it may be any of the mistakes that are asked for."""
    file.parent.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("Slice", [names[0], "starts", "ends", "axes"], ["middle"]),
        helper.make_node("Cast", ["middle"], [names[1]], to=kinds[1]),
    ]
    constants = {"starts": [4, 4, 4], "ends": [20, 20, 20], "axes": [2, 3, 4]}
    inputs = [helper.make_tensor_value_info(names[0], kinds[0], list(size))]
    if second_input:
        inputs.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", 1]))
    graph = helper.make_graph(
        nodes,
        "crop",
        inputs,
        [helper.make_tensor_value_info(names[1], kinds[1], list(answer))],
        [helper.make_tensor(name, TensorProto.INT64, [3], values) for name, values in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(made, str(file))
    return file
