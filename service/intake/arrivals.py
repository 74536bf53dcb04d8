"""The studies that are still coming in: for how long each has been quiet, what is known of it, when it starts.

Time is monotonic throughout. The wall clock may be set, so a study's ``last_at`` only tells whether an instance came
since. After a restart a study waits anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from service import faults, log
from service.config import Config
from service.errors import SourceUnavailable
from service.intake import sources, stacks
from service.intake.complete import Known, Looked, Next, Verdict, can_be_asked, is_settled, judge
from service.intake.counted import Count
from service.settings.intake import Source
from service.types import Completeness, Receiving

_ASKED_AT_ONCE = 3  # questions to one source: one that hangs leaves threads for the others
_ASKS_KEPT = 4  # of a growing pause, when an instance comes: the next question is due in 4 s at the latest
_TOLD_SECONDS = 3.0  # what changes by less is not written down anew
_REST_SECONDS = 5.0  # before a study is attended to again that made something fail


class ReceivingStore(Protocol):
    """What is asked of the store."""

    def receiving(self) -> list[Receiving]:
        """The studies of which instances may still come."""

    def held(self, study_uid: str) -> dict[str, int]:
        """How many instances of each of its series have come, by Series Instance UID."""

    def own_series(self, study_uid: str) -> frozenset[str]:
        """Series Instance UIDs of the results that were made of it."""

    def files_of(self, study_uid: str) -> tuple[list[Path], float]:
        """Its files, whether they are still there or not, and when the last of them came."""

    def note_waiting(self, study_uid: str, revision: int, *, words: str, until: float) -> None:
        """Write down why it waits, and how long at most (seconds since 1970)."""

    def begin_analysis(
        self, study_uid: str, revision: int, *, last_at: float, completeness: Completeness, judged: str, missing: str
    ) -> bool:
        """Claim it; False if another process was first, or an instance came since ``last_at``."""


class Ask(Protocol):
    """How a source is asked; see `service.intake.sources.ask`."""

    def __call__(self, study_uid: str, source: Source, *, our_ae_title: str) -> Count:
        """What it counts, or SourceUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrival:
    """A study that is coming in."""

    receiving: Receiving  # as the store had it last
    source: Source
    changed_at: float  # when that was seen to change
    again_at: float  # no judgement before
    is_held: bool = False  # whether `known.held` and `known.ours` are of this set
    asked_at: float = 0.0  # when the last question ended
    known: Known = field(default_factory=Known)  # but for the times
    told: tuple[str, float] = ("", 0.0)  # why it waits and until when, as it was last written down

    @property
    def study_uid(self) -> str:
        return self.receiving.study_instance_uid

    def judged(self, now: float) -> Verdict:
        """What follows from what is known."""
        known = replace(self.known, quiet_for=now - self.changed_at, since_asked=now - self.asked_at)
        return judge(known, self.source)


class Arrivals:
    """The memory of the studies that are still coming in, and of no other.

    One thread calls `tick`, which alone judges and claims. Questions and looks run aside, and what they find counts for
    the set for which they were sent: a later instance makes it old. `waiting` may be called by any thread.

    Parameters
    ----------
    aside
        Runs work in another thread, under a name that no other work has at that time; False if it can't now.
    clock
        Seconds, monotonic.
    ask, look
        How a source is asked, and how stacks are looked at.
    """

    def __init__(
        self,
        config: Config,
        store: ReceivingStore,
        *,
        aside: Callable[[str, Callable[[], None]], bool],
        clock: Callable[[], float] = time.monotonic,
        ask: Ask = sources.ask,
        look: Callable[[Iterable[Path]], Looked] = stacks.look,
    ) -> None:
        self._config, self._store, self._aside = config, store, aside
        self._clock, self._ask, self._look = clock, ask, look
        self._lock = threading.Lock()  # held for moments: never while the store, a source or the disk is waited for
        self._arrivals: dict[str, _Arrival] = {}
        self._asking: Counter[str] = Counter()  # questions on their way, by source

    def tick(self) -> None:
        """See what came, and do what is due."""
        self._note(self._store.receiving(), self._clock())
        for arrival in list(self._arrivals.values()):
            if self._clock() < arrival.again_at:
                continue
            try:
                self._attend(arrival)
            except Exception as exc:  # one odd study must not hold up the others
                log.failure("arrival.failed", exc, study_uid=arrival.study_uid)
                self._change(arrival, again_at=self._clock() + _REST_SECONDS)

    def waiting(self, study_uid: str) -> Verdict | None:
        """Why a study waits, and for how long from now; None if it is not known to be coming in."""
        arrival = self._arrivals.get(study_uid)
        return arrival.judged(self._clock()) if arrival else None

    def tell(self) -> None:
        """Write down why each study waits, where that is another reason than before, or another time."""
        for arrival in list(self._arrivals.values()):
            verdict = arrival.judged(self._clock())
            until = time.time() + verdict.seconds_left
            reason, before = arrival.told
            if reason != verdict.reason or abs(before - until) > _TOLD_SECONDS:
                self._store.note_waiting(
                    arrival.study_uid, arrival.receiving.revision, words=verdict.reason, until=until
                )
                self._change(arrival, told=(verdict.reason, until))

    def _note(self, rows: Iterable[Receiving], now: float) -> None:
        """Remember what came since the last tick, and forget what is no longer coming in."""
        with self._lock:
            before, self._arrivals = self._arrivals, {}
            for row in rows:
                arrival = before.get(row.study_instance_uid)
                if arrival is None or arrival.receiving != row:
                    is_same_source = arrival is not None and arrival.receiving.source == row.source
                    arrival = _Arrival(
                        receiving=row,
                        source=arrival.source if arrival and is_same_source else self._config.source(row.source),
                        changed_at=now,
                        again_at=now,
                        asked_at=arrival.asked_at if arrival else 0.0,
                        known=_outdated(arrival.known) if arrival else Known(),
                    )
                self._arrivals[row.study_instance_uid] = arrival

    def _change(self, arrival: _Arrival, **changes: Any) -> _Arrival:
        """Change something of a study, unless anything else became known since: then it is judged anew anyway."""
        changed = replace(arrival, **changes)
        with self._lock:
            if self._arrivals.get(arrival.study_uid) is arrival:
                self._arrivals[arrival.study_uid] = changed
        return changed

    def _learn(self, study_uid: str, learn: Callable[[_Arrival], _Arrival]) -> None:
        """Learn something of a study, if it is still coming in; it is judged anew at the next tick."""
        with self._lock:
            arrival = self._arrivals.get(study_uid)
            if arrival:
                self._arrivals[study_uid] = replace(learn(arrival), again_at=0.0)

    def _attend(self, arrival: _Arrival) -> None:
        now = self._clock()
        is_asked = can_be_asked(arrival.source) and is_settled(now - arrival.changed_at, arrival.source)
        if is_asked and not arrival.is_held:
            held, ours = self._store.held(arrival.study_uid), self._store.own_series(arrival.study_uid)
            arrival = self._change(arrival, known=replace(arrival.known, held=held, ours=ours), is_held=True)
        verdict = arrival.judged(now)
        if verdict.next is Next.START:
            self._start(arrival, verdict)
        elif verdict.next is Next.ASK:
            self._send_question(arrival)
        elif verdict.next is Next.LOOK:
            self._send_look(arrival)
        else:
            self._change(arrival, again_at=now + verdict.again_in)

    def _start(self, arrival: _Arrival, verdict: Verdict) -> None:
        assert verdict.completeness is not None
        faults.point("study.judged")
        if not self._store.begin_analysis(
            arrival.study_uid,
            arrival.receiving.revision,
            last_at=arrival.receiving.last_at,
            completeness=verdict.completeness,
            judged=verdict.reason,
            missing=verdict.missing,
        ):
            return  # an instance came, or another process was first: the next tick sees it
        faults.point("study.begun")
        with self._lock:
            self._arrivals.pop(arrival.study_uid, None)
        log.event(
            "study.ready",
            study_uid=arrival.study_uid,
            revision=arrival.receiving.revision,
            completeness=verdict.completeness,
            reason=verdict.reason,
        )

    def _send_question(self, arrival: _Arrival) -> None:
        title = arrival.source.ae_title
        if self._asking[title] >= _ASKED_AT_ONCE:
            return
        with self._lock:
            self._asking[title] += 1
        sent = self._change(arrival, known=replace(arrival.known, is_asking=True))
        if not self._aside(f"ask {arrival.study_uid}", lambda: self._ask_aside(arrival)):
            self._asked(title)
            self._change(sent, known=arrival.known)

    def _send_look(self, arrival: _Arrival) -> None:
        sent = self._change(arrival, known=replace(arrival.known, is_looking=True))
        if not self._aside(f"look {arrival.study_uid}", lambda: self._look_aside(arrival)):
            self._change(sent, known=arrival.known)

    def _asked(self, title: str) -> None:
        with self._lock:
            self._asking[title] -= 1
            self._asking += Counter()  # drops those at 0

    # --- In other threads -------------------------------------------------------------------------------------------

    def _ask_aside(self, arrival: _Arrival) -> None:
        """Ask the source, and see which files are there: what is verified is what can be read."""
        left: dict[str, Any] = {}
        count, problem = None, "the question could not be put"
        try:
            if arrival.receiving.revision > 0:
                left = self._what_is_left(arrival.study_uid)
            count = self._ask(arrival.study_uid, arrival.source, our_ae_title=self._config.intake.ae_title)
            problem = ""
        except SourceUnavailable as exc:
            problem = exc.found
            if problem != arrival.known.problem:
                log.warning("source.unavailable", exc, study_uid=arrival.study_uid, source=arrival.source.ae_title)
        except Exception as exc:  # the database or the disk is away; the clock goes on
            log.failure("source.not_asked", exc, study_uid=arrival.study_uid, source=arrival.source.ae_title)

        def learn(now_known: _Arrival) -> _Arrival:
            known = replace(
                now_known.known,
                is_asking=False,
                asks=now_known.known.asks + 1,
                problem=problem,
                count=count or now_known.known.count,
            )
            if now_known.receiving == arrival.receiving:  # else the answer is of an earlier set
                known = replace(known, was_asked=True, is_fresh=count is not None, **left)
            return replace(now_known, asked_at=self._clock(), known=known)

        self._asked(arrival.source.ae_title)
        self._learn(arrival.study_uid, learn)

    def _what_is_left(self, study_uid: str) -> dict[str, Any]:
        """Of a study that came back after its files were removed: what of it is there. Nothing to say if all is."""
        paths, _ = self._store.files_of(study_uid)
        left = [path for path in paths if os.path.exists(path)]
        if len(left) == len(paths):
            return {}
        held = {stack.series_instance_uid: stack.instances for stack in self._look(left).stacks}
        return {"held": held, "gone": len(paths) - len(left)}

    def _look_aside(self, arrival: _Arrival) -> None:
        looked = Looked()
        try:
            looked = self._look(self._store.files_of(arrival.study_uid)[0])
        except Exception as exc:  # it starts as if nothing were seen to be missing, and is not left waiting for ever
            log.failure("stacks.not_looked_at", exc, study_uid=arrival.study_uid)

        def learn(now_known: _Arrival) -> _Arrival:
            is_same = now_known.receiving == arrival.receiving
            known = replace(now_known.known, is_looking=False, looked=looked if is_same else now_known.known.looked)
            return replace(now_known, known=known)

        self._learn(arrival.study_uid, learn)


def _outdated(known: Known) -> Known:
    """What is still known after an instance came."""
    asks = min(known.asks, _ASKS_KEPT)
    return replace(known, gone=0, is_fresh=False, asks=asks, was_asked=False, looked=None)
