"""A network's ONNX file, read without running it: are its tensors those of ``model.toml``?

No device is touched, so a model can be judged beside a running service. What a runtime alone can tell (an operator
that it does not know) is told by `Backend.load`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from service.errors import ContractBroken
from service.stage import Tensor
from service.types import Network


def hold(network: Network) -> int:
    """Hold a network's file against its tensors.

    Returns
    -------
    int
        Its opset.

    Raises
    ------
    ContractBroken
        If it is no ONNX file, too new, or has other tensors.
    """
    doing = f"holding the network {network.name} against model.toml"
    graph, opset = _read(network.file, doing)
    constants = {value.name for value in graph.initializer}  # files before IR 4 list these as inputs too
    inputs = [value for value in graph.input if value.name not in constants]
    given = {value.name: value for value in graph.output}
    if len(inputs) != 1:
        raise _broken(
            doing,
            f"{len(inputs)} inputs: {_names(inputs)}",
            "a network has one input: the patches",
            "export it with the image as its only input; constants belong into the graph",
        )
    _compare(inputs[0], network.input, "input", doing)
    for tensor in network.outputs:
        if tensor.name not in given:
            raise _broken(
                doing,
                f"no output {tensor.name!r}, but {_names(list(graph.output))}",
                "each output that a stage names is one of the graph's",
                "correct the name in model.toml, or export the network with that output",
            )
        _compare(given[tensor.name], tensor, "output", doing)
    return opset


def _read(file: Path, doing: str) -> tuple[Any, int]:
    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as exc:  # protobuf's DecodeError, or whatever else bytes can provoke
        raise _broken(
            doing,
            "it can't be read as ONNX" if file.is_file() else "there is no such file",
            f"{file.parent.name}/{file.name} in the network's folder is an ONNX file",
            "export it again, or copy it again",
        ) from exc
    if not model.graph.node:
        raise _broken(
            doing,
            "it can't be read as ONNX: no graph is in it",
            f"{file.parent.name}/{file.name} in the network's folder is an ONNX file",
            "export it again, or copy it again",
        )
    opset = max((known.version for known in model.opset_import if known.domain in ("", "ai.onnx")), default=0)
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise _broken(
            doing,
            f"opset {opset}",
            f"this Overread reads networks up to opset {newest}",
            "export it for an older opset (torch.onnx.export(..., opset_version=17)), or use a newer Overread",
        )
    return model.graph, opset


def _compare(value: Any, wanted: Tensor, side: str, doing: str) -> None:
    kind = value.type.tensor_type
    if value.name != wanted.name:
        raise _broken(
            doing,
            f"the {side} {value.name!r}, not {wanted.name!r}",
            f"an {side} is called as in model.toml",
            f"correct the name of the {side} in model.toml",
        )
    if kind.elem_type != onnx.TensorProto.FLOAT:
        found = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
        raise _broken(
            doing,
            f"the {side} {value.name!r} is {found}",
            "patches and answers are float32 (FLOAT in ONNX)",
            f"export it with a float32 {side}; a cast inside the graph may lead to another type",
        )
    sizes = [_size(axis) for axis in kind.shape.dim]
    expected = ["N", *wanted.dims]
    if len(sizes) == len(expected):
        for axis, (size, needed) in enumerate(zip(sizes, expected, strict=True)):
            if axis and not isinstance(size, int):
                raise _broken(
                    doing,
                    f"axis {axis} of the {side} {value.name!r} is free ({size})",
                    f"only the batch axis is free; model.toml says {needed} there",
                    f"export it with that axis fixed to {needed}, dynamic_axes for axis 0 alone",
                )
    if isinstance(sizes[0] if sizes else 1, int):
        raise _broken(
            doing,
            f"the batch axis of the {side} {value.name!r} is {sizes[0] if sizes else 'missing'}",
            "the first axis is the batch's, and free",
            "export it with dynamic_axes for axis 0",
        )
    if sizes[1:] != expected[1:]:
        raise _broken(
            doing,
            f"the {side} {value.name!r} has the sizes {sizes[1:]} behind the batch axis",
            f"model.toml says {expected[1:]}: channels, then shape",
            "correct model.toml, or install the network that belongs to it",
        )


def _size(axis: Any) -> int | str:
    return int(axis.dim_value) if axis.HasField("dim_value") else axis.dim_param or "without a name"


def _names(values: list[Any]) -> str:
    return ", ".join(repr(value.name) for value in values) or "none"


def _broken(doing: str, found: str, rule: str, way_out: str) -> ContractBroken:
    return ContractBroken(doing=doing, found=found, rule=rule, way_out=way_out)
