"""The service in the foreground: its parts in the order in which they start, and stop."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import uvicorn

from service import __version__, log, metrics
from service.analysis.schedule import Scheduler
from service.api.app import Seen, create_app
from service.backend import open_backend
from service.config import Api, Config
from service.errors import BackendError, ConfigError
from service.intake.processes import Receivers
from service.models import installed, survey
from service.store import open_store
from service.types import Model
from service.worker import Worker, progress_of

_M_MMAP_THRESHOLD = -3  # mallopt(3)
_GRACE_SECONDS = 3.0  # with the receivers' five: container engines kill ten seconds after SIGTERM
_EXECUTOR = "overread-0"


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
    _give_memory_back()
    lock = _lock(config.store.directory)
    store = open_store(config.store.directory, config.store.database)
    models, unreadable = survey(config.analysis.models_directory, config.analysis.models)
    if not models and not unreadable:
        installed(config.analysis.models_directory)  # says that there is none, and what to do
    backend = open_backend(config.analysis, config.triton)
    scheduler = Scheduler(backend)
    broken = {"models": "they are being loaded"}
    worker = Worker(config, store, tuple(models), scheduler, executor_id=_EXECUTOR)
    receivers = Receivers(config, metrics.count_instance)

    def readiness() -> dict[str, str]:
        return {
            "database": _reason(store.ping),
            "receivers": ""
            if receivers.alive() == config.intake.processes
            else f"{receivers.alive()} of {config.intake.processes} receiving processes run",
            "worker": "" if worker.is_watching() else "it does not look for studies",
            "models": "; ".join(
                f"{name}: {reason}"
                for name, reason in [*broken.items(), *((s.name, s.failing) for s in scheduler.states() if s.failing)]
            ),
            "backend": "" if backend.ready() else f"{backend.name} does not answer",
            "disk": _disk_reason(config),
        }

    def networks() -> list[dict[str, Any]]:
        states = {state.name: state for state in scheduler.states()}
        return [
            {
                "name": model.spec.name,
                "version": model.spec.version,
                "broken": broken.get(model.spec.name, ""),
                "networks": [states[n.name].as_json() for n in model.networks if n.name in states],
            }
            for model in models
        ]

    app = create_app(Seen(config=config, store=store, readiness=readiness, progress=progress_of, networks=networks))
    http = uvicorn.Server(
        uvicorn.Config(app, host=config.api.host, port=config.api.port, log_config=None, access_log=False)
    )
    # It must not take the signals: the parts stop in an order of their own.
    page = threading.Thread(target=http.run, args=([_listen(config.api)],), name="api", daemon=True)
    receivers.start()
    page.start()
    # Studies come in meanwhile, and wait: an engine build for a GPU can take minutes.
    broken |= _load(models, scheduler, stop)
    for name, error in unreadable.items():
        broken[name] = error.found
        log.failure("model.broken", error, model=name)
    del broken["models"]
    worker.start()
    log.event(
        "service.started",
        version=__version__,
        ae_title=config.intake.ae_title,
        dicom=f"{config.intake.host}:{config.intake.port}",
        http=f"{config.api.host}:{config.api.port}",
        models=[model.spec.name for model in models],
        destinations=[destination.name for destination in config.destinations],
        backend=backend.name,
    )
    stop.wait()
    log.event("service.stopping")
    receivers.stop()
    worker.stop(grace_seconds=_GRACE_SECONDS)
    scheduler.close()
    http.should_exit = True
    page.join(timeout=2)
    store.close()
    lock.close()
    log.event("service.stopped")


def _load(models: Sequence[Model], scheduler: Scheduler, stop: threading.Event) -> dict[str, str]:
    """Load all models; those that can't run, and why: the others run, and their own answers say that they failed."""
    broken = {}
    for model in models:
        if stop.is_set():
            break
        try:
            scheduler.add(model)
        except BackendError as exc:
            if not exc.retry:
                broken[model.spec.name] = exc.found
            log.failure("model.broken", exc, model=model.spec.name)
        else:
            log.event("model.loaded", model=model.spec.name, version=model.spec.version)
    return broken


def _give_memory_back() -> None:
    """Let each large array be memory of its own, which the system has again when the array goes.

    By itself glibc raises this limit to 32 MiB, and then keeps the holes between volumes: measured with studies of
    25 MiB, the process keeps 265 MiB instead of 396.
    """
    with suppress(AttributeError, OSError):  # another C library has no such thing
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _lock(directory: Path) -> TextIO:
    """Make the store's folder ours; two services in one would both answer the same studies."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        raise ConfigError(
            doing=f"taking the store's folder {directory}",
            found="another Overread runs in it" if isinstance(exc, BlockingIOError) else exc.strerror or "no access",
            rule="[store] directory is a folder that one service may write, and no other one uses",
            way_out="stop the other service, or name another folder",
        ) from exc
    return lock


def _listen(api: Api) -> socket.socket:
    """The API's port, opened before anything else begins."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((api.host, api.port))
    except OSError as exc:
        raise ConfigError(
            doing=f"opening {api.host}:{api.port}",
            found=exc.strerror or type(exc).__name__,
            rule=f"[api] host is an address of this machine, and nobody else listens on port {api.port}",
            way_out="stop the other program, or choose another port",
        ) from exc
    return listener


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
