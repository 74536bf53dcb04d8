"""A `Backend` that only runs a network's file, in this process: for tests of what stands around the backends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from service.errors import ContractBroken
from service.types import Array, Envelope, Network


class BareBackend:
    """Bare ONNX Runtime sessions on the CPU.

    Attributes
    ----------
    closed
        Whether it was closed.
    """

    name = "bare"
    memory_bytes = 0

    def __init__(self, *, slots: int = 1) -> None:
        self.slots = slots
        self.closed = False
        self.batches: list[tuple[str, int]] = []
        self._loaded: dict[str, tuple[Network, ort.InferenceSession]] = {}

    def load(self, network: Network) -> Envelope:
        try:
            session = ort.InferenceSession(network.file, providers=["CPUExecutionProvider"])
        except Exception as exc:
            raise ContractBroken(
                doing=f"loading {network.name}", found=type(exc).__name__, rule="it can be read", way_out="mend it"
            ) from exc
        self._loaded[network.name] = (network, session)
        return Envelope(
            device="bare",
            resident_bytes=1 << 20,
            batch_bytes={1: 1 << 20, 2: 2 << 20},
            batch_seconds={1: 0.01, 2: 0.012},
            load_seconds=0.1,
        )

    def unload(self, network: str) -> None:
        self._loaded.pop(network, None)

    def infer(self, network: str, patches: Sequence[Array]) -> tuple[Array, ...]:
        known, session = self._loaded[network]
        self.batches.append((network, len(patches)))
        names = [tensor.name for tensor in known.outputs]
        return tuple(session.run(names, {known.input.name: np.stack(patches)}))

    def ready(self) -> bool:
        return not self.closed

    def close(self) -> None:
        self.closed = True
