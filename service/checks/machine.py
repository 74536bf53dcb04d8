"""The machine: the store's disk, the clock, the GPU and its driver, how many files may be open."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from service.backends import device
from service.checks.types import Checks, Doubtful
from service.config import Config
from service.errors import ConfigError

_SLOW_FSYNC_MS: Final = 50.0  # each received instance waits for one
_UNSYNC: Final = 0x0040  # STA_UNSYNC of adjtimex(2)
_TIMEX_BYTES: Final = 512  # more than struct timex has; its status is at byte 40 on 64-bit Linux
_FILES: Final = 4096  # sockets, spool files and databases of a busy receiver
# By CUDA's major version, the least driver on Linux that runs it (NVIDIA, CUDA compatibility).
_DRIVERS: Final = {12: 525, 13: 580}


def checks(config: Config) -> Checks:
    """Those of the machine."""
    yield "store", lambda: _writes(config)
    yield "clock", _clock
    yield "open files", _files
    if config.analysis.backend == "onnxruntime" and "work" in config.process.parts:
        yield "GPU", _gpu


def _writes(config: Config) -> str:
    """Write and fsync small files, as the spool will, and give one a second name."""
    directory = config.store.directory
    milliseconds = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for _ in range(5):
            with tempfile.NamedTemporaryFile(dir=directory) as file:
                began = time.perf_counter()
                file.write(bytes(1 << 19))
                file.flush()
                os.fsync(file.fileno())
                milliseconds.append((time.perf_counter() - began) * 1000)
                os.link(file.name, f"{file.name}.link")
                os.unlink(f"{file.name}.link")
    except OSError as exc:
        raise ConfigError(
            doing=f"writing to {directory}",
            found=exc.strerror or type(exc).__name__,
            rule="[store] directory is a folder that the service may make and write, on a file system with hard links",
            way_out="name another folder, or give the service's user the right to write there",
        ) from exc
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize / 2**30
    if free < config.intake.minimum_free_gib:
        raise ConfigError(
            doing=f"measuring the disk of {directory}",
            found=f"{free:.1f} GiB free",
            rule=f"[intake] minimum_free_gib = {config.intake.minimum_free_gib:g}: with less, instances are refused",
            way_out="free some space, or set [store] directory to a larger disk",
        )
    took = statistics.median(milliseconds)
    if took > _SLOW_FSYNC_MS:
        raise Doubtful(
            doing=f"writing to {directory}",
            found=f"half a megabyte is on the disk after {took:.0f} ms",
            rule=f"each received image waits for that, so more than {_SLOW_FSYNC_MS:.0f} ms slow the senders down",
            way_out="set [store] directory to a local SSD, or a faster network file system",
        )
    return f"{directory}: {free:.1f} GiB free, half a megabyte is on the disk in {took:.0f} ms"


def _clock() -> str:
    """Whether the kernel knows its clock to be synchronised (adjtimex)."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except (AttributeError, OSError):
        state = -1
    status = int.from_bytes(timex.raw[40:44], "little")
    if state < 0:
        return "the system does not tell whether it is synchronised"
    if status & _UNSYNC:
        raise Doubtful(
            doing="asking the kernel about the clock",
            found="it is not synchronised",
            rule="results carry the time, certificates are judged by it, and several machines agree on it",
            way_out="run an NTP client (chrony, systemd-timesyncd); in a container, on its host",
        )
    return "synchronised"


def _files() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else _FILES  # the receivers raise theirs as far as they may
    if most < _FILES:
        raise Doubtful(
            doing="asking how many files may be open",
            found=f"{most} at most",
            rule=f"receiving from many at once takes up to {_FILES}",
            way_out="raise the limit (LimitNOFILE of the unit, ulimits of the container)",
        )
    return f"{soft} may be open, and {'any number' if hard == resource.RLIM_INFINITY else hard} if need be"


def _gpu(root: Path = Path("/")) -> str:
    """The driver's version against the CUDA that ONNX Runtime was built for."""
    if not device.gpu_present(root):
        return "none: networks run on the CPU"
    driver, cuda = device.driver_version(root), _cuda_major()
    least = _DRIVERS.get(cuda, 0)
    major = int(driver.partition(".")[0]) if driver.partition(".")[0].isdigit() else 0
    if major and major < least:
        raise ConfigError(
            doing="comparing the GPU's driver with ONNX Runtime",
            found=f"driver {driver}",
            rule=f"ONNX Runtime is built for CUDA {cuda}, which runs from driver {least} on",
            way_out="install a newer driver; until then networks run on the CPU",
        )
    return f"driver {driver}, ONNX Runtime is built for CUDA {cuda}"


def _cuda_major() -> int:
    """Of the CUDA runtime that the installed ONNX Runtime asks for; 0 where it does not say."""
    for requirement in importlib.metadata.requires("onnxruntime-gpu") or ():
        found = re.match(r"nvidia-cuda-runtime\S*?~=(\d+)", requirement)
        if found:
            return int(found[1])
    return 0
