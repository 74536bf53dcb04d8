"""What the headers of a series say of itself: what is missing is seen, and what is odd raises no alarm."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from service.demo.phantom import tiny
from service.demo.phantom_dicom import write_localizer, write_series
from service.intake.complete import Looked, Stack
from service.intake.stacks import look
from tests.support import real_series

Edit = Callable[[Dataset, int], None]


def written(folder: Path, *, slices: int = 20, edit: Edit | None = None, **more: Any) -> list[Path]:
    """A series of small slices; `edit` changes the data set of slice i."""
    paths = write_series(tiny(shape=(slices, 16, 16)), folder, **more)
    for number, path in enumerate(paths):
        if edit:
            dataset = dcmread(path)
            edit(dataset, number)
            dataset.save_as(path)
    return paths


def only(paths: Sequence[Path]) -> Stack:
    """What is said of files that are one series."""
    (stack,) = look(paths).stacks
    return stack


def without(paths: Sequence[Path], *numbers: int) -> list[Path]:
    return [path for number, path in enumerate(paths) if number not in numbers]


def setting(**values: Any) -> Edit:
    def edit(dataset: Dataset, _: int) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return edit


def at(heights: Sequence[float], numbers: Sequence[int | None] | None = None) -> Edit:
    """Slices at these heights, mm; numbered as they are written, or so."""

    def edit(dataset: Dataset, number: int) -> None:
        dataset.ImagePositionPatient = [0, 0, heights[number]]
        if numbers:
            dataset.InstanceNumber = numbers[number]

    return edit


# --- Slices missing between others ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ((), 0),
        ((7,), 1),
        ((7, 8, 9), 3),
        ((1, 7, 8, 18), 4),
        ((0, 1, 2), 0),  # at an end nothing shows
        ((19,), 0),
        (tuple(range(3, 17)), 14),  # two pieces are left, and the gap between them is one of five
        (tuple(range(1, 20, 2)), 0),  # every other one: it is a stack of twice the gap
        ((1, 3, 5, 7, 9, 11), 6),
    ],
)
def test_a_hole_in_a_uniform_stack_is_seen(gone: tuple[int, ...], missing: int, tmp_path: Path) -> None:
    paths = without(written(tmp_path), *gone)
    stack = only(random.Random(1).sample(paths, len(paths)))
    assert (stack.modality, stack.instances, stack.missing) == ("CT", 20 - len(gone), missing)
    assert (stack.duplicates, stack.expected) == (0, None)


@pytest.mark.parametrize("tilted", [False, True])
def test_it_is_seen_in_any_orientation(tilted: bool, tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.8, -0.36, 0.48], [0.6, 0.48, -0.64], [0, 0.8, 0.6]])[:, [2, 1, 0]] * (3.7, 1, 1)
    paths = written(tmp_path)
    for number, path in enumerate(paths):
        dataset = dcmread(path)
        place = affine @ (number, number * 1.5 if tilted else 0, 0, 1)
        dataset.ImageOrientationPatient = [*affine[:3, 2], *affine[:3, 1]]
        dataset.ImagePositionPatient = [round(float(v), 3) for v in place[:3]]
        dataset.save_as(path)
    assert only(paths).missing == 0
    assert only(without(paths, 5, 6)).missing == 2


@pytest.mark.parametrize(
    "heights",
    [
        [0, 1, 2, 3, 5.5, 6, 7.2, 8.9],  # nothing repeats
        [0, 1, 2, 3, 5.5, 6.5, 7.5, 8.5],  # a gap that is no multiple
        [0, 1, 2, 3, 4.8, 5.8, 6.8, 7.8],
        [0, 1, 2, 3, 4, 4.4, 5.4, 6.4],  # a gap that is too small
        [0, 2, 3, 5, 7, 8, 10, 12],  # the smallest gap is not the usual one
        [0, 1, 3, 4, 6, 8, 9, 12],  # as often double as single
        [0, 0, 0, 0, 0, 0, 0, 0],  # one position
        [0, 1, 3, 3, 3, 3, 3, 3],  # three positions
    ],
)
def test_of_what_is_not_uniform_nothing_is_said(heights: list[float], tmp_path: Path) -> None:
    assert only(written(tmp_path, slices=8, edit=at(heights, [None] * 8))).missing == 0


def test_four_positions_are_enough(tmp_path: Path) -> None:
    assert only(written(tmp_path, slices=4, edit=at([0, 1, 3, 4], [1, 2, 4, 5]))).missing == 1
    assert only(written(tmp_path, slices=3, edit=at([0, 1, 3], [1, 2, 4]))).missing == 0


def test_two_regions_in_one_series_are_no_hole_where_the_numbering_goes_on(tmp_path: Path) -> None:
    heights = [*range(6), *range(30, 36)]
    for name, numbers, missing in (
        ("on", [*range(1, 13)], 0),
        ("backwards", [*range(12, 0, -1)], 0),
        ("skipped", [*range(1, 7), *range(31, 37)], 24),
        ("none", [None] * 12, 24),
        ("all the same", [1] * 12, 24),
    ):
        paths = written(tmp_path / name, slices=12, edit=at(heights, numbers))
        assert only(paths).missing == missing, name


def test_rounded_positions_are_uniform(tmp_path: Path) -> None:
    heights = [round(number * 0.625, 1) for number in range(40)]
    paths = written(tmp_path, slices=40, edit=at(heights))
    assert only(paths).missing == 0
    thin = [round(number * 0.7, 1) for number in range(40)]
    assert only(without(written(tmp_path / "thin", slices=40, edit=at(thin)), 11, 12)).missing == 2


def test_phases_are_one_stack_of_duplicates(tmp_path: Path) -> None:
    def edit(dataset: Dataset, number: int) -> None:
        dataset.ImagePositionPatient = [0, 0, number % 10]

    paths = written(tmp_path, slices=30, edit=edit)
    stack = only(paths)
    assert (stack.instances, stack.missing, stack.duplicates) == (30, 0, 20)
    stack = only(without(paths, 4, 14, 24))
    assert (stack.instances, stack.missing, stack.duplicates) == (27, 1, 18)


def test_a_localizer_among_the_slices_is_left_out(tmp_path: Path) -> None:
    def edit(dataset: Dataset, number: int) -> None:
        if number == 3:
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
            dataset.ImagePositionPatient = [0, 99, 0]

    assert only(written(tmp_path, edit=edit)).missing == 1
    alone = write_localizer(tiny(shape=(20, 16, 16)), tmp_path / "localizer")
    assert only([alone]) == Stack(series_instance_uid=only([alone]).series_instance_uid, modality="CT", instances=1)


@pytest.mark.parametrize(
    "values",
    [
        {"NumberOfFrames": 2},
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": None},
        {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
        {"ImagePositionPatient": [0, 0, 1e12]},
    ],
)
def test_of_other_images_nothing_is_said(values: dict[str, Any], tmp_path: Path) -> None:
    paths = without(written(tmp_path, edit=setting(ImagesInAcquisition=99, **values)), 5)
    stack = only(paths)
    assert (stack.instances, stack.missing, stack.duplicates, stack.expected) == (19, 0, 0, None)


def test_three_orientations_are_no_stack(tmp_path: Path) -> None:
    def edit(dataset: Dataset, number: int) -> None:
        dataset.ImageOrientationPatient = ([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1])[number % 3]

    assert only(without(written(tmp_path, edit=edit), 5)).missing == 0


# --- The expected number --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "gone", "expected"),
    [
        ({"ImagesInAcquisition": 20}, (), None),
        ({"ImagesInAcquisition": 20}, (17, 18, 19), 20),
        ({"ImagesInAcquisition": 20}, (4, 19), 20),
        ({"ImagesInAcquisition": 12}, (), None),
        ({"ImagesInAcquisition": 12}, range(10, 20), 12),
        ({"ImagesInAcquisition": 30, "AcquisitionNumber": None}, (), None),
        ({"ImagesInAcquisition": 30, "ImageType": ["DERIVED", "SECONDARY"]}, (), None),
        ({"ImagesInAcquisition": 30, "ImageType": None}, (), None),
        ({"NumberOfSeriesRelatedInstances": 20}, (18, 19), 20),
        ({"NumberOfSeriesRelatedInstances": 20}, (), None),
        ({"NumberOfSeriesRelatedInstances": 25, "ImagePositionPatient": None}, (), 25),
        ({"Modality": "PT"}, (), None),
        ({"Modality": "PT", "NumberOfSlices": 20}, (), None),
        ({"Modality": "PT", "NumberOfSlices": 20}, (18, 19), 20),
        ({"Modality": "PT", "NumberOfSlices": 20, "ImageType": ["DERIVED", "SECONDARY"]}, (18, 19), None),
        ({"Modality": "CT", "NumberOfSlices": 20}, (18, 19), None),
        ({"ImagesInAcquisition": 20, "NumberOfSeriesRelatedInstances": 24}, (18, 19), 24),
    ],
)
def test_a_number_that_the_series_carries_is_expected(
    values: dict[str, Any], gone: Sequence[int], expected: int | None, tmp_path: Path
) -> None:
    assert only(without(written(tmp_path, edit=setting(**values)), *gone)).expected == expected


@pytest.mark.parametrize("keyword", ["ImagesInAcquisition", "AcquisitionNumber", "NumberOfSeriesRelatedInstances"])
def test_a_number_that_differs_from_image_to_image_is_of_something_else(keyword: str, tmp_path: Path) -> None:
    values = {"ImagesInAcquisition": 30, "NumberOfSeriesRelatedInstances": 30, "AcquisitionNumber": 1}
    if keyword == "AcquisitionNumber" or keyword == "ImagesInAcquisition":
        del values["NumberOfSeriesRelatedInstances"]
    else:
        del values["ImagesInAcquisition"]

    def edit(dataset: Dataset, number: int) -> None:
        setting(**values)(dataset, number)
        if number == 7:
            setattr(dataset, keyword, 31)

    assert only(written(tmp_path, edit=edit)).expected is None
    assert only(written(tmp_path, edit=setting(**values))).expected == 30


def test_images_that_are_numbered_beyond_it_show_that_a_number_is_of_something_else(tmp_path: Path) -> None:
    def edit(dataset: Dataset, number: int) -> None:
        dataset.ImagesInAcquisition = 12
        dataset.InstanceNumber = 4 + number

    assert only(written(tmp_path, slices=10, edit=edit)).expected is None
    assert only(written(tmp_path, slices=10, edit=edit)[:9]).expected == 12


def test_phases_and_irregular_stacks_expect_nothing_of_an_acquisition(tmp_path: Path) -> None:
    def phases(dataset: Dataset, number: int) -> None:
        dataset.ImagesInAcquisition = 40
        dataset.ImagePositionPatient = [0, 0, number % 10]

    assert only(written(tmp_path / "phases", edit=phases)).expected is None

    def odd(dataset: Dataset, number: int) -> None:
        dataset.ImagesInAcquisition = 40
        dataset.ImagePositionPatient = [0, 0, number**2]

    assert only(written(tmp_path / "odd", edit=odd)).expected is None


def test_the_number_of_an_acquisition_is_not_that_of_its_thicker_reconstruction(tmp_path: Path) -> None:
    thin = written(tmp_path / "thin", slices=20, edit=setting(ImagesInAcquisition=20), study_uid="2.25.1")

    def edit(dataset: Dataset, number: int) -> None:
        dataset.ImagesInAcquisition = 20
        dataset.ImagePositionPatient = [0, 0, 10 * number]

    thick = written(tmp_path / "thick", slices=10, edit=edit, study_uid="2.25.1", series_number=3)
    other = written(
        tmp_path / "other", slices=20, edit=setting(ImagesInAcquisition=20), study_uid="2.25.1", series_number=4
    )
    assert {stack.expected for stack in look([*thin, *thick]).stacks} == {None}
    assert {stack.expected for stack in look([*thin[:15], *thick]).stacks} == {None}
    assert {stack.expected for stack in look([*thin, *other[:15]]).stacks} == {None, 20}, "another kernel"
    assert only(thick).expected == 20, "alone it can't be told: see the report of doubts"


# --- Files ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_series_are_told_apart_and_files_that_are_no_images_counted(tmp_path: Path) -> None:
    first = written(tmp_path / "1", study_uid="2.25.1")
    second = written(tmp_path / "2", slices=8, study_uid="2.25.1", series_number=3)
    nonsense = tmp_path / "nonsense.dcm"
    nonsense.write_bytes(b"%PDF-1.7" + b"x" * 400)
    nameless = dcmread(first[0])
    del nameless.SeriesInstanceUID
    nameless.save_as(tmp_path / "nameless.dcm")
    nameless.SeriesInstanceUID = "Somebody's"
    nameless.save_as(tmp_path / "somebody.dcm")
    several = [nonsense, tmp_path / "nameless.dcm", tmp_path / "somebody.dcm"]
    looked = look([*without(first, 4), *second, *several, tmp_path / "gone.dcm", tmp_path])
    assert {(stack.instances, stack.missing) for stack in looked.stacks} == {(19, 1), (8, 0)}
    assert [stack.series_instance_uid for stack in looked.stacks] == sorted(
        stack.series_instance_uid for stack in looked.stacks
    )
    assert (looked.unreadable, looked.gone) == (4, 1)
    assert look([]) == Looked()


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_counted_and_nothing_is_raised(tmp_path: Path) -> None:
    """Some hundreds of series with bytes flipped and ends cut, always the same ones."""
    paths = written(tmp_path, slices=8, edit=setting(ImagesInAcquisition=9, NumberOfFrames=1))
    whole = [path.read_bytes() for path in paths]
    dice = random.Random(11)
    unreadable = 0
    for _ in range(150):
        for path, content in zip(paths, whole, strict=True):
            damaged = bytearray(content)
            for _ in range(dice.choice((0, 1, 4))):
                damaged[dice.randrange(128, 1700)] = dice.randrange(256)
            path.write_bytes(damaged[: dice.choice((len(content), len(content), dice.randrange(140, 1700)))])
        looked = look(paths)
        assert looked.unreadable + sum(stack.instances for stack in looked.stacks) == 8
        unreadable += looked.unreadable
    assert unreadable


@pytest.mark.parametrize(
    ("name", "instances"), [("lidc-0314", 275), ("ircadb-17", 119), ("lung-dx-a0001", 64), ("ct-head-tilt", 57)]
)
def test_real_series_raise_no_alarm_and_a_real_hole_is_seen(name: str, instances: int) -> None:
    paths = sorted(path for path in real_series(name).rglob("*") if path.is_file())
    looked = look(paths)
    assert [(stack.missing, stack.expected) for stack in looked.stacks] == [(0, None)] * len(looked.stacks)
    largest = max(looked.stacks, key=lambda stack: stack.instances)
    assert largest.instances == instances
    members = []
    for path in paths:
        alone = look([path]).stacks
        if alone and alone[0].series_instance_uid == largest.series_instance_uid:
            members.append(
                (dcmread(path, stop_before_pixels=True, specific_tags=["InstanceNumber"]).InstanceNumber, path)
            )
    ordered = [path for _, path in sorted(members)]
    assert only(without(ordered, 20, 31, 32)).missing == 3
