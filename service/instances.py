"""The store's part on instances: what came in, and of which study more may come."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from service import faults
from service.overview import Overview
from service.tables import CONFLICTS, DELIVERIES, INSTANCES, STUDIES
from service.timeline import repeatable
from service.types import ENDED, Kept, Priority, Receiving, Step, StudyState


class Instances(Overview):
    """What is remembered of received instances, in transactions of its own."""

    @repeatable
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
        source: str = "",
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
        source
            Calling AE title of its sender.
        priority
            How urgent it makes its study; of several instances the most urgent counts.
        """
        more_urgent = sa.case((STUDIES.c.priority > priority, int(priority)), else_=STUDIES.c.priority)
        with self._engine.begin() as tx:
            # Retention removes a study's files while it holds this row: by now they are gone, or they stay.
            state = self._lock(tx, study_uid)
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
                known = self._seen_again(tx, study_uid, sop_uid, sha256, path)
                if known is not Kept.NEW:
                    receiving = STUDIES.c.state == StudyState.RECEIVING
                    # It keeps a study waiting that still comes in, and changes nothing of one that is analysed.
                    tx.execute(
                        sa.update(STUDIES)
                        .where(STUDIES.c.study_uid == study_uid, receiving | STUDIES.c.state.in_(ENDED))
                        .values(
                            sources_at=now,
                            last_at=sa.case((receiving, now), else_=STUDIES.c.last_at),
                            priority=sa.case((receiving, more_urgent), else_=STUDIES.c.priority),
                        )
                    )
                if known is Kept.OTHER:
                    tx.execute(
                        self._insert(CONFLICTS)
                        .values(
                            study_uid=study_uid,
                            sop_uid=sop_uid,
                            sha256=sha256,
                            series_uid=series_uid,
                            path=str(path),
                            source=source,
                            received_at=now,
                        )
                        .on_conflict_do_update(
                            index_elements=["study_uid", "sop_uid", "sha256"], set_={"path": str(path)}
                        )
                    )
                if known is not Kept.NEW:
                    return known
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
                    sources_at=now,
                    source=source,
                    tries=0,
                    next_at=0.0,
                )
                .on_conflict_do_update(
                    index_elements=["study_uid"],
                    set_={
                        "state": StudyState.RECEIVING,
                        "last_at": now,
                        "sources_at": now,
                        "source": source,
                        "priority": more_urgent,
                        "revision": STUDIES.c.revision + sa.case((reopened, 1), else_=0),
                        "completeness": "",
                        "judged": "",
                        "missing": "",
                        "waits": "",
                        "waits_until": 0.0,
                        "holder": "",
                        "progress": "",
                        "evidence_gone_at": None,
                        "records_gone_at": None,
                        "started_at": None,
                        "answered_at": None,
                        "done_at": None,
                    },
                )
            )
            if state != StudyState.RECEIVING:
                words = f"from {source}" if source else ""
                self._step(tx, study_uid, Step.FIRST_INSTANCE if state is None else Step.REOPENED, words)
            faults.point("instance.committing")
            return Kept.NEW

    @staticmethod
    def _seen_again(tx: sa.Connection, study_uid: str, sop_uid: str, sha256: str, path: Path) -> Kept:
        """What a known instance is to its study, and where its file is now: retention may have removed the first one.

        It is new if the last analysis had to do without it: that began after its file was removed, or is to come.
        """
        this = (INSTANCES.c.study_uid == study_uid, INSTANCES.c.sop_uid == sop_uid)
        known = tx.execute(
            sa.select(INSTANCES.c.sha256, INSTANCES.c.path, INSTANCES.c.gone_at, STUDIES.c.started_at)
            .join(STUDIES, STUDIES.c.study_uid == INSTANCES.c.study_uid)
            .where(*this)
        ).one()
        if known.sha256 != sha256:
            if known.gone_at is not None and known.path == str(path):  # it took the name of what was removed
                tx.execute(sa.update(INSTANCES).where(*this).values(path=f"{path}.removed"))
            return Kept.OTHER
        if known.path != str(path) or known.gone_at is not None:
            tx.execute(sa.update(INSTANCES).where(*this).values(path=str(path), gone_at=None))
        lacking = known.gone_at is not None and (known.started_at is None or known.gone_at < known.started_at)
        return Kept.NEW if lacking else Kept.SAME

    def receiving(self) -> list[Receiving]:
        """The studies of which instances may still come."""
        with self._engine.begin() as tx:
            query = sa.select(STUDIES.c.study_uid, STUDIES.c.revision, STUDIES.c.source, STUDIES.c.last_at)
            return [
                Receiving(
                    study_instance_uid=row.study_uid, revision=row.revision, source=row.source, last_at=row.last_at
                )
                for row in tx.execute(query.where(STUDIES.c.state == StudyState.RECEIVING))
            ]

    @repeatable
    def note_waiting(self, study_uid: str, revision: int, *, words: str, until: float) -> None:
        """Remember why a study waits for more instances, and how long at most (seconds since 1970)."""
        with self._engine.begin() as tx:
            same = (STUDIES.c.study_uid == study_uid, STUDIES.c.revision == revision)
            waits = sa.update(STUDIES).where(*same, STUDIES.c.state == StudyState.RECEIVING)
            tx.execute(waits.values(waits=words, waits_until=until))

    def held(self, study_uid: str) -> dict[str, int]:
        """How many instances of each of its series have come, by Series Instance UID."""
        with self._engine.begin() as tx:
            query = sa.select(INSTANCES.c.series_uid, sa.func.count()).where(INSTANCES.c.study_uid == study_uid)
            return {row[0]: row[1] for row in tx.execute(query.group_by(INSTANCES.c.series_uid))}

    def own_series(self, study_uid: str) -> frozenset[str]:
        """Series Instance UIDs of the results that were made of it: its source may count them too."""
        with self._engine.begin() as tx:
            query = sa.select(DELIVERIES.c.series_uid).where(DELIVERIES.c.study_uid == study_uid).distinct()
            return frozenset(tx.scalars(query))

    def headers_of(self, study_uid: str, *, limit: int = 3) -> list[Path]:
        """A few of a study's files, whether they are there or not: any of them tells whose it is."""
        with self._engine.begin() as tx:
            sources = sa.select(INSTANCES.c.path).where(INSTANCES.c.study_uid == study_uid).limit(limit)
            results = sa.select(DELIVERIES.c.path).where(DELIVERIES.c.study_uid == study_uid).limit(limit)
            return [Path(path) for query in (sources, results) for path in tx.scalars(query)]

    def files_of(self, study_uid: str) -> tuple[list[Path], float]:
        """The files of a study, also those that retention removed, and when the last one came (seconds since 1970)."""
        with self._engine.begin() as tx:
            rows = tx.execute(sa.select(INSTANCES).where(INSTANCES.c.study_uid == study_uid)).all()
            return [Path(row.path) for row in rows], max((row.received_at for row in rows), default=0.0)
