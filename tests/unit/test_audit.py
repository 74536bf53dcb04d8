"""Audit messages are valid by PS3.15's schema and tables, whatever text they carry; their file holds whole lines."""

from __future__ import annotations

import base64
import errno
import inspect
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydicom.sr.codedict import codes as known

from service import audit, codes
from service.audit import Alert, events, message
from service.audit.file import TrailFile
from service.audit.message import Origin, line
from service.audit.repeats import Repeats
from service.codes import Code
from service.config import Config
from service.errors import ConfigError
from service.settings.doors import Audit
from service.settings.store import Process, StoreSection
from tests.audit_lines import Line, taken_apart

ORIGIN = Origin(name="worker-1", ae_title="OVERREAD", host="ai.hospital", process_id=4711)
AT = datetime(2026, 3, 1, 8, 30, 0, 250, tzinfo=timezone(timedelta(hours=2)))
CT, SEG = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4"


def _read(written: message.Message) -> Line:
    return taken_apart(line(written, ORIGIN, AT))


def _participants(read: Line) -> list[dict[str, str]]:
    return [
        dict(element.attrib) | {"role": ",".join(child.get("csd-code") for child in element.findall("RoleIDCode"))}
        for element in read.message.findall("ActiveParticipant")
    ]


def _things(read: Line) -> list[dict[str, Any]]:
    return [
        dict(element.attrib) | {"code": element.find("ParticipantObjectIDTypeCode").get("csd-code")}
        for element in read.message.findall("ParticipantObjectIdentification")
    ]


US = {
    "UserID": "4711",
    "AlternativeUserID": "AETITLES=OVERREAD",
    "UserName": "Overread worker-1",
    "NetworkAccessPointID": "ai.hospital",
    "NetworkAccessPointTypeCode": "1",
}
STUDY = {
    "ParticipantObjectID": "1.2.3",
    "ParticipantObjectTypeCode": "2",
    "ParticipantObjectTypeCodeRole": "3",
    "code": "110180",
}
PATIENT = {
    "ParticipantObjectID": "4567",
    "ParticipantObjectTypeCode": "1",
    "ParticipantObjectTypeCodeRole": "1",
    "code": "2",
}


@pytest.mark.parametrize(("started", "kind"), [(True, "110120"), (False, "110121")])
def test_application_activity(started: bool, kind: str) -> None:
    read = _read(events.application(ORIGIN, started=started))
    assert (read.event(), read.codes("EventIdentification/EventTypeCode")) == ("110100", [kind])
    assert read.message.find("EventIdentification").get("EventActionCode") == "E"
    assert _participants(read) == [US | {"UserIsRequestor": "false", "role": "110150"}]
    assert _things(read) == []


def test_begin_transferring_names_both_sides_the_study_its_classes_and_the_patient() -> None:
    read = _read(
        events.begin_transferring(
            ORIGIN,
            study_uid="1.2.3",
            destination="PACS",
            address="10.0.0.7",
            instances={SEG: 2, CT: 1},
            patient_id="4567",
        )
    )
    assert read.event() == "110102"
    assert _participants(read) == [
        US | {"UserIsRequestor": "true", "role": "110153"},
        {
            "UserID": "PACS",
            "AlternativeUserID": "AETITLES=PACS",
            "UserIsRequestor": "false",
            "NetworkAccessPointID": "10.0.0.7",
            "NetworkAccessPointTypeCode": "2",
            "role": "110152",
        },
    ]
    assert _things(read) == [STUDY, PATIENT]
    classes = read.message.findall("ParticipantObjectIdentification/ParticipantObjectDescription/SOPClass")
    assert [dict(element.attrib) for element in classes] == [
        {"UID": CT, "NumberOfInstances": "1"},
        {"UID": SEG, "NumberOfInstances": "2"},
    ]


@pytest.mark.parametrize(
    ("incoming", "action", "roles"), [(True, "C", ["110153", "110152"]), (False, "R", ["110152", "110153"])]
)
def test_transferred_tells_who_sent_and_who_received(incoming: bool, action: str, roles: list[str]) -> None:
    read = _read(
        events.transferred(
            ORIGIN,
            incoming=incoming,
            study_uid="1.2.3",
            peer="CT1",
            peer_ae_title="CT1",
            address="ct1.hospital",
            instances={CT: 250},
            succeeded=False,
            patient_id="",
        )
    )
    event = read.message.find("EventIdentification")
    assert (read.event(), event.get("EventActionCode"), event.get("EventOutcomeIndicator")) == ("110104", action, "4")
    peer, us = _participants(read)
    assert [peer["role"], us["role"]] == roles
    assert (peer["UserIsRequestor"], us["UserIsRequestor"]) == (str(incoming).lower(), str(not incoming).lower())
    assert _things(read) == [STUDY, PATIENT | {"ParticipantObjectID": "unknown"}]


@pytest.mark.parametrize("action", ["C", "R", "U", "D"])
def test_accessed_names_the_person_and_the_process(action: str) -> None:
    read = _read(
        events.accessed(ORIGIN, study_uid="1.2.3", user="li", address="10.0.0.9", action=action, patient_id="4567")
    )
    assert read.event() == "110103"
    assert read.message.find("EventIdentification").get("EventActionCode") == action
    person, us = _participants(read)
    assert (person["UserID"], person["UserIsRequestor"], us["UserIsRequestor"]) == ("li", "true", "false")
    assert _things(read) == [STUDY, PATIENT]


def test_accessed_knows_no_other_action() -> None:
    with pytest.raises(ValueError, match="EventActionCode"):
        events.accessed(ORIGIN, study_uid="1.2.3", user="li", address="", action="E", patient_id="")


def test_export_goes_to_the_medium_at_the_persons_machine() -> None:
    read = _read(
        events.exported(ORIGIN, study_uid="1.2.3", user="li", address="10.0.0.9", what="SR 1.2.9", patient_id="4567")
    )
    assert (read.event(), read.message.find("EventIdentification").get("EventActionCode")) == ("110106", "R")
    assert [(p["role"], p["UserIsRequestor"]) for p in _participants(read)] == [
        ("110152", "true"),
        ("110153", "false"),
        ("110154", "false"),
    ]
    assert read.codes("ActiveParticipant/MediaIdentifier/MediaType") == ["110037"]
    assert _participants(read)[2]["NetworkAccessPointID"] == "10.0.0.9"
    assert _things(read) == [STUDY, PATIENT]
    assert read.message.find("ParticipantObjectIdentification/ParticipantObjectName").text == "SR 1.2.9"


@pytest.mark.parametrize(("attached", "kind"), [(True, "110124"), (False, "110125")])
def test_network_entry(attached: bool, kind: str) -> None:
    read = _read(events.network_entry(ORIGIN, attached=attached, ae_title="OVERREAD", address="10.0.0.2"))
    assert (read.event(), read.codes("EventIdentification/EventTypeCode")) == ("110108", [kind])
    (node,) = _participants(read)
    assert (node["UserID"], node["AlternativeUserID"]) == ("ai.hospital", "AETITLES=OVERREAD")
    assert (node["UserIsRequestor"], node["NetworkAccessPointID"]) == ("false", "10.0.0.2")


@pytest.mark.parametrize(("login", "kind"), [(True, "110122"), (False, "110123")])
def test_user_authentication(login: bool, kind: str) -> None:
    read = _read(events.authenticated(ORIGIN, user="li", address="", login=login, succeeded=True))
    assert (read.event(), read.codes("EventIdentification/EventTypeCode")) == ("110114", [kind])
    person, _ = _participants(read)
    # NetworkAccessPointID and its type are mandatory here.
    assert (person["NetworkAccessPointID"], person["NetworkAccessPointTypeCode"]) == ("unknown", "1")
    assert (read.priority, _things(read)) == (85, [])


@pytest.mark.parametrize(
    ("kind", "event", "code"),
    [
        (Alert.NODE_AUTHENTICATION, "110113", "110126"),
        (Alert.USER_AUTHENTICATION, "110114", "110122"),
        (Alert.USER_RIGHTS, "110113", "110144"),
        (Alert.RESTRICTED_FUNCTION, "110113", "110132"),
    ],
)
def test_a_refusal_is_a_warning_of_its_kind(kind: Alert, event: str, code: str) -> None:
    read = _read(events.refusal(ORIGIN, kind, words="AE title not in the list", user="EVIL", address="10.6.6.6"))
    assert (read.event(), read.codes("EventIdentification/EventTypeCode")) == (event, [code])
    told = read.message.find("EventIdentification")
    assert (told.get("EventOutcomeIndicator"), read.priority) == ("4", 84)
    assert told.find("EventOutcomeDescription").text == "AE title not in the list"
    (theirs,) = [p for p in _participants(read) if p["UserID"] == "EVIL"]
    assert theirs["NetworkAccessPointID"] == "10.6.6.6"
    if event == "110113":
        assert theirs["UserIsRequestor"] == "false"
        (subject,) = _things(read)
        assert (subject["code"], subject["ParticipantObjectID"]) == ("110182", "10.6.6.6")
        detail = read.message.find("ParticipantObjectIdentification/ParticipantObjectDetail")
        assert detail.get("type") == "Alert Description"
        assert base64.b64decode(detail.get("value")) == b"AE title not in the list"


def test_every_kind_of_alert_has_its_code() -> None:
    for kind in Alert:
        _read(events.refusal(ORIGIN, kind, words="", user="", address=""))


def test_the_head_is_that_of_rfc_5424_and_the_time_has_its_offset() -> None:
    read = _read(events.application(ORIGIN, started=True))
    assert (read.priority, read.host, read.app, read.process, read.kind) == (
        85, "ai.hospital", "overread", "4711", "DICOM+RFC3881",
    )  # fmt: skip
    at = read.message.find("EventIdentification").get("EventDateTime")
    assert read.time == at == "2026-03-01T08:30:00.000250+02:00"
    assert read.message.find("AuditSourceIdentification").get("AuditSourceID") == "worker-1"


def _audit_codes() -> dict[str, Code]:
    source = inspect.getsource(codes)
    section = source[source.index("# --- The audit trail") : source.index("# --- UIDs")]
    return {name: code for name, code in vars(codes).items() if isinstance(code, Code) and f"\n{name}:" in section}


@pytest.mark.parametrize(("name", "code"), sorted(_audit_codes().items()))
def test_the_codes_are_those_of_pydicoms_dictionary(name: str, code: Code) -> None:
    if code.scheme == "RFC-3881":  # a value of the schema itself, PS3.15 section A.5.1.2.4
        assert code == ("2", "RFC-3881", "Patient Number")
        return
    found = {c.value: c for cid in (400, 401, 402, 403, 404, 405) for c in _concepts(cid)}
    assert (found[code.value].scheme_designator, found[code.value].meaning) == (code.scheme, code.meaning)


def _concepts(cid: int) -> list[Any]:
    collection = getattr(known, f"cid{cid}")
    return [getattr(collection, name) for name in collection.dir()]


def test_alert_types_are_of_the_value_set_that_the_table_names() -> None:
    allowed = {c.value for c in _concepts(403)}
    for code in (codes.NODE_AUTHENTICATION, codes.AUTHORIZATION, codes.RESTRICTED_FUNCTION, codes.AUDIT_STOPPED):
        assert code.value in allowed


HOSTILE = {
    "newlines": "a\nb\r\nc\x85d\u2028e\x0bf",
    "markup": '</AuditMessage><AuditMessage x="&amp;\'"><![CDATA[',
    "a line of its own": "x\n<85>1 2026-01-01T00:00:00Z h overread 1 DICOM+RFC3881 - y",
    "long": "x" * 10_000,
    "long and wide": "\N{EARTH GLOBE EUROPE-AFRICA}" * 10_000,
    "surrogates": "a\ud800b\udfffc",
    "controls": "".join(map(chr, range(32))) + "\x7f\x80\ufffe\uffff",
    "marks of direction": "\u202egnp.exe\u2066",
    "nothing": "",
    "spaces": " \t ",
    "names": "Ерёма 王小明 أحمد O'Neill",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_text_from_outside_breaks_a_line_or_the_schema(text: str) -> None:
    written = [
        events.begin_transferring(
            ORIGIN, study_uid=text, destination=text, address=text, instances={text: 1}, patient_id=text
        ),
        events.transferred(
            ORIGIN, incoming=True, study_uid=text, peer=text, peer_ae_title=text, address=text, instances={text: 1},
            succeeded=True, patient_id=text,
        ),
        events.accessed(ORIGIN, study_uid=text, user=text, address=text, action="R", patient_id=text),
        events.exported(ORIGIN, study_uid=text, user=text, address=text, what=text, patient_id=text),
        events.network_entry(ORIGIN, attached=True, ae_title=text, address=text),
        events.authenticated(ORIGIN, user=text, address=text, login=True, succeeded=False, words=text),
        *(events.refusal(ORIGIN, kind, words=text, user=text, address=text) for kind in Alert),
    ]  # fmt: skip
    for each in written:
        origin = Origin(name=text, ae_title=text, host=text, process_id=1)
        made = line(each, origin, AT)
        assert b"\n" not in made
        assert not any(byte < 0x20 for byte in made)
        assert len(made) < 32_768  # what every receiver takes (A.6)
        read = taken_apart(made)
        assert len(read.message.findall(".//AuditMessage")) == 0


def test_names_stay_readable() -> None:
    read = _read(
        events.accessed(ORIGIN, study_uid="1.2.3", user=HOSTILE["names"], address="", action="R", patient_id="")
    )
    assert _participants(read)[0]["UserID"] == HOSTILE["names"]


def test_a_thousand_sop_classes_are_told_as_one_number() -> None:
    instances = {f"1.2.{number:04}": 2 for number in range(1000)}
    made = line(
        events.begin_transferring(
            ORIGIN, study_uid="1.2.3", destination="PACS", address="", instances=instances, patient_id=""
        ),
        ORIGIN,
        AT,
    )
    assert len(made) < 32_768
    counts = taken_apart(made).message.findall(".//SOPClass")
    assert sum(int(element.get("NumberOfInstances")) for element in counts) == 2000


# --- The file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[Path]:
    """A file that this process's messages go to."""
    path = tmp_path / "audit" / "audit.log"
    audit.set_up(path, name="worker-1", ae_title="OVERREAD")
    yield path
    audit.close()


def _lines(path: Path) -> list[Line]:
    data = path.read_bytes()
    assert data.endswith(b"\n") or not data
    # Two processes that open a file at once may both end the line of which one has written half.
    return [taken_apart(each) for each in data.splitlines() if each]


def test_before_set_up_nothing_is_written_and_nothing_fails() -> None:
    audit.application(started=True)
    audit.alert(Alert.USER_RIGHTS, words="no")
    assert audit.problem() == ""


def test_every_function_writes_one_line(trail: Path) -> None:
    audit.application(started=True)
    audit.network_entry(attached=True, ae_title="OVERREAD", address="127.0.0.1")
    audit.begin_transferring(study_uid="1.2.3", destination="PACS", address="10.0.0.7", instances={SEG: 1})
    audit.transferred(incoming=False, study_uid="1.2.3", peer="PACS", address="10.0.0.7", instances={SEG: 1})
    audit.accessed(study_uid="1.2.3", user="li", address="10.0.0.9")
    audit.exported(study_uid="1.2.3", user="li", address="10.0.0.9", what="SR 1.2.9")
    audit.authenticated(user="li", address="10.0.0.9", login=True, succeeded=True)
    audit.alert(Alert.USER_RIGHTS, words="a viewer may not cancel", user="li", address="10.0.0.9")
    audit.alert(Alert.USER_AUTHENTICATION, words="unknown token", address="10.0.0.9")
    audit.application(started=False)
    assert [each.event() for each in _lines(trail)] == [
        "110100", "110108", "110102", "110104", "110103", "110106", "110114", "110113", "110114", "110100",
    ]  # fmt: skip
    assert {each.process for each in _lines(trail)} == {str(os.getpid())}
    assert trail.stat().st_mode & 0o777 == 0o640


def _patients(read: Line) -> list[str]:
    return [thing["ParticipantObjectID"] for thing in _things(read) if thing["ParticipantObjectTypeCode"] == "1"]


def test_what_is_about_a_study_names_its_patient(trail: Path) -> None:
    audit.name_patients(lambda study_uid: "4567" if study_uid == "1.2.3" else "")
    audit.begin_transferring(study_uid="1.2.3", destination="PACS", address="10.0.0.7", instances={SEG: 1})
    audit.transferred(incoming=False, study_uid="1.2.3", peer="PACS", address="10.0.0.7", instances={SEG: 1})
    audit.accessed(study_uid="1.2.3", user="li", address="10.0.0.9")
    audit.exported(study_uid="1.2.3", user="li", address="10.0.0.9", what="SR 1.2.9")
    audit.accessed(study_uid="1.2.4", user="li", address="10.0.0.9")
    assert [_patients(each) for each in _lines(trail)] == [["4567"]] * 4 + [["unknown"]]


def test_a_patient_who_can_not_be_looked_up_costs_no_message(trail: Path) -> None:
    def away(study_uid: str) -> str:
        raise OSError("the database is away")

    audit.name_patients(away)
    audit.accessed(study_uid="1.2.3", user="li", address="10.0.0.9")
    (read,) = _lines(trail)
    assert _patients(read) == ["unknown"]


def test_who_sends_by_http_has_no_ae_title(trail: Path) -> None:
    audit.transferred(incoming=True, study_uid="1.2", peer="li", address="", instances={CT: 1}, by_dicom=False)
    (read,) = _lines(trail)
    assert "AlternativeUserID" not in _participants(read)[0]


def test_reading_a_study_again_is_told_once_and_deciding_each_time(trail: Path) -> None:
    for _ in range(3):
        audit.accessed(study_uid="1.2.3", user="li", address="10.0.0.9")
        audit.accessed(study_uid="1.2.3", user="li", address="10.0.0.9", action="U")
    audit.accessed(study_uid="1.2.3", user="wang", address="10.0.0.9")
    actions = [each.message.find("EventIdentification").get("EventActionCode") for each in _lines(trail)]
    assert sorted(actions) == ["R", "R", "U", "U", "U"]


def test_a_scan_is_told_twenty_times_and_counted(trail: Path) -> None:
    for _ in range(500):
        audit.alert(Alert.NODE_AUTHENTICATION, words="AE title not in the list", user="X", address="10.6.6.6")
    audit.alert(Alert.NODE_AUTHENTICATION, words="AE title not in the list", user="X", address="10.6.6.7")
    assert len(_lines(trail)) == 21
    audit.close()
    last = _lines(trail)[-1].message
    assert last.find("EventIdentification/EventOutcomeDescription").text.startswith("480 more")
    assert last.find("ParticipantObjectIdentification").get("ParticipantObjectID") == "10.6.6.6"


def test_what_was_counted_is_told_also_when_nothing_more_happens(trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.audit.trail._WINDOW_SECONDS", 0.2)
    audit.close()
    audit.set_up(trail, name="worker-1")
    for _ in range(30):
        audit.authenticated(user="", address="10.6.6.6", login=True, succeeded=False, words="unknown token")
    _until(lambda: len(_lines(trail)) == 21)
    assert "10 more" in _lines(trail)[-1].text


def test_windows_end_and_many_keys_are_counted_together() -> None:
    now = [0.0]
    repeats = Repeats(allowed=1, seconds=10, clock=lambda: now[0])
    assert [repeats.allow(("a", "x")), repeats.allow(("a", "x")), repeats.allow(("a", "y"))] == [True, False, True]
    assert repeats.take() == {}
    assert repeats.holds_back()
    now[0] = 10.0
    assert repeats.take() == {("a", "x"): 1}
    assert not repeats.holds_back()
    assert repeats.allow(("a", "x"))
    for number in range(2000):
        repeats.allow(("a", str(number)))
    assert sum(repeats.take(everything=True).values()) == 1000


@pytest.mark.parametrize("creates", [False, True])
def test_a_file_that_was_moved_away_is_left(trail: Path, creates: bool) -> None:
    audit.application(started=True)
    trail.rename(trail.with_suffix(".log.1"))
    if creates:  # as logrotate does by itself
        trail.touch()
    audit.application(started=False)
    assert [len(_lines(path)) for path in (trail.with_suffix(".log.1"), trail)] == [1, 1]


def test_a_line_that_ended_in_the_middle_does_not_take_the_next_one_with_it(trail: Path) -> None:
    audit.application(started=True)
    audit.close()
    with trail.open("ab") as file:
        file.write(b"<85>1 2026-03-01T08:3")
    audit.set_up(trail, name="worker-1")
    audit.application(started=False)
    first, torn, last = trail.read_bytes().splitlines()
    assert torn == b"<85>1 2026-03-01T08:3"
    assert [taken_apart(each).event() for each in (first, last)] == ["110100", "110100"]


def test_a_full_disk_is_no_error_of_the_caller_and_lines_come_when_there_is_room(
    trail: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) > 100 and os.readlink(f"/proc/self/fd/{handle}") == str(trail):
            return real(handle, data[:100])  # as far as the last block goes
        return real(handle, data)

    audit.application(started=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(50):
            audit.application(started=True)
        assert "No space left on device: 50 audit messages wait" in audit.problem()
    assert caplog.messages == ["audit.not_written"]  # once a minute
    audit.application(started=False)
    assert audit.problem() == ""
    whole = [each for each in trail.read_bytes().splitlines() if each.endswith(b"</AuditMessage>")]
    assert len([taken_apart(each) for each in whole]) == 52


def test_lines_that_waited_are_written_without_a_further_one(trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.audit.file._SYNC_SECONDS", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", _no_space)
        audit.application(started=True)
        time.sleep(1)  # tried again, and in vain
        assert audit.problem()
    _until(lambda: not audit.problem())
    assert len(_lines(trail)) == 1


def _no_space(handle: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_was_lost_is_told_by_its_number(trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.audit.file._WAITING_LINES", 10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", _no_space)
        for _ in range(15):
            audit.application(started=True)
        assert "5 are lost" in audit.problem()
    audit.application(started=False)
    audit.application(started=False)
    (told,) = [each for each in _lines(trail) if each.event() == "110113"]
    assert told.codes("EventIdentification/EventTypeCode") == ["110133"]
    assert "5 audit messages are lost" in told.text


def test_a_line_is_fsynced_within_seconds_and_many_together(trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = list[int]()
    real = os.fsync

    def counted(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}") == str(trail):
            synced.append(trail.stat().st_size)
        real(handle)

    monkeypatch.setattr(os, "fsync", counted)
    for _ in range(200):
        audit.network_entry(attached=True, ae_title="OVERREAD", address="")
    _until(lambda: bool(synced) and synced[-1] == trail.stat().st_size)
    assert len(synced) <= 3


def test_our_own_fault_is_logged_and_stops_nobody(trail: Path, caplog: pytest.LogCaptureFixture) -> None:
    audit.accessed(study_uid="1.2.3", user="li", address="", action="?")
    assert caplog.messages == ["audit.not_made"]
    assert trail.read_bytes() == b""


def test_a_file_that_can_not_be_written_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "audit.log").mkdir()
    with pytest.raises(ConfigError, match=r"\[audit\] file"):
        audit.set_up(tmp_path / "audit.log", name="worker-1")


def test_each_machines_process_has_a_file_of_its_own(tmp_path: Path) -> None:
    process, store = Process(name="worker-2"), StoreSection(directory=tmp_path)
    assert Config(store=store, process=process).audit_file == tmp_path / "audit.log"
    shared = StoreSection(directory=tmp_path, database="postgresql+psycopg://db/overread")
    assert Config(store=shared, process=process).audit_file == tmp_path / "audit-worker-2.log"
    named = Audit(file=Path("/var/log/overread.log"))
    assert Config(store=shared, process=process, audit=named).audit_file == Path("/var/log/overread.log")


def _write_many(path: Path, count: int) -> None:
    audit.set_up(path, name="worker-1")
    threads = [threading.Thread(target=_write_some, args=(count,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    audit.close()


def _write_some(count: int) -> None:
    for _ in range(count):
        audit.transferred(incoming=True, study_uid="1.2.3", peer="CT1", address="10.0.0.7", instances={CT: 1})


def test_lines_of_several_processes_and_threads_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(path, 100)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for number in range(3):  # logrotate in between
        time.sleep(0.5)
        if path.exists():
            path.rename(tmp_path / f"audit.log.{number}")
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert sum(len(_lines(file)) for file in tmp_path.glob("audit.log*")) == 1200


def test_the_file_knows_what_it_was_not_given(tmp_path: Path) -> None:
    file = TrailFile(tmp_path / "audit.log")
    assert (file.problem(), file.take_given_up()) == ("", 0)
    file.close()
    assert (tmp_path / "audit.log").read_bytes() == b""


def _until(holds: Callable[[], bool]) -> None:
    """Wait; a limit that only a fault reaches."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
