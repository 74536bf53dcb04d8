"""What is remembered: studies, instances, answers and deliveries, on SQLite or PostgreSQL by URL.

It promises that a method which has returned has committed, to the disk (SQLite runs with ``synchronous = FULL``), and
that each method is one transaction. Files are written and fsynced first, rows second: a crash between the two leaves a
file without a row, never a row without a file, until retention removes old files (`records.py`).
Several processes may use one store at once; rows are claimed by comparing what was read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from service import faults, schema
from service.claims import Claims
from service.decisions import Decisions
from service.errors import ConfigError
from service.instances import Instances
from service.locks import Held
from service.records import Records
from service.settings.store import StoreSection
from service.tables import ANSWERS, STUDIES, open_engine, url_of
from service.timeline import repeatable
from service.types import Completeness, Delivery, Step, StudyState


class Store(Instances, Decisions, Claims, Records):
    """The state of one Overread, shared by its processes.

    Parameters
    ----------
    url
        SQLAlchemy URL; see `service.tables.database_url`.
    """

    def __init__(self, url: str) -> None:
        super().__init__(open_engine(url))
        self._name: Held | None = None
        self._lead = Held(self._engine, "overread leader") if self.is_shared else None

    def create_tables(self) -> None:
        """Make the tables, or bring those of an older version to what this one knows."""
        schema.upgrade(self._engine)

    def why_unsafe(self) -> str:
        """Which setting of the server lets it forget what was committed; empty where none does."""
        if self._engine.dialect.name == "sqlite":
            return ""
        with self._engine.begin() as tx:
            for setting in ("fsync", "synchronous_commit"):
                if tx.scalar(sa.text(f"SHOW {setting}")) == "off":
                    return f"{setting} is off"
        return ""

    def clock(self) -> float:
        """The database's own time, seconds since 1970."""
        if not self.is_shared:
            return time.time()
        with self._engine.begin() as tx:
            return float(tx.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)

    def take(self, name: str) -> bool:
        """Make a process's name this one's own, until `close`; False if another process has it.

        A SQLite file lies in the store's folder, of which the same is seen to by a lock on a file.
        """
        if self.is_shared and self._name is None:
            self._name = Held(self._engine, f"overread process {name}")
        return self._name is None or self._name.hold()

    def leads(self) -> bool:
        """Whether this process is the one that judges what comes in, and removes what is old; else another one is."""
        return self._lead is None or self._lead.hold()

    def close(self) -> None:
        """Give all connections back."""
        for held in (self._name, self._lead):
            if held:
                held.release()
        self._engine.dispose()

    @repeatable
    def begin_analysis(
        self,
        study_uid: str,
        revision: int,
        *,
        last_at: float,
        completeness: Completeness = Completeness.QUIET,
        judged: str = "",
        missing: str = "",
    ) -> bool:
        """Claim a study that was judged ready; False if another worker was first or an instance came meanwhile.

        Parameters
        ----------
        last_at
            When its last instance had come as it was judged.
        judged, missing
            In words: the evidence, and what of a partial one is missing.
        """
        with self._engine.begin() as tx:
            done = tx.execute(
                sa.update(STUDIES)
                .where(
                    STUDIES.c.study_uid == study_uid,
                    STUDIES.c.revision == revision,
                    STUDIES.c.state == StudyState.RECEIVING,
                    STUDIES.c.last_at == last_at,
                )
                .values(
                    state=StudyState.ANALYSING,
                    completeness=completeness,
                    judged=judged,
                    missing=missing,
                    started_at=time.time(),
                    waits="",
                    waits_until=0.0,
                    tries=0,
                    next_at=0.0,
                )
            )
            if done.rowcount:
                self._step(tx, study_uid, Step.READY, f"{completeness}: {judged}" if judged else str(completeness))
            return done.rowcount == 1

    def judgement_of(self, study_uid: str) -> tuple[Completeness, str]:
        """How a study that is analysed was judged, and what of it is missing."""
        with self._engine.begin() as tx:
            query = sa.select(STUDIES.c.completeness, STUDIES.c.missing).where(STUDIES.c.study_uid == study_uid)
            row = tx.execute(query).one()
            return Completeness(row.completeness or Completeness.QUIET), row.missing

    @repeatable
    def postpone_study(self, study_uid: str, revision: int, *, until: float, words: str = "", holder: str = "") -> None:
        """Remember that an analysis came to nothing, why, and when it is to be tried again."""
        with self._engine.begin() as tx:
            self._lock(tx, study_uid)
            noted = tx.execute(
                sa.update(STUDIES)
                .where(
                    STUDIES.c.study_uid == study_uid,
                    STUDIES.c.revision == revision,
                    STUDIES.c.state == StudyState.ANALYSING,
                    STUDIES.c.holder == holder,
                )
                .values(tries=STUDIES.c.tries + 1, next_at=until, holder="")
            )
            if noted.rowcount:  # else it was cancelled, or another process has it by now
                self._step(tx, study_uid, Step.POSTPONED, words)

    @repeatable
    def note_progress(self, study_uid: str, revision: int, progress: dict[str, Any]) -> None:
        """Remember how far each model is with a study that is analysed, for whoever shows it."""
        with self._engine.begin() as tx:
            same = (STUDIES.c.study_uid == study_uid, STUDIES.c.revision == revision)
            is_analysed = STUDIES.c.state == StudyState.ANALYSING
            tx.execute(sa.update(STUDIES).where(*same, is_analysed).values(progress=json.dumps(progress)))

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

    @repeatable
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
                .values(state=StudyState.DELIVERING, answered_at=time.time(), holder="", progress="")
            )
            if current.rowcount == 0:
                return False
            for model, (outcome, body) in answers.items():
                tx.execute(
                    self._insert(ANSWERS)
                    .values(
                        study_uid=study_uid,
                        revision=revision,
                        model=model,
                        outcome=outcome,
                        findings=len(body.get("findings", ())),
                        body=json.dumps(body),
                    )
                    .on_conflict_do_nothing()
                )
            said = [f"{model}: {outcome}" for model, (outcome, _) in sorted(answers.items())]
            self._step(tx, study_uid, Step.ANSWERED, "; ".join(said))
            for delivery in deliveries:
                self._queue(tx, study_uid, delivery)
            self._finish(tx, study_uid)
            faults.point("answers.committing")
            return True


def open_store(settings: StoreSection) -> Store:
    """Open the store of the settings, with all its tables.

    Raises
    ------
    ConfigError
        If the database can't be opened.
    """
    directory, database = settings.directory, settings.database
    store = Store(url_of(settings))
    try:
        store.create_tables()
        unsafe = store.why_unsafe()
    except Exception as exc:  # each driver has exceptions of its own; the URL may hold a password, so it is not shown
        raise ConfigError(
            doing="opening the database" if database else f"opening the SQLite database in {directory}",
            found=type(exc).__name__,
            rule="[store] database is the URL of a PostgreSQL that answers, or empty: a SQLite file in the directory",
            way_out="start the server, or correct the URL"
            if database
            else "see that the service may write there, and that overread.sqlite is its own file",
        ) from exc
    if unsafe:
        raise ConfigError(
            doing="opening the database",
            found=unsafe,
            rule="what was committed is on the disk (a C-STORE is answered with Success after it)",
            way_out="switch it on for the service's role, or for the server",
        )
    return store
