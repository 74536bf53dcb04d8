"""What becomes of a network's answers: maps put together, candidates and scores collected, window after window.

Each collector takes the answers of all windows in order; of an ensemble, those of one network after the other's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit

from service.analysis.layout import Map
from service.analysis.windows import Windows
from service.errors import ContractBroken
from service.stage import Stage
from service.types import Array, Box, Candidate


class Maps:
    """Puts maps together; where windows or networks overlap they are averaged.

    Parameters
    ----------
    channels
        The channels of the output of which a map is wanted, in that order.
    networks
        How many will answer.
    """

    def __init__(self, windows: Windows, channels: Sequence[int], *, networks: int = 1) -> None:
        assert windows.stage.output is not None
        self._stage, self._axes, self._layout = windows.stage, windows.axes, windows.layout
        all_channels = windows.stage.output.channels
        self._wanted = tuple(channels)
        exclusive = self._stage.labels == "exclusive"
        overlaps = self._stage.overlap > 0
        # How far a class is ahead of two others is not the mean of how far it was: then each has to be known at the end
        self._late = exclusive and all_channels > 2 and (overlaps or networks > 1)
        self._early = exclusive and not self._late
        self._held = tuple(range(all_channels)) if self._late else self._wanted
        shape = self._layout.grid.shape
        self._sum = np.zeros((len(self._held), *shape), np.float32)
        gaussian = overlaps and self._stage.blend == "gaussian"
        self._window = _bell(self._layout.answered) if gaussian else None
        self._weight = np.zeros(shape, np.float32 if gaussian else np.uint16) if overlaps else None
        self._taken = 0

    def take(self, answers: Sequence[Array]) -> None:
        """Put the next window's answer, [channels, *spatial*], in its place."""
        box = self._layout.answered_box(self._taken % len(self._layout.starts))
        if self._early:
            probabilities = _ahead(activate(answers[0], self._stage), self._held)
        elif self._stage.activation == "softmax":  # it looks at all channels, wanted or not
            probabilities = self._chosen(activate(answers[0], self._stage))
        else:
            probabilities = activate(self._chosen(answers[0]), self._stage)
        for total, one in zip(self._sum, probabilities, strict=True):
            answer = self._axes.turn_back(one[np.newaxis] if self._stage.is_flat else one)
            total[box] += answer if self._window is None else answer * self._window
        if self._weight is not None:
            self._weight[box] += 1 if self._window is None else self._window
        self._taken += 1

    def result(self) -> Map:
        """The maps, once every answer has been taken."""
        probability = self._sum
        rounds = self._taken // max(1, len(self._layout.starts))
        if self._weight is None:
            if rounds > 1:
                probability /= rounds
        elif self._window is None:
            probability /= np.maximum(self._weight, 1)
        else:
            np.divide(probability, self._weight, out=probability, where=self._weight > 0)
        if self._late:
            for plane in range(probability.shape[1]):
                probability[: len(self._wanted), plane] = _ahead(probability[:, plane], self._wanted)
            probability = probability[: len(self._wanted)].copy()
        mask = np.zeros(self._layout.grid.shape, bool)
        for one in probability:
            mask |= self._finished(one)
        return Map(grid=self._layout.grid, mask=mask, probability=probability)

    def _chosen(self, channels: Array) -> Array:
        return channels[list(self._held)] if len(self._held) > 1 else channels[self._held[0], np.newaxis]

    def _finished(self, probability: Array) -> NDArray[np.bool_]:
        """Set to 0 what does not count; what then is above the threshold."""
        if self._layout.keep is not None:
            probability[~self._layout.keep] = 0.0
        mask = probability > self._stage.threshold
        if self._stage.keep != "all":
            largest = _largest(mask) if self._stage.keep == "largest" else _connected(mask)
            probability[mask & ~largest] = 0.0
            mask = largest
        return mask


class Boxes:
    """Collects the candidates of a detection network.

    Parameters
    ----------
    channels
        The classes that are wanted.
    score
        Rows with a lower score are left out: those that fill up a fixed number, and those that nobody will report.
    """

    def __init__(self, windows: Windows, channels: Sequence[int], *, score: float) -> None:
        self._stage, self._axes = windows.stage, windows.axes
        self._layout, self._source = windows.layout, windows.source
        self._channels, self._score = tuple(channels), score
        self._found: list[Candidate] = []
        self._taken = 0

    def take(self, answers: Sequence[Array]) -> None:
        """Take the next window's boxes, [boxes, numbers], and their scores, [boxes] or [boxes, classes]."""
        rows, scores = answers
        probabilities = activate(scores.reshape(len(rows), -1), self._stage, axis=1)
        best = probabilities.argmax(axis=1)
        wanted = [
            (row, channel)
            for channel in self._channels
            for row in np.flatnonzero(probabilities[:, channel] >= self._score)
            if self._stage.labels == "independent" or best[row] == channel
        ]
        if wanted:
            corners = self._corners(rows[[row for row, _ in wanted]].astype(np.float64))
            window = self._layout.answered_box(self._taken)
            for (row, channel), pair in zip(wanted, corners, strict=True):
                self._add(channel, float(probabilities[row, channel]), pair, window)
        self._taken += 1

    def result(self) -> tuple[Candidate, ...]:
        """The candidates of all windows, in their order."""
        return tuple(self._found)

    def _corners(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N, 2, 3] least and greatest corner in voxels of the window, in the order of the source's axes."""
        if not np.isfinite(rows).all():
            raise _no_numbers(self._stage)
        axes = 2 if self._stage.is_flat else 3
        first, second = rows[:, :axes], rows[:, axes:]
        if self._stage.boxes == "centre-size":
            first, second = first - second / 2, first + second / 2
        elif self._stage.boxes == "centres":
            second = first
        if self._stage.is_flat:  # the slice itself: as thick as it is, or a point in its middle
            half = 0.0 if self._stage.boxes == "centres" else 0.5
            first, second = (np.insert(places, 0, z, axis=1) for places, z in ((first, -half), (second, half)))
        one, other = (self._axes.places_to_source(places, self._layout.answered) for places in (first, second))
        return np.stack([np.minimum(one, other), np.maximum(one, other)], axis=1)

    def _add(self, channel: int, score: float, corners: NDArray[np.float64], window: Box) -> None:
        """Keep a candidate, unless its centre is outside the region or none of it is in the image."""
        corners = corners + [axis.start for axis in window]
        keep = self._layout.keep
        if keep is not None:
            centre = np.clip(np.round(corners.mean(axis=0)).astype(int), 0, np.array(keep.shape) - 1)
            if not keep[tuple(centre)]:
                return
        grid, source = self._layout.grid, self._source
        places = (corners * grid.spacing_mm + grid.start_mm - source.start_mm) / source.spacing_mm
        last = np.array(source.shape) - 0.5  # the image's own edge
        if (places[1] < -0.5).any() or (places[0] > last).any():
            return
        low, high = (tuple(float(v) for v in np.clip(place, -0.5, last)) for place in places)
        self._found.append(
            Candidate(channel=channel, score=score, low=(low[0], low[1], low[2]), high=(high[0], high[1], high[2]))
        )


class Scores:
    """Collects the scores of a classification network; those of an ensemble are averaged."""

    def __init__(self, windows: Windows) -> None:
        assert windows.stage.output is not None
        self._stage, self._layout, self._source = windows.stage, windows.layout, windows.source
        self._sum = np.zeros((len(windows), windows.stage.output.channels), np.float32)
        self._taken = 0

    def take(self, answers: Sequence[Array]) -> None:
        """Take the next window's scores, [channels]."""
        self._sum[self._taken % len(self._sum)] += activate(answers[0], self._stage)
        self._taken += 1

    def result(self) -> tuple[Array, tuple[int, ...]]:
        """[windows, channels] scores, 0..1; and of each window the source slice in its middle."""
        rounds = self._taken // max(1, len(self._sum))
        grid, source = self._layout.grid, self._source
        first = np.array([start[0] for start in self._layout.starts])
        middle_mm = grid.start_mm[0] + (first + (self._layout.answered[0] - 1) / 2) * grid.spacing_mm[0]
        slices = np.round((middle_mm - source.start_mm[0]) / source.spacing_mm[0]).astype(int)
        return self._sum / np.float32(max(1, rounds)), tuple(int(s) for s in np.clip(slices, 0, source.shape[0] - 1))


def activate(answer: Array, stage: Stage, axis: int = 0) -> Array:
    """Probabilities, 0..1, of the same shape.

    Parameters
    ----------
    answer
        float32, as the network gave it.
    axis
        That of the classes.

    Raises
    ------
    ContractBroken
        If there are values among them that are no numbers: compared with a threshold, they would mean "nothing here".
    """
    if stage.activation == "sigmoid":
        result = np.asarray(expit(answer), np.float32)
    elif stage.activation == "softmax":
        with np.errstate(invalid="ignore"):  # it is looked at below
            powers = np.exp(answer - answer.max(axis=axis, keepdims=True))
            result = np.asarray(powers / powers.sum(axis=axis, keepdims=True), np.float32)
    else:
        result = answer
    if not np.isfinite(result).all():
        raise _no_numbers(stage)
    return np.clip(result, 0.0, 1.0) if stage.activation == "none" else result


def _no_numbers(stage: Stage) -> ContractBroken:
    return ContractBroken(
        doing=f"reading an answer of the network of stage {stage.name}",
        found="values that are not finite numbers",
        rule="every value of an answer is one; else nothing would be found where something is",
        way_out="try half_precision = false, and look at the network",
    )


def _ahead(probabilities: Array, channels: Sequence[int]) -> Array:
    """[channels, *spatial*] how far each is ahead of the greatest other: 0.5 + (own - greatest other) / 2."""
    ranked = np.partition(probabilities, -2, axis=0)
    greatest, second = ranked[-1], ranked[-2]
    result = np.empty((len(channels), *probabilities.shape[1:]), np.float32)
    for index, channel in enumerate(channels):
        own = probabilities[channel]
        # Where two are the greatest, the second is as great: neither is ahead.
        result[index] = 0.5 + (own - np.where(own == greatest, second, greatest)) / 2
    return result


def _bell(shape: NDArray[np.int_]) -> Array:
    """The weights of a window: they fall from its centre, standard deviation an eighth of its size; float32."""
    a, b, c = (np.exp(-0.5 * np.square((np.arange(n) - (n - 1) / 2) / (n / 8))) for n in shape)
    return np.asarray(a[:, None, None] * b[:, None] * c, np.float32)


def _connected(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 26-connected component."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return np.asarray(labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))) if count else mask


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest component, sought after one erosion so that a thin bridge does not join two organs."""
    labels, count = ndimage.label(ndimage.binary_erosion(mask))
    if count == 0:
        return mask
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return np.asarray(ndimage.binary_dilation(largest) & mask)
