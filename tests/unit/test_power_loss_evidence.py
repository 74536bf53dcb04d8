"""Promise 3 when the power goes: frozen evidence survives as a whole, and before that it is there whole or not at all.

Each check here is seen to fail: the faults that it is there for are planted, one by one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from service import evidence, faults
from service.forms import Kind
from service.types import Answer, Evidence, Outcome, Picture, ResultObject
from tests.phantoms import make
from tests.power import Disk, Killed, Tree
from tests.unit.power_scenes import fsync_late, role

STUDY = "1.2.3"
PLACE = f"evidence/{STUDY}"
TARGETS = [  # every fsync on the way of a first analysis
    *(f"fsync {PLACE}/.*/phantom-lesion.{name}" for name in ("SEG.binary.dcm", "SR.dcm")),
    *(f"fsync {PLACE}/.*/phantom-lesion-{name}.png" for name in ("summary", "1")),
    *(f"fsync {PLACE}/.*/answers.json", f"fsync {PLACE}/.*"),
    *("fsync .", "fsync evidence", f"fsync {PLACE}"),
]
Freeze = Callable[[Path, Evidence, int], Path]


def _object(kind: Kind, form: str, uid: str, content: bytes) -> ResultObject:
    return ResultObject(
        kind=kind,
        form=form,
        sop_class_uid="1.1",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_instance_uid=f"{uid}.1",
        sop_instance_uid=uid,
        base=uid,
        content=content,
    )


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    phantom = make(tmp_path_factory.mktemp("series"))
    return Answer(
        model=phantom.making.model.spec,
        weights_sha256="ab" * 32,
        outcome=Outcome.NO_FINDINGS,
        reason="",
        selection=None,
        excluded=(),
        findings=(),
        dropped=0,
        seconds={},
        objects=(_object(Kind.SEG, "binary", "1.3", b"seg"), _object(Kind.SR, "", "2.3", b"sr")),
        pictures=(Picture(finding=0, png=b"sheet"), Picture(finding=1, png=b"one")),
    )


def analyses(answer: Answer) -> list[Evidence]:
    """Two analyses of a study; the second one made an object anew, and has another one as it was."""
    anew = replace(answer.objects[1], sop_instance_uid="2.4", content=b"sr, once more")
    again = replace(answer, objects=(answer.objects[0], anew))
    return [Evidence(study_instance_uid=STUDY, answers=(one,)) for one in (answer, again)]


@contextmanager
def acting(folder: Path) -> Iterator[Disk]:
    """A disk with an empty store."""
    folder.mkdir()
    with Disk(folder) as disk:
        yield disk


class Watch:
    """Notes what a power cut would lose of two analyses.

    Parameters
    ----------
    freeze
        What freezes; a test may plant another one.
    """

    def __init__(self, disk: Disk, answer: Answer, *, freeze: Freeze = evidence.freeze) -> None:
        self._disk, self._made, self._freeze = disk, analyses(answer), freeze
        self.losses: list[str] = []
        self.frozen = 0  # the revisions that were said to be durable

    def run(self) -> None:
        """Freeze what is not yet; each is durable from then on."""
        for revision in range(self.frozen, 2):
            self._freeze(self._disk.root, self._made[revision], revision)
            self.frozen = revision + 1
            self.look()

    def look(self) -> None:
        """Note what would be lost if the power went now."""
        for tree in self._disk.survivals():
            for revision in range(2):
                there = f"{PLACE}/{revision}" in tree
                if not there and revision < self.frozen:
                    self.losses.append("gone")
                if there and _files(tree, revision) != self._expected(revision):
                    self.losses.append("a part only")

    def _expected(self, revision: int) -> Tree:
        (answer,) = self._made[revision].answers
        files = {evidence.object_name(answer, made): made.content for made in answer.objects}
        files |= {evidence.picture_name(answer, picture.finding): picture.png for picture in answer.pictures}
        answers = (self._disk.root / PLACE / str(revision) / "answers.json").read_bytes()
        return {**files, "answers.json": answers}


def _files(tree: Tree, revision: int) -> Tree:
    start = f"{PLACE}/{revision}/"
    return {path.removeprefix(start): content for path, content in tree.items() if path.startswith(start)}


# --- What holds -----------------------------------------------------------------------------------------------------


def test_evidence_is_whole_or_not_there_at_any_moment_and_survives_once_frozen(answer: Answer, tmp_path: Path) -> None:
    with acting(tmp_path / "disk") as disk:
        watch = Watch(disk, answer)
        disk.on_step = watch.look
        watch.run()
        assert watch.losses == []
        assert len(disk.steps) > 20
        disk.image(tmp_path / "image")
    for revision, made in enumerate(analyses(answer)):
        folder = evidence.folder_of(tmp_path / "image", STUDY, revision)
        assert len(list(folder.iterdir())) == 5
        for one in made.answers[0].objects:
            assert (folder / evidence.object_name(answer, one)).read_bytes() == one.content
    # What survived takes further analyses.
    assert evidence.freeze(tmp_path / "image", analyses(answer)[1], 2).is_dir()


def killed(answer: Answer, folder: Path, *, freeze: Freeze = evidence.freeze) -> list[str]:
    """What is lost where the process is killed, or stalls, before its n-th step, for every n, and starts anew."""
    losses: list[str] = []
    for n in count():
        with acting(folder / str(n)) as disk:
            watch = Watch(disk, answer, freeze=freeze)
            disk.kill_at = n
            with suppress(Killed):
                watch.run()
            if len(disk.steps) < n:
                return losses
            disk.revive()
            watch.run()
            losses += watch.losses
    raise AssertionError("unreachable")


def test_evidence_that_is_found_after_a_kill_survives_a_cut_too(answer: Answer, tmp_path: Path) -> None:
    assert killed(answer, tmp_path) == []


def test_the_places_of_faults_are_where_they_say(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with acting(tmp_path / "disk") as disk:
        points = [name for name in faults.POINTS if name.startswith("freeze.")]
        monkeypatch.setattr(faults, "point", lambda name: disk.steps.append(f"- {name}: {faults.POINTS[name]}"))
        evidence.freeze(disk.root, analyses(answer)[0], 0)
        happened = [role(step) for step in disk.steps]
    content = [[name, "- freeze.written: a file of the draft is fsynced"] for name in TARGETS[:5]]
    assert happened == [
        *("mkdir evidence", "fsync .", f"mkdir {PLACE}", "fsync evidence", f"mkdir {PLACE}/.*"),
        "- freeze.drafted: the draft of the evidence has its folder, no file",
        *(step for steps in content for step in steps),
        f"fsync {PLACE}/.*",
        "- freeze.synced: the draft is fsynced, without its final name",
        f"rename {PLACE}/0",
        "- freeze.renamed: the evidence has its final name, which is not fsynced",
        f"fsync {PLACE}",
        "- freeze.frozen: the evidence is durable; nothing is remembered of it",
    ]
    assert all(any(f"- {name}:" in step for step in happened) for name in points)


# --- Faults, planted ------------------------------------------------------------------------------------------------


def test_each_fsync_has_its_planted_fault(answer: Answer, tmp_path: Path) -> None:
    with acting(tmp_path / "disk") as disk:
        Watch(disk, answer).run()
        assert {role(step) for step in disk.steps if step.startswith("fsync")} == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_an_fsync_left_out_is_a_loss(target: str, answer: Answer, tmp_path: Path) -> None:
    with acting(tmp_path / "disk") as disk:
        disk.skips = lambda step: role(step) == target
        watch = Watch(disk, answer)
        watch.run()
        assert set(watch.losses) & {"gone", "a part only"}


def test_a_name_before_the_content_is_a_loss(answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with acting(tmp_path / "disk") as disk:
        watch = Watch(disk, answer)
        disk.on_step = watch.look
        fsync_late(monkeypatch, after="rename", which=lambda handle: "/." in os.readlink(f"/proc/self/fd/{handle}"))
        watch.run()
        assert set(watch.losses) == {"a part only"}


def test_evidence_taken_for_durable_where_it_is_found_is_a_loss(answer: Answer, tmp_path: Path) -> None:
    def trusting(directory: Path, made: Evidence, revision: int) -> Path:
        folder = evidence.folder_of(directory, STUDY, revision)
        return folder if folder.exists() else evidence.freeze(directory, made, revision)

    assert set(killed(answer, tmp_path, freeze=trusting)) == {"gone"}
