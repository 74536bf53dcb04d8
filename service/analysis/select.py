"""Which series each model reads: a pure choice, with a reason for every series that is left out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from pydicom import Dataset
from pydicom.tag import Tag

from service.analysis.frames import frames_of
from service.analysis.geometry import Stack, stack
from service.codes import PRODUCT
from service.errors import NoModelApplies, StudyUnsuitable
from service.spec import ModelSpec, Select
from service.types import Exclusion, Selection, Series, Study


def select(study: Study, spec: ModelSpec) -> Selection:
    """Choose the series that a model reads.

    Raises
    ------
    NoModelApplies
        If none fits; its ``excluded`` holds the reasons.
    """
    candidates: list[tuple[tuple[float, ...], str, Series]] = []
    excluded: list[Exclusion] = []
    for series in study.series:
        reason, placed = _unfit(series, spec.select)
        if placed is None:
            excluded.append(
                Exclusion(series_instance_uid=series.series_instance_uid, reason=reason.words, cause=reason.cause)
            )
            continue
        rank, words = _rank(placed, spec.select)
        chosen = Series(
            series_instance_uid=series.series_instance_uid, modality=series.modality, instances=placed.ordered
        )
        candidates.append((rank, words, chosen))
    if not candidates:
        raise NoSeriesFits(
            doing=f"choosing a series of study {study.study_instance_uid} for {spec.name}",
            found="; ".join(sorted({e.reason for e in excluded})) or "no series",
            rule=f"{spec.name} takes the series that its model.toml describes under [select]",
            way_out="send a series that fits, or widen [select] if the model was validated for such series",
            excluded=tuple(excluded),
        )
    # The UID decides last, so that the same study always gets the same choice.
    candidates.sort(key=lambda c: (c[0], c[2].series_instance_uid))
    best = candidates[0]
    excluded += [
        Exclusion(
            series_instance_uid=series.series_instance_uid, reason=f"fits, but ranks lower: {words}", cause="rank"
        )
        for _, words, series in candidates[1:]
    ]
    why = best[1] if len(candidates) == 1 else f"best of {len(candidates)} that fit: {best[1]}"
    others = tuple(series for _, _, series in candidates[1:])
    return Selection(series=best[2], why=why, excluded=tuple(excluded), others=others)


class NoSeriesFits(NoModelApplies):
    """No series fits; with the reason for each."""

    def __init__(self, *, doing: str, found: str, rule: str, way_out: str, excluded: tuple[Exclusion, ...]) -> None:
        super().__init__(doing=doing, found=found, rule=rule, way_out=way_out)
        self.excluded = excluded

    @property
    def causes(self) -> tuple[str, ...]:
        """All that stood against the series, as keys of `codes.CAUSES`."""
        return tuple(sorted({exclusion.cause for exclusion in self.excluded})) or (self.cause,)


class _Unfit(NamedTuple):
    """Why a series does not fit; empty words: it does."""

    words: str
    cause: str  # a key of `codes.CAUSES`


_FITS = _Unfit("", "")


def _unfit(series: Series, rules: Select) -> tuple[_Unfit, Stack | None]:
    """Why a series does not fit; or, if it does, its images in order."""
    # Localizers and derived images may lie in a series beside its originals; and the order of arrival means nothing.
    images = sorted((i for i in series.instances if not _beside(i.header)), key=lambda i: i.sop_instance_uid)
    header = images[0].header if images else series.header
    if series.modality != rules.modality:
        return _Unfit(f"modality {series.modality or 'unknown'}, the model takes {rules.modality}", "modality"), None
    if {header.get("Manufacturer"), header.get("ManufacturerModelName")} == {PRODUCT}:
        return _Unfit("a result of our own", "own-result"), None
    if not images:
        kinds = " and ".join(sorted({_beside(i.header) for i in series.instances}))
        return _Unfit(f"{kinds} only", "derived"), None
    if not header.get("Rows"):
        return _Unfit("no images", "no-images"), None
    described = _words(header)
    if _any(rules.words_against, described):
        return _Unfit("its description is one that the model excludes", "description"), None
    reason = _unfit_body_part(header, described, rules)
    if reason:
        return _Unfit(reason, "body-part"), None
    agent = _has_contrast(header)
    if rules.contrast == "required" and not agent:
        return _Unfit("no contrast agent named, the model requires one", "contrast"), None
    if rules.contrast == "none" and agent:
        return _Unfit("a contrast agent is named, the model takes none", "contrast"), None
    try:
        placed = stack([frame for image in images for frame in frames_of(image)])
    except StudyUnsuitable as exc:
        return _Unfit(exc.found, exc.cause), None
    if rules.orientation != "any" and placed.plane != rules.orientation:
        return _Unfit(f"{placed.plane} slices, the model takes {rules.orientation}", "orientation"), None
    least, most = rules.slices
    if not least <= len(placed.ordered) <= most:
        return _Unfit(f"{len(placed.ordered)} slices, the model takes {least} to {most}", "slices"), None
    low, high = rules.slice_spacing_mm
    if not low <= placed.spacing_mm <= high:
        words = f"slice spacing {placed.spacing_mm:.2f} mm, the model takes {low:g} to {high:g} mm"
        return _Unfit(words, "slice-spacing"), None
    return _FITS, placed


def _unfit_body_part(header: Dataset, described: str, rules: Select) -> str:
    if not rules.body_parts and not rules.words:
        return ""
    part = str(header.get("BodyPartExamined", "") or "").upper().strip()
    if part in rules.body_parts or _any(rules.words, described):
        return ""
    if not part and not described.strip() and rules.silent_series:
        return ""
    if not part and not described.strip():
        return "neither body part nor description, and the model does not guess"
    wanted = ", ".join(rules.body_parts)
    return f"body part {part or 'not given'}, and no description that names one of: {wanted}"


def _rank(placed: Stack, rules: Select) -> tuple[tuple[float, ...], str]:
    """Smaller ranks better: contrast as preferred, words as preferred, spacing near the best, more slices."""
    header = placed.ordered[0].header
    agent = _has_contrast(header)
    contrast = rules.contrast == "preferred" and not agent
    worded = bool(rules.preferred_words) and not _any(rules.preferred_words, _words(header))
    off = abs(placed.spacing_mm - rules.preferred_spacing_mm)
    words = f"{placed.plane}, {len(placed.ordered)} slices, {placed.spacing_mm:.2f} mm apart"
    if rules.contrast == "preferred":
        words += ", with contrast" if agent else ", no contrast agent named"
    return (float(contrast), float(worded), round(off, 2), -float(len(placed.ordered))), words


def _has_contrast(header: Dataset) -> bool:
    """Whether a contrast agent is named; in Enhanced images by a sequence (PS3.3 C.7.6.4b)."""
    return bool(header.get("ContrastBolusAgent") or header.get("ContrastBolusAgentSequence"))


def _beside(header: Dataset) -> str:
    """What kind of image, beside a series' originals, this one is by its ImageType (PS3.3 C.7.6.1.1.2); or empty."""
    values = [str(value).upper() for value in header.get("ImageType", None) or []]
    if {"LOCALIZER", "SCOUT"} & set(values):
        return "localizers"
    return "derived or secondary images" if values[:1] == ["DERIVED"] or values[1:2] == ["SECONDARY"] else ""


def _words(header: Dataset) -> str:
    keywords = ("StudyDescription", "SeriesDescription", "ProtocolName")
    # In a copy, since pydicom decodes in place: the header's own texts stay as they were read, and so do their bytes.
    tags = [Tag(keyword) for keyword in ("SpecificCharacterSet", *keywords) if keyword in header]
    copy = Dataset({tag: header.get_item(tag) for tag in tags})
    return " ".join(str(copy.get(keyword, "") or "") for keyword in keywords)


def _any(patterns: Iterable[str], text: str) -> bool:
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)
