"""What went wrong with the device and its networks, and what that means for what comes next. Pure.

- Out of memory: the network keeps to half the batch until it is loaded again.
- The runtime died, or did not answer in time, with one patch alone in it: a strike. A network with `STRIKES` of them,
  and no study between that it answered to the end, is not run any more.
- Nobody answers: everything waits, with growing pauses, for at most `PATIENCE_SECONDS`.
"""

from __future__ import annotations

from service.errors import BackendError, NetworkFails

STRIKES = 3
PATIENCE_SECONDS = 60.0
PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0)  # seconds between tries while nobody answers


class Faults:
    """The memory of what went wrong."""

    def __init__(self) -> None:
        self._most: dict[str, int] = {}
        self._strikes: dict[str, int] = {}
        self.failing: dict[str, NetworkFails] = {}  # the networks that are not run any more, and why
        self._away_since: float | None = None
        self._away_tries = 0
        self.again_at = 0.0  # on the scheduler's clock: before that nobody is asked

    def most(self, network: str) -> int | None:
        """The most patches that were seen to fit into a batch; None: not yet seen not to."""
        return self._most.get(network)

    def halve(self, network: str, size: int) -> None:
        """A batch of so many patches did not fit."""
        self._most[network] = max(1, size // 2)

    def loaded(self, network: str) -> None:
        """A network is loaded anew, perhaps beside others than before."""
        self._most.pop(network, None)

    def worked(self) -> None:
        """A batch came back."""
        self._away_since, self._away_tries = None, 0

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

    def away(self, now: float) -> bool:
        """Nobody answers; whether that is worth waiting for, until `again_at`."""
        self._away_since = now if self._away_since is None else self._away_since
        self.again_at = now + PAUSES[min(self._away_tries, len(PAUSES) - 1)]
        self._away_tries += 1
        if now - self._away_since < PATIENCE_SECONDS:
            return True
        self._away_since, self._away_tries, self.again_at = None, 0, 0.0
        return False

    @property
    def is_away(self) -> bool:
        """Whether the last that was heard is that nobody answers."""
        return self._away_since is not None
