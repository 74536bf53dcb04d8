"""Which backend the configuration asks for."""

from __future__ import annotations

from service.backends.engine import OnnxBackend
from service.backends.triton import TritonBackend
from service.settings.analysis import Analysis, Triton
from service.types import Backend

_TRITON = "triton://"


def open_backend(analysis: Analysis, triton: Triton | None = None) -> Backend:
    """Open the configured backend; whether a server is there shows when a network is loaded."""
    if analysis.backend.startswith(_TRITON):
        address = analysis.backend.removeprefix(_TRITON)
        return TritonBackend(address, triton or Triton(), patch_seconds=analysis.patch_seconds)
    return OnnxBackend(
        threads=analysis.threads, memory_gib=analysis.gpu_memory_gib, patch_seconds=analysis.patch_seconds
    )
