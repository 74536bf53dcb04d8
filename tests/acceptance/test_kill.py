"""Kill it anywhere: at every named place, nothing lost, nothing doubled, nothing forgotten.

CI ends the service once at each place. ``OVERREAD_KILL_ROUNDS=20`` goes through the whole matrix, in an hour or two.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.faults import POINTS
from tests.acceptance.kill import Forgetting, Harness, run
from tests.support import REPOSITORY

_ROUNDS = int(os.environ.get("OVERREAD_KILL_ROUNDS", "1"))
_SEED = int(os.environ.get("OVERREAD_KILL_SEED", "0"))
_FORGET = [point for point in POINTS if point.startswith("forget.")]
_WAY = [point for point in POINTS if point not in _FORGET]


def _called() -> Iterator[str]:
    for path in (REPOSITORY / "service").rglob("*.py"):
        yield from re.findall(r'faults\.point\("([a-z.]+)"\)', path.read_text())


def test_each_named_place_is_one_of_the_code() -> None:
    assert set(_called()) == set(POINTS)


@pytest.mark.parametrize("half", [0, 1])
def test_killed_at_each_place_of_a_studys_way_everything_arrives_once(half: int, tmp_path: Path) -> None:
    total, lines = run(tmp_path, _WAY[half::2], rounds=_ROUNDS, seed=_SEED + half)
    assert not total, f"{total}\n" + "\n".join(lines)


def test_killed_while_it_forgets_it_forgets_in_the_end_and_sends_nothing_again(tmp_path: Path) -> None:
    harness = Forgetting(tmp_path)
    try:
        for point in _FORGET:
            for _ in range(_ROUNDS):
                found = harness.forget(point)
                assert not found, (point, found)
    finally:
        harness.close()


def test_the_count_sees_a_step_out_of_order(tmp_path: Path) -> None:
    """With the row committed after Success, a kill in between must be seen to lose instances."""
    harness = Harness(tmp_path, command=("-m", "tests.acceptance.disordered"))
    try:
        found = harness.round("receive.replied", 10, again=False)
        assert found.lost, found
        assert all("instance" in words for words in found.lost)
    finally:
        harness.close()


def test_the_count_sees_what_is_lost_doubled_and_forgotten(tmp_path: Path) -> None:
    """Damage done by hand to a study that went well."""
    harness = Harness(tmp_path)
    try:
        study = harness.study()
        harness.send(study)
        assert not harness.count(study)
        kept = next((tmp_path / "var" / "spool" / study.uid).iterdir())
        content = kept.read_bytes()
        kept.write_bytes(content[:-1])
        assert len(harness.count(study).lost) == 1
        kept.write_bytes(content)
        (first, second) = (it["MainDicomTags"]["SOPInstanceUID"] for it in harness.orthanc.find(study.uid))
        harness.recorder.came[first].append("other bytes")
        assert len(harness.count(study).doubled) == 1
        harness.recorder.came[first].pop()
        hashes = harness.recorder.came.pop(second)
        assert len(harness.count(study).forgotten) == 1
        harness.recorder.came[second] = hashes
        harness.orthanc.delete(second)
        assert len(harness.count(study).forgotten) == 1
    finally:
        harness.close()
