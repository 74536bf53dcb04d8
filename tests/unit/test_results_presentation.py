"""Presentation states: outlines where the findings are, on all their slices, and words that do not hide each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import EnhancedCTImageStorage, GrayscaleSoftcopyPresentationStateStorage

from service.forms import Kind
from service.results import capture, presentation
from service.types import ResultObject
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import COPIED, conclusion_of, read
from tests.unit.test_results_keyobjects import multi_frame


def states_of(phantom: Phantom) -> tuple[ResultObject, ...]:
    """The phantom's presentation states."""
    return presentation.presentation(phantom.making, conclusion_of(phantom), phantom.source)


def state_of(phantom: Phantom) -> Dataset:
    """The phantom's only presentation state, read again."""
    (made,) = states_of(phantom)
    return read(made)


def annotated(dataset: Dataset, phantom: Phantom) -> Iterator[tuple[int, Dataset]]:
    """Each annotation, behind the slice that it is on."""
    slices = {(it.sop_instance_uid, it.frame): index for index, it in enumerate(phantom.source.ordered)}
    for annotation in dataset.GraphicAnnotationSequence:
        (image,) = annotation.ReferencedImageSequence
        frame = image.get("ReferencedFrameNumber")
        yield slices[image.ReferencedSOPInstanceUID, frame], annotation


def graphics(dataset: Dataset, phantom: Phantom) -> Iterator[tuple[int, str, NDArray[np.float64]]]:
    """Slice, name and points (column, row) of each graphic."""
    for index, annotation in annotated(dataset, phantom):
        for item in annotation.get("GraphicObjectSequence", ()):
            assert item.GraphicAnnotationUnits == "PIXEL"
            yield index, item.TrackingID, np.reshape(item.GraphicData, (-1, 2))


def texts(dataset: Dataset, phantom: Phantom) -> dict[str, tuple[int, Dataset]]:
    """Slice and text object by name."""
    return {
        item.TrackingID: (index, item)
        for index, annotation in annotated(dataset, phantom)
        for item in annotation.get("TextObjectSequence", ())
    }


def inside(points: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels whose centres a closed line encloses, if 0, 0 is the corner of the first; drawn ten times as large."""
    canvas = Image.new("1", (shape[1] * 10, shape[0] * 10))
    ImageDraw.Draw(canvas).polygon([(column * 10, row * 10) for column, row in points], fill=1)
    return np.asarray(canvas)[5::10, 5::10]


@pytest.mark.parametrize("orientation", [phantoms.AXIAL, phantoms.SAGITTAL, phantoms.OBLIQUE], ids=str)
def test_outlines_enclose_exactly_the_lesions_pixels_on_all_their_slices(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    phantom = phantoms.make(tmp_path, orientation=orientation, spacing=(2.5, 0.8, 0.7))
    shape = phantom.source.volume.spatial_shape
    seen = {it.number: np.zeros(shape, bool) for it in phantom.findings}
    for index, name, points in graphics(state_of(phantom), phantom):
        if len(points) > 2:
            seen[int(name[-1])][index] |= inside(points, shape[1:])
    for finding in phantom.lesions:
        wanted = np.zeros(shape, bool)
        wanted[finding.box] = finding.mask
        np.testing.assert_array_equal(seen[finding.number], wanted)


def test_each_part_of_a_lesion_has_its_outline(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    mask = np.zeros(phantom.source.volume.spatial_shape, bool)
    mask[4:6, 5:25, 5:8] = mask[5, 5:25, 15:17] = True
    parted = replace(phantom, findings=(phantoms.finding_of(phantom.source, mask, 1),))
    closed = [(index, points) for index, _, points in graphics(state_of(parted), parted) if len(points) > 2]
    assert [index for index, _ in closed] == [4, 5, 5]
    assert [points[:, 0].min() for _, points in closed] == [5, 5, 15]


def test_axes_are_on_the_key_slice_between_pixel_edges(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    first = phantom.lesions[0]  # rows 6 to 18, columns 10 to 18
    lines = [
        (index, points.tolist())
        for index, name, points in graphics(state_of(phantom), phantom)
        if len(points) == 2 and name == "Lesion 1"
    ]
    assert lines == [(3, [[14.5, 6.0], [14.5, 19.0]]), (3, [[10.0, 12.5], [19.0, 12.5]])]
    assert first.key_slice == 3


def test_marks_have_their_rectangle_or_their_point(tmp_path: Path) -> None:
    phantom = phantoms.with_marks(phantoms.make(tmp_path))
    dataset = state_of(phantom)
    drawn = {name: (index, points.tolist()) for index, name, points in graphics(dataset, phantom)}
    assert drawn["Lesion 1"] == (3, [[10, 6], [19, 6], [19, 19], [10, 19], [10, 6]])
    assert drawn["Nodule 3"] == (5, [[31.0, 8.75]])
    types = [item.GraphicType for it in dataset.GraphicAnnotationSequence for item in it.GraphicObjectSequence]
    assert types == ["POLYLINE", "POLYLINE", "POINT"]


def test_a_box_at_the_edge_stays_on_the_image(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    box = phantoms.mark_of(phantom.source, (2.0, -0.5, -0.7), (4.0, 39.5, 47.5), 1)
    ((_, _, points),) = graphics(state_of(replace(phantom, findings=(box,))), phantom)
    assert points.min(axis=0).tolist() == [0, 0]
    assert points.max(axis=0).tolist() == [48, 40]


def test_words_are_what_was_measured(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    said = texts(state_of(phantom), phantom)
    assert said["Lesion 1"][0] == 3
    assert said["Lesion 1"][1].UnformattedTextValue.split("\r\n") == [
        "Lesion 1",
        "10.4 x 7.2 mm, 0.40 ml",
        "85 %, research use only",
    ]
    marks = phantoms.with_marks(phantom)
    said = texts(state_of(marks), marks)
    assert said["Lesion 1"][1].UnformattedTextValue == "Lesion 1\r\n7.2 x 10.4 mm\r\n85 %, research use only"
    assert said["Nodule 3"][1].UnformattedTextValue == "Nodule 3\r\n65 %, research use only"
    assert said["Nodule 3"][1].AnchorPoint == [31.0, 8.75]


def test_a_judgement_is_words_at_the_edge_of_the_display(tmp_path: Path) -> None:
    phantom = phantoms.with_judgements(phantoms.make(tmp_path))
    dataset = state_of(phantom)
    assert not list(graphics(dataset, phantom))
    index, text = texts(dataset, phantom)["Glioma 1"]
    assert index == 7
    assert text.BoundingBoxAnnotationUnits == "DISPLAY"
    assert "AnchorPoint" not in text
    assert text.UnformattedTextValue == (
        "Glioma 1 (Brain), 85 %. Slice 8: said of the series; this image decided. No place in it is meant. "
        "Research use only, not for diagnosis."
    )


@pytest.mark.parametrize("kind", [lambda it: it, phantoms.with_marks, phantoms.with_judgements])
def test_words_of_one_slice_do_not_overlap(tmp_path: Path, kind: Callable[[Phantom], Phantom]) -> None:
    phantom = kind(phantoms.make(tmp_path))
    first = phantom.findings[0]
    crowded = tuple(replace(first, number=number, tracking_uid=f"1.2.{number}") for number in range(1, 8))
    dataset = state_of(replace(phantom, findings=crowded))
    boxes = [
        (*item.BoundingBoxTopLeftHandCorner, *item.BoundingBoxBottomRightHandCorner)
        for _, item in texts(dataset, phantom).values()
    ]
    assert len(boxes) == 7
    for one, other in combinations(boxes, 2):
        assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] - 1e-4 or other[1] >= one[3] - 1e-4
    limits = (1, 1) if "Judgement" in type(first).__name__ else (48, 40)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= limits[0]
        assert 0 <= top < bottom <= limits[1]


def test_words_stand_where_there_is_room(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    mask = np.zeros(phantom.source.volume.spatial_shape, bool)
    mask[5, 1:4, 40:47] = True  # at the right upper corner
    there = replace(phantom, findings=(phantoms.finding_of(phantom.source, mask, 1),))
    _, text = texts(state_of(there), there)["Lesion 1"]
    assert text.BoundingBoxBottomRightHandCorner[0] < 40
    assert text.BoundingBoxTopLeftHandCorner[1] >= 0
    assert text.BoundingBoxTextHorizontalJustification == "RIGHT"
    assert text.AnchorPoint[0] == 40


def test_classes_are_layers_in_their_colours(tmp_path: Path) -> None:
    phantom = phantoms.with_two_classes(phantoms.make(tmp_path))
    dataset = state_of(phantom)
    layers = {layer.GraphicLayer: layer for layer in dataset.GraphicLayerSequence}
    assert [layer.GraphicLayerDescription for layer in layers.values()] == ["Lesion", "Nodule"]
    for finding in phantom.findings:
        wanted = list(CIELabColor.from_rgb(*finding.kind.colour).value)
        layer = layers[f"CLASS {finding.kind.channel}"]
        assert list(layer.GraphicLayerRecommendedDisplayCIELabValue) == wanted
        used = {
            annotation.GraphicLayer
            for _, annotation in annotated(dataset, phantom)
            if annotation.GraphicObjectSequence[0].TrackingUID == finding.tracking_uid
        }
        assert used == {layer.GraphicLayer}


def test_images_are_shown_in_the_windows_of_the_organs(tmp_path: Path) -> None:
    """An image on which there are both has the window of the more probable finding."""
    phantom = phantoms.with_two_classes(phantoms.make(tmp_path))  # a lesion of the liver, one of the lung
    liver, lung = phantom.lesions
    windows = {
        image.ReferencedSOPInstanceUID: (item.WindowCenter, item.WindowWidth)
        for item in state_of(phantom).SoftcopyVOILUTSequence
        for image in item.ReferencedImageSequence
    }
    for index in range(lung.box[0].start, lung.box[0].stop):
        first = liver if index < liver.box[0].stop else lung
        assert windows[phantom.source.ordered[index].sop_instance_uid] == capture.window(phantom.source, first)
    assert set(windows.values()) == {(40, 400), (-600, 1500)}


def test_one_window_holds_for_all_images(tmp_path: Path) -> None:
    (item,) = state_of(phantoms.make(tmp_path)).SoftcopyVOILUTSequence
    assert (item.WindowCenter, item.WindowWidth, item.VOILUTFunction) == (40, 400, "LINEAR_EXACT")
    assert "ReferencedImageSequence" not in item


def test_pixels_keep_their_proportions(tmp_path: Path) -> None:
    (area,) = state_of(phantoms.make(tmp_path, spacing=(2.5, 1.6, 0.8))).DisplayedAreaSelectionSequence
    assert area.PresentationPixelSpacing == [1.6, 0.8]
    assert "PresentationPixelAspectRatio" not in area
    assert area.DisplayedAreaTopLeftHandCorner == [1, 1]
    assert area.DisplayedAreaBottomRightHandCorner == [48, 40]


def test_it_refers_to_the_images_that_it_draws_on_and_no_others(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    (series,) = state_of(phantom).ReferencedSeriesSequence
    assert series.SeriesInstanceUID == phantom.source.series.series_instance_uid
    drawn_on = {index for it in phantom.lesions for index in range(it.box[0].start, it.box[0].stop)}
    assert [image.ReferencedSOPInstanceUID for image in series.ReferencedImageSequence] == [
        phantom.source.ordered[index].sop_instance_uid for index in sorted(drawn_on)
    ]


def test_frames_of_a_multi_frame_image_are_named(tmp_path: Path) -> None:
    phantom = multi_frame(phantoms.with_two_classes(phantoms.make(tmp_path)))
    dataset = state_of(phantom)
    ((image,),) = (series.ReferencedImageSequence for series in dataset.ReferencedSeriesSequence)
    assert image.ReferencedSOPClassUID == EnhancedCTImageStorage
    frames = {12 - index for it in phantom.lesions for index in range(it.box[0].start, it.box[0].stop)}
    assert set(image.ReferencedFrameNumber) == frames
    windows = [item.ReferencedImageSequence[0].ReferencedFrameNumber for item in dataset.SoftcopyVOILUTSequence]
    assert sorted(number for numbers in windows for number in np.ravel(numbers)) == sorted(frames)
    slices = {index for index, _ in annotated(dataset, phantom)}
    assert slices == {12 - frame for frame in frames}
    for _, annotation in annotated(dataset, phantom):
        assert annotation.ReferencedImageSequence[0].ReferencedSOPClassUID == EnhancedCTImageStorage


def test_images_that_are_rescaled_otherwise_are_another_object(tmp_path: Path) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        dataset.RescaleSlope = 1 if index < 5 else 2

    phantom = phantoms.make(tmp_path, edit=edit)
    made = states_of(phantom)
    assert [(it.kind, it.part) for it in made] == [(Kind.PR, 1), (Kind.PR, 2)]
    assert len({it.sop_instance_uid for it in made}) == 2
    for dataset, slope in zip(map(read, made), (1, 2), strict=True):
        assert dataset.RescaleSlope == slope
        assert {index < 5 for index, _ in annotated(dataset, phantom)} == {slope == 1}
    assert list(texts(read(made[0]), phantom)) == ["Lesion 1"]
    assert list(texts(read(made[1]), phantom)) == ["Lesion 2"]


def test_images_without_a_rescale_are_what_they_are(tmp_path: Path) -> None:
    dataset = state_of(phantoms.make(tmp_path, modality="MR"))
    assert (dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType) == (0, 1, "US")
    assert state_of(phantoms.make(tmp_path / "ct")).RescaleType == "HU"


def test_it_says_what_it_is(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    dataset, header = state_of(phantom), phantom.source.ordered[0].header
    assert dataset.SOPClassUID == GrayscaleSoftcopyPresentationStateStorage
    assert dataset.Modality == "PR"
    assert dataset.ContentDescription == "Research use only, not for diagnosis"
    assert (dataset.PresentationCreationDate, dataset.PresentationCreationTime) == ("20260301", "123015")
    assert [dataset.get(keyword) for keyword in COPIED] == [header.get(keyword) for keyword in COPIED]


@pytest.mark.parametrize("kind", [lambda it: it, phantoms.with_marks, phantoms.with_judgements])
def test_same_input_gives_identical_bytes(tmp_path: Path, kind: Callable[[Phantom], Phantom]) -> None:
    first, again = (states_of(kind(phantoms.make(tmp_path))) for _ in range(2))
    assert [it.content for it in first] == [it.content for it in again]


def test_spacing_with_more_digits_than_a_ds_may_have_is_written_shorter(tmp_path: Path) -> None:
    """Seen in ircadb-17: 0.742999970912933."""

    phantom = phantoms.make(tmp_path)
    tag = Tag("PixelSpacing")
    for instance in phantom.source.ordered:
        raw = b"0.742999970912933\\0.742999970912933"
        instance.header[tag] = RawDataElement(tag, "DS", len(raw), raw, 0, False, True)
    (state,) = presentation.presentation(phantom.making, conclusion_of(phantom), phantom.source)
    written = read(state).DisplayedAreaSelectionSequence[0].PresentationPixelSpacing
    assert [len(str(value)) <= 16 for value in written] == [True, True]
    assert float(written[0]) == pytest.approx(0.743, abs=1e-6)
