"""[edge: pynetdicom] What happens to one C-STORE request, and what is offered to its senders.

What it promises of an instance is `keep.py`'s promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from pydicom import Dataset
from pydicom._uid_dict import UID_dictionary
from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE

from service.errors import WrongClass
from service.intake.encoding import Identity, is_uid
from service.intake.keep import Arrived, Keeper, OnOutcome
from service.intake.spool import Spool
from service.settings.intake import Route
from service.store import Store

# Storage by name, but of objects that belong to no study (PS3.4 Annex GG), or of media (PS3.10).
_NO_STUDY: Final = (
    *("1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.201.1"),
    *(f"1.2.840.10008.5.1.4.1.1.200.{n}" for n in (1, 3, 7)),
    *(f"1.2.840.10008.5.1.4.{n}.1" for n in (38, 39, 43, 44, 45)),
)
# Not encodings of a data set on the network, or nobody's: MIME, XML, Papyrus.
_NO_ENCODING: Final = ("1.2.840.10008.1.2.6.1", "1.2.840.10008.1.2.6.2", "1.2.840.10008.1.20")


def storage_classes() -> list[str]:
    """Every storage SOP class of the standard (PS3.4 section B.5), retired ones too."""
    known = {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
    named = {
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and "Commitment" not in name and uid not in _NO_STUDY
    }
    return sorted(known | named)


def transfer_syntaxes() -> list[str]:
    """Every transfer syntax of the standard, retired ones too; explicit VR first, as it keeps private VRs."""
    named = {
        uid for uid, (_, kind, *_) in UID_dictionary.items() if kind == "Transfer Syntax" and uid not in _NO_ENCODING
    }
    everything = sorted({str(uid) for uid in ALL_TRANSFER_SYNTAXES} | named)
    return sorted(everything, key=lambda uid: (uid != "1.2.840.10008.1.2.1", uid != "1.2.840.10008.1.2"))


class StorageHandler:
    """What happens to one C-STORE request (PS3.4 Annex B). Never raises.

    Parameters
    ----------
    spool, store, on_outcome, routes
        As of `Keeper`.
    """

    def __init__(self, spool: Spool, store: Store, on_outcome: OnOutcome, *, routes: Sequence[Route] = ()) -> None:
        self._keeper = Keeper(spool, store, on_outcome, routes=routes)

    def __call__(self, event: evt.Event) -> int | Dataset:
        """Keep the instance and answer its status, by PS3.4 Table B.2-1."""
        request, context = cast(C_STORE, event.request), event.context
        data = request.DataSet.getvalue() if request.DataSet else b""
        fields: dict[str, Any] = {"calling_ae_title": event.assoc.requestor.ae_title}
        if is_uid(str(request.AffectedSOPInstanceUID)):  # else it might be anything, a patient's name too
            fields["sop_instance_uid"] = str(request.AffectedSOPInstanceUID)

        def check(identity: Identity) -> None:
            announced = (str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
            found = (identity.sop_class_uid, identity.sop_instance_uid)
            if announced != found or context.abstract_syntax != announced[0]:
                raise WrongClass(
                    doing="comparing a C-STORE request with its data set",
                    found="SOP class or instance UID differ between context, command and data set",
                    rule="they are the same (PS3.4 B.2.3, PS3.7 9.1.1.1)",
                    way_out="send the instance again with its own UIDs; the sender's router or coercion rules are at "
                    "fault",
                )

        def read() -> Arrived:
            return Arrived(
                data=data,
                transfer_syntax_uid=str(context.transfer_syntax),
                calling_ae_title=event.assoc.requestor.ae_title,
                called_ae_title=_called(event),
                check=check,
            )

        answered = self._keeper.answer(read, size=len(data), fields=fields)
        return _answer(answered.status, answered.comment) if answered.comment else answered.status


def _called(event: evt.Event) -> str:
    """The name under which the sender called us, without padding (PS3.8 Table 9-11)."""
    request = event.assoc.requestor.primitive
    return str(request.called_ae_title or "").strip() if request else ""


def _answer(status: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status, answer.ErrorComment = status, comment[:64]  # LO: 64 characters (PS3.7 9.1.1.1.9)
    return answer
