"""Which models and networks the scheduler knows, which models may not run, and what is told of each network. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.errors import BackendError, ContractBroken
from service.types import Envelope, Model, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkState:
    """How a network is, for the API and the page of models."""

    name: str
    loaded: bool
    last_used: float | None  # seconds since 1970
    envelope: Envelope | None
    failing: str  # why it is not run any more; else empty

    def as_json(self) -> dict[str, Any]:
        """As the API shows it."""
        sizes = self.envelope and {
            "device": self.envelope.device,
            "resident_bytes": self.envelope.resident_bytes,
            "batch_bytes": dict(self.envelope.batch_bytes),
            "best_batch": self.envelope.best_batch,
        }
        return {
            "name": self.name,
            "loaded": self.loaded,
            "last_used": self.last_used,
            "failing": self.failing,
            "envelope": sizes,
        }


class Registry:
    """The networks by name, and the models that use them."""

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self._users: dict[str, set[str]] = {}  # models, by network
        self._broken: dict[str, BackendError] = {}  # by model

    def add(self, model: Model) -> None:
        """Make a model's networks known, all of them.

        Raises
        ------
        ContractBroken
            If another model describes one of them otherwise.
        """
        for network in model.networks:
            if self.networks.setdefault(network.name, network) != network:
                raise ContractBroken(
                    doing=f"adding the network {network.name}",
                    found="another model describes its tensors otherwise",
                    rule="a network that several models share has one input and one output",
                    way_out="let their model.toml agree, or give one of them a network of its own",
                )
            self._users.setdefault(network.name, set()).add(model.spec.name)
        self._broken.pop(model.spec.name, None)

    def refuse(self, model: str, exc: BackendError) -> None:
        """A model may not run; the networks that only it uses are forgotten."""
        self._broken[model] = exc
        for network, users in list(self._users.items()):
            users.discard(model)
            if not users:
                del self._users[network], self.networks[network]

    def require(self, model: str) -> None:
        """Raise what makes a model unfit to run, if anything does."""
        if model in self._broken:
            raise self._broken[model]
