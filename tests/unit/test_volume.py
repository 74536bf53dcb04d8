"""A series becomes one volume in real-world values, at its place in the patient; or the reason why not is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from service.analysis.volume import read_volume
from service.errors import MissingAttribute, StudyUnsuitable, UnsuitableGeometry
from service.types import Series
from tests.phantoms import AXIAL, CORONAL, OBLIQUE, SAGITTAL, SHAPE, Phantom, make, read_instance
from tests.transcoded import JPEG_2000, JPEG_LOSSLESS, transcode

Edit = Callable[[Dataset, int], None]
ORIGIN = (-120.5, -80.25, 310.0)  # of the phantom's first slice


def _again(folder: Path) -> Series:
    instances = tuple(read_instance(path) for path in sorted(folder.iterdir()))
    return Series(series_instance_uid=str(instances[0].header.SeriesInstanceUID), modality="CT", instances=instances)


def _where(orientation: Sequence[float], spacing: Sequence[float], voxel: Sequence[float]) -> NDArray[np.float64]:
    """[3] LPS mm of a voxel (slice, row, column) by the equation of PS3.3 C.7.6.2.1.1 alone."""
    x, y = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.array([x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]])
    k, row, column = voxel
    return np.array(ORIGIN) + normal * spacing[0] * k + y * spacing[1] * row + x * spacing[2] * column


# --- Where ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "orientation", [AXIAL, CORONAL, SAGITTAL, OBLIQUE], ids=["axial", "coronal", "sagittal", "oblique"]
)
@pytest.mark.parametrize("spacing", [(2.5, 0.8, 0.8), (1.25, 0.7, 1.1)], ids=["square", "anisotropic"])
def test_every_voxel_lies_where_the_standard_says(
    orientation: Sequence[float], spacing: tuple[float, float, float], tmp_path: Path
) -> None:
    phantom = make(tmp_path, orientation=orientation, spacing=spacing)
    read = read_volume(phantom.source.series)
    corners = np.array([(0, 0, 0), (11, 0, 0), (0, 39, 0), (0, 0, 47), (11, 39, 47), (5, 20, 13)])
    for voxel in corners:
        found = (read.volume.affine @ (*voxel, 1))[:3]
        np.testing.assert_allclose(found, _where(orientation, spacing, voxel), atol=1e-6)
    np.testing.assert_array_equal(read.volume.array, phantom.source.volume.array)
    assert read.volume.array.dtype == np.float32
    assert [i.sop_instance_uid for i in read.ordered] == [i.sop_instance_uid for i in phantom.source.ordered]
    assert read.notes == ()
    assert read.volume.frame_of_reference_uid == phantom.source.volume.frame_of_reference_uid


def test_rounded_headers_are_straightened(tmp_path: Path) -> None:
    """Three digits of a direction cosine and of a position are what some scanners write."""

    def rounded(dataset: Dataset, _index: int) -> None:
        for keyword in ("ImageOrientationPatient", "ImagePositionPatient"):
            setattr(dataset, keyword, [f"{float(v):.3f}" for v in dataset[keyword].value])

    # A turn whose cosines three digits do not hold.
    x, y = (0.8165, 0.4082, 0.4082), (-0.5774, 0.5774, 0.5774)
    read = read_volume(make(tmp_path, orientation=(*x, *y), edit=rounded).source.series)
    directions = read.volume.affine[:3, :3] / read.volume.spacing
    np.testing.assert_allclose(directions[:, 1:].T @ directions[:, 1:], np.eye(2), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1, atol=1e-9)


# --- What -----------------------------------------------------------------------------------------------------------


def _rescaled(dataset: Dataset, index: int) -> None:
    """Each slice with a scale of its own, as PET and some CT have it."""
    slope, intercept = 0.5 + index, -1024 + 3 * index
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept


def _unsigned(dataset: Dataset, _index: int) -> None:
    pixels = np.frombuffer(dataset.PixelData, "<i2").astype(np.int32) + 1024
    dataset.PixelData, dataset.PixelRepresentation = pixels.astype("<u2").tobytes(), 0
    dataset.RescaleIntercept = -1024


def _twelve_bits_signed(dataset: Dataset, _index: int) -> None:
    """What lies above the 12 bits stored is somebody's overlay."""
    pixels = np.frombuffer(dataset.PixelData, "<i2").view("<u2")
    dataset.PixelData = ((pixels & 0x0FFF) | 0x5000).astype("<u2").tobytes()
    dataset.BitsStored, dataset.HighBit = 12, 11


def _dark_is_high(dataset: Dataset, _index: int) -> None:
    dataset.PhotometricInterpretation = "MONOCHROME1"


@pytest.mark.parametrize("edit", [_unsigned, _twelve_bits_signed, _dark_is_high], ids=lambda edit: edit.__name__[1:])
def test_values_are_the_same_however_they_are_stored(edit: Edit, tmp_path: Path) -> None:
    phantom = make(tmp_path, edit=edit)
    np.testing.assert_array_equal(read_volume(phantom.source.series).volume.array, phantom.source.volume.array)


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    phantom = make(tmp_path, edit=_rescaled)
    expected = np.stack([(0.5 + k) * plane + (-1024 + 3 * k) for k, plane in enumerate(phantom.source.volume.array)])
    np.testing.assert_allclose(read_volume(phantom.source.series).volume.array, expected, rtol=1e-6)


def test_unsigned_values_of_sixteen_bits_keep_their_sign(tmp_path: Path) -> None:
    def high(dataset: Dataset, _index: int) -> None:
        dataset.PixelData, dataset.PixelRepresentation = np.full(SHAPE[1:], 60000, "<u2").tobytes(), 0

    array = read_volume(make(tmp_path, edit=high).source.series).volume.array
    assert (array.min(), array.max()) == (60000, 60000)


@pytest.mark.parametrize(
    "syntax",
    [RLELossless, JPEGLSLossless, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian],
    ids=lambda uid: uid.name,
)
def test_values_are_the_same_in_each_transfer_syntax_of_pydicom(syntax: Any, tmp_path: Path) -> None:
    def encoded(dataset: Dataset, _index: int) -> None:
        if syntax in (RLELossless, JPEGLSLossless):
            dataset.compress(syntax, generate_instance_uid=False)
            return
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax is ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset["PixelData"].VR = "OW"

    phantom = make(tmp_path, edit=encoded)
    assert {instance.transfer_syntax_uid for instance in phantom.source.series.instances} == {str(syntax)}
    np.testing.assert_array_equal(read_volume(phantom.source.series).volume.array, phantom.source.volume.array)


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        (JPEG_LOSSLESS, JPEGLosslessSV1),
        (JPEG_2000, JPEG2000Lossless),
    ],
    ids=["JPEG lossless", "JPEG 2000"],
)
def test_values_are_the_same_in_each_transfer_syntax_of_gdcm(kind: int, syntax: Any, tmp_path: Path) -> None:
    phantom = make(tmp_path)
    for path in tmp_path.iterdir():
        transcode(path, kind)
    series = _again(tmp_path)
    assert {instance.transfer_syntax_uid for instance in series.instances} == {str(syntax)}
    np.testing.assert_array_equal(read_volume(series).volume.array, phantom.source.volume.array)


# --- Why not --------------------------------------------------------------------------------------------------------


def _at(index: int, **attributes: Any) -> Edit:
    def edit(dataset: Dataset, here: int) -> None:
        if here == index or index < 0:
            for keyword, value in attributes.items():
                setattr(dataset, keyword, value)

    return edit


def _without(keyword: str, *, at: int = 5) -> Edit:
    def edit(dataset: Dataset, here: int) -> None:
        if here == at or at < 0:
            delattr(dataset, keyword)

    return edit


def _raw(keyword: str, value: bytes, *, at: int = 5) -> Edit:
    """An attribute as a careless program wrote it."""
    tag = Tag(tag_for_keyword(keyword) or 0)

    def edit(dataset: Dataset, here: int) -> None:
        if here == at or at < 0:
            dataset[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)

    return edit


def _moved(shift: Callable[[int], Sequence[float]]) -> Edit:
    def edit(dataset: Dataset, index: int) -> None:
        place = np.array([float(v) for v in dataset.ImagePositionPatient]) + shift(index)
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in place]

    return edit


def _short(dataset: Dataset, index: int) -> None:
    if index == 5:
        dataset.PixelData = dataset.PixelData[:-100]


def _coloured(dataset: Dataset, index: int) -> None:
    if index == 5:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        dataset.PixelData = bytes(dataset.Rows * dataset.Columns * 3)


def _two_frames(dataset: Dataset, index: int) -> None:
    if index == 5:
        dataset.NumberOfFrames, dataset.PixelData = 2, dataset.PixelData * 2


def _smaller(dataset: Dataset, index: int) -> None:
    if index == 5:
        dataset.Rows = 20
        dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]


TURNED = [0.999, 0.0447, 0, -0.0447, 0.999, 0]
UNSUITABLE = {
    "a gap": (
        _moved(lambda i: (0, 0, 2.5 if i > 6 else 0)), "1 uneven gaps, the first of 5.00 mm after slice 7, where 2.50"
    ),
    "two gaps": (
        _moved(lambda i: (0, 0, (i > 2) * 2.5 + (i > 6) * 0.5)), "2 uneven gaps, the first of 5.00 mm after slice 3"
    ),
    "an uneven gap": (_moved(lambda i: (0, 0, 0.3 if i == 6 else 0)), "2 uneven gaps"),
    "two images at one place": (
        _moved(lambda i: (0, 0, -2.5 if i > 6 else 0)), "1 pairs of images at one position, the first at slice 7"
    ),
    "two phases": (
        _moved(lambda i: (0, 0, -2.5 * 6 if i > 5 else 0)), "6 pairs of images at one position, the first at slice 1"
    ),
    "a gantry tilt": (_moved(lambda i: (0, 0.5 * i, 0)), "gantry tilt"),
    "one image beside the others": (
        _moved(lambda i: (0.6, 0, 0) if i == 6 else (0, 0, 0)), "an image 0.60 mm off the line"
    ),
    "another orientation": (_at(5, ImageOrientationPatient=TURNED), "direction cosines that differ by 0.045"),
    "another size": (_smaller, "images of 2 sizes"),
    "another pixel spacing": (_at(5, PixelSpacing=[0.8, 0.9]), "pixel spacings"),
    "one row of spacing": (_raw("PixelSpacing", b"0.8 ", at=-1), "PixelSpacing"),
    "no spacing between pixels": (_raw("PixelSpacing", b"0\\0 ", at=-1), "PixelSpacing|pixel spacing"),
    "a negative spacing": (_raw("PixelSpacing", b"-0.8\\0.8 ", at=-1), "PixelSpacing|pixel spacing"),
    "a spacing that is no number": (_raw("PixelSpacing", b"nan\\0.8 ", at=-1), "PixelSpacing|pixel spacing"),
    "no spacing": (_without("PixelSpacing"), "no PixelSpacing"),
    "no position": (_without("ImagePositionPatient"), "no ImagePositionPatient"),
    "an empty position": (_raw("ImagePositionPatient", b""), "no ImagePositionPatient"),
    "a position of two numbers": (_raw("ImagePositionPatient", b"1\\2 "), "ImagePositionPatient"),
    "a position with a hole": (_raw("ImagePositionPatient", b"1\\\\3 "), "ImagePositionPatient"),
    "a position of letters": (_raw("ImagePositionPatient", b"a\\b\\c "), "ImagePositionPatient"),
    "a position at infinity": (_raw("ImagePositionPatient", b"inf\\0\\1 "), "ImagePositionPatient"),
    "no orientation": (_without("ImageOrientationPatient"), "no ImageOrientationPatient"),
    "an orientation of noughts": (
        _raw("ImageOrientationPatient", b"0\\0\\0\\0\\0\\0 ", at=-1), "ImageOrientationPatient"
    ),
    "pixels too few": (_short, "ValueError with transfer syntax 1.2.840.10008.1.2.1"),
    "no pixels": (_without("PixelData"), "AttributeError with transfer syntax"),
    "colours": (_coloured, r"an array of shape \(40, 48, 3\)"),
    "two frames": (_two_frames, "do not say where each frame lies"),
    "a slope that is no number": (_raw("RescaleSlope", b"xx"), "RescaleSlope|transfer syntax"),
    "no slope": (_without("RescaleSlope"), "no RescaleSlope"),
    "no intercept": (_without("RescaleIntercept"), "RescaleIntercept"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUITABLE)
def test_what_is_no_volume_is_refused_by_its_reason(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, reason = UNSUITABLE[case]
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    make(tmp_path, edit=edit)
    with pytest.raises(StudyUnsuitable) as caught:
        read_volume(_again(tmp_path))
    assert re.search(reason, caught.value.found), caught.value.found
    assert caught.value.retry is False
    assert "Phantom^Test" not in str(caught.value)


def test_one_image_is_no_volume(tmp_path: Path) -> None:
    make(tmp_path)
    series = _again(tmp_path)
    one = Series(series_instance_uid="1.2", modality="CT", instances=series.instances[:1])
    with pytest.raises(UnsuitableGeometry, match="one image"):
        read_volume(one)


def test_what_an_image_lacks_is_a_missing_attribute(tmp_path: Path) -> None:
    make(tmp_path, edit=_without("ImagePositionPatient"))
    with pytest.raises(MissingAttribute):
        read_volume(_again(tmp_path))


# --- What is odd and accepted ---------------------------------------------------------------------------------------

ACCEPTED = {
    "uneven by a hair": (_moved(lambda i: (0, 0, 0.1 if i == 6 else 0)), None),
    "shifted by a hair": (_moved(lambda i: (0.03 * i, 0, 0)), None),
    "no frame of reference": (_without("FrameOfReferenceUID", at=-1), "no frame of reference"),
    "an empty frame of reference": (_raw("FrameOfReferenceUID", b"", at=-1), "no frame of reference"),
    "a frame of reference per image": (
        lambda dataset, index: setattr(dataset, "FrameOfReferenceUID", f"1.2.{index + 1}"), "several frames"
    ),
    "the first image without a frame": (_without("FrameOfReferenceUID", at=0), "several frames"),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_odd_is_noted(case: str, tmp_path: Path) -> None:
    edit, note = ACCEPTED[case]
    read = read_volume(make(tmp_path, edit=edit).source.series)
    if note is None:
        assert read.notes == ()
    else:
        assert len(read.notes) == 1
        assert note in read.notes[0]
    assert read.volume.frame_of_reference_uid


def test_a_derived_frame_of_reference_is_always_the_same(tmp_path: Path) -> None:
    phantoms: list[Phantom] = [make(tmp_path / n, edit=_without("FrameOfReferenceUID", at=-1)) for n in "ab"]
    first, second = (read_volume(p.source.series).volume.frame_of_reference_uid for p in phantoms)
    assert first == second
