"""The network of a model from outside: an ONNX file whose sizes are read, and fixed where they were left free."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from service.imports.refusal import CannotImport
from service.stage import Tensor

_ACTIVATIONS = {"Sigmoid": "sigmoid", "Softmax": "softmax"}
_DYNAMIC = (
    "export it with a free batch axis: torch.onnx.export(..., dynamic_axes={'input': {0: 'N'}, 'output': {0: 'N'}}), "
    "or python -m monai.bundle onnx_export ... --converter_kwargs with the same dynamic_axes"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A network as it is put into the model folder."""

    file: Path  # as it was handed over
    fixed: Any | None  # the same with its sizes fixed (onnx.ModelProto), where some were free; else None
    input: Tensor
    output: Tensor
    ends_in: str  # "sigmoid" or "softmax", where that is the graph's last node; else empty

    def write(self, file: Path) -> None:
        """Put the network into a model folder; as it was handed over, byte for byte, if it can be."""
        if self.fixed is None:
            shutil.copyfile(self.file, file)
        else:
            onnx.save(self.fixed, str(file))


def read_weights(file: Path, window: Sequence[int]) -> Weights:
    """Read an ONNX file for windows of one size.

    Raises
    ------
    CannotImport
        If it is none, needs other files, has several inputs or outputs, a fixed batch axis, or other sizes.
    """
    doing = f"reading the network {file.name}"
    try:
        proto = onnx.load(str(file), load_external_data=False)
        external = any(
            tensor.data_location == onnx.TensorProto.EXTERNAL
            for graph in _graphs(proto.graph)
            for tensor in _tensors(graph)
        )
        if not external:
            onnx.checker.check_model(proto)
    except Exception as exc:  # protobuf's and the checker's own, or whatever else bytes can provoke
        raise _refused(
            doing, f"{type(exc).__name__}: {_first_line(exc)}", "it is a whole ONNX file", "export it again"
        ) from exc
    if external:
        raise _refused(
            doing,
            "weights that lie in other files",
            "a network is one file: model.onnx",
            "save it as one: onnx.save(onnx.load(FILE), FILE, save_as_external_data=False)",
        )
    value, answer = _one_of_each(proto.graph, doing)
    given = _sizes(value)
    if len(given) != len(window) + 2 or isinstance(given[0], int):
        raise _refused(
            doing, f"an input of {_listed(given)}", f"it is N, channels and {len(window)} sizes, N free", _DYNAMIC
        )
    if given[1] != 1:
        raise _refused(
            doing,
            f"{given[1]} input channels",
            "one series is one channel: images of several series in one input (T1 and T2 of a brain) are not read here",
            "take a model of one series",
        )
    wrong = [(size, wanted) for size, wanted in zip(given[2:], window, strict=True) if size not in (wanted, "")]
    if wrong:
        raise _refused(
            doing,
            f"windows of {_listed(given[2:])}",
            f"the model's configuration has windows of {_listed(window)}",
            "export the network for that size, or with free sizes",
        )
    was_fixed = any(size == "" for size in given[2:])
    if was_fixed:
        proto = _fixed(proto, value.name, window)
        value, answer = _one_of_each(proto.graph, doing)
    answers = _sizes(answer)
    if "" in answers[1:] or len(answers) < 2:
        proto = _inferred(proto, doing)
        value, answer = _one_of_each(proto.graph, doing)
        answers = _sizes(answer)
    if "" in answers[1:] or isinstance(answers[0], int) or tuple(answers[2:]) != tuple(window):
        raise _refused(
            doing,
            f"an output of {_listed(answers)}",
            f"it is N, channels and {_listed(window)}: a map of the window, N free",
            _DYNAMIC,
        )
    last = next(node for node in proto.graph.node if answer.name in node.output)
    return Weights(
        file=file,
        fixed=proto if was_fixed else None,
        input=Tensor(name=value.name, channels=1, shape=tuple(window)),
        output=Tensor(name=answer.name, channels=int(answers[1]), shape=tuple(window)),
        ends_in=_ACTIVATIONS.get(last.op_type, ""),
    )


def _one_of_each(graph: Any, doing: str) -> tuple[Any, Any]:
    constants = {value.name for value in graph.initializer}  # files before IR 4 list these as inputs too
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise _refused(
            doing,
            f"the inputs {_names(inputs)} and the outputs {_names(graph.output)}",
            "a network has one input, the image, and one output, the map",
            "export it so; of an nnU-Net, with deep supervision off",
        )
    for value in (inputs[0], graph.output[0]):
        kind = value.type.tensor_type.elem_type
        if kind != onnx.TensorProto.FLOAT:
            raise _refused(
                doing,
                f"{value.name!r} is {onnx.TensorProto.DataType.Name(kind).lower()}",
                "images and maps are float32 (FLOAT in ONNX)",
                "export it with float32 there; a cast inside the graph may lead to another type",
            )
    return inputs[0], graph.output[0]


def _fixed(proto: Any, name: str, window: Sequence[int]) -> Any:
    """The same network, for one size of window alone. What was worked out for free sizes is forgotten."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for value in copy.graph.input:
        if value.name == name:
            for axis, size in zip(value.type.tensor_type.shape.dim[2:], window, strict=True):
                axis.dim_value = size
    for axis in list(copy.graph.output[0].type.tensor_type.shape.dim)[1:]:
        if not axis.HasField("dim_value"):
            axis.ClearField("dim_param")
    del copy.graph.value_info[:]
    return copy


def _inferred(proto: Any, doing: str) -> Any:
    try:
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except Exception as exc:  # onnx's InferenceError, or whatever else a graph can provoke
        raise _refused(
            doing,
            f"its sizes contradict each other: {_first_line(exc)}",
            "the sizes of the output follow from those of the input",
            "export it with fixed sizes",
        ) from exc


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(inner)


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _sizes(value: Any) -> list[int | str]:
    """Sizes of a tensor; empty where one is free."""
    return [int(axis.dim_value) if axis.HasField("dim_value") else "" for axis in value.type.tensor_type.shape.dim]


def _listed(sizes: Sequence[int | str]) -> str:
    return " x ".join(str(size) or "?" for size in sizes) or "no size"


def _names(values: Sequence[Any]) -> str:
    return ", ".join(repr(value.name) for value in values) or "none"


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or ["no message"])[0]


def _refused(doing: str, found: str, rule: str, way_out: str) -> CannotImport:
    return CannotImport(doing=doing, found=found, rule=rule, way_out=way_out)
