"""What the service and its inference engine say to each other: small values; patches lie in shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal

from service.types import Network

_ALIGNED: Final = 64  # bytes; what vector instructions like


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What the engine says of itself when it is up."""

    name: str  # "onnxruntime CPU"
    device: str  # with everything that a measurement depends on: see `Envelope.device`
    slots: int  # batches at once
    memory_bytes: int  # for all networks together


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What the engine is to do."""

    verb: Literal["load", "measure", "unload", "infer"]
    network: str  # its name
    number: int = 0  # by which the reply is known; given when it is sent
    description: Network | None = None  # load, measure
    limit_bytes: int = 0  # load: memory of a GPU that the network may take, 0 if not known; measure: of a batch
    longest_seconds: float = 0.0  # measure: of a batch
    lane: int = 0  # infer: which block and which thread
    batch: int = 0  # infer: how many patches
    block_bytes: int = 0  # infer: size of a new block for the lane; its descriptor follows. 0: it is still the last one


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What became of it."""

    number: int
    value: Any = None  # load: Loaded; measure: Measured
    error: tuple[str, dict[str, str]] | None = None  # class and parts of a `ServiceError`


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What loading a network took."""

    resident_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What batches took, by their size."""

    batch_seconds: dict[int, float]
    batch_bytes: dict[int, int]


def place_batch(network: Network, batch: int) -> tuple[int, list[tuple[int, tuple[int, ...]]]]:
    """Where a batch lies in its block: bytes in all; offset and shape of the patches, then of each output."""
    places: list[tuple[int, tuple[int, ...]]] = []
    offset = 0
    for tensor in (network.input, *network.outputs):
        shape = (batch, *tensor.dims)
        places.append((offset, shape))
        offset += -(-4 * prod(shape) // _ALIGNED) * _ALIGNED
    return offset, places
