"""The receiving processes: several on one port, each with its own association threads, spool and database connections.

It promises that a process which dies is replaced, and that stopping gives running associations a few seconds. It does
not promise an order among the processes: the kernel deals new connections out among them.
"""

from __future__ import annotations

import errno
import multiprocessing
import queue
import signal
import socket
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Final

from service import log
from service.config import Config, Intake
from service.errors import ConfigError
from service.intake import scp
from service.intake.receive import OnOutcome, StorageHandler
from service.intake.scp import GRACE_SECONDS, TICK_SECONDS
from service.intake.spool import Spool
from service.store import Store
from service.tables import database_url

_START_SECONDS: Final = 60.0  # for all processes to listen
_PAUSE_SECONDS: Final = 1.0  # before a dead process is replaced


def run_receiver(config: Config, channel: Connection) -> None:
    """Run one receiving process until the other end of the channel says so, or is gone with its process.

    Parameters
    ----------
    channel
        Its other end gets lists of outcomes (word, bytes); the first one, empty, when the port is open.
    """
    log.set_up()
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the parent's business
    outcomes: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()

    def report() -> None:
        with suppress(OSError):  # the parent is gone: nobody to report to
            channel.send([outcomes.get() for _ in range(outcomes.qsize())])

    try:
        spool = Spool(config.store.directory, int(config.intake.minimum_free_gib * 2**30))
        store = Store(database_url(config.store.directory, config.store.database))
        handler = StorageHandler(spool, store, lambda word, size: outcomes.put((word, size)), routes=config.routes)
        server = scp.serve(config.intake, handler)
        log.event("receiver.listening", host=config.intake.host, port=config.intake.port, swept=spool.sweep())
    except Exception as exc:
        log.failure("receiver.failed", exc)
        raise SystemExit(1) from None
    report()
    while not channel.poll(TICK_SECONDS) and not terminated.is_set():
        if not outcomes.empty():
            report()
    scp.finish(server)
    report()
    store.close()
    log.event("receiver.stopped")


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
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="receivers", daemon=True)

    def start(self) -> None:
        """Start the processes and return when all of them listen.

        Raises
        ------
        ConfigError
            If the port can't be had, or a process does not come up.
        """
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

    def alive(self) -> int:
        """How many processes are listening."""
        return len(self._listening)

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
                outcomes = channel.recv()
            except (EOFError, OSError):
                gone += 1
                process = self._running.pop(channel)
                self._listening.discard(channel)
                channel.close()
                process.join()
                if not self._stopping.is_set():
                    log.warning("receiver.died", exit_code=process.exitcode)
                continue
            self._listening.add(channel)
            for word, size in outcomes:
                self._on_outcome(word, size)
        return gone


def _check_port(intake: Intake) -> None:
    # With SO_REUSEPORT a second program of the same user would share the port in silence, so ask without it. Processes
    # of a killed predecessor need a moment to notice, hence the patience.
    until = time.monotonic() + GRACE_SECONDS + 3.0
    while True:
        try:
            family, kind, _, _, address = socket.getaddrinfo(intake.host, intake.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise ConfigError(
                    doing=f"opening the DICOM port {intake.host}:{intake.port}",
                    found=exc.strerror or type(exc).__name__,
                    rule="intake.host is an address of this machine, and intake.port is free and permitted",
                    way_out="end the other program, or choose another host or port",
                ) from exc
            time.sleep(TICK_SECONDS)
