"""The database: that it answers and is safe, its tables, its clock; and where the audit trail goes."""

from __future__ import annotations

import os
import socket
import time
from typing import Final

from service import schema
from service.checks.types import Checks, Doubtful
from service.config import Config
from service.errors import ConfigError
from service.store import open_store

_SKEW_SECONDS: Final = 5.0  # of our clock against the database's; leases are a minute long


def checks(config: Config) -> Checks:
    """Those of what is remembered."""
    yield "database", lambda: _database(config)
    yield "audit trail", lambda: _audit(config)


def _database(config: Config) -> str:
    store = open_store(config.store)
    try:
        if not config.store.database:
            return f"SQLite in the store's directory, revision {schema.HEAD}"
        skew = store.clock() - time.time()
        others = [it["name"] for it in store.processes() if time.time() - it["seen_at"] < 30.0]
    finally:
        store.close()
    if abs(skew) > _SKEW_SECONDS:
        raise Doubtful(
            doing="comparing our clock with the database's",
            found=f"they differ by {abs(skew):.0f} s",
            rule=f"clocks of machines on one database agree within {_SKEW_SECONDS:.0f} s: leases are told by them",
            way_out="let both be synchronised by the hospital's time server (NTP)",
        )
    return f"PostgreSQL answers, revision {schema.HEAD}; at work on it now: {', '.join(others) or 'nobody'}"


def _audit(config: Config) -> str:
    path = config.audit_file
    # It is not made here: it would belong to whoever checks.
    nearest = next(it for it in (path, *path.parents) if it.exists())
    may_be_written = os.access(nearest, os.W_OK)
    if path.is_dir() or not may_be_written:
        raise ConfigError(
            doing=f"looking at the audit trail {path}",
            found="it is a folder" if path.is_dir() else "it may not be written",
            rule="[audit] file can be appended to by the service",
            way_out="name another file, or give the service's user the right to write there",
        )
    if not config.audit.syslog:
        return f"{path}; it is sent to no repository ([audit] syslog)"
    host, _, port = config.audit.syslog.rpartition(":")
    if config.audit.protocol != "udp":
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as exc:
            raise ConfigError(
                doing=f"connecting to the audit record repository {config.audit.syslog}",
                found=exc.strerror or type(exc).__name__,
                rule="[audit] syslog is where it listens",
                way_out="start it, or correct the address; messages wait on the disk meanwhile",
            ) from exc
    return f"{path}, and from there to {config.audit.syslog} by {config.audit.protocol}"
