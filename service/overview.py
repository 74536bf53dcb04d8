"""What is remembered, as it is seen from outside: plain rows, nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from service.gauges import Figures, Gauges
from service.tables import ANSWERS, CONFLICTS, DELIVERIES, INSTANCES, PROCESSES, STUDIES
from service.timeline import Timeline
from service.types import OPEN, DeliveryState


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which studies are wanted; what is empty or None does not matter."""

    state: str = ""
    model: str = ""  # that answered it last, with this outcome where one is given
    outcome: str = ""
    destination: str = ""  # to which something of it goes or went
    source: str = ""  # calling AE title of its last sender
    since: float | None = None  # its last instance came then or later; seconds since 1970
    until: float | None = None  # or before
    study_uid: str = ""


class Overview(Timeline):
    """The reading half of the store."""

    def studies(
        self,
        wanted: Wanted = Wanted(),
        *,
        order: Literal["latest", "oldest", "urgent"] = "latest",
        limit: int = 100,
        offset: int = 0,
    ) -> list[dict[str, Any]]:
        """Studies as plain rows, with their number of ``instances``.

        Each has its ``answers``: model, outcome and number of findings of those that stand.
        """
        by = {
            "latest": (STUDIES.c.last_at.desc(),),
            "oldest": (STUDIES.c.last_at,),
            "urgent": (STUDIES.c.priority, STUDIES.c.last_at),
        }[order]
        query = sa.select(STUDIES).where(*_conditions(wanted)).order_by(*by, STUDIES.c.study_uid)
        with self._engine.begin() as tx:
            rows = [dict(row._mapping) for row in tx.execute(query.limit(limit).offset(offset))]
            uids = [row["study_uid"] for row in rows]
            counting = sa.select(INSTANCES.c.study_uid, sa.func.count()).where(INSTANCES.c.study_uid.in_(uids))
            instances = {row[0]: row[1] for row in tx.execute(counting.group_by(INSTANCES.c.study_uid))}
            uncounted = sa.case((ANSWERS.c.findings.is_(None), ANSWERS.c.body))
            columns = (
                *(ANSWERS.c[it] for it in ("study_uid", "model", "outcome", "findings")),
                uncounted.label("body"),
            )
            stand = sa.select(*columns).where(ANSWERS.c.study_uid.in_(uids), _STANDS).order_by(ANSWERS.c.model)
            answers: dict[str, list[dict[str, Any]]] = {}
            for row in tx.execute(stand):
                count = len(json.loads(row.body).get("findings", ())) if row.findings is None else row.findings
                answer = {"model": row.model, "outcome": row.outcome, "findings": count}
                answers.setdefault(row.study_uid, []).append(answer)
        return [
            {**row, "instances": instances.get(row["study_uid"], 0), "answers": answers.get(row["study_uid"], [])}
            for row in rows
        ]

    def count_studies(self, wanted: Wanted = Wanted()) -> int:
        """How many studies are wanted."""
        with self._engine.begin() as tx:
            return int(tx.scalar(sa.select(sa.func.count()).select_from(STUDIES).where(*_conditions(wanted))) or 0)

    def processes(self) -> list[dict[str, Any]]:
        """Who works on this database: ``name``, ``parts``, ``version``, ``started_at``, ``seen_at``, ``status``."""
        with self._engine.begin() as tx:
            rows = [dict(row._mapping) for row in tx.execute(sa.select(PROCESSES).order_by(PROCESSES.c.name))]
        return [{**row, "parts": row["parts"].split(","), "status": json.loads(row["status"] or "{}")} for row in rows]

    def study(self, study_uid: str) -> dict[str, Any] | None:
        """One study with its answers of the latest revision and its deliveries, as plain rows; None if unknown."""
        with self._engine.begin() as tx:
            row = tx.execute(sa.select(STUDIES).where(STUDIES.c.study_uid == study_uid)).first()
            if row is None:
                return None
            # While a new revision waits, the answers of the last one stand.
            answered = tx.scalar(sa.select(sa.func.max(ANSWERS.c.revision)).where(ANSWERS.c.study_uid == study_uid))
            answers = tx.execute(
                sa.select(ANSWERS)
                .where(ANSWERS.c.study_uid == study_uid, ANSWERS.c.revision == answered)
                .order_by(ANSWERS.c.model)
            )
            series = tx.execute(
                sa.select(INSTANCES.c.series_uid, sa.func.count().label("instances"))
                .where(INSTANCES.c.study_uid == study_uid)
                .group_by(INSTANCES.c.series_uid)
                .order_by(INSTANCES.c.series_uid)
            )
            deliveries = tx.execute(
                sa.select(DELIVERIES).where(DELIVERIES.c.study_uid == study_uid).order_by(DELIVERIES.c.delivery_id)
            )
            conflicts = tx.execute(
                sa.select(CONFLICTS.c.series_uid, CONFLICTS.c.sop_uid, CONFLICTS.c.source, CONFLICTS.c.received_at)
                .where(CONFLICTS.c.study_uid == study_uid)
                .order_by(CONFLICTS.c.received_at)
            )
            return {
                **dict(row._mapping),
                "answered_revision": answered,
                "series": [dict(one._mapping) for one in series],
                "answers": [json.loads(one.body) for one in answers],
                "deliveries": [dict(one._mapping) for one in deliveries],
                "conflicts": [dict(one._mapping) for one in conflicts],
            }

    def answers(self, study_uid: str) -> list[tuple[int, dict[str, Any]]]:
        """All answers to a study that were remembered and queued, with their revisions, in order."""
        with self._engine.begin() as tx:
            query = sa.select(ANSWERS.c.revision, ANSWERS.c.body).where(ANSWERS.c.study_uid == study_uid)
            rows = tx.execute(query.order_by(ANSWERS.c.revision, ANSWERS.c.model))
            return [(row.revision, json.loads(row.body)) for row in rows]

    def figures(self) -> Figures:
        """What all rows come to, for the gauges."""
        return Gauges(self._engine).read()

    def counts(self) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
        """Number of studies by state, and of deliveries by destination and state."""
        with self._engine.begin() as tx:
            studies = tx.execute(sa.select(STUDIES.c.state, sa.func.count()).group_by(STUDIES.c.state)).all()
            deliveries = tx.execute(
                sa.select(DELIVERIES.c.destination, DELIVERIES.c.state, sa.func.count()).group_by(
                    DELIVERIES.c.destination, DELIVERIES.c.state
                )
            ).all()
        return {row[0]: row[1] for row in studies}, {(row[0], row[1]): row[2] for row in deliveries}

    def deliveries(
        self, *, states: Sequence[str] = (), destination: str = "", limit: int = 100, offset: int = 0
    ) -> list[dict[str, Any]]:
        """Deliveries in the order in which they go, as plain rows."""
        query = sa.select(DELIVERIES, STUDIES.c.priority).join(STUDIES, STUDIES.c.study_uid == DELIVERIES.c.study_uid)
        if states:
            query = query.where(DELIVERIES.c.state.in_(states))
        if destination:
            query = query.where(DELIVERIES.c.destination == destination)
        query = query.order_by(STUDIES.c.priority, DELIVERIES.c.queued_at, DELIVERIES.c.delivery_id)
        with self._engine.begin() as tx:
            return [dict(row._mapping) for row in tx.execute(query.limit(limit).offset(offset))]

    def queues(self) -> dict[str, dict[str, Any]]:
        """Of each destination: its deliveries by state, since when the oldest waits, when one was confirmed last."""
        waiting = DELIVERIES.c.state.in_(OPEN)
        query = sa.select(
            DELIVERIES.c.destination,
            DELIVERIES.c.state,
            sa.func.count(),
            sa.func.min(sa.case((waiting, DELIVERIES.c.queued_at))),
            sa.func.max(DELIVERIES.c.changed_at),
        ).group_by(DELIVERIES.c.destination, DELIVERIES.c.state)
        queues: dict[str, dict[str, Any]] = {}
        with self._engine.begin() as tx:
            for name, state, count, oldest, changed in tx.execute(query):
                queue = queues.setdefault(name, {"states": {}, "waiting_since": None, "confirmed_at": None})
                queue["states"][state] = count
                if oldest is not None:
                    queue["waiting_since"] = min(oldest, queue["waiting_since"] or oldest)
                if state == DeliveryState.CONFIRMED:
                    queue["confirmed_at"] = changed
        return queues

    def ping(self) -> None:
        """Raise if the database does not answer."""
        with self._engine.begin() as tx:
            tx.execute(sa.text("SELECT 1"))

    @staticmethod
    def _lock(tx: sa.Connection, study_uid: str) -> str | None:
        """Let nobody else change this study or its deliveries until the end of the transaction; its state."""
        state: str | None = tx.scalar(
            sa.select(STUDIES.c.state).where(STUDIES.c.study_uid == study_uid).with_for_update()
        )
        return state

    @staticmethod
    def _lock_all(tx: sa.Connection, concerned: sa.ColumnElement[bool]) -> None:
        """The same for several studies, in an order in which two never wait for each other."""
        tx.execute(
            sa.select(STUDIES.c.study_uid).where(concerned).order_by(STUDIES.c.study_uid).with_for_update()
        ).all()


_LAST = ANSWERS.alias("last")
_STANDS = ANSWERS.c.revision == (  # while a new revision waits, the answers of the last one stand
    sa.select(sa.func.max(_LAST.c.revision)).where(_LAST.c.study_uid == ANSWERS.c.study_uid).scalar_subquery()
)


def _conditions(wanted: Wanted) -> list[sa.ColumnElement[bool]]:
    made: list[sa.ColumnElement[bool]] = []
    for value, column in ((wanted.state, STUDIES.c.state), (wanted.source, STUDIES.c.source)):
        if value:
            made.append(column == value)
    if wanted.study_uid:
        made.append(STUDIES.c.study_uid == wanted.study_uid)
    if wanted.since is not None:
        made.append(STUDIES.c.last_at >= wanted.since)
    if wanted.until is not None:
        made.append(STUDIES.c.last_at < wanted.until)
    if wanted.model or wanted.outcome:
        answered = [ANSWERS.c.study_uid == STUDIES.c.study_uid, _STANDS]
        answered += [ANSWERS.c.model == wanted.model] if wanted.model else []
        answered += [ANSWERS.c.outcome == wanted.outcome] if wanted.outcome else []
        made.append(sa.exists().where(*answered))
    if wanted.destination:
        goes = (DELIVERIES.c.study_uid == STUDIES.c.study_uid, DELIVERIES.c.destination == wanted.destination)
        made.append(sa.exists().where(*goes))
    return made
