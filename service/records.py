"""The store's part on retention: what may be forgotten; and while it is, nobody else changes the study.

A study's files are taken away within the transaction that remembers it, and that holds the study's row. An instance
that comes at that moment waits with its own row until the files are gone; whoever keeps it looks for its file after
that, and writes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from service.overview import Overview
from service.tables import CONFLICTS, DELIVERIES, INSTANCES, STEPS, STUDIES
from service.types import ENDED, DeliveryState, StudyState

SETTLED: Final = (DeliveryState.CONFIRMED, DeliveryState.REPLACED, DeliveryState.DROPPED)
_UNANSWERED = (StudyState.RECEIVING, StudyState.ANALYSING)
_AT_ONCE = 500  # UIDs in one query; SQLite takes 32766 parameters


class Folder(StrEnum):
    """The folders of the store that hold a folder for each study."""

    SOURCES = "spool"
    EVIDENCE = "evidence"
    WORK = "work"  # stages kept of an analysis under way


class What(StrEnum):
    """What retention removes of a study, in this order."""

    SOURCES = "sources"
    EVIDENCE = "evidence"
    RECORDS = "records"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is old enough to be forgotten."""

    now: float  # seconds since 1970, as the next ones
    before: dict[What, float]  # of what is as old as this; a study was done, and its last file had come, before it
    trusted: tuple[str, ...]  # destinations whose Success is confirmation enough


class Records(Overview):
    """What is remembered of studies that are done, in transactions of its own."""

    def forgettable(self, what: What, limits: Limits, *, limit: int) -> list[str]:
        """The studies of which this may be removed now, the oldest first."""
        order = STUDIES.c.sources_at if what is What.SOURCES else STUDIES.c.done_at
        with self._engine.begin() as tx:
            query = sa.select(STUDIES.c.study_uid).where(*_due(what, limits))
            return list(tx.scalars(query.order_by(order, STUDIES.c.study_uid).limit(limit)))

    def forget_files(self, what: What, study_uid: str, limits: Limits, *, take_away: Callable[[], object]) -> bool:
        """Remember that a study's images or results are removed.

        Parameters
        ----------
        take_away
            Takes their folder away, at once; called while the study is held as it is. If it raises, nothing is
            remembered.

        Returns
        -------
        bool
            False, and nothing was done, if they may not be removed (any more).
        """
        gone: dict[str, Any] = {"sources_at": None} if what is What.SOURCES else {"evidence_gone_at": limits.now}
        with self._engine.begin() as tx:
            claim = sa.update(STUDIES).where(STUDIES.c.study_uid == study_uid, *_due(what, limits))
            if tx.execute(claim.values(**gone)).rowcount == 0:
                return False
            if what is What.SOURCES:
                here = (INSTANCES.c.study_uid == study_uid, INSTANCES.c.gone_at.is_(None))
                tx.execute(sa.update(INSTANCES).where(*here).values(gone_at=limits.now))
            take_away()
            return True

    def forget_records(self, study_uid: str, limits: Limits) -> int | None:
        """Forget which instances a study had; how many, or None if they may not be forgotten (any more)."""
        with self._engine.begin() as tx:
            claim = sa.update(STUDIES).where(STUDIES.c.study_uid == study_uid, *_due(What.RECORDS, limits))
            if tx.execute(claim.values(records_gone_at=limits.now)).rowcount == 0:
                return None
            tx.execute(sa.delete(CONFLICTS).where(CONFLICTS.c.study_uid == study_uid))
            tx.execute(sa.delete(STEPS).where(STEPS.c.study_uid == study_uid))
            return int(tx.execute(sa.delete(INSTANCES).where(INSTANCES.c.study_uid == study_uid)).rowcount)

    def astray(self, folder: Folder, study_uids: Sequence[str]) -> list[str]:
        """Those of these studies that should have no folder there: unknown ones, or what was there is forgotten."""
        wanted: set[str] = set()
        with self._engine.begin() as tx:
            for start in range(0, len(study_uids), _AT_ONCE):
                some = STUDIES.c.study_uid.in_(study_uids[start : start + _AT_ONCE])
                wanted |= set(tx.scalars(sa.select(STUDIES.c.study_uid).where(some, ~_unwanted(folder))))
        return [study_uid for study_uid in study_uids if study_uid not in wanted]

    def forget_astray(self, folder: Folder, study_uid: str, *, take_away: Callable[[], object]) -> bool:
        """Have a folder taken away that should not be there, while the study is held as it is, or kept unknown.

        Returns
        -------
        bool
            False, and nothing was done, if it should be there (by now).
        """
        with self._engine.connect() as connection, connection.begin() as tx:
            # A row that is never committed: whoever receives the study's first instance waits for it.
            placeholder = {"state": StudyState.DONE, "revision": 0, "first_at": 0.0, "last_at": 0.0}
            unknown = connection.execute(
                self._insert(STUDIES)
                .values(study_uid=study_uid, **placeholder)
                .on_conflict_do_nothing()
                .returning(STUDIES.c.study_uid)
            ).first()
            if not unknown:
                held = sa.update(STUDIES).where(STUDIES.c.study_uid == study_uid, _unwanted(folder))
                if connection.execute(held.values(revision=STUDIES.c.revision)).rowcount == 0:
                    return False
            take_away()
            tx.rollback()
            return True


def _due(what: What, limits: Limits) -> list[sa.ColumnElement[bool]]:
    """When this may be removed of a study."""
    trusted = sa.and_(DELIVERIES.c.state == DeliveryState.UNCONFIRMED, DELIVERIES.c.destination.in_(limits.trusted))
    unsettled = (
        sa.exists()
        .where(DELIVERIES.c.study_uid == STUDIES.c.study_uid, DELIVERIES.c.state.not_in(SETTLED), ~trusted)
        .correlate(STUDIES)
    )
    before = limits.before[what]
    gone = STUDIES.c.sources_at.is_(None)
    of_its_own: dict[What, list[sa.ColumnElement[bool]]] = {
        What.SOURCES: [STUDIES.c.sources_at < before],
        What.EVIDENCE: [STUDIES.c.evidence_gone_at.is_(None), gone],
        What.RECORDS: [STUDIES.c.records_gone_at.is_(None), STUDIES.c.evidence_gone_at.is_not(None), gone],
    }
    return [STUDIES.c.state.in_(ENDED), STUDIES.c.done_at < before, ~unsettled, *of_its_own[what]]


def _unwanted(folder: Folder) -> sa.ColumnElement[bool]:
    """When a known study should have no folder there."""
    return {
        Folder.SOURCES: STUDIES.c.sources_at.is_(None),
        Folder.EVIDENCE: STUDIES.c.evidence_gone_at.is_not(None),
        Folder.WORK: STUDIES.c.state.not_in(_UNANSWERED),
    }[folder]
