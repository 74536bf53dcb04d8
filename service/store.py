"""What is remembered: studies, instances, answers and deliveries, on SQLite or PostgreSQL by URL.

It promises that a method which has returned has committed, to the disk (SQLite runs with ``synchronous = FULL``), and
that each method is one transaction. It does not promise that a row's file exists: files are written and fsynced
first, rows second, so a crash between the two leaves a file without a row, never a row without a file.
Several processes may use one store at once; rows are claimed by comparing what was read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from service.tables import ANSWERS, DELIVERIES, INSTANCES, STUDIES, TABLES, open_engine
from service.types import Delivery, DeliveryState, Kept, StudyState


class Store:
    """The state of one Overread, shared by its processes.

    Parameters
    ----------
    url
        SQLAlchemy URL; see `service.tables.database_url`.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        self._insert: Any = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert

    def create_tables(self) -> None:
        """Make the tables that are missing."""
        TABLES.create_all(self._engine)

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    # --- Receiving --------------------------------------------------------------------------------------------------

    def keep_instance(
        self, *, study_uid: str, series_uid: str, sop_uid: str, class_uid: str, sha256: str, path: Path, now: float
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
        """
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
                    .values(last_at=now)
                )
                return Kept.SAME if known == sha256 else Kept.OTHER
            reopened = STUDIES.c.state != StudyState.RECEIVING
            tx.execute(
                self._insert(STUDIES)
                .values(study_uid=study_uid, state=StudyState.RECEIVING, revision=0, first_at=now, last_at=now)
                .on_conflict_do_update(
                    index_elements=["study_uid"],
                    set_={
                        "state": StudyState.RECEIVING,
                        "last_at": now,
                        "revision": STUDIES.c.revision + sa.case((reopened, 1), else_=0),
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
                .values(state=StudyState.ANALYSING, started_at=time.time())
            )
            return done.rowcount == 1

    def files_of(self, study_uid: str) -> tuple[list[Path], float]:
        """The stored files of a study, and when the last of them came (seconds since 1970)."""
        with self._engine.begin() as tx:
            rows = tx.execute(sa.select(INSTANCES).where(INSTANCES.c.study_uid == study_uid)).all()
            return [Path(row.path) for row in rows], max((row.received_at for row in rows), default=0.0)

    def unfinished_studies(self) -> list[tuple[str, int]]:
        """UID and revision of the studies whose analysis has begun and has no answer yet."""
        with self._engine.begin() as tx:
            rows = tx.execute(
                sa.select(STUDIES.c.study_uid, STUDIES.c.revision).where(STUDIES.c.state == StudyState.ANALYSING)
            )
            return [(row.study_uid, row.revision) for row in rows]

    def save_answers(
        self,
        study_uid: str,
        revision: int,
        *,
        answers: dict[str, tuple[str, dict[str, Any]]],
        deliveries: Iterable[Delivery],
    ) -> list[tuple[int, str]]:
        """Remember a study's answers and queue its objects, together.

        Parameters
        ----------
        answers
            By model: the outcome, and the answer as the API shows it.
        deliveries
            What is to be sent; their ``delivery_id`` is not looked at.

        Returns
        -------
        list of (int, str)
            Number and destination of each delivery, the same ones when called again after a crash.
        """
        with self._engine.begin() as tx:
            self._lock(tx, study_uid)
            for model, (outcome, body) in answers.items():
                tx.execute(
                    self._insert(ANSWERS)
                    .values(study_uid=study_uid, revision=revision, model=model, outcome=outcome, body=json.dumps(body))
                    .on_conflict_do_nothing()
                )
            queued = list(deliveries)
            for delivery in queued:
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
                        queued_at=delivery.queued_at,
                        changed_at=time.time(),
                    )
                    .on_conflict_do_nothing()
                )
            tx.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.study_uid == study_uid, STUDIES.c.revision == revision)
                .values(
                    state=sa.case(
                        (STUDIES.c.state == StudyState.ANALYSING, StudyState.DELIVERING), else_=STUDIES.c.state
                    ),
                    answered_at=time.time(),
                )
            )
            found = tx.execute(
                sa.select(DELIVERIES.c.delivery_id, DELIVERIES.c.destination).where(
                    DELIVERIES.c.study_uid == study_uid,
                    DELIVERIES.c.sop_uid.in_([delivery.sop_instance_uid for delivery in queued]),
                )
            )
            numbers = [(row.delivery_id, row.destination) for row in found]
            self._finish(tx, study_uid)
            return numbers

    # --- Delivering -------------------------------------------------------------------------------------------------

    def delivery(self, delivery_id: int) -> Delivery:
        """One delivery."""
        with self._engine.begin() as tx:
            return _delivery(tx.execute(sa.select(DELIVERIES).where(DELIVERIES.c.delivery_id == delivery_id)).one())

    def unfinished_deliveries(self) -> list[tuple[int, str]]:
        """Number and destination of the deliveries that are still to be made."""
        open_states = [DeliveryState.QUEUED, DeliveryState.RETRYING, DeliveryState.SENT]
        with self._engine.begin() as tx:
            rows = tx.execute(
                sa.select(DELIVERIES.c.delivery_id, DELIVERIES.c.destination).where(DELIVERIES.c.state.in_(open_states))
            )
            return [(row.delivery_id, row.destination) for row in rows]

    def note_delivery(self, delivery_id: int, state: DeliveryState, *, reason: str = "", tried: bool = False) -> float:
        """Remember where a delivery is; the study is DONE with its last one.

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
                .values(state=state, reason=reason, attempts=DELIVERIES.c.attempts + int(tried), changed_at=time.time())
                .returning(DELIVERIES.c.study_uid)
            ).one()
            self._finish(tx, row.study_uid)
            last_at = tx.execute(sa.select(STUDIES.c.last_at).where(STUDIES.c.study_uid == row.study_uid))
            return time.time() - float(last_at.scalar_one())

    @staticmethod
    def _lock(tx: sa.Connection, study_uid: str) -> None:
        """Let nobody else change this study's deliveries: else each of the last two leaves the DONE to the other."""
        tx.execute(sa.select(STUDIES.c.study_uid).where(STUDIES.c.study_uid == study_uid).with_for_update())

    @staticmethod
    def _finish(tx: sa.Connection, study_uid: str) -> None:
        waiting = sa.exists().where(
            DELIVERIES.c.study_uid == study_uid,
            DELIVERIES.c.state.not_in([DeliveryState.CONFIRMED, DeliveryState.UNCONFIRMED]),
        )
        tx.execute(
            sa.update(STUDIES)
            .where(STUDIES.c.study_uid == study_uid, STUDIES.c.state == StudyState.DELIVERING, ~waiting)
            .values(state=StudyState.DONE, done_at=time.time())
        )

    # --- Seen from outside ------------------------------------------------------------------------------------------

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
            answers = tx.execute(
                sa.select(ANSWERS)
                .where(ANSWERS.c.study_uid == study_uid, ANSWERS.c.revision == row.revision)
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
                "series": [dict(one._mapping) for one in series],
                "answers": [json.loads(one.body) for one in answers],
                "deliveries": [dict(one._mapping) for one in deliveries],
            }

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
