"""The way of a study through the analysis, once: select, volume, infer, findings, seg, sr, proof."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

from service import log, metrics
from service.analysis.findings import find
from service.analysis.infer import infer
from service.analysis.kept import KeptStages
from service.analysis.schedule import Scheduler
from service.analysis.select import NoSeriesFits, select
from service.analysis.volume import read_volume
from service.analysis.waiting import Stream
from service.draft import Draft
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
from service.results import charset
from service.results.identity import Making, tracking_uid
from service.types import (
    Answer,
    Evidence,
    Model,
    Outcome,
    Priority,
    Progress,
    Report,
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
    kept: KeptStages | None = None,
    given_up: str = "",
) -> Evidence:
    """Ask every model about a study, all at the same time.

    Parameters
    ----------
    study
        If images of it are missing, what is there is looked at, and each answer says what is not.
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
    kept
        Where results of finished stages are kept for another try, should this one break off; None: nowhere.
    given_up
        Why nothing of it is to be looked at any more; each model's answer is then that it failed.

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
                kept=kept,
                given_up=given_up,
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
    kept: KeptStages | None,
    given_up: str,
) -> Answer:
    """One model's answer. Whatever goes wrong with it is the answer; the other models do not notice."""
    study, spec = making.study, making.model.spec
    draft = Draft(making, wanted)
    if given_up:
        draft.end(Outcome.FAILED, given_up, ("failure",))
        return draft.answer()
    try:
        with draft.timed("select"):
            draft.choose(select(study, spec))
        scheduler.require(spec.name)
        for source in _sources(draft, volumes):
            with draft.timed("infer"):
                keeper = kept.of(source, making.model, making.backend) if kept else None
                prediction = infer(source, spec, scheduler, stream=stream, progress=progress, kept=keeper)
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


def _sources(draft: Draft, volumes: _Volumes) -> Iterator[SourceVolume]:
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
