"""Somebody else writes into the SQLite database for long: senders wait, or are told to send again; nothing is lost."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pynetdicom import AE, evt

from service import tables
from service.intake.receive import StorageHandler
from service.intake.spool import Spool
from service.settings.store import StoreSection
from service.store import open_store
from tests.integration.receiver import CT, EXPLICIT, associated, image, put
from tests.support import free_port


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Of a receiver in this process, with the real handler, spool and store."""
    store, number = open_store(StoreSection(directory=tmp_path)), free_port()
    handler = StorageHandler(Spool(tmp_path, 0), store, lambda word, size: None)
    ae = AE("OVERREAD")
    ae.add_supported_context(CT, EXPLICIT)
    ae.add_supported_context("1.2.840.10008.1.1")
    server = ae.start_server(("127.0.0.1", number), block=False, evt_handlers=[(evt.EVT_C_STORE, handler)])
    assert server is not None
    yield number
    server.shutdown()
    store.close()


@contextmanager
def locked(directory: Path) -> Iterator[sqlite3.Connection]:
    """Another connection that holds the one write lock."""
    database = sqlite3.connect(directory / "overread.sqlite", isolation_level=None, check_same_thread=False)
    database.execute("BEGIN IMMEDIATE")
    try:
        yield database
    finally:
        database.close()


def kept(directory: Path) -> dict[str, bytes]:
    """The files that rows name, by SOP Instance UID."""
    with sqlite3.connect(directory / "overread.sqlite") as database:
        return {uid: Path(path).read_bytes() for uid, path in database.execute("SELECT sop_uid, path FROM instances")}


def send_at_once(port: int, instances: list[Dataset]) -> tuple[list[int], list[float]]:
    """Each on an association of its own; the statuses, and when each came (monotonic)."""
    statuses, came = [-1] * len(instances), [0.0] * len(instances)

    def one(index: int) -> None:
        with associated(port) as association:
            statuses[index], came[index] = put(association, instances[index]), time.monotonic()

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(instances))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, came


def test_instances_wait_for_a_lock_and_are_acknowledged_after_it(port: int, tmp_path: Path) -> None:
    instances, released = [image() for _ in range(4)], list[float]()
    with locked(tmp_path) as database:

        def release() -> None:
            released.append(time.monotonic())
            database.execute("ROLLBACK")

        threading.Timer(2.0, release).start()
        statuses, came = send_at_once(port, instances)
    assert statuses == [0] * 4
    assert min(came) > released[0], "no row, no Success"
    assert kept(tmp_path).keys() == {str(one.SOPInstanceUID) for one in instances}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store gives up after 0.2 s, not after a minute."""
    durable = tables._make_sqlite_durable

    def make(connection: Any, record: Any) -> None:
        durable(connection, record)
        connection.execute("PRAGMA busy_timeout = 200")

    monkeypatch.setattr(tables, "_make_sqlite_durable", make)


def test_a_lock_for_too_long_is_a700_and_nothing_is_lost(impatient: None, port: int, tmp_path: Path) -> None:
    instances = [image() for _ in range(4)]
    with locked(tmp_path):
        assert send_at_once(port, instances)[0] == [0xA700] * 4, "out of resources: send again"
        assert kept(tmp_path) == {}
    assert send_at_once(port, instances)[0] == [0] * 4
    files = kept(tmp_path)
    assert files.keys() == {str(one.SOPInstanceUID) for one in instances}
    assert all(files[str(one.SOPInstanceUID)].endswith(one.PixelData) for one in instances)
    assert len(list((tmp_path / "spool").rglob("*.dcm"))) == 4, "the first attempts' files are the same ones"
