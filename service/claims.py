"""The store's part on who is at work on what: taken for a while, kept by renewing it, left to others.

Nothing depends on it for being right: two that do the same make the same bytes, and the first to freeze them counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Container, Iterable
from typing import Any, Final

import sqlalchemy as sa

from service import __version__
from service.deliveries import IS_OPEN, Deliveries
from service.forms import Kind
from service.tables import DELIVERIES, PROCESSES, STUDIES
from service.timeline import begun_in_vain_of, repeatable
from service.types import DeliveryState, Priority, Step, StudyState

_DOUBTFUL: Final = 2  # ends of a process: one has many reasons, a restart above all


class Claims(Deliveries):
    """What is due, and who has it, in transactions of its own."""

    @repeatable
    def due_studies(
        self,
        *,
        now: float,
        lease_seconds: float,
        limit: int,
        urgent: bool,
        holder: str = "",
        only: str = "",
        but: Container[tuple[str, int]] = (),
    ) -> list[tuple[str, int, int, Priority]]:
        """Studies whose analysis is due, the most urgent first; none of them is due again before the lease ends.

        Parameters
        ----------
        urgent
            Whether those of STAT priority are wanted, or the others.
        holder
            Name of the process that takes them.
        only
            Study Instance UID of the one that is wanted, whatever its priority.
        but
            UID and revision of those that are at work there, though their lease may have lapsed.

        Returns
        -------
        list of tuple
            UID, revision, how often it was tried, urgency.
        """
        stat = STUDIES.c.priority == int(Priority.STAT)
        wanted = STUDIES.c.study_uid == only if only else stat if urgent else ~stat
        due = (STUDIES.c.state == StudyState.ANALYSING, STUDIES.c.next_at <= now, wanted)
        columns = (STUDIES.c.study_uid, STUDIES.c.revision, STUDIES.c.tries, STUDIES.c.priority)
        order = (STUDIES.c.priority, STUDIES.c.started_at, STUDIES.c.study_uid)
        with self._engine.begin() as tx:
            rows = tx.execute(sa.select(*columns).where(*due).order_by(*order).limit(limit)).all()
            claimed = []
            for row in rows:  # each by itself: another worker may have been faster
                if (row.study_uid, row.revision) in but:
                    continue
                mine = sa.update(STUDIES).where(STUDIES.c.study_uid == row.study_uid, *due)
                if tx.execute(mine.values(next_at=now + lease_seconds, holder=holder)).rowcount:
                    self._step(tx, row.study_uid, Step.BEGUN, f"by {holder}" if holder else "")
                    claimed.append((row.study_uid, row.revision, row.tries, Priority(row.priority)))
            return claimed

    def doubtful(self) -> list[str]:
        """Studies that have had their process end at least twice while it was at work on them, the fewest times first.

        One of them may be the reason; whichever was at work beside it is none.
        """
        ends = begun_in_vain_of(STUDIES.c.study_uid)
        with self._engine.begin() as tx:
            query = sa.select(STUDIES.c.study_uid).where(STUDIES.c.state == StudyState.ANALYSING, ends >= _DOUBTFUL)
            return list(tx.scalars(query.order_by(ends, STUDIES.c.priority, STUDIES.c.started_at)))

    def due_destinations(self, *, now: float) -> list[str]:
        """The destinations for which something is due."""
        due = (IS_OPEN, DELIVERIES.c.next_at <= now)
        with self._engine.begin() as tx:
            return sorted(tx.scalars(sa.select(DELIVERIES.c.destination).where(*due).distinct()))

    @repeatable
    def due_deliveries(
        self, destination: str, *, now: float, lease_seconds: float, limit: int, holder: str = ""
    ) -> list[int]:
        """Numbers of a destination's deliveries that are due; none of them is due again before the lease ends.

        Those of the most urgent studies come first, then the oldest ones.

        Parameters
        ----------
        holder
            Name of the process that takes them.
        """
        # A report goes when its segmentations have been tried: if they are refused, another report goes in its place.
        other = DELIVERIES.alias("segmentation")
        untried = sa.exists().where(
            DELIVERIES.c.kind == Kind.SR,
            other.c.kind == Kind.SEG,
            other.c.destination == destination,
            other.c.study_uid == DELIVERIES.c.study_uid,
            other.c.model == DELIVERIES.c.model,
            other.c.state == DeliveryState.QUEUED,
            other.c.attempts == 0,
        )
        due = (DELIVERIES.c.destination == destination, IS_OPEN, DELIVERIES.c.next_at <= now, ~untried)
        order = (STUDIES.c.priority, DELIVERIES.c.queued_at, DELIVERIES.c.delivery_id)
        with self._engine.begin() as tx:
            query = sa.select(DELIVERIES.c.delivery_id).join(STUDIES, STUDIES.c.study_uid == DELIVERIES.c.study_uid)
            claimed = []
            for number in tx.scalars(query.where(*due).order_by(*order).limit(limit)).all():
                mine = sa.update(DELIVERIES).where(DELIVERIES.c.delivery_id == number, *due)
                claim = mine.values(next_at=now + lease_seconds, holder=holder)
                if tx.execute(claim).rowcount:  # nobody else was faster
                    claimed.append(number)
            return claimed

    @repeatable
    def renew(
        self, holder: str, *, until: float, studies: Iterable[tuple[str, int]] = (), deliveries: Iterable[int] = ()
    ) -> None:
        """Keep what a process is at work on, until then: nobody else takes it before.

        Parameters
        ----------
        studies
            UID and revision.
        deliveries
            Their numbers.
        """
        with self._engine.begin() as tx:
            for study_uid, revision in sorted(studies):
                same = (STUDIES.c.study_uid == study_uid, STUDIES.c.revision == revision, STUDIES.c.holder == holder)
                is_analysed = STUDIES.c.state == StudyState.ANALYSING
                tx.execute(sa.update(STUDIES).where(*same, is_analysed).values(next_at=until))
            numbers = list(deliveries)
            if numbers:
                held = (DELIVERIES.c.delivery_id.in_(numbers), DELIVERIES.c.holder == holder, IS_OPEN)
                tx.execute(sa.update(DELIVERIES).where(*held).values(next_at=until))

    @repeatable
    def note_left(self, studies: Iterable[tuple[str, int]]) -> None:
        """Write down of what is not answered yet that its process stopped in order: the study is no reason for that.

        Parameters
        ----------
        studies
            UID and revision.
        """
        with self._engine.begin() as tx:
            for study_uid, revision in sorted(studies):
                same = (STUDIES.c.study_uid == study_uid, STUDIES.c.revision == revision)
                query = sa.select(STUDIES.c.study_uid).where(*same, STUDIES.c.state == StudyState.ANALYSING)
                if tx.scalar(query):
                    self._step(tx, study_uid, Step.POSTPONED, "the service stopped")

    @repeatable
    def release(self, holder: str | None = None) -> None:
        """Make due at once what a process had taken when it ended; when it starts, it is at work on nothing.

        What was refused for good is tried once more: somebody may have mended the configuration, here or there.

        Parameters
        ----------
        holder
            Its name; None: there is no other process, so all that is unfinished is due.
        """
        with self._engine.begin() as tx:
            mine = sa.true() if holder is None else DELIVERIES.c.holder == holder
            refused = DELIVERIES.c.state == DeliveryState.REFUSED
            concerned = sa.exists().where(DELIVERIES.c.study_uid == STUDIES.c.study_uid, refused | (IS_OPEN & mine))
            self._lock_all(tx, concerned | (STUDIES.c.state == StudyState.UNDELIVERED))
            # Whether a commitment was asked for, or only about to be, nobody knows any more: it is asked for anew.
            asked = (DELIVERIES.c.state == DeliveryState.SENT, DELIVERIES.c.commitment == "", mine)
            tx.execute(sa.update(DELIVERIES).where(*asked).values(transaction_uid=""))
            self._hurry(tx, holder)
            tx.execute(sa.update(DELIVERIES).where(refused).values(state=DeliveryState.RETRYING, next_at=0.0))
            tx.execute(
                sa.update(STUDIES).where(STUDIES.c.state == StudyState.UNDELIVERED).values(state=StudyState.DELIVERING)
            )

    @repeatable
    def hurry(self) -> None:
        """Make what waits due at once: the clock was set back, due times are far. What is at work is renewed anyway."""
        with self._engine.begin() as tx:
            self._hurry(tx, "")

    @repeatable
    def let_go(self, name: str) -> None:
        """Leave to others what a process had taken, and forget that it was there: it ends."""
        if self.is_shared:
            with self._engine.begin() as tx:
                self._hurry(tx, name)
                tx.execute(sa.delete(PROCESSES).where(PROCESSES.c.name == name))

    def _hurry(self, tx: sa.Connection, holder: str | None) -> None:
        """Make due at once what that process has taken; empty: what nobody has; None: all."""
        both = ((STUDIES, STUDIES.c.state == StudyState.ANALYSING), (DELIVERIES, IS_OPEN))
        its = {table: sa.true() if holder is None else table.c.holder == holder for table, _ in both}
        concerned = sa.exists().where(DELIVERIES.c.study_uid == STUDIES.c.study_uid, IS_OPEN, its[DELIVERIES])
        self._lock_all(tx, concerned | (both[0][1] & its[STUDIES]))  # the studies first, as everywhere
        for table, unfinished in both:
            mine = its[table]
            tx.execute(sa.update(table).where(unfinished, mine).values(next_at=0.0, holder=""))

    def analysing(self) -> set[tuple[str, int]]:
        """UID and revision of the studies that are not answered yet."""
        with self._engine.begin() as tx:
            query = sa.select(STUDIES.c.study_uid, STUDIES.c.revision).where(STUDIES.c.state == StudyState.ANALYSING)
            return {(row.study_uid, row.revision) for row in tx.execute(query)}

    @repeatable
    def report(self, name: str, *, parts: Iterable[str], started_at: float, status: dict[str, Any]) -> None:
        """Say that a process is there, and what only it knows."""
        values = {
            "parts": ",".join(parts),
            "version": __version__,
            "started_at": started_at,
            "seen_at": time.time(),
            "status": json.dumps(status),
        }
        with self._engine.begin() as tx:
            tx.execute(
                self._insert(PROCESSES)
                .values(name=name, **values)
                .on_conflict_do_update(index_elements=["name"], set_=values)
            )
