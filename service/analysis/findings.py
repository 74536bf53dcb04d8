"""What a model's last stage answers becomes findings: numbered, the most probable first, and named. Pure.

Maps become lesions (`lesions`), peaks and boxes become marks (`marks`), scores become judgements (`judgements`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from service.analysis import judgements, lesions, marks
from service.analysis.sides import side_of
from service.spec import ModelSpec
from service.types import (
    BoxPrediction,
    Finding,
    Lesion,
    MapPrediction,
    Mark,
    Point,
    Prediction,
    ScorePrediction,
    SourceVolume,
)

Tracking = Callable[[int, Point | None], str]
Suspect = TypeVar("Suspect")


def find(
    prediction: Prediction, source: SourceVolume, spec: ModelSpec, *, tracking_uid: Tracking
) -> tuple[tuple[Finding, ...], int]:
    """Find what a model suspects in what its last stage answers.

    Parameters
    ----------
    tracking_uid
        Gives a finding its UID by the channel of its class and its centre (LPS mm; None where it is said of all
        images), the same one whenever the same sources are analysed.

    Returns
    -------
    findings
        The most probable first, at most ``maximum_count``.
    dropped
        How many more there were.
    """
    found, dropped = _found(prediction, source, spec, _Unique(tracking_uid))
    return tuple(_sided(finding, source) for finding in found), dropped


def _found(
    prediction: Prediction, source: SourceVolume, spec: ModelSpec, tracking: _Unique
) -> tuple[tuple[Finding, ...], int]:
    limit = spec.findings.maximum_count
    match prediction:
        case ScorePrediction():
            said = judgements.statements(prediction, spec)
            return _numbered(
                said, judgements.rank, lambda it, number: judgements.judged(it, source, spec, number, tracking), limit
            )
        case BoxPrediction():
            spots = marks.boxes(prediction, source, spec)
        case MapPrediction() if spec.task == "heatmap":
            spots = marks.peaks(prediction, source, spec)
        case _:
            parts = lesions.components(prediction, source, spec)
            return _numbered(
                parts, lesions.rank, lambda it, number: lesions.measured(it, source, number, tracking), limit
            )
    return _numbered(spots, marks.rank, lambda it, number: marks.marked(it, source, number, tracking), limit)


def _numbered(
    suspects: Iterable[Suspect],
    rank: Callable[[Suspect], tuple[float, ...]],
    finding: Callable[[Suspect, int], Finding],
    limit: int,
) -> tuple[tuple[Finding, ...], int]:
    """The first of them by rank as findings, and how many more there are."""
    found = sorted(suspects, key=rank)
    return tuple(finding(it, number) for number, it in enumerate(found[:limit], start=1)), max(len(found) - limit, 0)


def _sided(finding: Finding, source: SourceVolume) -> Finding:
    """The finding with its side, where its site is a paired organ and there is no doubt."""
    match finding:
        case Lesion(kind=kind, centroid_lps_mm=place) | Mark(kind=kind, centre_lps_mm=place) if kind.paired:
            return replace(finding, laterality=side_of(source, place))
    return finding


class _Unique:
    """Tracking UIDs that differ within an answer, even of two findings of a class in one place.

    A ball within a shell has the shell's centre: the less probable of the two is named by a place a millimetre away.
    """

    def __init__(self, ask: Tracking) -> None:
        self._ask = ask
        self._given: set[str] = set()

    def __call__(self, channel: int, place: Point | None) -> str:
        uid = self._ask(channel, place)
        for _ in range(len(self._given)):
            if uid not in self._given or place is None:
                break
            place = (place[0], place[1], place[2] + 1)
            uid = self._ask(channel, place)
        self._given.add(uid)
        return uid
