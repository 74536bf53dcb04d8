"""The watch: asks the store what is due, ten times a second, and gives it to threads that are free.

Each kind of work has a lane of its own, each destination too. Nothing is taken that no thread is free for, so what is
most urgent at that moment goes first, and what a dead destination waits for stays where it is: in the store.
Several processes may watch one store. What one of them has taken it keeps by renewing it (`keep`); what a dead one had
taken is due again when that ends. One of them leads: it judges what comes in, and removes what is old.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from service import evidence, log, timers
from service.analysis import kept
from service.analysis.schedule import Scheduler
from service.config import Config
from service.intake.arrivals import Arrivals
from service.intake.complete import Verdict
from service.lanes import Lane
from service.line import Line
from service.pulse import alive
from service.results.negotiate import Acceptance, negotiate
from service.retention import forget
from service.store import Store
from service.types import Model, Priority
from service.worker import Worker

_TICK_SECONDS = 0.1
LEASE_SECONDS = 60.0  # after which what was taken is due again, unless it is kept
_PREPARE_SECONDS = 2.0  # between two tries to begin
_LEAD_SECONDS = 1.0  # between two looks at who leads
_DRAFT_SECONDS = 3600.0  # so long no process at work leaves a draft alone
_ALONE_SECONDS = 600.0  # for a study that is tried alone
_STEP_SECONDS = 2.0  # the wall clock was set back if it lost so much against the monotonic one
_FORGET_SECONDS = 600.0
_ASKING = 8  # sources asked, and series looked at, at the same time


class Watch:
    """The watch of this process, and its lanes.

    Parameters
    ----------
    config, store, models, scheduler
        What the workflows work with.
    name
        Of this process, the same after each start.
    """

    def __init__(
        self, config: Config, store: Store, models: tuple[Model, ...], scheduler: Scheduler, *, name: str = ""
    ) -> None:
        self._config, self._store, self._name = config, store, name
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._lines = {
            destination.name: Line(
                first_pause_seconds=destination.first_pause_seconds,
                longest_pause_seconds=destination.longest_pause_seconds,
            )
            for destination in config.destinations
        }
        self._worker = Worker(
            config,
            store,
            models,
            scheduler,
            acceptance=Acceptance(partial(negotiate, our_ae_title=config.intake.ae_title)),
            lines=self._lines,
            stopping=self._stopping,
            name=name,
        )
        self._urgent = self._lane("urgent studies", 1)  # a STAT study has a place of its own: it waits for no other
        self._studies = self._lane("studies", config.analysis.studies_at_once)
        self._deliveries = {it.name: self._lane(f"deliveries to {it.name}", it.at_once) for it in config.destinations}
        self._asking, self._forgetting = self._lane("arrivals", _ASKING), self._lane("retention", 1)
        self._arrivals = Arrivals(config, store, aside=self._asking.begin)
        self._ahead = time.time() - time.monotonic()  # of the wall clock, as of the last look
        self._forget_at = self._lead_at = 0.0
        self._leads = self._is_prepared = False
        self._doubtful, self._alone_until = deque[str](), 0.0  # see `_begins_nothing_beside`
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look, once what was left unfinished is due."""
        timers.make_monotonic()
        self._thread.start()

    def _prepare(self) -> None:
        evidence.sweep(
            self._config.store.directory, older_than_seconds=_DRAFT_SECONDS if self._store.is_shared else 0.0
        )
        kept.clear_all_but(self._config.store.directory, self._store.analysing())
        self._store.release(self._whose)
        self._doubtful.extend(self._store.doubtful())
        self._refuse_unknown()
        self._is_prepared = True

    def stop(self, *, grace_seconds: float) -> None:
        """Begin nothing new; wait for what runs, but not for long: what is left is due again at the next start."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():  # else it was not started yet; if it is now, it ends at once
            self._thread.join()
        at_work = self._at_work()
        until = time.monotonic() + grace_seconds
        for lane in (self._urgent, self._studies, *self._deliveries.values(), self._forgetting):
            lane.wait(until=until)
        self._carefully(lambda: self._store.note_left(at_work))

    def _at_work(self) -> list[tuple[str, int]]:
        """UID and revision of the studies that are at work here."""
        keys = [key.split() for lane in (self._urgent, self._studies) for key in lane.at_work()]
        return [(study_uid, int(revision)) for study_uid, revision in keys]

    @property
    def _whose(self) -> str | None:
        """Whose work is ours to touch: this process's, or all where there is no other one."""
        return self._name if self._store.is_shared else None

    def keep(self) -> None:
        """Keep what is at work here; called more often than a lease is long."""
        self._store.renew(
            self._name,
            until=time.time() + LEASE_SECONDS,
            studies=self._at_work(),
            deliveries=[int(key) for lane in self._deliveries.values() for key in lane.at_work()],
        )

    def tell(self) -> None:
        """Write down for other processes' pages how far each study is, and why one waits."""
        for study_uid, revision in self._at_work():
            self._store.note_progress(study_uid, revision, self.progress_of(study_uid))
        if self._leads:
            self._arrivals.tell()

    def is_watching(self) -> bool:
        """Whether it looks."""
        return self._thread.is_alive()

    def progress_of(self, study_uid: str) -> dict[str, dict[str, Any]]:
        """How far each model is with a study that is being analysed."""
        return self._worker.progress_of(study_uid)

    def waiting(self, study_uid: str) -> Verdict | None:
        """Why a study waits for more instances, and how long; None where it does not, or is not known yet."""
        return self._arrivals.waiting(study_uid) if self._leads else None  # else another process judges it

    def lines(self) -> dict[str, dict[str, Any]]:
        """How each destination is doing, as far as associations go."""
        return {name: line.as_json() for name, line in self._lines.items()}

    def _refuse_unknown(self) -> None:
        """Stop what waits for a destination that no process knows: in an upgrade others may have a newer file."""
        known = set(self._lines)
        if self._store.is_shared:
            for other in alive(self._store.processes(), now=time.time(), but=self._name):
                known.update(other["status"].get("lines", {}))
        unknown = self._store.refuse_unknown(sorted(known))
        if unknown:
            log.warning("delivery.no_destination", deliveries=unknown)

    def _lane(self, name: str, threads: int) -> Lane:
        return Lane(name, threads, done=self._wake.set)

    def _watch(self) -> None:
        while not self._stopping.is_set() and not self._is_prepared:  # the database may be away just now
            self._carefully(self._prepare)
            if not self._is_prepared:
                self._stopping.wait(_PREPARE_SECONDS)
        while not self._stopping.is_set():
            for look in (self._see_clock, self._lead, self._begin_studies, self._begin_deliveries):
                self._carefully(look)
            self._wake.wait(_TICK_SECONDS)
            self._wake.clear()

    @staticmethod
    def _carefully(look: Callable[[], None]) -> None:
        try:
            look()
        except Exception as exc:  # the watch must outlive a database that is away
            log.failure("watch.failed", exc)

    def _lead(self) -> None:
        if time.monotonic() >= self._lead_at:
            self._lead_at = time.monotonic() + _LEAD_SECONDS
            before, self._leads = self._leads, self._store.leads()
            if self._leads and not before and self._store.is_shared:
                log.event("process.leads", process=self._name)
        if self._leads:
            self._carefully(self._arrivals.tick)
            self._carefully(self._tidy)

    def _see_clock(self) -> None:
        ahead = time.time() - time.monotonic()
        if ahead < self._ahead - _STEP_SECONDS:
            log.warning("clock.set_back", seconds=round(self._ahead - ahead, 1))
            self._store.hurry()
        self._ahead = ahead

    def _begin_studies(self) -> None:
        self._worker.cancel_superseded()
        if self._begins_nothing_beside():
            return
        for lane, urgent in ((self._urgent, True), (self._studies, False)):
            if lane.free:
                self._begin_due(lane, urgent=urgent)

    def _begins_nothing_beside(self) -> bool:
        """Begin the doubtful studies one after the other, each alone: only the one that ends us is to be given up."""
        now = time.monotonic()
        if not self._at_work():
            self._alone_until = 0.0
            if not self._doubtful:
                return False
            if self._begin_due(self._studies, only=self._doubtful[0]):
                self._alone_until = now + _ALONE_SECONDS
            self._doubtful.popleft()
            return True
        if now >= self._alone_until:  # one that takes so long holds up nobody any more
            self._alone_until = 0.0
            self._doubtful.clear()
        return self._alone_until > 0.0

    def _begin_due(self, lane: Lane, *, urgent: bool = False, only: str = "") -> bool:
        due = self._store.due_studies(
            now=time.time(),
            lease_seconds=LEASE_SECONDS,
            limit=lane.free,
            urgent=urgent,
            holder=self._name,
            only=only,
            but=self._at_work(),
        )
        for study_uid, revision, tries, priority in due:
            work = partial(self._worker.answer, study_uid, revision, tries, Priority(priority))
            lane.begin(f"{study_uid} {revision}", work)
        return bool(due)

    def _begin_deliveries(self) -> None:
        now = time.time()
        for name in self._store.due_destinations(now=now):
            if name not in self._lines:
                self._refuse_unknown()
                continue
            lane, line = self._deliveries[name], self._lines[name]
            room = line.room(lane.free)
            if not room:
                continue
            for number in self._store.due_deliveries(
                name, now=now, lease_seconds=LEASE_SECONDS, limit=room, holder=self._name
            ):
                line.trying(number)
                if not lane.begin(str(number), partial(self._deliver, number, line)):
                    line.untried(number)

    def _deliver(self, number: int, line: Line) -> None:
        try:
            self._worker.deliver(number)
        finally:
            line.untried(number)  # unless it was: then this does nothing

    def _tidy(self) -> None:
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + _FORGET_SECONDS
            self._forgetting.begin("forget", partial(forget, self._config, self._store, now=time.time()))
