"""From real-world values to a network's input, by the stage's `Intensity`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.stage import Intensity
from service.types import Array

_ROUNDING = 32 * float(np.finfo(np.float32).eps)  # what resampling may make of a sum of weights, for 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """An intensity rule with the numbers that it takes of the image's own values."""

    rule: Intensity
    clip: tuple[float, float] | None
    subtract: float
    divide: float

    @classmethod
    def measured(cls, rule: Intensity, values: Array) -> Scaling:
        """Take what the rule needs of the values of a volume or of a window.

        Parameters
        ----------
        values
            float32, real-world values, [slices, rows, columns]; nothing of what lies beyond the image.
        """
        clip = rule.clip
        if rule.percentiles:
            counted = values[values != 0] if rule.nonzero else values
            least, most = np.percentile(counted, rule.percentiles) if counted.size else (0.0, 0.0)
            clip = float(least), float(most)
        subtract, divide = 0.0, 1.0
        if rule.normalise == "range":
            subtract, greatest = _range(rule, values, clip)
            divide = (greatest - subtract) or 1.0
        elif rule.normalise == "z-score":
            subtract, deviation = _moments(rule, values, clip)
            divide = deviation or 1.0
        return cls(rule=rule, clip=clip, subtract=subtract, divide=divide)

    def apply(self, image: Array) -> None:
        """Scale real-world values in place; `channel_mean` and `channel_std` come later, they are each channel's own.

        Parameters
        ----------
        image
            float32 [slices, rows, columns].
        """
        rule = self.rule
        for plane in image:  # one by one: each stays in the cache from step to step
            # A 0 of the image is not quite one where it was resampled beside an `outside` that is none.
            zero = np.abs(plane) <= _ROUNDING * abs(rule.outside) if rule.nonzero else None
            if self.clip:
                np.clip(plane, *self.clip, out=plane)
            if rule.normalise != "none":
                plane -= np.float32(self.subtract)
                plane /= np.float32(self.divide)
            if zero is not None:
                plane[zero] = 0.0
            plane += np.float32(rule.offset)
            plane *= np.float32(rule.scale)


def by_channel(rule: Intensity, channels: Array) -> Array:
    """Subtract each channel's mean and divide by its deviation; [channels, *spatial*]."""
    if not rule.channel_mean:
        return channels
    shape = (-1, *[1] * (channels.ndim - 1))
    mean = np.array(rule.channel_mean, np.float32).reshape(shape)
    deviation = np.array(rule.channel_std, np.float32).reshape(shape)
    return (channels - mean) / deviation


def _counted(rule: Intensity, plane: Array, clip: tuple[float, float] | None) -> Array:
    counted = plane[plane != 0] if rule.nonzero else plane
    return np.clip(counted, *clip) if clip else counted


def _range(rule: Intensity, values: Array, clip: tuple[float, float] | None) -> tuple[float, float]:
    """Least and greatest value; 0 and 0 where none counts."""
    ends = [
        (float(counted.min()), float(counted.max()))
        for plane in values
        if (counted := _counted(rule, plane, clip)).size
    ]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (0.0, 0.0)


def _moments(rule: Intensity, values: Array, clip: tuple[float, float] | None) -> tuple[float, float]:
    """Mean and standard deviation, plane by plane: no copy of the volume in double precision; 0 and 0 for none."""
    count, total, squares = 0, 0.0, 0.0
    for plane in values:
        counted = _counted(rule, plane, clip)
        count += counted.size
        total += float(counted.sum(dtype=np.float64))
    if not count:
        return 0.0, 0.0
    mean = total / count
    for plane in values:
        squares += float(np.square(_counted(rule, plane, clip) - mean, dtype=np.float64).sum())
    return mean, float(np.sqrt(squares / count))
