"""[edge] What networks run on, as the operating system and the CUDA driver tell it: its name, its memory, its pinning.

ONNX Runtime tells none of it. Only the engine's process comes here.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
from pathlib import Path
from typing import Final, Protocol

_ROOT: Final = Path("/")
_RESET_PEAK: Final = "5"  # proc_pid_clear_refs(5)
_CUDART: Final = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_CHUNK_BYTES: Final = 4096  # more than cudaDeviceProp, whose first 256 bytes are the name, ever had
_PORTABLE: Final = 1  # cudaHostRegisterPortable


class Device(Protocol):
    """Where a network takes memory."""

    total_bytes: int

    def held_bytes(self) -> int:
        """Taken now."""

    def begin(self) -> bool:
        """Begin to look for a peak; False where it can't be seen."""

    def peak_bytes(self) -> int:
        """The most that was taken since `begin`."""

    def free_bytes(self) -> int:
        """What could still be taken."""

    def pin(self, address: int, size: int) -> bool:
        """Lock pages of this process, so that a GPU reads them by itself; False where it does not."""

    def unpin(self, address: int) -> None:
        """Let pages go that were locked."""


class Machine:
    """The processor: its memory is the machine's, as far as this process may have it."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self.total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def held_bytes(self) -> int:
        """Resident pages (VmRSS), after the allocator has given back what is free."""
        with contextlib.suppress(AttributeError):  # another C library than glibc
            self._library.malloc_trim(0)
        return _status_bytes("VmRSS")

    def begin(self) -> bool:
        """Set the high-water mark back."""
        try:
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        except OSError:
            return False
        return True

    def peak_bytes(self) -> int:
        """The high-water mark of resident pages (VmHWM)."""
        return _status_bytes("VmHWM")

    def free_bytes(self) -> int:
        """See `free_memory`."""
        return free_memory()

    def pin(self, address: int, size: int) -> bool:
        """Nothing to do: it reads any page."""
        return False

    def unpin(self, address: int) -> None:
        """Nothing to do."""


class Cuda:
    """The first NVIDIA GPU. The calls go straight to the CUDA runtime that ONNX Runtime has loaded.

    Parameters
    ----------
    runtime
        The library libcudart; without it, it is looked for.

    Raises
    ------
    OSError
        If there is no such library, or it finds no device.
    """

    def __init__(self, runtime: ctypes.CDLL | None = None) -> None:
        self._runtime = runtime or _load_cudart()
        self._memory()  # makes the context, whose own memory is thereby no network's
        properties = ctypes.create_string_buffer(_CHUNK_BYTES)
        self._check(self._runtime.cudaGetDeviceProperties(properties, 0))
        self.name = properties.value.decode("ascii", "replace")
        self.total_bytes = self._memory()[1]

    def held_bytes(self) -> int:
        """Device memory in use, by whomever."""
        free, total = self._memory()
        return total - free

    def begin(self) -> bool:
        """Nothing to do: ONNX Runtime's arena keeps what a batch took, so the peak stays to be seen."""
        return True

    def peak_bytes(self) -> int:
        """The same as what is held, as long as the arena was not told to shrink."""
        return self.held_bytes()

    def free_bytes(self) -> int:
        """Free device memory."""
        return self._memory()[0]

    def pin(self, address: int, size: int) -> bool:
        """Register pages (cudaHostRegister): copies then need no buffer between."""
        refused = self._runtime.cudaHostRegister(ctypes.c_void_p(address), ctypes.c_size_t(size), _PORTABLE)
        if refused:
            self._runtime.cudaGetLastError()  # else the next call would report it
        return not refused

    def unpin(self, address: int) -> None:
        """Unregister them."""
        if self._runtime.cudaHostUnregister(ctypes.c_void_p(address)):
            self._runtime.cudaGetLastError()

    def _memory(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._check(self._runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)))
        return free.value, total.value

    def _check(self, status: int) -> None:
        if status:
            self._runtime.cudaGetLastError()
            raise OSError(f"the CUDA runtime answers {status}")


def gpu_present(root: Path = _ROOT) -> bool:
    """Whether an NVIDIA GPU is there; asked first, because ONNX Runtime shouts where it finds none."""
    return (root / "dev/nvidiactl").exists() or (root / "dev/dxg").exists()


def driver_version(root: Path = _ROOT) -> str:
    """Version of the NVIDIA driver, or "unknown"."""
    try:
        line = (root / "proc/driver/nvidia/version").read_text("utf-8", "replace").splitlines()[0]
    except (OSError, IndexError):
        return "unknown"
    return next((word for word in line.split() if word[:1].isdigit() and "." in word), "unknown")


def tensorrt_version() -> str:
    """The file name of TensorRT's library, which ends in its version; empty where there is none."""
    return ctypes.util.find_library("nvinfer") or ""


def free_memory(root: Path = _ROOT) -> int:
    """Bytes of the machine's memory that this process could still take: its cgroups may allow less than is free.

    Parameters
    ----------
    root
        Where ``/proc`` and ``/sys`` are.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                free = min(free, _cgroup_free(root / "sys/fs/cgroup", path, "memory.max", "memory.current", ""))
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
                free = min(free, _cgroup_free(root / "sys/fs/cgroup/memory", path, *names))
    return max(0, free)


def _cgroup_free(mount: Path, path: str, limit: str, usage: str, prefix: str) -> int:
    """What a cgroup and those above it still allow. In a container the path may be the host's, and the mount ours."""
    least = 2**63 - 1
    folder = mount / path.lstrip("/")
    for group in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # "max", and the root group, which has no limit
            allowed = int((group / limit).read_text())
            used = int((group / usage).read_text())
            cached = _cached_files(group / "memory.stat", f"{prefix}inactive_file")
            least = min(least, allowed - used + cached)
        if group == mount:
            break
    return least


def _cached_files(path: Path, key: str) -> int:
    """Pages of files that the kernel drops when memory is wanted."""
    try:
        return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(f"{key} "))
    except (OSError, StopIteration):
        return 0


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _load_cudart() -> ctypes.CDLL:
    for name in _CUDART:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise OSError("there is no CUDA runtime library")
