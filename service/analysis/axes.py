"""How a network's axes lie on those of the source volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from highdicom import PatientOrientationValuesBiped
from numpy.typing import NDArray

from service.analysis.resample import Vector

_GROWS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "H": (2, 1), "I": (2, -1), "F": (2, -1)}

_Kind = TypeVar("_Kind", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """How a stage's axes lie on the source's: stage axis k is source axis ``order[k]``, reversed where ``flip[k]``."""

    order: tuple[int, ...]
    flip: tuple[bool, ...]

    @classmethod
    def of(cls, source: Sequence[PatientOrientationValuesBiped], stage: str) -> Axes:
        """From the patient directions in which the source's and the stage's axes grow."""
        own = [_GROWS[direction.value] for direction in source]
        order = tuple(next(i for i, (axis, _) in enumerate(own) if axis == _GROWS[letter][0]) for letter in stage)
        flip = tuple(own[i][1] != _GROWS[letter][1] for i, letter in zip(order, stage, strict=True))
        return cls(order=order, flip=flip)

    def to_source(self, values: Sequence[float]) -> Vector:
        """[3] per-axis values of the stage in the order of the source's axes."""
        result = np.empty(3)
        result[list(self.order)] = values
        return result

    def places_to_source(self, places: Vector, size: Sequence[int] | NDArray[np.int_]) -> Vector:
        """[N, 3] places in a window (a voxel's centre has its index), of the stage's axes in the source's.

        Parameters
        ----------
        places
            float64 [N, 3], in the order of the stage's axes.
        size
            [3] the window's shape, in the order of the source's axes.
        """
        result = np.empty_like(places)
        for k, (axis, flipped) in enumerate(zip(self.order, self.flip, strict=True)):
            result[:, axis] = size[axis] - 1 - places[:, k] if flipped else places[:, k]
        return result

    def turn(self, array: NDArray[_Kind]) -> NDArray[_Kind]:
        """A view of an array of source axes in the stage's axes."""
        return array.transpose(self.order)[self._reversed]

    def turn_back(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """The reverse of `turn`."""
        return array[self._reversed].transpose([int(k) for k in np.argsort(self.order)])

    @property
    def _reversed(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else None) for flip in self.flip)
