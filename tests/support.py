"""What several tests need: real counterparts, free ports, real series."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from service.demo.pacs import free_port as free_port

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIRED = os.environ.get("REQUIRE_COUNTERPARTS") == "1"


def missing(what: str) -> None:
    """Skip a test by the name of what it lacks, or fail it where nothing may be lacking (CI)."""
    if REQUIRED:
        pytest.fail(f"{what} is missing, and REQUIRE_COUNTERPARTS=1 forbids to skip")
    pytest.skip(f"{what} is missing")


def counterpart(program: str) -> str:
    """Path of an installed program that a test speaks to; without it the test is skipped by name, or fails in CI."""
    for folder in ("", "/usr/sbin", "/usr/local/sbin"):
        path = shutil.which(program, path=folder or None)
        if path:
            return path
    missing(f"the program {program}")
    raise AssertionError("unreachable")


def real_series(name: str) -> Path:
    """Folder of a real series of ``shared/data``, unpacked once; without it the test is skipped by name."""
    shared = REPOSITORY.parent / "shared" / "data"
    if not (shared / f"{name}.tar.xz").exists():
        missing(f"the real series {name} (shared/data)")
    into = Path(os.environ.get("OVERREAD_TEST_DATA", "/tmp/overread-test-data"))
    into.mkdir(parents=True, exist_ok=True)
    with (into / "lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["sh", str(shared / "unpack"), str(into), name], check=True)
    return into / name
