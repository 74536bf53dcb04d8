"""What an analysis leaves: frozen once, whole or not at all, and told to the API without arrays or names."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import evidence
from service.forms import Kind
from service.show import findings_table
from service.types import Answer, Evidence, Exclusion, Lesion, Outcome, Picture, ResultObject, Selection
from tests.phantoms import Phantom, make, with_judgements, with_marks


def _object(kind: Kind, form: str, uid: str, content: bytes) -> ResultObject:
    return ResultObject(
        kind=kind,
        form=form,
        sop_class_uid="1.1",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_instance_uid=f"{uid}.1",
        sop_instance_uid=uid,
        base=f"{uid}.2",
        content=content,
    )


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    phantom = make(tmp_path_factory.mktemp("series"))
    return Answer(
        model=phantom.making.model.spec,
        weights_sha256="ab" * 32,
        outcome=Outcome.FINDINGS,
        reason="",
        selection=Selection(series=phantom.source.series, why="axial", excluded=()),
        excluded=(Exclusion(series_instance_uid="1.2.9", reason="localizers only"),),
        findings=phantom.findings,
        dropped=3,
        notes=("odd",),
        seconds={"infer": 1.23456},
        objects=(
            _object(Kind.SEG, "binary", "1.3", b"seg"),
            _object(Kind.SR, "binary", "2.3", b"sr"),
        ),
        pictures=(Picture(finding=0, png=b"sheet"), Picture(finding=1, png=b"one"), Picture(finding=2, png=b"two")),
    )


def _evidence(*answers: Answer) -> Evidence:
    return Evidence(study_instance_uid="1.2.3", answers=answers)


def test_everything_is_frozen_under_the_names_that_the_answers_say(answer: Answer, tmp_path: Path) -> None:
    folder = evidence.freeze(tmp_path, _evidence(answer), 4)
    assert folder == evidence.folder_of(tmp_path, "1.2.3", 4)
    (told,) = evidence.frozen_answers(folder)
    assert told == json.loads(json.dumps(evidence.as_json(answer)))
    assert [(folder / made["file"]).read_bytes() for made in told["objects"]] == [b"seg", b"sr"]
    assert [(folder / finding["picture"]).read_bytes() for finding in told["findings"]] == [b"one", b"two"]
    assert len(list(folder.iterdir())) == 6
    assert [path.name for path in folder.parent.iterdir()] == ["4"], "no draft is left"


def test_what_is_frozen_never_changes(answer: Answer, tmp_path: Path) -> None:
    folder = evidence.freeze(tmp_path, _evidence(answer), 0)
    changed = replace(answer, objects=(replace(answer.objects[1], content=b"other"),), findings=(), pictures=())
    assert evidence.freeze(tmp_path, _evidence(changed), 0) == folder
    assert (folder / evidence.object_name(answer, answer.objects[1])).read_bytes() == b"sr"
    other = replace(changed, objects=(replace(changed.objects[0], sop_instance_uid="2.9"),))
    again = evidence.freeze(tmp_path, _evidence(other), 1)
    assert (again / evidence.object_name(answer, answer.objects[1])).read_bytes() == b"other"


def test_each_answer_has_files_of_its_own(answer: Answer, tmp_path: Path) -> None:
    other = replace(answer, model=answer.model.model_copy(update={"name": "another"}))
    folder = evidence.freeze(tmp_path, _evidence(answer, other), 0)
    assert len(list(folder.iterdir())) == 11
    assert [told["model"] for told in evidence.frozen_answers(folder)] == ["phantom-lesion", "another"]


@pytest.mark.parametrize("failing", range(12))
def test_a_crash_on_the_way_leaves_nothing(
    failing: int, answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fsync fails once: three of the folders above, six files, the draft; and the last one, of its final name."""
    real, calls = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError("no space left")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = evidence.folder_of(tmp_path, "1.2.3", 0)
    if failing:
        with pytest.raises(OSError, match="no space"):
            evidence.freeze(tmp_path, _evidence(answer), 0)
        assert folder.exists() == (failing == 11), "it has its name only once all that is in it is durable"
        assert list(tmp_path.glob("evidence/*/.*")) == [], "no draft is left"
    evidence.freeze(tmp_path, _evidence(answer), 0)
    assert calls >= 11
    assert len(list(folder.iterdir())) == 6


def test_every_file_and_folder_is_made_durable(answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[tuple[int, int]] = set()
    real = os.fsync

    def fsync(handle: int) -> None:
        status = os.fstat(handle)
        synced.add((status.st_dev, status.st_ino))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = evidence.freeze(tmp_path, _evidence(answer), 0)
    for path in (*folder.iterdir(), folder, folder.parent, folder.parent.parent, tmp_path):
        assert (path.stat().st_dev, path.stat().st_ino) in synced, path.name


def test_the_api_sees_plain_values_and_no_patient(answer: Answer) -> None:
    told: dict[str, Any] = evidence.as_json(answer)
    words = json.dumps(told)
    assert "Phantom^Test" not in words
    assert "P-0001" not in words
    assert told["outcome"] == "findings"
    assert told["excluded"] == [{"series_uid": "1.2.9", "reason": "localizers only", "cause": "no-series"}]
    assert (told["dropped"], told["notes"], told["seconds"]) == (3, ["odd"], {"infer": 1.235})
    first, finding = told["findings"][0], answer.findings[0]
    assert isinstance(finding, Lesion)
    assert first["slice"] == finding.key_slice + 1, "people count from 1"
    np.testing.assert_allclose(first["centroid_lps_mm"], finding.centroid_lps_mm, atol=0.05)
    assert first["volume_ml"] == pytest.approx(finding.volume_ml, abs=0.0005)


def test_an_answer_without_a_series_is_told_too(answer: Answer) -> None:
    told = evidence.as_json(replace(answer, selection=None, findings=(), objects=(), outcome=Outcome.UNSUITABLE))
    assert (told["series_uid"], told["why"], told["objects"], told["outcome"]) == (None, None, [], "unsuitable")


def _told(phantom: Phantom, answer: Answer) -> list[dict[str, Any]]:
    told = evidence.as_json(replace(answer, findings=phantom.findings, pictures=(), model=phantom.making.model.spec))
    findings: list[dict[str, Any]] = json.loads(json.dumps(told))["findings"]
    return findings


def test_each_kind_of_finding_is_told_with_what_it_has(answer: Answer, tmp_path: Path) -> None:
    phantom = make(tmp_path)
    common = {"kind", "number", "tracking_uid", "finding", "site", "laterality", "probability", "slice", "picture"}
    (lesion, _), (box, _, point), (said, _) = (
        _told(each, answer) for each in (phantom, with_marks(phantom), with_judgements(phantom))
    )
    assert lesion.keys() - common == {
        "volume_ml", "long_axis_mm", "short_axis_mm", "mean", "centroid_lps_mm", "extent_lps_mm"
    }  # fmt: skip
    assert [each["kind"] for each in (lesion, box, point, said)] == ["lesion", "mark", "mark", "judgement"]
    # The box of slices 1 to 5, rows 6 to 18, columns 10 to 18: its middle is (3, 12, 14).
    assert (
        box.items()
        >= {
            "finding": "Lesion",
            "site": "Liver",
            "probability": 0.85,
            "slice": 4,
            "centre_lps_mm": [-109.3, -70.7, 317.5],
            "size_mm": [12.5, 10.4, 7.2],
            "picture": None,
        }.items()
    )
    assert point["size_mm"] is None
    assert said.items() >= {"finding": "Glioma", "site": "Brain", "level": "series", "slice": 8}.items()
    assert said.keys() - common == {"level"}


def _rows(findings: list[dict[str, Any]]) -> list[list[str]]:
    """The table's cells, row by row."""
    answer = {"model": "m", "findings": findings, "outcome": "findings", "reason": ""}
    columns = [list(column.cells) for column in findings_table([answer]).columns]
    return [[str(cell) for cell in row] for row in zip(*columns, strict=True)]


def test_the_table_shows_each_kind_of_finding(answer: Answer, tmp_path: Path) -> None:
    phantom = make(tmp_path)
    (lesion, _), (box, _, point), (said, _) = (
        _rows(_told(each, answer)) for each in (phantom, with_marks(phantom), with_judgements(phantom))
    )
    assert lesion[:4] == ["m", "1", "Lesion", "Liver"]
    assert all(lesion[4:])
    assert box == ["m", "1", "Lesion", "Liver", "", "7 x 10 x 12", "-109, -71, 318", "4", "0.85"]
    assert point[4:] == ["", "", "-96, -74, 323", "6", "0.65"]
    assert said == ["m", "1", "Glioma", "Brain", "", "", "", "8", "0.85"]
