"""The way of a study through the analysis, once: select, volume, infer, findings, seg, sr, proof."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from functools import partial

from service import log, metrics
from service.analysis.findings import find
from service.analysis.infer import infer
from service.analysis.schedule import Scheduler
from service.analysis.select import NoSeriesFits, select
from service.analysis.volume import read_volume
from service.analysis.waiting import Stream
from service.errors import (
    BackendError,
    EncodingError,
    ServiceError,
    Stopping,
    StudyUnsuitable,
    Superseded,
    UnknownCharacterSet,
)
from service.forms import Wanted
from service.results import charset, objects, proof
from service.results.identity import Making, tracking_uid
from service.types import (
    Answer,
    Conclusion,
    Evidence,
    Exclusion,
    Finding,
    Model,
    Outcome,
    Picture,
    Priority,
    Progress,
    Report,
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
    wanted: Wanted = Wanted(),  # noqa: B008 - frozen
    earlier: Mapping[str, Sequence[Report]] | None = None,
    last_try: bool = True,
    priority: Priority = Priority.ROUTINE,
    cancelled: threading.Event | None = None,
) -> Evidence:
    """Ask every model about a study, all at the same time.

    Parameters
    ----------
    scheduler
        Feeds the backend, in which the models' networks are loaded.
    wanted
        In which forms the answers are written.
    earlier
        By model: what earlier analyses of the study reported; new reports name them as predecessors.
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
                Making(
                    study=study,
                    model=model,
                    backend=scheduler.backend.name,
                    made_at=made_at,
                    earlier=tuple((earlier or {}).get(model.spec.name, ())),
                ),
                scheduler,
                volumes,
                wanted=wanted,
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
        causes=("no-images",),
        selection=None,
        seconds={},
        objects=(),
        pictures=(),
    )


def _ask(
    making: Making,
    scheduler: Scheduler,
    volumes: _Volumes,
    *,
    wanted: Wanted,
    stream: Stream,
    progress: Progress,
    last_try: bool,
) -> Answer:
    """One model's answer. Whatever goes wrong with it is the answer; the other models do not notice."""
    study, spec = making.study, making.model.spec
    draft = _Draft(making, wanted)
    try:
        with draft.timed("select"):
            draft.choose(select(study, spec))
        scheduler.require(spec.name)
        for source in _sources(draft, volumes):
            with draft.timed("infer"):
                prediction = infer(source, spec, scheduler, stream=stream, progress=progress)
            with draft.timed("findings"):
                tracking = partial(tracking_uid, source.series, spec.name)
                draft.take(source, *find(prediction, source, spec, tracking_uid=tracking))
        draft.conclude()
        draft.encode()
    except NoSeriesFits as exc:
        draft.end(Outcome.UNSUITABLE, exc.found, exc.causes, exc.excluded)
    except StudyUnsuitable as exc:
        draft.end(Outcome.UNSUITABLE, exc.found, (exc.cause,))
    except ServiceError as exc:
        if isinstance(exc, Stopping | Superseded) or (isinstance(exc, BackendError) and exc.retry and not last_try):
            raise
        if isinstance(exc, EncodingError):
            metrics.PROOF_FAILURES.labels(model=spec.name).inc()
        log.failure("model.failed", exc, study_uid=study.study_instance_uid, model=spec.name)
        draft.end(Outcome.FAILED, f"{exc.doing}: {exc.found}", ("failure",))
    except Exception as exc:  # promise 7: one bad neighbour stops nobody
        log.failure("model.failed", exc, study_uid=study.study_instance_uid, model=spec.name)
        draft.end(Outcome.FAILED, f"an internal error ({type(exc).__name__})", ("failure",))
    return draft.answer()


def _sources(draft: _Draft, volumes: _Volumes) -> Iterator[SourceVolume]:
    """The volumes that a model looks at: of the chosen series, or of all that fit where it judges the whole study."""
    assert draft.selection
    _legible(draft.selection.series)
    with draft.timed("volume"):
        draft.source = volumes.of(draft.selection.series)
    yield draft.source
    judgement = draft.making.model.spec.judgement
    for series in draft.selection.others if judgement and judgement.level == "study" else ():
        try:
            _legible(series)
            with draft.timed("volume"):
                source = volumes.of(series)
        except StudyUnsuitable as exc:
            draft.miss(series, exc)
        else:
            yield source


def _legible(series: Series) -> None:
    """See that it can be told whose a series is: every object of ours tells it (PS3.3 C.12.1.1.2)."""
    reason = next(filter(None, (charset.unreadable(instance.header) for instance in series.instances)), "")
    if reason:
        raise UnknownCharacterSet(
            doing=f"reading whose the series {series.series_instance_uid} is",
            found=reason,
            rule="Specific Character Set (0008,0005) has defined terms only (PS3.3 C.12.1.1.2)",
            way_out="have the set named rightly where the images are made, and send the study again",
        )


class _Draft:
    """An answer on its way; `answer` makes it one."""

    def __init__(self, making: Making, wanted: Wanted) -> None:
        self.making, self._wanted = making, wanted
        self._best = -1.0
        self._missed: list[tuple[str, str]] = []  # what was not looked at that should have been: in words, and why
        self.selection: Selection | None = None
        self.source: SourceVolume | None = None
        self.conclusion = Conclusion(outcome=Outcome.FAILED)
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

    def choose(self, selection: Selection) -> None:
        """Take the chosen series, and what is left out."""
        self.selection = selection
        self.conclusion = replace(self.conclusion, excluded=selection.excluded)

    def miss(self, series: Series, why: StudyUnsuitable) -> None:
        """Note a series that should have been looked at and could not be."""
        self._missed.append((f"series {series.series_instance_uid} could not be looked at: {why.found}", why.cause))

    def take(self, source: SourceVolume, findings: tuple[Finding, ...], dropped: int) -> None:
        """What a series gave; of several series, the one with the most probable finding stands for the study."""
        best = max((finding.probability for finding in findings), default=0.0)
        if best > self._best:
            self._best, self.source = best, source
            self.conclusion = replace(self.conclusion, findings=findings, dropped=dropped, notes=source.notes)

    def conclude(self) -> None:
        """Say how the work ended."""
        outcome = Outcome.FINDINGS if self.conclusion.findings else Outcome.NO_FINDINGS
        self.conclusion = replace(
            self.conclusion,
            outcome=Outcome.PARTIAL if self._missed else outcome,
            reason="; ".join(words for words, _ in self._missed),
            causes=tuple(sorted({cause for _, cause in self._missed})),
        )

    def encode(self) -> None:
        """Draw the pictures, make the objects, and prove them."""
        making, source, conclusion = self.making, self.source, self.conclusion
        with self.timed("draw"):
            pictures = objects.pictures_of(making, conclusion, source)
        with self.timed("encode"):
            made = objects.objects_of(making, conclusion, source, self._wanted, pictures)
        with self.timed("proof"):
            proof.prove(making, conclusion, source, made, pictures)
        self.objects, self.pictures = made, pictures

    def end(
        self, outcome: Outcome, reason: str, causes: tuple[str, ...], excluded: tuple[Exclusion, ...] | None = None
    ) -> None:
        """The answer without findings; should even that not be encodable, the answer is kept here all the same."""
        self.conclusion = Conclusion(
            outcome=outcome,
            reason=reason,
            causes=causes,
            excluded=self.conclusion.excluded if excluded is None else excluded,
            notes=self.source.notes if self.source else (),
        )
        self.objects, self.pictures = (), ()
        try:
            self.encode()
        except Exception as exc:
            metrics.PROOF_FAILURES.labels(model=self.making.model.spec.name).inc()
            log.failure("answer.not_encoded", exc, study_uid=self.making.study.study_instance_uid)
            self.conclusion = replace(
                self.conclusion, outcome=Outcome.FAILED, reason=f"{reason}; and its report could not be written"
            )

    def answer(self) -> Answer:
        """The answer as it stands."""
        return Answer(
            **{field.name: getattr(self.conclusion, field.name) for field in fields(Conclusion)},
            model=self.making.model.spec,
            weights_sha256=self.making.model.weights_sha256,
            selection=self.selection,
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
