"""The tables of the store, and how a database is opened. A change of them is a migration too (`schema.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from service.errors import ConfigError
from service.settings.store import StoreSection
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
    sa.Column("source", sa.String(16), nullable=False, server_default=""),  # calling AE title of the last sender
    sa.Column("completeness", sa.String(16), nullable=False, server_default=""),  # once it was judged ready
    sa.Column("judged", sa.Text, nullable=False, server_default=""),  # the evidence for that, in words
    sa.Column("missing", sa.Text, nullable=False, server_default=""),  # what of it is missing, in words
    sa.Column("tries", sa.Integer, nullable=False, default=0),  # of this revision's analysis that came to nothing
    sa.Column("next_at", sa.Float, nullable=False, default=0.0),  # when the next one is due
    sa.Column("holder", sa.String(64), nullable=False, server_default=""),  # the process that is at work on it
    sa.Column("progress", sa.Text, nullable=False, server_default=""),  # JSON, by model, while it is analysed
    sa.Column("waits", sa.Text, nullable=False, server_default=""),  # why it waits for more instances, in words
    sa.Column("waits_until", sa.Float, nullable=False, server_default="0"),  # how long at most
    sa.Column("answered_at", sa.Float),
    sa.Column("done_at", sa.Float),
    # Retention. When a file of it last came, a repeated one too; NULL: they were removed, and none came again.
    sa.Column("sources_at", sa.Float, server_default="0"),
    sa.Column("evidence_gone_at", sa.Float),
    sa.Column("records_gone_at", sa.Float),
    sa.Index("studies_with_sources", "state", "sources_at"),
    sa.Index("studies_with_evidence", "state", "evidence_gone_at", "done_at"),
    sa.Index("studies_with_records", "state", "records_gone_at", "done_at"),
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
    sa.Column("gone_at", sa.Float),  # when its file was removed (retention); NULL again when it comes again
)
CONFLICTS = sa.Table(  # what came under a known SOP Instance UID with other bytes: kept beside, not analysed
    "conflicts",
    TABLES,
    sa.Column("study_uid", sa.String(64), primary_key=True),
    sa.Column("sop_uid", sa.String(64), primary_key=True),
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("series_uid", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("received_at", sa.Float, nullable=False),
)
ANSWERS = sa.Table(
    "answers",
    TABLES,
    sa.Column("study_uid", sa.String(64), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("findings", sa.Integer),  # how many; NULL: a program wrote it that did not count them
    sa.Column("body", sa.Text, nullable=False),  # JSON, as the API shows it
)
DELIVERIES = sa.Table(
    "deliveries",
    TABLES,
    sa.Column("delivery_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("study_uid", sa.String(64), nullable=False, index=True),
    sa.Column("destination", sa.String(64), nullable=False),
    sa.Column("model", sa.String(64), nullable=False, server_default=""),
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
    sa.Column("failed_at", sa.Float, nullable=False, server_default="0"),  # when it first failed by itself
    sa.Column("remark", sa.Text, nullable=False, server_default=""),  # the warning with which it was stored
    sa.Column("transaction_uid", sa.String(64), nullable=False, server_default="", index=True),  # PS3.4 Annex J
    sa.Column("commitment", sa.String(16), nullable=False, server_default=""),  # "committed", or a failure reason
    sa.Column("asked_at", sa.Float, nullable=False, server_default="0"),
    sa.Column("holder", sa.String(64), nullable=False, server_default=""),  # the process that is at work on it
    sa.Index("deliveries_by_destination", "destination", "state"),  # for the gauges: each scrape counts them all
    sa.UniqueConstraint("destination", "sop_uid"),  # one object goes to a destination once
)
STEPS = sa.Table(  # what happened to a study, in order: its time line
    "steps",
    TABLES,
    sa.Column("step_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("study_uid", sa.String(64), nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("step", sa.String(32), nullable=False),  # one of `types.Step`
    sa.Column("words", sa.Text, nullable=False, server_default=""),  # what is to be said of it; no patient data
    sqlite_autoincrement=True,  # a number is never used again: whoever listens has the last one that he saw
)
PROCESSES = sa.Table(  # who works on this database, by the name that stays the same
    "processes",
    TABLES,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("parts", sa.String(64), nullable=False),
    sa.Column("version", sa.String(32), nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("seen_at", sa.Float, nullable=False, index=True),
    sa.Column("status", sa.Text, nullable=False, server_default=""),  # JSON: what only it knows, for the page
)


_ALIVE: Final = {  # libpq: we too must soon notice that the server's machine is gone
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


def open_engine(url: str) -> sa.Engine:
    """Open a database; SQLite commits to the disk before it returns, and lets readers read beside a writer."""
    lite = url.startswith("sqlite")
    # The server must soon notice that a machine is gone, for what it had locked.
    alive = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    arguments: dict[str, Any] = {"timeout": 60} if lite else {"options": alive, "connect_timeout": 10, **_ALIVE}
    engine = sa.create_engine(url, connect_args=arguments, pool_pre_ping=not lite, pool_size=10, max_overflow=20)
    if lite:
        sa.event.listen(engine, "connect", _make_sqlite_durable)
    return engine


def url_of(settings: StoreSection) -> str:
    """The database's URL by the settings.

    Raises
    ------
    ConfigError
        If the file with its password can't be read.
    """
    if not settings.password_file:
        return database_url(settings.directory, settings.database)
    try:
        password = settings.password_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            doing=f"reading the database's password from {settings.password_file}",
            found=getattr(exc, "strerror", None) or type(exc).__name__,
            rule="[store] password_file is a text file that the service may read",
            way_out="make it, or give the service's user the right to read it",
        ) from exc
    return sa.make_url(settings.database).set(password=password).render_as_string(hide_password=False)


def database_url(directory: Path, database: str) -> str:
    """PostgreSQL where a URL is given, else a SQLite file in the directory."""
    return database or f"sqlite:///{directory / 'overread.sqlite'}"


def _make_sqlite_durable(connection: Any, _record: Any) -> None:
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 60000"):
        connection.execute(f"PRAGMA {pragma}")
