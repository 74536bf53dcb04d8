"""A receiver in this process, so that a test sees what it logs and audits; and callers that do not behave."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import _config
from pynetdicom.association import Association

from service import audit
from service.config import Config
from service.intake import scp
from service.intake.commitments import CommitmentHandler
from service.intake.processes import _NotingStore
from service.intake.receive import StorageHandler
from service.intake.spool import Spool
from service.settings.store import StoreSection
from service.tables import database_url
from tests.integration.receiver import wait
from tests.support import free_port

REQUEST = b"\x01\x00\x00\x00\x00\xd0\x00\x01\x00\x00"  # an A-ASSOCIATE-RQ begins


@dataclass(kw_only=True)
class Door:
    """An open port, and what was said about those who came."""

    port: int
    server: scp.Server
    caplog: pytest.LogCaptureFixture
    alerts: list[tuple[audit.Alert, str, str, str]] = field(default_factory=list)  # kind, words, user, address
    transfers: list[dict[str, Any]] = field(default_factory=list)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The fields of the log lines of an event."""
        records = [record for record in self.caplog.records if record.message == event]
        return [dict(vars(record).get("fields", {})) for record in records]

    def connect(self, address: str = "127.0.0.1") -> socket.socket:
        """A connection, and nothing on it."""
        line = socket.create_connection(("127.0.0.1", self.port), timeout=20, source_address=(address, 0))
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return line


@contextmanager
def opened(
    directory: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    routes: Any = (),
    destinations: Any = (),
    **intake: Any,
) -> Iterator[Door]:
    """A port with these keys of ``[intake]``, in this process."""
    intake = {"port": free_port(), "minimum_free_gib": 0} | intake
    config = Config.model_validate({"intake": intake, "routes": routes, "destinations": destinations}).model_copy(
        update={"store": StoreSection(directory=directory)}
    )
    directory.mkdir(parents=True, exist_ok=True)
    store = _NotingStore(database_url(directory, ""))
    store.create_tables()
    caplog.set_level(logging.INFO, "overread")
    before = _config.LOG_HANDLER_LEVEL, _config.VALIDATORS["UI"]
    handler = StorageHandler(Spool(directory, 0), store, lambda word, size: None)
    server = scp.serve(config, handler, CommitmentHandler(store))
    door = Door(port=config.intake.port, server=server, caplog=caplog)

    def alert(kind: audit.Alert, *, words: str, user: str = "", address: str = "", succeeded: bool = False) -> None:
        door.alerts.append((kind, words, user, address))

    def transferred(*, instances: Mapping[str, int], **about: Any) -> None:
        door.transfers.append(about | {"instances": dict(instances)})

    monkeypatch.setattr(audit, "alert", alert)
    monkeypatch.setattr(audit, "transferred", transferred)
    try:
        yield door
    finally:
        server.finish()
        store.close()
        _config.LOG_HANDLER_LEVEL, _config.VALIDATORS["UI"] = before


def is_ended(line: socket.socket) -> bool:
    """Whether the other side ends a connection, in whatever way, before the test's patience does."""
    try:
        while line.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def pdu(kind: int, length: int, content: bytes = b"") -> bytes:
    """A PDU that announces a length, whatever its content has."""
    return struct.pack(">BBL", kind, 0, length) + content


def threads() -> set[str]:
    """Names of the threads of associations."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("Acceptor")}


def pipeline(door: Door, association: Association, count: int) -> list[int]:
    """Send echoes in one go; how many waited on our side, whenever one was answered, until all were.

    Parameters
    ----------
    association
        The only one, whose first context is for C-ECHO.
    """
    queued, answered = [], set[int]()
    (ours,) = list(door.server._running)
    line = association.dul.socket
    assert line is not None
    assert line.socket is not None
    association._reactor_checkpoint.clear()
    wait(lambda: association._is_paused)
    line.socket.sendall(b"".join(_echo_pdu(number) for number in range(1, count + 1)))
    while len(answered) < count:
        queued.append(ours.dimse.msg_queue.qsize())
        _, answer = association.dimse.get_msg(block=True)
        assert answer is not None
        answered.add(answer.MessageIDBeingRespondedTo or 0)
    association._reactor_checkpoint.set()
    return queued


def _echo_pdu(number: int) -> bytes:
    """A C-ECHO-RQ in a P-DATA-TF (PS3.7 section 9.3.5.1)."""

    def element(tag: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, tag, len(value)) + value

    command = element(2, b"1.2.840.10008.1.1\0") + element(0x100, b"\x30\0") + element(0x110, struct.pack("<H", number))
    command += element(0x800, b"\x01\x01")
    command = element(0, struct.pack("<L", len(command))) + command
    item = struct.pack(">LBB", len(command) + 2, 1, 3) + command
    return pdu(4, len(item), item)
