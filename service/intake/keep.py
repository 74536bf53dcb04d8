"""An instance that came in, by whichever way: kept, counted, logged, and answered with a status.

It promises that every instance is answered, with a status and no exception, and that Success or a warning is answered
only after `Spool.keep` and `Store.keep_instance` have returned. So C-STORE and STOW-RS promise the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service import faults, log
from service.codes import SUCCESS
from service.errors import ClassNotTaken, IntakeError, NotUnderstood, OutOfSpace, SyntaxNotTaken, WrongClass
from service.intake.encoding import Identity, identify
from service.intake.spool import KeptFile, Spool
from service.intake.urgency import urgency
from service.settings.intake import Route
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
    ClassNotTaken: "not_supported",
    SyntaxNotTaken: "not_supported",
}
# The instance is stored, but not analysed. Of the three warnings of PS3.4 Table B.2-1, B000 says that we changed
# its elements and B006 that we dropped some: neither is true, and a sender might believe that its copy is another now.
# B007 says of the data set alone that it is not what its identifiers announce, and is stored all the same.
CONFLICTING: Final = 0xB007
_CONFLICT: Final = "other bytes under this UID: kept beside, the first stay"  # an error comment has 64 characters
FAILED: Final = "failed"  # none of the above: our fault, or the database's


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """An instance as it came in."""

    data: bytes  # the data set, without file meta group
    transfer_syntax_uid: str
    calling_ae_title: str  # who sent it; of STOW-RS, the caller's name
    called_ae_title: str = ""  # under which name we were called
    check: Callable[[Identity], None] = lambda identity: None  # raises if it is not what was announced


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a sender is told of an instance."""

    status: int  # of PS3.4 Table B.2-1; STOW-RS has the same values (PS3.18 Tables I.2-1 and I.2-2)
    comment: str = ""  # in words; no patient data
    identity: Identity | None = None  # as far as the data set could be read


class Keeper:
    """Keeps instances, for all ways in of one process. Thread-safe.

    Parameters
    ----------
    spool, store
        Where the file and its row are kept.
    on_outcome
        Told the outcome's word and the data set's size in bytes, of every instance.
    routes
        What is urgent, by sender and by the name called.
    """

    def __init__(self, spool: Spool, store: Store, on_outcome: OnOutcome, *, routes: Sequence[Route] = ()) -> None:
        self._spool, self._store, self._on_outcome, self._routes = spool, store, on_outcome, routes
        # One committing thread per process: SQLite takes one writer at a time, and lets the others wait in naps.
        self._committing = threading.Lock()

    def check_space(self, needed_bytes: int = 0) -> None:
        """Raise `OutOfSpace` if the disk has no room for so much."""
        self._spool.check_space(needed_bytes)

    def answer(self, read: Callable[[], Arrived], *, size: int, fields: dict[str, Any]) -> Answered:
        """Keep an instance and say with which status it is answered. Never raises.

        Parameters
        ----------
        read
            Says what came. What it raises is answered as if keeping had raised it.
        size
            Of the data set, in bytes.
        fields
            What the log says of it; its UIDs are added.
        """
        identity: Identity | None = None
        fields["bytes"] = size
        try:
            faults.point("receive.begun")
            self._spool.check_space(size)
            arrived = read()
            identity = identify(arrived.data, arrived.transfer_syntax_uid)
            kept = self._keep(arrived, identity, fields)
        except IntakeError as exc:
            log.warning("instance.refused", exc, status=f"{exc.status:04X}", **fields)
            self._on_outcome(_OUTCOMES.get(type(exc), FAILED), size)
            return Answered(status=exc.status, comment=exc.found, identity=identity)
        except Exception as exc:
            # Nothing is known against the instance, and A7xx is the only class that senders try again.
            log.failure("instance.failed", exc, status=f"{OutOfSpace.status:04X}", **fields)
            self._on_outcome(FAILED, size)
            return Answered(status=OutOfSpace.status, comment="internal failure, see the log", identity=identity)
        if kept is Kept.OTHER:
            log.warning("instance.conflicting", status=f"{CONFLICTING:04X}", **fields)
        elif kept is Kept.OURS:
            log.event("instance.ours", **fields)
        else:
            log.event("instance.received", outcome=_OUTCOMES[kept], **fields)
        self._on_outcome(_OUTCOMES[kept], size)
        if kept is Kept.OTHER:
            return Answered(status=CONFLICTING, comment=_CONFLICT, identity=identity)
        return Answered(status=SUCCESS, identity=identity)

    def _keep(self, arrived: Arrived, identity: Identity, fields: dict[str, Any]) -> Kept:
        fields |= {
            "sop_instance_uid": identity.sop_instance_uid,
            "series_instance_uid": identity.series_instance_uid,
            "study_instance_uid": identity.study_instance_uid,
        }
        arrived.check(identity)
        kept, file = self._keep_once(arrived, identity)
        while kept is not Kept.OURS and not file.path.exists():
            # Retention removed the study's files between the two. Now the study's row says that one came: it stays.
            _, file = self._keep_once(arrived, identity)
        if kept is Kept.OURS:
            # Its frozen bytes lie elsewhere. But where it came before we made it (another Overread, with the same
            # model, derives the same UIDs), its row names this file.
            named, _ = self._store.files_of(identity.study_instance_uid)
            if file.path.name not in {path.name for path in named}:
                self._spool.forget(file.path)
        else:
            faults.point("instance.committed")
        return kept

    def _keep_once(self, arrived: Arrived, identity: Identity) -> tuple[Kept, KeptFile]:
        """The file, then its row."""
        file = self._spool.keep(
            arrived.data,
            identity=identity,
            transfer_syntax_uid=arrived.transfer_syntax_uid,
            calling_ae_title=arrived.calling_ae_title,
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
                source=arrived.calling_ae_title.strip()[:16],
                priority=urgency(
                    self._routes,
                    calling_ae_title=arrived.calling_ae_title,
                    called_ae_title=arrived.called_ae_title,
                    requested=identity.requested_priority,
                ),
            )
        return kept, file
