"""Scores become statements: by image or over all windows, with the image that decided, and never a normal one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.analysis.findings import find
from service.spec import FindingClass, FindingRules, JudgementRules
from service.types import Judgement, Point, ScorePrediction
from tests.phantoms import GLIOMA_CLASS, MENINGIOMA_CLASS, NORMAL_CLASS, Phantom, make

CLASSES = (GLIOMA_CLASS, MENINGIOMA_CLASS, NORMAL_CLASS)  # channels 0, 1, 2


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    return make(tmp_path_factory.mktemp("series"))


def _judge(
    phantom: Phantom,
    scores: list[list[float]],
    *,
    classes: tuple[FindingClass, ...] = CLASSES,
    slices: tuple[int, ...] = (),
    labels: str = "exclusive",
    limit: int = 20,
    threshold: float = 0.5,
    **rules: Any,
) -> tuple[list[Judgement], int]:
    """Windows on slices 1, 3, 5, ... unless told."""
    spec = phantom.making.model.spec
    spec = spec.model_copy(
        update={
            "task": "classification",
            "stages": (spec.stages[0].model_copy(update={"labels": labels}),),
            "classes": classes,
            "judgement": JudgementRules(**rules),
            "findings": FindingRules(maximum_count=limit, score_threshold=threshold),
        }
    )

    def uid(channel: int, place: Point | None) -> str:
        return f"{channel} at {place and tuple(round(value, 2) for value in place)}"

    prediction = ScorePrediction(
        scores=np.array(scores, np.float32).reshape(-1, 3),
        slices=slices or tuple(range(1, 2 * len(scores), 2)),
        seconds={},
    )
    findings, dropped = find(prediction, phantom.source, spec, tracking_uid=uid)
    said = [finding for finding in findings if isinstance(finding, Judgement)]
    assert len(said) == len(findings)
    assert [finding.number for finding in said] == list(range(1, len(said) + 1))
    return said, dropped


def _words(said: list[Judgement]) -> list[tuple[int, float, int]]:
    return [(finding.kind.channel, round(finding.probability, 3), finding.key_slice) for finding in said]


# One tumour on two of four images; the others are as normal as can be.
TUMOUR = [[0.02, 0.0, 0.98], [0.6, 0.3, 0.1], [0.9, 0.06, 0.04], [0.0, 0.01, 0.99]]


def test_the_greatest_score_says_it_and_the_normal_images_do_not_outvote_it(phantom: Phantom) -> None:
    said, dropped = _judge(phantom, TUMOUR)
    assert _words(said) == [(0, 0.9, 5)]
    assert dropped == 0
    assert said[0].level == "series"
    assert said[0].tracking_uid == "0 at None"


@pytest.mark.parametrize(
    ("combine", "expected"),
    [("maximum", [(0, 0.9, 5)]), ("mean", []), ("top", [(0, 0.75, 5)])],  # (0.9 + 0.6) / 2; the mean: 0.38, normal 0.53
)
def test_windows_are_combined_as_the_rule_says(
    phantom: Phantom, combine: str, expected: list[tuple[int, float, int]]
) -> None:
    assert _words(_judge(phantom, TUMOUR, combine=combine, top=2, threshold=0.3)[0]) == expected


def test_the_mean_is_of_all_windows(phantom: Phantom) -> None:
    said, _ = _judge(phantom, [[0.9, 0.0, 0.1], [0.5, 0.1, 0.4], [0.6, 0.2, 0.2]], combine="mean")
    assert _words(said) == [(0, round(2.0 / 3, 3), 1)], "the window of the greatest score decided"


def test_top_takes_no_more_windows_than_there_are(phantom: Phantom) -> None:
    said, _ = _judge(phantom, [[0.9, 0.0, 0.1], [0.7, 0.1, 0.2]], combine="top", top=5)
    assert _words(said) == [(0, 0.8, 1)]


def test_of_classes_that_exclude_each_other_only_the_winner_counts(phantom: Phantom) -> None:
    scores = [[0.8, 0.15, 0.05], [0.1, 0.85, 0.05]]
    assert _words(_judge(phantom, scores)[0]) == [(1, 0.85, 3)]
    assert _words(_judge(phantom, scores, labels="independent")[0]) == [(1, 0.85, 3), (0, 0.8, 1)]


def test_a_class_that_does_not_win_is_not_said_however_low_the_threshold(phantom: Phantom) -> None:
    assert _judge(phantom, [[0.4, 0.15, 0.45]], threshold=0.1) == ([], 0)
    assert _words(_judge(phantom, [[0.4, 0.15, 0.45]], threshold=0.1, labels="independent")[0]) == [
        (0, 0.4, 1),
        (1, 0.15, 1),
    ]


def test_a_channel_without_a_class_wins_too(phantom: Phantom) -> None:
    """The model folder need not name what it is normal to see: it just leaves the channel out."""
    named = (GLIOMA_CLASS, MENINGIOMA_CLASS)
    assert _judge(phantom, [[0.4, 0.15, 0.45]], threshold=0.1, classes=named) == ([], 0)


def test_normal_is_never_a_finding(phantom: Phantom) -> None:
    for labels in ("exclusive", "independent"):
        assert _judge(phantom, [[0.01, 0.01, 0.98]], labels=labels) == ([], 0)


def test_the_threshold_itself_counts(phantom: Phantom) -> None:
    scores = [[0.75, 0.125, 0.125]]
    assert len(_judge(phantom, scores, threshold=0.75)[0]) == 1
    assert _judge(phantom, scores, threshold=0.76) == ([], 0)


def test_images_are_judged_each_by_itself(phantom: Phantom) -> None:
    said, dropped = _judge(phantom, TUMOUR, level="image")
    assert _words(said) == [(0, 0.9, 5), (0, 0.6, 3)]
    assert {finding.level for finding in said} == {"image"}
    assert dropped == 0


def test_images_have_tracking_uids_of_their_own(phantom: Phantom) -> None:
    """An image's is asked for by its middle: 40 rows and 48 columns of 0.8 mm, slices of 2.5 mm from 310 on."""
    said, _ = _judge(phantom, TUMOUR, level="image")
    x, y = -120.5 + 0.8 * 23.5, -80.25 + 0.8 * 19.5
    assert [finding.tracking_uid for finding in said] == [
        f"0 at {(round(x, 2), round(y, 2), 310 + 2.5 * slice_)}" for slice_ in (5, 3)
    ]


def test_images_beyond_the_limit_are_counted(phantom: Phantom) -> None:
    said, dropped = _judge(phantom, [[0.6, 0.1, 0.3], [0.7, 0.1, 0.2], [0.8, 0.1, 0.1]], level="image", limit=2)
    assert (_words(said), dropped) == ([(0, 0.8, 5), (0, 0.7, 3)], 1)


def test_equal_scores_are_told_by_the_first_image(phantom: Phantom) -> None:
    assert _words(_judge(phantom, [[0.75, 0.0, 0.25]] * 3, slices=(4, 6, 8))[0]) == [(0, 0.75, 4)]


def test_no_window_says_nothing(phantom: Phantom) -> None:
    for level in ("image", "series"):
        assert _judge(phantom, [], level=level) == ([], 0)
