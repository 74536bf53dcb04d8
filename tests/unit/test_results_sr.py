"""Every answer is a report: with findings, without any, unsuitable and failed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import Comprehensive3DSRStorage
from scipy import ndimage

from service import codes
from service.forms import OUTLINES
from service.results import sr
from service.results.groups import outline
from service.results.proof import prove
from service.types import Conclusion, Exclusion, Instance, Outcome, Report, ResultObject, Series
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import conclusion_of, objects_of, read, report_of


def items(dataset: Dataset, concept: str) -> Iterator[Dataset]:
    """Content items of a concept name, anywhere below."""
    for item in dataset.get("ContentSequence", ()):
        if item.ConceptNameCodeSequence[0].CodeValue == concept:
            yield item
        yield from items(item, concept)


def texts(dataset: Dataset) -> str:
    """All comments as one text."""
    return "\n".join(item.TextValue for item in items(dataset, "121106"))


def answer(
    phantom: Phantom,
    outcome: Outcome,
    *,
    reason: str = "",
    causes: tuple[str, ...] = (),
    excluded: tuple[Exclusion, ...] = (),
) -> Dataset:
    """The report of an answer without findings."""
    conclusion = Conclusion(outcome=outcome, reason=reason, causes=causes, excluded=excluded)
    made = sr.report(phantom.making, conclusion, source=None if outcome is Outcome.UNSUITABLE else phantom.source)
    return read(made)


def code(item: Dataset) -> str:
    return str(item.ConceptCodeSequence[0].CodeValue)


def test_a_finding_is_reported_with_all_its_numbers(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    segmentation, report = map(read, objects_of(phantom))
    assert report.SOPClassUID == Comprehensive3DSRStorage
    assert (report.VerificationFlag, report.CompletionFlag) == ("UNVERIFIED", "COMPLETE")
    groups = list(items(report, "125007"))
    assert [group.ContentTemplateSequence[0].TemplateIdentifier for group in groups] == ["1411", *["1410"] * 4] * 2
    for number, finding in enumerate(phantom.lesions):
        ours = groups[5 * number : 5 * number + 5]
        for group in ours:
            assert finding.tracking_uid == next(items(group, "112040")).UID
            assert code(next(items(group, "121071"))) == "52988006"
            assert code(next(items(group, "363698007"))) == "10200004"
            assert next(items(group, "111001")).TextValue == "phantom-lesion"
        numbers = {
            item.ConceptNameCodeSequence[0].CodeValue: (
                float(item.MeasuredValueSequence[0].NumericValue),
                item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
            )
            for group in ours
            for item in group.ContentSequence
            if item.ValueType == "NUM"
        }
        expected = {
            "118565006": (finding.volume_ml, "ml"),
            "111012": (finding.probability * 100, "%"),
            "112031": (finding.mean, "[hnsf'U]"),
            "103339001": (finding.long_axis_mm, "mm"),
            "103340004": (finding.short_axis_mm, "mm"),
        }
        for concept, (value, unit) in expected.items():
            assert numbers[concept][0] == pytest.approx(value, rel=1e-4)
            assert numbers[concept][1] == unit
        segment = next(items(ours[0], "121191")).ReferencedSOPSequence[0]
        assert segment.ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
        assert segment.ReferencedSegmentNumber == finding.number


def test_coordinates_stand_on_the_key_slice(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    report = read(objects_of(phantom)[1])
    for finding, (outer, long_axis, short_axis, again) in zip(
        phantom.lesions, np.reshape(list(items(report, "111030")), (2, 4)), strict=True
    ):
        key_image = phantom.source.ordered[finding.key_slice].sop_instance_uid
        for region in (outer, long_axis, short_axis, again):
            assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == key_image
        points = np.reshape(outer.GraphicData, (-1, 2))
        assert again.GraphicData == outer.GraphicData
        _, rows, columns = finding.box
        assert (points[0] == points[-1]).all()
        assert (points >= (columns.start, rows.start)).all()
        assert (points <= (columns.stop, rows.stop)).all()
        for region, line in ((long_axis, finding.long_axis), (short_axis, finding.short_axis)):
            ends = [(column + 0.5, row + 0.5) for _, row, column in line]
            assert np.reshape(region.GraphicData, (2, 2)) == pytest.approx(np.array(ends))


def numbers_of(group: Dataset) -> dict[str, tuple[float, str]]:
    """Value and unit of each number of a group, by the concept."""
    return {
        item.ConceptNameCodeSequence[0].CodeValue: (
            float(item.MeasuredValueSequence[0].NumericValue),
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
        )
        for item in group.ContentSequence
        if item.ValueType == "NUM"
    }


def test_classes_are_told_apart(tmp_path: Path) -> None:
    report = read(objects_of(phantoms.with_two_classes(phantoms.make(tmp_path)))[1])
    groups = list(items(report, "125007"))
    assert [
        tuple(code(next(items(group, concept))) for concept in ("121071", "276214006", "363698007")) for group in groups
    ] == [("52988006", "49755003", "10200004")] * 5 + [("27925004", "91723000", "39607008")] * 5
    assert "It looks for: Lesion (Liver), Nodule (Lung)." in texts(report)


def test_the_mean_is_reported_of_ct_only(tmp_path: Path) -> None:
    for modality, said in (("CT", True), ("MR", False)):
        report = read(objects_of(phantoms.make(tmp_path / modality, modality=modality))[1])
        assert bool(list(items(report, "112031"))) is said
        assert ("[hnsf'U]" in str(report)) is said
        procedure = code(next(items(report, "121058")))
        assert procedure == {"CT": "25045-6", "MR": "25056-3"}[modality]


def test_a_box_is_a_closed_rectangle_on_the_slice_in_its_middle(tmp_path: Path) -> None:
    phantom = phantoms.with_marks(phantoms.make(tmp_path, spacing=(2.5, 0.8, 0.7)))
    report = read(report_of(phantom))
    groups = list(items(report, "125007"))
    assert [group.ContentTemplateSequence[0].TemplateIdentifier for group in groups] == ["1410"] * 3
    finding, group = phantom.findings[0], groups[0]
    (region,) = items(group, "111030")
    # The first ellipsoid has slices 1 to 5, rows 6 to 18 and columns 10 to 18 of the phantom.
    assert region.GraphicType == "POLYLINE"
    assert np.reshape(region.GraphicData, (-1, 2)).tolist() == [[10, 6], [19, 6], [19, 19], [10, 19], [10, 6]]
    reference = region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert reference == phantom.source.ordered[3].sop_instance_uid
    assert numbers_of(group) == {
        "103355008": (pytest.approx(9 * 0.7), "mm"),
        "121207": (pytest.approx(13 * 0.8), "mm"),
        "131197000": (pytest.approx(5 * 2.5), "mm"),
        "111012": (85, "%"),
    }
    assert finding.tracking_uid == next(items(group, "112040")).UID
    assert next(items(group, "112039")).TextValue == "Lesion 1"
    assert next(items(group, "111001")).TextValue == "phantom-lesion"


def test_a_point_has_coordinates_and_no_size(tmp_path: Path) -> None:
    phantom = phantoms.with_marks(phantoms.make(tmp_path))
    group = list(items(read(report_of(phantom)), "125007"))[-1]
    (region,) = items(group, "111030")
    assert region.GraphicType == "POINT"
    assert list(region.GraphicData) == [31.0, 8.75], "a pixel's centre lies at a half"
    reference = region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert reference == phantom.source.ordered[5].sop_instance_uid
    assert list(numbers_of(group)) == ["111012"]
    assert [code(next(items(group, concept))) for concept in ("121071", "363698007")] == ["27925004", "39607008"]


def test_a_box_on_a_single_slice_has_no_depth(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    flat = replace(phantom, findings=(phantoms.mark_of(phantom.source, (4, 5, 5), (4, 15, 10), 1),))
    (group,) = items(read(report_of(flat)), "125007")
    assert sorted(numbers_of(group)) == ["103355008", "111012", "121207"]


def test_a_judgement_is_a_coded_finding_without_coordinates(tmp_path: Path) -> None:
    """In the Qualitative Evaluations: a measurement group without coordinates is what OHIF stumbles over."""
    phantom = phantoms.with_judgements(phantoms.make(tmp_path, modality="MR"))
    report = read(report_of(phantom))
    assert not list(items(report, "125007"))
    assert "SCOORD" not in str(report)
    (evaluations,) = items(report, "C0034375")
    said = [item for item in evaluations.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "121071"]
    assert [code(item) for item in said] == ["393564001", "1156424001"]
    for item, finding in zip(said, phantom.findings, strict=True):
        certainty, unit = numbers_of(item)["111012"]
        assert certainty == pytest.approx(finding.probability * 100)
        assert unit == "%"
        assert code(next(items(item, "363698007"))) == "12738006"
        assert finding.tracking_uid == next(items(item, "112040")).UID
        assert next(items(item, "111001")).TextValue == "phantom-lesion"
        assert next(items(item, "111003")).TextValue == "1.2.0"
        (image,) = items(item, "121112")
        assert image.RelationshipType == "INFERRED FROM"
        key_image = phantom.source.ordered[finding.key_slice].sop_instance_uid
        assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == key_image
    assert code(next(items(report, "111017"))) == "111242"
    assert "Glioma 1 (Brain), 85 %. Slice 8: said of the series; this image decided." in texts(report)


def test_an_image_s_judgement_is_said_of_it_alone(tmp_path: Path) -> None:
    phantom = phantoms.with_judgements(phantoms.make(tmp_path))
    said = phantoms.judgement_of(phantom.source, 1, phantoms.GLIOMA_CLASS, level="image", key_slice=3)
    report = read(report_of(replace(phantom, findings=(said,))))
    assert "Slice 4: said of this image alone." in texts(report)


def test_a_classification_that_finds_nothing_says_what_it_looked_for(tmp_path: Path) -> None:
    phantom = replace(phantoms.with_judgements(phantoms.make(tmp_path)), findings=())
    report = read(report_of(phantom))
    assert code(next(items(report, "111017"))) == "111241"
    assert not list(items(report, "121071"))
    assert "It looks for: Glioma (Brain), Meningioma (Brain)." in texts(report), "and not for what is normal"


@pytest.mark.parametrize(
    ("outcome", "summary", "status", "completion"),
    [
        (Outcome.NO_FINDINGS, "111241", "111222", "COMPLETE"),
        (Outcome.UNSUITABLE, "111245", "111225", "COMPLETE"),
        (Outcome.FAILED, "111245", "111224", "PARTIAL"),
    ],
)
def test_an_answer_without_findings(
    tmp_path: Path, outcome: Outcome, summary: str, status: str, completion: str
) -> None:
    phantom = phantoms.make(tmp_path)
    excluded = (Exclusion(series_instance_uid="1.2.3", reason="a localizer"),)
    report = answer(phantom, outcome, reason="because of this", excluded=excluded)
    assert code(next(items(report, "111017"))) == summary
    assert code(next(items(report, "111064"))) == status
    assert report.CompletionFlag == completion
    assert not list(items(report, "125007"))
    said = texts(report)
    for words in (
        "Research use only, not for diagnosis",
        "phantom-lesion 1.2.0",
        "because of this",
        "Series 1.2.3 was left out: a localizer",
    ):
        assert words in said


def test_findings_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path, lesions=1)
    made = sr.report(phantom.making, replace(conclusion_of(phantom), dropped=7), source=phantom.source)
    assert "7 more finding(s)" in texts(read(made))
    assert read(made).CompletionFlag == "PARTIAL"


def test_evidence_is_the_sources_and_the_segmentation(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    segmentation, report = map(read, objects_of(phantom))
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == report.StudyInstanceUID
    images, ours = study.ReferencedSeriesSequence
    assert images.SeriesInstanceUID == phantom.source.series.series_instance_uid
    assert len(images.ReferencedSOPSequence) == len(phantom.source.ordered)
    assert ours.SeriesInstanceUID == segmentation.SeriesInstanceUID
    assert ours.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
    library = next(items(report, "126200"))
    assert len([item for item in library.ContentSequence if item.ValueType == "IMAGE"]) == len(phantom.source.ordered)


def test_a_study_without_images_is_answered_too(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    header = Dataset()
    header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    header.SOPClassUID, header.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1", "1.2.3.4.5"  # a private class
    header.PatientName, header.PatientID = "Nobody^Seen", "P-2"
    instance = Instance(
        sop_instance_uid="1.2.3.4.5",
        sop_class_uid=header.SOPClassUID,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        path=tmp_path / "none.dcm",
        header=header,
    )
    making = phantoms.with_series(
        phantom.making, Series(series_instance_uid="1.2.3.4", modality="OT", instances=(instance,))
    )
    report = answer(replace(phantom, making=making), Outcome.UNSUITABLE, reason="no images")
    assert (report.PatientName, report.PatientID) == ("Nobody^Seen", "P-2")
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert evidence.ReferencedSOPClassUID == header.SOPClassUID
    assert code(next(items(report, "121058"))) == "363679005"
    assert not list(items(report, "111028"))


@pytest.mark.parametrize(
    ("value", "scheme", "reported"),
    [("25045-6", "LN", "25045-6"), ("CTABD", "99X", "25045-6"), ("446315002", "SCT", "446315002")],
)
def test_procedure_is_the_sources_if_the_context_group_has_it(
    tmp_path: Path, value: str, scheme: str, reported: str
) -> None:
    def edit(dataset: Dataset, _: int) -> None:
        procedure = Dataset()
        procedure.CodeValue, procedure.CodingSchemeDesignator, procedure.CodeMeaning = value, scheme, "a procedure"
        dataset.ProcedureCodeSequence = Sequence([procedure])

    report = answer(phantoms.make(tmp_path, edit=edit), Outcome.NO_FINDINGS)
    assert code(next(items(report, "121058"))) == reported


@pytest.mark.parametrize(
    ("area", "expected"),
    [
        (["#"], [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]),
        (["##", "# "], [(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2), (0, 0)]),
        (["###", "# #", "###"], [(0, 0), (3, 0), (3, 3), (0, 3), (0, 0)]),  # a hole is no border
        (["# ", " #"], [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]),  # corners do not hold together
        (["##  ", "  ##", "  ##"], [(2, 1), (4, 1), (4, 3), (2, 3), (2, 1)]),  # the largest part
    ],
)  # fmt: skip
def test_outline_follows_the_pixels_edges(area: list[str], expected: list[tuple[int, int]]) -> None:
    mask = np.array([[character == "#" for character in row] for row in area])
    assert [tuple(point) for point in outline(mask)] == expected


def _enclosed(points: NDArray[np.float64]) -> float:
    """Area within a closed polygon, in pixels."""
    x, y = points[:-1].T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def test_outline_takes_a_bay_for_outside_even_where_its_mouth_is_a_corner() -> None:
    mask = np.array([[character == "#" for character in row] for row in ("####", "#  #", "# # ", "### ")])
    assert _enclosed(outline(mask)) == mask.sum()


def test_outline_encloses_the_area_without_holes() -> None:
    random = np.random.default_rng(3)
    for _ in range(50):
        mask = random.random((9, 9)) < 0.6
        labels, count = ndimage.label(mask)
        largest = labels == 1 + int(np.argmax(ndimage.sum_labels(mask, labels, range(1, count + 1))))
        # What is held together by edges is bordered by what is held together by corners.
        filled = ndimage.binary_fill_holes(largest, structure=np.ones((3, 3), bool))
        assert _enclosed(outline(mask)) == filled.sum()


def test_a_report_names_the_one_that_it_supersedes(tmp_path: Path) -> None:
    """The last one of another content, in its own form; a report of the same content again is the same object."""
    phantom = phantoms.make(tmp_path)
    first = report_of(phantom, form=OUTLINES)
    other = phantoms.with_spec(phantom.making, version="0.9")  # what an earlier analysis was made of
    before = [
        sr.report(other, conclusion_of(phantom), source=phantom.source, form=form) for form in (OUTLINES, "labelmap")
    ]
    earlier = [_as_earlier(made, 0) for made in before]
    second = report_of(replace(phantom, making=replace(phantom.making, earlier=tuple(earlier))), form=OUTLINES)
    assert (second.base, second.sop_instance_uid) == (first.base, second.sop_instance_uid)
    assert second.sop_instance_uid != first.sop_instance_uid, "it says something else: one UID, one content"
    assert predecessors(second) == [before[0].sop_instance_uid]
    # The same once more, after itself: its predecessor is still the one before.
    after = (*earlier, _as_earlier(second, 1))
    again = report_of(replace(phantom, making=replace(phantom.making, earlier=after)), form=OUTLINES)
    assert again.content == second.content
    prove(replace(phantom.making, earlier=after), conclusion_of(phantom), phantom.source, (again,))
    assert predecessors(first) == []


def _as_earlier(made: ResultObject, revision: int) -> Report:
    return Report(
        revision=revision,
        form=made.form,
        base=made.base,
        sop_class_uid=made.sop_class_uid,
        series_instance_uid=made.series_instance_uid,
        sop_instance_uid=made.sop_instance_uid,
    )


def predecessors(made: ResultObject) -> list[str]:
    return [
        str(reference.ReferencedSOPInstanceUID)
        for study in read(made).get("PredecessorDocumentsSequence", ())
        for series in study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    ]


def test_why_nothing_was_analysed_is_said_in_words_and_code(tmp_path: Path) -> None:
    words = "slice spacing 12.00 mm, the model takes 0.3 to 5 mm"
    report = answer(phantoms.make(tmp_path), Outcome.UNSUITABLE, reason=words, causes=("slice-spacing", "modality"))
    assert words in texts(report)
    assert [code(item) for item in items(report, codes.REASON.value)] == ["SLICE_SPACING", "MODALITY"]
    (scheme,) = report.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == codes.OWN_SCHEME


@pytest.mark.parametrize("found", [True, False])
def test_a_partial_answer_says_so(tmp_path: Path, found: bool) -> None:
    phantom = phantoms.make(tmp_path)
    phantom = phantom if found else replace(phantom, findings=())
    conclusion = replace(conclusion_of(phantom, Outcome.PARTIAL), reason="one series was torn", causes=("geometry",))
    report = read(sr.report(phantom.making, conclusion, source=phantom.source))
    summary = codes.NOT_ALL_WITH_FINDINGS if found else codes.NOT_ALL_NO_FINDINGS
    assert code(next(items(report, "111017"))) == summary.value
    assert code(next(items(report, "111064"))) == codes.PARTIALLY_SUCCEEDED.value
    assert report.CompletionFlag == "PARTIAL"
