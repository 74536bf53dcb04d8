"""What changed, told to whoever listens: one look at the store for all of them, and only while somebody listens.

What is told are hints to look again, by id: nobody reads here what a study is about.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from anyio import to_thread
from fastapi.sse import ServerSentEvent

from service import log
from service.api.problems import Problem
from service.api.seen import Seen
from service.types import Step

MOST_LISTENERS: Final = 50
_LOOK_SECONDS: Final = 0.5
_STATE_LOOKS: Final = 4  # after so many looks at the steps, one at destinations and readiness
_BEHIND: Final = 1000  # events that a listener may be behind; further back, he is told to read all anew
_OVERLAP: Final = 100  # of two steps at the same moment, the one with the later number may be seen first
_DELIVERY_STEPS: Final = frozenset(
    {
        *(Step.SENT, Step.CONFIRMED, Step.UNCONFIRMED, Step.REFUSED),
        *(Step.REPLACED, Step.DROPPED, Step.RESENT),
    }
)


States = dict[tuple[Any, ...], ServerSentEvent]


@dataclass(eq=False, kw_only=True)
class Listener:
    """Somebody who listens."""

    told: set[int]  # numbers of steps that he knows of, so that none is told twice
    queue: asyncio.Queue[tuple[int, ServerSentEvent] | None] = field(
        default_factory=lambda: asyncio.Queue(_BEHIND + 1)  # None ends it
    )

    def put(self, number: int, event: ServerSentEvent) -> None:
        """Tell him; whoever is too far behind is let go, and comes back with the last number that he has."""
        if number in self.told:
            return
        if number:
            self.told.add(number)
        if self.queue.qsize() >= _BEHIND:
            self.end()
        else:
            self.queue.put_nowait((number, event))

    def end(self) -> None:
        """Let him go."""
        with suppress(asyncio.QueueFull):
            self.queue.put_nowait(None)


class Feed:
    """Looks at what changed, and tells the listeners of one event loop."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._listeners: set[Listener] = set()
        self._task: asyncio.Task[None] | None = None
        self._recent: dict[int, None] = {}  # numbers of the steps that were told lately, in order

    async def open(self, last_event_id: str) -> Listener:
        """Begin to listen, behind that event if there is one.

        Raises
        ------
        Problem
            If too many listen already.
        """
        if len(self._listeners) >= MOST_LISTENERS or self._seen.stopping():
            raise Problem(
                503,
                doing="listening for events",
                found="the service stops" if self._seen.stopping() else f"{MOST_LISTENERS} listen already",
                rule="so many listen at the same time",
                way_out="try again later, or ask for the studies now and then",
                headers={"Retry-After": "30"},
            )
        listener = Listener(told=set())
        self._listeners.add(listener)  # first: what happens while the missed ones are read is told too
        try:
            last = await to_thread.run_sync(self._seen.store.last_step)
            states = await to_thread.run_sync(self._states)
            await self._catch_up(listener, last_event_id, last)
        except BaseException:
            self._listeners.discard(listener)
            raise
        for event in states.values():
            listener.put(0, event)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(last, states))
        return listener

    def close(self, listener: Listener) -> None:
        """Stop to listen."""
        self._listeners.discard(listener)
        if not self._listeners and self._task:
            self._task.cancel()
            self._task = None

    async def _catch_up(self, listener: Listener, last_event_id: str, last: int) -> None:
        """Tell what he missed; from where he is now he begins with the next one."""
        missed: list[tuple[int, str, float, str]] = []
        begin = ServerSentEvent(event="begin", id=str(last), data={"missed": False})
        if last_event_id.isdecimal() and len(last_event_id) < 19 and int(last_event_id) < last:
            since = int(last_event_id)
            missed = await to_thread.run_sync(lambda: self._seen.store.steps_since(since, limit=_BEHIND // 2))
            if len(missed) == _BEHIND // 2:  # more than anybody wants to hear one by one
                missed, begin = [], ServerSentEvent(event="begin", id=str(last), data={"missed": True})
        if not missed:
            listener.put(0, begin)
        for step in missed:
            listener.put(step[0], _event(step))

    async def _look(self, last: int, states: States) -> None:
        """Tell the listeners what is new since then, until nobody listens."""
        self._recent = {}
        looks, is_first = 0, True
        while not self._seen.stopping():
            try:
                steps = await to_thread.run_sync(self._steps_behind, last)
                if is_first:  # what was there when the first listener came is not news
                    self._recent, is_first = {step[0]: None for step in steps if step[0] <= last}, False
                self._tell(steps)
                last = max([last, *(step[0] for step in steps)])
                looks += 1
                if looks % _STATE_LOOKS == 0:
                    now = await to_thread.run_sync(self._states)
                    for event in (now[key] for key in now if key not in states):
                        for listener in self._listeners:
                            listener.put(0, event)
                    states = now
            except Exception as exc:  # the database may be away for a while
                log.failure("events.failed", exc)
            await anyio.sleep(_LOOK_SECONDS)
        for listener in self._listeners:
            listener.end()

    def _tell(self, steps: list[tuple[int, str, float, str]]) -> None:
        for step in steps:
            if step[0] in self._recent:
                continue
            self._recent[step[0]] = None
            event = _event(step)
            for listener in self._listeners:
                listener.put(step[0], event)
        while len(self._recent) > _BEHIND + _OVERLAP:
            self._recent.pop(next(iter(self._recent)))

    def _steps_behind(self, last: int) -> list[tuple[int, str, float, str]]:
        return self._seen.store.steps_since(max(0, last - _OVERLAP), limit=_BEHIND)

    def _states(self) -> States:
        """How destinations and the service are; a key changes with what it stands for."""
        parts = self._seen.readiness()
        ready = not any(parts.values())
        events: States = {("readiness", *parts.items()): ServerSentEvent(event="readiness", data={"ready": ready})}
        for name, line in self._seen.lines().items():
            events["destination", name, line["line"]] = ServerSentEvent(
                event="destination", data={"name": name, "line": line["line"]}
            )
        return events


def _event(step: tuple[int, str, float, str]) -> ServerSentEvent:
    number, study_uid, at, what = step
    kind = "delivery" if what in _DELIVERY_STEPS else "study"
    return ServerSentEvent(event=kind, id=str(number), data={"study_uid": study_uid, "step": what, "at": at})
