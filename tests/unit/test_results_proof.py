"""The proof lets good objects through and catches each planted fault, by its name."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from scipy import ndimage

from service.errors import EncodingError
from service.results import sr
from service.results.proof import prove
from service.types import Conclusion, Mark, Outcome, ResultObject
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import conclusion_of, objects_of, read, report_of
from tests.unit.test_results_sr import items

Fault = Callable[[Dataset], None]
ORIENTATIONS = [phantoms.AXIAL, phantoms.CORONAL, phantoms.SAGITTAL, phantoms.OBLIQUE]


def proved(phantom: Phantom, objects: Sequence[ResultObject]) -> None:
    """Hold objects against what the phantom has."""
    prove(phantom.making, conclusion_of(phantom), phantom.source, objects)


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
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_good_objects_pass(tmp_path: Path, orientation: tuple[float, ...], reverse: bool, lesions: int) -> None:
    phantom = phantoms.make(tmp_path, orientation=orientation, reverse=reverse, lesions=lesions)
    proved(phantom, objects_of(phantom))


def test_a_finding_on_a_single_slice_passes(phantom: Phantom) -> None:
    mask = np.zeros(phantom.source.volume.spatial_shape, bool)
    mask[7, 20:23, 30:34] = True
    single = replace(phantom, findings=(phantoms.finding_of(phantom.source, mask, 1),))
    proved(single, objects_of(single))


@pytest.mark.parametrize("seed", range(12))
def test_ragged_findings_pass(phantom: Phantom, seed: int) -> None:
    """Bays, holes, islands, and pixels that touch at a corner only, as networks draw them."""
    random = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(random.standard_normal((8, 26, 26)), 0.6)
    labels, _ = ndimage.label(noise > np.quantile(noise, 0.6), structure=np.ones((3, 3, 3)))
    mask = np.zeros(phantom.source.volume.spatial_shape, bool)
    mask[2:10, 4:30, 4:30] = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    ragged = replace(phantom, findings=(phantoms.finding_of(phantom.source, mask, 1),))
    proved(ragged, objects_of(ragged))


def test_a_bay_whose_mouth_is_a_corner_passes(phantom: Phantom) -> None:
    mask = np.zeros(phantom.source.volume.spatial_shape, bool)
    for number, row in enumerate(("####", "#  #", "# # ", "### ")):
        mask[7, 20 + number, 30:34] = [character == "#" for character in row]
    bay = replace(phantom, findings=(phantoms.finding_of(phantom.source, mask, 1),))
    proved(bay, objects_of(bay))


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("kind", [phantoms.with_two_classes, phantoms.with_marks, phantoms.with_judgements])
def test_good_objects_of_every_kind_pass(
    tmp_path: Path, kind: Callable[[Phantom], Phantom], orientation: tuple[float, ...], modality: str
) -> None:
    phantom = kind(phantoms.make(tmp_path, orientation=orientation, spacing=(2.5, 0.8, 0.7), modality=modality))
    objects = objects_of(phantom) if phantom.lesions else (report_of(phantom),)
    proved(phantom, objects)


def test_a_box_on_a_single_slice_passes(phantom: Phantom) -> None:
    flat = replace(phantom, findings=(phantoms.mark_of(phantom.source, (4, 5, 5), (4, 15, 10), 1),))
    proved(flat, (report_of(flat),))


def test_odd_frame_sizes_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantoms, "SHAPE", (12, 37, 43))  # frames that do not end at a byte's end
    phantom = phantoms.make(tmp_path)
    proved(phantom, objects_of(phantom))


@pytest.mark.parametrize("outcome", [Outcome.NO_FINDINGS, Outcome.UNSUITABLE, Outcome.FAILED])
def test_a_report_without_findings_passes(phantom: Phantom, outcome: Outcome) -> None:
    source = None if outcome is Outcome.UNSUITABLE else phantom.source
    conclusion = Conclusion(outcome=outcome, reason="a reason", causes=("geometry",))
    prove(phantom.making, conclusion, source, (sr.report(phantom.making, conclusion, source=source),))


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


def _other_type(dataset: Dataset) -> None:
    dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "108369006"


def _other_category(dataset: Dataset) -> None:
    dataset.SegmentSequence[0].SegmentedPropertyCategoryCodeSequence[0].CodeValue = "85756007"


def _other_region(dataset: Dataset) -> None:
    dataset.SegmentSequence[1].AnatomicRegionSequence[0].CodeValue = "39607008"


def _other_finding(dataset: Dataset) -> None:
    next(items(dataset, "121071")).ConceptCodeSequence[0].CodeValue = "108369006"


def _other_scheme(dataset: Dataset) -> None:
    next(items(dataset, "121071")).ConceptCodeSequence[0].CodingSchemeDesignator = "99X"


def _other_site(dataset: Dataset) -> None:
    next(items(dataset, "363698007")).ConceptCodeSequence[0].CodeValue = "64033007"


def _other_finding_category(dataset: Dataset) -> None:
    next(items(dataset, "276214006")).ConceptCodeSequence[0].CodeValue = "85756007"


def _sure(dataset: Dataset) -> None:
    _number(dataset, "111012").NumericValue = 99


def _colder(dataset: Dataset) -> None:
    _number(dataset, "112031").NumericValue = 12


def _smaller_area(dataset: Dataset) -> None:
    value = _number(dataset, "42798000")
    value.NumericValue = float(value.NumericValue) * 0.9


def _said_more(dataset: Dataset) -> None:
    """A second length, beside the outline."""
    groups = list(items(dataset, "125007"))
    groups[1].ContentSequence.append(next(items(groups[2], "103339001")))


def _mirrored_outline(region: list[float]) -> list[float]:
    """Columns and rows of the outline mirrored about its middle: it fits into the same box."""
    points = np.reshape(region, (-1, 2))
    return list((points.min(axis=0) + points.max(axis=0) - points + (1, 0)).ravel())


def _turned_outline(region: list[float]) -> list[float]:
    return list(np.reshape(region, (-1, 2))[:, ::-1].ravel())


def _a_predecessor(dataset: Dataset) -> None:
    """It says that it supersedes what it does not."""
    dataset.PredecessorDocumentsSequence = dataset.CurrentRequestedProcedureEvidenceSequence


def _other_voxels(dataset: Dataset) -> None:
    """On one slice, a voxel at the top and one at the bottom each move inwards: centroid, box and count stay."""
    shape = (-1, dataset.Rows, dataset.Columns)
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    frames = bits[: dataset.NumberOfFrames * dataset.Rows * dataset.Columns].reshape(shape).copy()
    rows, columns = np.nonzero(frames[1])
    top, bottom = int(np.argmin(rows)), int(np.argmax(rows))
    for end, step in ((top, 1), (bottom, -1)):
        frames[1][rows[end], columns[end]] = 0
        frames[1][rows[end] + step, columns[end] - 3 * step] = 1
    dataset.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()


def _no_number(dataset: Dataset) -> None:
    _number(dataset, "111012").NumericValue = "NaN"


def _said_twice(dataset: Dataset) -> None:
    for container in ("126010", "C0034375"):
        for measurements in items(dataset, container):
            again = [i for i in measurements.ContentSequence if list(items(i, "112040"))][:1]
            measurements.ContentSequence.extend(again)


def _left_out(dataset: Dataset) -> None:
    for container in ("126010", "C0034375"):
        for measurements in items(dataset, container):
            ours = [i for i in measurements.ContentSequence if list(items(i, "112040"))][:1]
            measurements.ContentSequence = [i for i in measurements.ContentSequence if i not in ours]


def _region(dataset: Dataset, index: int) -> Dataset:
    return list(items(dataset, "111030"))[index]


def _drawn(index: int, change: Callable[[list[float]], list[float]]) -> Fault:
    def fault(dataset: Dataset) -> None:
        region = _region(dataset, index)
        region.GraphicData = change(list(region.GraphicData))

    return fault


def _as_multipoint(dataset: Dataset) -> None:
    _region(dataset, 0).GraphicType = "MULTIPOINT"


def _point_as_line(dataset: Dataset) -> None:
    _region(dataset, 2).GraphicType = "POLYLINE"


def _other_width(dataset: Dataset) -> None:
    _number(dataset, "103355008").NumericValue = 12


def _other_depth(dataset: Dataset) -> None:
    _number(dataset, "131197000").NumericValue = 12


def _without_height(dataset: Dataset) -> None:
    group = next(items(dataset, "125007"))
    group.ContentSequence = [i for i in group.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue != "121207"]


def _point_with_a_width(dataset: Dataset) -> None:
    groups = list(items(dataset, "125007"))
    groups[2].ContentSequence.append(next(items(groups[0], "103355008")))


def _decided_by_another(dataset: Dataset) -> None:
    images = [item.ReferencedSOPSequence[0] for item in items(dataset, "260753009")]
    decided = next(items(dataset, "121112")).ReferencedSOPSequence[0]
    decided.ReferencedSOPInstanceUID = images[0].ReferencedSOPInstanceUID


def _decided_by_a_stranger(dataset: Dataset) -> None:
    next(items(dataset, "121112")).ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _decided_by_none(dataset: Dataset) -> None:
    item = next(i for i in items(dataset, "121071") if "ContentSequence" in i)
    item.ContentSequence = [i for i in item.ContentSequence if i.ValueType != "IMAGE"]


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
        (_shifted_without_references, "frame 1 refers to no image"),
        (_swapped_patient, "another PatientID"),
        (_swapped_name, "another PatientName"),
        (_swapped_accession, "another AccessionNumber"),
        (_swapped_study, "another StudyInstanceUID"),
        (_other_frame_of_reference, "another frame of reference"),
        (_other_instance, "another SOP Instance UID"),
        (_other_class, "another SOP Class UID"),
        (_segments_swapped, "mm off"),
        (_segment_missing, "frames of a segment that is not described"),
        (_segment_tracked_otherwise, "another Tracking UID"),
        (_a_frame_lost, "segment 2"),
        (_stranger, "unknown instances, one is 1.2.3"),
        (_neighbour, "away from the image"),
        (_cut_off, "while decoding it"),
        (_other_type, "SegmentedPropertyTypeCodeSequence of segment 1 is 108369006 SCT and not 52988006 SCT"),
        (_other_category, "SegmentedPropertyCategoryCodeSequence of segment 1"),
        (_other_region, "AnatomicRegionSequence of segment 2"),
        (_other_voxels, "segment 1 with other voxels"),
    ],
)
def test_faults_of_a_segmentation_are_caught(phantom: Phantom, fault: Fault, found: str) -> None:
    segmentation, report = objects_of(phantom)
    with pytest.raises(EncodingError) as caught:
        proved(phantom, (planted(segmentation, fault), report))
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
        (_group_lost, "without its Volume"),
        (_denied, "the summary 111241 for 2 findings"),
        (_other_finding, "Finding of finding 1 is 108369006 SCT and not 52988006 SCT"),
        (_other_scheme, "Finding of finding 1 is 52988006 99X and not 52988006 SCT"),
        (_other_finding_category, "Finding category of finding 1"),
        (_other_site, "Finding Site of finding 1"),
        (_sure, "Certainty of Finding of finding 1 is 99 and not 85"),
        (_colder, "Attenuation Coefficient of finding 1 is 12"),
        (_smaller_area, "Area of finding 1"),
        (_said_more, "finding 1 with other numbers"),
        (_drawn(0, _mirrored_outline), "finding 1 drawn elsewhere"),
        (_drawn(0, _turned_outline), "finding 1 drawn elsewhere"),
        (_drawn(0, lambda d: [x + 1 for x in d]), "finding 1 drawn elsewhere"),
        (_drawn(0, lambda d: [x + 0.5 for x in d]), "finding 1 drawn elsewhere"),
        (_drawn(1, lambda d: [x + 1 for x in d]), "an axis drawn elsewhere"),
        (_drawn(2, lambda d: d[::-1]), "an axis drawn elsewhere"),
        (_a_predecessor, "predecessors where there are 0"),
    ],
)
def test_faults_of_a_report_are_caught(phantom: Phantom, fault: Fault, found: str) -> None:
    segmentation, report = objects_of(phantom)
    with pytest.raises(EncodingError) as caught:
        proved(phantom, (segmentation, planted(report, fault)))
    assert found in caught.value.found
    _says_nothing_of_the_patient(caught.value)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")  # one of the faults
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (_drawn(0, lambda d: [x + 1 for x in d]), "finding 1 drawn 1.06 mm off"),  # 0.7 and 0.8 mm
        (_drawn(0, lambda d: [y for x in np.reshape(d, (-1, 2)) for y in (x[1], x[0])]), "mm off"),  # rows for columns
        (_drawn(0, lambda d: [*d[:4], d[4], d[5] + 1, *d[6:]]), "finding 1 drawn 0.80 mm off"),  # one corner
        (_drawn(0, lambda d: d[:-2]), "finding 1 drawn with 4 points"),
        (_drawn(1, lambda d: [-x for x in d]), "finding 2 drawn"),
        (_drawn(2, lambda d: [d[0] - 1, d[1]]), "finding 3 drawn 0.70 mm off"),
        (_drawn(2, lambda d: [d[0], d[1] + 0.7]), "finding 3 drawn 0.56 mm off"),
        (_drawn(2, lambda d: [float("nan"), d[1]]), "finding 3 drawn"),
        (_as_multipoint, "finding 1 drawn as MULTIPOINT"),
        (_point_as_line, "finding 3 drawn as POLYLINE"),
        (_another_slice, "finding 1 on another slice"),
        (_other_width, "Width of finding 1"),
        (_other_depth, "Depth of finding 1"),
        (_without_height, "finding 1 without its Height"),
        (_point_with_a_width, "finding 3 with a Width"),
        (_sure, "Certainty of Finding of finding 1"),
        (_no_number, "Certainty of Finding of finding 1"),
        (_other_finding, "Finding of finding 1"),
        (_other_site, "Finding Site of finding 1"),
        (_tracked_otherwise, "unknown Tracking UID"),
        (_said_twice, "finding 1 said 2 times"),
        (_left_out, "finding 1 said 0 times"),
        (_denied, "the summary 111241 for 3 findings"),
    ],
)
def test_faults_of_marks_are_caught(phantom: Phantom, fault: Fault, found: str) -> None:
    marked = phantoms.with_marks(phantom)
    with pytest.raises(EncodingError) as caught:
        proved(marked, (planted(report_of(marked), fault),))
    assert found in caught.value.found
    _says_nothing_of_the_patient(caught.value)


@pytest.mark.parametrize(
    ("moved", "off"),
    [((1.0, 0.0, 0.0), "1.00"), ((0.0, 0.0, 2.5), "1.25")],  # across the slices, half a slice is no fault
)
def test_a_mark_whose_images_lie_elsewhere_is_caught(
    phantom: Phantom, moved: tuple[float, float, float], off: str
) -> None:
    """The places are read by the images' own attributes, not by the volume that the mark was measured on."""
    marked = phantoms.with_marks(phantom)
    for instance in marked.source.ordered:
        instance.header.ImagePositionPatient = [
            float(value) + by for value, by in zip(instance.header.ImagePositionPatient, moved, strict=True)
        ]
    with pytest.raises(EncodingError, match=rf"drawn {off} mm off"):
        proved(marked, (report_of(marked),))


def test_a_box_off_its_centre_is_caught(phantom: Phantom) -> None:
    marked = phantoms.with_marks(phantom)
    first = marked.findings[0]
    assert isinstance(first, Mark)
    x, y, z = first.centre_lps_mm
    moved = (replace(first, centre_lps_mm=(x, y + 2, z)), *marked.findings[1:])
    with pytest.raises(EncodingError, match=r"finding 1 drawn 2\.00 mm off"):
        proved(replace(marked, findings=moved), (report_of(marked),))


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (_other_finding, "Finding of finding 1 is 108369006 SCT and not 393564001 SCT"),
        (_other_site, "Finding Site of finding 1"),
        (_sure, "Certainty of Finding of finding 1 is 99 and not 85"),
        (_decided_by_another, "finding 1 by another image"),
        (_decided_by_none, "finding 1 by another image"),
        (_decided_by_a_stranger, "unknown instances, one is 1.2.3"),
        (_tracked_otherwise, "unknown Tracking UID"),
        (_said_twice, "finding 1 said 2 times"),
        (_left_out, "finding 1 said 0 times"),
        (_denied, "the summary 111241 for 2 findings"),
    ],
)
def test_faults_of_judgements_are_caught(phantom: Phantom, fault: Fault, found: str) -> None:
    judged = phantoms.with_judgements(phantom)
    with pytest.raises(EncodingError) as caught:
        proved(judged, (planted(report_of(judged), fault),))
    assert found in caught.value.found
    _says_nothing_of_the_patient(caught.value)


def test_a_finding_that_nobody_found_is_caught(phantom: Phantom) -> None:
    """A positive report of what the model took for normal."""
    judged = phantoms.with_judgements(phantom)
    with pytest.raises(EncodingError, match="unknown Tracking UID"):
        proved(replace(judged, findings=()), (report_of(judged),))


def test_bytes_that_are_no_dicom_are_caught(phantom: Phantom) -> None:
    segmentation, report = objects_of(phantom)
    with pytest.raises(EncodingError, match="while decoding it"):
        proved(phantom, (replace(segmentation, content=b"no DICOM"), report))


def _says_nothing_of_the_patient(error: EncodingError) -> None:
    for secret in ("Phantom", "P-000", "A-77", "Somebody"):
        assert secret not in str(error)
