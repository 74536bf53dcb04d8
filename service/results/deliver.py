"""[edge] One object to one destination: C-ECHO, C-STORE, and the question whether it is there (C-FIND)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, Comprehensive3DSRStorage, ExplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from service.codes import SUCCESS, WARNINGS, status_may_pass, status_word
from service.config import Destination
from service.errors import AssociationRejected, DeliveryError, InstanceRefused, PeerUnreachable
from service.types import Delivery

_PENDING = frozenset({0xFF00, 0xFF01})  # PS3.4 Table C.4-1
_TRANSIENT = 2  # PS3.8 Table 9-21, Result
_WAYS_OUT = {  # PS3.8 Table 9-21, Source 1: why an association is rejected
    3: "enter our AE title, with our address, among those that the destination accepts",
    7: "correct the destination's ae_title in the configuration: it says that this is not its own",
}


def echo(destination: Destination, *, our_ae_title: str) -> None:
    """Ask a destination whether it is there.

    Raises
    ------
    DeliveryError
        In words that say what to change.
    """
    with _association(destination, our_ae_title, Verification) as association:
        _answered(association.send_c_echo(), destination, "C-ECHO")


def accepts(destination: Destination, *, our_ae_title: str) -> list[str]:
    """The names of what a destination does not accept, of all that the delivery of results needs.

    Raises
    ------
    DeliveryError
        If it can't be asked.
    """
    needed = [SegmentationStorage, Comprehensive3DSRStorage]
    if destination.confirm == "query":
        needed.append(StudyRootQueryRetrieveInformationModelFind)
    refused = []
    for abstract_syntax in needed:
        try:
            with _association(destination, our_ae_title, abstract_syntax, ExplicitVRLittleEndian):
                pass
        except InstanceRefused:
            refused.append(UID(abstract_syntax).name)
    return refused


def send(path: Path, sop_class_uid: str, destination: Destination, *, our_ae_title: str) -> str:
    """Store one object at a destination.

    Returns
    -------
    str
        The peer's remark, where it stored the object with a warning; else empty.

    Raises
    ------
    DeliveryError
        Its ``retry`` tells whether trying again may help.
    """
    try:
        dataset = dcmread(path)
    except (OSError, InvalidDicomError) as exc:
        raise InstanceRefused(
            doing=f"reading the frozen object {path.name}",
            found=type(exc).__name__,
            rule="frozen objects stay on the disk as they were written",
            way_out="find out who removed or changed it; re-analyse the study",
            retry=False,
        ) from exc
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    with _association(destination, our_ae_title, sop_class_uid, syntax) as association:
        answer = _answered(association.send_c_store(dataset), destination, f"C-STORE of {dataset.SOPInstanceUID}")
        status = int(answer.Status)
    if status in WARNINGS:
        return f"status {status:04X}, {status_word(status)}"
    if status != SUCCESS:
        raise InstanceRefused(
            doing=f"storing {dataset.SOPInstanceUID} at {destination.name}",
            found=f"status {status:04X}, {status_word(status)}",
            rule="the destination answers Success or a warning (PS3.4 Table B.2-1)",
            way_out="make room there" if status_may_pass(status) else "ask its vendor why it refuses this object",
            retry=status_may_pass(status),
        )
    return ""


def is_present(delivery: Delivery, destination: Destination, *, our_ae_title: str) -> bool:
    """Ask a destination whether it has an object (C-FIND, Study Root, IMAGE level, PS3.4 C.6.2).

    Raises
    ------
    DeliveryError
        If it can't be asked now, or at all.
    """
    question = Dataset()
    question.QueryRetrieveLevel = "IMAGE"
    question.StudyInstanceUID = delivery.study_instance_uid
    question.SeriesInstanceUID = delivery.series_instance_uid
    question.SOPInstanceUID = sop_uid = delivery.sop_instance_uid
    model = StudyRootQueryRetrieveInformationModelFind
    with _association(destination, our_ae_title, model) as association:
        found = False
        for answer, identifier in association.send_c_find(question, model):
            status = int(_answered(answer, destination, "C-FIND").Status)
            if status in _PENDING:
                found |= identifier is not None and str(identifier.get("SOPInstanceUID", sop_uid)) == sop_uid
            elif status != SUCCESS:
                raise InstanceRefused(
                    doing=f"asking {destination.name} for {sop_uid}",
                    found=f"status {status:04X}",
                    rule="a query ends with Success (PS3.4 Table C.4-1)",
                    way_out='allow our AE title to query, or set confirm = "none" for this destination',
                    retry=True,
                )
        return found


@contextmanager
def _association(
    destination: Destination, our_ae_title: str, abstract_syntax: str | UID, transfer_syntax: str | None = None
) -> Iterator[Association]:
    """An association for one abstract syntax; released at the end, aborted on an error."""
    ae = AE(ae_title=our_ae_title)
    ae.connection_timeout = min(10.0, destination.timeout_seconds)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = destination.timeout_seconds
    ae.add_requested_context(abstract_syntax, transfer_syntax)
    doing = f"associating with {destination.name} ({destination.ae_title} at {destination.host}:{destination.port})"
    try:
        association = ae.associate(destination.host, destination.port, ae_title=destination.ae_title, max_pdu=0)
    except OSError as exc:  # the host's name is looked up outside of what pynetdicom catches
        raise PeerUnreachable(
            doing=doing,
            found=f"{exc.strerror or type(exc).__name__}",
            rule="the destination's host is an address, or a name that can be looked up",
            way_out="correct host in the configuration, or look at the name service; results wait and are sent again",
        ) from exc
    if association.is_rejected:
        primitive: Any = association.acceptor.primitive
        raise AssociationRejected(
            doing=doing,
            found=f"rejected: {primitive.reason_str}" if primitive else "rejected",
            rule="both AE titles are known to the destination, and it has capacity (PS3.8 Table 9-21)",
            way_out=_WAYS_OUT.get(getattr(primitive, "diagnostic", 0), "look into the destination's log"),
            retry=getattr(primitive, "result", 0) == _TRANSIENT,
        )
    if not association.is_established and association.rejected_contexts:
        raise _not_accepted(doing, abstract_syntax)
    if not association.is_established:
        raise PeerUnreachable(
            doing=doing,
            found="no connection, or no answer",
            rule="the destination listens on the address and port that the configuration names",
            way_out="start it, or correct host and port; results wait and are sent again",
        )
    try:
        if not association.accepted_contexts:
            raise _not_accepted(doing, abstract_syntax)
        yield association
        association.release()
    except RuntimeError as exc:  # pynetdicom's word for a peer that hung up between two messages
        raise PeerUnreachable(
            doing=doing,
            found="the connection was ended by the other side",
            rule="an association stays open until it is released (PS3.8 section 7)",
            way_out="look at the destination; the object is sent again",
        ) from exc
    finally:
        if association.is_established:
            association.abort()


def _not_accepted(doing: str, abstract_syntax: str | UID) -> InstanceRefused:
    return InstanceRefused(
        doing=doing,
        found=f"it does not accept {UID(str(abstract_syntax)).name}",
        rule="a service is used in a presentation context that both sides accept (PS3.8 section 9.3.3)",
        way_out="allow this SOP class at the destination",
        retry=False,
    )


def _answered(answer: Any, destination: Destination, what: str) -> Dataset:
    """The peer's answer; pynetdicom gives an empty one where none came."""
    if answer is None or "Status" not in answer:
        raise PeerUnreachable(
            doing=f"{what} at {destination.name}",
            found="the connection broke, or no answer came in time",
            rule=f"an answer comes within {destination.timeout_seconds:g} s",
            way_out="look at the destination and the network; the object is sent again",
        )
    return Dataset(answer) if not isinstance(answer, Dataset) else answer


def explain(error: DeliveryError) -> str:
    """What the API shows of a failed attempt."""
    return f"{error.found}. Way out: {error.way_out}"
