"""Which of an answer's objects go to a destination: what its profile wants, or the next best that it accepts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
)

from service.codes import uid_name
from service.forms import OUTLINES, Kind, Profile, SegForm
from service.types import FrozenAnswer, FrozenObject, Outcome

Accepts = Callable[[str, str], bool]  # by SOP Class UID and Transfer Syntax UID
_PACKED: Final[tuple[Literal["jpeg-ls", "rle", "none"], ...]] = ("jpeg-ls", "rle", "none")
_LOOKED_AT = (Outcome.FINDINGS, Outcome.NO_FINDINGS, Outcome.PARTIAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What goes to a destination, and what was said no to."""

    objects: tuple[FrozenObject, ...]
    remarks: tuple[str, ...]  # what is not accepted, and what goes in its place, in words


def everything(_class: str, _syntax: str) -> bool:
    """Accepts whatever there is: by it, `choose` gives what a profile wants."""
    return True


def choose(answer: FrozenAnswer, profile: Profile, accepts: Accepts) -> Choice:
    """Choose among an answer's objects for one destination.

    The order of what will do: segmentations as asked, as BINARY, none; the report that refers to them, the report that
    draws outlines; pictures, where neither segmentation nor report can be had. Presentation states and key objects
    have nothing that could take their place.
    """
    if not _is_wanted(answer, profile):
        return Choice(objects=(), remarks=())
    remarks: list[str] = []
    chosen: list[FrozenObject] = []
    form = _form(answer, profile, accepts, remarks)
    if form:
        chosen += _of(answer, Kind.SEG, form.key)
    wants_segments = bool(profile.forms) and any(made.kind is Kind.SEG for made in answer.objects)
    reported = False
    if profile.sr:
        reports = _report(answer, form)
        reported = _are_accepted(reports, accepts, remarks)
        chosen += reports if reported else []
    captures = [made for made in answer.objects if made.kind is Kind.SC and _is_shown(made, profile)]
    lacking = profile.sr or (wants_segments and not form)
    if not captures and lacking and not reported:
        captures = [made for made in answer.objects if made.kind is Kind.SC]
        if captures:
            remarks.append("pictures go in the place of what is not accepted")
    if _are_accepted(captures, accepts, remarks):
        chosen += captures
    for kind, wanted in ((Kind.PR, profile.gsps), (Kind.KO, profile.ko)):
        made_of_kind = [made for made in answer.objects if made.kind is kind]
        if wanted and _are_accepted(made_of_kind, accepts, remarks):
            chosen += made_of_kind
    return Choice(objects=tuple(chosen), remarks=tuple(remarks))


def preview(profile: Profile, accepts: Accepts) -> Choice:
    """What a destination would get of an answer with lesions, before there is any."""
    kinds = (
        *((Kind.SEG, form.key, form.sop_class_uid, form.transfer_syntax_uid) for form in profile.forms),
        *((Kind.SR, form.key, Comprehensive3DSRStorage, ExplicitVRLittleEndian) for form in profile.forms),
        (Kind.SR, OUTLINES, Comprehensive3DSRStorage, ExplicitVRLittleEndian),
        (Kind.SC, "", SecondaryCaptureImageStorage, ExplicitVRLittleEndian),
        (Kind.PR, "", GrayscaleSoftcopyPresentationStateStorage, ExplicitVRLittleEndian),
        (Kind.KO, "", KeyObjectSelectionDocumentStorage, ExplicitVRLittleEndian),
    )
    objects = tuple(
        FrozenObject(
            kind=kind,
            form=form,
            part=1,
            sop_class_uid=str(sop_class),
            transfer_syntax_uid=str(syntax),
            series_instance_uid="",
            sop_instance_uid=f"{kind} {form}",
            base="",
            supersedes="",
            file="",
        )
        for kind, form, sop_class, syntax in kinds
    )
    answer = FrozenAnswer(model="", outcome=Outcome.FINDINGS, has_findings=True, objects=objects)
    return choose(answer, profile, accepts)


def proposed(accepts: Accepts) -> Profile:
    """The profile that suits what a destination accepts: the most widely shown forms, pictures in place of others."""
    plain = str(ExplicitVRLittleEndian)
    forms = (
        SegForm(),
        *(SegForm(type="labelmap", compression=packed) for packed in _PACKED),
    )
    form = next((it for it in forms if accepts(it.sop_class_uid, it.transfer_syntax_uid)), None)
    reports = accepts(str(Comprehensive3DSRStorage), plain)
    pictured = not (form and reports) and accepts(str(SecondaryCaptureImageStorage), plain)
    return Profile(
        seg=form.type if form else "none",
        compression=form.compression if form else "none",
        sr=reports,
        capture="findings" if pictured else "none",
        gsps=not form and accepts(str(GrayscaleSoftcopyPresentationStateStorage), plain),
        ko=not form and accepts(str(KeyObjectSelectionDocumentStorage), plain),
    )


def stands_in(ideal: Choice, actual: Choice, missing: FrozenObject) -> bool:
    """Whether something goes in the place of an object that is not accepted: then nobody has to act."""
    kinds = {made.kind for made in actual.objects}
    if missing.kind is Kind.SEG:
        return bool(kinds & {Kind.SEG, Kind.SR, Kind.SC})
    wanted = {made.sop_instance_uid for made in ideal.objects}
    reports = [it for it in actual.objects if it.kind is Kind.SR and it.sop_instance_uid not in wanted]
    return missing.kind is Kind.SR and (Kind.SC in kinds or bool(reports))


def _is_wanted(answer: FrozenAnswer, profile: Profile) -> bool:
    """Whether such an answer goes there at all; one that supersedes another does, or that would stand."""
    if answer.has_findings or profile.negative_reports == "all" or any(it.supersedes for it in answer.objects):
        return True
    return profile.negative_reports == "analysed" and answer.outcome in _LOOKED_AT


def _form(answer: FrozenAnswer, profile: Profile, accepts: Accepts, remarks: list[str]) -> SegForm | None:
    """The first form of segmentation that is accepted; None where none is, or there is nothing to segment."""
    for form in profile.forms:
        made = _of(answer, Kind.SEG, form.key)
        if made and _are_accepted(made, accepts, remarks):
            if form != profile.forms[0]:
                remarks.append(f"{form.type.upper()} goes in the place of {profile.seg.upper()}")
            return form
    return None


def _report(answer: FrozenAnswer, form: SegForm | None) -> list[FrozenObject]:
    """The report that fits the segmentations; of an answer without lesions the only one."""
    key = form.key if form and form.segments == "finding" else OUTLINES
    return _of(answer, Kind.SR, key) or _of(answer, Kind.SR, "")


def _is_shown(made: FrozenObject, profile: Profile) -> bool:
    """Whether a picture is among those wanted; the one that sums up is the first."""
    return profile.capture == "findings" or (profile.capture == "summary" and made.part == 1)


def _of(answer: FrozenAnswer, kind: Kind, form: str) -> list[FrozenObject]:
    return [made for made in answer.objects if made.kind is kind and made.form == form]


def _are_accepted(objects: Iterable[FrozenObject], accepts: Accepts, remarks: list[str]) -> bool:
    """Whether all are; what is not is said once."""
    refused = {(it.sop_class_uid, it.transfer_syntax_uid) for it in objects}
    refused = {pair for pair in refused if not accepts(*pair)}
    for sop_class, syntax in sorted(refused):
        remark = f"{uid_name(sop_class)} as {uid_name(syntax)} is not accepted"
        if remark not in remarks:
            remarks.append(remark)
    return not refused
