"""What the HTTP side shows, and whom it asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.config import Config
from service.intake.complete import Verdict
from service.intake.keep import Keeper
from service.snapshot import Snapshot
from service.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The parts of the service that the HTTP side looks at; it holds no state of its own."""

    config: Config
    store: Store
    readiness: Callable[[], dict[str, str]]  # by part: empty if it is well, else what is wrong with it
    progress: Callable[[str], dict[str, dict[str, Any]]]  # of a study, by model
    waiting: Callable[[str], Verdict | None]  # why a study waits for more instances, if it does
    lines: Callable[[], dict[str, dict[str, Any]]]  # how each destination is doing
    snapshot: Callable[[], Snapshot]  # what the gauges say
    networks: Callable[[], list[dict[str, Any]]]  # the models, with how each of their networks is
    keep: Keeper | None = None  # what comes in by STOW-RS; None where no studies are taken
    stopping: Callable[[], bool] = lambda: False  # whether the service stops: then whoever listens for events is let go
    memory: Callable[[], tuple[int, int]] = lambda: (0, 0)  # of the device, taken and allowed; bytes, 0: not known
