"""Secondary Captures: the pictures pixel for pixel, marked as what they are, in one series, for every outcome."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from service.forms import Kind
from service.results import capture, secondary, sheet
from service.results.identity import DISCLAIMER
from service.types import Conclusion, Outcome, Picture, ResultObject
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import COPIED, conclusion_of, read
from tests.unit.test_results_keyobjects import multi_frame


def pictures_of(phantom: Phantom) -> list[Picture]:
    """The sheet, and a picture of each of the phantom's findings."""
    pictures = [capture.picture(phantom.source, it, phantom.making.model.spec.title) for it in phantom.findings]
    return [sheet.summary(phantom.making, conclusion_of(phantom), phantom.source, pictures), *pictures]


def captures_of(phantom: Phantom) -> tuple[ResultObject, ...]:
    """The phantom's Secondary Captures."""
    first, *others = pictures_of(phantom)
    return secondary.captures(phantom.making, conclusion_of(phantom), phantom.source, first, others)


def test_the_pixels_are_the_pictures(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    pictures = pictures_of(phantom)
    for made, picture in zip(captures_of(phantom), pictures, strict=True):
        dataset = read(made)
        pixels = np.asarray(Image.open(io.BytesIO(picture.png)))
        assert dataset.file_meta.TransferSyntaxUID == made.transfer_syntax_uid == ExplicitVRLittleEndian
        assert (dataset.PhotometricInterpretation, dataset.BitsStored, dataset.SamplesPerPixel) == ("RGB", 8, 3)
        np.testing.assert_array_equal(dataset.pixel_array, pixels)
        assert len(made.content) < 2.9e6


def test_an_odd_number_of_bytes_is_padded(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    canvas = Image.new("RGB", (3, 5), (1, 2, 3))
    odd = Picture(finding=0, png=sheet.encoded(canvas))
    (made,) = secondary.captures(phantom.making, conclusion_of(phantom), phantom.source, odd, ())
    assert len(read(made).PixelData) == 46
    np.testing.assert_array_equal(read(made).pixel_array, np.asarray(canvas))


def test_they_are_one_series_with_the_sheet_first(tmp_path: Path) -> None:
    made = captures_of(phantoms.make(tmp_path))
    assert [(it.kind, it.part) for it in made] == [(Kind.SC, 1), (Kind.SC, 2), (Kind.SC, 3)]
    assert len({it.series_instance_uid for it in made}) == 1
    assert len({it.sop_instance_uid for it in made}) == 3
    assert [read(it).InstanceNumber for it in made] == [1, 2, 3]
    assert {it.sop_class_uid for it in made} == {SecondaryCaptureImageStorage}


def test_they_are_marked_as_what_they_are(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    for dataset in map(read, captures_of(phantom)):
        assert dataset.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert dataset.BurnedInAnnotation == "YES"
        assert dataset.ConversionType == "WSD"
        assert dataset.DateOfSecondaryCapture == dataset.ContentDate == "20260301"
        assert dataset.ImageComments.startswith(DISCLAIMER)
        assert dataset.SeriesDescription == "Phantom lesions on CT (research)"
        assert "phantom-lesion 1.2.0" in dataset.DerivationDescription
        # Nobody is to measure on it, turn it, or take it for a paired organ's.
        assert not {"PixelSpacing", "NominalScannedPixelSpacing", "FrameOfReferenceUID"} & {
            it.keyword for it in dataset
        }
        assert not dataset.PatientOrientation
        assert not dataset.Laterality


def test_they_refer_to_the_images_that_they_show(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    keys = [phantom.source.ordered[finding.key_slice].sop_instance_uid for finding in phantom.findings]
    seen = [
        [image.ReferencedSOPInstanceUID for image in dataset.SourceImageSequence]
        for dataset in map(read, captures_of(phantom))
    ]
    assert seen == [keys, keys[:1], keys[1:]]
    purpose = read(captures_of(phantom)[1]).SourceImageSequence[0].PurposeOfReferenceCodeSequence[0]
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("121322", "DCM")


def test_frames_of_a_multi_frame_image_are_named(tmp_path: Path) -> None:
    made = captures_of(multi_frame(phantoms.make(tmp_path)))
    images = [image for it in made for image in read(it).SourceImageSequence]
    assert [image.ReferencedFrameNumber for image in images] == [9, 5, 9, 5]
    assert {image.ReferencedSOPClassUID for image in images} == {EnhancedCTImageStorage}


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_its_sheet(tmp_path: Path, outcome: Outcome) -> None:
    phantom = phantoms.make(tmp_path)
    source = None if outcome is Outcome.UNSUITABLE else phantom.source
    conclusion = Conclusion(outcome=outcome, reason="a reason")
    picture = sheet.summary(phantom.making, conclusion, source, ())
    (made,) = secondary.captures(phantom.making, conclusion, source, picture, ())
    dataset, header = read(made), phantom.making.study.series[0].header
    assert "SourceImageSequence" not in dataset
    assert [dataset.get(keyword) for keyword in COPIED] == [header.get(keyword) for keyword in COPIED]


def test_a_study_of_an_unknown_class_has_its_sheet(tmp_path: Path) -> None:
    def edit(dataset: Dataset, _: int) -> None:
        dataset.SOPClassUID = "1.2.3.4"
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Müller^Jürgen"

    phantom = phantoms.make(tmp_path, edit=edit)
    conclusion = Conclusion(outcome=Outcome.UNSUITABLE, reason="no series that the model takes")
    picture = sheet.summary(phantom.making, conclusion, None, ())
    (made,) = secondary.captures(phantom.making, conclusion, None, picture, ())
    assert read(made).PatientName == "Müller^Jürgen"
    assert read(made).StudyDescription == "CT phantom"


def test_same_input_gives_identical_bytes(tmp_path: Path) -> None:
    first, again = (captures_of(phantoms.make(tmp_path)) for _ in range(2))
    assert [it.content for it in first] == [it.content for it in again]


def test_a_model_named_in_other_letters_is_written(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    making = phantoms.with_spec(phantom.making, title="肝臓の病変")
    first, *others = pictures_of(replace(phantom, making=making))
    dataset = read(secondary.captures(making, conclusion_of(phantom), phantom.source, first, others)[0])
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert dataset.ImageComments.endswith("肝臓の病変")
