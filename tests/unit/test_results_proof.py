"""The proof lets good objects through and catches each planted fault, by its name."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from service.errors import EncodingError
from service.results import sr
from service.results.proof import prove
from service.types import Outcome, ResultObject
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import objects_of, read
from tests.unit.test_results_sr import items

Fault = Callable[[Dataset], None]


def planted(made: ResultObject, fault: Fault) -> ResultObject:
    """The object with a fault in its bytes."""
    dataset = read(made)
    fault(dataset)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return replace(made, content=file.getvalue())


@pytest.fixture
def phantom(tmp_path: Path) -> Phantom:
    return phantoms.make(tmp_path, spacing=(2.5, 0.8, 0.7))


@pytest.mark.parametrize("lesions", [1, 2])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "orientation", [phantoms.AXIAL, phantoms.CORONAL, phantoms.SAGITTAL, phantoms.OBLIQUE], ids=str
)
def test_good_objects_pass(tmp_path: Path, orientation: tuple[float, ...], reverse: bool, lesions: int) -> None:
    phantom = phantoms.make(tmp_path, orientation=orientation, reverse=reverse, lesions=lesions)
    prove(phantom.source, phantom.findings, objects_of(phantom), phantom.making)


def test_a_finding_on_a_single_slice_passes(phantom: Phantom) -> None:
    mask = np.zeros(phantom.source.volume.spatial_shape, bool)
    mask[7, 20:23, 30:34] = True
    single = replace(phantom, findings=(phantoms.finding_of(phantom.source, mask, 1),))
    prove(single.source, single.findings, objects_of(single), single.making)


def test_odd_frame_sizes_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantoms, "SHAPE", (12, 37, 43))  # frames that do not end at a byte's end
    phantom = phantoms.make(tmp_path)
    prove(phantom.source, phantom.findings, objects_of(phantom), phantom.making)


@pytest.mark.parametrize("outcome", [Outcome.NO_FINDINGS, Outcome.UNSUITABLE, Outcome.FAILED])
def test_a_report_without_findings_passes(phantom: Phantom, outcome: Outcome) -> None:
    source = None if outcome is Outcome.UNSUITABLE else phantom.source
    made = sr.report(
        phantom.making,
        source=source,
        findings=(),
        outcome=outcome,
        reason="a reason",
        dropped=0,
        excluded=(),
        segmentation=None,
    )
    prove(source, (), (made,), phantom.making)


def _mirror_rows(dataset: Dataset) -> None:
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    frames = bits[: dataset.NumberOfFrames * dataset.Rows * dataset.Columns].reshape(-1, dataset.Rows, dataset.Columns)
    dataset.PixelData = np.packbits(frames[:, ::-1].ravel(), bitorder="little").tobytes()


def _measures(dataset: Dataset) -> Dataset:
    measures: Dataset = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    return measures


def _wrong_pixel_spacing(dataset: Dataset) -> None:
    _measures(dataset).PixelSpacing = [0.7, 0.8]


def _wrong_slice_spacing(dataset: Dataset) -> None:
    _measures(dataset).SpacingBetweenSlices = 2.0


def _twice_the_slice_spacing(dataset: Dataset) -> None:
    _measures(dataset).SpacingBetweenSlices = 5.0


def _turned(dataset: Dataset) -> None:
    orientation = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    orientation.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]


def _shifted(dataset: Dataset) -> None:
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x, y, z + 2.5]


def _without_references(dataset: Dataset) -> None:
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence


def _shifted_without_references(dataset: Dataset) -> None:
    _without_references(dataset)
    _shifted(dataset)


def _swapped_patient(dataset: Dataset) -> None:
    dataset.PatientID = "P-0002"


def _swapped_name(dataset: Dataset) -> None:
    dataset.PatientName = "Somebody^Else"


def _swapped_accession(dataset: Dataset) -> None:
    dataset.AccessionNumber = ""


def _swapped_study(dataset: Dataset) -> None:
    dataset.StudyInstanceUID = "1.2.3"


def _other_frame_of_reference(dataset: Dataset) -> None:
    dataset.FrameOfReferenceUID = "1.2.3"


def _other_instance(dataset: Dataset) -> None:
    dataset.SOPInstanceUID = "1.2.3"


def _other_class(dataset: Dataset) -> None:
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"


def _segments_swapped(dataset: Dataset) -> None:
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        identification = frame.SegmentIdentificationSequence[0]
        identification.ReferencedSegmentNumber = 3 - identification.ReferencedSegmentNumber


def _segment_missing(dataset: Dataset) -> None:
    del dataset.SegmentSequence[1]


def _segment_tracked_otherwise(dataset: Dataset) -> None:
    dataset.SegmentSequence[0].TrackingUID = "1.2.3"


def _a_frame_lost(dataset: Dataset) -> None:
    """The last frame is empty: a slice of the second lesion is missing."""
    size = dataset.Rows * dataset.Columns // 8
    dataset.PixelData = dataset.PixelData[:-size] + bytes(size)


def _stranger(dataset: Dataset) -> None:
    image = dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    image.ReferencedSOPInstanceUID = "1.2.3"


def _neighbour(dataset: Dataset) -> None:
    """A frame refers to the image beside its own."""
    first, second = dataset.PerFrameFunctionalGroupsSequence[:2]
    first.DerivationImageSequence, second.DerivationImageSequence = (
        second.DerivationImageSequence,
        first.DerivationImageSequence,
    )


def _cut_off(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


def _number(dataset: Dataset, concept: str) -> Dataset:
    value: Dataset = next(items(dataset, concept)).MeasuredValueSequence[0]
    return value


def _changed_volume(dataset: Dataset) -> None:
    value = _number(dataset, "118565006")
    value.NumericValue = float(value.NumericValue) * 1.01


def _changed_axis(dataset: Dataset) -> None:
    _number(dataset, "103339001").NumericValue = 1


def _wrong_segment_number(dataset: Dataset) -> None:
    next(items(dataset, "121191")).ReferencedSOPSequence[0].ReferencedSegmentNumber = 2


def _source_for_segment(dataset: Dataset) -> None:
    image = next(items(dataset, "121233")).ReferencedSOPSequence[0]
    next(items(dataset, "121191")).ReferencedSOPSequence[0].ReferencedSOPInstanceUID = image.ReferencedSOPInstanceUID


def _tracked_otherwise(dataset: Dataset) -> None:
    next(items(dataset, "112040")).UID = "1.2.3"


def _another_slice(dataset: Dataset) -> None:
    region = next(items(dataset, "111030")).ContentSequence[0].ReferencedSOPSequence[0]
    images = [item.ReferencedSOPSequence[0] for item in items(dataset, "260753009")]
    region.ReferencedSOPInstanceUID = images[0].ReferencedSOPInstanceUID


def _group_lost(dataset: Dataset) -> None:
    del dataset.ContentSequence[-2].ContentSequence[0]


def _denied(dataset: Dataset) -> None:
    next(items(dataset, "111017")).ConceptCodeSequence[0].CodeValue = "111241"


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (_mirror_rows, "mm off"),
        (_wrong_pixel_spacing, "mm off"),
        (_wrong_slice_spacing, "for a slice spacing of 2.00 mm"),
        (_twice_the_slice_spacing, "for a slice spacing of 5.00 mm"),
        (_turned, "mm off"),
        (_shifted, "away from the image"),
        (_shifted_without_references, "mm off"),
        (_swapped_patient, "another PatientID"),
        (_swapped_name, "another PatientName"),
        (_swapped_accession, "another AccessionNumber"),
        (_swapped_study, "another StudyInstanceUID"),
        (_other_frame_of_reference, "another frame of reference"),
        (_other_instance, "another SOP Instance UID"),
        (_other_class, "another SOP Class UID"),
        (_segments_swapped, "mm off"),
        (_segment_missing, "segments [1] for 2 findings"),
        (_segment_tracked_otherwise, "another Tracking UID"),
        (_a_frame_lost, "segment 2"),
        (_stranger, "unknown instances, one is 1.2.3"),
        (_neighbour, "away from the image"),
        (_cut_off, "while decoding it"),
    ],
)
def test_faults_of_a_segmentation_are_caught(phantom: Phantom, fault: Fault, found: str) -> None:
    segmentation, report = objects_of(phantom)
    with pytest.raises(EncodingError) as caught:
        prove(phantom.source, phantom.findings, (planted(segmentation, fault), report), phantom.making)
    assert found in caught.value.found
    assert segmentation.sop_instance_uid in caught.value.doing
    _says_nothing_of_the_patient(caught.value)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (_swapped_patient, "another PatientID"),
        (_other_instance, "another SOP Instance UID"),
        (_changed_volume, "Volume of finding 1"),
        (_changed_axis, "Long axis of finding 1"),
        (_wrong_segment_number, "another's segment"),
        (_source_for_segment, "another's segment"),
        (_tracked_otherwise, "unknown Tracking UID"),
        (_another_slice, "on another slice"),
        (_group_lost, "while decoding it"),
        (_denied, "the summary 111241 for 2 findings"),
    ],
)
def test_faults_of_a_report_are_caught(phantom: Phantom, fault: Fault, found: str) -> None:
    segmentation, report = objects_of(phantom)
    with pytest.raises(EncodingError) as caught:
        prove(phantom.source, phantom.findings, (segmentation, planted(report, fault)), phantom.making)
    assert found in caught.value.found
    _says_nothing_of_the_patient(caught.value)


def test_bytes_that_are_no_dicom_are_caught(phantom: Phantom) -> None:
    segmentation, report = objects_of(phantom)
    with pytest.raises(EncodingError, match="while decoding it"):
        prove(phantom.source, phantom.findings, (replace(segmentation, content=b"no DICOM"), report), phantom.making)


def _says_nothing_of_the_patient(error: EncodingError) -> None:
    for secret in ("Phantom", "P-000", "A-77", "Somebody"):
        assert secret not in str(error)
