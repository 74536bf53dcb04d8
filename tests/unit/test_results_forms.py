"""The same lesions in every form of a segmentation: read again as they were, in as many objects as it takes."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from service.forms import OUTLINES, Profile, SegForm, Wanted
from service.results import seg, sr
from service.results.proof import prove
from service.results.reading import items
from service.types import Lesion
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import conclusion_of, read, report_of, segmented_of

FORMS = [
    SegForm(),
    SegForm(omit_empty_frames=False),
    SegForm(segments="class"),
    SegForm(type="labelmap"),
    SegForm(type="labelmap", compression="rle"),
    SegForm(type="labelmap", compression="jpeg-ls", segments="class"),
    SegForm(type="labelmap", compression="jpeg-ls", omit_empty_frames=False),
    SegForm(type="fractional"),
    SegForm(type="fractional", compression="rle", segments="class"),
    SegForm(maximum_frames=5),
    SegForm(type="labelmap", maximum_frames=1),
]
KINDS = [lambda phantom: phantom, phantoms.with_two_classes]


def whole(phantom: Phantom, *lesions: Lesion) -> NDArray[np.bool_]:
    """bool [slices, rows, columns] of lesions on the source grid."""
    mask = np.zeros(phantom.source.volume.spatial_shape, bool)
    for lesion in lesions:
        mask[lesion.box] |= lesion.mask
    return mask


def decoded(phantom: Phantom, made: seg.Segmented, number: int) -> NDArray[np.bool_]:
    """One segment on the source grid, by highdicom, from the images that its frames refer to."""
    segmentation = hd.seg.segread(io.BytesIO(made.object.content))
    pixels = segmentation.get_pixels_by_source_instance(
        [instance.sop_instance_uid for instance in phantom.source.ordered],
        segment_numbers=[number],
        assert_missing_frames_are_empty=True,
    )
    return np.asarray(pixels[..., 0] > 0)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.key)
def test_every_form_takes_frames_of_an_odd_number_of_pixels(
    tmp_path: Path, form: SegForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDCM, writing them as RLE, would end this process."""
    monkeypatch.setattr(phantoms, "SHAPE", (12, 37, 43))
    phantom = phantoms.make(tmp_path)
    segmented = segmented_of(phantom, form)
    key = form.key if form.segments == "finding" else OUTLINES
    report = report_of(phantom, segmented if key != OUTLINES else (), key)
    prove(phantom.making, conclusion_of(phantom), phantom.source, [*(it.object for it in segmented), report])


@pytest.mark.parametrize("orientation", [phantoms.AXIAL, phantoms.OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("kind", KINDS, ids=["one class", "two classes that overlap"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.key)
def test_every_form_holds_the_lesions_and_proves(
    tmp_path: Path, form: SegForm, kind: type, orientation: tuple[float, ...]
) -> None:
    phantom = kind(phantoms.make(tmp_path, orientation=orientation, spacing=(2.5, 0.8, 0.7)))
    segmented = segmented_of(phantom, form)
    key = form.key if form.segments == "finding" else OUTLINES
    report = report_of(phantom, segmented if key != OUTLINES else (), key)
    prove(phantom.making, conclusion_of(phantom), phantom.source, [*(it.object for it in segmented), report])
    held = []
    for made in segmented:
        dataset = read(made.object)
        assert (dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID) == (
            form.sop_class_uid,
            form.transfer_syntax_uid,
        )
        assert dataset.SegmentationType == form.type.upper()
        for number, segment in enumerate(made.segments, start=1):
            assert (decoded(phantom, made, number) == whole(phantom, *segment.lesions)).all()
            held += [lesion.number for lesion in segment.lesions]
    assert sorted(held) == [1, 2]


def test_frames_beyond_the_cap_make_another_object(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    slices = [int(lesion.mask.any(axis=(1, 2)).sum()) for lesion in phantom.lesions]
    together, apart = sum(slices), max(slices)
    assert [read(it.object).NumberOfFrames for it in segmented_of(phantom, SegForm(maximum_frames=together))] == [
        together
    ]
    parts = segmented_of(phantom, SegForm(maximum_frames=apart))
    assert [read(it.object).NumberOfFrames for it in parts] == slices
    assert (
        len({it.object.series_instance_uid for it in parts}) == len({it.object.sop_instance_uid for it in parts}) == 2
    )
    # A finding is never cut, however low the cap is.
    assert [read(it.object).NumberOfFrames for it in segmented_of(phantom, SegForm(maximum_frames=1))] == slices


def test_each_slice_has_its_frame_where_that_is_asked_for(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    for kind, frames in (("binary", 2 * phantoms.SHAPE[0]), ("labelmap", phantoms.SHAPE[0])):
        form = SegForm(type=kind, omit_empty_frames=False)  # type: ignore[arg-type]
        (made,) = segmented_of(phantom, form)
        assert read(made.object).NumberOfFrames == frames


def test_a_label_map_has_no_overlap(tmp_path: Path) -> None:
    phantom = phantoms.with_two_classes(phantoms.make(tmp_path))
    assert len(segmented_of(phantom, SegForm(type="labelmap"))) == 2
    assert len(segmented_of(phantom, SegForm())) == 1


def test_a_fraction_is_the_model_s_probability(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path, lesions=1)
    (lesion,) = phantom.lesions
    ramp = np.linspace(0.001, lesion.probability, int(lesion.mask.sum()), dtype=np.float32)
    likelihood = np.zeros(lesion.mask.shape, np.float32)
    likelihood[lesion.mask] = ramp
    phantom = replace(phantom, findings=(replace(lesion, likelihood=likelihood),))
    (made,) = segmented_of(phantom, SegForm(type="fractional"))
    dataset = read(made.object)
    assert (dataset.SegmentationFractionalType, dataset.MaximumFractionalValue) == ("PROBABILITY", 255)
    written = dataset.pixel_array[dataset.pixel_array > 0] / 255
    assert np.sort(written) == pytest.approx(ramp, abs=1 / 255)
    prove(
        phantom.making,
        conclusion_of(phantom),
        phantom.source,
        [made.object, report_of(phantom, (made,), made.object.form)],
    )


def test_a_report_without_segments_draws_every_slice(tmp_path: Path) -> None:
    phantom = phantoms.with_two_classes(phantoms.make(tmp_path))
    report = read(sr.report(phantom.making, conclusion_of(phantom), source=phantom.source, form=OUTLINES))
    assert not list(items(report, "121191")), "no segment is referred to"
    drawn = {
        image.ReferencedSOPInstanceUID
        for region in items(report, "111030")
        for image in region.ContentSequence[0].ReferencedSOPSequence
    }
    slices = np.flatnonzero(whole(phantom, *phantom.lesions).any(axis=(1, 2)))
    assert drawn == {phantom.source.ordered[index].sop_instance_uid for index in slices}


def test_same_input_gives_identical_bytes_in_every_form(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    for form in FORMS:
        first, again = ([it.object.content for it in segmented_of(phantom, form)] for _ in range(2))
        assert first == again


def test_forms_have_names_of_their_own() -> None:
    assert len({form.key for form in FORMS}) == len(FORMS)
    assert SegForm().key == "binary"


def test_a_profile_names_its_forms_the_one_asked_for_first() -> None:
    assert Profile(seg="none").forms == ()
    assert Profile().forms == (SegForm(),)
    assert [form.key for form in Profile(seg="labelmap", compression="jpeg-ls").forms] == ["labelmap-jpeg-ls", "binary"]
    for wrong in ({"seg": "binary", "compression": "rle"}, {"seg": "fractional", "compression": "jpeg-ls"}, {"sg": 1}):
        with pytest.raises(ValidationError):
            Profile.model_validate(wrong)


def test_what_any_destination_wants_is_made() -> None:
    wanted = Wanted.by([Profile(seg="labelmap"), Profile(seg="none", sr=False, capture="findings"), Profile(ko=True)])
    assert [form.key for form in wanted.forms] == ["binary", "labelmap"]
    assert (wanted.captures, wanted.gsps, wanted.ko) == (True, False, True)
    assert Wanted.by([]).forms == (SegForm(),)
