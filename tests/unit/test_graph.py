"""A network's file, held against its tensors: each mistake has its own words, and nothing is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from service.errors import ContractBroken
from service.graph import hold
from service.stage import Tensor
from service.types import Network
from tests.crops import write_crop

NEWEST = onnx.defs.onnx_opset_version()
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "an input of another type": (
        {"kinds": (TensorProto.FLOAT16, TensorProto.FLOAT)}, "the input 'input' is float16"
    ),
    "an output of another type": (
        {"kinds": (TensorProto.FLOAT, TensorProto.DOUBLE)}, "the output 'probability' is double"
    ),
    "an opset too new": ({"opset": NEWEST + 1}, f"opset {NEWEST + 1}"),
    "a free axis where a size is needed": (
        {"size": ("N", 1, 24, "height", 24)}, r"axis 3 of the input 'input' is free \(height\)"
    ),
    "a free axis of the output": (
        {"answer": ("N", 1, "depth", 16, 16)}, r"axis 2 of the output 'probability' is free \(depth\)"
    ),
    "a batch axis that is fixed": ({"size": (1, 1, 24, 24, 24)}, "the batch axis of the input 'input' is 1"),
    "other sizes": ({"size": ("N", 1, 24, 24, 32)}, r"sizes \[1, 24, 24, 32\]"),
    "axes too few": ({"answer": ("N", 1, 16, 16)}, r"sizes \[1, 16, 16\]"),
    "another input's name": ({"names": ("image", "probability")}, "the input 'image', not 'input'"),
    "another output's name": ({"names": ("input", "logits")}, "no output 'probability', but 'logits'"),
    "two inputs": ({"second_input": True}, "2 inputs: 'input', 'more'"),
}  # fmt: skip


def network(file: Path) -> Network:
    """The network that `write_crop` writes unless it is told otherwise."""
    return Network(
        name="toy",
        file=file,
        sha256="",
        input=Tensor(name="input", shape=(24, 24, 24)),
        outputs=(Tensor(name="probability", shape=(16, 16, 16)),),
        half_precision=False,
    )


def test_a_right_network_is_known_by_its_opset(tmp_path: Path) -> None:
    assert hold(network(write_crop(tmp_path / "model.onnx", opset=16))) == 16
    assert hold(network(write_crop(tmp_path / "model.onnx", opset=NEWEST))) == NEWEST


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_told_in_words(mistake: str, tmp_path: Path) -> None:
    changed, words = MISTAKES[mistake]
    with pytest.raises(ContractBroken) as caught:
        hold(network(write_crop(tmp_path / "model.onnx", **changed)))
    assert re.search(words, caught.value.found), caught.value.found
    assert all(caught.value.parts().values())


@pytest.mark.parametrize("content", [None, b"", b"\xff\xffno protobuf"], ids=["none", "empty", "no protobuf"])
def test_a_file_that_is_no_network_is_told(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ContractBroken, match="there is no such file" if content is None else "can't be read as ONNX"):
        hold(network(tmp_path / "model.onnx"))
