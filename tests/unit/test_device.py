"""What the operating system and the CUDA runtime say of a device; CUDA as far as it can be told without a GPU."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.backends.device import Cuda, Machine, driver_version, free_memory, gpu_present

GIB = 2**30


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 1 kB\nMemAvailable:   8388608 kB\nMemFree: 1 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 8),
        # Version 2: the group itself, or one above it, sets the limit; pages of files are as good as free.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": f"{GIB}\n",
                "sys/fs/cgroup/a/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/a/memory.current": f"{2 * GIB}\n",
                "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            },
            3,
        ),
        # In a container the path may be the host's, while the mount begins at the container's own group.
        (
            {
                "proc/self/cgroup": "0::/docker/1234\n",
                "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory.current": "0\n",
            },
            2,
        ),
        # Version 1, with its word for no limit above.
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/x\n0::/\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{6 * GIB}\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": f"{GIB}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            },
            5,
        ),
        # Over its limit already.
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": f"{GIB}\n",
                "sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
            },
            0,
        ),
    ],
)
def test_free_memory_is_the_least_of_what_the_machine_and_its_groups_allow(
    files: dict[str, str], gib: int, tmp_path: Path
) -> None:
    assert free_memory(_write(tmp_path, files)) == gib * GIB


def test_a_peak_is_seen_after_it_is_over() -> None:
    machine = Machine()
    before = machine.held_bytes()
    assert machine.begin()
    much = np.full(64 * 2**20, 1, np.uint8)
    del much
    assert machine.held_bytes() < before + 32 * 2**20
    assert 60 * 2**20 <= machine.peak_bytes() - before < 80 * 2**20
    assert machine.begin()
    assert machine.peak_bytes() < before + 32 * 2**20
    assert 0 < machine.free_bytes() < machine.total_bytes


def test_what_was_freed_is_not_held() -> None:
    """The C library keeps small pieces that are free for itself, unless the last one before its heap's end is free."""
    machine = Machine()
    before = machine.held_bytes()
    pieces = [bytearray(100_000) for _ in range(700)]
    for piece in pieces:
        piece[:] = b"x" * len(piece)
    assert machine.held_bytes() > before + 60 * 2**20
    del pieces[:-1], piece
    assert machine.held_bytes() < before + 30 * 2**20
    assert len(pieces) == 1


def test_a_gpu_is_looked_for_in_its_device_files(tmp_path: Path) -> None:
    assert not gpu_present(tmp_path)
    _write(tmp_path, {"dev/nvidiactl": ""})
    assert gpu_present(tmp_path)


def test_the_driver_tells_its_version(tmp_path: Path) -> None:
    assert driver_version(tmp_path) == "unknown"
    said = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build\nGCC version:  12\n"
    _write(tmp_path, {"proc/driver/nvidia/version": said})
    assert driver_version(tmp_path) == "570.124.06"


class _Cudart:
    """The functions of libcudart that are called, with memory that the test changes."""

    def __init__(self, *, status: int = 0, refuses: bool = False) -> None:
        self.free, self.total = 3 * GIB, 8 * GIB
        self.status, self.refuses = status, refuses
        self.pinned: dict[int, int] = {}
        self.last_error = 0

    def cudaMemGetInfo(self, free: Any, total: Any) -> int:
        ctypes.cast(free, ctypes.POINTER(ctypes.c_size_t))[0] = self.free
        ctypes.cast(total, ctypes.POINTER(ctypes.c_size_t))[0] = self.total
        return self.status

    def cudaGetDeviceProperties(self, properties: Any, device: int) -> int:
        ctypes.memmove(properties, b"NVIDIA H200\x00\xff\xff", 14)
        return self.status

    def cudaHostRegister(self, address: ctypes.c_void_p, size: ctypes.c_size_t, flags: int) -> int:
        if self.refuses:
            self.last_error = 1
            return 1
        assert address.value
        self.pinned[address.value] = size.value
        return 0

    def cudaHostUnregister(self, address: ctypes.c_void_p) -> int:
        assert address.value
        self.last_error = 0 if self.pinned.pop(address.value, 0) else 1
        return self.last_error

    def cudaGetLastError(self) -> int:
        last, self.last_error = self.last_error, 0
        return last


def _cuda(runtime: _Cudart) -> Cuda:
    library: Any = runtime
    return Cuda(library)


def test_a_gpus_memory_and_name_are_asked_of_the_cuda_runtime() -> None:
    runtime = _Cudart()
    cuda = _cuda(runtime)
    assert (cuda.name, cuda.total_bytes, cuda.free_bytes(), cuda.held_bytes()) == (
        "NVIDIA H200",
        8 * GIB,
        3 * GIB,
        5 * GIB,
    )
    assert cuda.begin()
    runtime.free = 2 * GIB
    assert cuda.peak_bytes() == cuda.held_bytes() == 6 * GIB


def test_pages_are_pinned_and_let_go() -> None:
    runtime = _Cudart()
    cuda = _cuda(runtime)
    assert cuda.pin(4096 * 2**32, 5 * GIB)  # neither is cut to 32 bits
    assert runtime.pinned == {4096 * 2**32: 5 * GIB}
    cuda.unpin(4096 * 2**32)
    assert runtime.pinned == {}


def test_pages_that_cant_be_pinned_are_no_error_and_leave_none_for_the_next_call() -> None:
    runtime = _Cudart(refuses=True)
    cuda = _cuda(runtime)
    assert not cuda.pin(4096, 4096)
    assert runtime.last_error == 0
    cuda.unpin(4096)
    assert runtime.last_error == 0


def test_a_cuda_runtime_that_finds_no_device_is_an_error() -> None:
    with pytest.raises(OSError, match="answers 100"):
        _cuda(_Cudart(status=100))
