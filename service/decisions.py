"""The store's part on what operators decide about studies and deliveries, and the configuration for them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from service.deliveries import ANSWERED, IS_OPEN, Deliveries, said
from service.tables import DELIVERIES, STUDIES
from service.timeline import repeatable
from service.types import DeliveryState, Priority, Step, StudyState

_MAY_BE_RETRIED = (
    *(DeliveryState.QUEUED, DeliveryState.RETRYING),
    *(DeliveryState.REFUSED, DeliveryState.DROPPED, DeliveryState.UNCONFIRMED),
)
_MAY_BE_RESENT = (DeliveryState.CONFIRMED, DeliveryState.UNCONFIRMED, DeliveryState.REFUSED, DeliveryState.RETRYING)
_ANEW: dict[str, Any] = {
    "state": DeliveryState.RETRYING,
    "attempts": 0,
    "failed_at": 0.0,
    "next_at": 0.0,
    "transaction_uid": "",
    "commitment": "",
}
_MAY_BE_DROPPED = (DeliveryState.QUEUED, DeliveryState.RETRYING, DeliveryState.REFUSED, DeliveryState.UNCONFIRMED)


class Decisions(Deliveries):
    """What is decided, in transactions of its own."""

    @repeatable
    def rerun(self, study_uid: str) -> bool:
        """Have a study analysed again, as a new revision; False if it is not answered, or its images were removed.

        The same images and models make the same objects, and what was delivered is not sent again.
        """
        with self._engine.begin() as tx:
            self._lock(tx, study_uid)
            may_be = (STUDIES.c.state.in_((*ANSWERED, StudyState.CANCELLED)), STUDIES.c.sources_at.is_not(None))
            again = sa.update(STUDIES).where(STUDIES.c.study_uid == study_uid, *may_be)
            done = tx.execute(
                again.values(
                    state=StudyState.ANALYSING,
                    revision=STUDIES.c.revision + 1,
                    started_at=time.time(),
                    tries=0,
                    next_at=0.0,
                    holder="",
                    progress="",
                    answered_at=None,
                    done_at=None,
                    evidence_gone_at=None,
                    records_gone_at=None,
                )
            )
            if done.rowcount:
                self._step(tx, study_uid, Step.RERUN)
            return bool(done.rowcount)

    @repeatable
    def cancel(self, study_uid: str) -> bool:
        """Decide that a study is not to be analysed; False if it does not wait for that, nor is analysed now.

        What was answered before stands, and goes where it was to go. A later instance makes it wait anew.
        """
        with self._engine.begin() as tx:
            self._lock(tx, study_uid)
            unanswered = STUDIES.c.state.in_((StudyState.RECEIVING, StudyState.ANALYSING))
            ended = sa.update(STUDIES).where(STUDIES.c.study_uid == study_uid, unanswered)
            done = tx.execute(
                ended.values(state=StudyState.CANCELLED, done_at=time.time(), holder="", waits="", progress="")
            )
            if done.rowcount:
                self._step(tx, study_uid, Step.CANCELLED)
            return bool(done.rowcount)

    @repeatable
    def set_priority(self, study_uid: str, priority: Priority) -> bool:
        """Make a study more or less urgent, for its analysis and what is still to be delivered; False if unknown."""
        with self._engine.begin() as tx:
            self._lock(tx, study_uid)
            done = tx.execute(sa.update(STUDIES).where(STUDIES.c.study_uid == study_uid).values(priority=int(priority)))
            if done.rowcount:
                self._step(tx, study_uid, Step.URGENCY, priority.name.lower())
            return bool(done.rowcount)

    def resend(self, study_uid: str, destination: str = "") -> list[int]:
        """Send a study's results once more, the same bytes: those that arrived too; to one destination, or to all.

        Returns
        -------
        list of int
            The numbers of the deliveries that are due now.
        """
        of_study = [DELIVERIES.c.study_uid == study_uid, DELIVERIES.c.state.in_(_MAY_BE_RESENT), *self._are_there()]
        if destination:
            of_study.append(DELIVERIES.c.destination == destination)
        return self._change(of_study, **_ANEW, step=Step.RESENT)

    def refuse_unknown(self, destinations: Sequence[str]) -> int:
        """Stop what waits for a destination that is none of these; returns how many deliveries that were."""
        unknown = [IS_OPEN, DELIVERIES.c.destination.not_in(destinations)]
        reason = "its destination is no longer configured. Way out: name it again, or drop the delivery"
        return len(self._change(unknown, state=DeliveryState.REFUSED, reason=reason, holder="", step=Step.REFUSED))

    def retry_deliveries(self, *, numbers: Sequence[int] = (), destination: str = "") -> list[int]:
        """Make deliveries due at once, and give them their retry hours anew: those of these numbers, or all of a
        destination that were refused.

        Returns
        -------
        list of int
            The numbers of those that will be tried; what is confirmed or replaced is left alone.
        """
        return self._change(self._chosen(numbers, destination, _MAY_BE_RETRIED), **_ANEW, step=Step.RESENT)

    def drop_deliveries(self, *, numbers: Sequence[int] = (), destination: str = "", reason: str = "") -> list[int]:
        """Decide that deliveries are not to be sent: those of these numbers, or all refused ones of a destination.

        Returns
        -------
        list of int
            The numbers of those that were dropped; what was sent is left alone.
        """
        chosen = self._chosen(numbers, destination, _MAY_BE_DROPPED)
        words = reason or "dropped by an operator"
        return self._change(chosen, state=DeliveryState.DROPPED, reason=words, holder="", step=Step.DROPPED)

    @staticmethod
    def _are_there() -> list[Any]:
        """Deliveries whose bytes are still there: retention removes none that an operator may have to act on."""
        mine = STUDIES.c.study_uid == DELIVERIES.c.study_uid
        return [sa.exists().where(mine, STUDIES.c.evidence_gone_at.is_(None))]

    def _chosen(self, numbers: Sequence[int], destination: str, states: Sequence[DeliveryState]) -> list[Any]:
        if destination:
            refused = DELIVERIES.c.state == DeliveryState.REFUSED
            return [*self._are_there(), DELIVERIES.c.destination == destination, refused]
        return [*self._are_there(), DELIVERIES.c.delivery_id.in_(numbers), DELIVERIES.c.state.in_(states)]

    @repeatable
    def _change(self, chosen: list[Any], *, step: Step, **values: Any) -> list[int]:
        with self._engine.begin() as tx:
            concerned = sa.select(DELIVERIES.c.study_uid).where(*chosen).distinct()
            for study_uid in sorted(tx.scalars(concerned)):
                self._lock(tx, study_uid)  # the study first, as everywhere
            rows = tx.execute(
                sa.update(DELIVERIES).where(*chosen).values(**values, changed_at=time.time()).returning(*DELIVERIES.c)
            ).all()
            for row in rows:
                self._step(tx, row.study_uid, step, said(row, values.get("reason", "")))
            for study_uid in {row.study_uid for row in rows}:
                tx.execute(
                    sa.update(STUDIES)
                    .where(STUDIES.c.study_uid == study_uid, STUDIES.c.state.in_(ANSWERED))
                    .values(state=StudyState.DELIVERING, done_at=None)
                )
                self._finish(tx, study_uid)
            return sorted(row.delivery_id for row in rows)
