"""The receipt for an object to which a destination said Success: that it has committed to it, or that it finds it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from pydicom.uid import generate_uid

from service import faults
from service.commitment import CommitmentReport, reason_word, sends_again
from service.deliveries import COMMITTED
from service.errors import InstanceRefused, NoAnswer
from service.results import commitment, presence
from service.results.deliver import explain
from service.settings.destinations import Destination
from service.store import Store
from service.types import Delivery, DeliveryState

_PATIENCE_SECONDS = 1.0  # for a report on an association of ours; later ones come on others
_INDEXING_SECONDS = 25.0  # some PACS index after they have answered: so long, absent may mean not yet
_LOOK_SECONDS = (0.5, 10.0)  # between two looks: at least, at most
_LISTEN_SECONDS = (5.0, 120.0)  # between two associations on which a report may come


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What is known of an object that was sent."""

    state: DeliveryState  # CONFIRMED; SENT: not yet; QUEUED: send it again; UNCONFIRMED, REFUSED: nothing will come
    reason: str = ""  # in words
    again_in: float = 0.0  # seconds until the next look, where it is SENT
    commits: bool = True  # whether it is worth while to ask the destination for commitments


def receipt(
    delivery: Delivery, destination: Destination, store: Store, *, can_commit: bool, our_ae_title: str
) -> Receipt:
    """Look once for the receipt of an object that was sent.

    Parameters
    ----------
    can_commit
        Whether the destination can be asked to commit.

    Raises
    ------
    DeliveryError
        If the destination can't be asked now, or at all.
    """
    if destination.confirm == "none":
        return Receipt(state=DeliveryState.UNCONFIRMED, reason="sent; by its settings nobody asks whether it is there")
    if delivery.commitment:
        return _reported(delivery, destination)
    if destination.confirm == "commitment" or (destination.confirm == "auto" and can_commit):
        return _by_commitment(delivery, destination, store, our_ae_title=our_ae_title)
    return _by_query(delivery, destination, our_ae_title=our_ae_title)


def _by_commitment(delivery: Delivery, destination: Destination, store: Store, *, our_ae_title: str) -> Receipt:
    waited = time.time() - delivery.asked_at  # negative: the clock was set back

    def note(report: CommitmentReport) -> None:
        faults.point("delivery.reported")
        store.note_commitment(report.transaction_uid, committed=report.committed, failed=report.failed)

    try:
        if not delivery.transaction_uid:
            waited = 0.0
            _ask(delivery, destination, store, note, our_ae_title=our_ae_title)
        elif 0 <= waited < destination.commitment_seconds:
            commitment.listen(
                destination, our_ae_title=our_ae_title, on_report=note, patience_seconds=_PATIENCE_SECONDS
            )
        elif destination.confirm == "commitment":  # ask again: it may have lost the request
            store.ask_commitment(delivery.delivery_id, "")
            return Receipt(state=DeliveryState.SENT, reason="no commitment came in time; it is asked for again")
        else:
            return _by_query(delivery, destination, our_ae_title=our_ae_title)
    except (InstanceRefused, NoAnswer) as exc:
        if destination.confirm == "auto":
            try:
                found = _by_query(delivery, destination, our_ae_title=our_ae_title)
            except InstanceRefused as other:
                if exc.retry and not other.retry:  # it can't be asked in any other way
                    raise exc from None
                raise
            return replace(found, reason=f"{found.reason}; asked to commit to it: {explain(exc)}", commits=False)
        if exc.retry:
            raise
        return Receipt(state=DeliveryState.UNCONFIRMED, reason=explain(exc))
    delivery = store.delivery(delivery.delivery_id)
    if delivery.commitment:
        return _reported(delivery, destination)
    least, most = _LISTEN_SECONDS
    return Receipt(
        state=DeliveryState.SENT,
        reason=f"stored; asked to commit to it, for at most {destination.commitment_seconds:g} s",
        again_in=min(most, max(least, waited)),
    )


def _ask(
    delivery: Delivery, destination: Destination, store: Store, note: commitment.OnReport, *, our_ae_title: str
) -> None:
    transaction_uid = str(generate_uid(prefix=None))  # anew each time: a used one is an error (PS3.4 J.3.2)
    store.ask_commitment(delivery.delivery_id, transaction_uid)
    faults.point("delivery.asking")
    try:
        commitment.ask(
            delivery,
            destination,
            transaction_uid,
            our_ae_title=our_ae_title,
            on_report=note,
            patience_seconds=_PATIENCE_SECONDS,
            is_known=lambda: bool(store.delivery(delivery.delivery_id).commitment),
        )
    except Exception:
        if not store.delivery(delivery.delivery_id).commitment:
            store.ask_commitment(delivery.delivery_id, "")  # it may not have come through
            raise
    faults.point("delivery.asked")


def _reported(delivery: Delivery, destination: Destination) -> Receipt:
    """What follows from the destination's report."""
    if delivery.commitment == COMMITTED:
        return Receipt(state=DeliveryState.CONFIRMED, reason="the destination has committed to it")
    failure = int(delivery.commitment, 16)
    found = f"it did not commit: {failure:04X}, {reason_word(failure)}"
    if sends_again(failure):
        return Receipt(state=DeliveryState.QUEUED, reason=f"{found}; it is sent again")
    way_out = f"allow this SOP class at {destination.name}, or take it out of its profile"
    return Receipt(state=DeliveryState.REFUSED, reason=f"{found}. Way out: {way_out}")


def _by_query(delivery: Delivery, destination: Destination, *, our_ae_title: str) -> Receipt:
    if presence.is_present(delivery, destination, our_ae_title=our_ae_title):
        return Receipt(state=DeliveryState.CONFIRMED, reason="the destination finds it")
    waited = time.time() - delivery.asked_at
    if 0 <= waited < _INDEXING_SECONDS:
        least, most = _LOOK_SECONDS
        return Receipt(
            state=DeliveryState.SENT,
            reason="stored with Success, and not to be found there yet",
            again_in=min(most, max(least, waited)),
        )
    return Receipt(
        state=DeliveryState.QUEUED, reason="stored with Success, and not to be found there; it is sent again"
    )
