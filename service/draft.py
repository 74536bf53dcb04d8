"""An answer on its way: what a model came to, stage by stage, until it is drawn, written and proved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace

from service import log, metrics
from service.errors import StudyUnsuitable
from service.forms import Wanted
from service.results import objects, proof
from service.results.identity import Making
from service.types import (
    Answer,
    Completeness,
    Conclusion,
    Exclusion,
    Finding,
    Outcome,
    Picture,
    ResultObject,
    Selection,
    Series,
    SourceVolume,
    Study,
)


class Draft:
    """An answer on its way; `answer` makes it one.

    Where images of the study are missing, no answer goes without saying so: one that was looked at is partial, and any
    other may be what it is because of them.

    Parameters
    ----------
    making
        Of what, by what and when.
    wanted
        In which forms it is written.
    """

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
        limits = [*self._missed, *_lacks(self.making.study)]
        self.conclusion = replace(
            self.conclusion,
            outcome=Outcome.PARTIAL if limits else outcome,
            reason="; ".join(words for words, _ in limits),
            causes=tuple(sorted({cause for _, cause in limits})),
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
        lacks = _lacks(self.making.study)
        self.conclusion = Conclusion(
            outcome=outcome,
            reason="; ".join([reason, *(words for words, _ in lacks)]),
            causes=(*causes, *(cause for _, cause in lacks)),
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
                self.conclusion,
                outcome=Outcome.FAILED,
                reason=f"{self.conclusion.reason}; and its report could not be written",
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


def _lacks(study: Study) -> list[tuple[str, str]]:
    """What of an incomplete study is missing, in words, and as a key of `codes.CAUSES`; empty: nothing."""
    if study.completeness is not Completeness.PARTIAL:
        return []
    return [(f"images are missing ({study.missing})" if study.missing else "images are missing", "incomplete")]
