"""``overread check``: try everything that a configuration names; a line each, with the way out where it is wrong.

What it opens it closes, and no study is touched; it leaves the store's folder and its tables, as a start would.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from service.backend import open_backend
from service.config import Config, Destination, read_config
from service.errors import ConfigError, ServiceError
from service.models import available, installed, survey
from service.results.choice import everything, preview
from service.results.deliver import echo
from service.results.negotiate import can_be_queried, negotiate
from service.show import console
from service.store import open_store
from service.types import Backend, Model

Check = Callable[[], str]


def check(path: Path) -> int:
    """Check a configuration and all it names.

    Returns
    -------
    int
        0 only if everything holds.
    """
    failures = 0
    config: Config | None = None
    try:
        config = read_config(path)
        _say("ok", "configuration", str(path))
    except ConfigError as exc:
        _say("WRONG", "configuration", exc.found, exc)
        return 1
    for name, attempt in _checks(config):
        try:
            _say("ok", name, attempt())
        except ServiceError as exc:
            failures += 1
            _say("WRONG", name, exc.found, exc)
        except Exception as exc:  # a check that fails in an unforeseen way is still a line, not the end
            failures += 1
            _say("WRONG", name, f"{type(exc).__name__}: {exc}")
    console.print(f"{failures} of the above must be mended." if failures else "All holds.")
    return int(failures > 0)


def _checks(config: Config) -> Iterator[tuple[str, Check]]:
    yield "store", lambda: _writes(config)
    yield "database", lambda: _database(config)
    yield "DICOM port", lambda: _port(config.intake.host, config.intake.port, "[intake]")
    yield "HTTP port", lambda: _port(config.api.host, config.api.port, "[api]")
    yield from _models(config)
    if not config.destinations:
        yield "destinations", lambda: "none: results are kept here and shown by the API, and sent nowhere"
    for destination in config.destinations:
        yield f"destination {destination.name}", lambda d=destination: _answers(d, config)  # type: ignore[misc]


def _models(config: Config) -> Iterator[tuple[str, Check]]:
    """The models that would run, those that can't, and those that are left out."""
    try:
        models, broken = survey(config.analysis.models_directory, config.analysis.models)
        left_out = {spec.name for spec in available(config.analysis.models_directory)}
        backend = open_backend(config.analysis, config.triton)
    except ServiceError as exc:
        yield "models", _raising(exc)
        return
    try:
        for model in models:
            yield f"model {model.spec.name}", lambda m=model: _runs(m, backend)  # type: ignore[misc]
    finally:
        backend.close()
    for name, error in broken.items():
        yield f"model {name}", _raising(error)
    for name in sorted(left_out.difference(broken, (model.spec.name for model in models))):
        yield f"model {name}", lambda: "left out: it is not installed, or not named in [analysis]"
    if not models and not broken:
        yield "models", lambda: str(installed(config.analysis.models_directory))


def _writes(config: Config) -> str:
    """Write and fsync a megabyte, as the spool will."""
    directory = config.store.directory
    began = time.perf_counter()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise ConfigError(
            doing=f"writing to {directory}",
            found=exc.strerror or type(exc).__name__,
            rule="[store] directory is a folder that the service may make and write",
            way_out="name another folder, or give the service's user the right to write there",
        ) from exc
    milliseconds = (time.perf_counter() - began) * 1000
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize / 2**30
    if free < config.intake.minimum_free_gib:
        raise ConfigError(
            doing=f"measuring the disk of {directory}",
            found=f"{free:.1f} GiB free",
            rule=f"[intake] minimum_free_gib = {config.intake.minimum_free_gib:g}: with less, instances are refused",
            way_out="free some space, or set [store] directory to a larger disk",
        )
    return f"{directory}: {free:.1f} GiB free, a megabyte is on the disk in {milliseconds:.0f} ms"


def _database(config: Config) -> str:
    open_store(config.store.directory, config.store.database).close()
    return "PostgreSQL answers" if config.store.database else "SQLite in the store's directory"


def _port(host: str, port: int, section: str) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise ConfigError(
                doing=f"opening {host}:{port}",
                found=exc.strerror or type(exc).__name__,
                rule=f"{section} host is an address of this machine, and nobody else listens on port {port}",
                way_out="stop the other program (perhaps a running Overread), or choose another port",
            ) from exc
    return f"{host}:{port} can be opened"


def _runs(model: Model, backend: Backend) -> str:
    """Load a model's networks one after the other, and run each once, on nothing."""
    seconds = 0.0
    for network in model.networks:
        backend.load(network)
        began = time.perf_counter()
        answers = backend.infer(network.name, [np.zeros(network.input.dims, np.float32)])
        if not all(np.isfinite(answer).all() for answer in answers):
            raise ConfigError(
                doing=f"running the network {network.name} once, on nothing",
                found="an answer that is not finite (NaN)",
                rule="a network answers every image with numbers",
                way_out=f"overread models validate {model.spec.name}; export the network anew",
            )
        seconds += time.perf_counter() - began
        backend.unload(network.name)
    return f"version {model.spec.version} ran once on {backend.name} in {seconds:.1f} s"


def _answers(destination: Destination, config: Config) -> str:
    echo(destination, our_ae_title=config.intake.ae_title)
    accepted = negotiate(destination, our_ae_title=config.intake.ae_title)
    ideal = preview(destination.profile, everything)
    actual = preview(destination.profile, lambda *pair: pair in accepted)
    remarks = [*actual.remarks]
    if destination.confirm == "query" and not can_be_queried(accepted):
        remarks.append("it can't be asked whether it has them (C-FIND)")
    if (destination.confirm == "query" and not can_be_queried(accepted)) or (ideal.objects and not actual.objects):
        raise ConfigError(
            doing=f"asking {destination.name} what it accepts",
            found="; ".join(remarks),
            rule="results go in the forms of its profile or the next best ones, and are confirmed by C-FIND",
            way_out=f'allow these there, or see overread probe {destination.name}; without C-FIND set confirm = "none"',
        )
    kinds = ", ".join(dict.fromkeys(made.kind for made in actual.objects)) or "no results, as its profile says"
    said = f"{destination.ae_title} at {destination.host}:{destination.port} answers and gets {kinds}"
    return "; ".join([said, *remarks])


def _raising(error: ServiceError) -> Check:
    def attempt() -> str:
        raise error

    return attempt


def _say(verdict: str, name: str, words: str, error: ServiceError | None = None) -> None:
    style = "green" if verdict == "ok" else "bold red"
    console.print(f"[{style}]{verdict:6}[/] {name}: ", end="", highlight=False, soft_wrap=True)
    console.print(words, markup=False, highlight=False, soft_wrap=True)
    if error:
        console.print(f"       rule: {error.rule}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"       way out: {error.way_out}", markup=False, highlight=False, soft_wrap=True)
