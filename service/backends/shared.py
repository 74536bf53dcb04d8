"""Memory that two processes see, for patches on their way to a network: no copy is made between the two."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_NAMED = Path("/dev/shm")  # where shm_open(3) keeps its names on Linux
_PREFIX = "overread"


class Block:
    """A piece of shared memory.

    Attributes
    ----------
    fd
        Its file descriptor: an anonymous block is handed to another process by it.
    name
        Of a named block, as ``shm_open`` takes it, without the leading slash; else empty.
    size
        Bytes.
    """

    def __init__(self, fd: int, size: int, name: str = "") -> None:
        self.fd, self.size, self.name = fd, size, name
        self._map = mmap.mmap(fd, size)

    @classmethod
    def anonymous(cls, size: int) -> Block:
        """A block without a name: it can't be left behind, and /dev/shm's limit (64 MB in a container) is not its."""
        fd = os.memfd_create(_PREFIX, os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            return cls(fd, size)
        except OSError:
            os.close(fd)
            raise

    @classmethod
    def named(cls, label: str, size: int) -> Block:
        """A block that a process which is no child of ours opens by name.

        Raises
        ------
        OSError
            If /dev/shm has not that much room.
        """
        name = f"{_PREFIX}-{os.getpid()}-{label}"
        fd = os.open(_NAMED / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Not ftruncate: it promises memory that may not be there, and a later write dies of SIGBUS.
            os.posix_fallocate(fd, 0, size)
            return cls(fd, size, name)
        except OSError:
            os.close(fd)
            (_NAMED / name).unlink()
            raise

    @property
    def address(self) -> int:
        """Where it lies in this process."""
        return int(np.frombuffer(self._map, np.uint8).ctypes.data)

    def array(self, shape: tuple[int, ...], offset: int = 0) -> NDArray[np.float32]:
        """A float32 array that lies in the block at `offset` bytes; it must be gone before `close`."""
        return np.frombuffer(self._map, np.float32, count=int(np.prod(shape)), offset=offset).reshape(shape)

    def close(self) -> None:
        """Let it go, and its name with it."""
        with contextlib.suppress(BufferError):  # an array still lies in it: the memory goes when that does
            self._map.close()
        os.close(self.fd)
        if self.name:
            with contextlib.suppress(FileNotFoundError):
                (_NAMED / self.name).unlink()


def sweep() -> None:
    """Remove the named blocks of services that were killed."""
    for path in _NAMED.glob(f"{_PREFIX}-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                path.unlink()
