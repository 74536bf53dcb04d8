"""What is asked for and what a report says: as the standard has it, and as the field has it."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.dsutils import decode, encode

from service.codes import FAILURE_REASON_WORDS
from service.commitment import CommitmentReport, reason_word, report_from, request_for, sends_again
from service.errors import NotUnderstood

TRANSACTION = "2.25.17"


def information(
    committed: Sequence[str] | None = None, failed: dict[str, int | None] | None = None, **more: Any
) -> Dataset:
    """Event Information; a sequence that is None is missing, and so is a reason."""
    made = Dataset()
    made.TransactionUID = TRANSACTION
    if committed is not None:
        made.ReferencedSOPSequence = [_item(uid) for uid in committed]
    if failed is not None:
        made.FailedSOPSequence = [_item(uid, FailureReason=reason) for uid, reason in failed.items()]
    for keyword, value in more.items():
        setattr(made, keyword, value)
    return made


def _item(uid: str, **more: Any) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66.4", uid
    for keyword, value in more.items():
        if value is not None:
            setattr(item, keyword, value)
    return item


def _report(*committed: str, **failed: int) -> CommitmentReport:
    return CommitmentReport(
        transaction_uid=TRANSACTION, committed=committed, failed={key.strip("u"): it for key, it in failed.items()}
    )


@pytest.mark.parametrize("implicit", [True, False])
def test_a_request_names_the_transaction_and_each_object(implicit: bool) -> None:
    made = request_for(TRANSACTION, [("1.2.3", "1.2.3.1"), ("1.2.4", "1.2.4.1")])
    encoded = encode(made, implicit, True)
    assert encoded is not None
    read = decode(BytesIO(encoded), implicit, True)
    assert read.TransactionUID == TRANSACTION
    assert [(it.ReferencedSOPClassUID, it.ReferencedSOPInstanceUID) for it in read.ReferencedSOPSequence] == [
        ("1.2.3", "1.2.3.1"),
        ("1.2.4", "1.2.4.1"),
    ]
    assert {it.keyword for it in read} == {"TransactionUID", "ReferencedSOPSequence"}


@pytest.mark.parametrize(
    ("event_type", "told", "expected"),
    [
        (1, information(["1", "2"]), _report("1", "2")),
        (2, information(["1"], {"2": 0x0112}), _report("1", u2=0x0112)),
        (2, information(None, {"1": 0x0110, "2": 0x0119}), _report(u1=0x0110, u2=0x0119)),
        (2, information([], {"1": 0x0213}), _report(u1=0x0213)),
        # What follows breaks Table J.3-2, and occurs.
        (1, information(["1"], {}), _report("1")),
        (1, information(["1"], {"2": 0x0112}), _report("1", u2=0x0112)),
        (2, information(["1"]), _report("1")),
        (2, information(["1", "2"], {"2": 0x0112}), _report("1", u2=0x0112)),  # failed wins
        (2, information(["1", "1"], {}), _report("1")),
        (2, information(None, {"1": 0xA700}), _report(u1=0xA700)),  # a reason of its own
        (2, information(None, {"1": None}), _report(u1=0x0110)),
        (1, information(), _report()),  # nothing is named: nothing is committed to
        (2, information(), _report()),
        (1, information([""], {"": 0x0112}), _report()),
        (1, information(["1"], RetrieveAETitle="PACS", StorageMediaFileSetUID="1.2"), _report("1")),
        (1, information(["1"], TransactionUID=f"{TRANSACTION}\0"), _report("1")),
    ],
)
@pytest.mark.parametrize("sent", [True, False])
def test_a_report_says_what_was_committed_to(
    event_type: int, told: Dataset, expected: CommitmentReport, sent: bool
) -> None:
    if sent:
        encoded = encode(told, True, True)
        assert encoded is not None
        told = decode(BytesIO(encoded), True, True)
    assert report_from(event_type, told) == expected


def test_a_failed_object_may_be_named_by_its_own_attribute() -> None:
    item = Dataset()
    item.SOPInstanceUID, item.FailureReason = "1", 0x0112
    told = information([])
    told.FailedSOPSequence = [item]
    assert report_from(2, told) == _report(u1=0x0112)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_report_is_read_from_a_file_too(syntax: str) -> None:
    written = BytesIO()
    told = information(["1"], {"2": 0x0112})
    told.save_as(written, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    written.seek(0)
    assert report_from(2, dcmread(written, force=True)) == _report("1", u2=0x0112)


@pytest.mark.filterwarnings("ignore:.*UI.*:UserWarning")
@pytest.mark.parametrize("transaction", [None, "", "GEHEIM^NAME", "1." * 40 + "1", "../../1"])
def test_a_report_of_no_transaction_is_not_understood_and_shows_nothing(transaction: str | None) -> None:
    told = information(["1"])
    if transaction is None:
        del told.TransactionUID
    else:
        told.TransactionUID = transaction
    with pytest.raises(NotUnderstood, match="no transaction UID") as caught:
        report_from(1, told)
    assert all(caught.value.parts().values())
    assert "GEHEIM" not in str(caught.value)


@pytest.mark.parametrize("event_type", [0, 3, 17])
def test_another_event_is_not_understood(event_type: int) -> None:
    with pytest.raises(NotUnderstood, match=f"event type {event_type}"):
        report_from(event_type, information(["1"]))


@pytest.mark.parametrize(
    ("reason", "words", "again"),
    [
        (0x0110, "Processing failure", True),
        (0x0112, "No such object instance", True),
        (0x0213, "Resource limitation", True),
        (0x0131, "Duplicate transaction UID", True),
        (0x0122, "Referenced SOP Class not supported", False),
        (0x0119, "Class / Instance conflict", False),
        (0xBEEF, "Unknown reason", True),
    ],
)
def test_a_reason_is_told_in_words_and_says_whether_to_send_again(reason: int, words: str, again: bool) -> None:
    assert reason_word(reason) == words
    assert sends_again(reason) is again


def test_each_reason_of_the_standard_is_known() -> None:
    assert set(FAILURE_REASON_WORDS) == {0x0110, 0x0112, 0x0119, 0x0122, 0x0131, 0x0213}
