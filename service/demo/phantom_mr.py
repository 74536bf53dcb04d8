"""A head on MR, T1-weighted after a contrast agent, with or without a bright round mass; and its files.

It is a likeness for the eye of a program, not of a radiologist: scalp, skull, grey and white matter, ventricles.
Space is laid out as in anatomy.py: LPS millimetres, z = 0 at the floor of the lateral ventricles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import MRImageStorage
from scipy import ndimage

from service.demo.phantom import Phantom, PlantedLesion
from service.demo.phantom_dicom import INTERCEPT, write_series
from service.demo.shapes import Canvas, Floats, Point, Shape, ellipsoid, half_space

MASS: Final = "brain mass"
ONE_MASS = (
    PlantedLesion(kind=MASS, centre_lps_mm=(-34.0, -28.0, 22.0), diameter_mm=32.0, hu=980.0, site="right frontal lobe"),
)
"""A mass to plant; its `hu` is no Hounsfield number here, but the signal, as all values of this phantom are."""

FIELD_OF_VIEW_MM = 230.0
HEIGHTS: Final = (-20.0, 62.0)
"""LPS z of the lowest and the highest slice, mm: from the brain stem's top to above the ventricles."""

SCALP, BONE, FLUID, GREY, WHITE, OEDEMA, VESSEL = 720.0, 60.0, 130.0, 430.0, 570.0, 330.0, 950.0
BLUR_PIXELS = 0.6  # standard deviation of the scanner's point spread, in the slice

MR_MODULE: Final[Mapping[str, object]] = {  # Types 1 and 2 of the MR Image Module (PS3.3 C.8.3.1); values from 0 up
    "ScanningSequence": "SE",
    "SequenceVariant": "NONE",
    "ScanOptions": None,
    "MRAcquisitionType": "2D",
    "RepetitionTime": 500,
    "EchoTime": 10,
    "EchoTrainLength": 1,
    "RescaleIntercept": 0,
    "RescaleType": "US",
    "KVP": None,
}
MR_IMAGE: Final[Mapping[str, object]] = {  # and the descriptions that say what was taken
    **MR_MODULE,
    "SOPClassUID": MRImageStorage,
    "Modality": "MR",
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "SE"],
    "ConvolutionKernel": None,
    "WindowCenter": 500,
    "WindowWidth": 1000,
    "BodyPartExamined": "BRAIN",
    "PatientName": "Phantom^Head",
    "StudyDescription": "MR brain with contrast",
    "SeriesDescription": "T1 axial post contrast",
    "ProtocolName": "Brain T1",
    "ContrastBolusAgent": "Gadolinium contrast agent",
}


class Part(NamedTuple):
    """A part of the head: a row of the table below."""

    name: str  # for the reader
    shape: Shape
    signal: float


def head(
    *,
    seed: int = 0,
    spacing_mm: Point = (5.0, 0.9, 0.9),
    heights_mm: tuple[float, float] = HEIGHTS,
    lesions: Sequence[PlantedLesion] = (),
    noise: float = 12.0,
) -> Phantom:
    """Make an axial head, the first slice nearest the crown.

    Parameters
    ----------
    seed
        Of the brain's folds and of the noise. The lesions are the same for every seed.
    spacing_mm
        Between slices, rows and columns.
    heights_mm
        LPS z of the lowest and the highest slice.
    lesions
        What to plant, `ONE_MASS` for instance; none makes a healthy patient.
    noise
        Standard deviation of the noise in each of the two channels of the receiver: the values are magnitudes.

    Returns
    -------
    Phantom
        Values are signals from 0 up, no HU; its mask is "brain".
    """
    rng = np.random.default_rng(seed)
    z = np.arange(heights_mm[1], heights_mm[0] - 1e-3, -spacing_mm[0])
    y, x = (
        (np.arange(round(FIELD_OF_VIEW_MM / step)) - (round(FIELD_OF_VIEW_MM / step) - 1) / 2) * step
        for step in spacing_mm[1:]
    )
    canvas = Canvas(*(axis.astype(np.float32) for axis in (x, y, z)), background=0.0)
    for part in _parts(rng):
        canvas.paint(part.shape, part.signal)
    brain = _brain(0.0)
    for lesion in lesions:
        canvas.paint(lesion.shape.grown(9).wavy(3, 25) & brain, OEDEMA)
        canvas.paint(lesion.shape, lesion.hu)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = -spacing_mm[0], spacing_mm[1], spacing_mm[2]
    affine[:, 3] = x[0], y[0], z[0], 1
    return Phantom(
        volume=highdicom.Volume(_scanned(canvas.hu, noise, rng), affine, coordinate_system="PATIENT"),
        lesions=tuple(it for it in lesions if z[-1] <= it.shape.low[2] and it.shape.high[2] <= z[0]),
        masks={"brain": canvas.mask(brain)},
        seed=seed,
    )


def write_head(phantom: Phantom, directory: Path, *, attributes: Mapping[str, object] | None = None) -> list[Path]:
    """Write a head as MR Image Storage (PS3.3 A.4), one file per slice; return their paths, first slice first.

    Parameters
    ----------
    phantom
        Of `head`.
    directory
        Where to; it is created.
    attributes
        More attributes of every file by keyword, laid over the usual ones.
    """
    stored = phantom.volume.with_array(phantom.hu + np.int16(INTERCEPT))  # `write_series` takes 0 for that HU
    return write_series(
        replace(phantom, volume=stored), directory, series_number=4, attributes={**MR_IMAGE, **(attributes or {})}
    )


def _brain(phase: float) -> Shape:
    """The brain; its surface is folded unless `phase` is 0."""
    oval = ellipsoid((0, 2, 0), (65, 82, 78))
    return oval.wavy(2.0, 17, phase) if phase else oval


def _parts(rng: np.random.Generator) -> list[Part]:
    """The head, in the order of painting, each part over those before it."""
    first, second = (float(phase) for phase in rng.uniform(1, 6, 2))
    folded = _brain(first)
    white = ellipsoid((0, 2, 0), (58, 74, 70)).wavy(7.5, 19, second)
    rows = [
        Part("scalp and its fat", ellipsoid((0, 2, -4), (79, 97, 95)), SCALP),
        Part("skull", ellipsoid((0, 2, -4), (74, 92, 90)), BONE),
        Part("fluid around the brain", ellipsoid((0, 2, -2), (68, 85, 82)), FLUID),
        Part("grey matter", folded, GREY),
        Part("white matter", white & folded.grown(-2.5), WHITE),
        Part("fissure between the halves", ellipsoid((0, 2, 30), (1.6, 84, 60)) & _brain(0.0), FLUID),
        Part("corpus callosum", ellipsoid((0, 0, 24), (14, 40, 8)), WHITE),
    ]
    for side in (-1, 1):
        rows += [
            Part("thalamus", ellipsoid((side * 11, 10, 0), (9, 15, 11)), GREY),
            Part("lentiform nucleus", ellipsoid((side * 25, -4, 2), (7, 17, 11), turn_deg=(0, 0, -side * 15)), GREY),
            Part("insula", ellipsoid((side * 40, -2, 2), (2.2, 20, 14), turn_deg=(0, 0, -side * 8)), FLUID),
            Part("caudate nucleus", ellipsoid((side * 13, -22, 8), (5, 10, 12)), GREY),
            Part("front horn", ellipsoid((side * 9, -22, 10), (5, 17, 13), turn_deg=(0, 0, side * 18)), FLUID),
            Part("lateral ventricle", ellipsoid((side * 12, 10, 18), (7, 32, 10), turn_deg=(0, 0, -side * 10)), FLUID),
            Part("back horn", ellipsoid((side * 22, 34, 6), (6, 17, 11), turn_deg=(0, 0, -side * 22)), FLUID),
        ]
    fluid, below = ellipsoid((0, 2, -2), (68, 85, 82)), half_space((0, 0, -8), (0, 0, 1))
    return [
        *rows,
        Part("third ventricle", ellipsoid((0, 6, -2), (2, 14, 10)), FLUID),
        Part("cerebellum", ellipsoid((0, 46, -34), (48, 32, 30)).wavy(1.5, 7, second) & below, GREY),
        Part("sagittal sinus", ellipsoid((0, 85, 10), (4, 4, 50)) & fluid.grown(2), VESSEL),
    ]


def _scanned(signal: Floats, noise: float, rng: np.random.Generator) -> NDArray[np.int16]:
    """Return the finished images, int16, 0 and up: the magnitude of a blurred signal with noise in two channels."""
    blurred = ndimage.gaussian_filter(signal, (0, BLUR_PIXELS, BLUR_PIXELS))
    real, imaginary = (rng.standard_normal(signal.shape, np.float32) * np.float32(noise) for _ in range(2))
    magnitude = np.rint(np.hypot(blurred + real, imaginary))
    return np.asarray(np.clip(magnitude, 0, 4095 + INTERCEPT), np.int16)
