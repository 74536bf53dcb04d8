"""Models whose networks take their time, never end, or ask for more memory than there is: real graphs, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.toys import write_model


def write_slow_model(models: Path, name: str = "slow", *, rounds: int = 500) -> Path:
    """The toy that finds bright balls, but it multiplies matrices before each answer (500 rounds: about 0.2 s)."""
    return _delay(write_model(models, name), rounds, rounds)


def write_hanging_model(models: Path, name: str = "hanging") -> Path:
    """One that never ends once there is a bright ball in its window."""
    return _delay(write_model(models, name), 1, 10**15)


def write_greedy_model(models: Path, name: str = "greedy") -> Path:
    """One that asks for 40 TB once there is a bright ball in its window."""
    folder = write_model(models, name)
    path = folder / "1" / "model.onnx"
    model = onnx.load(str(path))
    (answer,) = model.graph.output
    last = next(node for node in model.graph.node if answer.name in node.output)
    last.output[list(last.output).index(answer.name)] = "answer_without_greed"
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["input"], ["brightest"], keepdims=0),
            helper.make_node("Greater", ["brightest", "bright"], ["is_bright"]),
            helper.make_node("Where", ["is_bright", "everything", "little"], ["wanted"]),
            helper.make_node("ConstantOfShape", ["wanted"], ["taken"]),
            helper.make_node("ReduceMax", ["taken"], ["nil"], keepdims=0),
            helper.make_node("Add", ["answer_without_greed", "nil"], [answer.name]),
        ]
    )
    constants: dict[str, Any] = {
        "bright": np.array(0.65, np.float32),
        "everything": np.array([10**13], np.int64),
        "little": np.array([1], np.int64),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, key) for key, value in constants.items())
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return folder


def _delay(folder: Path, rounds: int, rounds_if_bright: int) -> Path:
    """Let a network's answer wait for a loop of so many rounds."""
    path = folder / "1" / "model.onnx"
    model = onnx.load(str(path))
    side = 384
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "state"], ["squared"]),
            helper.make_node("Clip", ["squared", "zero", "one"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [side, side]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [side, side]),
        ],
    )
    constants: dict[str, Any] = {
        "dark_rounds": np.array(rounds, np.int64),
        "bright_rounds": np.array(rounds_if_bright, np.int64),
        "bright": np.array(0.65, np.float32),
        "always": np.array(True),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "nothing": np.array(0, np.float32),
        "seed": np.random.default_rng(0).random((side, side), np.float32),
    }
    (answer,) = model.graph.output
    last = next(node for node in model.graph.node if answer.name in node.output)
    last.output[list(last.output).index(answer.name)] = "answer_without_delay"
    # The image's own values go into the loop, so that nobody computes it once and for all.
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["input"], ["brightest"], keepdims=0),
            helper.make_node("Greater", ["brightest", "bright"], ["is_bright"]),
            helper.make_node("Where", ["is_bright", "bright_rounds", "dark_rounds"], ["rounds_each"]),
            helper.make_node("Shape", ["input"], ["patches"], start=0, end=1),
            helper.make_node("ReduceSum", ["patches"], ["patch_count"], keepdims=0),
            helper.make_node("Mul", ["rounds_each", "patch_count"], ["rounds"]),
            helper.make_node("Mul", ["brightest", "nothing"], ["none"]),
            helper.make_node("Add", ["seed", "none"], ["begin"]),
            helper.make_node("Loop", ["rounds", "always", "begin"], ["end"], body=body),
            helper.make_node("ReduceMax", ["end"], ["most"], keepdims=0),
            helper.make_node("Mul", ["most", "nothing"], ["nil"]),
            helper.make_node("Add", ["answer_without_delay", "nil"], [answer.name]),
        ]
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, key) for key, value in constants.items())
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return folder
