"""[edge: pynetdicom] Verification and Storage SCP: pynetdicom, fitted.

It promises that no instance ends an association, that a connection which is no association costs nothing, and that
several processes may listen on one port: the kernel deals new connections out among them, in no order.
"""

from __future__ import annotations

import select
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Final, cast

from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import build_context
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from service import log
from service.codes import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from service.config import Intake
from service.intake.encoding import is_uid
from service.intake.receive import StorageHandler, storage_classes, transfer_syntaxes

MAXIMUM_ASSOCIATIONS: Final = 64  # per process
_MAXIMUM_CONNECTIONS: Final = 256  # threads per process; more connections are closed at once
_MAXIMUM_PDU: Final = 1 << 20  # bytes we offer to take at once; DCMTK sends 128 kB at most, others follow
_ASSOCIATE_SECONDS: Final = 10.0  # from the connection to the association request
_STALL_SECONDS: Final = 60.0  # a peer that stops in the middle of a PDU
_IDLE_SECONDS: Final = 180.0  # an open association without a message; longer than a database may be locked (60 s)
GRACE_SECONDS: Final = 5.0  # for running associations when we stop
TICK_SECONDS: Final = 0.25  # between two looks at whether to stop
_VERIFICATION: Final = "1.2.840.10008.1.1"  # PS3.4 Annex A


class _Socket(AssociationSocket):
    """Fewer, larger reads; and waiting for data instead of sleeping beside it."""

    @property
    def ready(self) -> bool:
        if self.socket is not None and self._is_connected:
            # pynetdicom polls, then sleeps for 1 ms. This wakes at once when data come; 1 ms bounds what is to go out.
            # On an error the poll below says what it means.
            with suppress(OSError, ValueError):
                select.select([self.socket], [], [], 0.001)
        return super().ready

    def recv(self, nr_bytes: int) -> bytearray:
        received = bytearray()
        while self.socket is not None and len(received) < nr_bytes:
            piece = self.socket.recv(min(nr_bytes - len(received), 1 << 18))
            if not piece:
                break
            received += piece
        return received


class _Association(Association):
    """Answers C-STORE requests that pynetdicom would abort over, or leave without an answer."""

    def _serve_request(self, msg: Any, context_id: int) -> None:
        # By the context, not by the command: an unknown class there would end the association; so would a request
        # without data set or priority wait for an answer for ever.
        if isinstance(msg, C_STORE) and msg.MessageID is not None and context_id in self._accepted_cx:
            StorageServiceClass(self).SCP(msg, self._accepted_cx[context_id])
        else:
            super()._serve_request(msg, context_id)


class _Request(RequestHandler):
    server: Server

    def handle(self) -> None:
        # Before an association is made: load balancers connect and hang up, scanners talk HTTP. Neither leaves a trace.
        self.request.settimeout(_ASSOCIATE_SECONDS)
        try:
            first = self.request.recv(1, socket.MSG_PEEK)
        except OSError:
            first = b""
        if first != b"\x01":  # A-ASSOCIATE-RQ (PS3.8 section 9.3.2)
            self.server.shutdown_request(self.request)
            return
        self.request.settimeout(_STALL_SECONDS)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().handle()

    def _create_association(self) -> Association:
        # As pynetdicom does it, with our own classes, and without copying 200 contexts (30 ms) that nobody changes.
        server, ae = self.server, self.ae
        assoc = _Association(ae, MODE_ACCEPTOR)
        assoc.name = f"AcceptorThread@{self.client_address}"  # pynetdicom finds its associations by this name
        assoc._server = server
        assoc.set_socket(_Socket(assoc, client_socket=self.request))
        assoc.dul._run_loop_delay = 0.0  # `_Socket.ready` waits in its place
        assoc.dul.daemon = True
        assoc.acceptor.maximum_length = ae.maximum_pdu_size
        assoc.acceptor.ae_title = server.ae_title
        assoc.acceptor.address_info = self.local
        assoc.acceptor.implementation_class_uid = ae.implementation_class_uid
        assoc.acceptor.implementation_version_name = ae.implementation_version_name
        assoc.acceptor.supported_contexts = server.contexts
        assoc.requestor.address_info = self.remote
        assoc.bind(evt.EVT_C_STORE, server.storage_handler)
        assoc.bind(evt.EVT_ACCEPTED, _log_refused_contexts)
        return assoc


class Server(ThreadedAssociationServer):
    """The open port of one process."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    storage_handler: StorageHandler

    def server_bind(self) -> None:
        cast(socket.socket, self.socket).setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return threading.active_count() < _MAXIMUM_CONNECTIONS

    def handle_error(self, request: Any, client_address: Any) -> None:
        exc = sys.exception()
        if exc:
            log.failure("connection.failed", exc)


def serve(intake: Intake, handler: StorageHandler) -> Server:
    """Open the port, beside other processes, and answer on it in threads until `finish`."""
    _config.LOG_HANDLER_LEVEL = "none"  # its log lines show data sets, and cost as much as the rest
    _config.VALIDATORS["UI"] = lambda _: (True, "")  # a bad UID is refused with a status, not with an abort
    ae = AE(intake.ae_title)
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_associations = MAXIMUM_ASSOCIATIONS
    ae.maximum_pdu_size = _MAXIMUM_PDU
    ae.acse_timeout, ae.network_timeout = _ASSOCIATE_SECONDS, _IDLE_SECONDS
    syntaxes = transfer_syntaxes()
    contexts = [build_context(uid, syntaxes) for uid in (_VERIFICATION, *storage_classes())]
    server = Server(ae, (intake.host, intake.port), intake.ae_title, contexts, request_handler=_Request)
    server.storage_handler = handler
    ae._servers.append(server)
    threading.Thread(target=server.serve_forever, args=(TICK_SECONDS,), daemon=True).start()
    return server


def finish(server: Server) -> None:
    """Refuse new associations, let the running ones end, and abort those that do not."""
    server.shutdown()
    until = time.monotonic() + GRACE_SECONDS
    while server.active_associations and time.monotonic() < until:
        time.sleep(0.02)
    for association in server.active_associations:
        association.abort(block=False)
    until = time.monotonic() + 1.0
    while server.active_associations and time.monotonic() < until:
        time.sleep(0.02)


def _log_refused_contexts(event: evt.Event) -> None:
    refused = {str(context.abstract_syntax) for context in event.assoc.rejected_contexts}
    if refused:
        log.warning(
            "association.contexts_refused",
            calling_ae_title=event.assoc.requestor.ae_title,
            sop_class_uids=sorted(uid for uid in refused if is_uid(uid)),
            way_out="nothing to do, unless studies are missed: these are no storage SOP classes of the standard",
        )
