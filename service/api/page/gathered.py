"""What the page shows, put together from what the service knows: plain values, nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from service import log
from service.api import queues, rows
from service.api.page.banner import SILENT_SECONDS, Facts
from service.api.seen import Seen
from service.overview import Wanted
from service.types import StudyState

_MOST_STUCK = 100


def facts(seen: Seen) -> Facts:
    """What the banner is about; what can't be told is left out, for the parts say why."""
    parts, now = seen.readiness(), time.time()
    least, most = SILENT_SECONDS
    try:
        running = seen.store.processes()
        for process in running:  # what another process says of itself
            for part, reason in process["status"].get("readiness", {}).items():
                if reason and now - process["seen_at"] <= least and not parts.get(part):
                    parts[part] = f"{process['name']}: {reason}"
        stuck = seen.store.studies(Wanted(state=StudyState.ANALYSING), order="oldest", limit=_MOST_STUCK)
        return Facts(
            parts=parts,
            queues=queues.queues_of(seen.config, seen.store, seen.lines()),
            in_vain=sum(row["tries"] > 0 for row in stuck),
            silent=[row["name"] for row in running if least < now - row["seen_at"] < most],
        )
    except Exception as exc:  # the database is away, which is what the banner then says
        log.failure("page.no_facts", exc)
        return Facts(parts=parts or {"database": type(exc).__name__})


def waits(row: Mapping[str, Any], seen: Seen) -> tuple[str, float | None]:
    """Why a study waits, and for how many seconds at most; empty, None where it does not."""
    now = time.time()
    if row["state"] == StudyState.ANALYSING:
        return ("it is tried again", max(0.0, row["next_at"] - now)) if row["tries"] else ("", None)
    return rows.waits(dict(row), seen) if row["state"] == StudyState.RECEIVING else ("", None)


def processes(seen: Seen) -> list[dict[str, Any]]:
    """Who works on this database; nothing where it does not answer."""
    try:
        return seen.store.processes()
    except Exception as exc:
        log.failure("page.no_processes", exc)
        return []


def sources(seen: Seen) -> list[dict[str, Any]]:
    """Each source of the configuration: where it is asked, and when it last sent a study."""
    listed = []
    for source in seen.config.sources:
        last = seen.store.studies(Wanted(source=source.ae_title), limit=1)
        query = source.query
        listed.append(
            {
                "ae_title": source.ae_title,
                "asked": f"{query.ae_title} {query.host}:{query.port}" if query else source.qido_url,
                "can_be_asked": bool(query or source.qido_url),
                "last_at": last[0]["last_at"] if last else None,
                "studies": seen.store.count_studies(Wanted(source=source.ae_title)),
            }
        )
    return listed
