"""The proof lets good pictures, key images and presentation states through and catches each planted fault."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from service.results import keyobjects
from service.results.proof_pictures import prove_capture, prove_key_objects, prove_presentation
from service.results.reading import Fault
from service.types import ResultObject
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import conclusion_of, read
from tests.unit.test_results_keyobjects import multi_frame
from tests.unit.test_results_presentation import states_of
from tests.unit.test_results_secondary import captures_of, pictures_of

Plant = Callable[[Dataset], None]
ORIENTATIONS = [phantoms.AXIAL, phantoms.CORONAL, phantoms.SAGITTAL, phantoms.OBLIQUE]


def planted(made: ResultObject, fault: Plant) -> Dataset:
    """The object with a fault in it, as it would be read again."""
    dataset = read(made)
    fault(dataset)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return dcmread(io.BytesIO(file.getvalue()))


@pytest.fixture
def phantom(tmp_path: Path) -> Phantom:
    return phantoms.make(tmp_path, spacing=(2.5, 0.8, 0.7))


# --- Secondary Capture ----------------------------------------------------------------------------------------------


def test_good_captures_pass(phantom: Phantom) -> None:
    for made, picture in zip(captures_of(phantom), pictures_of(phantom), strict=True):
        prove_capture(read(made), picture)


def _one_pixel(dataset: Dataset) -> None:
    pixels = bytearray(dataset.PixelData)
    pixels[1_000_000] ^= 1
    dataset.PixelData = bytes(pixels)


def _fewer_pixels(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:-2]


def _turned(dataset: Dataset) -> None:
    dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows


def _planes(dataset: Dataset) -> None:
    dataset.PlanarConfiguration = 1


def _other_colours(dataset: Dataset) -> None:
    dataset.PhotometricInterpretation = "YBR_FULL"


def _no_words_burned_in(dataset: Dataset) -> None:
    dataset.BurnedInAnnotation = "NO"


def _original(dataset: Dataset) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]


def _to_be_measured(dataset: Dataset) -> None:
    dataset.PixelSpacing = [0.5, 0.5]


def _to_be_measured_as_scanned(dataset: Dataset) -> None:
    dataset.NominalScannedPixelSpacing = [0.5, 0.5]


def _for_diagnosis(dataset: Dataset) -> None:
    dataset.ImageComments = "A picture"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_one_pixel, "other pixels"),
        (_fewer_pixels, "other pixels"),
        (_turned, "an image of 1188 x"),
        (_planes, "an image of"),
        (_other_colours, "an image of"),
        (_no_words_burned_in, "not marked"),
        (_original, "not marked"),
        (_to_be_measured, "PixelSpacing"),
        (_to_be_measured_as_scanned, "NominalScannedPixelSpacing"),
        (_for_diagnosis, "disclaimer"),
    ],
)
def test_a_planted_fault_of_a_capture_is_caught(phantom: Phantom, fault: Plant, words: str) -> None:
    with pytest.raises(Fault, match=words):
        prove_capture(planted(captures_of(phantom)[1], fault), pictures_of(phantom)[1])


def test_a_swapped_picture_is_caught(phantom: Phantom) -> None:
    _, first, second = pictures_of(phantom)
    dataset = read(captures_of(phantom)[1])
    prove_capture(dataset, first)
    with pytest.raises(Fault, match="other pixels"):
        prove_capture(dataset, second)


# --- Key Object Selection -------------------------------------------------------------------------------------------


def selection_of(phantom: Phantom) -> ResultObject:
    return keyobjects.key_objects(phantom.making, conclusion_of(phantom), phantom.source)


KINDS = [lambda it: it, phantoms.with_two_classes, phantoms.with_marks, phantoms.with_judgements]


@pytest.mark.parametrize("frames", [lambda it: it, multi_frame])
@pytest.mark.parametrize("kind", KINDS)
def test_good_key_objects_pass(
    phantom: Phantom, kind: Callable[[Phantom], Phantom], frames: Callable[[Phantom], Phantom]
) -> None:
    good = frames(kind(phantom))
    prove_key_objects(read(selection_of(good)), good.source, good.findings)


def _images(dataset: Dataset) -> list[Dataset]:
    return [item for item in dataset.ContentSequence if item.ValueType == "IMAGE"]


def _swapped(dataset: Dataset) -> None:
    first, second = _images(dataset)
    first.ReferencedSOPSequence, second.ReferencedSOPSequence = (
        second.ReferencedSOPSequence,
        first.ReferencedSOPSequence,
    )


def _one_is_missing(dataset: Dataset) -> None:
    del dataset.ContentSequence[-1]


def _one_twice(dataset: Dataset) -> None:
    dataset.ContentSequence.append(_images(dataset)[0])


def _another_image(dataset: Dataset) -> None:
    _images(dataset)[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _for_surgery(dataset: Dataset) -> None:
    dataset.ConceptNameCodeSequence[0].CodeValue = "113004"


def _no_evidence(dataset: Dataset) -> None:
    del dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[1]


def _evidence_elsewhere(dataset: Dataset) -> None:
    dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_swapped, "key images"),
        (_one_is_missing, "1 key images"),
        (_one_twice, "3 key images"),
        (_another_image, "key images"),
        (_for_surgery, "title"),
        (_no_evidence, "evidence"),
        (_evidence_elsewhere, "evidence"),
    ],
)
def test_a_planted_fault_of_key_objects_is_caught(phantom: Phantom, fault: Plant, words: str) -> None:
    with pytest.raises(Fault, match=words):
        prove_key_objects(planted(selection_of(phantom), fault), phantom.source, phantom.findings)


def test_another_frame_is_caught(phantom: Phantom) -> None:
    def fault(dataset: Dataset) -> None:
        _images(dataset)[0].ReferencedSOPSequence[0].ReferencedFrameNumber += 1

    framed = multi_frame(phantom)
    with pytest.raises(Fault, match="key images"):
        prove_key_objects(planted(selection_of(framed), fault), framed.source, framed.findings)


# --- Presentation State ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("frames", [lambda it: it, multi_frame])
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_good_presentation_states_pass(
    tmp_path: Path,
    kind: Callable[[Phantom], Phantom],
    orientation: tuple[float, ...],
    frames: Callable[[Phantom], Phantom],
    modality: str,
) -> None:
    made = phantoms.make(tmp_path, orientation=orientation, spacing=(2.5, 0.8, 0.7), modality=modality)
    good = frames(kind(made))
    (state,) = states_of(good)
    prove_presentation(read(state), good.source, good.findings)


def test_states_of_images_that_are_rescaled_differently_pass(tmp_path: Path) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        dataset.RescaleIntercept = -1000 if index < 4 else 0

    good = phantoms.make(tmp_path, edit=edit)  # the first lesion is on slices 1 to 5
    states = states_of(good)
    assert len(states) == 2
    for state in states:
        prove_presentation(read(state), good.source, good.findings)


def test_a_finding_on_a_single_slice_passes(phantom: Phantom) -> None:
    mask = np.zeros(phantom.source.volume.spatial_shape, bool)
    mask[7, 20:23, 30:34] = mask[7, 30, 40] = True
    single = replace(phantom, findings=(phantoms.finding_of(phantom.source, mask, 1),))
    (state,) = states_of(single)
    prove_presentation(read(state), single.source, single.findings)


def _graphic(dataset: Dataset, annotation: int, graphic: int = 0) -> Dataset:
    item: Dataset = dataset.GraphicAnnotationSequence[annotation].GraphicObjectSequence[graphic]
    return item


def _shifted(dataset: Dataset) -> None:
    """The first lesion, as a whole, by a pixel: 0.7 mm."""
    for annotation in dataset.GraphicAnnotationSequence[:5]:
        for item in annotation.GraphicObjectSequence:
            item.GraphicData = [value + (n % 2 == 0) for n, value in enumerate(item.GraphicData)]


def _shifted_on_a_slice(dataset: Dataset) -> None:
    item = _graphic(dataset, 1)
    item.GraphicData = [value + (n % 2) for n, value in enumerate(item.GraphicData)]


def _axis_shifted(dataset: Dataset) -> None:
    item = _graphic(dataset, 4, 1)
    item.GraphicData = [value + 1 for value in item.GraphicData]


def _transposed(dataset: Dataset) -> None:
    for annotation in dataset.GraphicAnnotationSequence:
        for item in annotation.GraphicObjectSequence:
            item.GraphicData = np.reshape(item.GraphicData, (-1, 2))[:, ::-1].ravel().tolist()


def _centres(dataset: Dataset) -> None:
    """As if a pixel's centre, and not its corner, had whole numbers, and one more: counted from 1."""
    for annotation in dataset.GraphicAnnotationSequence:
        for item in annotation.GraphicObjectSequence:
            item.GraphicData = [value + 1 for value in item.GraphicData]


def _wrong_image(dataset: Dataset) -> None:
    first, second = dataset.GraphicAnnotationSequence[:2]
    first.ReferencedImageSequence, second.ReferencedImageSequence = (
        second.ReferencedImageSequence,
        first.ReferencedImageSequence,
    )


def _all_one_slice_further(dataset: Dataset) -> None:
    images = list(dataset.ReferencedSeriesSequence[0].ReferencedImageSequence)
    uids = [image.ReferencedSOPInstanceUID for image in images]
    for annotation in dataset.GraphicAnnotationSequence:
        image = annotation.ReferencedImageSequence[0]
        place = uids.index(image.ReferencedSOPInstanceUID)
        image.ReferencedSOPInstanceUID = uids[min(place + 1, len(uids) - 1)]
    del dataset.ReferencedSeriesSequence[0].ReferencedImageSequence[0]


def _stranger(dataset: Dataset) -> None:
    dataset.GraphicAnnotationSequence[0].ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _on_two_images(dataset: Dataset) -> None:
    first, second = dataset.GraphicAnnotationSequence[:2]
    first.ReferencedImageSequence.append(second.ReferencedImageSequence[0])


def _an_image_too_many(dataset: Dataset) -> None:
    del dataset.GraphicAnnotationSequence[0]


def _a_slice_missing(dataset: Dataset) -> None:
    _an_image_too_many(dataset)
    _an_image_too_few(dataset)


def _axis_missing(dataset: Dataset) -> None:
    del dataset.GraphicAnnotationSequence[4].GraphicObjectSequence[2]


def _another_finding(dataset: Dataset) -> None:
    _graphic(dataset, 0).TrackingUID = "1.2.3"


def _the_other_finding(dataset: Dataset) -> None:
    _graphic(dataset, 0).TrackingUID = _graphic(dataset, -1).TrackingUID


def _in_display_units(dataset: Dataset) -> None:
    _graphic(dataset, 0).GraphicAnnotationUnits = "DISPLAY"


def _text(dataset: Dataset) -> Dataset:
    item: Dataset = dataset.GraphicAnnotationSequence[4].TextObjectSequence[0]
    return item


def _says(old: str, new: str) -> Plant:
    def fault(dataset: Dataset) -> None:
        assert old in _text(dataset).UnformattedTextValue
        _text(dataset).UnformattedTextValue = _text(dataset).UnformattedTextValue.replace(old, new)

    return fault


def _silent(dataset: Dataset) -> None:
    del dataset.GraphicAnnotationSequence[4].TextObjectSequence


def _said_on_another_slice(dataset: Dataset) -> None:
    text = _text(dataset)
    del dataset.GraphicAnnotationSequence[4].TextObjectSequence
    dataset.GraphicAnnotationSequence[0].TextObjectSequence = [text]


def _rescaled_otherwise(dataset: Dataset) -> None:
    dataset.RescaleIntercept = -1024


def _an_image_too_few(dataset: Dataset) -> None:
    del dataset.ReferencedSeriesSequence[0].ReferencedImageSequence[0]


def _another_series(dataset: Dataset) -> None:
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def _squares(dataset: Dataset) -> None:
    dataset.DisplayedAreaSelectionSequence[0].PresentationPixelSpacing = [0.7, 0.7]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_shifted, "finding 1 outlined 0.70 mm off"),
        (_shifted_on_a_slice, "finding 1 outlined 0.80 mm off"),
        (_axis_shifted, "an axis of finding 1"),
        (_transposed, "finding 1 outlined"),
        (_centres, "finding 1 outlined"),
        (_wrong_image, "finding 1 outlined"),
        (_all_one_slice_further, "finding 1 outlined"),
        (_stranger, "another image"),
        (_on_two_images, "another image"),
        (_an_image_too_many, "9 images"),
        (_a_slice_missing, "finding 1 outlined on 4 slices"),
        (_axis_missing, "without its two axes"),
        (_another_finding, "no finding"),
        (_the_other_finding, "finding 1 outlined on 4 slices"),
        (_in_display_units, "POLYLINE in DISPLAY"),
        (_says("10.4 x 6.3", "10.5 x 6.3"), "other numbers"),
        (_says("10.4 x 6.3", "10.4 x 6.2"), "other numbers"),
        (_says("0.35 ml", "0.36 ml"), "other numbers"),
        (_says("85 %", "86 %"), "other numbers"),
        (_says("85 %", ""), "other numbers"),
        (_says("Lesion 1", "Lesion 2"), "by another name"),
        (_says("research use only", ""), "by another name"),
        (_silent, "in words on 0 slices"),
        (_said_on_another_slice, "in words on 1 slices"),
        (_rescaled_otherwise, "rescaled otherwise"),
        (_an_image_too_few, "8 images"),
        (_another_series, "another series"),
        (_squares, "proportions"),
    ],
)
def test_a_planted_fault_of_a_presentation_state_is_caught(phantom: Phantom, fault: Plant, words: str) -> None:
    (state,) = states_of(phantom)
    with pytest.raises(Fault, match=words):
        prove_presentation(planted(state, fault), phantom.source, phantom.findings)


def test_another_frame_of_a_presentation_state_is_caught(phantom: Phantom) -> None:
    def fault(dataset: Dataset) -> None:
        first, second = (it.ReferencedImageSequence[0] for it in dataset.GraphicAnnotationSequence[:2])
        first.ReferencedFrameNumber, second.ReferencedFrameNumber = (
            second.ReferencedFrameNumber,
            first.ReferencedFrameNumber,
        )

    framed = multi_frame(phantom)
    (state,) = states_of(framed)
    with pytest.raises(Fault, match="finding 1 outlined"):
        prove_presentation(planted(state, fault), framed.source, framed.findings)


def test_a_missing_finding_is_caught(phantom: Phantom) -> None:
    (state,) = states_of(replace(phantom, findings=phantom.findings[:1]))
    with pytest.raises(Fault, match="finding 2 outlined on 0 slices"):
        prove_presentation(read(state), phantom.source, phantom.findings)


def _point_shifted(dataset: Dataset) -> None:
    item = _graphic(dataset, 2)
    item.GraphicData = [item.GraphicData[0] + 1, item.GraphicData[1]]


def _corner_shifted(dataset: Dataset) -> None:
    item = _graphic(dataset, 0)
    item.GraphicData = [*item.GraphicData[:4], item.GraphicData[4] + 1, *item.GraphicData[5:]]


def _twice(dataset: Dataset) -> None:
    dataset.GraphicAnnotationSequence[0].GraphicObjectSequence.append(_graphic(dataset, 0))


def _on_the_neighbour(dataset: Dataset) -> None:
    first, second = dataset.GraphicAnnotationSequence[:2]
    first.ReferencedImageSequence, second.ReferencedImageSequence = (
        second.ReferencedImageSequence,
        first.ReferencedImageSequence,
    )


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_point_shifted, "finding 3 marked 0.70 mm off"),
        (_corner_shifted, "finding 1 marked 0.70 mm off"),
        (_twice, "finding 1 marked"),
        (_on_the_neighbour, "finding 1 marked"),
    ],
)
def test_a_planted_fault_of_a_mark_is_caught(phantom: Phantom, fault: Plant, words: str) -> None:
    marks = phantoms.with_marks(phantom)
    (state,) = states_of(marks)
    with pytest.raises(Fault, match=words):
        prove_presentation(planted(state, fault), marks.source, marks.findings)


def test_a_judgement_with_a_place_is_caught(phantom: Phantom) -> None:
    judged = phantoms.with_judgements(phantom)

    def fault(dataset: Dataset) -> None:
        (drawn,) = states_of(phantom)
        item = _graphic(read(drawn), 0)
        item.TrackingUID = judged.findings[0].tracking_uid
        dataset.GraphicAnnotationSequence[0].GraphicObjectSequence = [item]

    (state,) = states_of(judged)
    with pytest.raises(Fault, match="finding 1 with a place"):
        prove_presentation(planted(state, fault), judged.source, judged.findings)


def test_a_judgement_on_another_image_is_caught(phantom: Phantom) -> None:
    judged = phantoms.with_judgements(phantom)
    (state,) = states_of(judged)
    with pytest.raises(Fault, match="finding 1 in words"):
        prove_presentation(planted(state, _on_the_neighbour), judged.source, judged.findings)
