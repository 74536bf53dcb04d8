"""Ask the classifier: `python measure.py MODELS_DIRECTORY [SERIES_FOLDER ...]`.

First of what has no answer: nothing, noise, and the project's drawn head with and without a mass. Then of the series in
each folder. Printed are how many slices each class wins, what the three ways to combine them would say, and how far the
scores are from those of the authors' own preparation. Needs the package `service` on the path and this model.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.analysis.infer import infer
from service.analysis.judgements import statements
from service.analysis.schedule import Scheduler
from service.analysis.select import select
from service.analysis.volume import read_volume
from service.analysis.waiting import Stream
from service.backend import open_backend
from service.demo.phantom import Phantom
from service.demo.phantom_mr import ONE_MASS, head, write_head
from service.models import installed
from service.run import read_folder
from service.settings.analysis import Analysis
from service.spec import JudgementRules, ModelSpec
from service.types import Model, ScorePrediction, SourceVolume, Study

NAME = "mr-brain-tumor"
NOISE = 100.0
RULES = (
    JudgementRules(level="series", combine="maximum"),
    JudgementRules(level="series", combine="top", top=5),
    JudgementRules(level="series", combine="mean"),
)


def made() -> Iterator[tuple[str, Study]]:
    """Series that were never a patient."""
    healthy = head()
    shape, rng = healthy.volume.spatial_shape, np.random.default_rng(0)
    noise = np.hypot(*rng.normal(0, NOISE, (2, *shape)))
    for name, phantom in (
        ("nothing", _filled(healthy, np.zeros(shape))),
        ("noise", _filled(healthy, noise)),
        ("drawn head", healthy),
        ("drawn head with a mass", head(lesions=ONE_MASS)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            write_head(phantom, Path(folder))
            yield name, read_folder(Path(folder))[0]


def given(folders: list[str]) -> Iterator[tuple[str, Study]]:
    """The studies in each folder."""
    for folder in folders:
        for study in read_folder(Path(folder)):
            yield Path(folder).name, study


def ask(name: str, study: Study, model: Model, scheduler: Scheduler) -> None:
    """Print what the model says of a study's series, and by which the authors' own preparation differs."""
    source = read_volume(select(study, model.spec).series)
    stream = Stream()
    found = infer(source, model.spec, scheduler, stream=stream, progress=_silent)
    assert isinstance(found, ScorePrediction)
    wins = np.bincount(found.scores.argmax(axis=1), minlength=found.scores.shape[1])
    words = ", ".join(f"{_short(model.spec, channel)} {count}" for channel, count in enumerate(wins) if count)
    print(f"{name}: {len(found.slices)} slices; {words}")
    for rules in RULES:
        print(f"    {rules.combine:8}{_said(found, model.spec, rules)}")
    theirs = _as_the_authors(source, model, scheduler, stream)
    off, turned = np.abs(theirs - found.scores), (theirs.argmax(axis=1) != found.scores.argmax(axis=1)).sum()
    print(
        f"    authors' preparation: at most {off.max():.2f} away, {off.mean():.4f} on average, {turned} slices turned"
    )


def _said(found: ScorePrediction, spec: ModelSpec, rules: JudgementRules) -> str:
    low = spec.findings.model_copy(update={"score_threshold": 1e-6})
    said = list(statements(found, spec.model_copy(update={"judgement": rules, "findings": low})))
    over = said and said[0].score >= spec.findings.score_threshold
    best = f"{said[0].kind.finding.meaning} {said[0].score:.2f} at slice {said[0].key_slice}" if said else "normal"
    return best + (" - reported" if over else "")


def _as_the_authors(source: SourceVolume, model: Model, scheduler: Scheduler, stream: Stream) -> NDArray[np.float32]:
    """Scores of 8 bit images with the same window, resized by Pillow as their program does."""
    assert model.spec.stages[0].intensity
    limits = model.spec.stages[0].intensity.percentiles
    assert limits

    def patches() -> Iterator[NDArray[np.float32]]:
        for plane in source.volume.array:
            low, high = np.percentile(plane, limits)
            grey = np.clip((plane - low) / ((high - low) or 1.0), 0, 1) * 255
            image = Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB").resize((240, 240))
            yield np.ascontiguousarray(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)

    return np.stack([answer for (answer,) in scheduler.map(stream, NAME, list(patches()))])


def _filled(phantom: Phantom, values: NDArray[np.float64]) -> Phantom:
    return replace(phantom, volume=phantom.volume.with_array(np.rint(values).astype(np.int16)))


def _short(spec: ModelSpec, channel: int) -> str:
    return spec.class_of(channel).finding.meaning


def _silent(*, model: str, stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def main(models: str, *folders: str) -> None:
    """Ask it about everything."""
    (model,) = installed(Path(models), (NAME,))
    scheduler = Scheduler(open_backend(Analysis()))
    try:
        scheduler.add(model)
        scheduler.require(NAME)
        for name, study in chain(made(), given(list(folders))):
            ask(name, study, model, scheduler)
    finally:
        scheduler.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
