"""[edge] The memory of the calls in flight, shared with a Triton server.

A region belongs to one call at a time. It is used again only when the server has said that the call is over: after a
time-out or a broken connection the server may still write into it, and that answer must not become another patient's.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import grpc
from tritonclient.utils import InferenceServerException

from service.backends.triton_channel import status
from service.backends.triton_memory import KINDS, Region

_STILL_WRITING_SECONDS = 600.0  # older servers crash when memory is taken from under a running batch: far beyond that
_MOST_RETIRED = 16
_CLOSE_TRIES, _CLOSE_PAUSE_SECONDS = 10, 0.05
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """A region in the hands of one call."""

    region: Region
    kind: str
    generation: int  # of the server's memory of us: another one, and it is not known there any more
    copied_bytes: int  # when it was lent


class Pool:
    """The regions of one backend: as many as calls in flight, used again, grown when a network needs more.

    Parameters
    ----------
    seconds
        Longest wait for the server to register one.
    """

    def __init__(self, client: Any, *, seconds: float) -> None:
        self._client, self._seconds = client, seconds
        self._lock = threading.Lock()
        self._idle: list[Lent] = []
        self._retired: list[tuple[float, Region]] = []  # perhaps still written to; since when
        self._generation = 0
        self._copied = 0

    @property
    def copied_bytes(self) -> int:
        """What this process copied into and out of regions that came back."""
        return self._copied

    def take(self, kind: str, read: int, written: int) -> Lent:
        """A region that the server knows, of at least that size; give it back, or retire it."""
        self.tidy()
        with self._lock:
            alike = [lent for lent in self._idle if lent.kind == kind]
            fitting = [lent for lent in alike if lent.region.fits(read, written)]
            for lent in (fitting or alike)[-1:]:  # one that fits, or one that makes room for it
                self._idle.remove(lent)
            if fitting:
                return replace(fitting[-1], copied_bytes=fitting[-1].region.copied_bytes)
            too_small = alike[-1] if alike else None
            generation = self._generation
        if too_small:
            self._release(too_small.region)
        region = KINDS[kind](read, written)
        try:
            region.register(self._client, self._seconds)
        except BaseException:
            region.close()
            raise
        return Lent(region=region, kind=kind, generation=generation, copied_bytes=0)

    def give(self, lent: Lent) -> None:
        """Take back a region whose call is over on the server, too."""
        with self._lock:
            self._copied += lent.region.copied_bytes - lent.copied_bytes
            if lent.generation == self._generation:
                self._idle.append(lent)
                return
        self.retire(lent)

    def retire(self, lent: Lent) -> None:
        """Take back a region into which the server may still write: it is never used again."""
        with self._lock:
            self._retired.append((time.monotonic(), lent.region))

    def forget(self) -> None:
        """The server went away: whatever it knew, it may know no more."""
        with self._lock:
            self._generation += 1
            self._retired += [(time.monotonic(), lent.region) for lent in self._idle]
            self._idle.clear()

    def tidy(self) -> None:
        """Let go of retired regions that the server has forgotten, or can't be writing to any more."""
        with self._lock:
            waiting, self._retired = self._retired, []
        kept: list[tuple[float, Region]] = []
        while waiting:
            since, region = waiting.pop(0)
            try:
                if region.is_known(self._client, self._seconds):
                    if time.monotonic() - since < _STILL_WRITING_SECONDS and len(waiting) < _MOST_RETIRED:
                        kept.append((since, region))
                        continue
                    region.unregister(self._client, self._seconds)
            except InferenceServerException:  # away, or it says that a batch still uses it: ask no more now
                kept += [(since, region), *waiting]
                break
            region.close()
        with self._lock:
            self._retired = kept + self._retired

    def close(self) -> None:
        """Unregister and let go of everything; no call of ours may be in flight."""
        with self._lock:
            regions = [lent.region for lent in self._idle] + [region for _, region in self._retired]
            self._idle, self._retired = [], []
        answers = True
        for region in regions:
            if answers:
                answers = self._release(region)
            else:
                region.close()
        for _ in range(_CLOSE_TRIES):
            with self._lock:
                left, self._retired = self._retired, []
            for _, region in left:
                time.sleep(_CLOSE_PAUSE_SECONDS)
                self._release(region)
        for _, region in self._retired:  # the server keeps it until it ends
            region.close()

    def _release(self, region: Region) -> bool:
        """Unregister and let go of a region that no call of ours uses; whether the server answered."""
        answers = True
        try:
            region.unregister(self._client, self._seconds)
        except InferenceServerException as exc:
            answers = status(exc) not in _AWAY
            if answers:  # it counts a region as in use until shortly after the answer: again at the next opportunity
                with self._lock:
                    self._retired.append((-_STILL_WRITING_SECONDS, region))
                return answers
        except ValueError:  # the channel is closed
            answers = False
        region.close()
        return answers
