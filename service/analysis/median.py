"""The median of each voxel's 3 x 3 x 3 neighbourhood, by least and greatest of whole arrays instead of voxel by voxel.

The 27 values are sorted along slices, then along rows, then along columns; the first two sorts serve all the columns at
once. After that nothing is known to be the median, but eight corners are known not to be it, and a sorting network of
the other 19, less all that is in order already, brings it out. That is some 170 calls on arrays that fit the
processor's cache, and gives bit for bit what ``scipy.ndimage.median_filter(mode="nearest")`` gives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]
_PIECE = 50_000  # voxels worked on at once: fifty arrays of them lie in a processor's cache


@dataclass(frozen=True, slots=True)
class _Step:
    """One call: the lesser or the greater of two values, each known by the place where it is kept."""

    greater: bool
    one: int
    other: int
    result: int


def median(image: Image, edge: int) -> Image:
    """The median of the cube of `edge` voxels around each voxel; at the border the outermost voxels go on.

    Parameters
    ----------
    image
        float32 [slices, rows, columns], no NaN.
    edge
        Odd or even, as in scipy.

    Returns
    -------
    numpy.ndarray
        float32, the same grid.
    """
    result = np.empty_like(image)
    before, behind = edge // 2, (edge - 1) // 2

    def work(first: int) -> None:
        stop = min(first + thickness, image.shape[0])
        low, high = first - before, stop + behind
        slab = image[max(low, 0) : high]
        missing = (max(-low, 0), max(high - image.shape[0], 0))
        slab = np.pad(slab, (missing, (0, 0), (0, 0)), mode="edge") if any(missing) else slab
        if edge == 3:
            _of_three(slab, result[first:stop])
        else:
            result[first:stop] = ndimage.median_filter(slab, size=edge, mode="nearest")[before : before + stop - first]

    thickness = 1 if edge == 3 else 4 * edge
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # numpy and scipy release the GIL
        list(pool.map(work, range(0, image.shape[0], thickness)))
    return result


def _of_three(slab: Image, result: Image) -> None:
    """The medians of slices 1 .. n - 2 of a slab into `result`, some rows at a time."""
    columns = slab.shape[2]
    rows = max(1, _PIECE // columns)
    for index, first in product(range(result.shape[0]), range(0, slab.shape[1], rows)):
        stop = min(first + rows, slab.shape[1])
        high, wide = stop - first, columns + 2
        near = np.clip(np.arange(first - 1, stop + 1), 0, slab.shape[1] - 1)
        piece = np.empty((3, high + 2, wide), np.float32)
        piece[:, :, 1:-1] = slab[index : index + 3, near]
        piece[:, :, 0], piece[:, :, -1] = piece[:, :, 1], piece[:, :, -2]
        along_slices = _sorted(piece[0], piece[1], piece[2])
        along_rows = [ranked for part in along_slices for ranked in _sorted(part[:-2], part[1:-1], part[2:])]
        inputs = [part[:, k : k + columns] for part in along_rows for k in range(3)]
        steps, places, last = _steps()
        kept: list[Image] = [*inputs, *(np.empty((high, columns), np.float32) for _ in range(places - len(inputs)))]
        kept[last] = result[index, first:stop]
        for step in steps:
            call = np.maximum if step.greater else np.minimum
            call(kept[step.one], kept[step.other], out=kept[step.result])


def _sorted(a: Image, b: Image, c: Image) -> tuple[Image, Image, Image]:
    """Three arrays, in ascending order at each place."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    middle = np.minimum(high, c)
    return np.minimum(low, middle), np.maximum(low, middle), np.maximum(high, c)


@cache
def _steps() -> tuple[tuple[_Step, ...], int, int]:
    """The calls that bring out the median of 27 values that are in order along two axes of their cube of three.

    Value 9 i + 3 j + k has place k on the third axis, i and j are its ranks on the other two. By the 0-1 principle
    (Knuth, The Art of Computer Programming, 5.3.4) a network of comparisons does with all numbers what it does with
    zeros and ones: each value is followed here as the set of all cubes of zeros and ones in which it is a one.

    Returns
    -------
    steps
        In order.
    places
        How many values are kept, the 27 at first among them.
    last
        The place of the median.
    """
    ones = list(_ones())
    calls: list[tuple[bool, int, int]] = []

    def compare(a: int, b: int) -> tuple[int, int]:
        low, high = ones[a] & ones[b], ones[a] | ones[b]
        if low == ones[a]:
            return a, b  # in order already
        if low == ones[b]:
            return b, a
        calls.extend(((False, a, b), (True, a, b)))
        ones.extend((low, high))
        return len(ones) - 2, len(ones) - 1

    cube: dict[tuple[int, int, int], int] = {}
    for i, j in product(range(3), repeat=2):
        a, b, c = (9 * i + 3 * j + k for k in range(3))
        a, b = compare(a, b)
        b, c = compare(b, c)
        a, b = compare(a, b)
        cube |= {(i, j, 0): a, (i, j, 1): b, (i, j, 2): c}
    # What has 14 values or more on one side, itself among them, is not the fourteenth from there.
    wires = [
        value
        for (i, j, k), value in sorted(cube.items(), key=lambda entry: sum(entry[0]))
        if (i + 1) * (j + 1) * (k + 1) <= 14 and (3 - i) * (3 - j) * (3 - k) <= 14
    ]
    for a, b in _network(len(wires)):
        wires[a], wires[b] = compare(wires[a], wires[b])
    return _placed(calls, wires[len(wires) // 2])


def _ones() -> Iterator[int]:
    """Of each of the 27 values, in which of all cubes (one bit each) that ascend along two axes it is a one."""
    # Zeros and ones that ascend along rank i are told by how many ones there are: 0 to 3, for each place k and rank j.
    layers = [(a, b, c) for a, b, c in product(range(4), repeat=3) if a <= b <= c]
    cubes = list(product(layers, repeat=3))
    for i, j, k in product(range(3), repeat=3):
        yield sum((cube[k][j] >= 3 - i) << number for number, cube in enumerate(cubes))


def _network(count: int) -> Iterator[tuple[int, int]]:
    """Comparisons that sort: Batcher's odd-even merge (Knuth 5.2.2, algorithm M)."""
    p = 1
    while p < count:
        k = p
        while k >= 1:
            for j in range(k % p, count - k, 2 * k):
                for i in range(min(k, count - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        yield i + j, i + j + k
            k //= 2
        p *= 2


def _placed(calls: list[tuple[bool, int, int]], wanted: int) -> tuple[tuple[_Step, ...], int, int]:
    """The calls on which the wanted value hangs, each result in a place whose value nobody reads any more."""
    last_use: dict[int, int] = {wanted: len(calls)}
    for number in reversed(range(len(calls))):
        if 27 + number in last_use:
            for value in calls[number][1:]:
                last_use.setdefault(value, number)
    place = {value: value for value in range(27)}
    free: list[int] = []
    places = 27
    steps = []
    for number, (greater, a, b) in enumerate(calls):
        value = 27 + number
        if value not in last_use:
            continue
        one, other = place[a], place[b]
        # The 27 are views of one another's arrays and stay as they are.
        free.extend(place[v] for v in {a, b} if v >= 27 and last_use[v] == number)
        if free:
            place[value] = free.pop()
        else:
            place[value], places = places, places + 1
        steps.append(_Step(greater, one, other, place[value]))
    return tuple(steps), places, place[wanted]
