"""The audit trail: security-relevant events as PS3.15 section A.5 defines them, one a line, appended to a file.

Every process of ours appends to the same file; `syslog.py` brings its lines to the site's audit record repository.
Nothing here raises into its caller: what can't be written is logged, and `problem` says so.

The trail is the one place, beside DICOM files and the database's columns for it, where a patient's number may stand:
the tables of A.5.3.3, A.5.3.4, A.5.3.6 and A.5.3.7 have it mandatory. It is what `name_patients` was given to look it
up with; where that finds none, the message says "unknown". A patient's name is optional in all of them, and is never
written.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from service import log
from service.audit import events
from service.audit.events import Alert as Alert
from service.audit.events import refusal
from service.audit.file import TrailFile
from service.audit.message import Message, Origin
from service.audit.trail import Trail
from service.errors import ConfigError

_trail: Trail | None = None
_patient_of: Callable[[str], str] | None = None


def set_up(file: Path, *, name: str, ae_title: str = "") -> None:
    """Let this process write to a file from now on; before that, nothing is written.

    Parameters
    ----------
    name
        Of this process, as ``[process] name`` gives it.
    ae_title
        Ours.

    Raises
    ------
    ConfigError
        If the file can't be written: a service whose trail goes nowhere does not start.
    """
    global _trail
    try:
        opened = TrailFile(file)
    except OSError as exc:
        raise ConfigError(
            doing=f"opening the audit trail {file}",
            found=exc.strerror or type(exc).__name__,
            rule="[audit] file is one that the service may append to",
            way_out="name another file, or let the service's user write there",
        ) from exc
    close()
    _trail = Trail(opened, Origin(name=name, ae_title=ae_title, host=socket.gethostname(), process_id=os.getpid()))


def name_patients(patient_of: Callable[[str], str]) -> None:
    """Let the messages about a study name its patient.

    Parameters
    ----------
    patient_of
        The patient's number, by Study Instance UID; empty if it is not known. It may raise: then it is not known.
    """
    global _patient_of
    _patient_of = patient_of


def close() -> None:
    """Make durable what was written, and write nothing more."""
    global _trail, _patient_of
    trail, _trail, _patient_of = _trail, None, None
    if trail:
        _safely(trail.close)


def problem() -> str:
    """Why messages are not written; empty: they are. For readiness."""
    return _trail.problem() if _trail else ""


def application(*, started: bool) -> None:
    """The application started, or stops (A.5.3.1)."""
    _write(lambda origin: events.application(origin, started=started))


def begin_transferring(*, study_uid: str, destination: str, address: str, instances: Mapping[str, int]) -> None:
    """Results of a study are about to be sent (A.5.3.3).

    Parameters
    ----------
    destination, address
        AE title and host of the receiver.
    instances
        How many, by SOP Class UID.
    """
    _write(
        lambda origin: events.begin_transferring(
            origin,
            study_uid=study_uid,
            destination=destination,
            address=address,
            instances=instances,
            patient_id=_patient(study_uid),
        )
    )


def transferred(
    *,
    incoming: bool,
    study_uid: str,
    peer: str,
    address: str,
    instances: Mapping[str, int],
    succeeded: bool = True,
    by_dicom: bool = True,
) -> None:
    """Instances of a study came in, or were sent (A.5.3.7).

    Where some succeeded and some did not, two messages tell of it (A.5.2, EventOutcomeIndicator).

    Parameters
    ----------
    peer, address
        AE title, or user, and host of the other side.
    instances
        How many, by SOP Class UID.
    by_dicom
        Whether the peer is an AE title; not so for who sends by STOW-RS.
    """
    _write(
        lambda origin: events.transferred(
            origin,
            incoming=incoming,
            study_uid=study_uid,
            peer=peer,
            peer_ae_title=peer if by_dicom else "",
            address=address,
            instances=instances,
            succeeded=succeeded,
            patient_id=_patient(study_uid),
        )
    )


def accessed(*, study_uid: str, user: str, address: str, action: str = "R") -> None:
    """Somebody saw results of a study, or decided about it (A.5.3.6).

    Reading the same study again within a minute is not told again.

    Parameters
    ----------
    user
        Who it is, as the token or the sign-in says.
    address
        Of his machine.
    action
        EventActionCode (PS3.15 Table A.5.3.6-1): C, R, U or D.
    """
    if action == "R" and _trail and not _trail.is_first_read(study_uid, user, address):
        return
    _write(
        lambda origin: events.accessed(
            origin, study_uid=study_uid, user=user, address=address, action=action, patient_id=_patient(study_uid)
        )
    )


def exported(*, study_uid: str, user: str, address: str, what: str) -> None:
    """Objects of a study left through the HTTP side as files (A.5.3.4, Data Export)."""
    _write(
        lambda origin: events.exported(
            origin, study_uid=study_uid, user=user, address=address, what=what, patient_id=_patient(study_uid)
        )
    )


def network_entry(*, attached: bool, ae_title: str, address: str) -> None:
    """A receiving port was opened, or is closed (A.5.3.9)."""
    _write(lambda origin: events.network_entry(origin, attached=attached, ae_title=ae_title, address=address))


def authenticated(*, user: str, address: str, login: bool, succeeded: bool, words: str = "") -> None:
    """Somebody signed in or out, or tried to (A.5.3.12).

    Of one address, more than twenty failures a minute are counted, and told in one message.

    Parameters
    ----------
    words
        Why it failed; no secret, no patient data.
    """
    if login and not succeeded:
        alert(Alert.USER_AUTHENTICATION, words=words, user=user, address=address)
        return
    _write(
        lambda origin: events.authenticated(
            origin, user=user, address=address, login=login, succeeded=succeeded, words=words
        )
    )


def alert(kind: Alert, *, words: str, user: str = "", address: str = "", succeeded: bool = False) -> None:
    """Something that must not be was tried (A.5.3.11, Security Alert).

    Of one kind and address, more than twenty a minute are counted, and told in one message.

    Parameters
    ----------
    words
        What was tried, and by which rule it was refused; no patient data.
    succeeded
        True where nothing was refused, and it is told for the record alone.
    """
    trail = _trail
    if not trail:
        return
    if succeeded:
        _write(lambda origin: refusal(origin, kind, words=words, user=user, address=address, succeeded=True))
    else:
        _safely(lambda: trail.refuse(kind, words=words, user=user, address=address))


def _patient(study_uid: str) -> str:
    try:
        return _patient_of(study_uid) if _patient_of else ""
    except Exception as exc:  # the database is away: the message is worth more than the number
        log.failure("audit.patient_unknown", exc, study_uid=study_uid)
        return ""


def _write(make: Callable[[Origin], Message]) -> None:
    trail = _trail
    if trail:
        _safely(lambda: trail.write(make))


def _safely(act: Callable[[], None]) -> None:
    try:
        act()
    except Exception as exc:  # our own bug: it must not stop a study
        log.failure("audit.not_made", exc)
