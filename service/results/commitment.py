"""[edge: pynetdicom] A destination's commitment to what it was sent (PS3.4 Annex J): it is asked for, and reported.

A report comes on the association of the request, on a later one of ours (`listen`), or on one that the destination
opens (``intake/commitments.py``). Which of them a destination uses is not negotiated, and all three occur.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from pynetdicom import build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.service_class_n import StorageCommitmentServiceClass

from service import log
from service.codes import (
    N_STATUS_WORDS,
    PROCESSING_FAILURE,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    SUCCESS,
)
from service.commitment import COMMIT, CommitmentReport, report_from, request_for
from service.errors import InstanceRefused, NotAccepted
from service.results.association import Handler, answered, association_with, context_of
from service.settings.destinations import Destination
from service.types import Delivery

OnReport = Callable[[CommitmentReport], None]

_LOOK_SECONDS: Final = 0.1  # between two looks whether the destination has ended the association
_MAY_PASS: Final = frozenset({0x0110, 0x0131, 0x0210, 0x0213})  # of the statuses of N-ACTION: asked again later
_BE_KNOWN: Final = (
    "enter our AE title, address and port among the modalities that the destination knows, so that it can report to us "
    "(Orthanc: DicomModalities); else look into its log"
)
_WAYS_OUT: Final = {
    0x0110: _BE_KNOWN,
    0x0124: "allow our AE title to ask for storage commitment at the destination",
    0x0213: "make room at the destination",
}
_OTHER_WAY_OUT: Final = 'look into the destination\'s log, or set confirm = "query" for it'


def ask(
    delivery: Delivery,
    destination: Destination,
    transaction_uid: str,
    *,
    our_ae_title: str,
    on_report: OnReport,
    patience_seconds: float,
    is_known: Callable[[], bool] = lambda: False,
) -> None:
    """Ask a destination to commit to an object (N-ACTION, PS3.4 J.3.2), and wait a little for its report.

    It returns when the report has come, or the patience is over, or the destination has ended the association: then
    the report comes on another one.

    Parameters
    ----------
    transaction_uid
        A new one for each request.
    on_report
        Called for each report that comes, perhaps of another transaction, by a thread of its own; the destination is
        told Success when it has returned, and a processing failure when it raises.
    is_known
        Asked now and then: whether the report has come on another way, and need not be waited for.

    Raises
    ------
    NotAccepted
        If storage commitment is not offered.
    InstanceRefused
        If the request is refused.
    DeliveryError
        If it can't be asked now.
    """
    uid = delivery.sop_instance_uid
    hearing = _Hearing(destination, on_report)
    request = request_for(transaction_uid, [(delivery.sop_class_uid, uid)])
    with association_with(
        destination, our_ae_title, [context_of(STORAGE_COMMITMENT)], handlers=hearing.handlers
    ) as association:
        answer, _ = association.send_n_action(request, COMMIT, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
        # Orthanc aborts where it does not know us.
        status = int(answered(answer, destination, f"N-ACTION for {uid}", way_out=_BE_KNOWN).Status)
        if status == SUCCESS:
            hearing.wait(association, patience_seconds, transaction_uid, is_known)
    if status != SUCCESS:
        raise InstanceRefused(
            doing=f"asking {destination.name} to commit to {uid}",
            found=f"status {status:04X}, {N_STATUS_WORDS.get(status, 'Unknown status')}",
            rule="a request for commitment is answered with Success (PS3.4 section J.3.2.1.2)",
            way_out=_WAYS_OUT.get(status, _OTHER_WAY_OUT),
            retry=status in _MAY_PASS,
        )


def listen(destination: Destination, *, our_ae_title: str, on_report: OnReport, patience_seconds: float) -> int:
    """Open an association on which a destination may report, and wait; returns how many reports came.

    Both roles are proposed: by the standard we are the user and it is the provider, but some take whoever is reported
    to for a provider (PS3.7 D.3.3.4). One that takes neither gets the association without a word of roles.

    Parameters
    ----------
    on_report
        See `ask`.

    Raises
    ------
    DeliveryError
        If there is no such association; NotAccepted if storage commitment is not offered.
    """
    hearing = _Hearing(destination, on_report)
    contexts, both = [context_of(STORAGE_COMMITMENT)], build_role(STORAGE_COMMITMENT, scu_role=True, scp_role=True)
    for roles in ([both], []):
        try:
            with association_with(
                destination, our_ae_title, contexts, handlers=hearing.handlers, roles=roles
            ) as association:
                hearing.wait(association, patience_seconds)
                break
        except NotAccepted:
            if not roles:
                raise
    return hearing.reports


class _Hearing:
    """Hears the reports on one association of ours."""

    def __init__(self, destination: Destination, on_report: OnReport) -> None:
        self._destination, self._on_report = destination, on_report
        self._changed = threading.Condition()
        self._heard: list[str] = []  # of which transaction; empty: not understood
        self._threads: list[threading.Thread] = []
        self._is_over = False

    @property
    def handlers(self) -> list[Handler]:
        """What pynetdicom is to call."""
        return [(evt.EVT_REQUESTED, self._take_over), (evt.EVT_N_EVENT_REPORT, self._hear)]

    @property
    def reports(self) -> int:
        """How many came."""
        with self._changed:
            return len(self._heard)

    def wait(
        self,
        association: Association,
        patience_seconds: float,
        transaction_uid: str = "",
        is_known: Callable[[], bool] = lambda: False,
    ) -> None:
        """Until a report of that transaction came, or the patience or the association is over."""
        association.network_timeout = None  # else pynetdicom ends an association that is silent for so long
        until = time.monotonic() + patience_seconds
        with self._changed:
            while association.is_established and (left := until - time.monotonic()) > 0:
                if (transaction_uid and transaction_uid in self._heard) or is_known():
                    break
                self._changed.wait(min(left, _LOOK_SECONDS))
            self._is_over = True
            at_work = list(self._threads)
        for thread in at_work:  # their answers go out before our release
            thread.join(self._destination.timeout_seconds)

    def _take_over(self, event: evt.Event) -> None:
        """Serve reports past pynetdicom's reactor, before the first one can come.

        pynetdicom serves each in a thread of its own, which at its end says that the reactor runs. Where that is not
        so, since we are about to release, `Association.release` waits for ever (as in pynetdicom's issue 820).
        """
        association: Any = event.assoc
        usual = association._serve_request

        def serve(msg: Any, context_id: int) -> None:
            if isinstance(msg, N_EVENT_REPORT) and msg.MessageID is not None:
                self._serve(association, msg, context_id)
            else:
                usual(msg, context_id)

        association._serve_request = serve

    def _serve(self, association: Any, request: N_EVENT_REPORT, context_id: int) -> None:
        with self._changed:
            if self._is_over:  # too late to answer: we release
                return
            self._threads.append(threading.current_thread())
        # It may come before pynetdicom has understood that the association is accepted.
        until = time.monotonic() + self._destination.timeout_seconds
        while not association.is_established and not association.is_aborted and time.monotonic() < until:
            time.sleep(0.001)
        if context_id in association._accepted_cx:
            StorageCommitmentServiceClass(association).SCP(request, association._accepted_cx[context_id])

    def _hear(self, event: evt.Event) -> tuple[int, None]:
        heard, status = "", PROCESSING_FAILURE
        try:
            report = report_from(event.event_type or 0, event.event_information)
            heard = report.transaction_uid
            self._on_report(report)
            status = SUCCESS
        except Exception as exc:  # it is told so, and reports again
            log.failure("commitment.failed", exc, destination=self._destination.name)
        with self._changed:
            self._heard.append(heard)
            self._changed.notify_all()
        return status, None
