"""[edge: pynetdicom] Its timers, by a clock that nobody sets.

They read the wall clock: a step of some minutes forward would end every open association, one back would keep dead
ones.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

from pynetdicom import timer


def make_monotonic() -> None:
    """Let pynetdicom's timers in this process count monotonic seconds."""
    setattr(timer, "time", SimpleNamespace(time=time.monotonic))  # noqa: B010 - for mypy it is a module
