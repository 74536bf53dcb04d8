"""The receiving processes: several on one port, each with its own association threads, spool and database connections.

It promises that a process which dies is replaced, and that stopping gives running associations a few seconds. It does
not promise an order among the processes: the kernel deals new connections out among them.
"""

from __future__ import annotations

import errno
import gc
import multiprocessing
import queue
import resource
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final

from service import audit, log, metrics, tls
from service.config import Config
from service.errors import ConfigError
from service.intake import scp
from service.intake.acceptor import note_kept
from service.intake.callers import refused
from service.intake.commitments import CommitmentHandler
from service.intake.entrance import TICK_SECONDS
from service.intake.keep import OnOutcome
from service.intake.receive import StorageHandler
from service.intake.scp import GRACE_SECONDS
from service.intake.spool import Spool
from service.patients import Patients
from service.ports import bound
from service.settings.intake import Intake
from service.store import Store
from service.tables import url_of
from service.types import Kept

_START_SECONDS: Final = 60.0  # for all processes to listen
_SWEEP_SECONDS: Final = 600.0  # between two looks for temp files without a writer
_COLLECT_SECONDS: Final = 15.0  # ended associations are cycles with their last data set; Python leaves them long
_DESCRIPTORS: Final = 8192  # open files and connections that a process may have, where the system lets it
_PAUSE_SECONDS: Final = 1.0  # before a dead process is replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a receiving process did since its last report."""

    outcomes: list[tuple[str, int]]  # of C-STORE requests: the word, and the data set's bytes
    refused: list[audit.Alert]  # associations
    associations: int  # that are open now


def run_receiver(config: Config, channel: Connection) -> None:
    """Run one receiving process until the other end of the channel says so, or is gone with its process.

    Parameters
    ----------
    channel
        Its other end gets a `Report` whenever there is something to tell; the first one, empty, when the port is open.
    """
    log.set_up()
    audit.set_up(config.audit_file, name=config.process.called, ae_title=config.intake.ae_title)
    _allow_descriptors()
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the parent's business
    outcomes: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()

    associations = 0

    def report() -> None:
        with suppress(OSError):  # the parent is gone: nobody to report to
            channel.send(
                Report(
                    outcomes=[outcomes.get() for _ in range(outcomes.qsize())],
                    refused=[refused.get() for _ in range(refused.qsize())],
                    associations=associations,
                )
            )

    try:
        spool = Spool(config.store.directory, int(config.intake.minimum_free_gib * 2**30))
        store = _NotingStore(url_of(config.store))
        audit.name_patients(Patients(store.headers_of).of)
        handler = StorageHandler(spool, store, lambda word, size: outcomes.put((word, size)), routes=config.routes)
        server = scp.serve(config, handler, CommitmentHandler(store))
        log.event("receiver.listening", host=config.intake.host, port=config.intake.port, swept=spool.sweep())
    except Exception as exc:
        log.failure("receiver.failed", exc)
        raise SystemExit(1) from None
    report()
    swept_at = collected_at = time.monotonic()
    while not channel.poll(TICK_SECONDS) and not terminated.is_set():
        now = server.associations
        if now != associations or not (outcomes.empty() and refused.empty()):
            associations = now
            report()
        if time.monotonic() - collected_at > _COLLECT_SECONDS:
            collected_at = time.monotonic()
            gc.collect()
        if time.monotonic() - swept_at > _SWEEP_SECONDS:
            swept_at = time.monotonic()
            with suppress(OSError):
                spool.sweep()
    server.finish()
    report()
    store.close()
    audit.close()
    log.event("receiver.stopped")


class _NotingStore(Store):
    """Tells the association which instances it has kept, for the audit trail."""

    def keep_instance(self, **instance: Any) -> Kept:
        kept = super().keep_instance(**instance)
        note_kept(instance["study_uid"], instance["class_uid"])
        return kept


class Receivers:
    """The receiving processes; one that dies is replaced.

    Parameters
    ----------
    on_outcome
        Called in this process, by one thread, for each C-STORE request: the outcome's word and the bytes.
    """

    def __init__(self, config: Config, on_outcome: OnOutcome = lambda word, size: None) -> None:
        self._config, self._on_outcome = config, on_outcome
        self._running: dict[Connection, SpawnProcess] = {}
        self._listening: set[Connection] = set()
        self._stopping, self._is_open = threading.Event(), False
        self._associations: dict[Connection, int] = {}
        self._watcher = threading.Thread(target=self._watch, name="receivers", daemon=True)

    def start(self) -> None:
        """Start the processes and return when all of them listen.

        Raises
        ------
        ConfigError
            If the port can't be had, a file for TLS is no good, or a process does not come up.
        """
        if self._config.intake.tls:
            tls.server_context(self._config.intake.tls)
        _check_port(self._config.intake)
        for _ in range(self._config.intake.processes):
            self._launch()
        self._watcher.start()
        until = time.monotonic() + _START_SECONDS
        while len(self._listening) < self._config.intake.processes:
            if time.monotonic() > until:
                self.stop()
                raise ConfigError(
                    doing="starting the receiving processes",
                    found=f"they do not all listen after {_START_SECONDS:.0f} s",
                    rule="each opens the port, the spool and the database",
                    way_out="see the lines receiver.failed in the log",
                )
            time.sleep(0.01)
        self._is_open = True
        self._audit(attached=True)

    def alive(self) -> int:
        """How many processes are listening."""
        return len(self._listening)

    def pids(self) -> list[int | None]:
        """The processes' numbers."""
        return [process.pid for process in list(self._running.values())]

    def associations(self) -> int:
        """How many associations they have, all together."""
        return sum(self._associations.get(channel, 0) for channel in list(self._running))

    def stop(self) -> None:
        """Refuse new associations, give the running ones a few seconds, and end the processes."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for channel in self._running:
            with suppress(OSError):
                channel.send("stop")
        until = time.monotonic() + GRACE_SECONDS + 3.0
        while self._running and time.monotonic() < until:
            self._read(TICK_SECONDS)
        for channel, process in self._running.items():
            process.kill()  # it had its time; what it did not acknowledge, its sender still has
            process.join()
            channel.close()
        self._running.clear()
        self._listening.clear()
        if self._is_open:
            self._is_open = False
            self._audit(attached=False)

    def _audit(self, *, attached: bool) -> None:
        """The port is one, however many processes share it."""
        intake = self._config.intake
        audit.network_entry(attached=attached, ae_title=intake.ae_title, address=intake.host)

    def _launch(self) -> None:
        context = multiprocessing.get_context("spawn")  # threads and database connections do not survive a fork
        ours, theirs = context.Pipe()
        process = context.Process(target=run_receiver, args=(self._config, theirs), name="receiver", daemon=True)
        process.start()
        theirs.close()  # so that the death of either process closes the channel
        self._running[ours] = process

    def _watch(self) -> None:
        while not self._stopping.is_set():
            died = self._read(TICK_SECONDS)
            if died and not self._stopping.wait(_PAUSE_SECONDS):
                for _ in range(died):
                    self._launch()

    def _read(self, seconds: float) -> int:
        """Pass on what the processes say; return how many of them are gone."""
        gone = 0
        for channel in wait(list(self._running), seconds):
            assert isinstance(channel, Connection)
            try:
                told: Report = channel.recv()
            except (EOFError, OSError):
                gone += 1
                process = self._running.pop(channel)
                self._listening.discard(channel)
                self._associations.pop(channel, None)
                channel.close()
                process.join()
                if not self._stopping.is_set():
                    log.warning("receiver.died", exit_code=process.exitcode)
                    metrics.RECEIVER_DEATHS.inc()
                continue
            self._listening.add(channel)
            self._associations[channel] = told.associations
            for kind in told.refused:
                metrics.count_refused_association(kind)
            for word, size in told.outcomes:
                self._on_outcome(word, size)
        return gone


def _allow_descriptors() -> None:
    """Raise the limit of open files: many associations, and who waits for one, are more than the usual 1024."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(_DESCRIPTORS, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _check_port(intake: Intake) -> None:
    # With SO_REUSEPORT a second program of the same user would share the port in silence, so ask without it. Processes
    # of a killed predecessor need a moment to notice, hence the patience.
    until = time.monotonic() + GRACE_SECONDS + 3.0
    while True:
        try:
            bound(intake.host, intake.port, section="[intake]").close()
            return
        except ConfigError as exc:
            is_taken = isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EADDRINUSE
            if not is_taken or time.monotonic() > until:
                raise
            time.sleep(TICK_SECONDS)
