"""The patches that wait, and which of them come next. Pure: it knows neither threads nor time of its own.

- Streams (one model's work on one study) share the device's time equally: each patch gets the virtual time at which
  its stream has had its share (start-time fair queueing), and the smallest goes first. A long study so does not hold up
  a short one, and a slow network not a fast one.
- What is more urgent goes first, at the next patch; but every `SHARE`-th batch is for what is less urgent, so that
  nobody starves.
- Patches of one network and one urgency go together, of whichever study, up to the network's best batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Event

from service.types import Array, Priority

SHARE = 4  # batches, the last of which is for less urgent work where there is any
Answers = tuple[Array, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Stream:
    """One model's work on one study, as the scheduler sees it."""

    priority: Priority = Priority.ROUTINE
    cancelled: Event = field(default_factory=Event)  # set once nobody wants the answer; streams of a study share it
    turn: float = 0.0  # the virtual time of its next patch, seconds


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A patch that waits."""

    stream: Stream
    network: str
    patch: Array
    future: Future[Answers]
    turn: float  # virtual time at which it is due, seconds
    number: int  # in the order of arrival
    since: float  # when it came, on the scheduler's clock
    alone: bool = False  # whether it runs by itself, because a runtime died with it

    @property
    def order(self) -> tuple[int, float, int]:
        """What goes before what."""
        return self.stream.priority, self.turn, self.number


class Waiting:
    """The jobs that wait."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []  # few: streams keep only some patches ahead
        self._numbers = itertools.count()
        self._now = 0.0  # virtual
        self._urgent_in_a_row = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, stream: Stream, network: str, patch: Array, *, cost_seconds: float, now: float) -> Job:
        """Let a patch wait.

        Parameters
        ----------
        cost_seconds
            What a patch of the network takes of the device.
        now
            On the scheduler's clock.
        """
        turn = max(stream.turn, self._now)
        stream.turn = turn + cost_seconds
        job = Job(
            stream=stream,
            network=network,
            patch=patch,
            future=Future(),
            turn=turn,
            number=next(self._numbers),
            since=now,
        )
        self._jobs.append(job)
        return job

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Let jobs wait again, where they stood."""
        self._jobs.extend(jobs)

    def networks(self, priority: Priority | None = None) -> set[str]:
        """The networks that somebody waits for; or somebody of that urgency."""
        return {job.network for job in self._jobs if priority in (None, job.stream.priority)}

    def groups(self, best_batch: Callable[[str], int]) -> list[list[Job]]:
        """What could be run next, the best choice first: of each network a batch.

        Parameters
        ----------
        best_batch
            The most patches of a network that go together.
        """
        ordered = sorted(self._jobs, key=lambda job: job.order)
        if self._urgent_in_a_row >= SHARE - 1 and ordered:
            first = ordered[0].stream.priority
            # Among the less urgent the turn alone counts, or the least urgent would starve behind the others.
            ordered.sort(key=lambda job: (job.stream.priority == first, job.turn, job.number))
        groups: dict[str, list[Job]] = {}
        for job in ordered:
            group = groups.setdefault(job.network, [])
            if not group or (job.stream.priority == group[0].stream.priority and len(group) < best_batch(job.network)):
                group.append(job)
        return list(groups.values())

    def suspects(self) -> list[Job]:
        """The jobs that are to run alone, in order."""
        return sorted((job for job in self._jobs if job.alone), key=lambda job: job.order)

    def take(self, jobs: list[Job]) -> None:
        """These begin to run."""
        classes = {job.stream.priority for job in self._jobs}
        passes_over = jobs[0].stream.priority == min(classes) < max(classes)
        self._urgent_in_a_row = self._urgent_in_a_row + 1 if passes_over else 0
        self._now = max(self._now, jobs[0].turn)
        self._jobs = [job for job in self._jobs if job not in jobs]

    def remove(self, unwanted: Callable[[Job], bool]) -> list[Job]:
        """Take out what is unwanted, and return it."""
        out = [job for job in self._jobs if unwanted(job)]
        self._jobs = [job for job in self._jobs if not unwanted(job)]
        return out
