"""A `Snapshot`, taken of the parts of the running service. None of them can spoil it: what fails is left out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import __version__, log, tls
from service.config import Config
from service.errors import ConfigError
from service.gauges import Figures
from service.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Whom a snapshot asks."""

    config: Config
    backend: str  # its name
    readiness: Callable[[], Mapping[str, str]]  # by part: empty if it is well
    figures: Callable[[], Figures]  # of the store
    lines: Callable[[], Mapping[str, Mapping[str, Any]]]  # as `Watch.lines`; none where this process does not work
    memory: Callable[[], tuple[int, int]]  # of the device: used, limit; bytes
    networks: Callable[[], Mapping[str, int]]  # the loaded ones, with what each holds, bytes
    receivers: Callable[[], tuple[int, int]]  # how many listen, how many open associations they have
    processes: Callable[[], Mapping[str, Sequence[int | None]]]  # numbers of the processes, by role
    audit_waiting: Callable[[], int | None] = lambda: None  # see `Snapshot`


def take(parts: Parts) -> Snapshot:
    """How everything is now."""
    config = parts.config
    size, free = _disk(config.store.directory)
    used, limit = parts.memory()
    listening, associations = parts.receivers()
    return Snapshot(
        now=time.time(),
        version=__version__,
        backend=parts.backend,
        parts=parts.readiness(),
        figures=_figures(parts),
        destinations=[destination.name for destination in config.destinations],
        lines={name: line["line"] == "well" for name, line in parts.lines().items()},
        device_used_bytes=used,
        device_limit_bytes=limit,
        networks=parts.networks(),
        disk_free_bytes=free,
        disk_size_bytes=size,
        disk_reserved_bytes=int(config.intake.minimum_free_gib * 2**30),
        associations=associations,
        receivers=listening,
        receivers_wanted=config.intake.processes if "receive" in config.process.parts else 0,
        processes={role: [it for it in numbers if it] for role, numbers in parts.processes().items()},
        certificates={use: not_after(file) for use, file in certificates(config)},
        audit_waiting=parts.audit_waiting(),
    )


def certificates(config: Config) -> Iterator[tuple[str, Path]]:
    """Our certificates, each with what it is for."""
    for use, settings in config.tls.items():
        if settings.certificate_file:
            yield use, settings.certificate_file
    if config.triton.certificate_file:
        yield "triton", config.triton.certificate_file


def not_after(file: Path) -> float:
    """When the first of a PEM file's certificates to end ends, seconds since 1970; 0: the file can't be read."""
    try:
        return tls.expiry(file)
    except ConfigError:
        return 0.0


def _disk(folder: Path) -> tuple[int, int]:
    """Size of its disk, and what of it is free for us; a folder that is gone has no room."""
    try:
        found = shutil.disk_usage(folder)
    except OSError:
        return 0, 0
    return found.total, found.free


def _figures(parts: Parts) -> Figures | None:
    try:
        return parts.figures()
    except Exception as exc:  # the database is away, which is what `overread_ready` then says
        log.failure("metrics.no_figures", exc)
        return None
