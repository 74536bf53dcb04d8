"""Findings come back from a segmentation where they were, in any orientation, order and spacing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray

from service.types import SourceVolume
from tests import phantoms
from tests.unit.test_results_identity import objects_of, read


def _masks(source: SourceVolume, segmentation: hd.seg.Segmentation, number: int) -> NDArray[np.bool_]:
    """bool [slices, rows, columns] of one segment, read by highdicom slice by slice from the source's own UIDs."""
    pixels = segmentation.get_pixels_by_source_instance(
        [instance.sop_instance_uid for instance in source.ordered],
        segment_numbers=[number],
        assert_missing_frames_are_empty=True,
    )
    return np.asarray(pixels[..., 0], bool)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("spacing", [(2.5, 0.8, 0.8), (0.7, 1.3, 0.45)])
@pytest.mark.parametrize(
    "orientation", [phantoms.AXIAL, phantoms.CORONAL, phantoms.SAGITTAL, phantoms.OBLIQUE], ids=str
)
def test_geometry_round_trip(
    tmp_path: Path, orientation: tuple[float, ...], spacing: tuple[float, float, float], reverse: bool
) -> None:
    phantom = phantoms.make(tmp_path, orientation=orientation, spacing=spacing, reverse=reverse)
    made = hd.seg.Segmentation.from_dataset(read(objects_of(phantom)[0]))
    volume = made.get_volume(combine_segments=False)
    for finding in phantom.lesions:
        # Slice by slice, by the images the frames refer to ...
        whole = np.zeros(phantom.source.volume.spatial_shape, bool)
        whole[finding.box] = finding.mask
        assert (_masks(phantom.source, made, finding.number) == whole).all()
        # ... and as a volume, by the frames' own positions.
        indices = np.argwhere(volume.array[..., finding.number - 1])
        assert volume.map_indices_to_reference(indices).mean(axis=0) == pytest.approx(finding.centroid_lps_mm, abs=1e-3)
        assert len(indices) * volume.voxel_volume / 1000 == pytest.approx(finding.volume_ml, rel=1e-6)


def test_frames_are_only_where_a_finding_is_and_have_their_image_s_position(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    made = read(objects_of(phantom)[0])
    assert made.NumberOfFrames == sum(int(f.mask.any(axis=(1, 2)).sum()) for f in phantom.lesions)
    positions = {i.sop_instance_uid: i.header.ImagePositionPatient for i in phantom.source.ordered}
    for frame in made.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert frame.PlanePositionSequence[0].ImagePositionPatient == positions[image.ReferencedSOPInstanceUID]


def test_a_segment_says_what_it_is(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    made = read(objects_of(phantom)[0])
    assert (made.Modality, made.SegmentationType, made.SegmentsOverlap) == ("SEG", "BINARY", "NO")
    assert made.ContentDescription == "Research use only, not for diagnosis"
    for finding, segment in zip(phantom.lesions, made.SegmentSequence, strict=True):
        assert segment.SegmentNumber == finding.number
        assert segment.SegmentLabel == segment.TrackingID == f"Lesion {finding.number}"
        assert segment.TrackingUID == finding.tracking_uid
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
        assert segment.AnatomicRegionSequence[0].CodeValue == "10200004"
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert hd.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb() == (230, 159, 0)


def test_a_finding_on_a_single_slice(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path, lesions=1)
    mask = np.zeros(phantom.source.volume.spatial_shape, bool)
    mask[7, 20:23, 30:34] = True
    finding = phantoms.finding_of(phantom.source, mask, 1)
    made = hd.seg.Segmentation.from_dataset(read(objects_of(replace(phantom, findings=(finding,)))[0]))
    assert (_masks(phantom.source, made, 1) == mask).all()


def test_more_findings_than_a_byte_counts(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path, lesions=1)
    findings = []
    for number in range(1, 301):
        mask = np.zeros(phantom.source.volume.spatial_shape, bool)
        mask[number % 12, number // 48 * 5, number % 48] = True
        findings.append(phantoms.finding_of(phantom.source, mask, number))
    made = hd.seg.Segmentation.from_dataset(read(objects_of(replace(phantom, findings=tuple(findings)))[0]))
    assert made.number_of_segments == 300
    assert _masks(phantom.source, made, 300).sum() == 1


def test_segments_of_two_classes_say_each_its_own(tmp_path: Path) -> None:
    phantom = phantoms.with_two_classes(phantoms.make(tmp_path))
    made = read(objects_of(phantom)[0])
    assert [
        (
            segment.SegmentedPropertyTypeCodeSequence[0].CodeValue,
            segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue,
            segment.AnatomicRegionSequence[0].CodeValue,
            hd.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb(),
            segment.SegmentLabel,
        )
        for segment in made.SegmentSequence
    ] == [
        ("52988006", "49755003", "10200004", (230, 159, 0), "Lesion 1"),
        ("27925004", "91723000", "39607008", (0, 114, 178), "Nodule 2"),
    ]


def test_findings_of_two_classes_may_overlap(tmp_path: Path) -> None:
    phantom = phantoms.with_two_classes(phantoms.make(tmp_path))
    whole = np.zeros((2, *phantom.source.volume.spatial_shape), bool)
    for mask, finding in zip(whole, phantom.lesions, strict=True):
        mask[finding.box] = finding.mask
    assert (whole[0] & whole[1]).any(), "else this shows nothing"
    made = hd.seg.Segmentation.from_dataset(read(objects_of(phantom)[0]))
    assert made.SegmentsOverlap == "YES"
    for mask, finding in zip(whole, phantom.lesions, strict=True):
        assert (_masks(phantom.source, made, finding.number) == mask).all()
