"""The way of a study through the analysis, once: select, volume, infer, findings, seg, sr, proof."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial

from service import log, metrics
from service.analysis.findings import find
from service.analysis.infer import infer
from service.analysis.schedule import Scheduler
from service.analysis.select import NoSeriesFits, select
from service.analysis.volume import read_volume
from service.analysis.waiting import Stream
from service.errors import BackendError, ServiceError, Stopping, StudyUnsuitable, Superseded
from service.results import capture, proof, seg, sr
from service.results.identity import Making, tracking_uid
from service.types import (
    Answer,
    Evidence,
    Exclusion,
    Finding,
    Lesion,
    Model,
    Outcome,
    Picture,
    Priority,
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
    priority: Priority = Priority.ROUTINE,
    cancelled: threading.Event | None = None,
) -> Evidence:
    """Ask every model about a study, all at the same time.

    Parameters
    ----------
    scheduler
        Feeds the backend, in which the models' networks are loaded.
    last_try
        Whether a backend that is unavailable now makes the answer "failed"; else its error is raised.
    priority
        How urgent its patches are.
    cancelled
        Given to `Scheduler.cancel` when nobody wants the answer any more.

    Raises
    ------
    Superseded
        If it was cancelled.
    BackendError
        Only if it may pass, and this is not the last try.
    """
    cancelled = cancelled or threading.Event()
    made_at = datetime.now(UTC)
    volumes = _Volumes()
    with ThreadPoolExecutor(max_workers=max(1, len(models)), thread_name_prefix="model") as pool:
        answers = pool.map(
            lambda model: _ask(
                Making(study=study, model=model, backend=scheduler.backend.name, made_at=made_at),
                scheduler,
                volumes,
                stream=Stream(priority=priority, cancelled=cancelled),
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


def _ask(
    making: Making,
    scheduler: Scheduler,
    volumes: _Volumes,
    *,
    stream: Stream,
    progress: Progress,
    last_try: bool,
) -> Answer:
    """One model's answer. Whatever goes wrong with it is the answer; the other models do not notice."""
    study, spec = making.study, making.model.spec
    draft = _Draft(making)
    try:
        with draft.timed("select"):
            draft.selection = select(study, spec)
            draft.excluded = draft.selection.excluded
        scheduler.require(spec.name)
        for source in _sources(draft, volumes):
            with draft.timed("infer"):
                prediction = infer(source, spec, scheduler, stream=stream, progress=progress)
            with draft.timed("findings"):
                tracking = partial(tracking_uid, source.series, spec.name)
                draft.take(source, *find(prediction, source, spec, tracking_uid=tracking))
        draft.outcome = Outcome.FINDINGS if draft.findings else Outcome.NO_FINDINGS
        draft.encode()
        draft.draw()
    except StudyUnsuitable as exc:
        draft.excluded = exc.excluded if isinstance(exc, NoSeriesFits) else draft.excluded
        draft.end(Outcome.UNSUITABLE, exc.found)
    except ServiceError as exc:
        if isinstance(exc, Stopping | Superseded) or (isinstance(exc, BackendError) and exc.retry and not last_try):
            raise
        log.failure("model.failed", exc, study_uid=study.study_instance_uid, model=spec.name)
        draft.end(Outcome.FAILED, f"{exc.doing}: {exc.found}")
    except Exception as exc:  # promise 7: one bad neighbour stops nobody
        log.failure("model.failed", exc, study_uid=study.study_instance_uid, model=spec.name)
        draft.end(Outcome.FAILED, f"an internal error ({type(exc).__name__})")
    return draft.answer()


def _sources(draft: _Draft, volumes: _Volumes) -> Iterator[SourceVolume]:
    """The volumes that a model looks at: of the chosen series, or of all that fit where it judges the whole study."""
    assert draft.selection
    with draft.timed("volume"):
        draft.source = volumes.of(draft.selection.series)
    yield draft.source
    judgement = draft.making.model.spec.judgement
    for series in draft.selection.others if judgement and judgement.level == "study" else ():
        with suppress(StudyUnsuitable):  # it stays among the excluded
            with draft.timed("volume"):
                source = volumes.of(series)
            yield source


class _Draft:
    """An answer on its way; `answer` makes it one."""

    def __init__(self, making: Making) -> None:
        self.making = making
        self._best = -1.0
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
            took = time.perf_counter() - began
            self.seconds[stage] = self.seconds.get(stage, 0.0) + took
            metrics.STAGE_SECONDS.labels(model=self.making.model.spec.name, stage=stage).observe(took)

    def take(self, source: SourceVolume, findings: tuple[Finding, ...], dropped: int) -> None:
        """What a series gave; of several series, the one with the most probable finding stands for the study."""
        best = max((finding.probability for finding in findings), default=0.0)
        if best > self._best:
            self._best, self.source, self.findings, self.dropped = best, source, findings, dropped

    def encode(self) -> None:
        """Make the objects, and prove them."""
        making, source = self.making, self.source
        with self.timed("encode"):
            lesions = [finding for finding in self.findings if isinstance(finding, Lesion)]
            segmentation = seg.segmentation(source, lesions, making) if source and lesions else None
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

    def draw(self) -> None:
        """Make the pictures; a result without one of them is a result all the same."""
        source = self.source
        assert source
        spec = self.making.model.spec
        pictures = []
        for finding in self.findings:
            try:
                pictures.append(capture.picture(source, finding, spec.title))
            except Exception as exc:
                log.failure("picture.failed", exc, study_uid=self.making.study.study_instance_uid, model=spec.name)
        self.pictures = tuple(pictures)

    def end(self, outcome: Outcome, reason: str) -> None:
        """The answer without findings; should even that not be encodable, the answer is kept here all the same."""
        self.outcome, self.reason, self.findings, self.dropped = outcome, reason, (), 0
        self.objects, self.pictures = (), ()
        try:
            self.encode()
        except Exception as exc:
            log.failure("answer.not_encoded", exc, study_uid=self.making.study.study_instance_uid)
            self.outcome, self.reason = Outcome.FAILED, f"{reason}; and its report could not be written"

    def answer(self) -> Answer:
        """The answer as it stands."""
        return Answer(
            model=self.making.model.spec,
            weights_sha256=self.making.model.weights_sha256,
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
