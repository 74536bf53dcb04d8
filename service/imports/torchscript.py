"""A TorchScript file becomes an ONNX file, where PyTorch is installed. It is no dependency of ours."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.imports.refusal import CannotImport

_OPSET = 17
_TOLERANCE = 1e-3  # of the greatest answer; float32 through other kernels


def export(file: Path, window: Sequence[int], into: Path) -> Path:
    """Export a TorchScript network, and hold the result against it with the same input.

    Loading TorchScript runs no Python, but the graph that it holds is run: the file is trusted as far as an ONNX file.

    Parameters
    ----------
    window
        Spatial sizes of its input, which has one channel.
    into
        A folder for the ONNX file.

    Raises
    ------
    CannotImport
        If PyTorch is missing, the file can't be exported, or the export answers otherwise.
    """
    doing = f"exporting {file.name} as ONNX"
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as exc:
        raise CannotImport(
            doing=doing,
            found="PyTorch is not installed",
            rule="a bundle's TorchScript file is exported by PyTorch, which is no part of Overread",
            way_out="put a models/model.onnx into the bundle (python -m monai.bundle onnx_export), or install torch "
            "and onnxscript where `overread models import` runs",
        ) from exc
    target = into / "model.onnx"
    generator = torch.Generator().manual_seed(0)
    example = torch.rand((2, 1, *window), generator=generator)
    try:
        network = torch.jit.load(str(file), map_location="cpu").eval().float()
        with torch.no_grad():
            expected = network(example)
            torch.onnx.export(
                network,
                (example,),
                str(target),
                input_names=["input"],
                output_names=["output"],
                dynamic_axes={"input": {0: "N"}, "output": {0: "N"}},
                opset_version=_OPSET,
                dynamo=False,  # the newer exporter takes no TorchScript
            )
    except Exception as exc:  # PyTorch's own, of many kinds
        raise CannotImport(
            doing=doing,
            found=f"{type(exc).__name__}: {(str(exc).strip().splitlines() or ['no message'])[0]}",
            rule="the network takes one image of one channel, and all its operators have a form in ONNX",
            way_out="export it where it was trained, and put models/model.onnx into the bundle",
        ) from exc
    _hold(target, np.asarray(example), np.asarray(expected), doing)
    return target


def _hold(file: Path, example: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], doing: str) -> None:
    """Refuse an export that answers otherwise than its original; of two patches, so that the batch axis is seen."""
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    answer = session.run(None, {session.get_inputs()[0].name: example})[0]
    off = float(np.abs(answer - expected).max()) if answer.shape == expected.shape else float("inf")
    if not off <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise CannotImport(
            doing=doing,
            found=f"the exported network answers otherwise, by {off:g}",
            rule="it answers like its original",
            way_out="export it where it was trained, and put models/model.onnx into the bundle",
        )
