"""The spaces of the body, and those organs that others must know of because they touch or hold them.

Patient space, LPS millimetres: x grows to the patient's left, y to the back, z to the head. x = 0 is the midline, z = 0
lies just below the top of the right dome of the diaphragm.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from service.demo.shapes import FAR, Floats, Shape, capsule, ellipsoid, half_space, merged

# Cross-sections of the trunk by height: z, half width, half depth, y of the centre; mm.
SKIN = (
    (-260, 156, 106, 0), (-140, 157, 108, 0), (-40, 160, 111, 0), (60, 160, 112, 0), (120, 162, 108, 0),
    (170, 162, 100, 6), (205, 150, 93, 14), (230, 114, 84, 24), (250, 76, 80, 26), (300, 66, 78, 26),
)  # fmt: skip
MUSCLES = (  # their outer face
    (-260, 136, 84, -4), (-140, 140, 88, -6), (-40, 143, 94, -6), (60, 146, 96, -5), (110, 150, 94, -2),
    (160, 150, 88, 4), (205, 138, 82, 14), (230, 102, 74, 24), (250, 66, 70, 26), (300, 58, 70, 26),
)  # fmt: skip
CAGE = (  # the outer face of the ribs, and below them of the deepest muscle
    (-260, 126, 76, -10), (-140, 136, 84, -10), (-60, 140, 92, -9), (20, 140, 93, -9), (80, 134, 89, -8),
    (130, 121, 80, -5), (170, 104, 68, 0), (200, 82, 54, 6), (222, 58, 40, 12), (238, 24, 20, 16), (244, 4, 4, 16),
)  # fmt: skip
WALL_MM = 10.0
"""From the outer face of the cage to the cavity: a rib and the muscles between ribs."""

RIB_PITCH_MM = 27.0


def trunk(sections: Sequence[tuple[float, float, float, float]]) -> Shape:
    """Return the solid with these cross-sections, superellipses of exponent 2.5: a little boxy, as a trunk is."""
    heights, widths, depths, middles = np.asarray(sections, np.float32).T

    def distance(x: Floats, y: Floats, z: Floats) -> Floats:
        a, b, y0 = (np.interp(z, heights, values).astype(np.float32) for values in (widths, depths, middles))
        # The powers are taken of two-dimensional arrays: only the sum and its root are as large as the grid.
        r = ((np.abs(x) / a) ** 2.5 + (np.abs(y - y0) / b) ** 2.5) ** np.float32(0.4) + np.float32(1e-4)
        return np.asarray((1 - 1 / r) * np.sqrt(x**2 + (y - y0) ** 2 + 1), np.float32)

    wide = float(max(widths))
    return Shape(distance=distance, low=(-wide, -130, float(heights[0])), high=(wide, 130, float(heights[-1])))


def ribs(thickness_mm: float, height_mm: float) -> Shape:
    """Return all ribs as one solid: twelve bands in the cage's wall, falling from the spine to their front ends."""
    cage = trunk(CAGE)

    def distance(x: Floats, y: Floats, z: Floats) -> Floats:
        around = np.arctan2(np.abs(x), y)  # 0 at the spine, pi at the sternum
        fall = 100 * np.sin(np.clip(around - 0.15, 0, 2.2) / 2.2 * (np.pi / 2)) ** 2
        level = (z + fall + 75) / RIB_PITCH_MM
        number = np.clip(np.round(level), 0, 11)
        up = (level - number) * (RIB_PITCH_MM * 0.9)  # 0.9: across the rib, not along z
        deep = cage.distance(x, y, z) + (WALL_MM / 2 + 0.5)
        band = (np.hypot(deep / (thickness_mm / 2), up / (height_mm / 2)) - 1) * (thickness_mm / 2)
        ends = np.maximum(around - (1.35 + 0.1 * number), 0.12 - around) * 90  # the lower the rib, the sooner it ends
        return np.asarray(np.maximum(band, ends), np.float32)

    return Shape(distance=distance, low=(-142, -110, -190), high=(142, 95, 238))


@cache
def cavity() -> Shape:
    """Return the space within ribs and wall."""
    return trunk(CAGE).grown(-WALL_MM)


@cache
def diaphragm() -> Shape:
    """Return all that lies below the two domes; the right one, over the liver, is the higher.

    From its equator a dome runs down along the wall; below the recesses of the lungs all is abdomen.
    """
    right = ellipsoid((-70, -8, -78), (79, 92, 84)).standing(-78)
    left = ellipsoid((72, -6, -84), (74, 90, 74)).standing(-84)
    return merged(right, left, blend_mm=30) | half_space((0, 60, -92), (0, 0.35, 1))


@cache
def heart() -> Shape:
    """Return the heart, its apex to the left, forward and down."""
    return ellipsoid((24, -36, 25), (66, 52, 50), turn_deg=(0, 18, 28))


@cache
def mediastinum() -> Shape:
    """Return what stands between the lungs: heart and its fat, great vessels, spine."""
    upper = ellipsoid((0, -10, 130), (30, 66, 120))
    behind = ellipsoid((4, 40, 60), (30, 32, 400)) | ellipsoid((0, 64, 0), (22, 40, FAR))
    pericardium = heart().grown(5).standing(10)  # with its fat it rests on the diaphragm, no lung in between
    return merged(upper, behind, pericardium, blend_mm=12).wavy(3, 50)


@cache
def lungs() -> Shape:
    """Return both lungs with all that is in them."""
    recess = half_space((0, 60, -86), (0, -0.42, -1))
    return (cavity().grown(-1) & recess) - diaphragm() - mediastinum()


@cache
def kidney(side: int) -> Shape:
    """Return a kidney; `side` is -1 on the right, where the liver pushes it down, 1 on the left."""
    if side < 0:
        return ellipsoid((-66, 38, -138), (29, 27, 52), turn_deg=(12, -10, 20))
    return ellipsoid((68, 40, -122), (28, 27, 54), turn_deg=(12, 10, -20))


@cache
def gallbladder() -> Shape:
    """Return the gallbladder, hanging from the liver's lower face."""
    return ellipsoid((-36, -50, -131), (14, 16, 27), turn_deg=(22, 0, 0))


@cache
def liver() -> Shape:
    """Return the liver: it fills the right dome and thins out to the left, in front of the stomach."""
    right = ellipsoid((-74, -2, -68), (76, 92, 92), turn_deg=(0, 12, 0))
    left = ellipsoid((2, -48, -44), (74, 46, 40), turn_deg=(0, -14, 12))
    tip = ellipsoid((-100, -2, -110), (38, 62, 58))
    caudate = ellipsoid((-16, 14, -52), (20, 17, 26))
    whole = merged(right, left, tip, caudate, blend_mm=22).wavy(3, 70)
    lower_face = half_space((-30, 0, -92), (0.55, 0.25, -0.8)).wavy(6, 90)  # slants over stomach, bowel and kidney
    room = cavity().grown(-1.5) & diaphragm().grown(-3)
    hilum = ellipsoid((-28, 6, -86), (22, 24, 17)) | capsule((-6, -80, -90), (-16, -25, -62), 4, 4)
    spine = ellipsoid((0, 58, 0), (36, 46, FAR))
    return (whole & lower_face & room) - hilum - spine - kidney(-1).grown(7) - gallbladder().grown(1.5)
