"""When a study is whole. Pure: it is told the times, and says what follows from them.

The clock runs on every instance; the end of an association means nothing, for some PACS open one per image.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a study may be analysed, and why."""

    whole: bool
    reason: str  # in words, for the API
    seconds_left: float  # how long it will wait if nothing more comes


def quiet(*, last_at: float, now: float, quiet_seconds: float) -> Verdict:
    """Judge a study by how long no instance of it has come.

    Parameters
    ----------
    last_at, now
        When the last instance came, and now; seconds since 1970.
    quiet_seconds
        How long it must have been quiet.
    """
    left = last_at + quiet_seconds - now
    if left > 0:
        return Verdict(whole=False, reason=f"instances may still come; ready in {left:.0f} s", seconds_left=left)
    return Verdict(whole=True, reason=f"no instance came for {quiet_seconds:g} s", seconds_left=0.0)
