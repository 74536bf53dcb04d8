"""Which patch runs next: the one place that all patches of all models and studies pass.

Streams (one model's work on one study) share the backend fairly: each waits for its next turn on a common virtual
clock, so a long one does not hold up a short one, and nobody starves. What is more urgent goes first, at the next
patch.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import Stopping
from service.types import Backend

Patch = NDArray[np.float32]
LOOKAHEAD = 3  # patches that a stream may have waiting, so that memory stays bounded and the device never idles


@dataclass(slots=True)
class Stream:
    """One model's work on one study, as the scheduler sees it."""

    priority: int = 0  # smaller goes first
    turn: int = field(default=0)  # the virtual time of its next patch


@dataclass(order=True, slots=True)
class _Job:
    priority: int
    turn: int
    number: int
    network: str = field(compare=False)
    patch: Patch = field(compare=False)
    future: Future[Patch] = field(compare=False)


class Scheduler:
    """Feeds one backend from many streams.

    Parameters
    ----------
    backend
        Gets one batch at a time on each of its ``slots`` threads.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._jobs: list[_Job] = []
        self._numbers = itertools.count()
        self._now = 0
        self._closed = False
        self._wake = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"patches-{slot}", daemon=True) for slot in range(backend.slots)
        ]
        for thread in self._threads:
            thread.start()

    def map(self, stream: Stream, network: str, patches: Iterable[Patch]) -> Iterator[Patch]:
        """Run patches of one network, at most `LOOKAHEAD` ahead of the reader.

        Parameters
        ----------
        patches
            Each [channels, *spatial*], float32.

        Yields
        ------
        numpy.ndarray
            The network's answer to each, in order, [channels, *spatial*], float32.

        Raises
        ------
        BackendError
            As the backend raised it.
        """
        waiting: deque[Future[Patch]] = deque()
        try:
            for patch in patches:
                waiting.append(self._submit(stream, network, patch))
                if len(waiting) > LOOKAHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Finish what runs, refuse what waits, end the threads."""
        with self._wake:
            self._closed = True
            waiting, self._jobs = self._jobs, []
            self._wake.notify_all()
        for job in waiting:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(_stopping())
        for thread in self._threads:
            thread.join()

    def _submit(self, stream: Stream, network: str, patch: Patch) -> Future[Patch]:
        future: Future[Patch] = Future()
        with self._wake:
            if self._closed:
                raise _stopping()
            stream.turn = max(stream.turn + 1, self._now)
            job = _Job(stream.priority, stream.turn, next(self._numbers), network, patch, future)
            heapq.heappush(self._jobs, job)
            self._wake.notify()
        return future

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._jobs and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                job = heapq.heappop(self._jobs)
                self._now = max(self._now, job.turn)
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                answer: Any = self.backend.infer(job.network, job.patch[np.newaxis])
            except BaseException as exc:  # whatever it is, the one who waits must hear it
                job.future.set_exception(exc)
            else:
                job.future.set_result(answer[0])


def _stopping() -> Stopping:
    return Stopping(
        doing="running a patch",
        found="the service is stopping",
        rule="a stopping service begins nothing new",
        way_out="nothing to do; the study is analysed after the restart",
    )
