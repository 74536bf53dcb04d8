"""The durable workflows: analyse a study, deliver one object to one destination. Only this module knows DBOS.

The store says what is due: a study to be analysed, a delivery to be tried. The watch gives each to DBOS, which runs it
in a queue (so many at once, each destination its own), and runs it again after a crash. A workflow is one attempt and
never waits for the next one: it writes down when that is due, and gives its place to another. What is done twice leaves
the same: evidence is frozen once, rows are written by key, a peer takes an object that it has as the same one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSConfig, SetEnqueueOptions, SetWorkflowID

from service import evidence, log, metrics
from service.analysis.schedule import Scheduler
from service.config import Config
from service.delivery import attempt, tell
from service.errors import NotUnderstood, Stopping, Superseded
from service.intake.study import group, read_instance
from service.pipeline import analyse, unreadable
from service.results.choice import choose, everything
from service.results.negotiate import Acceptance, negotiate
from service.store import Store
from service.tables import database_url
from service.types import Delivery, DeliveryState, Evidence, FrozenObject, Model, Priority, Study

_WATCH_SECONDS = 0.5  # how often the store is asked what is due
_POLL_SECONDS = 0.1  # how often DBOS looks for queued workflows
_LEASE_SECONDS = 60.0  # after which the watch looks again whether a workflow of what is due exists
_SAVE_SECONDS = 5.0  # between tries to write down how an attempt ended, while the database is away
_AT_ONCE = 4  # deliveries to one destination
_ANALYSIS_PAUSES = (5.0, 15.0, 60.0, 300.0, 900.0)  # seconds between tries, e.g. while a backend is away
_APPLICATION_VERSION = "1"  # changed only when running workflows can't be finished by the new code
_STUDIES, _URGENT = "studies", "urgent studies"  # a STAT study has a place of its own: it waits for no other
_UNFINISHED = ("ENQUEUED", "PENDING", "DELAYED")  # DBOS's words


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What the workflows work with. DBOS knows them by name only, so the process holds one set."""

    config: Config
    store: Store
    models: tuple[Model, ...]
    scheduler: Scheduler
    acceptance: Acceptance
    stopping: threading.Event  # whoever waits, waits on this


_parts: _Parts | None = None
_progress: dict[str, dict[str, dict[str, Any]]] = {}
_analysing: dict[tuple[str, int], threading.Event] = {}  # by study and revision: set when nobody wants the answer


class Worker:
    """The workflows of this process, and the watch for studies that are ready.

    Parameters
    ----------
    executor_id
        Stable name of this replica: a killed workflow resumes when an executor of the same name starts again.
    """

    def __init__(
        self, config: Config, store: Store, models: tuple[Model, ...], scheduler: Scheduler, *, executor_id: str
    ) -> None:
        global _parts
        self._config, self._store, self._scheduler = config, store, scheduler
        self._stop = threading.Event()
        _parts = _Parts(
            config=config,
            store=store,
            models=models,
            scheduler=scheduler,
            acceptance=Acceptance(partial(negotiate, our_ae_title=config.intake.ae_title)),
            stopping=self._stop,
        )
        self._watch = threading.Thread(target=self._watch_what_is_due, name="watch", daemon=True)
        DBOS(
            config=DBOSConfig(
                name="overread",
                system_database_url=database_url(config.store.directory, config.store.database, name="workflows"),
                executor_id=executor_id,
                application_version=_APPLICATION_VERSION,
                console_log_level="ERROR",
                run_migrations=True,
            )
        )
        # Its own handler prints plain text, and exceptions with their messages.
        logging.getLogger("dbos").handlers.clear()
        logging.getLogger("dbos").propagate = True

    def start(self) -> None:
        """Resume what was unfinished, and look for more."""
        DBOS.launch()
        DBOS.register_queue(
            _STUDIES, worker_concurrency=self._config.analysis.studies_at_once, polling_interval_sec=_POLL_SECONDS
        )
        DBOS.register_queue(_URGENT, worker_concurrency=1, polling_interval_sec=_POLL_SECONDS)
        for destination in self._config.destinations:
            DBOS.register_queue(
                _queue(destination.name), worker_concurrency=_AT_ONCE, polling_interval_sec=_POLL_SECONDS
            )
        evidence.sweep(self._config.store.directory)
        self._store.release()
        self._watch.start()

    def stop(self, *, grace_seconds: float) -> None:
        """Begin nothing new; wait for what runs, but not for long: what is left resumes at the next start."""
        self._stop.set()
        self._watch.join()
        DBOS.destroy(workflow_completion_timeout_sec=int(grace_seconds))

    def is_watching(self) -> bool:
        """Whether quiet studies are being looked for."""
        return self._watch.is_alive()

    def _watch_what_is_due(self) -> None:
        while not self._stop.wait(_WATCH_SECONDS):
            try:
                self._look()
            except Exception as exc:  # the watch must outlive a database that is away
                log.failure("watch.failed", exc)

    def _look(self) -> None:
        now = time.time()
        before = now - self._config.intake.quiet_seconds
        for study_uid, revision in self._store.quiet_studies(before=before):
            if self._store.begin_analysis(study_uid, revision, before=before):
                log.event("study.ready", study_uid=study_uid, revision=revision)
        for study_uid, revision, tries, priority in self._store.due_studies(now=now, lease_seconds=_LEASE_SECONDS):
            _begin(
                _URGENT if priority is Priority.STAT else _STUDIES,
                f"study {study_uid} {revision} {tries}",
                study_workflow,
                *(study_uid, revision, tries, int(priority)),
                priority=priority,
            )
        for (study_uid, revision), cancelled in list(_analysing.items()):
            if not cancelled.is_set() and not self._store.is_analysing(study_uid, revision):
                log.event("analysis.cancelled", study_uid=study_uid, revision=revision)
                self._scheduler.cancel(cancelled)
        for delivery_id, destination, attempts in self._store.due_deliveries(now=now, lease_seconds=_LEASE_SECONDS):
            if self._config.destination(destination):
                name = f"delivery {delivery_id} {attempts}"
                _begin(_queue(destination), name, delivery_workflow, delivery_id)
            else:
                self._store.note_delivery(
                    delivery_id, DeliveryState.REFUSED, reason="its destination is no longer configured"
                )
                log.warning("delivery.no_destination", delivery_id=delivery_id, destination=destination)


def _begin(
    queue: str, name: str, workflow: Callable[..., None], *arguments: Any, priority: Priority = Priority.ROUTINE
) -> None:
    """Queue a workflow under a name, unless one of that name waits or runs; one that broke off gets a successor."""
    turn = 0
    while status := DBOS.get_workflow_status(f"{name} {turn}"):
        if status.status in _UNFINISHED:
            return
        turn += 1
    with SetWorkflowID(f"{name} {turn}"), SetEnqueueOptions(priority=1 + priority):
        DBOS.enqueue_workflow(queue, workflow, *arguments)


def progress_of(study_uid: str) -> dict[str, dict[str, Any]]:
    """How far each model is with a study that is being analysed in this process."""
    return dict(_progress.get(study_uid, {}))


# --- Analyse a study ------------------------------------------------------------------------------------------------


@DBOS.workflow()
def study_workflow(study_uid: str, revision: int, tries: int, priority: int = Priority.ROUTINE) -> None:
    """One attempt to answer a study."""
    study_step(study_uid, revision, tries, priority)


@DBOS.step()
def study_step(study_uid: str, revision: int, tries: int, priority: int) -> None:
    """Analyse, freeze the evidence, remember the answers and what is to be delivered; or say when to try again."""
    parts = _here()
    if not parts.store.is_analysing(study_uid, revision):
        log.event("study.superseded", study_uid=study_uid, revision=revision)
        return
    try:
        if not evidence.folder_of(parts.config.store.directory, study_uid, revision).exists():
            _analyse(parts, study_uid, revision, Priority(priority), last_try=tries >= len(_ANALYSIS_PAUSES))
        if not _save_answers(parts, study_uid, revision):
            log.event("study.superseded", study_uid=study_uid, revision=revision)
    except Superseded:
        log.event("study.superseded", study_uid=study_uid, revision=revision)
    except Stopping:
        log.event("analysis.left", study_uid=study_uid)  # it is due again at the next start
    except Exception as exc:  # a backend or a database that is away, a full disk: tried until somebody mends it
        log.failure("analysis.postponed", exc, study_uid=study_uid)
        pause = _ANALYSIS_PAUSES[min(tries, len(_ANALYSIS_PAUSES) - 1)]
        _until_saved(parts, lambda: parts.store.postpone_study(study_uid, revision, until=time.time() + pause))


def _analyse(parts: _Parts, study_uid: str, revision: int, priority: Priority, *, last_try: bool) -> None:
    files, received_at = parts.store.files_of(study_uid)
    study = _read_study(study_uid, files, received_at)

    def progress(*, model: str, stage: str, done: int, total: int) -> None:
        _progress.setdefault(study_uid, {})[model] = {"stage": stage, "done": done, "total": total}

    cancelled = _analysing[study_uid, revision] = threading.Event()
    try:
        if study:
            result = analyse(
                study,
                parts.models,
                parts.scheduler,
                progress=progress,
                wanted=parts.config.wanted,
                earlier=evidence.reports_of(
                    parts.config.store.directory, study_uid, parts.store.answered_revisions(study_uid)
                ),
                last_try=last_try,
                priority=priority,
                cancelled=cancelled,
            )
        else:
            result = Evidence(
                study_instance_uid=study_uid,
                answers=tuple(unreadable(model, "none of its files can be read") for model in parts.models),
            )
    finally:
        del _analysing[study_uid, revision]
        _progress.pop(study_uid, None)
    evidence.freeze(parts.config.store.directory, result, revision)
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


def _read_study(study_uid: str, files: list[Path], received_at: float) -> Study | None:
    """The study, without what can't be read, which is said aloud; None if nothing can."""
    instances = []
    for path in files:
        try:
            instances.append(read_instance(path))
        except NotUnderstood as exc:
            log.warning("instance.unreadable", exc, study_uid=study_uid)
    return group(instances, received_at=received_at)[0] if instances else None


def _save_answers(parts: _Parts, study_uid: str, revision: int) -> bool:
    """Remember the frozen answers and queue their objects; False if a later instance made them out of date."""
    folder = evidence.folder_of(parts.config.store.directory, study_uid, revision)
    answers = evidence.frozen_answers(folder)
    deliveries = [
        _queued(made, study_uid=study_uid, destination=destination.name, folder=folder)
        for answer in evidence.answers_in(folder)
        for destination in parts.config.destinations
        for made in choose(answer, destination.profile, everything).objects
    ]
    bodies = {answer["model"]: (answer["outcome"], answer) for answer in answers}
    return parts.store.save_answers(study_uid, revision, answers=bodies, deliveries=deliveries)


def _queued(made: FrozenObject, *, study_uid: str, destination: str, folder: Path) -> Delivery:
    """An object that is to go to a destination."""
    return Delivery(
        delivery_id=0,
        study_instance_uid=study_uid,
        destination=destination,
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


# --- Deliver one object to one destination --------------------------------------------------------------------------


def _queue(destination: str) -> str:
    return f"deliveries to {destination}"


@DBOS.workflow()
def delivery_workflow(delivery_id: int) -> None:
    """One attempt to bring an object to a destination, and to see it there."""
    delivery_step(delivery_id)


@DBOS.step()
def delivery_step(delivery_id: int) -> None:
    """Send what is accepted, or choose what goes in its place; look whether it is there; write down how that ended."""
    parts = _here()
    delivery = parts.store.delivery(delivery_id)
    destination = parts.config.destination(delivery.destination)
    if destination is None or delivery.state is DeliveryState.REPLACED:
        return
    folder = delivery.path.parent
    made = attempt(
        delivery,
        destination,
        parts.store,
        answer=evidence.answer_of(folder, delivery.sop_instance_uid),
        acceptance=parts.acceptance,
        our_ae_title=parts.config.intake.ae_title,
        stopping=parts.stopping,
    )

    def save() -> None:
        if made.in_its_place:
            instead = [
                _queued(it, study_uid=delivery.study_instance_uid, destination=destination.name, folder=folder)
                for it in made.in_its_place
            ]
            waited = parts.store.replace_delivery(
                delivery_id, reason=made.reason, withdrawn=made.withdrawn, in_its_place=instead
            )
        else:
            waited = parts.store.note_delivery(
                delivery_id, made.state, reason=made.reason, tried=True, next_at=made.next_at
            )
        tell(delivery, made, seconds_since_last_slice=waited)

    _until_saved(parts, save)


def _until_saved(parts: _Parts, save: Callable[[], object]) -> None:
    """Write something down, however long the database is away; when we stop, the next start does it all again."""
    while True:
        try:
            save()
            return
        except Exception as exc:
            log.failure("store.away", exc)
            if parts.stopping.wait(_SAVE_SECONDS):
                return


def _here() -> _Parts:
    assert _parts is not None, "a workflow ran before its Worker was made"
    return _parts
