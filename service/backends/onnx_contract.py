"""Is an ONNX file the network that ``model.toml`` describes? Asked before any batch of it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, Protocol

from service.errors import ContractBroken
from service.stage import Tensor
from service.types import Network

_FLOAT: Final = "tensor(float)"


class Node(Protocol):
    """An input or output of a network, as ONNX Runtime describes it."""

    name: str
    type: str
    shape: list[int | str | None]


def check_file(network: Network, doing: str) -> None:
    """Read the file once and hold it against its sha256: weights may be replaced under a running service.

    Raises
    ------
    ContractBroken
        If it can't be read, or is another one.
    """
    try:
        with network.file.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise ContractBroken(
            doing=doing,
            found=f"{network.file.name} can't be read: {exc.strerror or type(exc).__name__}",
            rule="a network is a readable ONNX file",
            way_out="install the model again (overread models install NAME)",
        ) from exc
    if digest != network.sha256:
        raise ContractBroken(
            doing=doing,
            found=f"{network.file.name} has the sha256 {digest}",
            rule=f"the weights are those that the service was started with, sha256 {network.sha256 or 'unknown'}",
            way_out="if the new ones are meant, give the model a new version and start the service again",
        )


def check_tensors(network: Network, inputs: Sequence[Node], outputs: Sequence[Node]) -> None:
    """Hold a session's inputs and outputs (name, type, shape) against ``model.toml``.

    Raises
    ------
    ContractBroken
        With the first difference.
    """
    for side, wanted, given in (("input", (network.input,), inputs), ("output", network.outputs, outputs)):
        found = {node.name: node for node in given}
        words = next(
            (difference for tensor in wanted if (difference := _difference(side, tensor, found))),
            "" if len(found) == len(wanted) else f"{len(found)} {side}s: {', '.join(found)}",
        )
        if words:
            raise ContractBroken(
                doing=f"holding the network {network.name} against model.toml",
                found=words,
                rule=f"model.toml names {len(wanted)} {side}{'s' * (len(wanted) > 1)}, each float32 with a free batch "
                f"axis and fixed sizes behind it: {'; '.join(f'{t.name} {list(t.dims)}' for t in wanted)}",
                way_out="correct model.toml, or install the network that belongs to it",
            )


def _difference(side: str, tensor: Tensor, found: dict[str, Node]) -> str:
    node = found.get(tensor.name)
    if node is None:
        return f"no {side} {tensor.name!r}, but {', '.join(map(repr, found)) or 'none'}"
    what, shape = f"{side} {tensor.name!r}", list(node.shape or [])
    if node.type != _FLOAT:
        return f"{what} is {node.type}, not {_FLOAT}"
    if len(shape) != 1 + len(tensor.dims):
        return f"{what} has {len(shape)} axes {shape}, not the batch axis and {list(tensor.dims)}"
    if isinstance(shape[0], int):
        return f"axis 0 of {what}, the batch axis, is fixed at {shape[0]}"
    for axis, (size, wanted) in enumerate(zip(shape[1:], tensor.dims, strict=True), start=1):
        if not isinstance(size, int):
            return f"axis {axis} of {what} is open ({size!r}), where the size {wanted} is needed"
        if size != wanted:
            return f"axis {axis} of {what} is {size}, not {wanted}"
    return ""
