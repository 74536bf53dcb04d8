"""What is read of a study's files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from service.errors import NotUnderstood
from service.intake.study import group, read_instance
from service.types import Instance
from tests.phantoms import make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("series")
    make(made)
    return made


def test_a_file_is_read_but_for_its_pixels(folder: Path) -> None:
    path = sorted(folder.iterdir())[0]
    instance = read_instance(path)
    whole = dcmread(path)
    assert instance.sop_instance_uid == whole.SOPInstanceUID
    assert instance.sop_class_uid == whole.SOPClassUID
    assert instance.transfer_syntax_uid == ExplicitVRLittleEndian
    assert "PixelData" not in instance.header


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("empty", [False, True], ids=["absent", "empty"])
def test_a_file_without_an_identity_is_not_understood(keyword: str, empty: bool, folder: Path, tmp_path: Path) -> None:
    dataset = dcmread(sorted(folder.iterdir())[0])
    if empty:
        setattr(dataset, keyword, "")
    else:
        delattr(dataset, keyword)
    dataset.save_as(tmp_path / "x.dcm")
    with pytest.raises(NotUnderstood):
        read_instance(tmp_path / "x.dcm")


@pytest.mark.parametrize("content", [None, b"", b"DICM", b"\0" * 128 + b"DICM", b"%PDF-1.7" + b"x" * 400])
def test_what_is_no_dicom_file_is_not_understood(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.dcm").write_bytes(content)
    with pytest.raises(NotUnderstood) as caught:
        read_instance(tmp_path / "x.dcm")
    assert "x.dcm" in caught.value.doing
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda uid: str(uid.name),
)
def test_a_damaged_file_is_read_or_not_understood_and_nothing_else(syntax: UID, tmp_path: Path) -> None:
    """A few hundred files with bytes flipped and ends cut, always the same ones."""

    def encoded(dataset: Dataset, _index: int) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset["PixelData"].VR = "OW"

    make(tmp_path / "series", edit=encoded)
    whole = sorted((tmp_path / "series").iterdir())[0].read_bytes()
    dice = random.Random(7)
    path = tmp_path / "x.dcm"
    refused = 0
    for _ in range(250):
        damaged = bytearray(whole)
        for _ in range(dice.choice((1, 1, 2, 4))):
            damaged[dice.randrange(128, min(1500, len(whole)))] = dice.randrange(256)
        path.write_bytes(damaged[: dice.choice((len(whole), len(whole), dice.randrange(140, len(whole))))])
        try:
            read_instance(path)
        except NotUnderstood:
            refused += 1
    assert refused, "none was damaged enough"


def test_instances_are_grouped_by_uid_in_whatever_order_they_come(folder: Path) -> None:
    instances = [read_instance(path) for path in sorted(folder.iterdir())]
    made: list[Instance] = []
    for number, instance in enumerate(instances):
        header = Dataset(instance.header)
        header.StudyInstanceUID = f"1.{number % 2}"
        header.SeriesInstanceUID = f"1.{number % 2}.{number % 3}"
        header.Modality = "CT" if number % 3 else None
        made.append(
            Instance(
                sop_instance_uid=instance.sop_instance_uid,
                sop_class_uid=instance.sop_class_uid,
                transfer_syntax_uid=instance.transfer_syntax_uid,
                path=instance.path,
                header=header,
            )
        )
    for order in (made, made[::-1]):
        studies = group(order, received_at=5.0)
        assert [study.study_instance_uid for study in studies] == ["1.0", "1.1"]
        assert [s.series_instance_uid for s in studies[1].series] == ["1.1.0", "1.1.1", "1.1.2"]
        assert [s.modality for s in studies[0].series] == ["", "CT", "CT"]
        assert sum(len(s.instances) for study in studies for s in study.series) == len(instances)
        assert {(study.completeness, study.received_at) for study in studies} == {("quiet", 5.0)}
    assert group([]) == []
