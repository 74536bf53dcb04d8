"""[edge] Memory that a Triton server reads patches from and writes answers to, instead of messages."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from service.backends.shared import Block
from service.backends.triton_channel import status
from service.types import Array

_UNWRITTEN = np.uint32(0x7FC0DEAD)  # a NaN that no arithmetic makes: stands where an answer is to come
Shapes = Sequence[tuple[int, ...]]


class Region(Protocol):
    """Memory for one call, known to the server under a name that nobody had before."""

    copied_bytes: int  # by this process, to write and to read, so far

    def fits(self, read: int, written: int) -> bool:
        """Whether so many bytes can be read from it and written to it by the server."""

    def register(self, client: Any, seconds: float) -> None:
        """Make it known to the server; raises what the client raises."""

    def unregister(self, client: Any, seconds: float) -> None:
        """The opposite; not known: does nothing."""

    def is_known(self, client: Any, seconds: float) -> bool:
        """Whether the server still knows it."""

    def write(self, patches: Sequence[Array], shapes: Shapes) -> tuple[str, tuple[str, int]]:
        """Copy the patches in and mark the places of the answers.

        Returns
        -------
        tuple
            The name under which the patches lie, from its beginning on; the name, and the offset in bytes, of the
            answers, one behind the other.
        """

    def read(self, shapes: Shapes) -> list[Array]:
        """Copies of the answers."""

    def close(self) -> None:
        """Let the memory go."""


class SystemRegion:
    """A `Region` in /dev/shm."""

    def __init__(self, read: int, written: int) -> None:
        # The name is new each time: a server keeps the memory of one that was killed under its old name.
        self._block = Block.named(secrets.token_hex(8), read + written)
        self._answers = 0
        self.copied_bytes = 0

    def fits(self, read: int, written: int) -> bool:
        return read + written <= self._block.size

    def register(self, client: Any, seconds: float) -> None:
        name = self._block.name
        client.register_system_shared_memory(name, f"/{name}", self._block.size, client_timeout=seconds)

    def unregister(self, client: Any, seconds: float) -> None:
        client.unregister_system_shared_memory(self._block.name, client_timeout=seconds)

    def is_known(self, client: Any, seconds: float) -> bool:
        return _is_known(client.get_system_shared_memory_status, self._block.name, seconds)

    def write(self, patches: Sequence[Array], shapes: Shapes) -> tuple[str, tuple[str, int]]:
        batch = self._block.array((len(patches), *patches[0].shape))
        for place, patch in zip(batch, patches, strict=True):
            place[...] = patch
        self._answers = batch.nbytes
        self.copied_bytes += batch.nbytes
        for answer in self._views(shapes):
            mark(answer)
        return self._block.name, (self._block.name, self._answers)

    def read(self, shapes: Shapes) -> list[Array]:
        answers = [view.copy() for view in self._views(shapes)]
        self.copied_bytes += sum(answer.nbytes for answer in answers)
        return answers

    def close(self) -> None:
        self._block.close()

    def _views(self, shapes: Shapes) -> list[Array]:
        offset, views = self._answers, []
        for shape in shapes:
            views.append(self._block.array(shape, offset))
            offset += views[-1].nbytes
        return views


class CudaRegion:
    """A `Region` in the memory of the first GPU, which the server opens by its CUDA IPC handle."""

    def __init__(self, read: int, written: int) -> None:
        # Raises RuntimeError without cuda-python, CudaSharedMemoryException without a GPU.
        from tritonclient.utils import cuda_shared_memory

        self._cuda = cuda_shared_memory
        self._sizes = (read, written)
        token = secrets.token_hex(8)
        self._names = (f"overread-{token}-patches", f"overread-{token}-answers")
        self._handles: list[Any] = []
        try:
            for name, size in zip(self._names, self._sizes, strict=True):
                self._handles.append(cuda_shared_memory.create_shared_memory_region(name, size, 0))
        except Exception:
            self.close()
            raise
        self.copied_bytes = 0

    def fits(self, read: int, written: int) -> bool:
        return read <= self._sizes[0] and written <= self._sizes[1]

    def register(self, client: Any, seconds: float) -> None:
        for name, handle, size in zip(self._names, self._handles, self._sizes, strict=True):
            raw = self._cuda.get_raw_handle(handle)
            client.register_cuda_shared_memory(name, raw, 0, size, client_timeout=seconds)

    def unregister(self, client: Any, seconds: float) -> None:
        for name in self._names:
            client.unregister_cuda_shared_memory(name, client_timeout=seconds)

    def is_known(self, client: Any, seconds: float) -> bool:
        return any(_is_known(client.get_cuda_shared_memory_status, name, seconds) for name in self._names)

    def write(self, patches: Sequence[Array], shapes: Shapes) -> tuple[str, tuple[str, int]]:
        blank = [np.empty(shape, np.float32) for shape in shapes]
        for answer in blank:
            mark(answer)
        self._cuda.set_shared_memory_region(self._handles[0], [np.asarray(patch, np.float32) for patch in patches])
        self._cuda.set_shared_memory_region(self._handles[1], blank)
        # Tritonclient flattens into a copy, and copies that to the device.
        self.copied_bytes += 2 * (sum(patch.size * 4 for patch in patches) + sum(answer.nbytes for answer in blank))
        return self._names[0], (self._names[1], 0)

    def read(self, shapes: Shapes) -> list[Array]:
        sizes = [int(np.prod(shape)) for shape in shapes]
        whole = self._cuda.get_contents_as_numpy(self._handles[1], np.float32, [sum(sizes)])
        self.copied_bytes += self._sizes[1] + whole.nbytes
        parts = np.split(whole, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def close(self) -> None:
        for handle in self._handles:
            with contextlib.suppress(Exception):  # the device may be gone, and the memory with it
                self._cuda.destroy_shared_memory_region(handle)
        self._handles = []


KINDS: dict[str, Callable[[int, int], Region]] = {"cuda": CudaRegion, "system": SystemRegion}


def mark(answer: Array) -> None:
    """Mark an answer as not yet written: the first and the last value for each patch."""
    _edges(answer)[:, [0, -1]] = _UNWRITTEN


def is_written(answer: Array) -> bool:
    """Whether nothing of that is left."""
    return not (_edges(answer)[:, [0, -1]] == _UNWRITTEN).any()


def _edges(answer: Array) -> NDArray[np.uint32]:
    return answer.reshape(len(answer), -1).view(np.uint32)


def _is_known(ask: Callable[..., Any], name: str, seconds: float) -> bool:
    try:
        return name in ask(name, client_timeout=seconds).regions
    except InferenceServerException as exc:
        if status(exc) is grpc.StatusCode.NOT_FOUND:
            return False
        raise
