"""Each destination gets what its profile wants, or the next best that it accepts; and that is said."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    JPEGLSLossless,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from service.codes import LABEL_MAP_SEGMENTATION_STORAGE
from service.forms import OUTLINES, Kind, Profile
from service.results.choice import Accepts, Choice, choose, everything, preview, proposed, stands_in
from service.types import FrozenAnswer, FrozenObject, Outcome

SEG, LABELMAP, SR, SC, PR, KO = (
    SegmentationStorage,
    LABEL_MAP_SEGMENTATION_STORAGE,
    Comprehensive3DSRStorage,
    SecondaryCaptureImageStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
)
CLASS = {Kind.SEG: SEG, Kind.SR: SR, Kind.SC: SC, Kind.PR: PR, Kind.KO: KO}


def made(kind: Kind, form: str = "", part: int = 1) -> FrozenObject:
    packed = form.startswith("labelmap") and kind is Kind.SEG
    return FrozenObject(
        kind=kind,
        form=form,
        part=part,
        sop_class_uid=LABELMAP if packed else CLASS[kind],
        transfer_syntax_uid=JPEGLSLossless if packed else ExplicitVRLittleEndian,
        series_instance_uid="1.2",
        sop_instance_uid=f"{kind}.{form}.{part}",
        base="",
        supersedes="",
        file="",
    )


LESIONS = FrozenAnswer(
    model="m",
    outcome=Outcome.FINDINGS,
    has_findings=True,
    objects=(
        made(Kind.SEG, "binary"),
        made(Kind.SR, "binary"),
        made(Kind.SEG, "labelmap-jpeg-ls"),
        made(Kind.SR, "labelmap-jpeg-ls"),
        made(Kind.SEG, "binary-by-class"),
        made(Kind.SR, OUTLINES),
        made(Kind.SC),
        made(Kind.SC, part=2),
        made(Kind.PR),
        made(Kind.KO),
    ),
)
NOTHING = FrozenAnswer(
    model="m", outcome=Outcome.NO_FINDINGS, has_findings=False, objects=(made(Kind.SR), made(Kind.SC))
)
PICTURES = Profile(capture="findings", gsps=True, ko=True, seg="none", sr=False)
PACKED = Profile(seg="labelmap", compression="jpeg-ls")


def only(*classes: str) -> Accepts:
    return lambda sop_class, _: sop_class in classes


def names(choice: Choice) -> list[str]:
    return [it.sop_instance_uid for it in choice.objects]


@pytest.mark.parametrize(
    ("profile", "accepts", "wanted"),
    [
        (Profile(), everything, ["SEG.binary.1", "SR.binary.1"]),
        (PACKED, everything, ["SEG.labelmap-jpeg-ls.1", "SR.labelmap-jpeg-ls.1"]),
        (PACKED, only(SEG, SR), ["SEG.binary.1", "SR.binary.1"]),
        (PACKED, only(SR), ["SR.outlines.1"]),
        (Profile(seg="none"), everything, ["SR.outlines.1"]),
        (Profile(segments="class"), everything, ["SEG.binary-by-class.1", "SR.outlines.1"]),
        (Profile(sr=False), everything, ["SEG.binary.1"]),
        (Profile(), only(SC), ["SC..1", "SC..2"]),
        (Profile(), only(SEG, SC), ["SEG.binary.1", "SC..1", "SC..2"]),
        (Profile(sr=False), only(SC, SR), ["SC..1", "SC..2"]),
        (Profile(), only(PR), []),
        (Profile(capture="summary"), everything, ["SEG.binary.1", "SR.binary.1", "SC..1"]),
        (PICTURES, everything, ["SC..1", "SC..2", "PR..1", "KO..1"]),
        (Profile(gsps=True, ko=True), only(SEG, SR, KO), ["SEG.binary.1", "SR.binary.1", "KO..1"]),
        (Profile(seg="none", sr=False), everything, []),
    ],
)  # fmt: skip
def test_the_best_that_is_accepted_is_chosen(profile: Profile, accepts: Accepts, wanted: list[str]) -> None:
    assert names(choose(LESIONS, profile, accepts)) == wanted


def test_what_is_not_accepted_and_what_goes_in_its_place_is_said() -> None:
    said = "; ".join(choose(LESIONS, PACKED, only(SEG, SR)).remarks)
    assert "Label Map Segmentation Storage as JPEG-LS Lossless Image Compression is not accepted" in said
    assert "BINARY goes in the place of LABELMAP" in said
    said = "; ".join(choose(LESIONS, Profile(), only(SC)).remarks)
    assert "Segmentation Storage as Explicit VR Little Endian is not accepted" in said
    assert "Comprehensive 3D SR Storage" in said
    assert "pictures go in the place of what is not accepted" in said
    assert choose(LESIONS, Profile(), everything).remarks == ()


def test_a_report_never_refers_to_a_segmentation_that_does_not_go() -> None:
    classes = (SEG, LABELMAP, SR, SC, PR, KO)
    profiles = (
        Profile(),
        PACKED,
        Profile(segments="class"),
        Profile(seg="none"),
        Profile(capture="findings", gsps=True),
    )
    for profile, said in product(profiles, product((False, True), repeat=len(classes))):
        accepted = [sop_class for sop_class, yes in zip(classes, said, strict=True) if yes]
        chosen = choose(LESIONS, profile, only(*accepted)).objects
        forms = {it.form for it in chosen if it.kind is Kind.SEG}
        assert len(forms) <= 1
        for report in (it for it in chosen if it.kind is Kind.SR):
            assert report.form in {*forms, OUTLINES}
        assert all(it.sop_class_uid in accepted for it in chosen)
        # Something gets there wherever anything of the usual kinds is accepted.
        if SR in accepted or SC in accepted:
            assert chosen


@pytest.mark.parametrize(
    ("profile", "outcome", "goes"),
    [
        ("all", Outcome.NO_FINDINGS, True),
        ("all", Outcome.FAILED, True),
        ("analysed", Outcome.NO_FINDINGS, True),
        ("analysed", Outcome.PARTIAL, True),
        ("analysed", Outcome.UNSUITABLE, False),
        ("analysed", Outcome.FAILED, False),
        ("none", Outcome.NO_FINDINGS, False),
    ],
)
def test_answers_without_findings_go_where_they_are_wanted(profile: str, outcome: Outcome, goes: bool) -> None:
    wants = Profile(negative_reports=profile)  # type: ignore[arg-type]
    answer = FrozenAnswer(model="m", outcome=outcome, has_findings=False, objects=NOTHING.objects)
    assert names(choose(answer, wants, everything)) == (["SR..1"] if goes else [])
    assert names(choose(LESIONS, wants, everything)) == ["SEG.binary.1", "SR.binary.1"]


def test_a_picture_says_that_nothing_was_found_where_reports_are_not_taken() -> None:
    assert names(choose(NOTHING, Profile(), only(SC))) == ["SC..1"]


def test_somebody_has_to_act_only_where_nothing_stands_in() -> None:
    ideal = choose(LESIONS, Profile(gsps=True), everything)
    seg, report, state = ideal.objects
    pictures = choose(LESIONS, Profile(gsps=True), only(SC))
    assert stands_in(ideal, pictures, seg)
    assert stands_in(ideal, pictures, report)
    assert not stands_in(ideal, pictures, state)
    assert not stands_in(ideal, choose(LESIONS, Profile(gsps=True), only()), seg)


@pytest.mark.parametrize(
    ("accepts", "profile"),
    [
        (everything, Profile()),
        (only(SEG, SR), Profile()),
        (only(LABELMAP, SR), PACKED),
        (only(SEG, SC), Profile(sr=False, capture="findings")),
        (only(SR, SC, PR, KO), Profile(seg="none", capture="findings", gsps=True, ko=True)),
        (only(SC), Profile(seg="none", sr=False, capture="findings")),
        (only(), Profile(seg="none", sr=False)),
    ],
)
def test_the_proposed_profile_is_what_is_accepted(accepts: Accepts, profile: Profile) -> None:
    assert proposed(accepts) == profile
    chosen = preview(profile, accepts)
    assert chosen.remarks == ()
    assert bool(chosen.objects) == (profile != Profile(seg="none", sr=False))


def test_an_answer_that_supersedes_another_goes_wherever_that_may_be() -> None:
    """Else the finding that is no more would stand there as the last word."""
    (report, sheet) = NOTHING.objects
    answer = replace(NOTHING, objects=(replace(report, supersedes="1.2.3"), sheet))
    assert names(choose(answer, Profile(negative_reports="none"), everything)) == ["SR..1"]


def test_outlines_stand_in_for_segments_of_classes() -> None:
    profile = Profile(segments="class")
    ideal, actual = choose(LESIONS, profile, everything), choose(LESIONS, profile, only(SR))
    assert stands_in(ideal, actual, ideal.objects[0])
