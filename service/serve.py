"""The service in the foreground: its parts in the order in which they start, and stop."""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import os
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import TextIO

from service import __version__, audit, log, metrics, tls
from service.api.app import create_app
from service.api.server import make_server
from service.config import Config
from service.errors import ConfigError
from service.files import make_folder
from service.intake.processes import Receivers
from service.outlook import Outlook
from service.patients import Patients
from service.ports import bound
from service.pulse import Pulse
from service.store import Store, open_store
from service.syslog import Forwarder
from service.working import Working

_M_MMAP_THRESHOLD = -3  # mallopt(3)
_TICK_SECONDS = 0.2  # between two looks at whether to stop
_TAKE_SECONDS = 30.0  # until a database has noticed that the machine is gone which had our name


def serve(config: Config) -> None:
    """Run until SIGTERM or SIGINT; then refuse new associations, finish or leave resumable, and return.

    Raises
    ------
    ConfigError
        If something does not allow a start.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    faulthandler.register(signal.SIGUSR1)  # says on stderr where each thread is
    _give_memory_back()
    os.umask(os.umask(0o027) | 0o027)  # what is received is nobody's business but the service's and its group's
    name, parts = config.process.called, config.process.parts
    for settings in config.tls.values():
        tls.check(settings)  # a certificate that is no good is better noticed now than at the first connection
    lock = _lock(config, name)
    audit.set_up(config.audit_file, name=name, ae_title=config.intake.ae_title)
    audit.application(started=True)
    forwarder = Forwarder(config.audit, config.audit_file, name=name)
    forwarder.start()
    store = open_store(config.store)
    audit.name_patients(Patients(store.headers_of).of)
    _take(store, name)
    working = Working(config, store, name=name) if "work" in parts else None
    receivers = Receivers(config, metrics.count_instance) if "receive" in parts else None
    outlook = Outlook(
        config, store, name=name, working=working, receivers=receivers, forwarder=forwarder, stopping=stop.is_set
    )
    models = working.models if working else ()
    metrics.prepare(
        models=[model.spec.name for model in models],
        networks={network.name for model in models for network in model.networks},
        destinations=[destination.name for destination in config.destinations],
    )
    app = create_app(outlook.seen())
    http, listener = make_server(app, config.api), bound(config.api.host, config.api.port, section="[api]")
    # It must not take the signals: the parts stop in an order of their own.
    page = threading.Thread(target=http.run, args=([listener],), name="api", daemon=True)
    if receivers:
        receivers.start()
    page.start()
    pulse = Pulse(
        store,
        name=name,
        parts=parts,
        keep=[
            partial(_keep_name, store, name),
            *([working.watch.keep] if working else []),
            *([working.watch.tell] if working and store.is_shared else []),
        ],
        status=outlook.status,
    )
    pulse.start()
    if working:
        working.start(stop)  # studies come in meanwhile, and wait
    log.event(
        "service.started" if not stop.is_set() else "service.not_started",
        version=__version__,
        process=name,
        parts=parts,
        ae_title=config.intake.ae_title,
        dicom=f"{config.intake.host}:{config.intake.port}" if receivers else "",
        http=f"{config.api.host}:{config.api.port}",
        models=[model.spec.name for model in models],
        destinations=[destination.name for destination in config.destinations],
        backend=working.backend.name if working else "",
    )
    # A signal may reach another thread and wake nobody; and `on_signal` needs the lock that `stop.wait` would hold.
    while not stop.is_set():
        time.sleep(_TICK_SECONDS)
    log.event("service.stopping")
    if receivers:
        receivers.stop()
    if working:
        working.stop()
    pulse.stop()
    store.let_go(name)
    http.should_exit = True
    page.join(timeout=2)
    store.close()
    audit.application(started=False)
    forwarder.stop()
    audit.close()
    lock.close()
    log.event("service.stopped")


def _keep_name(store: Store, name: str) -> None:
    """Take the name again where the database was away and has forgotten that it is ours."""
    if not store.take(name):
        log.warning("process.name_taken", process=name)


def _take(store: Store, name: str) -> None:
    """Make the process's name ours: two of one name would take each other's work away."""
    until = time.monotonic() + _TAKE_SECONDS
    while not store.take(name):
        if time.monotonic() > until:
            raise ConfigError(
                doing="taking the database",
                found=f"another Overread named {name} runs on it",
                rule="each process on one database has a name of its own ([process] name, or OVERREAD_NAME)",
                way_out="stop the other one, or give this one another name",
            )
        time.sleep(_TICK_SECONDS)


def _give_memory_back() -> None:
    """Let each large array be memory of its own, which the system has again when the array goes.

    By itself glibc raises this limit to 32 MiB, and then keeps the holes between volumes: measured with studies of
    25 MiB, the process keeps 265 MiB instead of 396.
    """
    with suppress(AttributeError, OSError):  # another C library has no such thing
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _lock(config: Config, name: str) -> TextIO:
    """Make the store's folder ours, or our name in it: two services in one would both answer the same studies."""
    directory, is_shared = config.store.directory, bool(config.store.database)
    try:
        make_folder(directory)
        lock = (directory / (f"lock-{name}" if is_shared else "lock")).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        found = f"another Overread named {name} runs in it" if is_shared else "another Overread runs in it"
        raise ConfigError(
            doing=f"taking the store's folder {directory}",
            found=found if isinstance(exc, BlockingIOError) else exc.strerror or "no access",
            rule="[store] directory is a folder that the service may write; several share it only by one PostgreSQL, "
            "each with a name of its own",
            way_out="stop the other service, or name another folder, or another [process] name",
        ) from exc
    return lock
