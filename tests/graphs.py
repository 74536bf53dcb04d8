"""Networks of a few nodes that do what a test needs: answer, never end, want too much memory, break the contract."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from service.stage import Tensor
from service.types import Network

EDGE = 4
TREES = "ai.onnx.ml"  # the domain of the operators for decision trees
INPUT = Tensor(name="image", shape=(EDGE, EDGE))
OUTPUT = Tensor(name="map", shape=(EDGE, EDGE))
FREE: list[int | str] = ["N", 1, EDGE, EDGE]

Values = dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.generic]]"]


def network_of(file: Path, *, input: Tensor = INPUT, outputs: tuple[Tensor, ...] = (OUTPUT,)) -> Network:
    """The network in a file, as ``model.toml`` would describe it."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "0" * 64
    name = file.parent.parent.name
    return Network(name=name, file=file, sha256=digest, input=input, outputs=outputs, half_precision=False)


def write_network(
    models: Path,
    name: str,
    nodes: Sequence[NodeProto],
    constants: Values | None = None,
    *,
    inputs: dict[str, tuple[int, list[int | str]]] | None = None,
    outputs: dict[str, tuple[int, list[int | str]]] | None = None,
    opset: int = 17,
    ir_version: int = 9,
) -> Path:
    """Write a network into its folder; its tensors are by default one image and one map."""
    sides = (inputs or {"image": (TensorProto.FLOAT, FREE)}, outputs or {"map": (TensorProto.FLOAT, FREE)})
    reads, answers = (
        [helper.make_tensor_value_info(tensor, kind, shape) for tensor, (kind, shape) in tensors.items()]
        for tensors in sides
    )
    kept = [numpy_helper.from_array(np.asarray(value), constant) for constant, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, name, reads, answers, kept)
    file = models / name / "1" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(TREES, 3)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    file.write_bytes(made.SerializeToString())
    return file


def doubling(models: Path, name: str = "doubling") -> Network:
    """Answers with twice the image."""
    return network_of(write_network(models, name, [helper.make_node("Add", ["image", "image"], ["map"])]))


def counting(models: Path, name: str = "counting", *, turns: int = 0) -> Network:
    """Answers with the image, after as many turns of a loop as the image's greatest value says, and `turns` more.

    A value of 1e18 never ends; ten million are some seconds.
    """
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["greatest"], keepdims=0),
        helper.make_node("Cast", ["greatest"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Add", ["whole", "more"], ["turns"]),
        helper.make_node("Loop", ["turns", "", "image"], ["map"], body=_turn()),
    ]
    return network_of(write_network(models, name, nodes, {"more": np.array(turns, np.int64)}))


def greedy(models: Path, name: str = "greedy") -> Network:
    """Answers one patch with itself; for each further one it asks for a pebibyte."""
    nodes = [
        helper.make_node("Shape", ["image"], ["patches"], end=1),
        helper.make_node("Sub", ["patches", "one"], ["further"]),
        helper.make_node("Mul", ["further", "huge"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["much"]),
        helper.make_node("ReduceSum", ["much"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["image", "nothing"], ["map"]),
    ]
    constants: Values = {"one": np.array([1], np.int64), "huge": np.array([2**48], np.int64)}
    return network_of(write_network(models, name, nodes, constants))


def crashing(models: Path, name: str = "crashing", *, depth: int = 100_000) -> Network:
    """A decision tree so deep that ONNX Runtime 1.31, which climbs it by recursion, overflows its stack and dies."""
    leaves = [*range(depth, 2 * depth), 2 * depth]
    tree = helper.make_node(
        "TreeEnsembleRegressor",
        ["row"],
        ["map"],
        domain=TREES,
        n_targets=1,
        nodes_treeids=[0] * (2 * depth + 1),
        nodes_nodeids=list(range(2 * depth + 1)),
        nodes_featureids=[0] * (2 * depth + 1),
        nodes_modes=["BRANCH_LEQ"] * depth + ["LEAF"] * (depth + 1),
        nodes_values=[0.0] * (2 * depth + 1),
        nodes_truenodeids=[*range(1, depth), 2 * depth] + [0] * (depth + 1),
        nodes_falsenodeids=leaves[:depth] + [0] * (depth + 1),
        target_treeids=[0] * (depth + 1),
        target_nodeids=leaves,
        target_ids=[0] * (depth + 1),
        target_weights=[1.0] * (depth + 1),
    )
    nodes = [helper.make_node("Flatten", ["image"], ["row"]), tree]
    file = write_network(models, name, nodes, outputs={"map": (TensorProto.FLOAT, ["N", 1])})
    return network_of(file, outputs=(Tensor(name="map", shape=()),))


def _turn() -> GraphProto:
    value = helper.make_tensor_value_info
    return helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Identity", ["now"], ["then"])],
        "turn",
        [
            value("turn", TensorProto.INT64, []),
            value("on", TensorProto.BOOL, []),
            value("now", TensorProto.FLOAT, None),
        ],
        [value("still_on", TensorProto.BOOL, []), value("then", TensorProto.FLOAT, None)],
    )


def images(*values: float) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """An image of each value."""
    return [np.full(INPUT.dims, value, np.float32) for value in values]
