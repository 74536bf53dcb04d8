"""[edge: alembic] Which tables a database has, and how an older one is brought to what this version knows.

Every migration only adds: a program goes on with a database that a newer one has migrated under it, so that processes
are replaced one after the other and nothing stands still.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa

from service import log
from service.tables import TABLES

HEAD: Final = "0002"  # the revision that this version writes
_MIGRATING: Final = 0x6F766572 + 1  # an advisory lock of PostgreSQL: one process migrates, the others wait
_VERSION: Final = sa.Table(
    "alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True, nullable=False)
)


def revision_of(engine: sa.Engine) -> str:
    """The revision of a database: empty for one without tables, "0000" for one that is older than revisions."""
    with engine.begin() as tx:
        return _revision(tx)


def upgrade(engine: sa.Engine) -> tuple[str, str]:
    """Make the tables, or bring them to what this version knows; a newer database is left as it is.

    Returns
    -------
    tuple of str
        The revision before, and after.
    """
    before = revision_of(engine)
    if before == HEAD:
        return before, before
    with _alone(engine) as connection:
        before = _revision(connection)  # another process may have been faster
        if not before:
            TABLES.create_all(connection)
            _VERSION.create(connection)
            connection.execute(sa.insert(_VERSION).values(version_num=HEAD))
            return before, HEAD
        if before == HEAD:
            return before, before
        return before, _migrate(connection, before)


def _migrate(connection: sa.Connection, before: str) -> str:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "service:migrations")
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if before not in (*known, "0000"):
        log.warning("database.newer", revision=before, known=HEAD)
        return before
    command.upgrade(config, "head")
    log.event("database.migrated", before=before, after=HEAD)
    return HEAD


def _revision(connection: sa.Connection) -> str:
    tables = sa.inspect(connection).get_table_names()
    if "alembic_version" in tables:
        return str(connection.scalar(sa.select(_VERSION.c.version_num)) or "0000")
    return "0000" if "studies" in tables else ""


@contextmanager
def _alone(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction in which nobody else migrates."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # else its driver begins none before a table is made
            try:
                yield connection
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")
            return
        with connection.begin():
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MIGRATING})"))
            yield connection
