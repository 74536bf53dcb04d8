"""A network's folder as Triton knows it: ``config.pbtxt``, written from the tensors and held against them.

``models/`` is a Triton model repository as it stands: a folder per network, in it the version folder ``1``. What the
file must say is what ``model.toml`` says; all else in it (batching, instances, accelerators) is the server's affair.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from service.stage import Tensor

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\w.+-]+|[{}\[\],:]')
_WORDS = """\
# Written by Overread from model.toml; what stands above `dynamic_batching` must stay as it is there.
# In the server's environment set NVIDIA_TF32_OVERRIDE=0: convolutions in TF32 change results.
"""


def config_pbtxt(name: str, input: Tensor, outputs: Sequence[Tensor], *, max_batch_size: int = 8) -> str:
    """Text of a network's ``config.pbtxt``, for Triton's ONNX Runtime backend.

    Parameters
    ----------
    name
        The network's folder.
    max_batch_size
        Greatest batch that the server makes of waiting requests; the batch axis stands in no ``dims``.
    """
    tensors = _side("input", [input]) + _side("output", outputs)
    return (
        f'{_WORDS}name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {max_batch_size}\n{tensors}'
        "dynamic_batching { max_queue_delay_microseconds: 5000 }\n"
        "instance_group [ { count: 1 } ]\n"
        "# Without it ONNX Runtime holds up to twice the memory, no faster.\n"
        'parameters [ { key: "enable_mem_pattern" value: { string_value: "0" } } ]\n'
    )


def differences(text: str, name: str, input: Tensor, outputs: Sequence[Tensor]) -> list[str]:
    """What a ``config.pbtxt`` says otherwise than ``model.toml``, in words; empty where they agree."""
    try:
        said = _parse(text)
        found = [
            f"{key} is {', '.join(map(str, said.get(key, []))) or 'not given'}, not {wanted}"
            for key, wanted in (("name", name), ("backend", "onnxruntime"))
            if said.get(key) != [wanted]
        ]
        sizes = said.get("max_batch_size", ["0"])
        if not sizes[0].isdigit() or int(sizes[0]) < 1:
            found.append(f"max_batch_size is {sizes[0]}: the batch axis would have to stand in dims")
        for side, wanted in (("input", [input]), ("output", list(outputs))):
            given = [_of(tensor) for tensor in said.get(side, [])]
            asked = [(tensor.name, "TYPE_FP32", tensor.dims) for tensor in wanted]
            if sorted(given) != sorted(asked):
                found.append(f"{side} is {_listed(given)}, not {_listed(asked)}")
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        return [f"it is no protobuf text ({type(exc).__name__})"]
    return found


def _side(side: str, tensors: Sequence[Tensor]) -> str:
    entries = [
        f'  {{\n    name: "{tensor.name}"\n    data_type: TYPE_FP32\n    dims: [ {_sizes(tensor)} ]\n  }}'
        for tensor in tensors
    ]
    return f"{side} [\n" + ",\n".join(entries) + "\n]\n"


def _sizes(tensor: Tensor) -> str:
    return ", ".join(map(str, tensor.dims))


def _of(tensor: dict[str, list[Any]]) -> tuple[str, str, tuple[int, ...]]:
    return tensor["name"][0], tensor["data_type"][0], tuple(int(size) for size in tensor["dims"])


def _listed(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> str:
    return "; ".join(f"{name} {kind} {list(dims)}" for name, kind, dims in tensors) or "not given"


def _parse(text: str) -> dict[str, list[Any]]:
    """Protobuf's text format: each field as the list of its values, numbers and names as they stand there."""
    stripped = re.sub(r'("(?:[^"\\]|\\.)*")|#.*', lambda match: match[1] or "", text)
    if _TOKEN.sub("", stripped).replace(";", "").strip():
        raise ValueError("a character that has no place there")
    tokens = _TOKEN.findall(stripped)[::-1]  # the next one at the end

    def message() -> dict[str, list[Any]]:
        fields: dict[str, list[Any]] = {}
        while tokens and tokens[-1] != "}":
            name = tokens.pop()
            if not name.isidentifier():
                raise ValueError("a field without a name")
            values = fields.setdefault(name, [])
            if tokens[-1] == ":":
                tokens.pop()
            if tokens[-1] != "[":
                values.append(value())
            else:
                tokens.pop()
                while tokens[-1] != "]":
                    values.append(value())
                    if tokens[-1] == ",":
                        tokens.pop()
                tokens.pop()
            if tokens and tokens[-1] == ",":
                tokens.pop()
        return fields

    def value() -> Any:
        token = tokens.pop()
        if token != "{":
            return token.strip('"')
        found = message()
        if tokens.pop() != "}":
            raise ValueError("a brace too few")
        return found

    whole = message()
    if tokens:
        raise ValueError("a brace too many")
    return whole
