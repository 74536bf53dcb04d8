"""What is remembered, as it is seen from outside: plain rows, nothing is changed."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from service.tables import ANSWERS, DELIVERIES, INSTANCES, STUDIES


class Overview:
    """The reading half of the store."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def studies(self, *, state: str | None = None, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
        """The studies, the latest first, as plain rows with their number of instances."""
        counted = (
            sa.select(INSTANCES.c.study_uid, sa.func.count().label("instances"))
            .group_by(INSTANCES.c.study_uid)
            .subquery()
        )
        query = (
            sa.select(STUDIES, counted.c.instances)
            .join(counted, counted.c.study_uid == STUDIES.c.study_uid)
            .order_by(STUDIES.c.last_at.desc())
            .limit(limit)
            .offset(offset)
        )
        if state:
            query = query.where(STUDIES.c.state == state)
        with self._engine.begin() as tx:
            return [dict(row._mapping) for row in tx.execute(query)]

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
            return {
                **dict(row._mapping),
                "answered_revision": answered,
                "series": [dict(one._mapping) for one in series],
                "answers": [json.loads(one.body) for one in answers],
                "deliveries": [dict(one._mapping) for one in deliveries],
            }

    def answered_revisions(self, study_uid: str) -> list[int]:
        """The revisions of a study whose answers were remembered and queued, in order."""
        with self._engine.begin() as tx:
            query = sa.select(ANSWERS.c.revision).where(ANSWERS.c.study_uid == study_uid).distinct()
            return sorted(tx.scalars(query))

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

    def ping(self) -> None:
        """Raise if the database does not answer."""
        with self._engine.begin() as tx:
            tx.execute(sa.text("SELECT 1"))
