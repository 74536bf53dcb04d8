"""From the store's rows to what the API answers of them."""

from __future__ import annotations

import json
import time
from typing import Any

from service.api import shapes
from service.api.problems import Problem
from service.api.seen import Seen
from service.overview import Wanted
from service.retention import why_kept
from service.types import OPEN, Priority, StudyState

_TURN = "it waits for its turn, by its urgency and by when it was ready"
_WAITS = {
    StudyState.DELIVERING: "its results are on their way: each of its deliveries says what it waits for",
    StudyState.UNDELIVERED: "a result was refused for good: its delivery says what to change; then retry or drop it",
}


def study_row(row: dict[str, Any], seen: Seen) -> shapes.StudyRow:
    """A study in a list, from a row of `Store.studies`."""
    return shapes.StudyRow(**_base(row, seen), findings=sum(it["findings"] for it in row["answers"]))


def study_detail(row: dict[str, Any], seen: Seen) -> shapes.StudyDetail:
    """A study with all that is known of it, from what `Store.study` says."""
    base = _base(row, seen) | {
        "deliveries": [delivery_row(it) for it in row["deliveries"]],
        "progress": progress(row, seen),
        "instances": sum(it["instances"] for it in row["series"]),
    }
    return shapes.StudyDetail(
        **base,
        findings=sum(len(it["findings"]) for it in row["answers"]),
        kept=why_kept(row, seen.config, now=time.time()),
    )


def delivery_row(row: dict[str, Any]) -> shapes.DeliveryRow:
    """A delivery, with when it is due."""
    due = max(0.0, row["next_at"] - time.time()) if row["state"] in OPEN else None
    urgency = {"priority": Priority(row["priority"]).name.lower()} if "priority" in row else {}
    return shapes.DeliveryRow(**row | urgency, due_in_seconds=None if due is None else round(due, 1))


def one_study(seen: Seen, study_uid: str) -> shapes.StudyRow:
    """A study as lists show it.

    Raises
    ------
    Problem
        If there is none.
    """
    rows = seen.store.studies(Wanted(study_uid=study_uid), limit=1)
    if not rows:
        raise unknown_study()
    return study_row(rows[0], seen)


def unknown_study() -> Problem:
    """What is answered where nobody sent a study of that UID."""
    return Problem(
        404,
        doing="looking for a study",
        found="no study of that UID has been received",
        rule="a study is known from its first instance on",
        way_out="send it by C-STORE or STOW-RS, or look among /api/v1/studies",
    )


def _base(row: dict[str, Any], seen: Seen) -> dict[str, Any]:
    words, seconds_left = waits(row, seen)
    return row | {
        "priority": Priority(row["priority"]).name.lower(),
        "age_seconds": round(max(0.0, time.time() - row["last_at"]), 1),
        "waits": words,
        "seconds_left": seconds_left,
    }


def waits(row: dict[str, Any], seen: Seen) -> tuple[str, float | None]:
    """Why it waits, and how long for more instances."""
    if row["state"] == StudyState.ANALYSING:
        return _waits_for_analysis(row), None
    if row["state"] != StudyState.RECEIVING:
        return _WAITS.get(row["state"], ""), None
    verdict = seen.waiting(row["study_uid"])  # what this process knows is the newest
    if verdict:
        return verdict.reason, round(verdict.seconds_left, 1)
    if row["waits"]:
        return row["waits"], round(max(0.0, row["waits_until"] - time.time()), 1)
    return "it was just received, or the models are still being loaded", None


def progress(row: dict[str, Any], seen: Seen) -> dict[str, Any]:
    """How far each model is with a study, as this process knows it, or as the one that analyses it wrote it down."""
    if row["state"] != StudyState.ANALYSING:
        return {}
    return seen.progress(row["study_uid"]) or dict(json.loads(row["progress"] or "{}"))


def _waits_for_analysis(row: dict[str, Any]) -> str:
    if row["holder"]:
        return f"it is analysed by {row['holder']}"
    due = row["next_at"] - time.time()
    if row["tries"] and due > 0:
        return f"an attempt came to nothing, as its time line says; the next one in {due:.0f} s"
    return _TURN
