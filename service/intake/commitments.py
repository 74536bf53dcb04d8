"""[edge: pynetdicom] Reports of storage commitment that come on associations which the destination opens.

It promises that each is answered, and that Success is answered only after the store has been told. We are the service's
user (SCU) only: who asks us to commit to what it sent is refused, with a status.
"""

from __future__ import annotations

from typing import Any, Protocol

from pynetdicom import evt

from service import faults, log
from service.codes import PROCESSING_FAILURE, SUCCESS, UNRECOGNIZED_OPERATION
from service.commitment import report_from
from service.errors import NotUnderstood


class Commitments(Protocol):
    """Who remembers what was committed to; implemented by ``store.py``."""

    def note_commitment(self, transaction_uid: str, *, committed: tuple[str, ...], failed: dict[str, int]) -> int:
        """How many deliveries it concerns; 0 for a transaction that nobody waits for."""


class CommitmentHandler:
    """What happens to one N-EVENT-REPORT request (PS3.4 section J.3.3). Never raises.

    Parameters
    ----------
    store
        Is told what was committed to, and what not.
    """

    def __init__(self, store: Commitments) -> None:
        self._store = store

    def __call__(self, event: evt.Event) -> tuple[int, None]:
        """Remember the report and answer its status (PS3.7 section 10.1.1.1.8)."""
        fields: dict[str, Any] = {"calling_ae_title": event.assoc.requestor.ae_title}
        try:
            report = report_from(event.event_type or 0, event.event_information)
            fields |= {
                "transaction_uid": report.transaction_uid,
                "committed": len(report.committed),
                "failed": len(report.failed),
            }
            faults.point("delivery.reported")
            concerned = self._store.note_commitment(
                report.transaction_uid, committed=report.committed, failed=dict(report.failed)
            )
        except NotUnderstood as exc:
            log.warning("commitment.refused", exc, **fields)
            return PROCESSING_FAILURE, None
        except Exception as exc:
            log.failure("commitment.failed", exc, **fields)
            return PROCESSING_FAILURE, None
        if concerned:
            log.event("commitment.reported", deliveries=concerned, **fields)
        else:  # reports may come twice, and late
            log.warning("commitment.unknown", **fields)
        return SUCCESS, None

    def refuse(self, event: evt.Event) -> tuple[int, None]:
        """Refuse a request for commitment (N-ACTION): we commit to nothing."""
        log.warning("commitment.requested", calling_ae_title=event.assoc.requestor.ae_title)
        return UNRECOGNIZED_OPERATION, None
