"""Real ONNX graphs, a few nodes each, whose answer anybody can work out by hand.

All take images that ``(HU + 1000) / 2000`` has brought to 0..1: air is 0, soft tissue 0.5, the bright balls 0.7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

WINDOW, REACH = 16, 4  # the first network reads 24 voxels along each axis and answers for the middle 16
LIMIT = 0.6  # 200 HU
CUBE = (16, 16, 16)
BOX_WINDOW = (16, 20, 24)  # three sizes, so that no two axes can be taken for each other
BOX_VOXELS = (8.0, 10.0, 12.0)  # edges of each box that the detection network proposes
ROWS = 4  # boxes per window; all but the first fill up the number
SLICE = (32, 40)
CHANNEL_MEAN, CHANNEL_STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)

Sizes = Sequence[int]
Nodes = list[onnx.NodeProto]


def bright() -> onnx.ModelProto:
    """What is denser than 200 HU, by valid convolutions' manner: it answers for the middle of what it reads."""
    constants = {
        "starts": np.full(3, REACH, np.int64),
        "ends": np.full(3, REACH + WINDOW, np.int64),
        "axes": np.array([2, 3, 4], np.int64),
        "limit": np.array(LIMIT, np.float32),
        "slope": np.array(50.0, np.float32),
    }
    nodes = [
        helper.make_node("Slice", ["input", "starts", "ends", "axes"], ["middle"]),
        helper.make_node("Sub", ["middle", "limit"], ["above"]),
        helper.make_node("Mul", ["above", "slope"], ["steep"]),
        helper.make_node("Sigmoid", ["steep"], ["probability"]),
    ]
    size = WINDOW + 2 * REACH
    return model(
        "bright", nodes, constants, reads=(1, size, size, size), answers={"probability": (1, WINDOW, WINDOW, WINDOW)}
    )


def classes() -> onnx.ModelProto:
    """Logits of three classes: what is neither (0), denser than 200 HU (1), thinner than -500 HU (2)."""
    constants = {
        "limit": np.array(LIMIT, np.float32),
        "dark": np.array(0.25, np.float32),
        "slope": np.array(50.0, np.float32),
        "nothing": np.array(0.0, np.float32),
    }
    nodes = [
        helper.make_node("Mul", ["input", "nothing"], ["neither"]),
        helper.make_node("Sub", ["input", "limit"], ["above"]),
        helper.make_node("Mul", ["above", "slope"], ["bright"]),
        helper.make_node("Sub", ["dark", "input"], ["below"]),
        helper.make_node("Mul", ["below", "slope"], ["thin"]),
        helper.make_node("Concat", ["neither", "bright", "thin"], ["logits"], axis=1),
    ]
    return model("classes", nodes, constants, reads=(1, *CUBE), answers={"logits": (3, *CUBE)})


def heat(size: Sizes = CUBE) -> onnx.ModelProto:
    """How much of the cube of nine voxels around each is denser than 200 HU: a hill, its peak in a ball's middle."""
    constants = {"limit": np.array(LIMIT, np.float32), "slope": np.array(50.0, np.float32)}
    nodes = [
        helper.make_node("Sub", ["input", "limit"], ["above"]),
        helper.make_node("Mul", ["above", "slope"], ["steep"]),
        helper.make_node("Sigmoid", ["steep"], ["dense"]),
        _mean("dense", "heat", edge=9, axes=3),
    ]
    return model("heat", nodes, constants, reads=(1, *size), answers={"heat": (1, *size)})


def boxes(form: str) -> onnx.ModelProto:
    """A box of a fixed size around the window's brightest place, its score as a logit; the other rows hold nothing.

    Parameters
    ----------
    form
        "corners", "centre-size" or "centres", as in model.toml.
    """
    _, height, width = BOX_WINDOW
    half = np.array([[BOX_VOXELS]], np.float32) / 2
    forms: Mapping[str, Mapping[str, object]] = {
        "centres": {},
        "corners": {"half": half},
        "centre-size": {"size": 2 * half},
    }
    numbers = 3 if form == "centres" else 6
    constants = {
        "flat": np.array([0, -1], np.int64),
        "plane": np.array(height * width, np.int64),
        "width": np.array(width, np.int64),
        "limit": np.array(0.58, np.float32),
        "slope": np.array(100.0, np.float32),
        "one_row": np.array([0, 1, 3], np.int64),
        "rows_behind": np.array([0, 0, 0, 0, ROWS - 1, 0], np.int64),
        "scores_behind": np.array([0, 0, 0, ROWS - 1], np.int64),
        "never": np.array(-100.0, np.float32),
        "naught": np.array(0.0, np.float32),
        **forms[form],
    }
    nodes = [
        _mean("input", "blurred", edge=9, axes=3),
        helper.make_node("Reshape", ["blurred", "flat"], ["places"]),
        helper.make_node("ArgMax", ["places"], ["best"], axis=1, keepdims=1),
        helper.make_node("ReduceMax", ["places"], ["peak"], axes=[1], keepdims=1),
        helper.make_node("Div", ["best", "plane"], ["first"]),
        helper.make_node("Mod", ["best", "plane"], ["in_plane"]),
        helper.make_node("Div", ["in_plane", "width"], ["second"]),
        helper.make_node("Mod", ["in_plane", "width"], ["third"]),
        helper.make_node("Concat", ["first", "second", "third"], ["indices"], axis=1),
        helper.make_node("Cast", ["indices"], ["centres"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["centres", "one_row"], ["centre"]),
        helper.make_node("Sub", ["peak", "limit"], ["above"]),
        helper.make_node("Mul", ["above", "slope"], ["logit"]),
        helper.make_node("Pad", ["logit", "scores_behind", "never"], ["scores"]),
        helper.make_node("Pad", ["row", "rows_behind", "naught"], ["boxes"]),
    ]
    nodes[-4:-4] = {
        "centres": [helper.make_node("Identity", ["centre"], ["row"])],
        "corners": [
            helper.make_node("Sub", ["centre", "half"], ["low"]),
            helper.make_node("Add", ["centre", "half"], ["high"]),
            helper.make_node("Concat", ["low", "high"], ["row"], axis=2),
        ],
        "centre-size": [
            helper.make_node("Mul", ["centre", "naught"], ["none"]),
            helper.make_node("Add", ["none", "size"], ["sizes"]),
            helper.make_node("Concat", ["centre", "sizes"], ["row"], axis=2),
        ],
    }[form]
    answers = {"boxes": (ROWS, numbers), "scores": (ROWS,)}
    return model("boxes", nodes, constants, reads=(1, *BOX_WINDOW), answers=answers)


def judge() -> onnx.ModelProto:
    """Logits of a slice: 0 for nothing, and how far its brightest spot is above 200 HU.

    It undoes each channel's own mean and deviation, so that it goes wrong if they were not those, or in another order.
    """
    constants = {
        "deviation": np.array(CHANNEL_STD, np.float32).reshape(1, 3, 1, 1),
        "mean": np.array(CHANNEL_MEAN, np.float32).reshape(1, 3, 1, 1),
        "limit": np.array(LIMIT, np.float32),
        "slope": np.array(50.0, np.float32),
        "nothing": np.array(0.0, np.float32),
        "last": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Mul", ["input", "deviation"], ["spread"]),
        helper.make_node("Add", ["spread", "mean"], ["copies"]),
        helper.make_node("ReduceMin", ["copies"], ["image"], axes=[1], keepdims=1),
        _mean("image", "blurred", edge=3, axes=2),
        helper.make_node("ReduceMax", ["blurred"], ["peak"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["peak", "limit"], ["above"]),
        helper.make_node("Mul", ["above", "slope"], ["bright"]),
        helper.make_node("Mul", ["above", "nothing"], ["neither"]),
        helper.make_node("Unsqueeze", ["bright", "last"], ["one"]),
        helper.make_node("Unsqueeze", ["neither", "last"], ["none"]),
        helper.make_node("Concat", ["none", "one"], ["logits"], axis=1),
    ]
    return model("judge", nodes, constants, reads=(3, *SLICE), answers={"logits": (2,)})


def next_slice() -> onnx.ModelProto:
    """What is denser than 200 HU in the slice behind the one that is asked about."""
    constants = {
        "starts": np.array([2], np.int64),
        "ends": np.array([3], np.int64),
        "axes": np.array([1], np.int64),
        "limit": np.array(LIMIT, np.float32),
        "slope": np.array(50.0, np.float32),
    }
    nodes = [
        helper.make_node("Slice", ["input", "starts", "ends", "axes"], ["behind"]),
        helper.make_node("Sub", ["behind", "limit"], ["above"]),
        helper.make_node("Mul", ["above", "slope"], ["logits"]),
    ]
    return model("next", nodes, constants, reads=(3, *SLICE), answers={"logits": (1, *SLICE)})


def share(part: float) -> onnx.ModelProto:
    """A part of the probability that a voxel is denser than 200 HU: one checkpoint of an ensemble."""
    constants = {
        "limit": np.array(LIMIT, np.float32),
        "slope": np.array(50.0, np.float32),
        "part": np.array(part, np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["input", "limit"], ["above"]),
        helper.make_node("Mul", ["above", "slope"], ["steep"]),
        helper.make_node("Sigmoid", ["steep"], ["dense"]),
        helper.make_node("Mul", ["dense", "part"], ["probability"]),
    ]
    return model("share", nodes, constants, reads=(1, *CUBE), answers={"probability": (1, *CUBE)})


def model(
    name: str, nodes: Nodes, constants: Mapping[str, object], *, reads: Sizes, answers: Mapping[str, Sizes]
) -> onnx.ModelProto:
    """A graph with one input, called "input", and any number of patches in a batch."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *reads])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["N", *sizes]) for out, sizes in answers.items()],
        [onnx.numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def _mean(source: str, result: str, *, edge: int, axes: int) -> onnx.NodeProto:
    """The mean of a cube or square around each voxel; beyond the window is air."""
    return helper.make_node(
        "AveragePool", [source], [result], kernel_shape=[edge] * axes, pads=[edge // 2] * 2 * axes, count_include_pad=1
    )
