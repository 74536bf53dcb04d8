"""An HTTP side for tests: the real application on a real store and spool, asked in the process or over a real port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from service.api.app import create_app
from service.api.seen import Seen
from service.config import Config
from service.intake.keep import Keeper
from service.intake.spool import Spool
from service.settings.store import StoreSection
from service.store import Store
from service.tables import database_url
from tests.snapshots import snapshot
from tests.support import free_port


@dataclass(kw_only=True)
class HttpSite:
    """The application, with what is behind it."""

    config: Config
    store: Store
    app: FastAPI
    outcomes: list[tuple[str, int]] = field(default_factory=list)

    def files(self) -> list[str]:
        spool = self.config.store.directory / "spool"
        return sorted(str(path.relative_to(spool)) for path in spool.rglob("*") if path.is_file())


@contextmanager
def http_site(
    directory: Path, *, minimum_free_gib: float = 0.0, more: Any = None, **sections: Any
) -> Iterator[HttpSite]:
    """A site whose studies lie in a folder.

    Parameters
    ----------
    more
        Fields of `Seen` in place of those that say that all is well.
    sections
        Of the configuration.
    """
    config = Config(store=StoreSection(directory=directory), **sections)
    directory.mkdir(parents=True, exist_ok=True)
    store = Store(database_url(directory, ""))
    store.create_tables()
    outcomes: list[tuple[str, int]] = []
    spool = Spool(directory, int(minimum_free_gib * 2**30))
    usual: dict[str, Any] = {
        "config": config,
        "store": store,
        "readiness": dict,
        "progress": lambda _: {},
        "waiting": lambda _: None,
        "lines": dict,
        "networks": list,
        "snapshot": snapshot,
        "keep": Keeper(spool, store, lambda word, size: outcomes.append((word, size)), routes=config.routes),
    }
    seen = Seen(**usual | (more or {}))
    try:
        yield HttpSite(config=config, store=store, app=create_app(seen), outcomes=outcomes)
    finally:
        store.close()


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """The application over a real port, as the service runs it; gives the port."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until, "it does not listen"
        time.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "it does not stop"


def dicom_file(made: Dataset, syntax: str = "1.2.840.10008.1.2.1", **meta: str) -> bytes:
    """A data set as a file; its meta group says what it is told."""
    written = Dataset(made)
    written.file_meta = FileMetaDataset()
    written.file_meta.TransferSyntaxUID = UID(syntax)
    written.file_meta.MediaStorageSOPClassUID = meta.get("class_uid", made.get("SOPClassUID", ""))
    written.file_meta.MediaStorageSOPInstanceUID = meta.get("sop_uid", made.get("SOPInstanceUID", ""))
    content = BytesIO()
    written.preamble = bytes(128)
    written.save_as(content, implicit_vr=syntax == "1.2.840.10008.1.2", little_endian=True)
    return content.getvalue()


def multipart(*parts: bytes, boundary: str = "limit", media_type: str = "application/dicom") -> bytes:
    """A multipart/related body."""
    head = f"--{boundary}\r\nContent-Type: {media_type}\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()


RELATED = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=limit'}
