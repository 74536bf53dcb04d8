"""What is remembered: studies, instances, answers and deliveries, on SQLite or PostgreSQL by URL.

It promises that a method which has returned has committed, to the disk (SQLite runs with ``synchronous = FULL``), and
that each method is one transaction. It does not promise that a row's file exists: files are written and fsynced
first, rows second, so a crash between the two leaves a file without a row, never a row without a file.
Several processes may use one store at once; rows are claimed by comparing what was read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from service.deliveries import OPEN, Deliveries
from service.errors import ConfigError
from service.tables import ANSWERS, DELIVERIES, INSTANCES, STUDIES, database_url, make_tables, open_engine
from service.types import Delivery, DeliveryState, Kept, Priority, StudyState


class Store(Deliveries):
    """The state of one Overread, shared by its processes.

    Parameters
    ----------
    url
        SQLAlchemy URL; see `service.tables.database_url`.
    """

    def __init__(self, url: str) -> None:
        super().__init__(open_engine(url))

    def create_tables(self) -> None:
        """Make the tables that are missing."""
        make_tables(self._engine)

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    # --- Receiving --------------------------------------------------------------------------------------------------

    def keep_instance(
        self,
        *,
        study_uid: str,
        series_uid: str,
        sop_uid: str,
        class_uid: str,
        sha256: str,
        path: Path,
        now: float,
        priority: Priority = Priority.ROUTINE,
    ) -> Kept:
        """Remember a stored instance and start its study's quiet clock anew.

        Parameters
        ----------
        sha256
            Of the file's bytes, to tell a repeated instance from another one under the same UID.
        path
            Where the fsynced file lies.
        now
            Seconds since 1970.
        priority
            How urgent it makes its study; of several instances the most urgent counts.
        """
        more_urgent = sa.case((STUDIES.c.priority > priority, int(priority)), else_=STUDIES.c.priority)
        with self._engine.begin() as tx:
            if tx.execute(sa.select(DELIVERIES.c.delivery_id).where(DELIVERIES.c.sop_uid == sop_uid)).first():
                return Kept.OURS
            row = tx.execute(
                self._insert(INSTANCES)
                .values(
                    sop_uid=sop_uid,
                    study_uid=study_uid,
                    series_uid=series_uid,
                    class_uid=class_uid,
                    sha256=sha256,
                    path=str(path),
                    received_at=now,
                )
                .on_conflict_do_nothing()
                .returning(INSTANCES.c.sop_uid)
            ).first()
            if row is None:
                known = tx.scalar(
                    sa.select(INSTANCES.c.sha256).where(
                        INSTANCES.c.study_uid == study_uid, INSTANCES.c.sop_uid == sop_uid
                    )
                )
                # A repeat keeps a study waiting that is still coming in, and changes nothing of one that is not.
                tx.execute(
                    sa.update(STUDIES)
                    .where(STUDIES.c.study_uid == study_uid, STUDIES.c.state == StudyState.RECEIVING)
                    .values(last_at=now, priority=more_urgent)
                )
                return Kept.SAME if known == sha256 else Kept.OTHER
            reopened = STUDIES.c.state != StudyState.RECEIVING
            tx.execute(
                self._insert(STUDIES)
                .values(
                    study_uid=study_uid,
                    state=StudyState.RECEIVING,
                    revision=0,
                    priority=int(priority),
                    first_at=now,
                    last_at=now,
                    tries=0,
                    next_at=0.0,
                )
                .on_conflict_do_update(
                    index_elements=["study_uid"],
                    set_={
                        "state": StudyState.RECEIVING,
                        "last_at": now,
                        "priority": more_urgent,
                        "revision": STUDIES.c.revision + sa.case((reopened, 1), else_=0),
                        "started_at": None,
                        "answered_at": None,
                        "done_at": None,
                    },
                )
            )
            return Kept.NEW

    # --- Analysing --------------------------------------------------------------------------------------------------

    def quiet_studies(self, *, before: float) -> list[tuple[str, int]]:
        """UID and revision of the studies still receiving, whose last instance came before that time."""
        with self._engine.begin() as tx:
            rows = tx.execute(
                sa.select(STUDIES.c.study_uid, STUDIES.c.revision)
                .where(STUDIES.c.state == StudyState.RECEIVING, STUDIES.c.last_at < before)
                .order_by(STUDIES.c.last_at)
            )
            return [(row.study_uid, row.revision) for row in rows]

    def begin_analysis(self, study_uid: str, revision: int, *, before: float) -> bool:
        """Claim a quiet study; False if another worker was first or an instance came meanwhile."""
        with self._engine.begin() as tx:
            done = tx.execute(
                sa.update(STUDIES)
                .where(
                    STUDIES.c.study_uid == study_uid,
                    STUDIES.c.revision == revision,
                    STUDIES.c.state == StudyState.RECEIVING,
                    STUDIES.c.last_at < before,
                )
                .values(state=StudyState.ANALYSING, started_at=time.time(), tries=0, next_at=0.0)
            )
            return done.rowcount == 1

    def files_of(self, study_uid: str) -> tuple[list[Path], float]:
        """The stored files of a study, and when the last of them came (seconds since 1970)."""
        with self._engine.begin() as tx:
            rows = tx.execute(sa.select(INSTANCES).where(INSTANCES.c.study_uid == study_uid)).all()
            return [Path(row.path) for row in rows], max((row.received_at for row in rows), default=0.0)

    def due_studies(self, *, now: float, lease_seconds: float) -> list[tuple[str, int, int, Priority]]:
        """Studies whose analysis is due: UID, revision, how often it was tried, urgency; not due again in a lease."""
        with self._engine.begin() as tx:
            rows = tx.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.state == StudyState.ANALYSING, STUDIES.c.next_at <= now)
                .values(next_at=now + lease_seconds)
                .returning(STUDIES.c.study_uid, STUDIES.c.revision, STUDIES.c.tries, STUDIES.c.priority)
            )
            return [(row.study_uid, row.revision, row.tries, Priority(row.priority)) for row in rows]

    def postpone_study(self, study_uid: str, revision: int, *, until: float) -> None:
        """Remember that an analysis came to nothing, and when it is to be tried again."""
        with self._engine.begin() as tx:
            tx.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.study_uid == study_uid, STUDIES.c.revision == revision)
                .values(tries=STUDIES.c.tries + 1, next_at=until)
            )

    def is_analysing(self, study_uid: str, revision: int) -> bool:
        """Whether that revision is still the one to be analysed: no instance came since."""
        with self._engine.begin() as tx:
            row = tx.execute(
                sa.select(STUDIES.c.study_uid).where(
                    STUDIES.c.study_uid == study_uid,
                    STUDIES.c.revision == revision,
                    STUDIES.c.state == StudyState.ANALYSING,
                )
            )
            return row.first() is not None

    def release(self) -> None:
        """Make all that is unfinished due at once; when a process starts, nobody is at work on it.

        What was refused for good is tried once more: somebody may have mended the configuration, here or there.
        """
        with self._engine.begin() as tx:
            tx.execute(sa.update(STUDIES).where(STUDIES.c.state == StudyState.ANALYSING).values(next_at=0.0))
            tx.execute(sa.update(DELIVERIES).where(DELIVERIES.c.state.in_(OPEN)).values(next_at=0.0))
            tx.execute(
                sa.update(DELIVERIES)
                .where(DELIVERIES.c.state == DeliveryState.REFUSED)
                .values(state=DeliveryState.RETRYING, next_at=0.0)
            )
            tx.execute(
                sa.update(STUDIES).where(STUDIES.c.state == StudyState.UNDELIVERED).values(state=StudyState.DELIVERING)
            )

    def save_answers(
        self,
        study_uid: str,
        revision: int,
        *,
        answers: dict[str, tuple[str, dict[str, Any]]],
        deliveries: Iterable[Delivery],
    ) -> bool:
        """Remember a study's answers and queue its objects, together.

        Parameters
        ----------
        answers
            By model: the outcome, and the answer as the API shows it.
        deliveries
            What is to be sent; their ``delivery_id`` is not looked at. An object that a destination was to get before
            is not queued again.

        Returns
        -------
        bool
            False, and nothing is remembered, if an instance came since: a new revision will have the answers.
        """
        with self._engine.begin() as tx:
            current = tx.execute(
                sa.update(STUDIES)
                .where(
                    STUDIES.c.study_uid == study_uid,
                    STUDIES.c.revision == revision,
                    STUDIES.c.state == StudyState.ANALYSING,
                )
                .values(state=StudyState.DELIVERING, answered_at=time.time())
            )
            if current.rowcount == 0:
                return False
            for model, (outcome, body) in answers.items():
                tx.execute(
                    self._insert(ANSWERS)
                    .values(study_uid=study_uid, revision=revision, model=model, outcome=outcome, body=json.dumps(body))
                    .on_conflict_do_nothing()
                )
            for delivery in deliveries:
                self._queue(tx, study_uid, delivery)
            self._finish(tx, study_uid)
            return True


def open_store(directory: Path, database: str) -> Store:
    """Open the store of the settings, with all its tables.

    Raises
    ------
    ConfigError
        If the database can't be opened.
    """
    store = Store(database_url(directory, database))
    try:
        store.create_tables()
    except Exception as exc:  # each driver has exceptions of its own; the URL may hold a password, so it is not shown
        raise ConfigError(
            doing="opening the database" if database else f"opening the SQLite database in {directory}",
            found=type(exc).__name__,
            rule="[store] database is the URL of a PostgreSQL that answers, or empty: a SQLite file in the directory",
            way_out="start the server, or correct the URL"
            if database
            else "see that the service may write there, and that overread.sqlite is its own file",
        ) from exc
    return store
