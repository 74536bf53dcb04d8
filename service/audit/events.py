"""The events of PS3.15 section A.5.3 that Overread knows, each as its table there wants it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from service import codes
from service.audit.message import UNKNOWN, Message, Origin, Participant, Thing
from service.codes import PRODUCT, Code


class Alert(StrEnum):
    """What a security alert is about."""

    NODE_AUTHENTICATION = (
        "node authentication"  # a peer that may not, or can't prove who it is; its user is an AE title
    )
    USER_AUTHENTICATION = "user authentication"  # no token, or a wrong one: told as a login that failed (A.5.3.12)
    USER_RIGHTS = "user rights"  # somebody known, without the right to do that
    RESTRICTED_FUNCTION = "restricted function"  # a request that nobody may make: too large, too many, malformed


# By CID 403. The table of A.5.3.11 has no type for a sign-in that failed: that is an event of its own, A.5.3.12.
_KINDS: Final = {
    Alert.NODE_AUTHENTICATION: codes.NODE_AUTHENTICATION,
    Alert.USER_RIGHTS: codes.AUTHORIZATION,
    Alert.RESTRICTED_FUNCTION: codes.RESTRICTED_FUNCTION,
}


def application(origin: Origin, *, started: bool) -> Message:
    """Application Activity (A.5.3.1)."""
    return Message(
        event=codes.AUDIT_APPLICATION,
        action="E",
        types=(codes.APPLICATION_START if started else codes.APPLICATION_STOP,),
        participants=(_us(origin, role=codes.ROLE_APPLICATION),),
    )


def begin_transferring(
    origin: Origin, *, study_uid: str, destination: str, address: str, instances: Mapping[str, int], patient_id: str
) -> Message:
    """Begin Transferring DICOM Instances (A.5.3.3)."""
    return Message(
        event=codes.AUDIT_BEGIN_TRANSFERRING,
        action="E",
        participants=(
            _us(origin, role=codes.ROLE_SOURCE, is_requestor=True),
            Participant(user_id=destination, ae_title=destination, address=address, role=codes.ROLE_DESTINATION),
        ),
        things=(_study(study_uid, instances=instances), _patient(patient_id)),
    )


def transferred(
    origin: Origin,
    *,
    incoming: bool,
    study_uid: str,
    peer: str,
    peer_ae_title: str,
    address: str,
    instances: Mapping[str, int],
    succeeded: bool,
    patient_id: str,
) -> Message:
    """DICOM Instances Transferred (A.5.3.7). The sender is who asked for it: the peer, or we."""
    ours, theirs = codes.ROLE_SOURCE, codes.ROLE_DESTINATION
    if incoming:
        ours, theirs = theirs, ours
    return Message(
        event=codes.AUDIT_TRANSFERRED,
        action="C" if incoming else "R",  # R: we don't know whether the receiver held them before
        succeeded=succeeded,
        participants=(
            Participant(user_id=peer, ae_title=peer_ae_title, address=address, role=theirs, is_requestor=incoming),
            _us(origin, role=ours, is_requestor=not incoming),
        ),
        things=(_study(study_uid, instances=instances), _patient(patient_id)),
    )


def accessed(origin: Origin, *, study_uid: str, user: str, address: str, action: str, patient_id: str) -> Message:
    """DICOM Instances Accessed (A.5.3.6)."""
    if action not in ("C", "R", "U", "D"):
        raise ValueError("EventActionCode of DICOM Instances Accessed is C, R, U or D (PS3.15 Table A.5.3.6-1)")
    return Message(
        event=codes.AUDIT_ACCESSED,
        action=action,
        participants=(Participant(user_id=user, address=address, is_requestor=True), _us(origin)),
        things=(_study(study_uid), _patient(patient_id)),
    )


def exported(origin: Origin, *, study_uid: str, user: str, address: str, what: str, patient_id: str) -> Message:
    """Data Export (A.5.3.4): to the machine of whoever asked for it, which is the medium too."""
    return Message(
        event=codes.AUDIT_EXPORT,
        action="R",
        participants=(
            Participant(user_id=user, address=address, is_requestor=True, role=codes.ROLE_DESTINATION),
            _us(origin, role=codes.ROLE_SOURCE),
            Participant(
                user_id=address,
                address=address or UNKNOWN,
                role=codes.ROLE_DESTINATION_MEDIA,
                media=codes.MEDIA_URI,
            ),
        ),
        things=(_study(study_uid, name=what), _patient(patient_id)),
    )


def network_entry(origin: Origin, *, attached: bool, ae_title: str, address: str) -> Message:
    """Network Entry (A.5.3.9)."""
    return Message(
        event=codes.AUDIT_NETWORK_ENTRY,
        action="E",
        types=(codes.ATTACH if attached else codes.DETACH,),
        participants=(Participant(user_id=origin.host, ae_title=ae_title, name=PRODUCT, address=address),),
    )


def authenticated(origin: Origin, *, user: str, address: str, login: bool, succeeded: bool, words: str = "") -> Message:
    """User Authentication (A.5.3.12)."""
    return Message(
        event=codes.AUDIT_USER_AUTHENTICATION,
        action="E",
        types=(codes.LOGIN if login else codes.LOGOUT,),
        succeeded=succeeded,
        words=words,
        participants=(
            Participant(user_id=user, address=address or UNKNOWN, is_requestor=True),
            _us(origin),
        ),
    )


def security_alert(origin: Origin, *, kind: Code, words: str, user: str, address: str, succeeded: bool) -> Message:
    """Security Alert (A.5.3.11): reported by us, about a node.

    Parameters
    ----------
    kind
        Of CID 403.
    user, address
        Who did it; both empty: we ourselves are what it is about.
    """
    return Message(
        event=codes.AUDIT_SECURITY_ALERT,
        action="E",
        types=(kind,),
        succeeded=succeeded,
        words=words,
        participants=(
            _us(origin, is_requestor=not (user or address)),
            *(
                [
                    Participant(
                        user_id=user or address,
                        ae_title=user if kind == codes.NODE_AUTHENTICATION else "",
                        address=address,
                    )
                ]
                if user or address
                else []
            ),
        ),
        things=(
            Thing(
                identifier=address or origin.host,
                identifier_type=codes.NODE_ID,
                kind="2",
                role="13",
                details=(("Alert Description", words),),
            ),
        ),
    )


def refusal(origin: Origin, kind: Alert, *, words: str, user: str, address: str, succeeded: bool = False) -> Message:
    """What was refused, by the table that its kind belongs to (A.5.3.11, A.5.3.12)."""
    if kind is Alert.USER_AUTHENTICATION:
        return authenticated(origin, user=user, address=address, login=True, succeeded=succeeded, words=words)
    return security_alert(origin, kind=_KINDS[kind], words=words, user=user, address=address, succeeded=succeeded)


def recording_stopped(origin: Origin, *, words: str) -> Message:
    """Security Alert (A.5.3.11): messages are missing from the trail, or from what was sent of it."""
    return security_alert(origin, kind=codes.AUDIT_STOPPED, words=words, user="", address="", succeeded=False)


def _us(origin: Origin, *, role: Code | None = None, is_requestor: bool = False) -> Participant:
    return Participant(
        user_id=str(origin.process_id),  # as in the head of each syslog line (A.5.2.1)
        ae_title=origin.ae_title,
        name=f"{PRODUCT} {origin.name}",
        address=origin.host,
        role=role,
        is_requestor=is_requestor,
    )


def _study(uid: str, *, instances: Mapping[str, int] | None = None, name: str = "") -> Thing:
    return Thing(
        identifier=uid,
        identifier_type=codes.STUDY_INSTANCE_UID,
        kind="2",
        role="3",
        name=name,
        instances=instances,
    )


def _patient(patient_id: str) -> Thing:
    """The patient, by number alone: a name is optional in all tables, and says nothing more."""
    return Thing(identifier=patient_id or UNKNOWN, identifier_type=codes.PATIENT_NUMBER, kind="1", role="1")
