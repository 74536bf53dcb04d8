"""Which networks are loaded, what they and their running batches take, and what may come beside them. Pure.

Without a limit (the backend sees to its memory itself) everything fits, and nothing is ever unloaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from service.types import Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A batch that may run now."""

    size: int  # patches; perhaps fewer than were asked for
    load: bool  # whether the network must be loaded first
    unload: tuple[str, ...]  # what must go before that, the longest unused first


@dataclass(slots=True)
class _Loaded:
    used: int  # when its last batch began, on a clock of its own
    running: dict[int, int] = field(default_factory=dict)  # bytes of each batch, by its ticket


class Memory:
    """The account of one device.

    Parameters
    ----------
    limit_bytes
        What loaded networks and running batches may take together; 0: no limit.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._envelopes: dict[str, Envelope] = {}
        self._loaded: dict[str, _Loaded] = {}
        self._clock = itertools.count(1)

    def learn(self, network: str, envelope: Envelope) -> None:
        """Note what a network takes."""
        self._envelopes[network] = envelope

    def envelope(self, network: str) -> Envelope | None:
        """What a network takes, once it was loaded."""
        return self._envelopes.get(network)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The loaded networks, the longest unused first."""
        return tuple(sorted(self._loaded, key=lambda name: self._loaded[name].used))

    @property
    def used_bytes(self) -> int:
        """What is taken now, by the envelopes."""
        return sum(self._resident(name) for name in self._loaded) + sum(
            sum(entry.running.values()) for entry in self._loaded.values()
        )

    def least_bytes(self, network: str) -> int:
        """What a network and one patch of it take alone."""
        return self._resident(network) + self._batch(network, 1)

    def fits(self) -> bool:
        """Whether what is taken now is within the limit."""
        return not self.limit_bytes or self.used_bytes <= self.limit_bytes

    def fits_alone(self, network: str) -> bool:
        """Whether a patch of a network can ever run here."""
        return not self.limit_bytes or self.least_bytes(network) <= self.limit_bytes

    def admit(self, network: str, size: int, *, keep: Collection[str] = ()) -> Admission | None:
        """Whether a batch may run now.

        Parameters
        ----------
        size
            Patches that wait.
        keep
            Networks that are not to be unloaded for it.

        Returns
        -------
        Admission or None
            None: not before a running batch has ended, or unless what is kept is given up. A batch is made smaller
            before a network is unloaded for it, down to one patch.
        """
        is_loaded = network in self._loaded
        if not self.limit_bytes:
            return Admission(size=size, load=not is_loaded, unload=())
        free = self.limit_bytes - self.used_bytes - (0 if is_loaded else self._resident(network))
        idle = [name for name in self.loaded if name != network and name not in keep and not self._loaded[name].running]
        for count in range(len(idle) + 1):
            room = free + sum(self._resident(name) for name in idle[:count])
            for smaller in range(size, 0, -1):
                if self._batch(network, smaller) <= room:
                    return Admission(size=smaller, load=not is_loaded, unload=tuple(idle[:count]))
        return None

    def begin(self, network: str, size: int) -> int:
        """A batch begins, and its network counts as loaded from now on; returns a ticket for `end`."""
        entry = self._loaded.setdefault(network, _Loaded(used=0))
        entry.used = next(self._clock)
        entry.running[entry.used] = self._batch(network, size)
        return entry.used

    def end(self, network: str, ticket: int) -> None:
        """That batch has ended, however it did, and whatever became of its network meanwhile."""
        if network in self._loaded:
            self._loaded[network].running.pop(ticket, None)

    def put(self, network: str) -> None:
        """A network was loaded, and nothing of it runs."""
        self._loaded.setdefault(network, _Loaded(used=next(self._clock)))

    def drop(self, network: str) -> None:
        """A network was unloaded."""
        self._loaded.pop(network, None)

    def drop_all(self) -> None:
        """The runtime died, or a server went away: nothing is loaded any more."""
        self._loaded.clear()

    def idle(self) -> tuple[str, ...]:
        """The loaded networks of which nothing runs, the longest unused first."""
        return tuple(name for name in self.loaded if not self._loaded[name].running)

    def _resident(self, network: str) -> int:
        envelope = self._envelopes.get(network)
        return envelope.resident_bytes if envelope else 0

    def _batch(self, network: str, size: int) -> int:
        """Bytes of a running batch; between two measured sizes on the line between them, beyond in proportion."""
        envelope = self._envelopes.get(network)
        if not envelope or not envelope.batch_bytes:
            return 0
        sizes = sorted(envelope.batch_bytes)
        between = float(np.interp(size, sizes, [envelope.batch_bytes[measured] for measured in sizes]))
        return round(between * max(1.0, size / sizes[-1]))
