"""[edge: pynetdicom] Verification and Storage SCP, and who hears reports of storage commitment: pynetdicom, fitted.

Several processes may listen on one port: the kernel deals new connections out among them, in no order.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.presentation import PresentationContext, build_context

from service import log, timers, tls
from service.codes import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, STORAGE_COMMITMENT
from service.config import Config
from service.intake.acceptor import Acceptor, Limits
from service.intake.callers import Caller
from service.intake.commitments import CommitmentHandler
from service.intake.doors import Doors
from service.intake.encoding import is_uid
from service.intake.entrance import Entrance
from service.intake.receive import StorageHandler, storage_classes, transfer_syntaxes

_ACSE_SECONDS: Final = 10.0  # of the state machine: for the request, which has come, and for a rejected peer to hang up
GRACE_SECONDS: Final = 5.0  # for running associations when we stop
_VERIFICATION: Final = "1.2.840.10008.1.1"  # PS3.4 Annex A


class Server:
    """The open port of one process and the associations on it.

    Parameters
    ----------
    handler, commitments
        What happens to instances, and to reports of storage commitment.

    Raises
    ------
    ConfigError
        If a file for TLS is missing or is not what it should be.
    """

    def __init__(self, config: Config, handler: StorageHandler, commitments: CommitmentHandler) -> None:
        intake = config.intake
        self._storage_handler, self._commitment_handler = handler, commitments
        self._maximum, self._running, self._lock = intake.maximum_associations, set[Acceptor](), threading.Lock()
        self._limits = Limits(
            pdu_bytes=intake.maximum_pdu_bytes,
            message_bytes=intake.maximum_instance_mib << 20,
            idle_seconds=intake.idle_seconds,
        )
        self._ae = AE(intake.ae_title)
        self._ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        self._ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._ae.maximum_associations = 2 * intake.maximum_associations  # they are counted at the entrance
        self._ae.maximum_pdu_size = intake.maximum_pdu_bytes
        self._ae.acse_timeout = _ACSE_SECONDS
        syntaxes = transfer_syntaxes()
        self._contexts = [build_context(uid, syntaxes) for uid in (_VERIFICATION, *storage_classes())]
        self._contexts.append(_reports())
        self._entrance = Entrance(
            intake.host,
            intake.port,
            doors=Doors.of(config),
            secure=tls.Reloading(intake.tls) if intake.tls else None,
            associate_seconds=intake.associate_seconds,
            is_full=lambda: len(self._running) >= self._maximum,
            admit=self._admit,
        )

    def _admit(self, caller: Caller) -> None:
        association = Acceptor(self._ae, caller, self._limits, on_end=self._end)
        association.acceptor.supported_contexts = self._contexts  # not copied (30 ms for 200): nobody changes them
        association.bind(evt.EVT_C_STORE, self._storage_handler)
        association.bind(evt.EVT_N_EVENT_REPORT, self._commitment_handler)
        association.bind(evt.EVT_N_ACTION, self._commitment_handler.refuse)
        association.bind(evt.EVT_ACCEPTED, _log_refused_contexts)
        with self._lock:
            self._running.add(association)
        try:
            association.start()
        except BaseException:
            self._end(association)
            raise

    def _end(self, association: Acceptor) -> None:
        with self._lock:
            self._running.discard(association)

    def finish(self) -> None:
        """Refuse new associations, let the running ones end, and abort those that do not."""
        self._entrance.close()
        self._wait(GRACE_SECONDS)
        for association in self._now():
            association.abort(block=False)
        self._wait(1.0)

    @property
    def associations(self) -> int:
        """How many associations are open."""
        return len(self._now())

    def _now(self) -> list[Acceptor]:
        with self._lock:
            return list(self._running)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._running and time.monotonic() < until:
            time.sleep(0.02)


def serve(config: Config, handler: StorageHandler, commitments: CommitmentHandler) -> Server:
    """Open the port, beside other processes, and answer on it in threads until `Server.finish`."""
    _config.LOG_HANDLER_LEVEL = "none"  # its log lines show data sets, and cost as much as the rest
    _config.VALIDATORS["UI"] = lambda _: (True, "")  # a bad UID is refused with a status, not with an abort
    timers.make_monotonic()
    return Server(config, handler, commitments)


def _reports() -> PresentationContext:
    """The context in which a destination reports: it opens the association, and provides the service (PS3.7 D.3.3.4).

    One that proposes no roles is the service's user by default. It is accepted, for some report all the same; who
    proposes that role in words is not.
    """
    context = build_context(STORAGE_COMMITMENT)
    context.scu_role, context.scp_role = False, True  # of the requestor
    return context


def _log_refused_contexts(event: evt.Event) -> None:
    refused = {str(context.abstract_syntax) for context in event.assoc.rejected_contexts}
    if refused:
        log.warning(
            "association.contexts_refused",
            calling_ae_title=event.assoc.requestor.ae_title,
            sop_class_uids=sorted(uid for uid in refused if is_uid(uid)),
            way_out="nothing to do, unless studies are missed: these are no storage SOP classes of the standard",
        )
