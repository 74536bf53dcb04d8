"""[edge: sqlalchemy] What the store's rows come to, for the gauges: a few cheap questions, asked at each scrape.

Every process on one database reads the same here, so whoever adds the processes up takes the greatest, not the sum.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from service.tables import DELIVERIES, STUDIES
from service.types import OPEN, StudyState

SINCE: Final[Mapping[StudyState, sa.Column[Any]]] = {  # in the states that a study is to leave again
    StudyState.RECEIVING: STUDIES.c.last_at,
    StudyState.ANALYSING: STUDIES.c.started_at,
    StudyState.DELIVERING: STUDIES.c.answered_at,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the rows come to now. All times are seconds since 1970."""

    studies: Mapping[str, int]  # by state
    in_state_since: Mapping[str, float]  # by state, of those that a study is to leave: of the one longest in it
    unanswered_since: float | None  # since when the oldest study is ready that nobody is at work on; None: none waits
    deliveries: Mapping[tuple[str, str], int]  # by destination and state
    undelivered_since: Mapping[str, float]  # by destination: since when the oldest delivery waits that is still to end
    last_instance_at: float | None  # when the last instance of all came


class Gauges:
    """Reads the figures.

    Parameters
    ----------
    engine
        The store's.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def read(self) -> Figures:
        """The figures as they are now.

        Raises
        ------
        sqlalchemy.exc.SQLAlchemyError
            If the database does not answer.
        """
        unheld = (STUDIES.c.holder == "") | (STUDIES.c.next_at < time.time())  # or its process is gone
        with self._engine.connect() as tx:
            return Figures(
                studies=_pairs(tx, sa.select(STUDIES.c.state, sa.func.count()).group_by(STUDIES.c.state)),
                in_state_since={
                    state: since
                    for state, column in SINCE.items()
                    if (since := _least(tx, column, STUDIES.c.state == state)) is not None
                },
                unanswered_since=_least(tx, STUDIES.c.started_at, STUDIES.c.state == StudyState.ANALYSING, unheld),
                deliveries={
                    (destination, state): count
                    for destination, state, count in tx.execute(
                        sa.select(DELIVERIES.c.destination, DELIVERIES.c.state, sa.func.count()).group_by(
                            DELIVERIES.c.destination, DELIVERIES.c.state
                        )
                    )
                },
                undelivered_since=_pairs(
                    tx,
                    sa.select(DELIVERIES.c.destination, sa.func.min(DELIVERIES.c.queued_at))
                    .where(DELIVERIES.c.state.in_(OPEN))
                    .group_by(DELIVERIES.c.destination),
                ),
                last_instance_at=tx.scalar(sa.select(sa.func.max(STUDIES.c.last_at))),
            )


def _pairs(tx: sa.Connection, query: sa.Select[Any]) -> dict[str, Any]:
    return {row[0]: row[1] for row in tx.execute(query)}


def _least(tx: sa.Connection, column: sa.Column[Any], *where: sa.ColumnElement[bool]) -> float | None:
    found: float | None = tx.scalar(sa.select(sa.func.min(column)).where(*where))
    return found
