"""What our objects share: derived UIDs, completed headers, names in every character set, identical bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from service import __version__
from service.forms import Kind, SegForm
from service.results import copied, identity, seg, sr
from service.results.identity import Name
from service.types import Conclusion, Outcome, ResultObject
from tests import phantoms
from tests.phantoms import Phantom

Edit = Callable[[Dataset, int], None]
COPIED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
BINARY = SegForm()


def conclusion_of(phantom: Phantom, outcome: Outcome | None = None) -> Conclusion:
    """What the phantom's objects have to say."""
    found = Outcome.FINDINGS if phantom.findings else Outcome.NO_FINDINGS
    return Conclusion(outcome=outcome or found, findings=phantom.findings)


def segmented_of(phantom: Phantom, form: SegForm = BINARY) -> tuple[seg.Segmented, ...]:
    """The phantom's Segmentations."""
    return seg.segmentations(phantom.source, phantom.lesions, phantom.making, form, outcome=Outcome.FINDINGS)


def objects_of(phantom: Phantom, form: SegForm = BINARY) -> tuple[ResultObject, ResultObject]:
    """The phantom's SEG and SR."""
    (segmented,) = segmented_of(phantom, form)
    return segmented.object, report_of(phantom, (segmented,), form.key)


def report_of(phantom: Phantom, segmented: Sequence[seg.Segmented] = (), form: str = "") -> ResultObject:
    """The phantom's SR; with the SEG, where it has lesions."""
    return sr.report(phantom.making, conclusion_of(phantom), source=phantom.source, segmented=segmented, form=form)


def read(made: ResultObject) -> Dataset:
    return dcmread(io.BytesIO(made.content))


def test_same_input_gives_identical_bytes(tmp_path: Path) -> None:
    first, again = (objects_of(phantoms.make(tmp_path)) for _ in range(2))
    assert [made.content for made in first] == [made.content for made in again]


def test_uids_differ_where_the_making_differs_and_only_there(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    making, source = phantom.making, phantom.source
    model = making.model
    others = [
        replace(making, model=replace(model, spec=model.spec.model_copy(update={"title": "Another setting"}))),
        replace(making, model=replace(model, weights_sha256="1" * 64)),
        replace(making, model=replace(model, spec=model.spec.model_copy(update={"version": "1.2.1"}))),
        replace(making, model=replace(model, spec=model.spec.model_copy(update={"name": "other-lesion"}))),
    ]
    found = Outcome.FINDINGS
    names = [
        *(Name(kind=kind, outcome=found) for kind in Kind),
        Name(kind=Kind.SEG, outcome=found, form="binary"),
        Name(kind=Kind.SEG, outcome=found, form="binary", part=2),
        Name(kind=Kind.SR, outcome=found, supersedes="1.2.3"),
        Name(kind=Kind.SR, outcome=Outcome.FAILED),  # a report that says something else is another object
    ]
    uids = {identity.instance_uid(each, source, name) for each in (making, *others) for name in names}
    assert len(uids) == 5 * len(names)
    later = replace(making, backend="another device", made_at=making.made_at.replace(year=2030))
    assert identity.instance_uid(later, source, names[0]) == identity.instance_uid(making, source, names[0])
    assert len({identity.series_uid(making, source, name) for name in names}) == len(Kind) + 2
    assert identity.series_uid(others[1], source, names[1]) != identity.series_uid(making, source, names[1])
    assert identity.device_uid(others[1].model) != identity.device_uid(model)


def test_uids_change_with_the_sources_but_not_with_their_order(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    series = phantom.source.series
    mixed = replace(series, instances=tuple(sorted(series.instances, key=lambda i: i.sop_instance_uid)))
    fewer = replace(series, instances=series.instances[1:])
    name = Name(kind=Kind.SR, outcome=Outcome.FINDINGS)
    whole = identity.instance_uid(phantom.making, replace(phantom.source, series=series), name)
    assert identity.instance_uid(phantom.making, replace(phantom.source, series=mixed), name) == whole
    assert identity.instance_uid(phantom.making, replace(phantom.source, series=fewer), name) != whole


def test_tracking_uid_is_the_place_and_not_the_rank(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    place = phantom.lesions[0].centroid_lps_mm
    near = (place[0] + 1e-4, place[1], place[2])
    far = (place[0] + 3, place[1], place[2])
    uids = [identity.tracking_uid(phantom.source.series, "a", 0, where) for where in (place, near, far)]
    assert uids[0] == uids[1] != uids[2]
    assert identity.tracking_uid(phantom.source.series, "b", 0, place) != uids[0]


def test_tracking_uids_of_two_classes_in_one_place_differ(tmp_path: Path) -> None:
    series = phantoms.make(tmp_path).source.series
    uids = {identity.tracking_uid(series, "a", channel, where) for channel in range(3) for where in ((1, 2, 3), None)}
    assert len(uids) == 6


def test_tracking_uids_of_the_first_class_are_those_that_were_given_before_there_were_others(tmp_path: Path) -> None:
    series = phantoms.make(tmp_path).source.series
    given = identity.tracking_uid(series, "ct-liver-lesion", 0, (-12.4, 30.6, 99.0))
    assert given == "2.25.230824812389486738603521071425917218976"


def test_tracking_uids_of_what_has_no_place_hold_for_the_images(tmp_path: Path) -> None:
    series = phantoms.make(tmp_path).source.series
    fewer = replace(series, instances=series.instances[1:])
    uids = [identity.tracking_uid(each, "a", 0, None) for each in (series, series, fewer)]
    assert uids[0] == uids[1] != uids[2]


def test_objects_carry_the_patient_the_study_and_their_makers(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    source = phantom.source.series.header
    for dataset in map(read, objects_of(phantom)):
        for keyword in COPIED:
            assert dataset[keyword].value == source[keyword].value, keyword
        assert dataset.Manufacturer == dataset.ManufacturerModelName == "Overread"
        assert dataset.SoftwareVersions == __version__
        assert dataset.SeriesDescription == "Phantom lesions on CT (research)"
        assert (dataset.ContentDate, dataset.ContentTime) == ("20260301", "123015")
        (model,) = dataset.ContributingEquipmentSequence
        assert model.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert (model.ManufacturerModelName, model.SoftwareVersions) == ("phantom-lesion", "1.2.0")
        assert model.DeviceUID == identity.device_uid(phantom.making.model)
        assert dataset.file_meta.ImplementationVersionName == "OVERREAD_0.1"


def test_algorithm_is_named_alike_in_seg_sr_and_equipment(tmp_path: Path) -> None:
    segmentation, report = map(read, objects_of(phantoms.make(tmp_path)))
    (algorithm,) = segmentation.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    texts = {
        item.ConceptNameCodeSequence[0].CodeValue: item.get("TextValue")
        for item in report.ContentSequence[-2].ContentSequence[0].ContentSequence
    }
    assert algorithm.AlgorithmName == texts["111001"] == "phantom-lesion"
    assert algorithm.AlgorithmVersion == texts["111003"] == "1.2.0"


def test_a_long_title_still_fits_and_keeps_its_mark() -> None:
    assert identity._series_description("x" * 64) == "x" * 53 + " (research)"


@pytest.mark.filterwarnings("ignore:In(valid|correct) value")
@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO-IR 100", "Müller^Jörg"),  # as some devices spell it
        ("ISO_IR 192", "Müller^Jörg=李^小明"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
def test_names_survive_in_their_character_set(tmp_path: Path, character_set: str | list[str], name: str) -> None:
    def edit(dataset: Dataset, _: int) -> None:
        dataset.SpecificCharacterSet = character_set
        dataset.PatientName = name

    phantom = phantoms.make(tmp_path, edit=edit)
    stored = phantom.source.series.header.PatientName.original_string
    for dataset in map(read, objects_of(phantom)):
        assert str(dataset.PatientName) == name
        # Written as the standard spells it.
        assert dataset.SpecificCharacterSet == ("ISO_IR 100" if character_set == "ISO-IR 100" else character_set)
        assert dataset.PatientName.original_string == stored


def test_words_of_ours_beyond_ascii_make_it_utf_8(tmp_path: Path) -> None:
    def edit(dataset: Dataset, _: int) -> None:
        dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        dataset.PatientName = "Yamada^Tarou=山田^太郎"

    phantom = phantoms.make(tmp_path, edit=edit)
    conclusion = Conclusion(outcome=Outcome.FAILED, reason="kaputt: Größe")
    report = sr.report(phantom.making, conclusion, source=phantom.source)
    dataset = read(report)
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert str(dataset.PatientName) == "Yamada^Tarou=山田^太郎"
    assert "Größe" in dataset.ContentSequence[-1].ContentSequence[-1].TextValue


def _without(*keywords: str) -> Edit:
    def edit(dataset: Dataset, _: int) -> None:
        for keyword in keywords:
            delattr(dataset, keyword)

    return edit


def _own_frame(dataset: Dataset, index: int) -> None:
    dataset.FrameOfReferenceUID = f"1.2.3.{index}"


@pytest.mark.parametrize(
    "edit",
    [
        _without("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"),
        _without("FrameOfReferenceUID"),
        _without("SliceThickness", "StudyDate", "StudyTime", "ReferringPhysicianName"),
        _own_frame,
    ],
)
def test_odd_headers_are_completed_in_our_copies_only(tmp_path: Path, edit: Edit) -> None:
    phantom = phantoms.make(tmp_path, edit=edit)
    before = [instance.header.to_json() for instance in phantom.source.ordered]
    segmentation, report = map(read, objects_of(phantom))
    assert [instance.header.to_json() for instance in phantom.source.ordered] == before
    assert segmentation.FrameOfReferenceUID == phantom.source.volume.frame_of_reference_uid
    for dataset in (segmentation, report):
        assert "PatientID" in dataset
        assert "AccessionNumber" in dataset


def _as_read(**values: str) -> Dataset:
    """A header with values as a file has them: read, not set, so not checked yet."""
    header = Dataset()
    for keyword, value in values.items():
        tag = Tag(keyword)
        header[tag] = RawDataElement(tag, dictionary_VR(keyword), len(value), value.encode(), 0, False, True)
    return header


def test_values_that_the_standard_does_not_allow_become_empty() -> None:
    header = _as_read(PatientBirthDate="1970", PatientSex="W", StudyDate="20261399")
    copy = copied.complete_header(header)
    assert (copy.PatientBirthDate, copy.PatientSex, copy.StudyDate) == ("", "", "")
    assert header.PatientSex == "W"


def test_values_that_cannot_be_decoded_are_left_out() -> None:
    copy = copied.complete_header(_as_read(Rows="?", PatientID="P-1"))  # a US of one byte
    assert "Rows" not in copy
    assert copy.PatientID == "P-1"


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_a_header_full_of_faults_still_gets_its_objects(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    for instance in phantom.source.ordered:
        instance.header.update(_as_read(SliceThickness="thin", PatientID="P" * 80, StudyID="S" * 40, PatientAge="old"))
    for dataset in map(read, objects_of(phantom)):
        assert dataset.PatientID == "P" * 80
    unsuitable = sr.report(phantom.making, Conclusion(outcome=Outcome.UNSUITABLE), source=None)
    assert read(unsuitable).StudyID == "S" * 40
