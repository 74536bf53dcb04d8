"""[edge: pynetdicom] Verification and Storage SCP: several processes on one port, an answer to every C-STORE.

It promises that Success is sent only after `Spool.keep` and `Store.keep_instance` have returned, that no instance ends
an association, and that a process which dies is replaced. It does not promise an order among the processes: the kernel
deals new connections out among them.
"""

from __future__ import annotations

import errno
import multiprocessing
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final, cast

from pydicom import Dataset
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import build_context
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from service import log
from service.codes import SUCCESS
from service.config import Config, Intake
from service.errors import ConfigError, IntakeError, NotUnderstood, OutOfSpace, WrongClass
from service.intake.spool import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, Spool, identify, is_uid
from service.store import Kept, Store, database_url

OnOutcome = Callable[[str, int], None]

MAXIMUM_ASSOCIATIONS: Final = 64  # per process
_MAXIMUM_CONNECTIONS: Final = 256  # threads per process; more connections are closed at once
_MAXIMUM_PDU: Final = 1 << 20  # bytes we offer to take at once; DCMTK sends 128 kB at most, others follow
_ASSOCIATE_SECONDS: Final = 10.0  # from the connection to the association request
_STALL_SECONDS: Final = 60.0  # a peer that stops in the middle of a PDU
_IDLE_SECONDS: Final = 180.0  # an open association without a message; longer than a database may be locked (60 s)
_GRACE_SECONDS: Final = 5.0  # for running associations when we stop
_START_SECONDS: Final = 60.0  # for all processes to listen
_PAUSE_SECONDS: Final = 1.0  # before a dead process is replaced
_TICK_SECONDS: Final = 0.25

_OUTCOMES: Final = {
    Kept.NEW: "received",
    Kept.SAME: "repeated",
    Kept.OTHER: "conflicting",
    OutOfSpace: "out_of_space",
    WrongClass: "wrong_class",
    NotUnderstood: "not_understood",
}
_VERIFICATION: Final = "1.2.840.10008.1.1"  # PS3.4 Annex A
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


# --- One instance ---------------------------------------------------------------------------------------------------


class StorageHandler:
    """What happens to one C-STORE request (PS3.4 Annex B). Never raises.

    Parameters
    ----------
    spool, store
        Where the file and its row are kept.
    on_outcome
        Told the outcome's word and the data set's size in bytes, on every request.
    """

    def __init__(self, spool: Spool, store: Store, on_outcome: OnOutcome) -> None:
        self._spool, self._store, self._on_outcome = spool, store, on_outcome
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
            return self._store.keep_instance(
                study_uid=identity.study_instance_uid,
                series_uid=identity.series_instance_uid,
                sop_uid=identity.sop_instance_uid,
                class_uid=identity.sop_class_uid,
                sha256=file.sha256,
                path=file.path,
                now=time.time(),
            )


def _answer(status: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status, answer.ErrorComment = status, comment[:64]  # LO: 64 characters (PS3.7 9.1.1.1.9)
    return answer


def _log_refused_contexts(event: evt.Event) -> None:
    refused = {str(context.abstract_syntax) for context in event.assoc.rejected_contexts}
    if refused:
        log.warning(
            "association.contexts_refused",
            calling_ae_title=event.assoc.requestor.ae_title,
            sop_class_uids=sorted(uid for uid in refused if is_uid(uid)),
            way_out="nothing to do, unless studies are missed: these are no storage SOP classes of the standard",
        )


# --- pynetdicom, fitted ---------------------------------------------------------------------------------------------


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
    server: _Server

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


class _Server(ThreadedAssociationServer):
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


def _serve(intake: Intake, handler: StorageHandler) -> _Server:
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
    server = _Server(ae, (intake.host, intake.port), intake.ae_title, contexts, request_handler=_Request)
    server.storage_handler = handler
    ae._servers.append(server)
    threading.Thread(target=server.serve_forever, args=(_TICK_SECONDS,), daemon=True).start()
    return server


def _finish(server: _Server) -> None:
    """Refuse new associations, let the running ones end, and abort those that do not."""
    server.shutdown()
    until = time.monotonic() + _GRACE_SECONDS
    while server.active_associations and time.monotonic() < until:
        time.sleep(0.02)
    for association in server.active_associations:
        association.abort(block=False)
    until = time.monotonic() + 1.0
    while server.active_associations and time.monotonic() < until:
        time.sleep(0.02)


# --- Processes ------------------------------------------------------------------------------------------------------


def run_receiver(config: Config, channel: Connection) -> None:
    """Run one receiving process until the other end of the channel says so, or is gone with its process.

    Parameters
    ----------
    channel
        Its other end gets lists of outcomes (word, bytes); the first one, empty, when the port is open.
    """
    log.set_up()
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the parent's business
    outcomes: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()

    def report() -> None:
        with suppress(OSError):  # the parent is gone: nobody to report to
            channel.send([outcomes.get() for _ in range(outcomes.qsize())])

    try:
        spool = Spool(config.store.directory, int(config.intake.minimum_free_gib * 2**30))
        store = Store(database_url(config.store.directory, config.store.database))
        server = _serve(config.intake, StorageHandler(spool, store, lambda word, size: outcomes.put((word, size))))
        log.event("receiver.listening", host=config.intake.host, port=config.intake.port, swept=spool.sweep())
    except Exception as exc:
        log.failure("receiver.failed", exc)
        raise SystemExit(1) from None
    report()
    while not channel.poll(_TICK_SECONDS) and not terminated.is_set():
        if not outcomes.empty():
            report()
    _finish(server)
    report()
    store.close()
    log.event("receiver.stopped")


class Receivers:
    """The receiving processes; one that dies is replaced.

    Parameters
    ----------
    on_outcome
        Called in this process, by one thread, for each C-STORE request: the outcome's word and the bytes.
    """

    def __init__(self, config: Config, on_outcome: OnOutcome = lambda word, size: None) -> None:
        self._config, self._on_outcome = config, on_outcome
        self._running: dict[Connection, SpawnProcess] = {}
        self._listening: set[Connection] = set()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="receivers", daemon=True)

    def start(self) -> None:
        """Start the processes and return when all of them listen.

        Raises
        ------
        ConfigError
            If the port can't be had, or a process does not come up.
        """
        _check_port(self._config.intake)
        for _ in range(self._config.intake.processes):
            self._launch()
        self._watcher.start()
        until = time.monotonic() + _START_SECONDS
        while len(self._listening) < self._config.intake.processes:
            if time.monotonic() > until:
                self.stop()
                raise ConfigError(
                    doing="starting the receiving processes",
                    found=f"they do not all listen after {_START_SECONDS:.0f} s",
                    rule="each opens the port, the spool and the database",
                    way_out="see the lines receiver.failed in the log",
                )
            time.sleep(0.01)

    def alive(self) -> int:
        """How many processes are listening."""
        return len(self._listening)

    def stop(self) -> None:
        """Refuse new associations, give the running ones a few seconds, and end the processes."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for channel in self._running:
            with suppress(OSError):
                channel.send("stop")
        until = time.monotonic() + _GRACE_SECONDS + 3.0
        while self._running and time.monotonic() < until:
            self._read(_TICK_SECONDS)
        for channel, process in self._running.items():
            process.kill()  # it had its time; what it did not acknowledge, its sender still has
            process.join()
            channel.close()
        self._running.clear()
        self._listening.clear()

    def _launch(self) -> None:
        context = multiprocessing.get_context("spawn")  # threads and database connections do not survive a fork
        ours, theirs = context.Pipe()
        process = context.Process(target=run_receiver, args=(self._config, theirs), name="receiver", daemon=True)
        process.start()
        theirs.close()  # so that the death of either process closes the channel
        self._running[ours] = process

    def _watch(self) -> None:
        while not self._stopping.is_set():
            died = self._read(_TICK_SECONDS)
            if died and not self._stopping.wait(_PAUSE_SECONDS):
                for _ in range(died):
                    self._launch()

    def _read(self, seconds: float) -> int:
        """Pass on what the processes say; return how many of them are gone."""
        gone = 0
        for channel in wait(list(self._running), seconds):
            assert isinstance(channel, Connection)
            try:
                outcomes = channel.recv()
            except (EOFError, OSError):
                gone += 1
                process = self._running.pop(channel)
                self._listening.discard(channel)
                channel.close()
                process.join()
                if not self._stopping.is_set():
                    log.warning("receiver.died", exit_code=process.exitcode)
                continue
            self._listening.add(channel)
            for word, size in outcomes:
                self._on_outcome(word, size)
        return gone


def _check_port(intake: Intake) -> None:
    # With SO_REUSEPORT a second program of the same user would share the port in silence, so ask without it. Processes
    # of a killed predecessor need a moment to notice, hence the patience.
    until = time.monotonic() + _GRACE_SECONDS + 3.0
    while True:
        try:
            family, kind, _, _, address = socket.getaddrinfo(intake.host, intake.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise ConfigError(
                    doing=f"opening the DICOM port {intake.host}:{intake.port}",
                    found=exc.strerror or type(exc).__name__,
                    rule="intake.host is an address of this machine, and intake.port is free and permitted",
                    way_out="end the other program, or choose another host or port",
                ) from exc
            time.sleep(_TICK_SECONDS)
