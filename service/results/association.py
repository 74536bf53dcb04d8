"""[edge] An association with a destination, and what each way in which it may not come about means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from pydicom import Dataset
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from service import handshakes, tls
from service.codes import uid_name
from service.errors import AssociationRejected, ConfigError, NoAnswer, NotAccepted, PeerUnreachable
from service.requestor import Rejection, steady
from service.settings.destinations import Destination

Handler = tuple[evt.EventType, Callable[[evt.Event], Any]]
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
    destination: Destination,
    our_ae_title: str,
    contexts: list[PresentationContext],
    *,
    handlers: Sequence[Handler] = (),
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
) -> Iterator[Association]:
    """An association in which at least one of the contexts is accepted; released at the end, aborted on an error.

    Parameters
    ----------
    handlers
        What to do when the destination asks something of us on it: pynetdicom's events, and who is called.
    roles
        Which roles to propose (PS3.7 D.3.3.4); without, the destination provides the service and we use it.

    Raises
    ------
    PeerUnreachable, AssociationRejected
        If there is none.
    NoAnswer
        If it breaks.
    NotAccepted
        If none of the contexts is accepted.
    """
    ae = AE(ae_title=our_ae_title)
    ae.connection_timeout = min(10.0, destination.timeout_seconds)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = destination.timeout_seconds
    doing = f"associating with {destination.name} ({destination.ae_title} at {destination.host}:{destination.port})"
    dialer, rejection = _dialer(destination, doing), Rejection()
    try:
        association = ae.associate(
            destination.host,
            destination.port,
            contexts=contexts,
            ae_title=destination.ae_title,
            max_pdu=0,
            ext_neg=list(roles),
            evt_handlers=[*handlers, rejection.handler],
            tls_args=cast(Any, (dialer, destination.tls.server_name or destination.host))
            if dialer and destination.tls
            else None,
        )
    except OSError as exc:  # the host's name is looked up outside of what pynetdicom catches
        raise PeerUnreachable(
            doing=doing,
            found=f"{exc.strerror or type(exc).__name__}",
            rule="the destination's host is an address, or a name that can be looked up",
            way_out="correct host in the configuration, or look at the name service; results wait and are sent again",
        ) from exc
    if rejection.primitive:
        raise AssociationRejected(
            doing=doing,
            found=f"rejected: {rejection.primitive.reason_str}",
            rule="both AE titles are known to the destination, and it has capacity (PS3.8 Table 9-21)",
            way_out=_WAYS_OUT.get(rejection.primitive.diagnostic or 0, "look into the destination's log"),
            retry=rejection.primitive.result == _TRANSIENT,
        )
    if not association.is_established and association.rejected_contexts:
        raise _not_accepted(doing, contexts)
    if not association.is_established and dialer and dialer.failure:
        found, way_out = handshakes.explain(dialer.failure)
        raise PeerUnreachable(
            doing=doing,
            found=found,
            rule=tls.RULE,
            way_out=f"{way_out}; results wait and are sent again",
        )
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
        steady(association)
        yield association
        association.release()
    except RuntimeError as exc:  # pynetdicom's word for a peer that hung up between two messages
        raise NoAnswer(
            doing=doing,
            found="the connection was ended by the other side",
            rule="an association stays open until it is released (PS3.8 section 7)",
            way_out="look at the destination; the object is sent again",
        ) from exc
    finally:
        if association.is_established:
            association.abort()


def _dialer(destination: Destination, doing: str) -> tls.Dialer | None:
    """The TLS of one association; None for a plain one."""
    try:
        return tls.Dialer(destination.tls) if destination.tls else None
    except ConfigError as exc:  # the service has started with these files, but they are another's now
        raise PeerUnreachable(
            doing=doing,
            found=f"{exc.doing}: {exc.found}",
            rule=exc.rule,
            way_out=f"{exc.way_out}; results wait and are sent again",
        ) from exc


def _not_accepted(doing: str, contexts: list[PresentationContext]) -> NotAccepted:
    names = sorted({uid_name(str(context.abstract_syntax)) for context in contexts})
    return NotAccepted(
        doing=doing,
        found=f"it does not accept {', '.join(names)}",
        rule="a service is used in a presentation context that both sides accept (PS3.8 section 9.3.3)",
        way_out="allow this SOP class at the destination",
    )


def answered(
    answer: Any,
    destination: Destination,
    what: str,
    *,
    way_out: str = "look at the destination and the network; the object is sent again",
) -> Dataset:
    """The peer's answer; pynetdicom gives an empty one where none came."""
    if answer is None or "Status" not in answer:
        raise NoAnswer(
            doing=f"{what} at {destination.name}",
            found="the connection broke, or no answer came in time",
            rule=f"an answer comes within {destination.timeout_seconds:g} s",
            way_out=way_out,
        )
    return Dataset(answer) if not isinstance(answer, Dataset) else answer
