"""Branching vessels and airways: grown through an organ, thick at the root, thin at the leaves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from service.demo.shapes import Floats, Point, Shape, capsule, point

SMOOTHINGS = 12
"""How often each node is moved half way between its neighbours: a vessel bends, it has no corners."""


def points_within(shape: Shape, count: int, rng: np.random.Generator) -> Floats:
    """Return `count` random points inside `shape`; float32 [count, 3], LPS mm."""
    found: list[Floats] = []
    while sum(map(len, found)) < count:
        tried = rng.uniform(shape.low, shape.high, (4 * count, 3)).astype(np.float32)
        found.append(tried[shape.distance(*tried.T) < 0])
    return np.concatenate(found)[:count]


def grow(root: Point, leaves: Floats, *, leaf_radius_mm: float, directness: float = 0.4) -> Iterator[Shape]:
    """Yield the segments of a tree from `root` to all of `leaves`.

    Each point, the nearest to the root first, joins the tree where that costs least: a short step, little turn, a short
    way back to the root. A branch forks in two. Radii follow Murray's law: the cube of a branch's radius is the sum of
    the cubes of those it feeds.

    Parameters
    ----------
    root
        Where the tree begins, LPS mm.
    leaves
        Points that it reaches; float32 [n, 3], LPS mm.
    leaf_radius_mm
        Radius of the last branches.
    directness
        Weight of the way back to the root: near 0 few trunks with many side branches, near 1 straight rays.
    """
    start = np.asarray(root, np.float32)
    nodes: Floats = np.vstack([start, leaves[np.argsort(np.linalg.norm(leaves - start, axis=1))]])
    count = len(nodes)
    parent, children = np.zeros(count, np.intp), np.zeros(count, np.intp)
    way, heading = np.zeros(count, np.float32), np.zeros((count, 3), np.float32)
    for i in range(1, count):
        offset = nodes[i] - nodes[:i]
        step = np.linalg.norm(offset, axis=1) + 1e-3
        turn = 1 - np.einsum("ij,ij->i", offset, heading[:i]) / step  # 0 straight on, 1 at a right angle
        cost = step * (1 + turn) + directness * way[:i]
        cost[children[:i] > 1] = np.inf
        best = int(np.argmin(cost))
        parent[i], way[i], heading[i] = best, way[best] + step[best], offset[best] / step[best]
        children[best] += 1
    cubes = np.full(count, leaf_radius_mm**3)
    for i in range(count - 1, 0, -1):  # a child always comes after its parent
        cubes[parent[i]] += cubes[i]
    heir = np.zeros(count, np.intp)  # of a node's children the one with the larger flow
    for i in np.argsort(cubes):
        heir[parent[i]] = i
    inner = np.flatnonzero(heir)[1:]  # the root stays, and so do the leaves
    for _ in range(SMOOTHINGS):
        nodes[inner] += 0.5 * ((nodes[parent[inner]] + nodes[heir[inner]]) / 2 - nodes[inner])
    radii = np.cbrt(cubes)
    for i in range(1, count):
        before = parent[i]
        yield capsule(point(nodes[before]), point(nodes[i]), float(min(radii[before], 1.3 * radii[i])), float(radii[i]))
