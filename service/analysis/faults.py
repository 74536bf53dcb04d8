"""What went wrong with the device and its networks, and what that means for what comes next. Pure.

- Out of memory: the network keeps to half the batch until it is loaded again.
- The runtime died, or did not answer in time, with one patch alone in it: a strike. A network with `STRIKES` of them,
  and no study between that it answered to the end, is not run any more.
- Nobody answers for a network: its patches wait, with growing pauses, for at most `PATIENCE_SECONDS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import BackendError, NetworkFails

STRIKES = 3
PATIENCE_SECONDS = 60.0
PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0)  # seconds between tries while nobody answers


@dataclass(slots=True)
class _Away:
    """Since when nobody answers for a network."""

    since: float  # on the scheduler's clock
    tries: int = 0
    again_at: float = 0.0


class Faults:
    """The memory of what went wrong."""

    def __init__(self) -> None:
        self._most: dict[str, int] = {}
        self._strikes: dict[str, int] = {}
        self._away: dict[str, _Away] = {}
        self.failing: dict[str, NetworkFails] = {}  # the networks that are not run any more, and why

    def most(self, network: str) -> int | None:
        """The most patches that were seen to fit into a batch; None: not yet seen not to."""
        return self._most.get(network)

    def halve(self, network: str, size: int) -> None:
        """A batch of so many patches did not fit."""
        self._most[network] = max(1, size // 2)

    def loaded(self, network: str) -> None:
        """A network is loaded anew, perhaps beside others than before."""
        self._most.pop(network, None)

    def worked(self, network: str) -> None:
        """A batch came back."""
        self._away.pop(network, None)

    def ran_through(self, network: str) -> None:
        """A network answered all that a study asked of it."""
        self._strikes.pop(network, None)

    def strike(self, network: str, exc: BackendError) -> NetworkFails:
        """A patch took the runtime down although it ran alone."""
        failure = NetworkFails(
            doing=f"running the network {network}, one patch alone",
            found=exc.found,
            rule="a network answers within [analysis] patch_seconds and leaves the runtime alive",
            way_out="look at the device; take the model out of [analysis] models, or install it anew",
        )
        self._strikes[network] = self._strikes.get(network, 0) + 1
        if self._strikes[network] >= STRIKES:
            self.failing[network] = failure
        return failure

    def away(self, network: str, now: float) -> bool:
        """Nobody answers for a network; whether that is worth waiting for, until `again_at`."""
        known = self._away.get(network)
        if known is None or now > known.again_at + PATIENCE_SECONDS:  # what was long ago was another time
            known = self._away[network] = _Away(since=now)
        known.again_at = now + PAUSES[min(known.tries, len(PAUSES) - 1)]
        known.tries += 1
        if now - known.since < PATIENCE_SECONDS:
            return True
        del self._away[network]
        return False

    def again_at(self, network: str) -> float:
        """Before that, on the scheduler's clock, nobody is asked for a network."""
        return self._away[network].again_at if network in self._away else 0.0
