"""Names in the character sets of the world: in by C-STORE, through the analysis, into a real Orthanc and out, equal."""

from __future__ import annotations

import io
import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement

from tests.acceptance.conftest import Orthanc, Service
from tests.acceptance.test_main_job import push, study_uid_of
from tests.support import counterpart
from tests.toys import bright_study


class Name(NamedTuple):
    """A name as a scanner of that country writes it."""

    terms: str | list[str] | None  # Specific Character Set
    raw: bytes
    text: str  # what it means
    dcmtk: bool = True  # whether Debian's DCMTK can convert it


NAMES = {  # the first three of PS3.5 J.2, H.3.1 and I.2
    "Chinese": Name("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang^XiaoDong=王^小东"),
    "Japanese": Name(
        ["", "ISO 2022 IR 87"],
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
        dcmtk=False,
    ),
    "Korean": Name(
        ["", "ISO 2022 IR 149"],
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    "Arabic": Name("ISO_IR 127", b"\xe2\xc8\xc7\xe6\xea^\xe4\xe6\xd2\xc7\xd1", "قباني^لنزار"),
    # Nobody knows what these bytes mean; Orthanc takes them for Latin-1, in the images as in the results.
    "Chinese, undeclared": Name(None, b"\xcd\xf5^\xd0\xa1", "Íõ^Ð¡", dcmtk=False),
}
KINDS = ("SEG", "SR", "SC", "PR", "KO")
TEXTS = ("PatientName", "ReferringPhysicianName", "StudyDescription")


def write_study(folder: Path, number: int, name: Name) -> str:
    """A study of a patient of that name; its Study Instance UID."""
    names = dict.fromkeys(TEXTS, name.raw)
    bright_study(folder, seed=number, SpecificCharacterSet=name.terms, PatientID=f"NAME-{number}", **names)
    return study_uid_of(folder)


def bytes_of(dataset: Dataset, keyword: str) -> bytes:
    """The bytes of a text as they stand in a file."""
    found = dataset.get_item(keyword)
    assert isinstance(found, RawDataElement)
    assert found.value is not None
    return found.value.rstrip(b"\0 ")


def store(orthanc: Orthanc, folder: Path) -> str:
    """Give Orthanc the images themselves, as the PACS of a hospital has them; one's identifier."""
    answer: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        request = urllib.request.Request(f"http://127.0.0.1:{orthanc.http_port}/instances", path.read_bytes())
        with urllib.request.urlopen(request, timeout=60) as reply:
            answer = json.load(reply)
    return str(answer["ID"])


def as_dcmtk_reads(path: Path) -> str:
    """The patient's name by DCMTK, converted to UTF-8."""
    command = [counterpart("dcmdump"), "+U8", "+P", "0010,0010", str(path)]
    line = subprocess.run(command, check=True, capture_output=True).stdout.decode()
    return line[line.index("[") + 1 : line.rindex("]")]


def test_names_come_out_of_the_pacs_as_they_went_in(service: Service, orthanc: Orthanc, tmp_path: Path) -> None:
    studies = {who: write_study(tmp_path / who, n, name) for n, (who, name) in enumerate(NAMES.items())}
    service.add_destination("ORTHANC", orthanc.port, more='profile = { capture = "summary", gsps = true, ko = true }')
    service.start()
    for who in NAMES:
        push(tmp_path / who, service)
    answers = {who: service.wait_for_study(study_uid) for who, study_uid in studies.items()}
    results = orthanc.instances()
    images = {who: store(orthanc, tmp_path / who) for who in NAMES}

    for who, name in NAMES.items():
        (answer,), sent = answers[who]["answers"], answers[who]["deliveries"]
        assert answer["outcome"] == "findings"
        assert {(made["kind"], made["state"]) for made in sent} == {(kind, "confirmed") for kind in KINDS}
        of_images = orthanc.get(f"/instances/{images[who]}/simplified-tags")
        for made in sent:
            identifier = results[made["sop_uid"]]
            content = orthanc.get_bytes(f"/instances/{identifier}/file")
            dataset = dcmread(io.BytesIO(content), stop_before_pixels=True)
            tags = orthanc.get(f"/instances/{identifier}/simplified-tags")
            for keyword in TEXTS:
                where = f"{keyword} of the {made['kind']}, {who}"
                assert bytes_of(dataset, keyword) == name.raw, where
                assert tags[keyword] == of_images[keyword] == name.text, where
            assert dataset.get("SpecificCharacterSet") == name.terms
            assert str(dataset.PatientName) == name.text
            if name.dcmtk:
                (tmp_path / "out.dcm").write_bytes(content)
                assert as_dcmtk_reads(tmp_path / "out.dcm") == name.text
    # Images and results are one patient's, under the same name.
    patients = {one["MainDicomTags"]["PatientID"]: one for one in orthanc.get("/patients?expand")}
    assert len(patients) == len(NAMES)
    for number, name in enumerate(NAMES.values()):
        assert patients[f"NAME-{number}"]["MainDicomTags"]["PatientName"] == name.text
        assert len(patients[f"NAME-{number}"]["Studies"]) == 1
    assert not any(name.text in service.log() for name in NAMES.values())


@pytest.mark.filterwarnings("ignore:Unknown encoding", "ignore:Value '")  # while the images are written
@pytest.mark.parametrize("terms", ["ISO_IR 999", ["ISO_IR 100", "ISO_IR 192"]])
def test_a_name_in_an_unknown_set_is_answered_and_not_guessed(
    service: Service, orthanc: Orthanc, tmp_path: Path, terms: str | list[str]
) -> None:
    study_uid = write_study(tmp_path / "study", 9, Name(terms, b"Geheim^J\xe9r\xf4me", ""))
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    push(tmp_path / "study", service)
    study = service.wait_for_study(study_uid)
    (answer,) = study["answers"]
    assert answer["outcome"] == "unsuitable"
    spelled = terms if isinstance(terms, str) else "\\".join(terms)
    assert f"'{spelled}'" in answer["reason"]
    assert "the patient's name" in answer["reason"]
    results = orthanc.instances()
    assert {(made["kind"], made["state"]) for made in study["deliveries"]} == {("SR", "confirmed")}
    for made in study["deliveries"]:
        content = orthanc.get_bytes(f"/instances/{results[made['sop_uid']]}/file")
        dataset = dcmread(io.BytesIO(content), stop_before_pixels=True)
        assert dataset["PatientName"].is_empty
        assert "SpecificCharacterSet" not in dataset
        assert (dataset.PatientID, str(dataset.StudyInstanceUID)) == ("NAME-9", study_uid)
        assert b"Geheim" not in content
    assert "Geheim" not in service.log()
