"""The body as tables: shape and HU of each organ, painted in order, each over those before it.

HU are those of a portal-venous phase, 70 s after the contrast agent. Coordinates are LPS mm, laid out as in anatomy.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from service.demo.anatomy import (
    CAGE,
    MUSCLES,
    SKIN,
    cavity,
    diaphragm,
    gallbladder,
    heart,
    kidney,
    liver,
    lungs,
    ribs,
    trunk,
)
from service.demo.shapes import FAR, Field, Shape, ellipsoid, half_space, merged, mottle, point, tube

AIR, LUNG, FAT, WATER, MUSCLE = -1000.0, -860.0, -102.0, 8.0, 58.0
LIVER, SPLEEN, BLOOD, VEIN, CORTEX, MARROW = 108.0, 118.0, 150.0, 158.0, 620.0, 175.0


class Organ(NamedTuple):
    """A row of the tables."""

    name: str  # for the reader
    shape: Shape
    hu: float
    texture: Field | None = None  # HU on top of `hu`


def body(rng: np.random.Generator) -> list[Organ]:
    """Return all organs in the order of painting; `rng` fixes textures and the lie of the bowel."""
    return [*wall(), *spine(), *chest(rng), *bowel(rng), *abdomen(rng)]


def wall() -> list[Organ]:
    """Return skin, fat, muscles and bones around the cavity."""
    skin, muscles, cage = trunk(SKIN), trunk(MUSCLES).wavy(3, 60), trunk(CAGE)
    rows = [
        Organ("skin", skin, 20),
        Organ("fat under the skin", skin.grown(-2.2), FAT),
        Organ("muscles of the wall", muscles, MUSCLE),
        Organ("fat between the muscles", cage.grown(6.5).wavy(3, 50) - cage.grown(2.5), FAT + 15),
    ]
    for side in (-1, 1):
        erector = ellipsoid((side * 31, 80, -120), (31, 18, 420))
        scapula = ellipsoid((side * 92, 62, 150), (40, 4, 56), turn_deg=(0, 0, -side * 35))
        clavicle = tube([(side * 14, -66, 192), (side * 66, -60, 212), (side * 128, -22, 222)], 7, 6, 7)
        rows += [
            Organ("fat of the armpit", ellipsoid((side * 122, -6, 160), (13, 34, 46)), FAT),
            Organ("fat on the back's muscle", erector.grown(2.5), FAT),
            Organ("the back's muscle", erector.wavy(1.5, 30), MUSCLE),
            *bone(scapula, rim_mm=1.8),
            *bone(clavicle, rim_mm=2.0),
        ]
    return [
        *rows,
        Organ("muscles between the ribs", cage, MUSCLE),
        Organ("fat of the cavity", cavity(), FAT),
        Organ("muscles beside the spine", ellipsoid((0, 70, 0), (46, 26, FAR)), MUSCLE),
        Organ("ribs", ribs(8.4, 13.0), CORTEX),
        Organ("ribs' marrow", ribs(4.8, 9.4), MARROW),
        *bone(ellipsoid((0, -84, 105), (20, 6.5, 76), turn_deg=(-13, 0, 0)), rim_mm=1.6),  # the sternum
    ]


def bone(shape: Shape, *, rim_mm: float) -> list[Organ]:
    """Return a bone: a rim of cortex around marrow."""
    return [Organ("cortex", shape, CORTEX), Organ("marrow", shape.grown(-rim_mm), MARROW)]


def spine() -> list[Organ]:
    """Return discs and vertebrae, one every 29 mm, and the canal behind them."""
    rows = [Organ("discs", ellipsoid((0, 44, 0), (21, 16, FAR)), 85)]
    for z in np.arange(-252.0, 300.0, 29.0).tolist():
        plates = half_space((0, 0, z + 12), (0, 0, 1)) & half_space((0, 0, z - 12), (0, 0, -1))
        arch = [tube([(0, 86, z - 6), (0, 103, z - 16)], 4, 3)]
        for side in (-1, 1):
            arch.append(tube([(side * 15, 58, z), (side * 11, 76, z - 3), (0, 86, z - 7)], 5))
            arch.append(tube([(side * 14, 70, z), (side * 40, 76, z + 3)], 5.5, 4))
        rows += bone(ellipsoid((0, 44, z), (23, 17, 30)) & plates, rim_mm=2)
        rows += bone(merged(*arch, blend_mm=3), rim_mm=2)
    return [
        *rows,
        Organ("canal", ellipsoid((0, 70, 0), (9, 8, FAR)), 22),
        Organ("cord", ellipsoid((0, 70, 0), (5, 4, FAR)), 42),
    ]


def chest(rng: np.random.Generator) -> list[Organ]:
    """Return diaphragm, lungs, heart and great vessels; what is inside the lungs comes as trees."""
    muscle = heart() - diaphragm().grown(2)
    fissure = half_space((0, 0, 76), (0, 0.8, -0.6)).wavy(5, 110)
    unevenness = mottle(12, 21, rng.uniform(0, 6))
    arch = tube(
        [(6, -28, 60), (-10, -36, 105), (-10, -30, 140), (2, -8, 154), (20, 14, 148), (25, 24, 128)],
        15,
        15,
        14,
        13,
        12,
        12,
    )
    to_right_lung = tube([(18, -32, 108), (-14, -8, 106), (-27, 1, 103)], 12, 9, 5)
    to_left_lung = tube([(18, -32, 108), (24, -6, 109), (27, 4, 104)], 12, 9, 5)
    return [
        Organ("diaphragm", cavity() & diaphragm(), MUSCLE),
        Organ("fat of the abdomen", cavity().grown(-1) & diaphragm().grown(-3), FAT),
        # Blood sinks to the back: supine lungs are denser there.
        Organ("lungs", lungs(), LUNG, lambda x, y, z: 0.35 * y + unevenness(x, y, z)),
        Organ("fissures", (lungs() & fissure.grown(0.4)) - fissure.grown(-0.4), -560),
        Organ("heart's muscle", muscle, 112),
        Organ("left ventricle", ellipsoid((48, -28, 15), (24, 20, 32), turn_deg=(0, 25, 28)) & muscle.grown(-7), BLOOD),
        Organ(
            "right ventricle", ellipsoid((14, -62, 17), (40, 17, 34), turn_deg=(0, 25, 20)) & muscle.grown(-3), BLOOD
        ),
        Organ("right atrium", ellipsoid((-24, -30, 34), (22, 26, 30)) & muscle.grown(-2), BLOOD),
        Organ("left atrium", ellipsoid((6, -2, 54), (34, 18, 22)), BLOOD),
        Organ(
            "upper vena cava",
            tube([(-24, -26, 50), (-25, -24, 160), (-20, -18, 190), (-20, -10, 250)], 9.5, 9.5, 8, 6),
            BLOOD,
        ),
        Organ(
            "left arm's vein", tube([(-24, -26, 165), (8, -38, 172), (14, -24, 190), (20, -10, 250)], 7, 6, 6, 6), BLOOD
        ),
        Organ("aorta up to the arch", arch, BLOOD),
        Organ("brachiocephalic artery", tube([(0, -12, 158), (-12, -6, 190), (-22, 0, 250)], 6, 5, 4), BLOOD),
        Organ("left carotid artery", tube([(12, 2, 156), (20, 2, 250)], 4.5), BLOOD),
        Organ("pulmonary trunk", tube([(22, -52, 62), (18, -34, 108)], 14), BLOOD),
        Organ("pulmonary arteries", to_right_lung | to_left_lung, BLOOD),
        Organ("gullet", tube([(2, 20, 260), (2, 16, 100), (8, 12, 30), (20, 6, -20), (36, 0, -36)], 7.5), 48),
        Organ("gas in the gullet", tube([(2, 20, 260), (2, 16, 140)], 2), -700),
    ]


def bowel(rng: np.random.Generator) -> list[Organ]:
    """Return loops of small bowel, random walks through the lower abdomen."""
    rows = []
    for _ in range(30):
        way = np.cumsum(rng.normal(0, 15, (5, 3)), axis=0) + rng.uniform((-62, -62, -250), (78, -14, -150))
        way = np.minimum(way, (FAR, -4, -140))  # before the great vessels and below stomach and pancreas
        loop = tube([point(p) for p in way], float(rng.uniform(9, 13))) & cavity().grown(-4)
        rows.append(Organ("bowel's wall", loop, 92))
        rows.append(Organ("bowel's content", loop.grown(-3), float(rng.choice([20, 35, 60]))))
    return rows


def abdomen(rng: np.random.Generator) -> list[Organ]:
    """Return the organs below the diaphragm; the liver's own vessels come as trees."""
    room = cavity().grown(-2) & diaphragm().grown(-4)
    aorta = tube([(25, 24, 128), (24, 24, 60), (14, 20, -20), (6, 16, -90), (3, 15, -260)], 12, 12, 11.5, 11, 9.5)
    crura = aorta.grown(5) | ellipsoid((-14, 24, -70), (8, 12, 60))
    spleen = ellipsoid((106, 34, -66), (30, 50, 54), turn_deg=(14, -12, -22)).wavy(3, 60)
    stomach = tube(
        [(40, 2, -38), (74, 2, -42), (84, -10, -66), (72, -38, -94), (42, -56, -112), (6, -48, -118)],
        14, 34, 33, 28, 19, 14,
    )  # fmt: skip
    stomach = (stomach & room.grown(-3)).wavy(2.5, 40)
    colon = (
        tube(
            [(-98, 14, -262), (-100, 2, -190), (-88, -40, -168), (-44, -74, -150), (20, -80, -140)], 21, 22, 20, 18, 17
        )
        | tube(
            [(20, -80, -140), (72, -66, -118), (102, -34, -100), (112, 2, -130), (108, 14, -262)], 17, 18, 18, 16, 15
        )
    ).wavy(5, 24)
    duodenum = tube([(-8, -44, -118), (-38, -30, -116), (-46, -8, -142), (-30, 2, -168), (14, 0, -166)], 13)
    pancreas = tube([(-24, -14, -130), (-8, -24, -114), (24, -14, -104), (62, 10, -90)], 14, 10, 10, 9).wavy(3, 14)
    lower_cava = tube(
        [(-17, 14, -262), (-20, 10, -130), (-25, 8, -60), (-25, 2, -8), (-22, -10, 26)], 10, 11, 12, 12, 13
    )
    round_ligament = ellipsoid((-2, -72, -92), (2.2, 30, 30), turn_deg=(0, 0, 12)) & cavity().grown(-2)
    coarse, fine = mottle(4, 26, rng.uniform(0, 6)), mottle(4, 9, rng.uniform(0, 6))
    return [
        Organ("crura of the diaphragm", crura & half_space((0, 0, -20), (0, 0, 1)), MUSCLE),
        Organ("aorta below the arch", aorta, BLOOD),
        Organ("spleen", spleen & room, SPLEEN, coarse),
        Organ("stomach's wall", stomach, 82),
        Organ("stomach's content", stomach.grown(-4), 24),
        Organ("stomach's gas", stomach.grown(-4) & half_space((0, -38, 0), (0, 1, 0)), AIR + 20),
        Organ("pancreas", pancreas, 96),
        Organ("duodenum's wall", duodenum, 88),
        Organ("duodenum's content", duodenum.grown(-3.5), 30),
        Organ("colon's wall", colon, 66),
        Organ("colon's content", colon.grown(-2.5), -20, mottle(60, 7)),
        Organ("colon's gas", colon.grown(-2.5) & half_space((0, -24, 0), (0.1, 1, 0)), AIR + 40),
        *beside_the_spine(-1),
        *beside_the_spine(1),
        Organ("liver", liver(), LIVER, lambda x, y, z: coarse(x, y, z) + fine(x, y, z)),
        Organ("round ligament's fat", round_ligament, FAT + 20),
        Organ("gallbladder's wall", gallbladder(), 62),
        Organ("gallbladder's bile", gallbladder().grown(-2), WATER),
        Organ("lower vena cava", lower_cava, VEIN),
        Organ("portal vein", tube([(12, -12, -116), (-10, -8, -100), (-26, 0, -84)], 7.5), VEIN),
        Organ("splenic vein", tube([(12, -12, -116), (50, 12, -96), (88, 24, -72)], 5), VEIN),
        Organ("mesenteric vein", tube([(12, -12, -116), (10, -22, -180), (6, -26, -262)], 6), VEIN),
        Organ("coeliac artery", tube([(5, 10, -96), (6, -8, -94), (-14, -14, -92)], 4), BLOOD),
        Organ("mesenteric artery", tube([(4, 10, -108), (6, -14, -124), (2, -22, -262)], 4), BLOOD),
    ]


def beside_the_spine(side: int) -> list[Organ]:
    """Return psoas muscle and kidney of one side: -1 right, 1 left."""
    x, z = (-66.0, -138.0) if side < 0 else (68.0, -122.0)
    psoas = tube([(side * 28, 44, -90), (side * 36, 44, -170), (side * 46, 36, -262)], 9, 16, 20)
    sinus = ellipsoid((x - side * 14, 30, z), (15, 10, 24), turn_deg=(0, 0, -side * 20))
    return [
        Organ("psoas", psoas & cavity().grown(4), MUSCLE + 4),
        Organ("kidney's cortex", kidney(side), 188),
        Organ("kidney's medulla", kidney(side).grown(-7).wavy(5, 20), 150),
        Organ("kidney's sinus", sinus, FAT + 20),
        Organ("kidney's pelvis", sinus.grown(-6), WATER),
        Organ("renal vein", tube([(x - side * 10, 28, z), (side * 6, 8, z + 8)], 5), VEIN),
    ]
