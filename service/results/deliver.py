"""[edge] One object to one destination: C-ECHO and C-STORE."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from service.codes import CLASS_NOT_SUPPORTED, SUCCESS, WARNINGS, status_may_pass, status_word
from service.errors import DeliveryError, FrozenObjectLost, InstanceRefused, NotAccepted
from service.results.association import answered, association_with, context_of
from service.settings.destinations import Destination


def echo(destination: Destination, *, our_ae_title: str) -> None:
    """Ask a destination whether it is there.

    Raises
    ------
    DeliveryError
        In words that say what to change.
    """
    with association_with(destination, our_ae_title, [context_of(Verification)]) as association:
        answered(association.send_c_echo(), destination, "C-ECHO")


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
        raise FrozenObjectLost(
            doing=f"reading the frozen object {path.name}",
            found=type(exc).__name__,
            rule="frozen objects stay on the disk as they were written",
            way_out="find out who removed or changed it; re-analyse the study",
        ) from exc
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    with association_with(destination, our_ae_title, [context_of(sop_class_uid, syntax)]) as association:
        answer = answered(association.send_c_store(dataset), destination, f"C-STORE of {dataset.SOPInstanceUID}")
        status = int(answer.Status)
    if status == CLASS_NOT_SUPPORTED:  # accepted in the association, and refused all the same
        raise NotAccepted(
            doing=f"storing {dataset.SOPInstanceUID} at {destination.name}",
            found=f"status {status:04X}, {status_word(status)}",
            rule="what is accepted in the association is stored (PS3.4 section B.2)",
            way_out="allow this SOP class at the destination",
        )
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


def explain(error: DeliveryError) -> str:
    """What the API shows of a failed attempt."""
    return f"{error.found}. Way out: {error.way_out}"
