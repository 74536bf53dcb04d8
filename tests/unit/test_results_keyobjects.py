"""Key Object Selection: the images that show the findings best, each once, in the findings' order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage, KeyObjectSelectionDocumentStorage

from service.codes import derive_uid
from service.forms import Kind
from service.results import keyobjects
from service.types import Outcome
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import COPIED, conclusion_of, read


def written(phantom: Phantom) -> Dataset:
    """The phantom's Key Object Selection, read again."""
    return read(keyobjects.key_objects(phantom.making, conclusion_of(phantom), phantom.source))


def multi_frame(phantom: Phantom) -> Phantom:
    """The phantom whose slices are frames of one image, the last slice being the first frame."""
    uid, count = derive_uid("phantom multi-frame"), len(phantom.source.ordered)
    frames = tuple(
        replace(it, sop_instance_uid=uid, sop_class_uid=str(EnhancedCTImageStorage), frame=count - index)
        for index, it in enumerate(phantom.source.ordered)
    )
    series = replace(phantom.source.series, instances=frames)
    return replace(phantom, source=replace(phantom.source, ordered=frames, series=series))


def selected(dataset: Dataset) -> list[Dataset]:
    """What its IMAGE items refer to."""
    return [item.ReferencedSOPSequence[0] for item in dataset.ContentSequence if item.ValueType == "IMAGE"]


def test_it_points_at_the_key_images_in_the_findings_order(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    first, second = phantom.lesions
    turned = replace(phantom, findings=(replace(second, number=1), replace(first, number=2)))
    images = selected(written(turned))
    assert [it.ReferencedSOPInstanceUID for it in images] == [
        phantom.source.ordered[7].sop_instance_uid,
        phantom.source.ordered[3].sop_instance_uid,
    ]
    assert not any("ReferencedFrameNumber" in it for it in images)


def test_an_image_of_several_findings_is_in_it_once(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    first, second = phantom.lesions
    dataset = written(replace(phantom, findings=(first, second, replace(first, number=3))))
    assert len(selected(dataset)) == 2
    (study,) = dataset.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert study.StudyInstanceUID == phantom.making.study.study_instance_uid
    assert series.SeriesInstanceUID == phantom.source.series.series_instance_uid
    assert len(series.ReferencedSOPSequence) == 2


def test_frames_of_a_multi_frame_image_are_named(tmp_path: Path) -> None:
    phantom = multi_frame(phantoms.make(tmp_path))
    dataset = written(phantom)
    images = selected(dataset)
    assert [it.ReferencedFrameNumber for it in images] == [12 - 3, 12 - 7]
    assert {it.ReferencedSOPClassUID for it in images} == {EnhancedCTImageStorage}
    (image,) = dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert image.ReferencedSOPInstanceUID == phantom.source.ordered[0].sop_instance_uid
    assert image.ReferencedSOPClassUID == EnhancedCTImageStorage


def test_it_says_what_it_is_and_who_made_it(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    made = keyobjects.key_objects(phantom.making, conclusion_of(phantom), phantom.source)
    assert (made.kind, made.part) == (Kind.KO, 1)
    dataset = read(made)
    assert dataset.SOPClassUID == KeyObjectSelectionDocumentStorage
    assert dataset.Modality == "KO"
    assert dataset.ConceptNameCodeSequence[0].CodeMeaning == "Of Interest"
    named = (item for item in dataset.ContentSequence if "ConceptNameCodeSequence" in item)
    values = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in named}
    assert values["Device Observer Name"].TextValue == "Overread"
    assert values["Key Object Description"].TextValue == (
        "Research use only, not for diagnosis. Phantom lesions on CT: model phantom-lesion 1.2.0. "
        "Lesion 1 on slice 4 of 12; Lesion 2 on slice 8 of 12."
    )
    assert dataset.ContributingEquipmentSequence[0].ManufacturerModelName == "phantom-lesion"


def test_patient_and_study_are_the_sources(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    dataset, header = written(phantom), phantom.source.ordered[0].header
    assert [dataset.get(keyword) for keyword in COPIED] == [header.get(keyword) for keyword in COPIED]


def test_same_input_gives_identical_bytes_and_another_outcome_another_object(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    first, again = (
        keyobjects.key_objects(phantoms.make(tmp_path).making, conclusion_of(phantom), phantom.source) for _ in range(2)
    )
    assert first.content == again.content
    partial = keyobjects.key_objects(phantom.making, conclusion_of(phantom, Outcome.PARTIAL), phantom.source)
    assert partial.sop_instance_uid != first.sop_instance_uid


@pytest.mark.parametrize("name", ["Müller^Jürgen", "Grün^Ärger"])
def test_names_survive(tmp_path: Path, name: str) -> None:
    def edit(dataset: Dataset, _: int) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", name

    assert written(phantoms.make(tmp_path, edit=edit)).PatientName == name
