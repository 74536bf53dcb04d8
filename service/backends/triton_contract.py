"""What a Triton server says of its networks, held against ``model.toml``. Pure."""

from __future__ import annotations

from typing import Any

from service.errors import BackendError, BackendUnavailable, ContractBroken
from service.types import Network

VERSION = "1"  # of every network: its file is <name>/1/model.onnx


def not_ready(network: str, index: Any, *, manage: bool) -> BackendError:
    """Why a network that the server should have loaded is not ready, by its repository's index."""
    doing = f"looking for the network {network} on the Triton server"
    states = {(entry.version, entry.state): entry.reason for entry in index.models if entry.name == network}
    if not states:
        return ContractBroken(
            doing=doing,
            found="it is not in the server's repository",
            rule="the server's model repository is the models directory of this service",
            way_out=f"put the folder {network} (config.pbtxt and 1/model.onnx) there, and start or reload the server",
        )
    for (version, state), reason in states.items():
        if state in ("LOADING", "UNLOADING") and version in ("", VERSION):
            return BackendUnavailable(
                doing=doing, found=f"it is {state}", rule="a network is loaded before it runs", way_out="wait a moment"
            )
        if state == "UNAVAILABLE" and reason and reason != "unloaded":
            return ContractBroken(
                doing=doing,
                found=f"the server could not load it: {' '.join(reason.split())[:300]}",
                rule="the server has loaded the network",
                way_out="correct what it names, and load the network again",
            )
    return ContractBroken(
        doing=doing,
        found="it is in the repository and not loaded there" if not manage else "it is not ready, though it was loaded",
        rule=f"version {VERSION} of the network is loaded on the server",
        way_out="load it there (--load-model, or no --model-control-mode at all), or set [triton] manage_models = true "
        "with a server in explicit mode",
    )


def check(network: Network, metadata: Any, config: Any) -> int:
    """Hold what the server says of a network against ``model.toml``.

    Parameters
    ----------
    metadata, config
        The server's ModelMetadataResponse, and its ModelConfig.

    Returns
    -------
    int
        The server's greatest batch size for it.

    Raises
    ------
    ContractBroken
        With what the server has and what ``model.toml`` says, in words.
    """

    def broken(found: str, rule: str) -> ContractBroken:
        return ContractBroken(
            doing=f"holding the network {network.name} of the Triton server against model.toml",
            found=found,
            rule=rule,
            way_out="correct model.toml or config.pbtxt, or give the server the network that belongs to them",
        )

    if config.max_batch_size < 1:
        raise broken(f"max_batch_size: {config.max_batch_size}", "max_batch_size is 1 or more: patches come in batches")
    if VERSION not in metadata.versions:
        raise broken(f"the versions {', '.join(metadata.versions) or 'none'}", f"version {VERSION} is served")
    for side, said, given in (
        ("input", (network.input,), metadata.inputs),
        ("output", network.outputs, metadata.outputs),
    ):
        wanted = {tensor.name: tensor for tensor in said}
        found = {tensor.name: tensor for tensor in given}
        if set(wanted) != set(found):
            raise broken(
                f"the {side}s {', '.join(sorted(found)) or 'none'}", f"the {side}s are {', '.join(sorted(wanted))}"
            )
        for name, tensor in wanted.items():
            has, sizes = found[name], list(found[name].shape)
            if has.datatype != "FP32":
                raise broken(f"{side} {name} of datatype {has.datatype}", f"{side} {name} is FP32")
            if sizes[1:] != list(tensor.dims) or sizes[0] != -1:
                open_axes = [axis for axis, size in enumerate(sizes[1:]) if size == -1]
                left_open = f", axis {open_axes[0]} left open" if open_axes else ""
                raise broken(
                    f"{side} {name} of shape {sizes[1:]} behind the batch axis{left_open}",
                    f"{side} {name} has the shape {list(tensor.dims)} behind the batch axis",
                )
    return int(config.max_batch_size)
