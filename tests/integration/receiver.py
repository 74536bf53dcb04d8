"""A receiver of real processes on a real port, and a sender to it."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode

from service.config import Config
from service.intake.processes import Receivers
from service.requestor import steady
from service.settings.destinations import Destination
from service.settings.intake import Intake, Route
from service.settings.store import StoreSection
from service.store import Store
from service.tables import database_url
from tests.support import free_port

CT, VERIFICATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
PATIENT = "GEHEIM^NAME"


@dataclass(kw_only=True)
class Site:
    """A receiver with its folder."""

    config: Config
    receivers: Receivers
    outcomes: list[tuple[str, int]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.config.intake.port

    def rows(self, where: str = "1") -> list[tuple[str, str, str]]:
        with sqlite3.connect(self.config.store.directory / "overread.sqlite") as database:
            return database.execute(f"SELECT sop_uid, path, sha256 FROM instances WHERE {where}").fetchall()

    def files(self) -> list[str]:
        spool = self.config.store.directory / "spool"
        return sorted(str(path.relative_to(spool)) for path in spool.rglob("*") if path.is_file())

    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self.receivers._running.values()]


@contextmanager
def running(
    directory: Path,
    *,
    processes: int = 1,
    minimum_free_gib: float = 0.0,
    routes: tuple[Route, ...] = (),
    destinations: tuple[Destination, ...] = (),
    **intake: Any,
) -> Iterator[Site]:
    """A site that listens; more keys of ``[intake]`` as they are named there."""
    settings = {"port": free_port(), "processes": processes, "minimum_free_gib": minimum_free_gib} | intake
    config = Config(
        intake=Intake(**settings),
        store=StoreSection(directory=directory),
        routes=routes,
        destinations=destinations,
    )
    directory.mkdir(parents=True, exist_ok=True)
    store = Store(database_url(directory, ""))
    store.create_tables()
    store.close()
    outcomes: list[tuple[str, int]] = []
    receivers = Receivers(config, lambda word, size: outcomes.append((word, size)))
    receivers.start()
    try:
        yield Site(config=config, receivers=receivers, outcomes=outcomes)
    finally:
        receivers.stop()


def image(**changes: Any) -> Dataset:
    """A small CT slice of its own study; a change to None takes the attribute away."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = CT, generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID = generate_uid(), generate_uid()
    made.PatientName, made.PatientID, made.Modality = PATIENT, PATIENT, "CT"
    made.Rows, made.Columns, made.BitsAllocated, made.PixelRepresentation = 16, 16, 16, 0
    made.add_new("PixelData", "OW", os.urandom(512))
    for keyword, value in changes.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


@contextmanager
def associated(
    port: int, *contexts: tuple[str, str], calling: str = "SENDER", called: str = "OVERREAD"
) -> Iterator[Association]:
    """An open association for these (SOP class, transfer syntax) pairs."""
    ae = AE(calling)
    for sop_class, syntax in contexts or ((CT, EXPLICIT), (VERIFICATION, IMPLICIT)):
        ae.add_requested_context(sop_class, syntax)
    ae.dimse_timeout = ae.network_timeout = 90
    association = ae.associate("127.0.0.1", port, ae_title=called)
    assert association.is_established
    steady(association)
    try:
        yield association
    finally:
        association.release()


def request(called: bytes, calling: bytes, *, version: int = 1) -> bytes:
    """The fixed part of an A-ASSOCIATE-RQ, with AE titles of 16 bytes each (PS3.8 Table 9-11)."""
    return b"\x01\x00\x00\x00\x00\x44" + version.to_bytes(2, "big") + bytes(2) + called + calling + bytes(32)


def rejection(port: int, *, called: str = "OVERREAD", calling: str = "SENDER") -> tuple[int, ...]:
    """Result, source and reason with which an association is rejected (PS3.8 Table 9-21).

    pynetdicom's requestor takes an answer that comes very soon for no connection.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(request(called.encode().ljust(16), calling.encode().ljust(16)))
        answer = line.recv(10, socket.MSG_WAITALL)
    assert answer[:6].hex() == "030000000004", "no A-ASSOCIATE-RJ"
    return tuple(answer[7:])


def send(
    association: Association, data: bytes | None, *, sop_uid: str, sop_class: str = CT, context: str = CT
) -> tuple[int, str]:
    """Send these very bytes as a C-STORE request; returns status and error comment."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, sop_uid
    request.DataSet = None if data is None else BytesIO(data)
    (context_id,) = (cx.context_id for cx in association.accepted_contexts if cx.abstract_syntax == context)
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        time.sleep(0.0005)
    association.dimse.send_msg(request, context_id or 0)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    assert isinstance(response, C_STORE), "no answer"
    return response.Status or 0, response.ErrorComment or ""


def explicit(made: Dataset) -> bytes:
    data = encode(made, False, True)
    assert data is not None
    return data


def put(association: Association, made: Dataset) -> int:
    return send(association, explicit(made), sop_uid=str(made.SOPInstanceUID))[0]


def wait(until: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
