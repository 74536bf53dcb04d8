"""One body with two lesions, known by formula in the patient, as any scanner might write it.

The lesions are ellipsoids along the patient's axes, of three different radii each, and lie off the middle in every
direction: any flip, swap or shift of axes moves them or turns them. A voxel holds the mean of what is in it, as a
scanner's does. The lesions are 20 to 30 pixels wide, so that counting voxels gives their volume to a few tenths of a
percent whatever the grid: what the tests compare is then the geometry and not the voxels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from service.codes import derive_uid
from service.intake.study import group, read_instance
from service.types import Point, Study

Vector = NDArray[np.float64]
MIDDLE: Point = (-23.4, 151.7, -412.9)  # of the scan, LPS mm
EXTENT_MM = 116.0  # of the scan, in each of its own directions
TISSUE, LESION = 0, 400  # HU
SHIFT = 1024  # stored value of 0 HU


@dataclass(frozen=True, slots=True, kw_only=True)
class Ellipsoid:
    """A lesion: all points whose `level` is at most 1."""

    centre: Point  # LPS mm
    radii: Point  # mm along x, y and z of the patient

    @property
    def volume_ml(self) -> float:
        return 4 / 3 * float(np.pi) * float(np.prod(self.radii)) / 1000

    def level(self, points: Vector) -> Vector:
        """[...] distance from the centre in radii; points are [..., 3], LPS mm."""
        scaled: Vector = np.linalg.norm((points - self.centre) / np.array(self.radii), axis=-1)
        return scaled

    def outside_mm(self, points: Vector) -> Vector:
        """[...] how far points lie outside the surface (to first order: right near it); negative inside."""
        level = np.maximum(self.level(points), 1e-6)
        slope = np.linalg.norm((points - self.centre) / np.square(self.radii), axis=-1) / level
        distance: Vector = (level - 1) / np.maximum(slope, 1e-6)
        return distance

    def cut(self, point: Vector, row: Vector, column: Vector) -> tuple[Vector, float, float, float]:
        """Centre (LPS mm), area (mm2), long and short diameter (mm) of its cut with a plane.

        Parameters
        ----------
        point
            Any point of the plane, LPS mm.
        row, column
            Perpendicular unit vectors in it.
        """
        # With p = point + s row + t column the cut is a quadric in (s, t): q A q + 2 b q + c = 1.
        along = np.stack([row, column]) / np.array(self.radii)
        start = (point - np.array(self.centre)) / np.array(self.radii)
        matrix, linear = along @ along.T, along @ start
        middle = -np.linalg.solve(matrix, linear)
        rest = 1 - start @ start - linear @ middle
        long, short = np.sqrt(rest / np.linalg.eigvalsh(matrix))
        centre = point + middle[0] * row + middle[1] * column
        return centre, float(np.pi * long * short), 2 * float(long), 2 * float(short)


LESIONS = (
    Ellipsoid(centre=(-44.0, 136.3, -421.6), radii=(15.0, 19.0, 24.0)),
    Ellipsoid(centre=(3.7, 169.4, -396.2), radii=(21.0, 14.5, 17.5)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How a scanner writes the body."""

    name: str
    orientation: tuple[float, ...]  # ImageOrientationPatient
    spacing: Point  # mm between slices, rows and columns
    position: str = "HFS"  # PatientPosition
    backwards: bool = False  # InstanceNumber and arrival fall where the position along the normal rises

    @property
    def row(self) -> Vector:
        """Unit vector in which the column index grows."""
        return np.array(self.orientation[:3], np.float64)

    @property
    def column(self) -> Vector:
        """Unit vector in which the row index grows."""
        return np.array(self.orientation[3:], np.float64)

    @property
    def normal(self) -> Vector:
        return np.cross(self.row, self.column)


# Feet first and prone the same table and detector see the patient turned: the directions of the image turn with him.
WRITINGS = (
    Writing(name="axial", orientation=(1, 0, 0, 0, 1, 0), spacing=(1.5, 1.0, 1.0)),
    Writing(name="sagittal", orientation=(0, 1, 0, 0, 0, -1), spacing=(1.5, 1.0, 1.0)),
    Writing(name="coronal", orientation=(1, 0, 0, 0, 0, -1), spacing=(1.5, 1.0, 1.0)),
    Writing(name="oblique", orientation=(0.8, 0.6, 0.0, -0.36, 0.48, 0.8), spacing=(1.5, 1.0, 1.0)),
    Writing(name="feet-first", orientation=(-1, 0, 0, 0, 1, 0), spacing=(1.5, 1.0, 1.0), position="FFS"),
    Writing(name="prone", orientation=(-1, 0, 0, 0, -1, 0), spacing=(1.5, 1.0, 1.0), position="HFP"),
    Writing(name="reversed", orientation=(1, 0, 0, 0, 1, 0), spacing=(1.5, 1.0, 1.0), backwards=True),
    Writing(name="anisotropic", orientation=(1, 0, 0, 0, 1, 0), spacing=(2.5, 0.7, 1.15)),
)


def drawn(outline: Vector) -> tuple[Vector, float]:
    """Centre and area (mm2) of a closed, flat outline [points, 3], LPS mm."""
    edges = outline - outline[0]
    turns = np.cross(edges[:-1], edges[1:]) / 2
    area = float(np.linalg.norm(turns.sum(axis=0)))
    weights = turns @ turns.sum(axis=0) / area**2  # of the triangles from the first point to each edge
    return outline[0] + weights @ (edges[:-1] + edges[1:]) / 3, area


def write(writing: Writing, folder: Path) -> Study:
    """Write the body as a CT series into a folder, and take it in as a study in the order in which it came."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [_save(image, folder / f"{image.InstanceNumber:04d}.dcm") for image in _images(writing)]
    (study,) = group(read_instance(path) for path in sorted(paths))
    return study


def _images(writing: Writing) -> Iterable[Dataset]:
    """One image after the other along the normal."""
    directions = np.stack([writing.normal, writing.column, writing.row])
    # Rows and columns differ in number, and each writing has its voxels elsewhere in the body.
    counts = np.ceil(np.array([1.0, 1.06, 0.97]) * EXTENT_MM / writing.spacing).astype(int)
    first = np.array(MIDDLE) + ((0.31, -0.17, 0.23) - (counts - 1) / 2 * writing.spacing) @ directions
    rows, columns = (np.arange(count) * step for count, step in zip(counts[1:], writing.spacing[1:], strict=True))
    for index in range(counts[0]):
        position = first + index * writing.spacing[0] * writing.normal
        points = position + rows[:, None, None] * writing.column + columns[None, :, None] * writing.row
        yield _image(writing, index, int(counts[0]), position, _values(points, directions, writing.spacing))


def _values(points: Vector, directions: Vector, spacing: Point) -> NDArray[np.int16]:
    """HU of voxels by their centres [rows, columns, 3]: the mean over a voxel's width across the lesion's surface."""
    share = np.zeros(points.shape[:-1])
    for lesion in LESIONS:
        across = (points - lesion.centre) / np.square(lesion.radii)
        across /= np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-9)
        width = np.abs(across @ directions.T) @ np.array(spacing)
        share = np.maximum(share, np.clip(0.5 - lesion.outside_mm(points) / width, 0, 1))
    values: NDArray[np.int16] = np.rint(TISSUE + share * (LESION - TISSUE)).astype(np.int16)
    return values


def _image(writing: Writing, index: int, count: int, position: Vector, values: NDArray[np.int16]) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = derive_uid("written", writing.name, str(index))
    dataset.StudyInstanceUID = derive_uid("written", writing.name)
    dataset.SeriesInstanceUID = derive_uid("written", writing.name, "series")
    dataset.FrameOfReferenceUID = derive_uid("written frame")  # one body, one frame
    dataset.PatientName, dataset.PatientID = "Written^Body", "W-0001"
    dataset.PatientBirthDate, dataset.PatientSex = "19700102", "O"
    dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "A-78", "S-2", ""
    dataset.StudyDate, dataset.StudyTime, dataset.StudyDescription = "20260228", "101500", "CT of a body"
    dataset.Modality, dataset.Manufacturer, dataset.SeriesNumber = "CT", "Overread tests", 3
    dataset.ImageType, dataset.AcquisitionNumber, dataset.KVP = ["ORIGINAL", "PRIMARY", "AXIAL"], 1, 120
    dataset.InstanceNumber = count - index if writing.backwards else index + 1
    dataset.PatientPosition, dataset.PositionReferenceIndicator = writing.position, ""
    dataset.ImageOrientationPatient = [f"{value:.10g}" for value in writing.orientation]
    dataset.ImagePositionPatient = [f"{value:.10g}" for value in position]
    dataset.PixelSpacing = [f"{value:.10g}" for value in writing.spacing[1:]]
    dataset.SliceThickness = 5  # wrong on purpose: only positions tell the distance of slices
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = -SHIFT, 1, "HU"
    dataset.PixelData = (values + SHIFT).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def _save(dataset: Dataset, path: Path) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path
