"""The number of a study's patient, read from files that may be anything."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from pydicom import dcmread

from service import patients
from service.patients import Patients
from tests.toys import bright_study


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Of a study of one patient."""
    bright_study(tmp_path, PatientID="4567")
    return sorted(tmp_path.iterdir())


def test_any_file_that_can_be_read_tells_it(files: list[Path], tmp_path: Path) -> None:
    files[0].write_bytes(b"no DICOM")
    (tmp_path / "folder").mkdir()
    assert Patients(lambda study_uid: [tmp_path / "gone", tmp_path / "folder", *files]).of("1.2") == "4567"


def test_a_study_whose_files_are_gone_or_say_nothing_has_none(files: list[Path], tmp_path: Path) -> None:
    header = dcmread(files[0])
    header.PatientID = ""
    header.save_as(files[0])
    assert Patients(lambda study_uid: [tmp_path / "gone", files[0]]).of("1.2") == ""


def test_it_is_looked_up_once_and_not_remembered_for_ever(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def files_of(study_uid: str) -> Iterable[Path]:
        asked.append(study_uid)
        return files

    monkeypatch.setattr(patients, "_MOST", 2)
    looked_up = Patients(files_of)
    for uid in ("1.1", "1.1", "1.2", "1.3", "1.3", "1.1"):
        assert looked_up.of(uid) == "4567"
    assert asked == ["1.1", "1.2", "1.3", "1.1"]


def test_what_was_not_known_may_be_known_later(files: list[Path]) -> None:
    there: list[Path] = []
    looked_up = Patients(lambda study_uid: there)
    assert looked_up.of("1.2") == ""
    there += files
    assert looked_up.of("1.2") == "4567"
