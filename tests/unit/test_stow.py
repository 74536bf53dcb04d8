"""What STOW-RS answers to each kind of request, and that an instance of it is kept as one of C-STORE."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import pydicom
import pytest
from fastapi.testclient import TestClient
from pydicom.dataset import Dataset

from service import audit
from service.intake.keep import CONFLICTING
from service.settings.doors import Api, Role, Token
from service.settings.intake import Intake, Route
from service.types import Priority
from tests.apis import RELATED, HttpSite, dicom_file, http_site, multipart
from tests.integration.receiver import PATIENT, image

URL = "/dicom-web/studies"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[HttpSite]:
    with http_site(tmp_path / "var") as site:
        yield site


@pytest.fixture
def client(site: HttpSite) -> Iterator[TestClient]:
    with TestClient(site.app, raise_server_exceptions=False) as client:
        yield client


def post(client: TestClient, *files: bytes, to: str = URL, **headers: str) -> tuple[int, Dataset, Any]:
    """The status, the answer as a data set, and the answer."""
    answer = client.post(to, content=multipart(*files), headers=RELATED | headers)
    assert answer.headers["content-type"] == "application/dicom+json", answer.text
    return answer.status_code, Dataset.from_json(answer.json()), answer


def stored(site: HttpSite) -> dict[str, bytes]:
    return {name: (site.config.store.directory / "spool" / name).read_bytes() for name in site.files()}


# --- What is kept -----------------------------------------------------------------------------------------------------


def test_an_instance_is_on_the_disk_and_its_row_is_there(client: TestClient, site: HttpSite) -> None:
    made = image()
    status, said, _ = post(client, dicom_file(made))
    assert status == 200
    (item,) = said.ReferencedSOPSequence
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (made.SOPClassUID, made.SOPInstanceUID)
    assert "RetrieveURL" in item, "Type 2"
    assert not item.RetrieveURL, "nothing can be retrieved here"
    assert "FailedSOPSequence" not in said
    ((name, content),) = stored(site).items()
    assert name == f"{made.StudyInstanceUID}/{made.SOPInstanceUID}.dcm"
    kept = pydicom.dcmread(site.config.store.directory / "spool" / name)
    assert kept == made
    assert content.endswith(dicom_file(made)[-512:])
    assert kept.file_meta.SourceApplicationEntityTitle == "STOW-RS"
    assert site.store.held(str(made.StudyInstanceUID)) == {made.SeriesInstanceUID: 1}
    assert [word for word, _ in site.outcomes] == ["received"]


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/related; type="application/dicom"; boundary="limit"',
        "multipart/related;boundary=limit;type=application/dicom",
        'Multipart/Related; Type="Application/DICOM"; Boundary=limit; transfer-syntax=1.2.840.10008.1.2.1',
    ],
)
def test_a_content_type_may_be_written_in_several_ways(content_type: str, client: TestClient, site: HttpSite) -> None:
    assert post(client, dicom_file(image()), **{"Content-Type": content_type})[0] == 200
    assert len(site.files()) == 1


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"])
def test_each_transfer_syntax_is_kept_as_it_is(syntax: str, client: TestClient, site: HttpSite) -> None:
    made = image()
    assert post(client, dicom_file(made, syntax))[0] == 200
    (name,) = site.files()
    kept = pydicom.dcmread(site.config.store.directory / "spool" / name)
    assert (kept, kept.file_meta.TransferSyntaxUID) == (made, syntax)


def test_a_repeat_is_success_and_another_content_a_warning(client: TestClient, site: HttpSite) -> None:
    made = image()
    other = deepcopy(made)
    other.PixelData = bytes(512)
    assert post(client, dicom_file(made))[0] == 200
    assert post(client, dicom_file(made))[0] == 200
    status, said, _ = post(client, dicom_file(other), dicom_file(image()))
    assert status == 202
    assert [item.get("WarningReason") for item in said.ReferencedSOPSequence] == [CONFLICTING, None]
    assert [word for word, _ in site.outcomes] == ["received", "repeated", "conflicting", "received"]


def test_an_instance_is_urgent_by_its_sender(tmp_path: Path) -> None:
    routes = (Route(calling_ae_title="STOW-RS", priority="stat"),)
    with http_site(tmp_path, routes=routes) as site, TestClient(site.app) as client:
        made = image()
        assert post(client, dicom_file(made))[0] == 200
        row = site.store.study(str(made.StudyInstanceUID))
        assert row is not None
        assert (row["priority"], row["source"]) == (Priority.STAT, "STOW-RS")


def test_only_an_operator_sends_and_is_the_source(tmp_path: Path) -> None:
    tokens = tuple(
        Token(name=f"{role}-of-the-ct-scanner", role=role, sha256=sha256(role.encode()).hexdigest())
        for role in get_args(Role)
    )
    made = image()
    with http_site(tmp_path, api=Api(tokens=tokens)) as site, TestClient(site.app) as client:
        for shown, status in (("", 401), ("Bearer x", 401), ("Bearer viewer", 403), ("Bearer operator", 200)):
            headers = RELATED | ({"Authorization": shown} if shown else {})
            answer = client.post(URL, content=multipart(dicom_file(made)), headers=headers)
            assert answer.status_code == status, shown
            assert len(site.files()) == (status == 200)
        row = site.store.study(str(made.StudyInstanceUID))
        assert row is not None
        assert row["source"] == "operator-of-the-"


def test_what_came_is_in_the_audit_trail(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(audit, "transferred", lambda **fields: told.append(fields))
    first, second = image(), image()
    other = image(StudyInstanceUID=first.StudyInstanceUID)
    broken = dicom_file(image())[:-10]
    assert post(client, dicom_file(first), dicom_file(second), dicom_file(other), broken)[0] == 202
    assert [(it["study_uid"], dict(it["instances"]), it["incoming"]) for it in told] == [
        (first.StudyInstanceUID, {first.SOPClassUID: 2}, True),
        (second.StudyInstanceUID, {first.SOPClassUID: 1}, True),
    ]


# --- What is not ------------------------------------------------------------------------------------------------------


def bad_files() -> dict[str, tuple[int, bytes, bool]]:
    """By name: the failure reason that is due, the file, and whether the answer names the instance."""
    made = image()
    whole = dicom_file(made)
    return {
        "text": (0xC000, b"<html>" * 100, False),
        "empty": (0xC000, b"", False),
        "another prefix": (0xC000, whole.replace(b"DICM", b"MCID", 1), False),
        "no preamble": (0xC000, whole[128:], False),
        "meta group cut": (0xC000, whole[:150], False),
        "meta group alone": (0xC000, whole[: whole.index(b"\x08\x00\x16\x00")], True),
        "pixel data cut": (0xC000, whole[:-10], True),
        "no transfer syntax": (0xC000, whole.replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x99\x00UI", 1), False),
        "no study": (0xC000, dicom_file(image(StudyInstanceUID=None)), True),
        "a path for a study": (0xC000, dicom_file(image(StudyInstanceUID="../../escaped")), True),
        "other instance in the meta group": (0xA900, dicom_file(made, sop_uid="1.2.3"), True),
        "other class in the meta group": (0xA900, dicom_file(made, class_uid="1.2.840.10008.5.1.4.1.1.4"), True),
        "no storage class": (0x0122, dicom_file(image(SOPClassUID="1.2.826.0.1.3680043.9.9999.1")), True),
        "unknown transfer syntax": (
            0xC122,
            whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.2.1\0", 1),
            True,
        ),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(bad_files()))
def test_each_bad_file_gets_its_reason_and_harms_no_other(
    name: str, client: TestClient, site: HttpSite, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reason, content, is_named = bad_files()[name]
    status, said, _ = post(client, content)
    assert status == 409
    items = said.get("FailedSOPSequence" if is_named else "OtherFailuresSequence")
    assert [item.FailureReason for item in items] == [reason]
    assert ("ReferencedSOPInstanceUID" in items[0]) == is_named
    status, said, _ = post(client, dicom_file(image()), content, dicom_file(image()))
    assert status == 202
    assert len(said.ReferencedSOPSequence) == 2
    assert len(site.files()) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"var"}
    assert PATIENT not in capfd.readouterr().err


def test_what_is_of_another_study_is_refused(client: TestClient, site: HttpSite) -> None:
    mine, other = image(), image()
    status, said, _ = post(client, dicom_file(mine), dicom_file(other), to=f"{URL}/{mine.StudyInstanceUID}")
    assert status == 202
    assert [item.ReferencedSOPInstanceUID for item in said.ReferencedSOPSequence] == [mine.SOPInstanceUID]
    (failed,) = said.FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (other.SOPInstanceUID, 0xA900)
    assert site.store.study(str(other.StudyInstanceUID)) is None


@pytest.mark.parametrize("where", ["..%2f..%2fetc", "1.2.3%2f..", "1.2..3", "1" * 65, "GEHEIM", "1.2%00", "%2e%2e"])
def test_the_address_of_a_study_is_a_uid(where: str, client: TestClient) -> None:
    answer = client.post(f"{URL}/{where}", content=multipart(dicom_file(image())), headers=RELATED)
    assert answer.status_code in (404, 405, 422)
    assert "GEHEIM" not in answer.text


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (400, b"", {}),
        (400, b"--limit--\r\n", {}),
        (400, multipart(b"x")[:-8], {}),
        (400, multipart(b"x", boundary="other"), {}),
        (400, multipart(b"x"), {"Content-Type": "multipart/related; type=application/dicom"}),
        (400, multipart(b"x"), {"Content-Type": f"multipart/related; type=application/dicom; boundary={'b' * 201}"}),
        (400, b"--limit\r\n" + b"A: " + b"b" * 10_000 + b"\r\n\r\nx\r\n--limit--\r\n", {}),
        (400, b"--limit\r\n" + b"A: b\r\n" * 50 + b"\r\nx\r\n--limit--\r\n", {}),
        (415, multipart(b"x"), {"Content-Type": "application/dicom"}),
        (415, multipart(b"x"), {"Content-Type": "multipart/related; type=application/dicom+json; boundary=limit"}),
        (415, multipart(b"x"), {"Content-Type": "multipart/form-data; boundary=limit"}),
        (415, multipart(b"{}", media_type="application/dicom+json"), {}),
        (406, multipart(b"x"), {"Accept": "application/dicom+xml"}),
    ],
)
def test_a_request_that_is_none_is_a_problem(
    status: int, body: bytes, headers: dict[str, str], client: TestClient, site: HttpSite
) -> None:
    answer = client.post(URL, content=body, headers=RELATED | headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert all(answer.json()[part] for part in ("doing", "found", "rule", "way_out"))
    assert site.files() == []


def test_what_came_before_the_fault_stays_and_is_counted(client: TestClient, site: HttpSite) -> None:
    body = multipart(dicom_file(image()), dicom_file(image()))
    answer = client.post(URL, content=body[:-200], headers=RELATED)
    assert answer.status_code == 400
    assert "1 instances before that were kept" in answer.json()["found"]
    assert len(site.files()) == 1


def test_what_is_too_large_is_refused_before_it_is_held(tmp_path: Path) -> None:
    api, intake = Api(maximum_body_mib=3), Intake(maximum_instance_mib=1)
    with http_site(tmp_path, api=api, intake=intake) as site, TestClient(site.app) as client:
        large = dicom_file(image(PixelData=bytes(2 << 20)))
        answer = client.post(URL, content=multipart(dicom_file(image()), large), headers=RELATED)
        assert (answer.status_code, "maximum_instance_mib" in answer.json()["rule"]) == (413, True)
        body = multipart(*(dicom_file(image(PixelData=bytes(900_000))) for _ in range(5)))
        answer = client.post(URL, content=body, headers=RELATED)  # it says how long it is
        assert (answer.status_code, "maximum_body_mib" in answer.json()["rule"]) == (413, True)
        assert len(site.files()) == 1, "nothing of it was read"


def test_a_nearly_full_disk_is_said_before_the_body(tmp_path: Path) -> None:
    with http_site(tmp_path, minimum_free_gib=1e6) as site, TestClient(site.app) as client:
        answer = client.post(URL, content=multipart(dicom_file(image())), headers=RELATED)
        assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)
        assert "minimum_free_gib" in answer.json()["rule"]
        assert site.files() == []


def test_a_disk_that_gets_full_meanwhile_is_a700(
    client: TestClient, site: HttpSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.store.close()
    monkeypatch.setattr(site.store, "keep_instance", lambda **_: 1 / 0)
    status, said, answer = post(client, dicom_file(image()))
    assert (status, "retry-after" in answer.headers) == (503, True)
    assert [item.FailureReason for item in said.FailedSOPSequence] == [0xA700]


def test_a_process_that_takes_no_studies_says_so(tmp_path: Path) -> None:
    with http_site(tmp_path, more={"keep": None}) as site, TestClient(site.app) as client:
        answer = client.post(URL, content=multipart(dicom_file(image())), headers=RELATED)
        assert (answer.status_code, "receive" in answer.json()["rule"]) == (503, True)
