"""The durable workflows: analyse a study, deliver one object to one destination. Only this module knows DBOS.

What DBOS does: it remembers which workflow was begun and which of its steps are finished, starts the unfinished ones
again after a crash, and sleeps through restarts. What it does not do: a step that was killed runs again from its
beginning, so each step here may run twice and leaves the same (evidence is frozen once, rows are written by key, a
peer that has an object already takes it again as the same one).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID

from service import evidence, log, metrics
from service.analysis.schedule import Scheduler
from service.config import Config, Destination
from service.errors import BackendError, DeliveryError, NotUnderstood
from service.intake.study import group, read_instance
from service.pipeline import analyse
from service.results import deliver
from service.store import Store
from service.tables import database_url
from service.types import Delivery, DeliveryState, Model, Study

_WATCH_SECONDS = 0.5  # how often quiet studies are looked for
_POLL_SECONDS = 0.1  # how often DBOS looks for queued workflows
_ANALYSIS_PAUSES = (5.0, 15.0, 60.0, 300.0, 900.0)  # seconds between tries while a backend is away
_DELIVERY_PAUSES = (2.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)  # the last one again until retry_hours are over
_QUERY_PAUSES = (0.0, 0.5, 2.0, 5.0, 15.0, 30.0)  # seconds before each look for an object that was stored
_APPLICATION_VERSION = "1"  # changed only when running workflows can't be finished by the new code


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What the workflows work with. DBOS knows them by name only, so the process holds one set."""

    config: Config
    store: Store
    models: tuple[Model, ...]
    scheduler: Scheduler


_parts: _Parts | None = None
_progress: dict[str, dict[str, dict[str, Any]]] = {}


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
        _parts = _Parts(config=config, store=store, models=models, scheduler=scheduler)
        self._config, self._store = config, store
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._watch_studies, name="watch", daemon=True)
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

    def start(self) -> None:
        """Resume what was unfinished, and look for more."""
        DBOS.launch()
        DBOS.register_queue(
            "studies", worker_concurrency=self._config.analysis.studies_at_once, polling_interval_sec=_POLL_SECONDS
        )
        for destination in self._config.destinations:
            DBOS.register_queue(_queue(destination.name), worker_concurrency=4, polling_interval_sec=_POLL_SECONDS)
        # A crash may have come between a row and its workflow. Beginning one again that is known changes nothing.
        for study_uid, revision in self._store.unfinished_studies():
            _begin_study(study_uid, revision)
        for delivery_id, name in self._store.unfinished_deliveries():
            _begin_delivery(delivery_id, name)
        self._watch.start()

    def stop(self, *, grace_seconds: float) -> None:
        """Begin nothing new; wait for what runs, but not for long: what is left resumes at the next start."""
        self._stop.set()
        self._watch.join()
        DBOS.destroy(workflow_completion_timeout_sec=int(grace_seconds))

    def is_watching(self) -> bool:
        """Whether quiet studies are being looked for."""
        return self._watch.is_alive()

    def _watch_studies(self) -> None:
        while not self._stop.wait(_WATCH_SECONDS):
            try:
                before = time.time() - self._config.intake.quiet_seconds
                for study_uid, revision in self._store.quiet_studies(before=before):
                    if self._store.begin_analysis(study_uid, revision, before=before):
                        log.event("study.ready", study_uid=study_uid, revision=revision)
                        _begin_study(study_uid, revision)
            except Exception as exc:  # the watch must outlive a database that is away
                log.failure("watch.failed", exc)


def progress_of(study_uid: str) -> dict[str, dict[str, Any]]:
    """How far each model is with a study that is being analysed in this process."""
    return dict(_progress.get(study_uid, {}))


# --- Analyse a study ------------------------------------------------------------------------------------------------


def _begin_study(study_uid: str, revision: int) -> None:
    with SetWorkflowID(f"study {study_uid} {revision}"):
        DBOS.enqueue_workflow("studies", study_workflow, study_uid, revision)


@DBOS.workflow()
def study_workflow(study_uid: str, revision: int) -> None:
    """Analyse a study and queue its results; tried again while the backend is away."""
    tried = 0
    while not analysis_step(study_uid, revision, tried >= len(_ANALYSIS_PAUSES)):
        DBOS.sleep(_ANALYSIS_PAUSES[min(tried, len(_ANALYSIS_PAUSES) - 1)])
        tried += 1
    for delivery_id, destination in answers_step(study_uid, revision):
        _begin_delivery(delivery_id, destination)


@DBOS.step()
def analysis_step(study_uid: str, revision: int, last_try: bool) -> bool:
    """Analyse, and freeze the evidence; False if it is to be tried again."""
    parts = _here()
    directory = parts.config.store.directory
    try:
        if not evidence.folder_of(directory, study_uid, revision).exists():  # else it was frozen before a crash
            _analyse(parts, study_uid, revision, last_try=last_try)
    except BackendError as exc:
        log.warning("analysis.postponed", exc, study_uid=study_uid)
        return False
    except Exception as exc:  # a full disk, a database that is away: tried again until somebody mends it
        log.failure("analysis.postponed", exc, study_uid=study_uid)
        return False
    return True


def _analyse(parts: _Parts, study_uid: str, revision: int, *, last_try: bool) -> None:
    files, received_at = parts.store.files_of(study_uid)
    study = _read_study(study_uid, files, received_at)
    _progress[study_uid] = {}

    def progress(*, model: str, stage: str, done: int, total: int) -> None:
        _progress[study_uid][model] = {"stage": stage, "done": done, "total": total}

    try:
        result = analyse(study, parts.models, parts.scheduler, progress=progress, revision=revision, last_try=last_try)
    finally:
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
            reason=answer.reason,
            seconds=round(sum(answer.seconds.values()), 1),
        )


def _read_study(study_uid: str, files: list[Path], received_at: float) -> Study:
    """The study, without what the disk has damaged meanwhile; that is said aloud."""
    instances = []
    for path in files:
        try:
            instances.append(read_instance(path))
        except NotUnderstood as exc:
            log.warning("instance.unreadable", exc, study_uid=study_uid)
    return group(instances, received_at=received_at)[0]


@DBOS.step()
def answers_step(study_uid: str, revision: int) -> list[tuple[int, str]]:
    """Remember the frozen answers and their objects' deliveries: number and destination of each."""
    parts = _here()
    folder = evidence.folder_of(parts.config.store.directory, study_uid, revision)
    answers = evidence.frozen_answers(folder)
    deliveries = [
        Delivery(
            delivery_id=0,
            study_instance_uid=study_uid,
            destination=destination.name,
            kind=made["kind"],
            sop_class_uid=made["sop_class_uid"],
            sop_instance_uid=made["sop_instance_uid"],
            series_instance_uid=made["series_instance_uid"],
            path=folder / made["file"],
            state=DeliveryState.QUEUED,
            attempts=0,
            reason="",
            queued_at=time.time(),
        )
        for answer in answers
        for made in answer["objects"]
        for destination in parts.config.destinations
    ]
    bodies = {answer["model"]: (answer["outcome"], answer) for answer in answers}
    return parts.store.save_answers(study_uid, revision, answers=bodies, deliveries=deliveries)


# --- Deliver one object to one destination --------------------------------------------------------------------------


def _queue(destination: str) -> str:
    return f"deliveries to {destination}"


def _begin_delivery(delivery_id: int, destination: str) -> None:
    if _here().config.destination(destination) is None:
        log.warning("delivery.no_destination", delivery_id=delivery_id, destination=destination)
        return
    with SetWorkflowID(f"delivery {delivery_id}"):
        DBOS.enqueue_workflow(_queue(destination), delivery_workflow, delivery_id)


@DBOS.workflow()
def delivery_workflow(delivery_id: int) -> None:
    """Send an object and see it arrive; tried again, with growing pauses, while the failure may pass."""
    pauses = list(_DELIVERY_PAUSES)
    while not delivery_step(delivery_id):
        DBOS.sleep(pauses.pop(0) if len(pauses) > 1 else pauses[0])


@DBOS.step()
def delivery_step(delivery_id: int) -> bool:
    """One attempt to bring a delivery to its end; False if it is to be tried again."""
    parts = _here()
    delivery = parts.store.delivery(delivery_id)
    destination = parts.config.destination(delivery.destination)
    if destination is None:  # taken out of the configuration while this was waiting
        parts.store.note_delivery(delivery_id, DeliveryState.REFUSED, reason="the destination is not configured")
        return True
    ours = parts.config.intake.ae_title
    state, reason = delivery.state, delivery.reason
    try:
        if state != DeliveryState.SENT:
            reason = deliver.send(delivery.path, delivery.sop_class_uid, destination, our_ae_title=ours)
            state = DeliveryState.SENT
            parts.store.note_delivery(delivery_id, state, reason=reason, tried=True)
        state, reason = _confirm(delivery, destination, ours, reason)
        waited = parts.store.note_delivery(delivery_id, state, reason=reason)
    except DeliveryError as exc:
        waiting = time.time() - delivery.queued_at
        again = exc.retry and waiting < destination.retry_hours * 3600
        if state != DeliveryState.SENT:
            state = DeliveryState.RETRYING if again else DeliveryState.REFUSED
        elif not again:
            state = DeliveryState.UNCONFIRMED
        parts.store.note_delivery(delivery_id, state, reason=deliver.explain(exc), tried=True)
        _tell(delivery, "retrying" if again else state, exc)
        return not again
    if state == DeliveryState.QUEUED:
        _tell(delivery, "lost")
        return False
    _tell(delivery, state, seconds_since_last_slice=round(waited, 1))
    metrics.LAST_SLICE_TO_DELIVERED.labels(destination=delivery.destination).observe(waited)
    return True


def _confirm(delivery: Delivery, destination: Destination, ours: str, remark: str) -> tuple[DeliveryState, str]:
    """Look for a stored object at its destination: where it is now, and a remark."""
    if destination.confirm == "none":
        return DeliveryState.UNCONFIRMED, remark
    for pause in _QUERY_PAUSES:  # some PACS index after they have answered
        time.sleep(pause)
        if deliver.is_present(delivery, destination, our_ae_title=ours):
            return DeliveryState.CONFIRMED, remark
    return DeliveryState.QUEUED, "stored with Success, and not to be found there; it is sent again"


def _tell(delivery: Delivery, outcome: str, error: DeliveryError | None = None, **fields: Any) -> None:
    metrics.DELIVERIES.labels(destination=delivery.destination, outcome=outcome).inc()
    fields |= {
        "delivery_id": delivery.delivery_id,
        "study_uid": delivery.study_instance_uid,
        "sop_instance_uid": delivery.sop_instance_uid,
        "kind": delivery.kind,
        "destination": delivery.destination,
    }
    if error:
        log.warning(f"delivery.{outcome}", error, **fields)
    else:
        log.event(f"delivery.{outcome}", **fields)


def _here() -> _Parts:
    assert _parts is not None, "a workflow ran before its Worker was made"
    return _parts
