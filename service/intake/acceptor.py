"""[edge: pynetdicom] An association that somebody else has opened, with limits that pynetdicom does not have.

It promises that no instance ends it; that a PDU which is longer than we said we take is not read, an instance that
grows too large not kept in memory, and a sender that stops or trickles in the middle of a PDU not waited for.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from pynetdicom import AE
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE, N_ACTION, N_EVENT_REPORT
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.service_class_n import StorageCommitmentServiceClass
from pynetdicom.transport import AddressInformation, AssociationSocket

from service import audit, faults
from service.codes import STORAGE_COMMITMENT
from service.errors import CallerRefused
from service.intake.callers import Caller, refuse

_STALL_SECONDS: Final = 60.0  # at most, without a byte in the middle of a PDU
_SLACK: Final = 1024  # bytes that a PDU may be longer than agreed: some count its head, or items, too
_PIECE: Final = 1 << 18  # bytes read at once
# States and events of PS3.8 Table 9-10.
_REQUESTED, _ENDING = "Sta2", "Sta13"  # the request is awaited; the end of the connection is
_IGNORED, _CLOSED, _INVALID = "Evt10", "Evt17", "Evt19"  # data; the connection was closed; a PDU that is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one association may ask of us."""

    pdu_bytes: int
    message_bytes: int  # of an instance with its command
    idle_seconds: float  # without a message, or for one PDU


class Acceptor(Association):
    """One association, served by a thread of its own from `start` on.

    Parameters
    ----------
    on_end
        Called once, at its end, however that comes.
    """

    def __init__(self, ae: AE, caller: Caller, limits: Limits, *, on_end: Callable[[Acceptor], None]) -> None:
        super().__init__(ae, MODE_ACCEPTOR)
        self.name = f"Acceptor@{caller.host}"
        self.limits, self.host, self._on_end = limits, caller.host, on_end
        self._titles = caller.titles
        self._is_refused = False
        # How many instances of each SOP class were kept, by study.
        self._kept: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.dul, self.dimse = _Provider(self), _Messages(self)
        self.acse_timeout, self.network_timeout = ae.acse_timeout, limits.idle_seconds  # set on the provider replaced
        caller.line.settimeout(min(_STALL_SECONDS, limits.idle_seconds))
        with suppress(OSError):
            caller.line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.set_socket(_Socket(self, caller))
        self.acceptor.maximum_length = ae.maximum_pdu_size
        self.acceptor.ae_title = ae.ae_title
        self.acceptor.address_info = AddressInformation.from_tuple(caller.line.getsockname())
        self.acceptor.implementation_class_uid = ae.implementation_class_uid
        self.acceptor.implementation_version_name = ae.implementation_version_name
        self.requestor.address_info = AddressInformation.from_tuple(caller.peer)

    def run(self) -> None:
        """Serve it to its end."""
        try:
            super().run()
            for study_uid, instances in self._kept.items():
                audit.transferred(
                    incoming=True,
                    study_uid=study_uid,
                    peer=self._titles["calling_ae_title"],
                    address=self.host,
                    instances=instances,
                )
        finally:
            line = self.dul.socket
            if line is not None and line.socket is not None:
                line._shutdown_socket()
            self._on_end(self)

    def refuse(self, found: str, rule: str, way_out: str) -> None:
        """Say why it is ended, once."""
        if not self._is_refused:
            self._is_refused = True
            error = CallerRefused(doing="receiving on an association", found=found, rule=rule, way_out=way_out)
            refuse("association.aborted", error, audit.Alert.RESTRICTED_FUNCTION, address=self.host, **self._titles)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        # By the context, not by the command: an unknown class there would end the association; so would a request
        # without data set or priority wait for an answer for ever.
        context = self._accepted_cx.get(context_id)
        if context is None or getattr(msg, "MessageID", None) is None:
            super()._serve_request(msg, context_id)
        elif isinstance(msg, C_STORE):
            StorageServiceClass(self).SCP(msg, context)
            faults.point("receive.replied")
        elif isinstance(msg, N_EVENT_REPORT | N_ACTION) and context.abstract_syntax == STORAGE_COMMITMENT:
            # Whatever role was negotiated: some PACS report without having asked for the provider's.
            StorageCommitmentServiceClass(self).SCP(msg, context)
        else:
            super()._serve_request(msg, context_id)


def note_kept(study_uid: str, class_uid: str) -> None:
    """Count an instance for the association that this thread serves, if it does, for the audit trail."""
    association = threading.current_thread()
    if isinstance(association, Acceptor):
        association._kept[study_uid][class_uid] += 1


class _Socket(AssociationSocket):
    """Fewer, larger reads; waiting for data instead of sleeping beside it; and what was read before comes first."""

    def __init__(self, association: Acceptor, caller: Caller) -> None:
        super().__init__(association, client_socket=caller.line)
        self.ahead = caller.request
        self._seconds = association.limits.idle_seconds
        self._poll = select.poll()  # unlike select(2), it knows descriptors above 1023
        self._poll.register(caller.line, select.POLLIN)

    @property
    def ready(self) -> bool:
        line = self.socket
        if line is None or not self._is_connected:
            return False
        if self.ahead or (isinstance(line, ssl.SSLSocket) and line.pending()):  # poll(2) does not know of either
            return True
        if line.fileno() < 0:  # closed, by an abort
            self.event_queue.put(_CLOSED)
            return False
        # pynetdicom polls, then sleeps for 1 ms. This wakes at once when data come; 1 ms bounds what is to go out.
        return bool(self._poll.poll(1))

    def recv(self, nr_bytes: int) -> bytearray:
        received, self.ahead = self.ahead[:nr_bytes], self.ahead[nr_bytes:]
        until = 0.0
        while self.socket is not None and len(received) < nr_bytes:
            piece = self.socket.recv(min(nr_bytes - len(received), _PIECE))
            if not piece:
                break
            received += piece
            if len(received) < nr_bytes:
                until = until or time.monotonic() + self._seconds
                if time.monotonic() > until:
                    raise TimeoutError
        return received

    def _shutdown_socket(self) -> None:
        # pynetdicom's leaves a line open that the peer has reset.
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                self.socket.close()


class _Provider(DULServiceProvider):
    """Reads no PDU that is longer than agreed, and nothing more once the association is to end."""

    socket: _Socket | None

    def __init__(self, association: Acceptor) -> None:
        super().__init__(association)
        self.daemon = True
        self._run_loop_delay = 0.0  # `_Socket.ready` waits in its place
        self._acceptor = association

    def _is_transport_event(self) -> bool:
        if self.state_machine.current_state != _ENDING and not self._acceptor.dimse.msg_queue.empty():
            # A request waits behind the one that is served, though we take one at a time (PS3.7 D.3.3.3): enough.
            time.sleep(0.001)
            return False
        return super()._is_transport_event()

    def _read_pdu_data(self) -> None:
        """Read a PDU and tell the state machine, as pynetdicom does it but for the limits."""
        try:
            self.event_queue.put(self._read())
        except OSError as exc:
            if isinstance(exc, TimeoutError):
                self._acceptor.refuse(
                    "the sender stopped, or trickles, in the middle of a PDU",
                    f"a PDU comes within {self._acceptor.limits.idle_seconds:g} s ([intake] idle_seconds), and does "
                    f"not stop for {_STALL_SECONDS:g} s",
                    "look at the sender and the network",
                )
            self.event_queue.put(_CLOSED)

    def _read(self) -> str:
        """Read a PDU and keep it; what happened, as an event of PS3.8 Table 9-10."""
        line, state = self.socket, self.state_machine.current_state
        if line is None or line.socket is None:
            return _CLOSED
        if state == _ENDING and line.socket.recv(_PIECE):
            return _IGNORED  # we have aborted, or answered its release: what still comes is thrown away
        head = bytearray() if state == _ENDING else line.recv(6)
        if len(head) < 6:
            return _CLOSED
        length = struct.unpack_from(">L", head, 2)[0]
        if length > self._acceptor.limits.pdu_bytes + _SLACK and state != _REQUESTED:  # that has been measured
            self._acceptor.refuse(
                f"a PDU of {length} bytes",
                f"none is longer than the {self._acceptor.limits.pdu_bytes} bytes that we offer (PS3.8 section D.1)",
                "look at the sender; [intake] maximum_pdu_bytes is what it is told",
            )
            return _INVALID
        body = line.recv(length)
        if len(body) < length:
            return _CLOSED
        try:
            pdu, event = self._decode_pdu(head + body)
        except Exception:  # whatever comes of bytes from anybody
            return _INVALID
        self._recv_pdu.put(pdu)
        return event


class _Messages(DIMSEServiceProvider):
    """Holds no message that grows too large."""

    def __init__(self, association: Acceptor) -> None:
        super().__init__(association)
        self._acceptor, self._size = association, 0

    def receive_primitive(self, primitive: P_DATA) -> None:
        self._size += sum(len(data) for _, data in primitive.presentation_data_value_list)
        if self._size > self._acceptor.limits.message_bytes:
            self.message = None
            self._acceptor.refuse(
                f"an instance of more than {self._acceptor.limits.message_bytes >> 20} MiB",
                "none is larger than [intake] maximum_instance_mib",
                "raise maximum_instance_mib if the machine has memory for some of them at the same time",
            )
            self.dul.event_queue.put(_INVALID)
            return
        super().receive_primitive(primitive)
        if self.message is None:
            self._size = 0
