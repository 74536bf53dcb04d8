"""The store's part on what happened to each study, in order: its time line."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from service.tables import STEPS
from service.types import Step

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_TRIES: Final = 5
_OUTCOMES: Final = (Step.READY, Step.REOPENED, Step.POSTPONED, Step.ANSWERED, Step.RERUN, Step.CANCELLED)
_OTHERS: Final = STEPS.alias("others")
_COLLISIONS: Final = ("40P01", "40001")  # deadlock_detected, serialization_failure (PostgreSQL, Appendix A)


def repeatable(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A transaction that is done again where the database ended it, since two of them waited for each other."""

    @functools.wraps(method)
    def again(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        for number in range(1, _TRIES):
            try:
                return method(*arguments, **named)
            except sa.exc.OperationalError as exc:
                if getattr(exc.orig, "sqlstate", "") not in _COLLISIONS:
                    raise
                time.sleep(random.uniform(0.0, 0.05 * number))
        return method(*arguments, **named)

    return again


def begun_in_vain_of(study_uid: sa.ColumnElement[str]) -> sa.ScalarSelect[int]:
    """How often a study was begun since anything else became of it: each time but the last, its process ended."""
    last = (
        sa.select(sa.func.coalesce(sa.func.max(_OTHERS.c.step_id), 0))
        .where(_OTHERS.c.study_uid == STEPS.c.study_uid, _OTHERS.c.step.in_(_OUTCOMES))
        .scalar_subquery()
    )
    its = (STEPS.c.study_uid == study_uid, STEPS.c.step == Step.BEGUN, STEPS.c.step_id > last)
    return sa.select(sa.func.count()).select_from(STEPS).where(*its).scalar_subquery()


class Timeline:
    """What happened, written in the transaction in which it happened."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._insert: Any = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    @property
    def is_shared(self) -> bool:
        """Whether other processes than those of this service may use it: a SQLite file is one service's own."""
        return self._engine.dialect.name != "sqlite"

    def steps(self, study_uid: str) -> list[dict[str, Any]]:
        """What happened to a study, in order: ``at`` (seconds since 1970), ``step``, ``words``."""
        with self._engine.begin() as tx:
            query = sa.select(STEPS.c.at, STEPS.c.step, STEPS.c.words).where(STEPS.c.study_uid == study_uid)
            return [dict(row._mapping) for row in tx.execute(query.order_by(STEPS.c.step_id))]

    def steps_since(self, step_id: int, *, limit: int = 1000) -> list[tuple[int, str, float, str]]:
        """The steps of all studies behind that number: number, study, when, step.

        A hint to look again, and no record: of two at the same moment the later number may be seen first.
        """
        with self._engine.begin() as tx:
            query = sa.select(STEPS.c.step_id, STEPS.c.study_uid, STEPS.c.at, STEPS.c.step)
            rows = tx.execute(query.where(STEPS.c.step_id > step_id).order_by(STEPS.c.step_id).limit(limit))
            return [(row.step_id, row.study_uid, row.at, row.step) for row in rows]

    def last_step(self) -> int:
        """The number of the last step; 0 where there is none."""
        with self._engine.begin() as tx:
            return int(tx.scalar(sa.select(sa.func.max(STEPS.c.step_id))) or 0)

    def begun_in_vain(self, study_uid: str) -> int:
        """How often in a row a study was begun, now included, and nothing came of it, not even a word why."""
        with self._engine.begin() as tx:
            return int(tx.scalar(sa.select(begun_in_vain_of(sa.literal(study_uid)))) or 0)

    @staticmethod
    def _step(tx: sa.Connection, study_uid: str, step: Step, words: str = "") -> None:
        tx.execute(sa.insert(STEPS).values(study_uid=study_uid, at=time.time(), step=step, words=words))
