"""The store's part on deliveries: which are due, and how each attempt ended."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from service.overview import Overview
from service.tables import DELIVERIES, STUDIES
from service.timeline import repeatable
from service.types import OPEN, Delivery, DeliveryState, Step, StudyState

COMMITTED: Final = "committed"
IS_OPEN = DELIVERIES.c.state.in_(OPEN)
_STEPS: Final = {  # what a delivery's state is in the study's time line; the others are steps of their own, or none
    DeliveryState.CONFIRMED: Step.CONFIRMED,
    DeliveryState.UNCONFIRMED: Step.UNCONFIRMED,
    DeliveryState.REFUSED: Step.REFUSED,
}
ANSWERED: Final = (StudyState.DELIVERING, StudyState.DONE, StudyState.UNDELIVERED)


class Deliveries(Overview):
    """What is remembered of objects on their way, in transactions of its own."""

    def delivery(self, delivery_id: int) -> Delivery:
        """One delivery."""
        with self._engine.begin() as tx:
            return _delivery(tx.execute(sa.select(DELIVERIES).where(DELIVERIES.c.delivery_id == delivery_id)).one())

    def delivered(self, study_uid: str) -> dict[str, Path]:
        """Where the bytes were frozen of each object of a study that was ever to be delivered, by SOP Instance UID."""
        with self._engine.begin() as tx:
            query = sa.select(DELIVERIES.c.sop_uid, DELIVERIES.c.path).where(DELIVERIES.c.study_uid == study_uid)
            return {row.sop_uid: Path(row.path) for row in tx.execute(query)}

    @repeatable
    def ask_commitment(self, delivery_id: int, transaction_uid: str) -> None:
        """Remember under which transaction a commitment will be asked for, before it is: the answer may be fast."""
        with self._engine.begin() as tx:
            tx.execute(
                sa.update(DELIVERIES)
                .where(DELIVERIES.c.delivery_id == delivery_id)
                .values(transaction_uid=transaction_uid, commitment="", asked_at=time.time())
            )

    @repeatable
    def note_commitment(self, transaction_uid: str, *, committed: Iterable[str], failed: Mapping[str, int]) -> int:
        """Remember what a destination has committed to, and what not (PS3.4 J.3.3); its deliveries are due at once.

        Parameters
        ----------
        committed
            SOP Instance UIDs.
        failed
            Failure Reason (0008,1197) by SOP Instance UID.

        Returns
        -------
        int
            How many deliveries it concerns; 0 for a transaction that nobody waits for.
        """
        words = {uid: f"{reason:04X}" for uid, reason in failed.items()} | dict.fromkeys(committed, COMMITTED)
        mine = (DELIVERIES.c.transaction_uid == transaction_uid, DELIVERIES.c.state == DeliveryState.SENT)
        concerned = 0
        # Who is at work on it looks for the report himself, and is not to be joined by another process.
        due = sa.case((DELIVERIES.c.holder == "", 0.0), else_=DELIVERIES.c.next_at)
        with self._engine.begin() as tx:
            for uid, word in sorted(words.items()):
                done = tx.execute(
                    sa.update(DELIVERIES)
                    .where(*mine, DELIVERIES.c.sop_uid == uid)
                    .values(commitment=word, next_at=due, changed_at=time.time())
                )
                concerned += done.rowcount
        return concerned

    @repeatable
    def note_delivery(
        self,
        delivery_id: int,
        state: DeliveryState,
        *,
        reason: str = "",
        tried: bool = False,
        next_at: float | None = None,
    ) -> float | None:
        """Remember where a delivery is, and when it is due again; the study is DONE with its last one.

        What was ended meanwhile, as by an operator who dropped it, stays so.

        Returns
        -------
        float, optional
            Seconds since the last instance of its study came; None, where it was ended before: nothing is noted.
        """
        with self._engine.begin() as tx:
            study_uid = str(self._study_of(tx, delivery_id))
            self._lock(tx, study_uid)
            before = tx.execute(sa.select(DELIVERIES).where(DELIVERIES.c.delivery_id == delivery_id)).one()
            # A report may have come since the attempt looked for one: then it is due at once.
            reported = sa.and_(sa.literal(state == DeliveryState.SENT), DELIVERIES.c.commitment != "")
            due = DELIVERIES.c.next_at if next_at is None else sa.literal(next_at)
            failed_at = sa.case((DELIVERIES.c.failed_at > 0, DELIVERIES.c.failed_at), else_=time.time())
            noted = tx.execute(
                sa.update(DELIVERIES)
                .where(DELIVERIES.c.delivery_id == delivery_id, IS_OPEN)
                .values(
                    state=state,
                    holder="",
                    reason=reason,
                    attempts=DELIVERIES.c.attempts + int(tried),
                    failed_at=failed_at if tried else DELIVERIES.c.failed_at,
                    next_at=sa.case((reported, 0.0), else_=due),
                    changed_at=time.time(),
                )
            )
            if not noted.rowcount:
                return None
            if state != before.state and state in _STEPS:
                self._step(tx, study_uid, _STEPS[state], said(before, reason))
            self._finish(tx, study_uid)
            return self._since_last_slice(tx, study_uid)

    @repeatable
    def note_sent(self, delivery_id: int, *, remark: str) -> None:
        """Remember that the destination said Success, and perhaps a remark: the receipt is still to come."""
        with self._engine.begin() as tx:
            study_uid = str(self._study_of(tx, delivery_id))
            self._lock(tx, study_uid)  # the study first, as everywhere
            row = tx.execute(sa.select(DELIVERIES).where(DELIVERIES.c.delivery_id == delivery_id, IS_OPEN)).first()
            if row:
                self._step(tx, study_uid, Step.SENT, said(row, remark))
            tx.execute(
                sa.update(DELIVERIES)
                .where(DELIVERIES.c.delivery_id == delivery_id, IS_OPEN)
                .values(
                    state=DeliveryState.SENT,
                    reason="",
                    remark=remark,
                    transaction_uid="",
                    commitment="",
                    asked_at=time.time(),
                    changed_at=time.time(),
                )
            )

    @repeatable
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
            if tx.scalar(sa.select(DELIVERIES.c.state).where(DELIVERIES.c.delivery_id == delivery_id)) not in OPEN:
                return self._since_last_slice(tx, study_uid)  # it was dropped meanwhile
            together = sa.and_(
                DELIVERIES.c.destination == row.destination,
                DELIVERIES.c.sop_uid.in_(withdrawn),
                DELIVERIES.c.state.in_((DeliveryState.QUEUED, DeliveryState.RETRYING)),
            )
            tx.execute(
                sa.update(DELIVERIES)
                .where(sa.or_(DELIVERIES.c.delivery_id == delivery_id, together))
                .values(state=DeliveryState.REPLACED, reason=reason, holder="", changed_at=time.time())
            )
            self._step(tx, study_uid, Step.REPLACED, said(row, reason))
            for delivery in in_its_place:
                self._queue(tx, study_uid, delivery)
            self._finish(tx, study_uid)
            return self._since_last_slice(tx, study_uid)

    def _queue(self, tx: sa.Connection, study_uid: str, delivery: Delivery) -> None:
        """Queue an object for a destination that was not to get it before."""
        tx.execute(
            self._insert(DELIVERIES)
            .values(
                study_uid=study_uid,
                destination=delivery.destination,
                model=delivery.model,
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
    def _since_last_slice(tx: sa.Connection, study_uid: str) -> float:
        last_at = tx.execute(sa.select(STUDIES.c.last_at).where(STUDIES.c.study_uid == study_uid)).scalar_one()
        return time.time() - float(last_at)

    @staticmethod
    def _study_of(tx: sa.Connection, delivery_id: int) -> str | None:
        query = sa.select(DELIVERIES.c.study_uid).where(DELIVERIES.c.delivery_id == delivery_id)
        study_uid: str | None = tx.scalar(query)
        return study_uid

    def _finish(self, tx: sa.Connection, study_uid: str) -> None:
        """End the study with its last delivery."""
        of_study = STUDIES.c.study_uid == study_uid
        before = tx.scalar(sa.select(STUDIES.c.state).where(of_study))
        mine = DELIVERIES.c.study_uid == study_uid
        waiting = sa.exists().where(mine, IS_OPEN)
        refused = sa.exists().where(mine, DELIVERIES.c.state == DeliveryState.REFUSED)
        tx.execute(
            sa.update(STUDIES)
            .where(of_study, STUDIES.c.state.in_(ANSWERED), ~waiting)
            .values(
                state=sa.case((refused, StudyState.UNDELIVERED), else_=StudyState.DONE),
                done_at=sa.case((refused, None), else_=time.time()),
            )
        )
        if before != StudyState.DONE and tx.scalar(sa.select(STUDIES.c.state).where(of_study)) == StudyState.DONE:
            self._step(tx, study_uid, Step.DONE)


def said(row: sa.Row[Any], words: str) -> str:
    """What the time line says of a delivery."""
    return f"{row.kind} of {row.model} at {row.destination}" + (f": {words}" if words else "")


def _delivery(row: Sequence[Any] | sa.Row[Any]) -> Delivery:
    fields = row._mapping  # type: ignore[union-attr]
    return Delivery(
        delivery_id=fields["delivery_id"],
        study_instance_uid=fields["study_uid"],
        destination=fields["destination"],
        model=fields["model"],
        kind=fields["kind"],
        sop_class_uid=fields["class_uid"],
        series_instance_uid=fields["series_uid"],
        sop_instance_uid=fields["sop_uid"],
        path=Path(fields["path"]),
        state=DeliveryState(fields["state"]),
        attempts=fields["attempts"],
        reason=fields["reason"],
        queued_at=fields["queued_at"],
        remark=fields["remark"],
        transaction_uid=fields["transaction_uid"],
        commitment=fields["commitment"],
        asked_at=fields["asked_at"],
        failed_at=fields["failed_at"],
    )
