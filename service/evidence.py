"""[edge: disk] What an analysis leaves: its objects, pictures and answers, frozen in one folder that never changes.

``evidence/<study>/<revision>/`` appears whole or not at all, also after a power cut: it is written under another name,
fsynced, renamed. So an object's bytes are on the disk before its first send, and every later send has the same ones
(promise 3).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian

from service import faults, log
from service.files import make_folder, sync_folder
from service.forms import Kind, SegForm
from service.types import (
    Answer,
    Evidence,
    Finding,
    FrozenAnswer,
    FrozenObject,
    Judgement,
    Lesion,
    Mark,
    Outcome,
    Point,
    Report,
    ResultObject,
)

_ANSWERS = "answers.json"


def folder_of(directory: Path, study_uid: str, revision: int) -> Path:
    """Where the evidence of one analysis lies."""
    return directory / "evidence" / study_uid / str(revision)


def freeze(directory: Path, evidence: Evidence, revision: int) -> Path:
    """Write the evidence of one analysis, once; what is there already stays as it is.

    An object that an earlier analysis of the study made already keeps the bytes that it had then: one UID, one content.

    Returns
    -------
    Path
        The folder; it and all that is in it survive a power cut.
    """
    folder = folder_of(directory, evidence.study_instance_uid, revision)
    make_folder(folder.parent)
    if not folder.exists():
        _draft(evidence, folder)
        faults.point("freeze.renamed")
    sync_folder(folder.parent)  # also where it was there already: who renamed it may have been killed before this
    faults.point("freeze.frozen")
    return folder


def _draft(evidence: Evidence, folder: Path) -> None:
    """Write the evidence under another name, and rename it once all of it is durable."""
    draft = folder.with_name(f".{uuid.uuid4().hex}")
    draft.mkdir()
    faults.point("freeze.drafted")
    earlier = _frozen_objects(folder.parent)
    try:
        for answer in evidence.answers:
            for made in answer.objects:
                path = draft / object_name(answer, made)
                if made.sop_instance_uid in earlier:
                    os.link(earlier[made.sop_instance_uid], path)
                else:
                    _write(path, made.content)
            for picture in answer.pictures:
                _write(draft / picture_name(answer, picture.finding), picture.png)
        bodies = [as_json(answer) for answer in evidence.answers]
        _write(draft / _ANSWERS, json.dumps(bodies, indent=1).encode())
        sync_folder(draft)
        faults.point("freeze.synced")
        try:
            draft.rename(folder)
        except OSError as exc:  # another process, that was thought dead, has frozen the same a moment ago: that stays
            if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            shutil.rmtree(draft, ignore_errors=True)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def sweep(directory: Path, *, older_than_seconds: float = 0.0) -> None:
    """Remove the drafts that a crash left behind.

    Parameters
    ----------
    older_than_seconds
        How long nobody wrote in one; younger ones may be another process's, at work.
    """
    for draft in (directory / "evidence").glob("*/.*"):
        with suppress(OSError):
            if draft.stat().st_mtime <= time.time() - older_than_seconds:
                shutil.rmtree(draft, ignore_errors=True)


def _frozen_objects(study_folder: Path) -> dict[str, Path]:
    """The objects of a study's frozen analyses, by SOP Instance UID."""
    return {
        made["sop_instance_uid"]: path.parent / made["file"]
        for path in study_folder.glob(f"[0-9]*/{_ANSWERS}")
        for answer in frozen_answers(path.parent)
        for made in answer["objects"]
    }


def frozen_answers(folder: Path) -> list[dict[str, Any]]:
    """The answers of a frozen analysis, as the API shows them."""
    answers: list[dict[str, Any]] = json.loads((folder / _ANSWERS).read_text())
    return answers


def answers_in(folder: Path) -> tuple[FrozenAnswer, ...]:
    """The answers of a frozen analysis, as deliveries need them."""
    return tuple(answer_from(body) for body in frozen_answers(folder))


def answer_from(body: dict[str, Any]) -> FrozenAnswer:
    """An answer by what `as_json` gave of it."""
    return FrozenAnswer(
        model=body["model"],
        outcome=Outcome(body["outcome"]),
        has_findings=bool(body["findings"]),
        objects=tuple(_object_from(made) for made in body["objects"]),
    )


def _object_from(made: dict[str, Any]) -> FrozenObject:
    """An object; what was frozen before there were forms had one of each kind, and BINARY segmentations."""
    kind = Kind(made["kind"])
    usual = {
        "form": SegForm().key if kind is Kind.SEG else "",
        "part": 1,
        "base": "",
        "supersedes": "",
        "transfer_syntax_uid": str(ExplicitVRLittleEndian),
    }
    return FrozenObject(**{**usual, **made, "kind": kind})


def answer_of(folder: Path, sop_instance_uid: str) -> FrozenAnswer | None:
    """The frozen answer that an object is of; None where the evidence is gone or damaged: the object goes as it is."""
    try:
        answers = answers_in(folder)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        log.failure("evidence.unreadable", exc, sop_instance_uid=sop_instance_uid)
        return None
    return next((it for it in answers if sop_instance_uid in {made.sop_instance_uid for made in it.objects}), None)


def reports_of(answers: Iterable[tuple[int, dict[str, Any]]]) -> dict[str, list[Report]]:
    """The reports of earlier analyses of a study, by model.

    Parameters
    ----------
    answers
        The revision and what `as_json` gave of each answer; the store remembers that longer than there are files.
    """
    reports: dict[str, list[Report]] = {}
    for revision, body in answers:
        answer = answer_from(body)
        reports.setdefault(answer.model, []).extend(
            Report(
                revision=revision,
                form=made.form,
                base=made.base,
                sop_class_uid=made.sop_class_uid,
                series_instance_uid=made.series_instance_uid,
                sop_instance_uid=made.sop_instance_uid,
            )
            for made in answer.objects
            if made.kind is Kind.SR
        )
    return reports


def as_json(answer: Answer) -> dict[str, Any]:
    """An answer as the API shows it: plain values, no arrays, no patient data."""
    spec = answer.model
    return {
        "model": spec.name,
        "version": spec.version,
        "title": spec.title,
        "weights_sha256": answer.weights_sha256,
        "outcome": answer.outcome,
        "reason": answer.reason,
        "causes": list(answer.causes),
        "series_uid": answer.selection.series.series_instance_uid if answer.selection else None,
        "why": answer.selection.why if answer.selection else None,
        "excluded": [
            {"series_uid": e.series_instance_uid, "reason": e.reason, "cause": e.cause} for e in answer.excluded
        ],
        "notes": list(answer.notes),
        "findings": [_finding(answer, finding) for finding in answer.findings],
        "dropped": answer.dropped,
        "summary": picture_name(answer, 0) if any(picture.finding == 0 for picture in answer.pictures) else None,
        "seconds": {stage: round(value, 3) for stage, value in answer.seconds.items()},
        "objects": [
            {
                "kind": made.kind,
                "form": made.form,
                "part": made.part,
                "sop_class_uid": made.sop_class_uid,
                "transfer_syntax_uid": made.transfer_syntax_uid,
                "sop_instance_uid": made.sop_instance_uid,
                "series_instance_uid": made.series_instance_uid,
                "base": made.base,
                "supersedes": made.supersedes,
                "file": object_name(answer, made),
            }
            for made in answer.objects
        ],
    }


def object_name(answer: Answer, made: ResultObject) -> str:
    """File name of an object within its evidence folder."""
    which = [made.form] if made.form else []
    if made.part > 1 or made.kind is Kind.SC:
        which.append(str(made.part))
    return ".".join([answer.model.name, made.kind, *which, "dcm"])


def picture_name(answer: Answer, finding: int) -> str:
    """File name of a finding's picture, or of the sheet (0), within its evidence folder."""
    return f"{answer.model.name}-{finding or 'summary'}.png"


def _finding(answer: Answer, finding: Finding) -> dict[str, Any]:
    drawn = {picture.finding for picture in answer.pictures}
    return {
        "kind": type(finding).__name__.lower(),
        "number": finding.number,
        "tracking_uid": finding.tracking_uid,
        "finding": finding.kind.finding.meaning,
        "site": finding.kind.site.meaning,
        "laterality": finding.laterality.meaning if finding.laterality else None,
        "probability": round(finding.probability, 4),
        **_measured(finding),
        "slice": finding.key_slice + 1,
        "picture": picture_name(answer, finding.number) if finding.number in drawn else None,
    }


def _measured(finding: Finding) -> dict[str, Any]:
    """What only its kind of finding has."""
    match finding:
        case Lesion():
            return {
                "volume_ml": round(finding.volume_ml, 3),
                "long_axis_mm": round(finding.long_axis_mm, 1),
                "short_axis_mm": round(finding.short_axis_mm, 1),
                "mean": round(finding.mean, 1),
                "centroid_lps_mm": _rounded(finding.centroid_lps_mm),
                "extent_lps_mm": [_rounded(point) for point in finding.extent_lps_mm],
            }
        case Mark():
            return {
                "centre_lps_mm": _rounded(finding.centre_lps_mm),
                "size_mm": _rounded(finding.size_mm) if finding.size_mm else None,
            }
        case Judgement():
            return {"level": finding.level}
    return {}


def _rounded(point: Point) -> list[float]:
    return [round(value, 1) for value in point]


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    faults.point("freeze.written")
