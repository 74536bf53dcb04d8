"""The phantom as CT Image Storage files (PS3.3, A.3): the series, and a localizer beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from service.codes import derive_uid
from service.demo.phantom import Phantom

INTERCEPT = -1024
"""HU of the stored value 0; with 12 bits stored the range is -1024 to 3071 HU."""

UUID_ROOT = "2.25"
"""The root under which any UUID, as a whole number, is a UID (PS3.5, B.2)."""


def write_series(
    phantom: Phantom,
    directory: Path,
    *,
    study_uid: str | None = None,
    uid_root: str = UUID_ROOT,
    series_number: int = 2,
    attributes: Mapping[str, object] | None = None,
) -> list[Path]:
    """Write one file per slice and return their paths, first slice first.

    Parameters
    ----------
    phantom
        What to write. Its affine may be oblique or reversed: positions and orientation are taken from it.
    directory
        Where to; it is created.
    study_uid
        StudyInstanceUID; None derives it from the voxels, so that the same phantom is the same study again and any
        other phantom is another. Series and instances derive theirs from it, the voxels and the parameters below: one
        UID never names two contents.
    uid_root
        Root of the derived UIDs, at most 24 characters, so that they stay within 64 (PS3.5, 9).
    series_number
        SeriesNumber; another number is another series of the same study.
    attributes
        More attributes of every file by keyword, laid over the usual ones (``{"PatientID": "X1"}``).
    """
    study = study_uid or _study_uid(phantom, uid_root)
    affine, hu = phantom.volume.affine, phantom.hu
    seen = f"{_fingerprint(phantom)} {series_number} {attributes}"
    common = _patient_study_series(study, uid_root, series_number, seen)
    common.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    common.SeriesDescription = "Chest Abdomen portal venous"
    common.ProtocolName = "Chest Abdomen"
    common.ContrastBolusAgent = "Iodine contrast agent"
    common.ContrastBolusRoute = "IV"
    common.ConvolutionKernel = "SOFT"
    common.SliceThickness = _decimal(np.linalg.norm(affine[:3, 0]))
    common.ImageOrientationPatient = _decimals([*_unit(affine[:3, 2]), *_unit(affine[:3, 1])])
    common.PixelSpacing = _decimals([np.linalg.norm(affine[:3, 1]), np.linalg.norm(affine[:3, 2])])
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, plane in enumerate(hu):
        image = _image(common, plane, number=index + 1, uid=_uid(uid_root, study, seen, index))
        image.ImagePositionPatient = _decimals((affine @ (index, 0, 0, 1))[:3])
        paths.append(_save(image, directory / f"CT{series_number:02d}{index + 1:04d}.dcm", attributes))
    return paths


def write_localizer(
    phantom: Phantom,
    directory: Path,
    *,
    study_uid: str | None = None,
    uid_root: str = UUID_ROOT,
    attributes: Mapping[str, object] | None = None,
) -> Path:
    """Write a frontal localizer as a series of its own in the same study and frame of reference; return its path.

    It is the mean over the rows, so it needs an axial phantom. The parameters are those of `write_series`.
    """
    study = study_uid or _study_uid(phantom, uid_root)
    affine, hu = phantom.volume.affine, phantom.hu
    if not np.allclose(_unit(np.abs(affine[:3, 1])), (0, 1, 0)) or affine[2, 0] >= 0:
        raise ValueError(
            "A localizer is made of an axial phantom whose first slice is nearest the head; this one is not."
        )
    seen = f"{_fingerprint(phantom)} localizer {attributes}"
    common = _patient_study_series(study, uid_root, 1, seen)
    common.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    common.SeriesDescription = "Localizer"
    del common.RescaleType  # Type 1C, for what is not in HU (PS3.3, C.8.2.1.1.3); here the mean of HU along the rays
    common.ContrastBolusAgent = None  # Type 2 (PS3.3, C.7.6.4): made before the contrast agent was given
    common.SliceThickness = None
    common.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    common.PixelSpacing = _decimals([np.linalg.norm(affine[:3, 0]), np.linalg.norm(affine[:3, 2])])
    plane = np.rint(hu.mean(axis=1)).astype(np.int16)
    image = _image(common, plane, number=1, uid=_uid(uid_root, study, seen, 0))
    image.ImagePositionPatient = _decimals((affine @ (0, (hu.shape[1] - 1) / 2, 0, 1))[:3])
    directory.mkdir(parents=True, exist_ok=True)
    return _save(image, directory / "LOCALIZER.dcm", attributes)


def _patient_study_series(study: str, root: str, series_number: int, series: str) -> Dataset:
    """Return what all images of a series share: the modules above the image, each attribute of Type 1 and 2."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    # Patient and General Study (PS3.3, C.7.1.1 and C.7.2.1)
    ds.PatientName = "Phantom^Chest Abdomen"
    ds.PatientID = "OVERREAD-PHANTOM"
    ds.PatientBirthDate = "19600101"
    ds.PatientSex = "O"
    ds.StudyInstanceUID = study
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20250102"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "101500"
    ds.ReferringPhysicianName = None
    ds.StudyID = "1"
    ds.AccessionNumber = "PHANTOM01"
    ds.StudyDescription = "CT chest and abdomen with contrast"
    # General Series, Frame of Reference, General Equipment (C.7.3.1, C.7.4.1, C.7.5.1)
    ds.Modality = "CT"
    ds.SeriesInstanceUID = _uid(root, study, series)
    ds.SeriesNumber = series_number
    ds.BodyPartExamined = "CHESTABDOMEN"  # PS3.16, Annex L
    ds.PatientPosition = "HFS"
    ds.FrameOfReferenceUID = _uid(root, study, "frame of reference")
    ds.PositionReferenceIndicator = None
    ds.Manufacturer = "Overread"
    ds.ManufacturerModelName = "Phantom"
    ds.SoftwareVersions = "1"
    # CT Image (C.8.2.1) and Image Pixel (C.7.6.3): the same in every slice
    ds.SOPClassUID = CTImageStorage
    ds.KVP = 120
    ds.AcquisitionNumber = 1
    ds.BurnedInAnnotation = "NO"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = INTERCEPT, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = 40, 400
    return ds


def _image(common: Dataset, plane: NDArray[np.int16], *, number: int, uid: str) -> Dataset:
    """Return the data set of one image; `plane` is HU, axes (rows, columns)."""
    ds = Dataset(common)  # shares the common elements, which nobody changes afterwards
    ds.SOPInstanceUID = uid
    ds.InstanceNumber = number
    ds.Rows, ds.Columns = plane.shape
    ds.PixelData = np.clip(plane - np.int32(INTERCEPT), 0, 4095).astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def _save(ds: Dataset, path: Path, attributes: Mapping[str, object] | None) -> Path:
    for keyword, value in (attributes or {}).items():
        setattr(ds, keyword, value)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta = meta
    ds.save_as(path, enforce_file_format=True)
    return path


def _fingerprint(phantom: Phantom) -> str:
    """Return a digest of voxels and affine: what the images say and where."""
    digest = hashlib.sha256(np.ascontiguousarray(phantom.hu).tobytes())
    digest.update(np.round(phantom.volume.affine, 6).tobytes())
    return digest.hexdigest()


def _study_uid(phantom: Phantom, root: str) -> str:
    return _uid(root, "study", phantom.seed, _fingerprint(phantom))


def _uid(root: str, *parts: object) -> str:
    """Return the UID derived from `parts`, moved under `root`."""
    return root + derive_uid(*map(str, parts)).removeprefix(UUID_ROOT)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector), np.float64)


def _decimal(value: float | np.floating) -> str:
    """Return a Decimal String: at most 16 characters (PS3.5, 6.2)."""
    return f"{round(float(value), 9) + 0.0:.12g}"


def _decimals(values: object) -> list[str]:
    return [_decimal(value) for value in np.asarray(values, np.float64)]
