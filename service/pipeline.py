"""The way of a study through the analysis, once: select, volume, infer, findings, seg, sr, proof."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

from service import log, metrics
from service.analysis.findings import find
from service.analysis.infer import infer
from service.analysis.schedule import Scheduler, Stream
from service.analysis.select import NoSeriesFits, select
from service.analysis.volume import read_volume
from service.errors import BackendError, ServiceError, Stopping, StudyUnsuitable
from service.results import capture, proof, seg, sr
from service.results.identity import Making, tracking_uid
from service.types import (
    Answer,
    Evidence,
    Exclusion,
    Finding,
    Model,
    Outcome,
    Picture,
    Progress,
    ResultObject,
    Selection,
    Series,
    SourceVolume,
    Study,
)


def analyse(
    study: Study,
    models: Sequence[Model],
    scheduler: Scheduler,
    *,
    progress: Progress,
    last_try: bool = True,
) -> Evidence:
    """Ask every model about a study, all at the same time.

    Parameters
    ----------
    scheduler
        Feeds the backend, in which the models' networks are loaded.
    last_try
        Whether a backend that is unavailable now makes the answer "failed"; else its error is raised.

    Raises
    ------
    BackendError
        Only if it may pass, and this is not the last try.
    """
    made_at = datetime.now(UTC)
    volumes = _Volumes()
    with ThreadPoolExecutor(max_workers=len(models), thread_name_prefix="model") as pool:
        answers = pool.map(
            lambda model: _ask(
                Making(study=study, model=model, backend=scheduler.backend.name, made_at=made_at),
                scheduler,
                volumes,
                progress=progress,
                last_try=last_try,
            ),
            models,
        )
        return Evidence(study_instance_uid=study.study_instance_uid, answers=tuple(answers))


def unreadable(model: Model, reason: str) -> Answer:
    """The answer to a study of which nothing can be read: known here only, for there is nothing to report on."""
    return Answer(
        model=model.spec,
        weights_sha256=model.weights_sha256,
        outcome=Outcome.UNSUITABLE,
        reason=reason,
        selection=None,
        excluded=(),
        findings=(),
        dropped=0,
        notes=(),
        seconds={},
        objects=(),
        pictures=(),
    )


def _ask(making: Making, scheduler: Scheduler, volumes: _Volumes, *, progress: Progress, last_try: bool) -> Answer:
    """One model's answer. Whatever goes wrong with it is the answer; the other models do not notice."""
    study, spec = making.study, making.model.spec
    draft = _Draft(making)
    try:
        with draft.timed("select"):
            draft.selection = select(study, spec)
            draft.excluded = draft.selection.excluded
        with draft.timed("volume"):
            draft.source = source = volumes.of(draft.selection.series)
        with draft.timed("infer"):
            prediction = infer(source, spec, scheduler, stream=Stream(), progress=progress)
        with draft.timed("findings"):
            draft.findings, draft.dropped = find(
                prediction, source, spec, tracking_uid=lambda p: tracking_uid(source.series, spec.name, p)
            )
        draft.outcome = Outcome.FINDINGS if draft.findings else Outcome.NO_FINDINGS
        draft.encode()
        draft.draw(source)
    except StudyUnsuitable as exc:
        draft.excluded = exc.excluded if isinstance(exc, NoSeriesFits) else draft.excluded
        draft.end(Outcome.UNSUITABLE, exc.found)
    except ServiceError as exc:
        if isinstance(exc, Stopping) or (isinstance(exc, BackendError) and exc.retry and not last_try):
            raise
        log.failure("model.failed", exc, study_uid=study.study_instance_uid, model=spec.name)
        draft.end(Outcome.FAILED, f"{exc.doing}: {exc.found}")
    except Exception as exc:  # promise 7: one bad neighbour stops nobody
        log.failure("model.failed", exc, study_uid=study.study_instance_uid, model=spec.name)
        draft.end(Outcome.FAILED, f"an internal error ({type(exc).__name__})")
    return draft.answer()


class _Draft:
    """An answer on its way; `answer` makes it one."""

    def __init__(self, making: Making) -> None:
        self._making = making
        self.outcome = Outcome.FAILED
        self.reason = ""
        self.selection: Selection | None = None
        self.source: SourceVolume | None = None
        self.excluded: tuple[Exclusion, ...] = ()
        self.findings: tuple[Finding, ...] = ()
        self.dropped = 0
        self.seconds: dict[str, float] = {}
        self.objects: tuple[ResultObject, ...] = ()
        self.pictures: tuple[Picture, ...] = ()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure a stage of the way."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = time.perf_counter() - began
            metrics.STAGE_SECONDS.labels(model=self._making.model.spec.name, stage=stage).observe(self.seconds[stage])

    def encode(self) -> None:
        """Make the objects, and prove them."""
        making, source = self._making, self.source
        with self.timed("encode"):
            segmentation = seg.segmentation(source, self.findings, making) if source and self.findings else None
            report = sr.report(
                making,
                source=source,
                findings=self.findings,
                outcome=self.outcome,
                reason=self.reason,
                dropped=self.dropped,
                excluded=self.excluded,
                segmentation=segmentation,
            )
            objects = (segmentation, report) if segmentation else (report,)
        with self.timed("proof"):
            proof.prove(source, self.findings, objects, making)
        self.objects = objects

    def draw(self, source: SourceVolume) -> None:
        """Make the pictures; a result without one of them is a result all the same."""
        spec = self._making.model.spec
        pictures = []
        for finding in self.findings:
            try:
                pictures.append(capture.picture(source, finding, spec.title, colour=spec.findings.colour))
            except Exception as exc:
                log.failure("picture.failed", exc, study_uid=self._making.study.study_instance_uid, model=spec.name)
        self.pictures = tuple(pictures)

    def end(self, outcome: Outcome, reason: str) -> None:
        """The answer without findings; should even that not be encodable, the answer is kept here all the same."""
        self.outcome, self.reason, self.findings, self.dropped = outcome, reason, (), 0
        self.objects, self.pictures = (), ()
        try:
            self.encode()
        except Exception as exc:
            log.failure("answer.not_encoded", exc, study_uid=self._making.study.study_instance_uid)
            self.outcome, self.reason = Outcome.FAILED, f"{reason}; and its report could not be written"

    def answer(self) -> Answer:
        """The answer as it stands."""
        return Answer(
            model=self._making.model.spec,
            weights_sha256=self._making.model.weights_sha256,
            outcome=self.outcome,
            reason=self.reason,
            selection=self.selection,
            excluded=self.excluded,
            findings=self.findings,
            dropped=self.dropped,
            notes=self.source.notes if self.source else (),
            seconds=self.seconds,
            objects=self.objects,
            pictures=self.pictures,
        )


class _Volumes:
    """The volumes of one study, each read once, whichever models ask for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: dict[tuple[str, int], Future[SourceVolume]] = {}

    def of(self, series: Series) -> SourceVolume:
        key = (series.series_instance_uid, len(series.instances))
        with self._lock:
            first = key not in self._read
            future = self._read.setdefault(key, Future())
        if first:
            try:
                future.set_result(read_volume(series))
            except BaseException as exc:
                future.set_exception(exc)
        return future.result()
