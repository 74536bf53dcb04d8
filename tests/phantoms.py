"""A tiny series with known lesions, in any orientation, order and spacing: what the result objects are tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from service.codes import Code, derive_uid
from service.results.identity import Making, tracking_uid
from service.spec import FindingClass, ModelSpec
from service.types import (
    Completeness,
    Finding,
    Instance,
    Judgement,
    Lesion,
    Mark,
    Model,
    Point,
    Series,
    SourceVolume,
    Study,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
SHAPE = (12, 40, 48)  # slices, rows, columns
LESION = Code("52988006", "SCT", "Lesion")
LIVER = Code("10200004", "SCT", "Liver")
LUNG = Code("39607008", "SCT", "Lung")
BRAIN = Code("12738006", "SCT", "Brain")
GLIOMA = Code("393564001", "SCT", "Glioma")
MENINGIOMA = Code("1156424001", "SCT", "Meningioma")
NORMAL = Code("17621005", "SCT", "Normal")
COLOUR = (230, 159, 0)
LESION_CLASS = FindingClass(finding=LESION, site=LIVER, colour=COLOUR)
# Of two classes, each with everything of its own.
NODULE_CLASS = FindingClass(
    channel=1,
    finding=Code("27925004", "SCT", "Nodule"),
    category=Code("91723000", "SCT", "Anatomical Structure"),
    site=LUNG,
    colour=(0, 114, 178),
)
GLIOMA_CLASS = FindingClass(channel=0, finding=GLIOMA, site=BRAIN)
MENINGIOMA_CLASS = FindingClass(channel=1, finding=MENINGIOMA, site=BRAIN)
NORMAL_CLASS = FindingClass(channel=2, finding=NORMAL, site=BRAIN, normal=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """A series, read, with the findings that are in it."""

    source: SourceVolume
    findings: tuple[Finding, ...]
    making: Making

    @property
    def lesions(self) -> tuple[Lesion, ...]:
        """Those of the findings that are segmented."""
        return tuple(finding for finding in self.findings if isinstance(finding, Lesion))


def make(
    folder: Path,
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.8),
    reverse: bool = False,
    edit: Callable[[Dataset, int], None] | None = None,
    lesions: int = 2,
    modality: str = "CT",
) -> Phantom:
    """Write a series into a folder and read it again.

    Parameters
    ----------
    orientation
        ImageOrientationPatient (0020,0037).
    spacing
        mm between slices, rows and columns.
    reverse
        Whether InstanceNumber falls where the position rises.
    edit
        Changes the data set of slice i before it is written.
    lesions
        How many lesions, of different sizes.
    modality
        CT or MR.
    """
    masks = [_ellipsoid(SHAPE, (3 + 4 * n, 12 + 9 * n, 14 + 11 * n), (2.4, 6 - 2 * n, 4 + n)) for n in range(lesions)]
    array = np.full(SHAPE, 40, np.int16)
    for mask in masks:
        array[mask] = -20
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    affine = np.eye(4)
    for axis, (direction, step) in enumerate(zip((np.cross(row, column), column, row), spacing, strict=True)):
        affine[:3, axis] = direction * step
    affine[:3, 3] = (-120.5, -80.25, 310.0)
    folder.mkdir(parents=True, exist_ok=True)
    instances = []
    for index, pixels in enumerate(array):
        dataset = _image(pixels, affine @ (index, 0, 0, 1), orientation, spacing)
        dataset.InstanceNumber = len(array) - index if reverse else index + 1
        if modality == "MR":
            _make_mr(dataset)
        if edit:
            edit(dataset, index)
        path = folder / f"{index:03}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        instances.append(read_instance(path))
    series = Series(
        series_instance_uid=derive_uid("phantom series"),
        modality=modality,
        instances=tuple(reversed(instances)),
    )
    frame = str(instances[0].header.get("FrameOfReferenceUID") or derive_uid("phantom frame"))
    source = SourceVolume(
        series=series,
        volume=hd.Volume(array.astype(np.float32), affine, coordinate_system="PATIENT", frame_of_reference_uid=frame),
        ordered=tuple(instances),
        notes=(),
    )
    return Phantom(
        source=source,
        findings=tuple(finding_of(source, mask, number) for number, mask in enumerate(masks, start=1)),
        making=making_of(series),
    )


def read_instance(path: Path) -> Instance:
    """A file as the intake would hand it on."""
    header = dcmread(path, stop_before_pixels=True)
    return Instance(
        sop_instance_uid=str(header.SOPInstanceUID),
        sop_class_uid=str(header.SOPClassUID),
        transfer_syntax_uid=str(header.file_meta.TransferSyntaxUID),
        path=path,
        header=header,
    )


def finding_of(source: SourceVolume, mask: NDArray[np.bool_], number: int, kind: FindingClass = LESION_CLASS) -> Lesion:
    """A finding measured from its mask, independently of the analysis.

    Parameters
    ----------
    mask
        bool [slices, rows, columns] of the whole source grid.
    """
    indices = np.argwhere(mask)
    low, high = indices.min(axis=0), indices.max(axis=0) + 1
    box = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])), slice(int(low[2]), int(high[2])))
    places = (source.volume.affine @ np.c_[indices, np.ones(len(indices))].T)[:3].T
    centroid = _point(places.mean(axis=0))
    key = int(np.argmax(mask.sum(axis=(1, 2))))
    rows, columns = (np.flatnonzero(mask[key].any(axis=axis)) for axis in (1, 0))
    middle_row, middle_column = float(rows.mean()), float(columns.mean())
    left, right = (key, middle_row, columns[0] - 0.5), (key, middle_row, columns[-1] + 0.5)
    top, bottom = (key, rows[0] - 0.5, middle_column), (key, rows[-1] + 0.5, middle_column)
    across = (float(len(columns) * source.volume.spacing[2]), (left, right))
    down = (float(len(rows) * source.volume.spacing[1]), (top, bottom))
    (short_mm, short), (long_mm, long) = sorted((across, down))
    return Lesion(
        number=number,
        tracking_uid=tracking_uid(source.series, "phantom-lesion", kind.channel, centroid),
        kind=kind,
        probability=0.95 - 0.1 * number,
        mask=mask[box],
        likelihood=np.where(mask[box], np.float32(0.95 - 0.1 * number), np.float32(0)),
        box=box,
        centroid_lps_mm=centroid,
        extent_lps_mm=(_point(places.min(axis=0)), _point(places.max(axis=0))),
        volume_ml=float(mask.sum() * np.prod(source.volume.spacing)) / 1000,
        mean=float(source.volume.array[mask].mean()),
        key_slice=key,
        long_axis=long,
        long_axis_mm=long_mm,
        short_axis=short,
        short_axis_mm=short_mm,
    )


def mark_of(source: SourceVolume, low: Point, high: Point, number: int, kind: FindingClass = LESION_CLASS) -> Mark:
    """A box or a point on the source grid, measured independently of the analysis."""
    middle = (np.array(low) + high) / 2
    centre = _point((source.volume.affine @ (*middle, 1))[:3])
    return Mark(
        number=number,
        tracking_uid=tracking_uid(source.series, "phantom-lesion", kind.channel, centre),
        kind=kind,
        probability=0.95 - 0.1 * number,
        key_slice=int(np.floor(middle[0] + 0.5)),
        centre_lps_mm=centre,
        low=low,
        high=high,
        size_mm=None if low == high else _point((np.array(high) - low) * source.volume.spacing),
    )


def with_marks(phantom: Phantom) -> Phantom:
    """The phantom with a box around each of its lesions in place of the lesion, and a point beside them."""
    boxes = [
        mark_of(
            phantom.source,
            (lesion.box[0].start - 0.5, lesion.box[1].start - 0.5, lesion.box[2].start - 0.5),
            (lesion.box[0].stop - 0.5, lesion.box[1].stop - 0.5, lesion.box[2].stop - 0.5),
            lesion.number,
        )
        for lesion in phantom.lesions
    ]
    point = mark_of(phantom.source, (5.3, 8.25, 30.5), (5.3, 8.25, 30.5), len(boxes) + 1, NODULE_CLASS)
    return replace(phantom, findings=(*boxes, point))


def judgement_of(
    source: SourceVolume,
    number: int,
    kind: FindingClass,
    *,
    key_slice: int = 7,
    level: Literal["image", "series", "study"] = "series",
) -> Judgement:
    """A statement about the series."""
    return Judgement(
        number=number,
        tracking_uid=tracking_uid(source.series, "phantom-lesion", kind.channel, None),
        kind=kind,
        probability=0.95 - 0.1 * number,
        key_slice=key_slice,
        level=level,
    )


def with_judgements(phantom: Phantom) -> Phantom:
    """The phantom with a statement of each of two classes in place of its lesions."""
    said = (
        judgement_of(phantom.source, 1, GLIOMA_CLASS, key_slice=7),
        judgement_of(phantom.source, 2, MENINGIOMA_CLASS, key_slice=2),
    )
    classes = (GLIOMA_CLASS, MENINGIOMA_CLASS, NORMAL_CLASS)
    return replace(phantom, findings=said, making=with_spec(phantom.making, classes=classes))


def with_two_classes(phantom: Phantom) -> Phantom:
    """The phantom whose second lesion is of another class, and larger, so that it overlaps the first."""
    first, _ = phantom.lesions
    mask = np.zeros(phantom.source.volume.spatial_shape, bool)
    mask[first.box[0].start + 1 : first.box[0].stop + 2, 10:20, 15:30] = True
    second = finding_of(phantom.source, mask, 2, NODULE_CLASS)
    making = with_spec(phantom.making, classes=(LESION_CLASS, NODULE_CLASS))
    return replace(phantom, findings=(first, second), making=making)


def with_spec(making: Making, **changes: object) -> Making:
    """The same making by a model with another specification."""
    return replace(making, model=replace(making.model, spec=making.model.spec.model_copy(update=changes)))


def making_of(series: Series, *, weights: str = "0" * 64) -> Making:
    """A making by a model that does not exist."""
    spec = ModelSpec.model_validate(
        {
            "name": "phantom-lesion",
            "version": "1.2.0",
            "title": "Phantom lesions on CT",
            "manufacturer": "Overread tests",
            "licence": "Apache-2.0",
            "source": {"words": "none"},
            "select": {"modality": "CT"},
            "stages": [
                {
                    "name": "lesion",
                    "input": {"name": "in", "shape": (8, 8, 8)},
                    "output": {"name": "out", "shape": (8, 8, 8)},
                    "intensity": {"clip": (-200.0, 200.0)},
                }
            ],
            "classes": [LESION_CLASS.model_dump()],
        }
    )
    study = Study(
        study_instance_uid=str(series.header.StudyInstanceUID),
        series=(series,),
        completeness=Completeness.QUIET,
        received_at=0.0,
    )
    return Making(
        study=study,
        model=Model(spec=spec, folder=Path("phantom-lesion"), weights_sha256=weights, networks=()),
        backend="a test",
        made_at=datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC),
    )


def with_series(making: Making, *series: Series) -> Making:
    """The same making for a study of these series."""
    return replace(making, study=replace(making.study, series=series))


def _make_mr(dataset: Dataset) -> None:
    """A spin echo MR image as scanners send it: without rescale."""
    dataset.SOPClassUID, dataset.Modality, dataset.StudyDescription = MRImageStorage, "MR", "MR phantom"
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "NONE", ""
    dataset.MRAcquisitionType, dataset.EchoTime, dataset.RepetitionTime, dataset.EchoTrainLength = "2D", 12, 500, 1
    del dataset.RescaleIntercept, dataset.RescaleSlope


def _point(values: NDArray[np.float64]) -> Point:
    return float(values[0]), float(values[1]), float(values[2])


def _ellipsoid(shape: tuple[int, int, int], centre: Sequence[float], radii: Sequence[float]) -> NDArray[np.bool_]:
    grid = np.indices(shape).T
    inside: NDArray[np.bool_] = (np.square((grid - centre) / np.asarray(radii)).sum(axis=-1) <= 1).T
    return inside


def _image(
    pixels: NDArray[np.int16], position: NDArray[np.float64], orientation: Sequence[float], spacing: Sequence[float]
) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = derive_uid("phantom image", *(f"{value:.3f}" for value in position))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = derive_uid("phantom study"), derive_uid("phantom series")
    dataset.FrameOfReferenceUID = derive_uid("phantom frame")
    dataset.PatientName, dataset.PatientID = "Phantom^Test", "P-0001"
    dataset.PatientBirthDate, dataset.PatientSex = "19700102", "O"
    dataset.AccessionNumber, dataset.StudyID = "A-77", "S-1"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyDescription = "20260228", "101500", "CT phantom"
    dataset.ReferringPhysicianName = "Referrer^Test"
    dataset.Modality, dataset.Manufacturer, dataset.SeriesNumber = "CT", "Overread tests", 3
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImageOrientationPatient = [f"{value:.10g}" for value in orientation]
    dataset.ImagePositionPatient = [f"{value:.10g}" for value in position[:3]]
    dataset.PixelSpacing = [f"{value:.10g}" for value in spacing[1:]]
    dataset.SliceThickness = f"{spacing[0]:.10g}"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleIntercept, dataset.RescaleSlope = 0, 1
    dataset.PixelData = pixels.astype("<i2").tobytes()
    return dataset
