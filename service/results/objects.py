"""All objects of an answer, in the forms that its destinations want or may need (`forms.Wanted`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from service import log
from service.forms import OUTLINES, Kind, Wanted
from service.results import capture, keyobjects, presentation, secondary, seg, sheet, sr
from service.results.identity import Making
from service.types import Conclusion, Picture, ResultObject, SourceVolume


def pictures_of(making: Making, conclusion: Conclusion, source: SourceVolume | None) -> tuple[Picture, ...]:
    """The sheet that sums the answer up (finding 0), and a picture of each finding.

    A result without one of them is a result all the same.
    """
    spec, study_uid = making.model.spec, making.study.study_instance_uid
    pictures = []
    for finding in conclusion.findings if source else ():
        assert source
        try:
            pictures.append(capture.picture(source, finding, spec.title))
        except Exception as exc:
            log.failure("picture.failed", exc, study_uid=study_uid, model=spec.name)
    try:
        return sheet.summary(making, conclusion, source, pictures), *pictures
    except Exception as exc:
        log.failure("picture.failed", exc, study_uid=study_uid, model=spec.name)
        return tuple(pictures)


def objects_of(
    making: Making,
    conclusion: Conclusion,
    source: SourceVolume | None,
    wanted: Wanted,
    pictures: tuple[Picture, ...],
) -> tuple[ResultObject, ...]:
    """Write an answer in all forms that are wanted.

    Parameters
    ----------
    pictures
        The sheet (finding 0) first, if it could be drawn.

    Returns
    -------
    tuple of ResultObject
        Of each form of segmentation, the Segmentations and the report that refers to them; the report that refers to
        none; the pictures; and what else is wanted. An answer without lesions has one report.
    """
    made: list[ResultObject] = []
    if source and conclusion.lesions:
        for form in wanted.forms:
            segmented = seg.segmentations(source, conclusion.lesions, making, form, outcome=conclusion.outcome)
            made += [it.object for it in segmented]
            if form.segments == "finding":
                made.append(sr.report(making, conclusion, source=source, segmented=segmented, form=form.key))
        made.append(sr.report(making, conclusion, source=source, form=OUTLINES))
    else:
        made.append(sr.report(making, conclusion, source=source))
    for kind, make in _beside(making, conclusion, source, wanted, pictures):
        try:
            made += make()
        except Exception as exc:  # findings are not lost for what only shows them
            log.failure("object.failed", exc, study_uid=making.study.study_instance_uid, kind=kind)
    return tuple(made)


def _beside(
    making: Making, conclusion: Conclusion, source: SourceVolume | None, wanted: Wanted, pictures: tuple[Picture, ...]
) -> Iterator[tuple[Kind, Callable[[], Iterable[ResultObject]]]]:
    """What shows an answer beside segmentations and reports."""
    if pictures and pictures[0].finding == 0:
        shown = pictures[1:] if wanted.captures else ()
        yield Kind.SC, lambda: secondary.captures(making, conclusion, source, pictures[0], shown)
    if source and conclusion.findings and wanted.gsps:
        yield Kind.PR, lambda: presentation.presentation(making, conclusion, source)
    if source and conclusion.findings and wanted.ko:
        yield Kind.KO, lambda: [keyobjects.key_objects(making, conclusion, source)]
