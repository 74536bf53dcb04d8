"""The tables of the store, and how a database is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from service.types import Priority

TABLES = sa.MetaData()

STUDIES = sa.Table(
    "studies",
    TABLES,
    sa.Column("study_uid", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("revision", sa.Integer, nullable=False),  # grows when instances come after the analysis began
    sa.Column("priority", sa.SmallInteger, nullable=False, server_default=str(int(Priority.ROUTINE))),
    sa.Column("first_at", sa.Float, nullable=False),  # seconds since 1970
    sa.Column("last_at", sa.Float, nullable=False, index=True),
    sa.Column("started_at", sa.Float),
    sa.Column("tries", sa.Integer, nullable=False, default=0),  # of this revision's analysis that came to nothing
    sa.Column("next_at", sa.Float, nullable=False, default=0.0),  # when the next one is due
    sa.Column("answered_at", sa.Float),
    sa.Column("done_at", sa.Float),
)
INSTANCES = sa.Table(
    "instances",
    TABLES,
    sa.Column("study_uid", sa.String(64), primary_key=True),  # a PACS that splits studies sends an instance again
    sa.Column("sop_uid", sa.String(64), primary_key=True),
    sa.Column("series_uid", sa.String(64), nullable=False),
    sa.Column("class_uid", sa.String(64), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("received_at", sa.Float, nullable=False),
)
ANSWERS = sa.Table(
    "answers",
    TABLES,
    sa.Column("study_uid", sa.String(64), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("body", sa.Text, nullable=False),  # JSON, as the API shows it
)
DELIVERIES = sa.Table(
    "deliveries",
    TABLES,
    sa.Column("delivery_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("study_uid", sa.String(64), nullable=False, index=True),
    sa.Column("destination", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("class_uid", sa.String(64), nullable=False),
    sa.Column("series_uid", sa.String(64), nullable=False),
    sa.Column("sop_uid", sa.String(64), nullable=False, index=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("queued_at", sa.Float, nullable=False),
    sa.Column("next_at", sa.Float, nullable=False, default=0.0),  # when the next attempt is due
    sa.Column("changed_at", sa.Float, nullable=False),
    sa.UniqueConstraint("destination", "sop_uid"),  # one object goes to a destination once
)


def make_tables(engine: sa.Engine) -> None:
    """Make the tables that are missing, and the columns that an older version's tables lack."""
    TABLES.create_all(engine)
    priority = STUDIES.c.priority
    if priority.name not in {column["name"] for column in sa.inspect(engine).get_columns(STUDIES.name)}:
        words = sa.schema.CreateColumn(priority).compile(engine)
        with engine.begin() as tx:
            tx.execute(sa.text(f"ALTER TABLE {STUDIES.name} ADD COLUMN {words}"))


def open_engine(url: str) -> sa.Engine:
    """Open a database; SQLite commits to the disk before it returns, and lets readers read beside a writer."""
    lite = url.startswith("sqlite")
    engine = sa.create_engine(
        url, connect_args={"timeout": 60} if lite else {}, pool_pre_ping=not lite, pool_size=10, max_overflow=20
    )
    if lite:
        sa.event.listen(engine, "connect", _make_sqlite_durable)
    return engine


def database_url(directory: Path, database: str, *, name: str = "overread") -> str:
    """The database's URL by the settings: PostgreSQL where one is given, else a SQLite file in the directory."""
    return database or f"sqlite:///{directory / f'{name}.sqlite'}"


def _make_sqlite_durable(connection: Any, _record: Any) -> None:
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 60000"):
        connection.execute(f"PRAGMA {pragma}")
