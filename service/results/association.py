"""[edge] An association with a destination, and what each way in which it may not come about means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from service.codes import uid_name
from service.config import Destination
from service.errors import AssociationRejected, NotAccepted, PeerUnreachable

_TRANSIENT = 2  # PS3.8 Table 9-21, Result
_WAYS_OUT = {  # PS3.8 Table 9-21, Source 1: why an association is rejected
    3: "enter our AE title, with our address, among those that the destination accepts",
    7: "correct the destination's ae_title in the configuration: it says that this is not its own",
}


def context_of(abstract_syntax: str, *transfer_syntaxes: str) -> PresentationContext:
    """A presentation context to propose (PS3.8 section 9.3.2.2); without transfer syntaxes, those that all know."""
    return (
        build_context(abstract_syntax, list(transfer_syntaxes)) if transfer_syntaxes else build_context(abstract_syntax)
    )


@contextmanager
def association_with(
    destination: Destination, our_ae_title: str, contexts: list[PresentationContext]
) -> Iterator[Association]:
    """An association in which at least one of the contexts is accepted; released at the end, aborted on an error.

    Raises
    ------
    PeerUnreachable, AssociationRejected
        If there is none.
    NotAccepted
        If none of the contexts is accepted.
    """
    ae = AE(ae_title=our_ae_title)
    ae.connection_timeout = min(10.0, destination.timeout_seconds)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = destination.timeout_seconds
    doing = f"associating with {destination.name} ({destination.ae_title} at {destination.host}:{destination.port})"
    try:
        association = ae.associate(
            destination.host, destination.port, contexts=contexts, ae_title=destination.ae_title, max_pdu=0
        )
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
        raise _not_accepted(doing, contexts)
    if not association.is_established:
        raise PeerUnreachable(
            doing=doing,
            found="no connection, or no answer",
            rule="the destination listens on the address and port that the configuration names",
            way_out="start it, or correct host and port; results wait and are sent again",
        )
    try:
        if not association.accepted_contexts:
            raise _not_accepted(doing, contexts)
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


def _not_accepted(doing: str, contexts: list[PresentationContext]) -> NotAccepted:
    names = sorted({uid_name(str(context.abstract_syntax)) for context in contexts})
    return NotAccepted(
        doing=doing,
        found=f"it does not accept {', '.join(names)}",
        rule="a service is used in a presentation context that both sides accept (PS3.8 section 9.3.3)",
        way_out="allow this SOP class at the destination",
    )


def answered(answer: Any, destination: Destination, what: str) -> Dataset:
    """The peer's answer; pynetdicom gives an empty one where none came."""
    if answer is None or "Status" not in answer:
        raise PeerUnreachable(
            doing=f"{what} at {destination.name}",
            found="the connection broke, or no answer came in time",
            rule=f"an answer comes within {destination.timeout_seconds:g} s",
            way_out="look at the destination and the network; the object is sent again",
        )
    return Dataset(answer) if not isinstance(answer, Dataset) else answer
