"""Where in the body to look: the body itself and the lungs, from CT numbers alone (pure functions).

A model's findings count only inside the region that its specification names. The regions here are found by the physics
of CT (air is near -1000 HU, aerated lung between -950 and -500 HU, all else is denser), by size and by connection.
They need no model of their own and no particular patient position: neither the direction of the slices nor a flip
within the slice matters.

Both functions expect a *coarse* copy of the scan, 2 to 3 mm and near isotropic: the closing that gives a nodule at the
pleura back to its lung is measured in millimetres and costs seconds, not minutes, there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Image = NDArray[np.float32] | NDArray[np.int16]

BODY_ABOVE_HU = -200.0  # fat is near -100 HU; foam, clothes and blankets stay below
AIR_BELOW_HU = -400.0  # half way between aerated lung and soft tissue
LUNG_HU = (-950.0, -500.0)  # aerated parenchyma; free gas (trachea, bowel, the room) lies below
ROOM_BELOW_HU = -950.0  # mean of a pocket of air at the border of the picture that is the room, not a lung cut by it
TABLE_MM = 6.0  # a table top, seen from the side, is thinner than this
CLOSING_MM = 12.0  # rolling ball that takes in nodules at the pleura and vessels at the hilum
UPRIGHT_MM = 56.0  # a tumour at the wall, if no taller than this, has lung above and below it; the heart has not
AIRWAY_BELOW_HU = -930.0  # gas in an airway, averaged over 3 voxels
AIRWAY_ML = (1.0, 150.0)  # trachea and main bronchi, as far as they are so thin
AIRWAY_CM2 = 6.0  # an airway's area in the slice, on average over its height; emphysema spreads wider
AIRWAY_WALL = 0.3  # at least this part of what surrounds an airway is soft tissue; around emphysema it is lung
LUNG_ABOVE_ML = 25.0  # below this a pocket of lung-like density is partial volume around bowel or a lung's last slice
LUNG_SHARE = 0.5  # at least this much of a lung's inner voxels lie within LUNG_HU
SMALLEST_OF_LARGEST = 0.04  # a lung may be collapsed, but not smaller than this part of the other


def body(hu: Image, spacing_mm: tuple[float, float, float]) -> Mask:
    """The patient without the table, cavities filled.

    Parameters
    ----------
    hu
        [slices, rows, columns], Hounsfield units, a grid of 2 to 3 mm.
    spacing_mm
        Distance of voxel centres along each axis of `hu`, mm.

    Returns
    -------
    Mask
        [slices, rows, columns], bool, same grid; all False where nothing is denser than air.
    """
    dense = hu > BODY_ABOVE_HU
    trunk = _largest(_opened(dense, spacing_mm, TABLE_MM / 2))
    if not trunk.any():
        return trunk
    # The opening rounds off what is thin but the patient's own (skin folds, ears): take back what touches the trunk.
    trunk = _largest(dense & (_distance(~trunk, spacing_mm) <= TABLE_MM / 2))
    return np.stack([ndimage.binary_fill_holes(plane) for plane in trunk])


def lungs(hu: Image, spacing_mm: tuple[float, float, float]) -> Mask:
    """Both lungs (or what the scan shows of them) with their vessels, nodules and the nodules at their pleura.

    Air that the room reaches within a slice, the trachea and main bronchi, gas in the bowel and small pockets are left
    out. Each lung is then closed (nodules at the pleura by a ball, large tumours by lung above and below them) and its
    holes are filled.

    Parameters
    ----------
    hu
        [slices, rows, columns], Hounsfield units, a grid of 2 to 3 mm.
    spacing_mm
        Distance of voxel centres along each axis of `hu`, mm.

    Returns
    -------
    Mask
        [slices, rows, columns], bool, same grid; all False where the scan shows no lung.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    smooth = ndimage.uniform_filter(hu.astype(np.float32), 3, mode="nearest")
    air = (hu < AIR_BELOW_HU) & ~_room(hu)
    airways = _airways(air, smooth, spacing_mm)
    labels, _ = ndimage.label(air & ~airways)
    pockets = []
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        one = labels[box] == index
        volume_ml = float(one.sum()) * voxel_ml
        if volume_ml >= LUNG_ABOVE_ML and _is_lung(one, smooth[box]):
            pockets.append((volume_ml, box, one))
    found = np.zeros(hu.shape, bool)
    for volume_ml, box, one in pockets:
        if volume_ml >= SMALLEST_OF_LARGEST * max(pocket[0] for pocket in pockets):
            lung = np.zeros(hu.shape, bool)
            lung[box] = one
            found |= _closed(lung, spacing_mm)
    return found


def _room(hu: Image) -> Mask:
    """Air that reaches the border of its own slice and, all slices together, is as thin as the room's.

    Slice by slice, because through nose or bowel the room may reach every cavity somewhere; by density, because a small
    field of view cuts through a lung, which then reaches the border too; all slices together, because blankets and arms
    thicken the room's air in some of them.
    """
    in_slice = np.zeros((3, 3, 3), bool)
    in_slice[1] = ndimage.generate_binary_structure(2, 1)
    labels, _ = ndimage.label(hu < AIR_BELOW_HU, in_slice)
    rim = np.ones(hu.shape, bool)
    rim[:, 1:-1, 1:-1] = False
    reaching = np.isin(labels, np.unique(labels[rim & (labels > 0)]))
    parts, count = ndimage.label(reaching)
    sizes = np.maximum(1, np.bincount(parts.ravel(), minlength=count + 1))
    means = np.bincount(parts.ravel(), weights=hu.ravel(), minlength=count + 1) / sizes
    thin = means < ROOM_BELOW_HU
    thin[0] = False
    found: Mask = thin[parts]
    return found


def _airways(air: Mask, smooth: NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> Mask:
    """Free gas inside the body in walled pockets of an airway's size, with their walls' partial volume.

    A larger or wider pocket is left: it is an overinflated lung, a pneumothorax or bowel, which is told by density.
    """
    labels, count = ndimage.label(air & (smooth < AIRWAY_BELOW_HU))
    airways = np.zeros(air.shape, bool)
    if not count:
        return airways
    volumes_ml = np.bincount(labels.ravel(), minlength=count + 1)[1:] * np.prod(spacing_mm) / 1000
    boxes = ndimage.find_objects(labels)
    heights_cm = np.array([box[0].stop - box[0].start for box in boxes]) * spacing_mm[0] / 10
    fits = (volumes_ml >= AIRWAY_ML[0]) & (volumes_ml <= AIRWAY_ML[1]) & (volumes_ml <= AIRWAY_CM2 * heights_cm)
    for index in np.flatnonzero(fits):
        box = tuple(slice(max(0, axis.start - 3), axis.stop + 3) for axis in boxes[index])
        # The mean over 3 voxels lost one voxel at the wall, the wall's partial volume is another.
        grown = ndimage.binary_dilation(labels[box] == index + 1, iterations=2)
        shell = ndimage.binary_dilation(grown) & ~grown
        if np.mean(~air[box][shell]) >= AIRWAY_WALL:
            airways[box] |= grown
    return airways


def _is_lung(one: Mask, smooth: NDArray[np.float32]) -> bool:
    """Whether a pocket is filled with lung (not free gas), judged away from its partial-volume surface."""
    inner = ndimage.binary_erosion(one, iterations=2, border_value=1)
    values = smooth[inner if inner.sum() >= 100 else one]
    return bool(np.mean((values > LUNG_HU[0]) & (values < LUNG_HU[1])) >= LUNG_SHARE)


def _largest(mask: Mask) -> Mask:
    """The largest 6-connected component; all False where there is none."""
    labels, count = ndimage.label(mask)
    if not count:
        return np.zeros(mask.shape, bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    found: Mask = labels == int(sizes.argmax())
    return found


def _distance(mask: Mask, spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Distance of every voxel of `mask` to its complement, mm (0 outside)."""
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing_mm))


def _opened(mask: Mask, spacing_mm: tuple[float, float, float], radius_mm: float) -> Mask:
    """Opening with a ball: what is thinner than twice the radius goes."""
    core = _distance(mask, spacing_mm) > radius_mm
    return core if not core.any() else _distance(~core, spacing_mm) <= radius_mm


def _closed(mask: Mask, spacing_mm: tuple[float, float, float]) -> Mask:
    """Closing with an upright capsule (`CLOSING_MM` around a line of `UPRIGHT_MM`) and filling of holes.

    Works in the mask's own box with a rim as wide as the capsule. Where the scan ends inside the lung, the lung is
    taken to go on.
    """
    line = int(UPRIGHT_MM / spacing_mm[0] / 2)
    rim = [int(np.ceil(CLOSING_MM / step)) + 1 for step in spacing_mm]
    rim[0] += line
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    # Beside the lung the rim is empty; above and below, the scan's first and last slice go on.
    inside = np.pad(mask[:, *box[1:]], [(rim[0], rim[0]), (0, 0), (0, 0)], mode="edge")
    inside = np.pad(inside, [(0, 0), (rim[1], rim[1]), (rim[2], rim[2])])
    grown = ndimage.maximum_filter1d(_distance(~inside, spacing_mm) <= CLOSING_MM, 2 * line + 1, axis=0)
    shrunk = ndimage.minimum_filter1d(grown, 2 * line + 1, axis=0)
    shrunk = _distance(np.pad(shrunk, 1, mode="edge"), spacing_mm)[1:-1, 1:-1, 1:-1] > CLOSING_MM
    filled = ndimage.binary_fill_holes(shrunk | inside)[rim[0] : -rim[0]]
    result = np.zeros([n + 2 * r for n, r in zip(mask.shape, (0, *rim[1:]), strict=True)], bool)
    result[:, box[1].start : box[1].stop + 2 * rim[1], box[2].start : box[2].stop + 2 * rim[2]] = filled
    closed: Mask = result[:, rim[1] : -rim[1], rim[2] : -rim[2]]
    return closed
