"""Which backend the configuration asks for."""

from __future__ import annotations

from service.analysis.onnx import OnnxBackend
from service.config import Analysis
from service.errors import ConfigError
from service.types import Backend


def open_backend(analysis: Analysis) -> Backend:
    """Open the configured backend.

    Raises
    ------
    ConfigError
        If this version has none of that kind.
    """
    if analysis.backend != "onnxruntime":
        raise ConfigError(
            doing="opening the inference backend",
            found=f"[analysis] backend = {analysis.backend!r}",
            rule="this version runs networks in process; the Triton client comes with a later one",
            way_out='set backend = "onnxruntime"',
        )
    return OnnxBackend(threads=analysis.threads)
