"""Intensity transforms, one after the other, as the one rule that `Intensity` can say; or not at all."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from service.imports.refusal import Unmappable
from service.stage import Intensity

_UNBOUNDED = 1e30  # for a clip that has one side only; far beyond any pixel value
_SAME = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What has been done to an image so far: ``normalise(clip(value)) * slope + intercept``.

    Each method gives the chain with one more step, or raises `Unmappable` where the result is no such rule. The
    equalities used are exact: a standard deviation, a range or a percentile does not see a shift or a positive factor
    that came before it.
    """

    clip: tuple[float, float] | None = None  # in real-world values
    percentiles: tuple[float, float] | None = None
    normalise: Literal["none", "z-score", "range"] = "none"
    nonzero: bool = False
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def is_linear(self) -> bool:
        """Whether it commutes with linear resampling: every value is shifted and scaled alike."""
        return not self.clip and not self.percentiles and not self.nonzero

    def linear(self, slope: float, intercept: float) -> Chain:
        """Then ``value * slope + intercept``."""
        if slope == 0 or not (math.isfinite(slope) and math.isfinite(intercept)):
            raise Unmappable("it would leave nothing of the image")
        if self.nonzero and intercept:
            raise Unmappable("values of 0, which were left out before, would be shifted too")
        return replace(self, slope=self.slope * slope, intercept=self.intercept * slope + intercept)

    def clipped(self, low: float, high: float) -> Chain:
        """Then values below and above two limits become these."""
        if not low < high:
            raise Unmappable(f"{low:g} to {high:g} is no range")
        if self.normalise == "range":
            ends = sorted((self.intercept, self.intercept + self.slope))
            if low <= ends[0] + _SAME and high >= ends[1] - _SAME:
                return self  # nothing is beyond the limits
        if self.normalise != "none" or self.percentiles:
            raise Unmappable("it clips values that were normalised before, by limits that depend on the image")
        first, second = sorted(((low - self.intercept) / self.slope, (high - self.intercept) / self.slope))
        if self.clip:
            first, second = max(first, self.clip[0]), min(second, self.clip[1])
        if not first < second:
            raise Unmappable("it clips away what an earlier clip kept")
        return replace(self, clip=(first, second))

    def standardised(self, *, nonzero: bool) -> Chain:
        """Then mean 0 and standard deviation 1, of all values or of those that are not 0."""
        if self.nonzero:
            raise Unmappable("values of 0 were left out of an earlier normalisation")
        if nonzero:
            inside = self.clip is None or self.clip[0] < 0 < self.clip[1]
            if self.intercept or not inside or self.percentiles or self.normalise != "none":
                raise Unmappable("nonzero: what is 0 there is another value in the images")
        sign = math.copysign(1.0, self.slope)
        return replace(self, normalise="z-score", nonzero=nonzero, slope=sign, intercept=0.0)

    def ranged(self, low: float, high: float) -> Chain:
        """Then the least value becomes `low` and the greatest `high`."""
        if self.nonzero:
            raise Unmappable("values of 0 were left out of an earlier normalisation")
        if not low < high:
            raise Unmappable(f"{low:g} to {high:g} is no range")
        if self.slope > 0:
            return replace(self, normalise="range", slope=high - low, intercept=low)
        return replace(self, normalise="range", slope=low - high, intercept=high)

    def between_percentiles(self, lower: float, upper: float, low: float, high: float) -> Chain:
        """Then two percentiles of the image become `low` and `high`, and values beyond them these."""
        return self._percentiles(lower, upper).ranged(low, high)

    def clipped_at_percentiles(self, lower: float, upper: float) -> Chain:
        """Then values below and above two percentiles of the image become these."""
        if self.normalise != "none":
            raise Unmappable("it clips values that were normalised before")
        return self._percentiles(lower, upper)

    def _percentiles(self, lower: float, upper: float) -> Chain:
        if self.clip or self.percentiles or self.nonzero:
            raise Unmappable("it takes percentiles of values that were clipped or masked before")
        if self.slope < 0:
            raise Unmappable("it takes percentiles of values that were turned round before")
        if not 0 <= lower < upper <= 100:
            raise Unmappable(f"{lower:g} to {upper:g} is no range of percentiles")
        return replace(self, percentiles=(lower, upper))

    def value_for(self, network_value: float) -> float | None:
        """The real-world value that becomes a value of the network's input; None where the image decides that."""
        if self.nonzero and network_value == 0:
            return 0.0
        if self.normalise != "none" or self.percentiles:
            return None
        found = (network_value - self.intercept) / self.slope
        return min(max(found, self.clip[0]), self.clip[1]) if self.clip else found

    def of(self, value: float) -> float:
        """What becomes of a real-world value where the image does not decide that."""
        if self.normalise != "none" or self.percentiles:
            raise ValueError("this depends on the image")
        return (min(max(value, self.clip[0]), self.clip[1]) if self.clip else value) * self.slope + self.intercept

    def intensity(self, *, outside: float) -> Intensity:
        """As `Intensity` says it."""
        clip = self.clip and (max(self.clip[0], -_UNBOUNDED), min(self.clip[1], _UNBOUNDED))
        return Intensity(
            clip=clip,
            percentiles=self.percentiles,
            normalise=self.normalise,
            nonzero=self.nonzero,
            offset=self.intercept / self.slope,
            scale=self.slope,
            outside=outside,
        )
