"""Which series a model reads: each series left out has its reason, and the choice depends on the study alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from service.analysis.select import NoSeriesFits, select
from service.spec import ModelSpec, Select
from service.types import Completeness, Instance, Series, Study
from tests.phantoms import CORONAL, OBLIQUE, SAGITTAL, making_of

USUAL: dict[str, Any] = {
    "Modality": "CT",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "Manufacturer": "Scanner maker",
    "StudyDescription": "CT chest",
    "BodyPartExamined": "CHEST",
    "ContrastBolusAgent": "Iodine",
    "Rows": 64,
    "Columns": 64,
    "PixelSpacing": [0.7, 0.7],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
}
RULES: dict[str, Any] = {
    "modality": "CT",
    "body_parts": ["CHEST", "LUNG"],
    "words": [r"\bthorax"],
    "words_against": ["bone"],
    "slices": [5, 40],
    "slice_spacing_mm": [0.5, 4.0],
}


def _header(uid: str, position: NDArray[np.float64], attributes: dict[str, Any]) -> Dataset:
    header = Dataset()
    header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID = "1.2", "1.2.1", uid
    header.ImagePositionPatient = [float(v) for v in position]
    for keyword, value in {**USUAL, **attributes}.items():
        if value is not None:
            setattr(header, keyword, list(value) if isinstance(value, tuple) else value)
        elif keyword in header:
            delattr(header, keyword)
    return header


def _series(
    uid: str = "1.2.1", *, count: int = 12, gap: float = 1.5, extra: Sequence[dict[str, Any]] = (), **attributes: Any
) -> Series:
    """A series of `count` images, and one more per entry of `extra` with these attributes besides."""
    orientation = np.array(attributes.get("ImageOrientationPatient") or USUAL["ImageOrientationPatient"], float)
    normal = np.cross(orientation[:3], orientation[3:])
    headers = [_header(f"{uid}.{n}", normal * gap * n, attributes) for n in range(count)]
    headers += [
        _header(f"{uid}.{count + n}", normal * gap * (count + n), {**attributes, **more})
        for n, more in enumerate(extra)
    ]
    return Series(
        series_instance_uid=uid,
        modality=attributes.get("Modality", "CT"),
        instances=tuple(
            Instance(
                sop_instance_uid=str(header.SOPInstanceUID),
                sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                path=Path(f"{header.SOPInstanceUID}.dcm"),
                header=header,
            )
            for header in headers
        ),
    )


def _study(*series: Series) -> Study:
    return Study(study_instance_uid="1.2", series=series, completeness=Completeness.QUIET, received_at=0.0)


def _spec(**rules: Any) -> ModelSpec:
    made = making_of(_series()).model.spec
    return made.model_copy(update={"select": Select.model_validate({**RULES, **rules})})


LOCALIZER = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
REASONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another modality": ({"Modality": "MR"}, {}, "modality MR, the model takes CT"),
    "no modality": ({"Modality": ""}, {}, "modality unknown, the model takes CT"),
    "a result of our own": ({"Manufacturer": "Overread", "ManufacturerModelName": "Overread"}, {}, "of our own"),
    "localizers": (LOCALIZER, {}, "localizers only"),
    "scouts": ({"ImageType": ["ORIGINAL", "PRIMARY", "SCOUT"]}, {}, "localizers only"),
    "derived images": ({"ImageType": ["DERIVED", "PRIMARY", "MPR"]}, {}, "derived or secondary images only"),
    "secondary captures": ({"ImageType": ["ORIGINAL", "SECONDARY"]}, {}, "derived or secondary images only"),
    "localizers and derived images": (
        {"count": 0, "extra": [LOCALIZER, {"ImageType": ["DERIVED", "PRIMARY"]}]}, {},
        "derived or secondary images and localizers only",
    ),
    "no images": ({"Rows": None}, {}, "no images"),
    "several frames": ({"NumberOfFrames": 40}, {}, "multi-frame images that do not say where"),
    "words against": ({"SeriesDescription": "Bone window"}, {}, "its description is one that the model excludes"),
    "words against in the protocol": ({"ProtocolName": "BONE 70"}, {}, "its description"),
    "another body part": ({"BodyPartExamined": "HEAD"}, {}, "body part HEAD, and no description"),
    "no body part": ({"BodyPartExamined": None}, {}, "body part not given, and no description"),
    "a silent series": (
        {"BodyPartExamined": None, "StudyDescription": None}, {"silent_series": False}, "does not guess"
    ),
    "no contrast": ({"ContrastBolusAgent": None}, {"contrast": "required"}, "no contrast agent named"),
    "an empty contrast": ({"ContrastBolusAgent": ""}, {"contrast": "required"}, "no contrast agent named"),
    "contrast": ({}, {"contrast": "none"}, "a contrast agent is named"),
    "coronal slices": ({"ImageOrientationPatient": CORONAL}, {}, "coronal slices, the model takes axial"),
    "sagittal slices": ({"ImageOrientationPatient": SAGITTAL}, {}, "sagittal slices, the model takes axial"),
    "axial slices": ({}, {"orientation": "coronal"}, "axial slices, the model takes coronal"),
    "too few slices": ({"count": 4}, {}, "4 slices, the model takes 5 to 40"),
    "too many slices": ({"count": 41}, {}, "41 slices, the model takes 5 to 40"),
    "slices too near": ({"gap": 0.4}, {}, "slice spacing 0.40 mm, the model takes 0.5 to 4 mm"),
    "slices too far": ({"gap": 4.1}, {}, "slice spacing 4.10 mm, the model takes 0.5 to 4 mm"),
    "no orientation": ({"ImageOrientationPatient": None}, {}, "no ImageOrientationPatient"),
    "no pixel spacing": ({"PixelSpacing": None}, {}, "no PixelSpacing"),
    "one image without a place": ({"extra": [{"ImagePositionPatient": None}]}, {}, "no ImagePositionPatient"),
    "one image without columns": ({"extra": [{"Columns": None}]}, {}, "no Columns"),
}  # fmt: skip


@pytest.mark.parametrize("case", REASONS)
def test_a_series_left_out_has_its_reason(case: str) -> None:
    attributes, rules, reason = REASONS[case]
    with pytest.raises(NoSeriesFits) as caught:
        select(_study(_series(**attributes)), _spec(**rules))
    (left,) = caught.value.excluded
    assert left.series_instance_uid == "1.2.1"
    assert reason in left.reason
    assert left.reason in caught.value.found


FITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "its body part": ({}, {}),
    "its body part in small letters": ({"BodyPartExamined": "Chest"}, {}),
    "its words": ({"BodyPartExamined": "TRUNK", "SeriesDescription": "Thorax nativ"}, {}),
    "saying nothing": ({"BodyPartExamined": None, "StudyDescription": None}, {}),
    "any body part": ({"BodyPartExamined": "HEAD"}, {"body_parts": [], "words": []}),
    "the least slices": ({"count": 5}, {}),
    "the most slices": ({"count": 40}, {}),
    "the least spacing": ({"gap": 0.5}, {}),
    "the greatest spacing": ({"gap": 4.0}, {}),
    "any plane": ({"ImageOrientationPatient": OBLIQUE}, {"orientation": "any"}),
    "contrast required": ({}, {"contrast": "required"}),
    "no contrast": ({"ContrastBolusAgent": ""}, {"contrast": "none"}),
    "no image type": ({"ImageType": None}, {}),
    "the maker's phantom": ({"Manufacturer": "Overread", "ManufacturerModelName": "Phantom"}, {}),
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize("case", FITS)
def test_a_series_fits_by(case: str) -> None:
    attributes, rules = FITS[case]
    chosen = select(_study(_series(**attributes)), _spec(**rules))
    assert chosen.series.series_instance_uid == "1.2.1"
    assert chosen.excluded == ()
    assert "slices" in chosen.why


def test_a_study_without_series_fits_nowhere() -> None:
    with pytest.raises(NoSeriesFits, match="no series"):
        select(_study(), _spec())


def test_localizers_within_a_series_are_left_out_of_it() -> None:
    chosen = select(_study(_series(extra=[LOCALIZER])), _spec())
    assert len(chosen.series.instances) == 12


def test_the_images_are_ordered_by_position() -> None:
    series = _series(count=12)
    mixed = Series(series_instance_uid="1.2.1", modality="CT", instances=series.instances[::-1])
    heights = [i.header.ImagePositionPatient[2] for i in select(_study(mixed), _spec()).series.instances]
    assert heights == sorted(heights)


# --- Among several --------------------------------------------------------------------------------------------------

RANKS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "contrast before none": ({"contrast": "preferred"}, {"ContrastBolusAgent": None}, {}),
    "its words before others": ({"preferred_words": ["soft"]}, {}, {"SeriesDescription": "SOFT"}),
    "contrast before words": (
        {"contrast": "preferred", "preferred_words": ["soft"]},
        {"ContrastBolusAgent": None, "SeriesDescription": "soft"},
        {},
    ),
    "its words before spacing": ({"preferred_words": ["soft"]}, {"gap": 1.5}, {"gap": 3.0, "ProtocolName": "Soft"}),
    "the better spacing": ({"preferred_spacing_mm": 1.0}, {"gap": 1.5}, {"gap": 0.8}),
    "more slices of one spacing": ({}, {"count": 12}, {"count": 13}),
}


@pytest.mark.parametrize("case", RANKS)
def test_the_better_one_is_read_in_whatever_order_they_come(case: str) -> None:
    rules, worse, better = RANKS[case]
    pair = [_series("1.2.1", **worse), _series("1.2.2", **better)]
    for study in (_study(*pair), _study(*reversed(pair))):
        chosen = select(study, _spec(**rules))
        assert chosen.series.series_instance_uid == "1.2.2"
        assert chosen.why.startswith("best of 2 that fit: axial, ")
        (left,) = chosen.excluded
        assert left.series_instance_uid == "1.2.1"
        assert left.reason.startswith("fits, but ranks lower: axial, ")


def test_equal_series_are_told_apart_by_uid() -> None:
    several = [_series(f"1.2.{n}") for n in (3, 1, 2)]
    for order in itertools.permutations(several):
        chosen = select(_study(*order), _spec())
        assert chosen.series.series_instance_uid == "1.2.1"
        assert [left.series_instance_uid for left in chosen.excluded] == ["1.2.2", "1.2.3"]


def test_the_reason_of_every_other_series_is_kept_beside_the_choice() -> None:
    others = [_series("1.2.2", Modality="SEG"), _series("1.2.3", count=2), _series("1.2.4", gap=3.0)]
    chosen = select(_study(*others, _series("1.2.1")), _spec())
    assert chosen.series.series_instance_uid == "1.2.1"
    assert {left.series_instance_uid for left in chosen.excluded} == {"1.2.2", "1.2.3", "1.2.4"}


# --- Whatever comes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "rules"),
    [
        (LOCALIZER | {"ContrastBolusAgent": None}, {"contrast": "required"}),
        (LOCALIZER | {"ContrastBolusAgent": None}, {"contrast": "preferred"}),
        (LOCALIZER | {"SeriesDescription": "bone"}, {}),
        (LOCALIZER | {"Rows": None}, {}),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, {}),
    ],
    ids=["a localizer, contrast required", "a localizer, contrast preferred", "a localizer's words",
         "a localizer without rows", "a derived image"],
)  # fmt: skip
def test_the_order_of_arrival_decides_nothing(odd: dict[str, Any], rules: dict[str, Any]) -> None:
    last = _series(extra=[odd])
    first = Series(series_instance_uid="1.2.1", modality="CT", instances=(last.instances[-1], *last.instances[:-1]))
    assert _told(last, rules) == _told(first, rules)


def _told(series: Series, rules: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    try:
        chosen = select(_study(series), _spec(**rules))
    except NoSeriesFits as exc:
        return exc.found, ()
    return chosen.why, tuple(instance.sop_instance_uid for instance in chosen.series.instances)


@pytest.mark.parametrize(
    "odd",
    [
        {"ImagePositionPatient": [1.0, 2.0]},
        {"ImageOrientationPatient": [1.0, 0.0, 0.0]},
        {"ImagePositionPatient": 7.0},
        {"ImageOrientationPatient": [0.0] * 6},
    ],
    ids=["a position of two numbers", "an orientation of three", "a position of one", "an orientation of noughts"],
)
def test_one_odd_series_does_not_stop_the_others(odd: dict[str, Any]) -> None:
    chosen = select(_study(_series("1.2.2", extra=[odd]), _series("1.2.9")), _spec())
    assert chosen.series.series_instance_uid == "1.2.9" or len(chosen.series.instances) == 12
