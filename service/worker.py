"""The two workflows: answer a study, bring one object to one destination. Each call is one attempt, and never raises.

The store says what is due, and the watch calls. An attempt never waits for the next one: it writes down when that is
due, and gives its place to another. So a crash loses nothing: what was not written down is due again after the next
start, and what is done twice leaves the same. Evidence is frozen once, rows are written by key, a peer takes an object
that it has as the same one.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service import evidence, faults, log, metrics
from service.analysis import kept as stages
from service.analysis.kept import KeptStages
from service.analysis.schedule import Scheduler
from service.config import Config
from service.delivery import Attempt, attempt, is_away, tell
from service.errors import NotUnderstood, ServiceError, Stopping, Superseded
from service.files import sync_folder
from service.intake.study import group, read_instance
from service.line import Line
from service.pipeline import analyse, unreadable
from service.results.choice import choose, everything
from service.results.negotiate import Acceptance
from service.store import Store
from service.types import (
    OPEN,
    Completeness,
    Delivery,
    DeliveryState,
    Evidence,
    FrozenAnswer,
    FrozenObject,
    Model,
    Priority,
    Study,
)

_SAVE_SECONDS = 5.0  # between tries to write down how an attempt ended, while the database is away
_FULL_SECONDS = 15.0  # between tries while the disk is full
_MOST_ENDS = 5  # of the process while it was at work on a study, in a row; then it is not looked at any more
_ANALYSIS_PAUSES = (5.0, 15.0, 60.0, 300.0, 900.0)  # seconds between tries, e.g. while a backend is away


class Worker:
    """The workflows of this process.

    Parameters
    ----------
    lines
        By destination: told how each association went.
    stopping
        Set when the process is to end: whoever waits, waits on this.
    name
        Of this process, by which it has taken what it works on.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        models: tuple[Model, ...],
        scheduler: Scheduler,
        *,
        acceptance: Acceptance,
        lines: Mapping[str, Line],
        stopping: threading.Event,
        name: str = "",
    ) -> None:
        self._name = name
        self._config, self._store, self._models, self._scheduler = config, store, models, scheduler
        self._acceptance, self._lines, self._stopping = acceptance, lines, stopping
        self._progress: dict[str, dict[str, dict[str, Any]]] = {}
        self._analysing: dict[tuple[str, int], threading.Event] = {}  # set when nobody wants the answer

    def progress_of(self, study_uid: str) -> dict[str, dict[str, Any]]:
        """How far each model is with a study that is being analysed."""
        return dict(self._progress.get(study_uid, {}))

    def cancel_superseded(self) -> None:
        """End the analyses of which nobody wants the answer any more, since later instances came."""
        for (study_uid, revision), cancelled in list(self._analysing.items()):
            if not cancelled.is_set() and not self._store.is_analysing(study_uid, revision):
                log.event("analysis.cancelled", study_uid=study_uid, revision=revision)
                self._scheduler.cancel(cancelled)

    # --- Answer a study ---------------------------------------------------------------------------------------------

    def answer(self, study_uid: str, revision: int, tries: int, priority: Priority) -> None:
        """Analyse, freeze the evidence, remember the answers and what is to be delivered; or say when to try again."""
        if not self._store.is_analysing(study_uid, revision):
            log.event("study.superseded", study_uid=study_uid, revision=revision)
            return
        directory = self._config.store.directory
        kept = KeptStages(stages.folder_of(directory, study_uid, revision))
        try:
            if not evidence.folder_of(directory, study_uid, revision).exists():
                ends = self._store.begun_in_vain(study_uid) - 1
                if ends >= _MOST_ENDS:
                    log.event("study.given_up", study_uid=study_uid, ends=ends)
                self._analyse(
                    study_uid,
                    revision,
                    priority,
                    kept,
                    last_try=tries >= len(_ANALYSIS_PAUSES),
                    reason=f"the service ended {ends} times while it was at work on it" if ends >= _MOST_ENDS else "",
                )
            if self._save_answers(study_uid, revision):
                faults.point("answers.committed")
                kept.clear()
            else:
                log.event("study.superseded", study_uid=study_uid, revision=revision)
        except Superseded:
            log.event("study.superseded", study_uid=study_uid, revision=revision)
        except Stopping:
            log.event("analysis.left", study_uid=study_uid)  # it is due again at the next start
        except Exception as exc:  # a backend or a database that is away, a full disk: tried until somebody mends it
            log.failure("analysis.postponed", exc, study_uid=study_uid)
            is_full = isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)  # room comes by itself
            pause = _FULL_SECONDS if is_full else _ANALYSIS_PAUSES[min(tries, len(_ANALYSIS_PAUSES) - 1)]
            words = exc.found if isinstance(exc, ServiceError) else type(exc).__name__
            self._until_saved(
                lambda: self._store.postpone_study(
                    study_uid, revision, until=time.time() + pause, words=words, holder=self._name
                )
            )

    def _analyse(
        self, study_uid: str, revision: int, priority: Priority, kept: KeptStages, *, last_try: bool, reason: str
    ) -> None:
        """Answer it; with a reason, that it is not analysed, and why."""
        files, received_at = self._store.files_of(study_uid)
        study = _read_study(study_uid, files, received_at, *self._store.judgement_of(study_uid))
        faults.point("analysis.read")

        def progress(*, model: str, stage: str, done: int, total: int) -> None:
            self._progress.setdefault(study_uid, {})[model] = {"stage": stage, "done": done, "total": total}

        cancelled = self._analysing[study_uid, revision] = threading.Event()
        try:
            if study:
                result = analyse(
                    study,
                    self._models,
                    self._scheduler,
                    progress=progress,
                    wanted=self._config.wanted,
                    earlier=evidence.reports_of(self._store.answers(study_uid)),
                    last_try=last_try,
                    priority=priority,
                    cancelled=cancelled,
                    kept=kept,
                    given_up=reason,
                )
            else:
                result = Evidence(
                    study_instance_uid=study_uid,
                    answers=tuple(unreadable(model, "none of its files can be read") for model in self._models),
                )
        finally:
            del self._analysing[study_uid, revision]
            self._progress.pop(study_uid, None)
        faults.point("analysis.answered")
        evidence.freeze(self._config.store.directory, result, revision)
        for answer in result.answers:
            metrics.ANSWERS.labels(model=answer.model.name, outcome=answer.outcome).inc()
            log.event(
                "study.answered",
                study_uid=study_uid,
                model=answer.model.name,
                outcome=answer.outcome,
                findings=len(answer.findings),
                seconds=round(sum(answer.seconds.values()), 1),
            )

    def _save_answers(self, study_uid: str, revision: int) -> bool:
        """Remember the frozen answers and queue their objects; False if a later instance made them out of date."""
        folder = evidence.folder_of(self._config.store.directory, study_uid, revision)
        sync_folder(folder.parent)  # where a crash came between its name and that
        answers = evidence.frozen_answers(folder)
        # What was sent once, and whose bytes are gone since (retention), is not sent with others under the same UID.
        gone = {uid for uid, path in self._store.delivered(study_uid).items() if not path.exists()}
        deliveries = [
            _queued(made, answer, study_uid=study_uid, destination=destination.name, folder=folder)
            for answer in evidence.answers_in(folder)
            for destination in self._config.destinations
            for made in choose(answer, destination.profile, everything).objects
            if made.sop_instance_uid not in gone
        ]
        bodies = {answer["model"]: (answer["outcome"], answer) for answer in answers}
        return self._store.save_answers(study_uid, revision, answers=bodies, deliveries=deliveries)

    # --- Bring one object to one destination ------------------------------------------------------------------------

    def deliver(self, delivery_id: int) -> None:
        """Send what is accepted, or choose what goes in its place; look for the receipt; write down how that ended."""
        delivery = self._store.delivery(delivery_id)
        destination, line = self._config.destination(delivery.destination), self._lines[delivery.destination]
        if destination is None or delivery.state not in OPEN:
            return
        faults.point("delivery.claimed")
        answer = evidence.answer_of(delivery.path.parent, delivery.sop_instance_uid)
        made = attempt(
            delivery,
            destination,
            self._store,
            answer=answer,
            acceptance=self._acceptance,
            our_ae_title=self._config.intake.ae_title,
        )
        if is_away(made.error):
            seconds = line.failed(made.reason)
            log.event("line.pausing", destination=destination.name, seconds=round(seconds, 1))
        elif made.associated and line.associated():
            log.event("line.well", destination=destination.name)
        self._until_saved(lambda: self._note(delivery, made, answer))
        faults.point("delivery.confirmed")

    def _note(self, delivery: Delivery, made: Attempt, answer: FrozenAnswer | None) -> None:
        number = delivery.delivery_id
        waited: float | None
        if made.in_its_place:
            assert answer
            instead = [
                _queued(
                    it,
                    answer,
                    study_uid=delivery.study_instance_uid,
                    destination=delivery.destination,
                    folder=delivery.path.parent,
                )
                for it in made.in_its_place
            ]
            waited = self._store.replace_delivery(
                number, reason=made.reason, withdrawn=made.withdrawn, in_its_place=instead
            )
        else:
            waited = self._store.note_delivery(
                number, made.state, reason=made.reason, tried=made.counts, next_at=made.next_at
            )
        if waited is not None:  # else it was ended meanwhile, or another process was first
            tell(delivery, made, seconds_since_last_slice=waited)

    def _until_saved(self, save: Callable[[], object]) -> None:
        """Write something down, however long the database is away; when we stop, the next start does it all again."""
        while True:
            try:
                save()
                return
            except Exception as exc:
                log.failure("store.away", exc)
                if self._stopping.wait(_SAVE_SECONDS):
                    return


def _read_study(
    study_uid: str, files: list[Path], received_at: float, completeness: Completeness, missing: str
) -> Study | None:
    """The study, partial without what can't be read, which is said aloud; None if nothing can."""
    instances = []
    for path in files:
        try:
            instances.append(read_instance(path))
        except NotUnderstood as exc:
            if isinstance(exc.__cause__, OSError) and not isinstance(exc.__cause__, FileNotFoundError):
                raise  # of the disk, not of the file: the analysis is tried again
            log.warning("instance.unreadable", exc, study_uid=study_uid)
    if not instances:
        return None
    if len(instances) < len(files):
        unreadable = f"{len(files) - len(instances)} of {len(files)} files can't be read, or were removed"
        completeness, missing = Completeness.PARTIAL, "; ".join(filter(None, (missing, unreadable)))
    return group(instances, completeness=completeness, missing=missing, received_at=received_at)[0]


def _queued(made: FrozenObject, answer: FrozenAnswer, *, study_uid: str, destination: str, folder: Path) -> Delivery:
    """An object that is to go to a destination."""
    return Delivery(
        delivery_id=0,
        study_instance_uid=study_uid,
        destination=destination,
        model=answer.model,
        kind=made.kind,
        sop_class_uid=made.sop_class_uid,
        series_instance_uid=made.series_instance_uid,
        sop_instance_uid=made.sop_instance_uid,
        path=folder / made.file,
        state=DeliveryState.QUEUED,
        attempts=0,
        reason="",
        queued_at=time.time(),
    )
