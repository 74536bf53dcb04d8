"""[edge: pynetdicom] What happens to one C-STORE request, and what is offered to its senders.

It promises that every request is answered, with a status and no exception, and that Success is answered only after
`Spool.keep` and `Store.keep_instance` have returned.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from pydicom import Dataset
from pydicom._uid_dict import UID_dictionary
from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE

from service import log
from service.codes import SUCCESS
from service.config import Route
from service.errors import IntakeError, NotUnderstood, OutOfSpace, WrongClass
from service.intake.encoding import identify, is_uid
from service.intake.spool import Spool
from service.intake.urgency import urgency
from service.store import Store
from service.types import Kept

OnOutcome = Callable[[str, int], None]

_OUTCOMES: Final = {
    Kept.NEW: "received",
    Kept.SAME: "repeated",
    Kept.OTHER: "conflicting",
    Kept.OURS: "ours",
    OutOfSpace: "out_of_space",
    WrongClass: "wrong_class",
    NotUnderstood: "not_understood",
}
FAILED: Final = "failed"  # none of the above: our fault, or the database's

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
    spool, store
        Where the file and its row are kept.
    routes
        What is urgent, by sender and by the name called.
    on_outcome
        Told the outcome's word and the data set's size in bytes, on every request.
    """

    def __init__(self, spool: Spool, store: Store, on_outcome: OnOutcome, *, routes: Sequence[Route] = ()) -> None:
        self._spool, self._store, self._on_outcome, self._routes = spool, store, on_outcome, routes
        # One committing thread per process: SQLite takes one writer at a time, and lets the others wait in naps.
        self._committing = threading.Lock()

    def __call__(self, event: evt.Event) -> int | Dataset:
        """Keep the instance and answer its status, by PS3.4 Table B.2-1."""
        request, size = cast(C_STORE, event.request), 0
        fields: dict[str, Any] = {"calling_ae_title": event.assoc.requestor.ae_title}
        if is_uid(str(request.AffectedSOPInstanceUID)):  # else it might be anything, a patient's name too
            fields["sop_instance_uid"] = str(request.AffectedSOPInstanceUID)
        try:
            data = request.DataSet.getvalue() if request.DataSet else b""
            fields["bytes"] = size = len(data)
            self._spool.check_space(size)
            kept = self._keep(event, data, fields)
        except IntakeError as exc:
            log.warning("instance.refused", exc, status=f"{exc.status:04X}", **fields)
            self._on_outcome(_OUTCOMES.get(type(exc), FAILED), size)
            return _answer(exc.status, exc.found)
        except Exception as exc:
            # Nothing is known against the instance, and A7xx is the only class that senders try again.
            log.failure("instance.failed", exc, status=f"{OutOfSpace.status:04X}", **fields)
            self._on_outcome(FAILED, size)
            return _answer(OutOfSpace.status, "internal failure, see the log")
        if kept is Kept.OTHER:
            log.warning("instance.conflicting", **fields)
        elif kept is Kept.OURS:
            log.event("instance.ours", **fields)
        else:
            log.event("instance.received", outcome=_OUTCOMES[kept], **fields)
        self._on_outcome(_OUTCOMES[kept], size)
        return SUCCESS

    def _keep(self, event: evt.Event, data: bytes, fields: dict[str, Any]) -> Kept:
        request, context = cast(C_STORE, event.request), event.context
        identity = identify(data, str(context.transfer_syntax))
        fields |= {
            "sop_instance_uid": identity.sop_instance_uid,
            "series_instance_uid": identity.series_instance_uid,
            "study_instance_uid": identity.study_instance_uid,
        }
        announced = (str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        if announced != (identity.sop_class_uid, identity.sop_instance_uid) or context.abstract_syntax != announced[0]:
            raise WrongClass(
                doing="comparing a C-STORE request with its data set",
                found="SOP class or instance UID differ between context, command and data set",
                rule="they are the same (PS3.4 B.2.3, PS3.7 9.1.1.1)",
                way_out="send the instance again with its own UIDs; the sender's router or coercion rules are at fault",
            )
        file = self._spool.keep(
            data,
            identity=identity,
            transfer_syntax_uid=str(context.transfer_syntax),
            calling_ae_title=fields["calling_ae_title"],
        )
        with self._committing:
            kept = self._store.keep_instance(
                study_uid=identity.study_instance_uid,
                series_uid=identity.series_instance_uid,
                sop_uid=identity.sop_instance_uid,
                class_uid=identity.sop_class_uid,
                sha256=file.sha256,
                path=file.path,
                now=time.time(),
                priority=urgency(
                    self._routes,
                    calling_ae_title=fields["calling_ae_title"],
                    called_ae_title=_called(event),
                    requested=identity.requested_priority,
                ),
            )
        if kept is Kept.OURS:
            # Its frozen bytes lie elsewhere. But where it came before we made it (another Overread, with the same
            # model, derives the same UIDs), its row names this file.
            named, _ = self._store.files_of(identity.study_instance_uid)
            if file.path.name not in {path.name for path in named}:
                self._spool.forget(file.path)
        return kept


def _called(event: evt.Event) -> str:
    """The name under which the sender called us, without padding (PS3.8 Table 9-11)."""
    request = event.assoc.requestor.primitive
    return str(request.called_ae_title or "").strip() if request else ""


def _answer(status: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status, answer.ErrorComment = status, comment[:64]  # LO: 64 characters (PS3.7 9.1.1.1.9)
    return answer
