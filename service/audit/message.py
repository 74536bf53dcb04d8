"""One audit message: which event, who took part, which study (PS3.15 section A.5), and the syslog line that carries it.

Pure. Whatever comes from outside (AE titles, names of users, words) is bounded, holds no control characters and is
escaped, so that no text can end a line or pretend to be markup.
"""

from __future__ import annotations

import base64
import ipaddress
import itertools
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from service import codes
from service.codes import Code

UNKNOWN: Final = "unknown"  # where the table wants a value and nobody told it
_NAME_CHARACTERS, _WORDS_CHARACTERS = 256, 1000
_SOP_CLASSES: Final = 100  # more than these are told as one number: a message stays below the 32,768 octets of A.6
_FACILITY: Final = 10  # security and authorization (A.6)
_NOTICE, _WARNING = 5, 4  # severities


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The process that writes the message."""

    name: str  # of the process, as `[process] name` gives it: AuditSourceID
    ae_title: str  # ours; may be empty
    host: str  # of this machine
    process_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """Who took part (ActiveParticipant)."""

    user_id: str
    is_requestor: bool = False
    role: Code | None = None  # CID 402
    ae_title: str = ""  # where it is a DICOM application
    name: str = ""
    address: str = ""
    media: Code | None = None  # CID 405


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """What it was about (ParticipantObjectIdentification)."""

    identifier: str
    identifier_type: Code
    kind: str  # ParticipantObjectTypeCode: "1" person, "2" system object
    role: str  # ParticipantObjectTypeCodeRole: "1" patient, "3" report, "13" security resource
    name: str = ""
    details: tuple[tuple[str, str], ...] = ()
    instances: Mapping[str, int] | None = None  # how many, by SOP Class UID


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An event, before it is written down."""

    event: Code  # CID 400
    action: str  # EventActionCode: C, R, U, D or E
    types: tuple[Code, ...] = ()  # CID 401, 403
    succeeded: bool = True
    words: str = ""  # EventOutcomeDescription
    participants: tuple[Participant, ...]
    things: tuple[Thing, ...] = ()


def line(message: Message, origin: Origin, at: datetime) -> bytes:
    """The message as one SYSLOG-MSG (RFC 5424 section 6), without an end of line.

    Parameters
    ----------
    at
        When it happened, with its offset from UTC.
    """
    severity = _WARNING if message.event == codes.AUDIT_SECURITY_ALERT or not message.succeeded else _NOTICE
    host = "".join(c for c in origin.host if "!" <= c <= "~")[:255] or "-"
    head = f"<{_FACILITY * 8 + severity}>1 {at.isoformat(timespec='microseconds')} {host} overread {origin.process_id}"
    # The byte order mark says that UTF-8 follows (RFC 5424 section 6.4); "-" is: no structured data.
    return f"{head} DICOM+RFC3881 - \N{ZERO WIDTH NO-BREAK SPACE}{xml(message, origin, at)}".encode()


def xml(message: Message, origin: Origin, at: datetime) -> str:
    """The message by the schema of section A.5.1."""
    root = ET.Element("AuditMessage")
    event = ET.SubElement(
        root,
        "EventIdentification",
        EventActionCode=message.action,
        EventDateTime=at.isoformat(timespec="microseconds"),
        EventOutcomeIndicator="0"
        if message.succeeded
        else "4",  # minor failure: what was tried was refused, or is tried again
    )
    _coded(event, "EventID", message.event)
    for kind in message.types:
        _coded(event, "EventTypeCode", kind)
    if message.words:
        ET.SubElement(event, "EventOutcomeDescription").text = plain(message.words, _WORDS_CHARACTERS)
    for participant in message.participants:
        _write_participant(root, participant)
    source = ET.SubElement(root, "AuditSourceIdentification", AuditSourceID=plain(origin.name) or UNKNOWN)
    ET.SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})  # application server process (A.5.1.2.1)
    for thing in message.things:
        _write_thing(root, thing)
    return ET.tostring(root, encoding="unicode")


def plain(text: str, longest: int = _NAME_CHARACTERS) -> str:
    """Text from outside on one line, without what can't be seen, no longer than that many characters.

    What Unicode doesn't call printable (controls, line ends, marks of direction, lone surrogates) becomes a space;
    all that XML 1.0 forbids is among it.
    """
    kept = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * longest]).split())
    return kept if len(kept) <= longest else kept[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _coded(parent: ET.Element, name: str, code: Code) -> None:
    ET.SubElement(parent, name, {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning})


def _write_participant(root: ET.Element, participant: Participant) -> None:
    element = ET.SubElement(root, "ActiveParticipant", UserID=plain(participant.user_id) or UNKNOWN)
    if participant.ae_title:
        element.set("AlternativeUserID", f"AETITLES={plain(participant.ae_title)}")  # A.5.2.2
    if participant.name:
        element.set("UserName", plain(participant.name))
    element.set("UserIsRequestor", "true" if participant.is_requestor else "false")
    if participant.address:
        address = plain(participant.address)
        element.set("NetworkAccessPointID", address)
        element.set("NetworkAccessPointTypeCode", "2" if _is_ip(address) else "1")
    if participant.role:
        _coded(element, "RoleIDCode", participant.role)
    if participant.media:
        _coded(ET.SubElement(element, "MediaIdentifier"), "MediaType", participant.media)


def _write_thing(root: ET.Element, thing: Thing) -> None:
    element = ET.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=plain(thing.identifier) or UNKNOWN,
        ParticipantObjectTypeCode=thing.kind,
        ParticipantObjectTypeCodeRole=thing.role,
    )
    _coded(element, "ParticipantObjectIDTypeCode", thing.identifier_type)
    ET.SubElement(element, "ParticipantObjectName").text = plain(thing.name)  # the schema wants it, be it empty
    for kind, value in thing.details:
        encoded = base64.b64encode(plain(value, _WORDS_CHARACTERS).encode()).decode()
        ET.SubElement(element, "ParticipantObjectDetail", type=kind, value=encoded)
    if thing.instances:
        description = ET.SubElement(element, "ParticipantObjectDescription")
        counts = sorted(thing.instances.items())
        for uid, count in counts[:_SOP_CLASSES]:
            ET.SubElement(description, "SOPClass", UID=plain(uid, 64), NumberOfInstances=str(count))
        if rest := sum(count for _, count in itertools.islice(counts, _SOP_CLASSES, None)):
            ET.SubElement(description, "SOPClass", NumberOfInstances=str(rest))


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True
