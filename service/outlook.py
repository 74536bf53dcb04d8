"""What the HTTP side sees of this process, and by the store of the others on the same database."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from service import audit, decoding, metrics
from service.api.seen import Seen
from service.config import Config
from service.intake.complete import Verdict
from service.intake.keep import Keeper
from service.intake.processes import Receivers
from service.intake.spool import Spool
from service.observe import Parts, take
from service.pulse import alive, merged_lines
from service.store import Store
from service.syslog import Forwarder
from service.working import Working


class Outlook:
    """The answers to what `Seen` asks.

    Parameters
    ----------
    working, receivers
        The parts of this process, as far as it has them.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        *,
        name: str,
        working: Working | None,
        receivers: Receivers | None,
        forwarder: Forwarder,
        stopping: Callable[[], bool],
    ) -> None:
        self._stopping = stopping
        self._config, self._store, self._name, self._forwarder = config, store, name, forwarder
        self._working, self._receivers = working, receivers

    def seen(self) -> Seen:
        """What the HTTP side is given."""
        return Seen(
            config=self._config,
            store=self._store,
            readiness=self.readiness,
            progress=self._progress,
            waiting=self._waiting,
            lines=self._lines,
            networks=self._networks,
            snapshot=partial(take, self._parts()),
            memory=self._memory,
            keep=self._keeper() if {"receive", "page"}.intersection(self._config.process.parts) else None,
            stopping=self._stopping,
        )

    def _parts(self) -> Parts:
        """Whom the metrics ask."""
        working, receivers = self._working, self._receivers
        return Parts(
            config=self._config,
            backend=working.backend.name if working else "",
            readiness=self.readiness,
            figures=self._store.figures,
            lines=working.watch.lines if working else dict,
            memory=self._memory,
            networks=working.resident_bytes if working else dict,
            receivers=lambda: (receivers.alive(), receivers.associations()) if receivers else (0, 0),
            processes=lambda: {
                "main": [os.getpid()],
                "receiver": receivers.pids() if receivers else [],
                "engine": [working.engine_pid] if working else [],
                "decoder": decoding.pids(),
            },
            audit_waiting=self._forwarder.waiting,
        )

    def _memory(self) -> tuple[int, int]:
        """Of the device: taken, and allowed; bytes."""
        return self._working.scheduler.memory() if self._working else (0, 0)

    def _keeper(self) -> Keeper:
        """Keeps what comes in by STOW-RS, in this process."""
        reserve = int(self._config.intake.minimum_free_gib * 2**30)
        return Keeper(
            Spool(self._config.store.directory, reserve),
            self._store,
            metrics.count_instance,
            routes=self._config.routes,
        )

    def readiness(self) -> dict[str, str]:
        """By part of this process: empty if it is well, else what is wrong with it."""
        parts = {
            "database": _reason(self._store.ping),
            "disk": _disk_reason(self._config),
            "audit": audit.problem(),  # not the repository's: one that is away stops no study
        }
        if self._receivers:
            running, wanted = self._receivers.alive(), self._config.intake.processes
            parts["receivers"] = "" if running == wanted else f"{running} of {wanted} receiving processes run"
        return parts | (self._working.readiness() if self._working else {})

    def status(self) -> dict[str, Any]:
        """What only this process knows, for the others' pages."""
        status: dict[str, Any] = {"readiness": self.readiness(), "audit": self._forwarder.problem()}
        if self._working:
            status |= {"lines": self._working.watch.lines(), "networks": self._working.networks()}
        return status

    def _others(self) -> list[dict[str, Any]]:
        """What the other processes that are alive say of themselves."""
        if not self._store.is_shared:
            return []
        return [dict(it["status"]) for it in alive(self._store.processes(), now=time.time(), but=self._name)]

    def _lines(self) -> dict[str, dict[str, Any]]:
        own = self._working.watch.lines() if self._working else {}
        return merged_lines([own, *(status.get("lines", {}) for status in self._others())])

    def _networks(self) -> list[dict[str, Any]]:
        if self._working:
            return self._working.networks()
        return next((status["networks"] for status in self._others() if "networks" in status), [])

    def _progress(self, study_uid: str) -> dict[str, dict[str, Any]]:
        return self._working.watch.progress_of(study_uid) if self._working else {}

    def _waiting(self, study_uid: str) -> Verdict | None:
        return self._working.watch.waiting(study_uid) if self._working else None


def _reason(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as exc:
        return type(exc).__name__
    return ""


def _disk_reason(config: Config) -> str:
    disk = os.statvfs(config.store.directory)
    free = disk.f_bavail * disk.f_frsize / 2**30
    least = config.intake.minimum_free_gib
    return "" if free >= least else f"{free:.1f} GiB free, {least:g} are kept free: new instances are refused"
