"""Promise 8: studies with planted names, numbers and dates through every error path, and nothing of them anywhere.

What is planted is looked for, in every spelling in which it might leak, in all that the service says and leaves: logs,
metrics, problems and answers of the API, the pages, addresses, names of files, the database. Only DICOM files and the
pictures made of them may hold it, and the audit trail the patient's number.
"""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydicom import dcmread

from tests.acceptance.conftest import Orthanc, Service, wait
from tests.acceptance.test_main_job import push, study_uid_of
from tests.support import free_port
from tests.toys import bright_study, write_model

STUDIES, _SPOILT = 50, 900  # how many; the number of one more
# Each a word that nothing else in the world says, in scripts that travel differently.
_FAMILY, _GIVEN = "Quillfeatherbane", "Zephyrinella"
_CHINESE, _GREEK = "歐陽鑫淼", "Ξενοφωνίδης"
_NUMBER, _ACCESSION = "PID7Q9XKJ", "ACC3WZ8VB"
_BIRTH = "19370814"
_PLANTED = (_FAMILY, _GIVEN, _CHINESE, _GREEK, _NUMBER, _ACCESSION, _BIRTH, "1937-08-14")
_TEXTS = ("SeriesDescription", "StudyDescription", "ProtocolName", "ImageComments", "PatientComments", "StationName")


def _spellings() -> Iterator[bytes]:
    """Everything that is planted, in every form in which it might leak."""
    for word in _PLANTED:
        yield from {word.encode(), word.upper().encode(), word.lower().encode()}
        yield urllib.parse.quote(word).encode()
        yield word.encode("unicode_escape")
        yield word.encode("utf-16-le")
        for charset in ("gb18030", "iso8859_7"):
            try:
                yield word.encode(charset)
            except UnicodeEncodeError:
                continue


SPELLINGS = tuple(dict.fromkeys(_spellings()))


def hits(content: bytes, where: str) -> list[str]:
    """Where anything planted stands."""
    return [f"{where}: {word!r}" for word in SPELLINGS if word in content]


def _planted(number: int) -> dict[str, Any]:
    """Attributes of a study of a patient who is nobody."""
    names = (f"{_FAMILY}^{_GIVEN}", f"{_FAMILY}^{_GIVEN}={_CHINESE}", f"{_GREEK}^{_GIVEN}")
    attributes: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": names[number % 3],
        "PatientID": f"{_NUMBER}{number}",
        "PatientBirthDate": _BIRTH,
        "AccessionNumber": f"{_ACCESSION}{number}",
        "ReferringPhysicianName": f"{_GREEK}^{_FAMILY}",
        "OtherPatientNames": _CHINESE,
        "PatientAddress": _FAMILY,
    }
    return attributes | dict.fromkeys(_TEXTS, f"{_FAMILY[:8]} {_FAMILY}"[:16]) | {"StationName": _FAMILY[:16]}


def _make(folder: Path) -> list[Path]:
    """So many studies, most of them wrong in some way."""
    made = []
    for number in range(STUDIES):
        attributes = _planted(number)
        path = folder / f"{number:02}"
        match number % 10:
            case 1:
                attributes["SpecificCharacterSet"] = "ISO_IR 999"
            case 2:
                attributes["Modality"] = "OT"
            case 3:
                attributes["ImageOrientationPatient"] = [0.6, 0.6, 0.0, 0.0, 0.0, 1.0]
            case 4:
                attributes["RescaleSlope"] = "0"
            case 5:
                attributes["StudyDate"] = _FAMILY[:8]
            case 6:
                attributes["PixelSpacing"] = ["0", "0"]
            case 7:
                attributes["SOPClassUID"] = "1.2.840.10008.5.1.4.1.1.104.1"  # a document that is none
        bright_study(path, seed=number, **attributes)
        made.append(path)
    return made


def _spoil(folder: Path) -> None:
    """One more study, of which some files are no DICOM any more, or lack their heads."""
    bright_study(folder, seed=_SPOILT, **_planted(_SPOILT))
    files = sorted(folder.iterdir())
    for number, path in enumerate(files[:6]):
        content = path.read_bytes()
        if number % 3 == 0:
            path.write_bytes(content[: len(content) // 3])
        elif number % 3 == 1:
            path.write_bytes(content.replace(b"\x10\x00\x10\x00PN", b"\x10\x00\x10\x00XX"))
        else:
            path.write_bytes(content[:400] + os.urandom(64) + content[464:])


def _ask(service: Service, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> bytes:
    """Status line, headers and body of an answer, whatever it is."""
    url = f"http://127.0.0.1:{service.http_port}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=30) as reply:
            content: bytes = reply.read()
            return f"{reply.status} {reply.headers}".encode() + content
    except urllib.error.HTTPError as exc:
        return f"{exc.code} {exc.headers}".encode() + exc.read()


def test_what_is_planted_is_found_nowhere_else(service: Service, orthanc: Orthanc, tmp_path: Path) -> None:
    (write_model(service.models, "broken") / "1" / "model.onnx").write_bytes(b"no network")
    service.add_destination("ORTHANC", orthanc.port)
    service.add_destination("AWAY", free_port(), name="away")
    service.add_destination("WRONG", orthanc.port, name="wrong")
    service.environment["TMPDIR"] = str(tmp_path / "tmp")
    (tmp_path / "tmp").mkdir()
    service.start()
    studies = _make(tmp_path / "studies")
    _spoil(tmp_path / "spoilt")
    for path in studies:
        push(path, service, "--no-halt")
    _send_spoilt(tmp_path / "spoilt", service)
    _conflict(studies[0], tmp_path / "conflict", service)
    uids = [study_uid_of(path) for path in studies]
    wait(
        lambda: sum(row["state"] not in ("receiving", "analysing") for row in _rows(service)) >= STUDIES,
        "all studies to be answered",
        seconds=420,
    )
    found = _say_everything(service, uids)
    service.kill()  # with work under way
    service.start()
    found += _say_everything(service, uids[:3])
    assert service.stop() == 0
    found += _left_behind(tmp_path, service) + _trail(service, [*range(STUDIES), _SPOILT])
    assert not found, f"{len(found)} places, the first: {found[:20]}"
    assert any(hits(path.read_bytes(), "") for path in (tmp_path / "var" / "spool").rglob("*.dcm")), "it looks rightly"


def _rows(service: Service) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = service.get("/api/v1/studies?limit=1000")
    return rows


def _send_spoilt(folder: Path, service: Service) -> None:
    """By STOW-RS, for no DICOM client sends what it can't read."""
    for path in sorted(folder.iterdir()):
        body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n--x--\r\n"
        kind = 'multipart/related; type="application/dicom"; boundary=x'
        _ask(service, "/dicom-web/studies", method="POST", body=body, **{"Content-Type": kind})


def _conflict(study: Path, folder: Path, service: Service) -> None:
    """The same UIDs with other bytes."""
    shutil.copytree(study, folder)
    for path in folder.iterdir():
        header = dcmread(path)
        header.PatientName = f"{_GIVEN}^{_FAMILY}"
        header.save_as(path)
    push(folder, service)


def _say_everything(service: Service, uids: list[str]) -> list[str]:
    """Ask for all that there is, and for what there is not, with what is planted in every place of a request."""
    found: list[str] = []
    word = urllib.parse.quote(_FAMILY)
    paths = ["/", "/models", "/destinations", "/metrics", "/health/ready", "/openapi.json", "/api/v1/models"]
    paths += ["/api/v1/studies?limit=1000", "/api/v1/destinations", "/api/v1/deliveries?limit=1000", "/api/v1/sources"]
    for uid in uids:
        paths += [
            f"/api/v1/studies/{uid}",
            f"/api/v1/studies/{uid}/timeline",
            f"/studies/{uid}",
            f"/studies/{uid}?lang=zh",
        ]
    odd = [f"/{word}", f"/api/v1/studies/{word}", f"/api/v1/studies/{uids[0]}/files/{word}.dcm", f"/studies/{word}"]
    # Not `source` nor `destination`: an AE title given as a filter stands in the Link header to the next page again.
    odd += [f"/api/v1/studies?{key}={word}" for key in ("state", "limit", "model", "order", "since", word)]
    odd += [f"/signin?next={word}", f"/dicom-web/{word}"]
    for path in (*paths, *odd):
        found += hits(_ask(service, path), path.replace(word, "WORD"))
    for path in ("/api/v1/deliveries/retry", f"/api/v1/studies/{uids[0]}/priority", f"/dicom-web/studies/{word}"):
        for body in (f'{{"{_FAMILY}": "{_GIVEN}"}}', _FAMILY, f'{{"numbers": ["{_FAMILY}"]}}'):
            answer = _ask(service, path, method="POST", body=body.encode(), **{"Content-Type": "application/json"})
            found += hits(answer, f"POST {path.replace(word, 'WORD')}")
    found += hits(_ask(service, "/api/v1/models", Authorization=f"Bearer {_FAMILY}", Cookie=f"a={_FAMILY}"), "a token")
    found += hits(_ask(service, "/api/v1/models", Host=f"{_FAMILY}.example"), "a host")
    return found


def _trail(service: Service, numbers: Iterable[int]) -> list[str]:
    """What stands in the audit trail beside the patients' numbers, which it has to name (PS3.15 section A.5.3)."""
    content = (service.folder / "var" / "audit.log").read_text()
    for number in numbers:
        named = f'ParticipantObjectID="{_NUMBER}{number}"'
        assert named in content, number
        content = content.replace(named, "")
    return hits(content.encode(), "the audit trail")


def _left_behind(folder: Path, service: Service) -> list[str]:
    """What stands in files, and in their names."""
    found = []
    for root in (service.folder / "var", folder / "tmp"):
        for path in root.rglob("*"):
            found += hits(str(path.relative_to(folder)).encode(), "the name of a file")
            is_dicom = "spool" in path.parts or path.suffix in (".dcm", ".png")
            if path.is_file() and not is_dicom and not path.name.startswith("audit"):
                found += hits(path.read_bytes(), str(path.relative_to(folder)))
    return found + hits((service.folder / "service.log").read_bytes(), "the log")
