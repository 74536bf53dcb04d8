"""The phantom itself: a chest-abdomen CT with planted lesions, and a tiny one for fast tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import highdicom
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from service.demo import anatomy, organs
from service.demo.shapes import Canvas, Floats, Point, Shape, ball, ellipsoid, point, tube
from service.demo.trees import grow, points_within

NODULE: Final = "lung nodule"
LIVER_LESION: Final = "liver lesion"

FIELD_OF_VIEW_MM = 345.6
WHOLE, CHEST, LIVER = (-215.0, 245.0), (-60.0, 245.0), (-185.0, 30.0)
"""Heights for `chest_abdomen`: LPS z of the lowest and the highest slice, mm."""

BLUR = (0.4, 0.6, 0.6)
"""Standard deviations of the scanner's point spread along slices, rows and columns, in voxels: a soft kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedLesion:
    """A ball put into the phantom: the truth that a model is measured against."""

    kind: str  # NODULE or LIVER_LESION
    centre_lps_mm: Point  # in the phantom's own patient space
    diameter_mm: float
    hu: float  # of its inside, before noise
    site: str  # where a radiologist would say it lies
    attached_to: str = "nothing"  # or "a vessel", "the pleura"

    @property
    def volume_ml(self) -> float:
        """Volume of the ball."""
        return float(np.pi / 6 * self.diameter_mm**3 / 1000)

    @property
    def shape(self) -> Shape:
        """The ball as a solid in patient space."""
        return ball(self.centre_lps_mm, self.diameter_mm)


LESIONS = tuple(
    PlantedLesion(kind=kind, centre_lps_mm=centre, diameter_mm=diameter, hu=hu, site=site, attached_to=attached_to)
    for kind, centre, diameter, hu, site, attached_to in (
        (NODULE, (-66.0, -18.0, 150.0), 22.0, 42.0, "right upper lobe", "nothing"),
        (NODULE, (72.0, 10.0, 132.0), 14.0, 38.0, "left upper lobe", "nothing"),
        (NODULE, (-84.0, 36.0, 58.0), 10.0, 35.0, "right lower lobe", "a vessel"),
        (NODULE, (121.5, 4.0, 62.0), 8.0, 40.0, "left lower lobe", "the pleura"),
        (NODULE, (-92.0, -30.0, 84.0), 6.0, 25.0, "right middle lobe", "nothing"),
        (LIVER_LESION, (-92.0, 14.0, -44.0), 40.0, 52.0, "segment VII", "nothing"),
        (LIVER_LESION, (-26.0, -52.0, -48.0), 25.0, 55.0, "segment IV", "nothing"),
        (LIVER_LESION, (-104.0, -6.0, -112.0), 15.0, 58.0, "segment VI", "nothing"),
    )
)
"""What is planted unless told otherwise; the nodule at the pleura is cut by the chest wall, as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """A made CT volume, and the truth about it."""

    volume: highdicom.Volume  # HU, int16, axes (slices, rows, columns); affine: voxel index -> LPS mm
    lesions: tuple[PlantedLesion, ...]  # those that lie wholly within the volume
    masks: Mapping[str, NDArray[np.bool_]]  # "liver" (with its vessels and lesions) and "lungs"; axes of the volume
    seed: int

    @property
    def hu(self) -> NDArray[np.int16]:
        """HU, int16, axes (slices, rows, columns)."""
        return np.asarray(self.volume.array, np.int16)


def chest_abdomen(
    *,
    seed: int = 0,
    spacing_mm: Point = (2.5, 0.9, 0.9),
    heights_mm: tuple[float, float] = WHOLE,
    lesions: Sequence[PlantedLesion] = LESIONS,
    noise_hu: float = 12.0,
) -> Phantom:
    """Make an axial chest-abdomen CT in portal-venous contrast, the first slice nearest the head.

    Parameters
    ----------
    seed
        Of vessels, airways, bowel, textures and noise. The lesions are the same for every seed.
    spacing_mm
        Between slices, rows and columns. Coarser is faster: (5, 1.35, 1.35) makes 256 x 256 pixels.
    heights_mm
        LPS z of the lowest and the highest slice: `WHOLE`, `CHEST`, `LIVER` or any other two.
    lesions
        What to plant; ``()`` makes a healthy patient.
    noise_hu
        Standard deviation of the noise in the finished images.
    """
    rng = np.random.default_rng(seed)
    canvas, affine = _canvas(spacing_mm, heights_mm)
    for organ in organs.body(rng):
        canvas.paint(organ.shape, organ.hu, organ.texture)
    _paint_chest_trees(canvas, rng, lesions)
    _paint_liver_trees(canvas, rng, lesions)
    for lesion in lesions:
        canvas.paint(lesion.shape, lesion.hu)
    low, high = float(canvas.z[-1]), float(canvas.z[0])
    return Phantom(
        volume=highdicom.Volume(_scanned(canvas.hu, noise_hu, rng), affine, coordinate_system="PATIENT"),
        lesions=tuple(it for it in lesions if low <= it.shape.low[2] and it.shape.high[2] <= high),
        masks={"liver": canvas.mask(anatomy.liver()), "lungs": canvas.mask(anatomy.lungs())},
        seed=seed,
    )


def tiny(
    *,
    affine: NDArray[np.float64] | None = None,
    shape: tuple[int, int, int] = (20, 64, 64),
    seed: int = 0,
    noise_hu: float = 12.0,
) -> Phantom:
    """Make a small phantom in milliseconds: a body with a lung on its left and a liver on its right, a ball in each.

    It is laid out in patient space, not along the voxels, and without symmetry, so that a wrong or mirrored orientation
    shows: the nodule lies left, anterior, superior of the centre, the liver lesion right, posterior, inferior.

    Parameters
    ----------
    affine
        Voxel index (slice, row, column, 1) -> LPS mm; float64 [4, 4]. Any orientation, any order of slices.
        None: axial, from head to feet, 5 x 2.5 x 2.5 mm, the centre of the volume at (0, 0, 0).
    shape
        Slices, rows, columns.
    seed
        Of the noise.
    noise_hu
        Standard deviation of the noise in the finished images.
    """
    middle_index = (np.array(shape) - 1) / 2
    if affine is None:
        affine = np.eye(4)
        affine[:3, :3] = np.array([[0, 0, 2.5], [0, 2.5, 0], [-5, 0, 0]])  # columns: steps along slices, rows, columns
        affine[:3, 3] = -affine[:3, :3] @ middle_index
    middle = affine[:3, :3] @ middle_index + affine[:3, 3]
    half = np.abs(affine[:3, :3]) @ (np.array(shape) / 2)  # of the box around the volume, LPS mm
    size = float(half.min())

    def oval(where: Point, radii: Point) -> Shape:
        return ellipsoid(point(middle + half * where), point(half * radii))

    lung, liver = oval((0.4, 0, 0), (0.3, 0.45, 0.6)), oval((-0.4, 0, 0), (0.32, 0.5, 0.6))
    nodule = PlantedLesion(
        kind=NODULE,
        centre_lps_mm=point(middle + half * (0.40, -0.10, 0.15)),
        diameter_mm=0.3 * size,
        hu=40,
        site="left lung",
    )
    lesion = PlantedLesion(
        kind=LIVER_LESION,
        centre_lps_mm=point(middle + half * (-0.40, 0.10, -0.10)),
        diameter_mm=0.4 * size,
        hu=52,
        site="liver",
    )
    table = (
        (oval((0, 0, 0), (0.88, 0.88, 0.88)), 40.0),
        (lung, organs.LUNG),
        (liver, organs.LIVER),
        (nodule.shape, nodule.hu),
        (lesion.shape, lesion.hu),
    )
    index = np.indices(shape, np.float32)
    x, y, z = (np.tensordot(row[:3], index, 1).astype(np.float32) + np.float32(row[3]) for row in affine[:3])
    edge_mm = np.float32(np.linalg.norm(affine[:3, 2]))
    hu = np.full(shape, organs.AIR, np.float32)
    for part, value in table:
        hu += np.clip(0.5 - part.distance(x, y, z) / edge_mm, 0, 1) * (np.float32(value) - hu)
    finished = _scanned(hu, noise_hu, np.random.default_rng(seed))
    return Phantom(
        volume=highdicom.Volume(finished, affine, coordinate_system="PATIENT"),
        lesions=(nodule, lesion),
        masks={"liver": liver.distance(x, y, z) < 0, "lungs": lung.distance(x, y, z) < 0},
        seed=seed,
    )


def _canvas(spacing_mm: Point, heights_mm: tuple[float, float]) -> tuple[Canvas, NDArray[np.float64]]:
    """Return an empty canvas and its affine, (slice, row, column, 1) -> LPS mm."""
    z = np.arange(heights_mm[1], heights_mm[0] - 1e-3, -spacing_mm[0])
    counts = (round(FIELD_OF_VIEW_MM / step) for step in spacing_mm[1:])
    y, x = ((np.arange(n) - (n - 1) / 2) * step for n, step in zip(counts, spacing_mm[1:], strict=True))
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = -spacing_mm[0], spacing_mm[1], spacing_mm[2]
    affine[:, 3] = x[0], y[0], z[0], 1
    canvas = Canvas(*(axis.astype(np.float32) for axis in (x, y, z)), background=organs.AIR)
    return canvas, affine


def _paint_chest_trees(canvas: Canvas, rng: np.random.Generator, lesions: Sequence[PlantedLesion]) -> None:
    """Paint trachea and bronchi, and the arteries and veins of the lungs."""
    for side in (-1, 1):
        inside = points_within(anatomy.lungs().grown(-3), 2600, rng)
        inside = _clear(inside[inside[:, 0] * side > 0], lesions)
        upper, lower = inside[inside[:, 2] > 84], inside[inside[:, 2] <= 84]
        for root, leaves in (
            ((side * 24, 0, 104), upper[::2]),  # arteries
            ((side * 26, 6, 94), lower[::2]),
            ((side * 22, -14, 84), upper[1::2]),  # veins, to the left atrium
            ((side * 24, 4, 60), lower[1::2]),
        ):
            for branch in grow(root, leaves, leaf_radius_mm=0.5):
                canvas.paint(branch, organs.BLOOD)
        end = (side * 46.0, 12.0, 104.0)
        near = inside[np.linalg.norm(inside - np.asarray(end, np.float32), axis=1) < 60][
            :40
        ]  # further out no wall is seen
        main = tube([(0, 6, 138), (side * 20, 10, 120), end], 7.5, 6, 4)
        airways = (main, *grow(end, near, leaf_radius_mm=0.9))
        for wall_mm, hu in ((0.9, 0.0), (0.0, organs.AIR)):
            for airway in airways:
                canvas.paint(airway.grown(wall_mm), hu)
    trachea = tube([(0, 6, 138), (0, 6, 320)], 9)
    canvas.paint(trachea.grown(1.5), 40)
    canvas.paint(trachea, organs.AIR)
    for lesion in lesions:
        if lesion.attached_to == "a vessel":
            x, y, z = lesion.centre_lps_mm
            vessel = tube([(np.sign(x) * 24, 4, 60), (x + 4, y - 2, z + 1), (1.2 * x, y + 14, z - 18)], 2.6, 1.6, 0.8)
            canvas.paint(vessel, organs.BLOOD)


def _paint_liver_trees(canvas: Canvas, rng: np.random.Generator, lesions: Sequence[PlantedLesion]) -> None:
    """Paint the portal vein's branches, and the three hepatic veins that run to the vena cava."""
    twigs = _clear(points_within(anatomy.liver().grown(-6), 420, rng), lesions)
    portal, hepatic = twigs[::2], twigs[1::2]
    for branch in grow((-28, 2, -82), portal, leaf_radius_mm=0.9):
        canvas.paint(branch, organs.VEIN)
    thirds = np.digitize(hepatic[:, 0], (-75, -35))  # right, middle and left vein by the side they drain
    for third, root in enumerate(((-32, 2, -20), (-28, 2, -14), (-22, -2, -14))):
        for branch in grow(root, hepatic[thirds == third], leaf_radius_mm=1.1, directness=0.9):
            canvas.paint(branch, organs.VEIN - 6)


def _clear(points: Floats, lesions: Sequence[PlantedLesion]) -> Floats:
    """Return those of `points` (float32 [n, 3], LPS mm) that keep 4 mm off all lesions."""
    for lesion in lesions:
        away = np.linalg.norm(points - np.asarray(lesion.centre_lps_mm, np.float32), axis=1)
        points = points[away > lesion.diameter_mm / 2 + 4]
    return points


def _scanned(hu: Floats, noise_hu: float, rng: np.random.Generator) -> NDArray[np.int16]:
    """Return the finished images, int16 HU: edges and noise go through the same blur, as in a scanner."""
    impulse = np.zeros((9, 9, 9), np.float32)
    impulse[4, 4, 4] = 1
    left_of_noise = float(np.linalg.norm(ndimage.gaussian_filter(impulse, BLUR)))
    noisy = hu + rng.standard_normal(hu.shape, np.float32) * np.float32(noise_hu / left_of_noise)
    finished: Floats = ndimage.gaussian_filter(noisy, BLUR, truncate=3)
    return np.clip(np.rint(finished), -1024, 3071).astype(np.int16)
