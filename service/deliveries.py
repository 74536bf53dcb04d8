"""The store's part on deliveries: which are due, and how each attempt ended."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from service.overview import Overview
from service.tables import DELIVERIES, STUDIES
from service.types import Delivery, DeliveryState, StudyState

OPEN = (DeliveryState.QUEUED, DeliveryState.RETRYING, DeliveryState.SENT)
_ANSWERED = (StudyState.DELIVERING, StudyState.DONE, StudyState.UNDELIVERED)


class Deliveries(Overview):
    """What is remembered of objects on their way, in transactions of its own."""

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine)
        self._insert: Any = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    def delivery(self, delivery_id: int) -> Delivery:
        """One delivery."""
        with self._engine.begin() as tx:
            return _delivery(tx.execute(sa.select(DELIVERIES).where(DELIVERIES.c.delivery_id == delivery_id)).one())

    def due_deliveries(self, *, now: float, lease_seconds: float) -> list[tuple[int, str, int]]:
        """Number, destination and attempts of the deliveries that are due; none is due again before the lease ends."""
        with self._engine.begin() as tx:
            rows = tx.execute(
                sa.update(DELIVERIES)
                .where(DELIVERIES.c.state.in_(OPEN), DELIVERIES.c.next_at <= now)
                .values(next_at=now + lease_seconds)
                .returning(DELIVERIES.c.delivery_id, DELIVERIES.c.destination, DELIVERIES.c.attempts)
            )
            return sorted((row.delivery_id, row.destination, row.attempts) for row in rows)

    def note_delivery(
        self,
        delivery_id: int,
        state: DeliveryState,
        *,
        reason: str = "",
        tried: bool = False,
        next_at: float | None = None,
    ) -> float:
        """Remember where a delivery is, and when it is due again; the study is DONE with its last one.

        Returns
        -------
        float
            Seconds since the last instance of its study came.
        """
        with self._engine.begin() as tx:
            study_uid = tx.scalar(sa.select(DELIVERIES.c.study_uid).where(DELIVERIES.c.delivery_id == delivery_id))
            self._lock(tx, str(study_uid))
            row = tx.execute(
                sa.update(DELIVERIES)
                .where(DELIVERIES.c.delivery_id == delivery_id)
                .values(
                    state=state,
                    reason=reason,
                    attempts=DELIVERIES.c.attempts + int(tried),
                    next_at=DELIVERIES.c.next_at if next_at is None else next_at,
                    changed_at=time.time(),
                )
                .returning(DELIVERIES.c.study_uid)
            ).one()
            self._finish(tx, row.study_uid)
            last_at = tx.execute(sa.select(STUDIES.c.last_at).where(STUDIES.c.study_uid == row.study_uid))
            return time.time() - float(last_at.scalar_one())

    def replace_delivery(
        self, delivery_id: int, *, reason: str, withdrawn: Sequence[str], in_its_place: Iterable[Delivery]
    ) -> float:
        """Remember that a destination does not accept an object, and queue what goes there instead, together.

        Parameters
        ----------
        withdrawn
            SOP Instance UIDs that do not go there either, as far as they are still waiting: they belong to it.
        in_its_place
            Their ``delivery_id`` is not looked at; what is queued or was sent already is not queued again.

        Returns
        -------
        float
            Seconds since the last instance of its study came.
        """
        with self._engine.begin() as tx:
            row = tx.execute(sa.select(DELIVERIES).where(DELIVERIES.c.delivery_id == delivery_id)).one()
            study_uid = row.study_uid
            self._lock(tx, study_uid)
            together = sa.and_(
                DELIVERIES.c.destination == row.destination,
                DELIVERIES.c.sop_uid.in_(withdrawn),
                DELIVERIES.c.state.in_((DeliveryState.QUEUED, DeliveryState.RETRYING)),
            )
            tx.execute(
                sa.update(DELIVERIES)
                .where(sa.or_(DELIVERIES.c.delivery_id == delivery_id, together))
                .values(state=DeliveryState.REPLACED, reason=reason, changed_at=time.time())
            )
            for delivery in in_its_place:
                self._queue(tx, study_uid, delivery)
            self._finish(tx, study_uid)
            last_at = tx.execute(sa.select(STUDIES.c.last_at).where(STUDIES.c.study_uid == study_uid))
            return time.time() - float(last_at.scalar_one())

    def _queue(self, tx: sa.Connection, study_uid: str, delivery: Delivery) -> None:
        """Queue an object for a destination that was not to get it before."""
        tx.execute(
            self._insert(DELIVERIES)
            .values(
                study_uid=study_uid,
                destination=delivery.destination,
                kind=delivery.kind,
                class_uid=delivery.sop_class_uid,
                series_uid=delivery.series_instance_uid,
                sop_uid=delivery.sop_instance_uid,
                path=str(delivery.path),
                state=DeliveryState.QUEUED,
                attempts=0,
                reason="",
                queued_at=delivery.queued_at,
                next_at=0.0,
                changed_at=time.time(),
            )
            .on_conflict_do_nothing()
        )

    @staticmethod
    def _lock(tx: sa.Connection, study_uid: str) -> None:
        """Let nobody else change this study's deliveries: else each of the last two leaves the DONE to the other."""
        tx.execute(sa.select(STUDIES.c.study_uid).where(STUDIES.c.study_uid == study_uid).with_for_update())

    @staticmethod
    def _finish(tx: sa.Connection, study_uid: str) -> None:
        mine = DELIVERIES.c.study_uid == study_uid
        waiting = sa.exists().where(mine, DELIVERIES.c.state.in_(OPEN))
        refused = sa.exists().where(mine, DELIVERIES.c.state == DeliveryState.REFUSED)
        tx.execute(
            sa.update(STUDIES)
            .where(STUDIES.c.study_uid == study_uid, STUDIES.c.state.in_(_ANSWERED), ~waiting)
            .values(
                state=sa.case((refused, StudyState.UNDELIVERED), else_=StudyState.DONE),
                done_at=sa.case((refused, None), else_=time.time()),
            )
        )


def _delivery(row: Sequence[Any] | sa.Row[Any]) -> Delivery:
    fields = row._mapping  # type: ignore[union-attr]
    return Delivery(
        delivery_id=fields["delivery_id"],
        study_instance_uid=fields["study_uid"],
        destination=fields["destination"],
        kind=fields["kind"],
        sop_class_uid=fields["class_uid"],
        series_instance_uid=fields["series_uid"],
        sop_instance_uid=fields["sop_uid"],
        path=Path(fields["path"]),
        state=DeliveryState(fields["state"]),
        attempts=fields["attempts"],
        reason=fields["reason"],
        queued_at=fields["queued_at"],
    )
