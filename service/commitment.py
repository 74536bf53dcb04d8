"""Storage commitment: what is asked for, and what a report of it says (PS3.4 Annex J). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydicom import Dataset
from pydicom.uid import RE_VALID_UID

from service.codes import FAILURE_REASON_WORDS, PROCESSING_FAILURE
from service.errors import NotUnderstood

COMMIT: Final = 1  # Action Type ID of the request (PS3.4 Table J.3-1)
_EVENTS: Final = (1, 2)  # Event Type ID: all was committed to; failures exist (PS3.4 Table J.3-2)
_FOR_GOOD: Final = frozenset({0x0119, 0x0122})  # no repeat changes the class of an object


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentReport:
    """What a destination has committed to, and what not."""

    transaction_uid: str  # of the request that it answers
    committed: tuple[str, ...]  # SOP Instance UIDs
    failed: Mapping[str, int]  # SOP Instance UID to Failure Reason (0008,1197)


def request_for(transaction_uid: str, objects: Iterable[tuple[str, str]]) -> Dataset:
    """Action Information of a request for commitment (PS3.4 Table J.3-1).

    Parameters
    ----------
    transaction_uid
        A new one for each request, also where it is repeated.
    objects
        SOP Class UID and SOP Instance UID of each.
    """
    request = Dataset()
    request.TransactionUID = transaction_uid
    request.ReferencedSOPSequence = [_reference(*pair) for pair in objects]
    return request


def report_from(event_type: int, information: Dataset) -> CommitmentReport:
    """What a report says (PS3.4 section J.3.3).

    Its sequences are read whatever the event type says, and may be missing or empty. What is named as failed and as
    committed to, is failed. Nothing is taken for committed to that is not named.

    Parameters
    ----------
    event_type
        Event Type ID: 1, all was committed to; 2, failures exist (PS3.4 Table J.3-2).
    information
        Event Information.

    Raises
    ------
    NotUnderstood
        If it has no transaction UID, or is another event.
    """
    transaction_uid = _uid(information, "TransactionUID")
    if event_type not in _EVENTS or not _is_uid(transaction_uid):
        raise NotUnderstood(
            doing="reading a report of storage commitment",
            found="no transaction UID" if event_type in _EVENTS else f"event type {event_type}",
            rule="it is of event type 1 or 2, and names the transaction of the request (PS3.4 Table J.3-2)",
            way_out="nothing to do here: its objects are asked for again; show this line to the destination's vendor",
        )
    failed = {uid: _reason(item) for item in _items(information, "FailedSOPSequence") if (uid := _instance_of(item))}
    named = (_instance_of(item) for item in _items(information, "ReferencedSOPSequence"))
    committed = dict.fromkeys(uid for uid in named if uid and uid not in failed)
    return CommitmentReport(transaction_uid=transaction_uid, committed=tuple(committed), failed=failed)


def reason_word(reason: int) -> str:
    """The standard's words for a Failure Reason (PS3.3 C.14.1.1)."""
    return FAILURE_REASON_WORDS.get(reason, "Unknown reason")


def sends_again(reason: int) -> bool:
    """Whether an object that was not committed to for this reason is sent again; else somebody has to act."""
    return reason not in _FOR_GOOD


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item


def _items(information: Dataset, keyword: str) -> Iterable[Dataset]:
    return information.get(keyword) or ()


def _instance_of(item: Dataset) -> str:
    # Some write the object's own attribute into the item in place of the reference.
    return _uid(item, "ReferencedSOPInstanceUID") or _uid(item, "SOPInstanceUID")


def _uid(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip("\0 ")


def _is_uid(text: str) -> bool:
    return len(text) <= 64 and re.fullmatch(RE_VALID_UID, text) is not None  # PS3.5 section 9.1


def _reason(item: Dataset) -> int:
    reason: Any = item.get("FailureReason")
    return reason if isinstance(reason, int) else PROCESSING_FAILURE  # Type 1, and missing all the same
