"""What the page of a study shows: plain values from its row, its time line and its frozen reports."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from service import log
from service.api.page.pictures import report_of, usual_window, windows_of
from service.config import Config
from service.results.told import Told, told
from service.retention import why_kept
from service.types import OPEN, StudyState


def values(
    row: dict[str, Any], config: Config, steps: Sequence[Mapping[str, Any]], *, finding: str, window: str
) -> dict[str, Any]:
    """The values of the template.

    Parameters
    ----------
    row
        As `Store.study` gives it.
    finding
        Of which pictures are wanted, as model/number; another one, or none: the first.
    window
        Through which; empty: the usual one.
    """
    kept = why_kept(row, config, now=time.time())
    answers = [{**answer, "told": _told(row, config, answer)} for answer in row["answers"]]
    findings = [(answer, it) for answer in answers for it in answer["findings"]]
    chosen = next(((a, f) for a, f in findings if name_of(a, f) == finding), findings[0] if findings else None)
    return {
        "study": row,
        "steps": steps,
        "kept": kept,
        "deliveries": [{**it, "due_in": _due_in(it)} for it in row["deliveries"]],
        "answers": answers,
        "left_out": _left_out(row["answers"]),
        "chosen": _chosen(row, chosen, window) if chosen else None,
        "evidence_is_kept": row["evidence_gone_at"] is None,
        "sources_are_kept": row["sources_at"] is not None,
        "may_rerun": row["state"]
        in (StudyState.DELIVERING, StudyState.DONE, StudyState.UNDELIVERED, StudyState.CANCELLED)
        and row["sources_at"] is not None,
        "may_cancel": row["state"] in (StudyState.RECEIVING, StudyState.ANALYSING),
        "may_resend": bool(row["deliveries"]) and row["evidence_gone_at"] is None,
    }


def name_of(answer: Mapping[str, Any], finding: Mapping[str, Any]) -> str:
    """How a finding is called in addresses."""
    return f"{answer['model']}/{finding['number']}"


def _chosen(row: Mapping[str, Any], chosen: tuple[dict[str, Any], dict[str, Any]], window: str) -> dict[str, Any]:
    answer, finding = chosen
    modality = answer["told"].modality if answer["told"] else ""
    windows = windows_of(modality)
    return {
        "name": name_of(answer, finding),
        "answer": answer,
        "finding": finding,
        "windows": windows,
        "window": window if window in windows else usual_window(modality, str(finding["site"])),
        "files": f"/api/v1/studies/{row['study_uid']}/files",
        "pictures": f"/studies/{row['study_uid']}/pictures/{answer['model']}/{finding['number']}",
    }


def _due_in(delivery: Mapping[str, Any]) -> float:
    """Seconds until it is tried next; 0 where nothing more happens by itself, or it is due."""
    return max(0.0, delivery["next_at"] - time.time()) if delivery["state"] in OPEN else 0.0


def _told(row: dict[str, Any], config: Config, answer: dict[str, Any]) -> Told | None:
    """The frozen report in words; a damaged one says nothing, and the answer is shown all the same."""
    try:
        report = report_of(config.store.directory, row, answer)
        return told(report) if report else None
    except Exception as exc:  # whatever a damaged file makes pydicom raise
        log.failure("page.report_unreadable", exc, study_uid=row["study_uid"], model=answer["model"])
        return None


def _left_out(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [
        {"model": answer["model"], "series_uid": each["series_uid"], "reason": each["reason"]}
        for answer in answers
        for each in answer["excluded"]
    ]
