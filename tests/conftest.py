"""Counterparts that tests of several kinds speak to."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.support import free_port, missing


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A real server with an empty database, in a folder of its own; its URL."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    if not places and not on_path:
        missing("the program initdb (PostgreSQL)")
    place = places[-1] if places else Path(str(on_path)).parent
    user: dict[str, Any] = {"user": "postgres"} if os.getuid() == 0 else {}  # it refuses to be root
    settings = {"listen_addresses": "127.0.0.1", "port": free_port(), "unix_socket_directories": ""}
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, user["user"])
        make = [str(place / "initdb"), "-D", "data", "-A", "trust", "-U", "overread", "--no-sync"]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
        start = [str(place / "postgres"), "-D", "data", *(f"--{key}={value}" for key, value in settings.items())]
        server = subprocess.Popen(start, stderr=subprocess.DEVNULL, cwd=folder, **user)
        try:
            url = f"postgresql+psycopg://overread@127.0.0.1:{settings['port']}/postgres"
            _wait_for(url)
            yield url
        finally:
            server.terminate()
            server.wait(20)


def _wait_for(url: str) -> None:
    engine = sa.create_engine(url)
    last = time.monotonic() + 20
    while True:
        try:
            engine.connect().close()
        except sa.exc.OperationalError:
            assert time.monotonic() < last, "PostgreSQL did not start"
            time.sleep(0.05)
        else:
            engine.dispose()
            return
