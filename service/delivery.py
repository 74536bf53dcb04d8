"""One attempt to bring one object to one destination, and what follows from how it ends."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

from service import log, metrics
from service.config import Destination
from service.errors import DeliveryError, NotAccepted
from service.forms import Kind
from service.results import deliver
from service.results.choice import choose, everything, stands_in
from service.results.negotiate import Acceptance
from service.store import Store
from service.types import Delivery, DeliveryState, FrozenAnswer, FrozenObject

_PAUSES = (2.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)  # seconds before the next attempt; then the last again
_QUERY_PAUSES = (0.0, 0.5, 2.0, 5.0, 15.0)  # seconds before each look for an object that was stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How an attempt ended."""

    state: DeliveryState
    reason: str  # in words
    error: DeliveryError | None
    next_at: float  # when the next one is due, if there is one; seconds since 1970
    in_its_place: tuple[FrozenObject, ...] = ()  # what goes there instead: the destination does not accept it
    withdrawn: tuple[str, ...] = ()  # SOP Instance UIDs of its answer that do not go there with those


def attempt(
    delivery: Delivery,
    destination: Destination,
    store: Store,
    *,
    answer: FrozenAnswer | None = None,
    acceptance: Acceptance | None = None,
    our_ae_title: str,
    stopping: threading.Event,
) -> Attempt:
    """Send an object unless it was sent, then look whether it is there. Never raises.

    Parameters
    ----------
    answer, acceptance
        The answer that the object is of, and what destinations accept: with both, an object that is not accepted is
        replaced by the next best of its answer.
    store
        Is told as soon as the peer has said Success.
    stopping
        Ends the wait for a peer that indexes slowly; what was sent is then looked for after the restart.
    """
    try:
        if answer and acceptance and delivery.state != DeliveryState.SENT:
            made = _another_way(delivery, answer, destination, acceptance)
            if made:
                return made
        state, reason, error = _try(delivery, destination, store, our_ae_title=our_ae_title, stopping=stopping)
        itself = answer and next(it for it in answer.objects if it.sop_instance_uid == delivery.sop_instance_uid)
        if itself and acceptance and isinstance(error, NotAccepted) and state == DeliveryState.REFUSED:
            acceptance.refuse(destination, itself.sop_class_uid, itself.transfer_syntax_uid)
            state = DeliveryState.RETRYING  # by the next best, at the next attempt
    except Exception as exc:  # not foreseen: it is tried again as if it had been
        log.failure("delivery.failed", exc, delivery_id=delivery.delivery_id, destination=delivery.destination)
        state, reason, error = DeliveryState.RETRYING, f"an internal error ({type(exc).__name__})", None
    return _ended(delivery, destination, state, reason, error)


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
        return _ended(delivery, destination, state, deliver.explain(exc), exc)
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
) -> Attempt:
    """What follows from how an attempt ended; none follows for ever."""
    if time.time() - delivery.queued_at > destination.retry_hours * 3600:
        if state == DeliveryState.RETRYING:
            state = DeliveryState.REFUSED
        elif state in (DeliveryState.SENT, DeliveryState.QUEUED):
            state = DeliveryState.UNCONFIRMED
    next_at = time.time() + _PAUSES[min(delivery.attempts, len(_PAUSES) - 1)]
    return Attempt(state=state, reason=reason, error=error, next_at=next_at)


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
        log.event(f"delivery.{made.state}", **fields)
    if made.state in (DeliveryState.CONFIRMED, DeliveryState.UNCONFIRMED):
        metrics.LAST_SLICE_TO_DELIVERED.labels(destination=delivery.destination).observe(seconds_since_last_slice)


def _try(
    delivery: Delivery, destination: Destination, store: Store, *, our_ae_title: str, stopping: threading.Event
) -> tuple[DeliveryState, str, DeliveryError | None]:
    sent, reason = delivery.state == DeliveryState.SENT, delivery.reason
    try:
        if not sent:
            reason = deliver.send(delivery.path, delivery.sop_class_uid, destination, our_ae_title=our_ae_title)
            sent = True
            store.note_delivery(delivery.delivery_id, DeliveryState.SENT, reason=reason)
        if destination.confirm == "none":
            return DeliveryState.UNCONFIRMED, reason, None
        for pause in _QUERY_PAUSES:  # some PACS index after they have answered
            if stopping.wait(pause):
                return DeliveryState.SENT, reason, None
            if deliver.is_present(delivery, destination, our_ae_title=our_ae_title):
                return DeliveryState.CONFIRMED, reason, None
        return DeliveryState.QUEUED, "stored with Success, and not to be found there; it is sent again", None
    except DeliveryError as exc:
        if sent:  # it is there, or was: only the look for it failed
            state = DeliveryState.SENT if exc.retry else DeliveryState.UNCONFIRMED
        else:
            state = DeliveryState.RETRYING if exc.retry else DeliveryState.REFUSED
        return state, deliver.explain(exc), exc
