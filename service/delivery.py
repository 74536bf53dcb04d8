"""One attempt to bring one object to one destination, and what follows from how it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from service import audit, faults, log, metrics
from service.errors import AssociationRejected, DeliveryError, FrozenObjectLost, NotAccepted, PeerUnreachable
from service.forms import Kind
from service.line import pause
from service.receipt import Receipt, receipt
from service.results import deliver
from service.results.choice import choose, everything, stands_in
from service.results.negotiate import Acceptance
from service.settings.destinations import Destination
from service.store import Store
from service.types import Delivery, DeliveryState, FrozenAnswer, FrozenObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How an attempt ended."""

    state: DeliveryState
    reason: str  # in words
    error: DeliveryError | None
    next_at: float  # when the next one is due, if there is one; seconds since 1970
    associated: bool = False  # whether the destination answered, be it that it rejected us for good: it is not away
    counts: bool = True  # whether it was the object's own: a destination that is away says nothing of it
    in_its_place: tuple[FrozenObject, ...] = ()  # what goes there instead: the destination does not accept it
    withdrawn: tuple[str, ...] = ()  # SOP Instance UIDs of its answer that do not go there with those


def attempt(
    delivery: Delivery,
    destination: Destination,
    store: Store,
    *,
    answer: FrozenAnswer | None = None,
    acceptance: Acceptance,
    our_ae_title: str,
) -> Attempt:
    """Send an object unless it was sent, then look for the receipt. Never raises.

    Parameters
    ----------
    answer
        The answer that the object is of: with it, an object that is not accepted is replaced by the next best.
    acceptance
        What destinations accept.
    store
        Is told as soon as the peer has said Success.
    """
    try:
        if answer and delivery.state != DeliveryState.SENT:
            made = _another_way(delivery, answer, destination, acceptance)
            if made:
                return _with_echo(made, destination, our_ae_title) if made.error else made
        state, reason, error, again_in = _try(delivery, destination, store, acceptance, our_ae_title=our_ae_title)
        associated = not delivery.commitment and not isinstance(error, FrozenObjectLost)
        itself = answer and next(it for it in answer.objects if it.sop_instance_uid == delivery.sop_instance_uid)
        if itself and isinstance(error, NotAccepted) and state == DeliveryState.REFUSED:
            acceptance.refuse(destination, itself.sop_class_uid, itself.transfer_syntax_uid)
            state = DeliveryState.RETRYING  # by the next best, at the next attempt
    except Exception as exc:  # not foreseen: it is tried again as if it had been
        log.failure("delivery.failed", exc, delivery_id=delivery.delivery_id, destination=delivery.destination)
        state, reason, error = DeliveryState.RETRYING, f"an internal error ({type(exc).__name__})", None
        again_in, associated = 0.0, False
    made = _ended(delivery, destination, state, reason, error, again_in)
    return _with_echo(replace(made, associated=associated and not is_away(error)), destination, our_ae_title)


def is_away(error: DeliveryError | None) -> bool:
    """Whether an attempt ended since no association came about for now, whatever the object."""
    return isinstance(error, PeerUnreachable) or (isinstance(error, AssociationRejected) and error.retry)


def _with_echo(made: Attempt, destination: Destination, our_ae_title: str) -> Attempt:
    """Add to a refusal whether the connection is at fault, or the object."""
    if made.state is not DeliveryState.REFUSED:
        return made
    try:
        deliver.echo(destination, our_ae_title=our_ae_title)
        words = "C-ECHO is answered: the connection is well"
    except DeliveryError as exc:
        words = f"C-ECHO fails too: {exc.found}"
    return replace(made, reason=f"{made.reason}. {words}")


def _another_way(
    delivery: Delivery, answer: FrozenAnswer, destination: Destination, acceptance: Acceptance
) -> Attempt | None:
    """How an attempt ends for an object that does not go to a destination; None if it goes.

    An object that the profile does not want was queued under an earlier one, or stands in for another: it goes, as
    long as it is accepted.
    """
    uid = delivery.sop_instance_uid
    try:
        accepts = acceptance.of(destination)
    except DeliveryError as exc:
        state = DeliveryState.RETRYING if exc.retry else DeliveryState.REFUSED
        return replace(_ended(delivery, destination, state, deliver.explain(exc), exc), associated=not is_away(exc))
    itself = next(made for made in answer.objects if made.sop_instance_uid == uid)
    ideal = choose(answer, destination.profile, everything)
    actual = choose(answer, destination.profile, accepts)
    chosen = {made.sop_instance_uid for made in actual.objects}
    is_wanted = uid in {made.sop_instance_uid for made in ideal.objects}
    if uid in chosen or (not is_wanted and accepts(itself.sop_class_uid, itself.transfer_syntax_uid)):
        return None
    reason = "; ".join(actual.remarks) or "it refers to an object that is not accepted"
    if not stands_in(ideal, actual, itself):
        way_out = "allow it at the destination, or take it out of the profile"
        return _ended(delivery, destination, DeliveryState.REFUSED, f"{reason}. Way out: {way_out}", None)
    # All that go together are chosen together: a report must not go without its segmentation.
    withdrawn = [it.sop_instance_uid for it in answer.objects if it.kind in (Kind.SEG, Kind.SR)]
    return replace(
        _ended(delivery, destination, DeliveryState.REPLACED, reason, None),
        in_its_place=actual.objects,
        withdrawn=tuple(uid for uid in withdrawn if uid not in chosen),
    )


def _ended(
    delivery: Delivery,
    destination: Destination,
    state: DeliveryState,
    reason: str,
    error: DeliveryError | None,
    again_in: float = 0.0,
) -> Attempt:
    """What follows from how an attempt ended; none of the object's own follows for ever."""
    if is_away(error):  # the line pauses, not the object
        return Attempt(state=state, reason=reason, error=error, next_at=0.0, counts=False)
    counts = state != DeliveryState.SENT or error is not None  # waiting for a receipt is no failure
    waited = time.time() - delivery.failed_at if delivery.failed_at else 0.0
    if counts and waited > destination.retry_hours * 3600:
        if state == DeliveryState.RETRYING:
            state = DeliveryState.REFUSED
        elif state in (DeliveryState.SENT, DeliveryState.QUEUED):
            state = DeliveryState.UNCONFIRMED
    seconds = again_in or pause(
        delivery.attempts + 1,
        first=destination.first_pause_seconds,
        longest=destination.longest_pause_seconds,
    )
    return Attempt(state=state, reason=reason, error=error, next_at=time.time() + seconds, counts=counts)


def _send(delivery: Delivery, destination: Destination, *, our_ae_title: str) -> str:
    """Send an object, and write both ends of that to the audit trail; the remark with which it was stored."""
    what: dict[str, Any] = {
        "study_uid": delivery.study_instance_uid,
        "address": destination.host,
        "instances": {delivery.sop_class_uid: 1},
    }
    audit.begin_transferring(destination=destination.ae_title, **what)
    succeeded = False
    try:
        remark = deliver.send(delivery.path, delivery.sop_class_uid, destination, our_ae_title=our_ae_title)
        succeeded = True
    finally:
        audit.transferred(incoming=False, peer=destination.ae_title, succeeded=succeeded, **what)
    return remark


def tell(delivery: Delivery, made: Attempt, *, seconds_since_last_slice: float) -> None:
    """Count an attempt, and log it."""
    metrics.DELIVERIES.labels(destination=delivery.destination, outcome=made.state).inc()
    fields = {
        "delivery_id": delivery.delivery_id,
        "study_uid": delivery.study_instance_uid,
        "sop_instance_uid": delivery.sop_instance_uid,
        "kind": delivery.kind,
        "destination": delivery.destination,
        "seconds_since_last_slice": round(seconds_since_last_slice, 1),
    }
    if made.error:
        log.warning(f"delivery.{made.state}", made.error, **fields)
    else:
        log.event(f"delivery.{made.state}", **fields, reason=made.reason)
    if made.state is DeliveryState.CONFIRMED:
        metrics.LAST_SLICE_TO_CONFIRMED.labels(model=delivery.model, destination=delivery.destination).observe(
            max(0.0, seconds_since_last_slice)
        )


def _try(
    delivery: Delivery, destination: Destination, store: Store, acceptance: Acceptance, *, our_ae_title: str
) -> tuple[DeliveryState, str, DeliveryError | None, float]:
    """Where the object is now, why, the error, and seconds until the next look for its receipt."""
    sent = delivery.state == DeliveryState.SENT
    try:
        if not sent:
            remark = _send(delivery, destination, our_ae_title=our_ae_title)
            sent = True
            faults.point("delivery.sent")
            store.note_sent(delivery.delivery_id, remark=remark)
            faults.point("delivery.noted")
            delivery = store.delivery(delivery.delivery_id)
        can_commit = destination.confirm == "auto" and acceptance.commits(destination)
        found: Receipt = receipt(delivery, destination, store, can_commit=can_commit, our_ae_title=our_ae_title)
        if not found.commits:
            acceptance.no_commitment(destination)
        if found.state == DeliveryState.CONFIRMED:
            faults.point("delivery.seen")
        return found.state, found.reason, None, found.again_in
    except DeliveryError as exc:
        if sent:  # it is there, or was: only the look for it failed
            state = DeliveryState.SENT if exc.retry else DeliveryState.UNCONFIRMED
        else:
            state = DeliveryState.RETRYING if exc.retry else DeliveryState.REFUSED
        return state, deliver.explain(exc), exc, 0.0
