"""A classification's scores become statements: of each image, or of all windows together. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from service.spec import FindingClass, ModelSpec
from service.types import Array, Judgement, Point, ScorePrediction, SourceVolume


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """That a class is there, and how sure the network is."""

    kind: FindingClass
    score: float
    key_slice: int  # of the window that decided
    of_image: bool  # whether it is said of that slice alone


def statements(prediction: ScorePrediction, spec: ModelSpec) -> Iterator[Statement]:
    """What is said of the images: of each by itself, or of all together."""
    assert spec.judgement  # a classification has it
    slices = prediction.slices
    if spec.judgement.level == "image":
        for window, key_slice in enumerate(slices):
            yield from _said(prediction.scores[window : window + 1], (key_slice,), spec, of_image=True)
    elif slices:
        yield from _said(prediction.scores, slices, spec, of_image=False)


def _said(scores: Array, slices: tuple[int, ...], spec: ModelSpec, *, of_image: bool) -> Iterator[Statement]:
    """What windows say together.

    Each class is asked in the windows that speak most for it: one, some or all of them, as the rules say. Where
    classes exclude each other, it must win there too: the other images of a brain with a tumour are normal, and the
    greatest score of all would be theirs. Of several such classes, the most probable one counts.

    Parameters
    ----------
    scores
        [windows, channels], 0..1.
    slices
        Of each window.
    """
    rules = spec.judgement
    assert rules
    count = {"maximum": 1, "top": min(rules.top, len(slices)), "mean": len(slices)}[rules.combine]
    exclusive = spec.stages[-1].labels == "exclusive"
    found = []
    for kind in spec.classes:
        order = np.argsort(-scores[:, kind.channel], kind="stable")
        combined = scores[order[:count]].mean(axis=0, dtype=np.float64)
        score = float(combined[kind.channel])
        if exclusive and int(np.argmax(combined)) != kind.channel:
            continue
        if not kind.normal and score >= spec.findings.score_threshold:
            found.append(Statement(kind=kind, score=score, key_slice=slices[int(order[0])], of_image=of_image))
    yield from sorted(found, key=rank)[: 1 if exclusive else None]


def rank(statement: Statement) -> tuple[float, ...]:
    """What comes first has the least: the most probable, then the lower slice."""
    return -statement.score, statement.key_slice, statement.kind.channel


def judged(
    statement: Statement,
    source: SourceVolume,
    spec: ModelSpec,
    number: int,
    tracking_uid: Callable[[int, Point | None], str],
) -> Judgement:
    """The finding that a statement is."""
    assert spec.judgement
    return Judgement(
        number=number,
        tracking_uid=tracking_uid(statement.kind.channel, _place(statement, source)),
        kind=statement.kind,
        probability=statement.score,
        key_slice=statement.key_slice,
        level=spec.judgement.level,
    )


def _place(statement: Statement, source: SourceVolume) -> Point | None:
    """The middle of the image that a statement is about, LPS mm; None where it is about all of them."""
    if not statement.of_image:
        return None
    _, rows, columns = source.volume.spatial_shape
    middle = np.array([[statement.key_slice, (rows - 1) / 2, (columns - 1) / 2]])
    x, y, z = source.volume.map_indices_to_reference(middle)[0]
    return float(x), float(y), float(z)
