"""Databases of every age become what this version knows, on SQLite and on a real PostgreSQL, and lose nothing."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from service.schema import HEAD, revision_of, upgrade
from service.store import Store
from service.tables import TABLES, open_engine
from tests.unit.test_store import STUDY, _delivery, _keep, url

__all__ = ["url"]  # a fixture
_FIRST = importlib.import_module("service.migrations.versions.v0001_tables")


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    made = open_engine(url)
    yield made
    made.dispose()


def _differences(engine: sa.Engine) -> list[object]:
    """What a database has otherwise than `TABLES` say."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
        return [it for it in compare_metadata(context, TABLES) if "alembic_version" not in str(it)]


def _make_old(engine: sa.Engine, *, lacking: str = "") -> None:
    """A database as the version before revisions made it, with a study that was answered."""
    _FIRST._TABLES.create_all(engine)
    with engine.begin() as tx:
        if lacking:
            table, column = lacking.split(".")
            tx.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        row = {"study_uid": STUDY, "state": "done", "revision": 0, "first_at": 1.0, "last_at": 2.0, "tries": 0}
        tx.execute(sa.insert(_FIRST._TABLES.tables["studies"]).values(**row, next_at=0.0))
        body = '{"findings": [{}, {}, {}]}'
        answer = {"study_uid": STUDY, "revision": 0, "model": "m", "outcome": "findings", "body": body}
        tx.execute(sa.insert(_FIRST._TABLES.tables["answers"]).values(**answer))


def test_the_migrations_lead_to_the_very_tables_that_the_store_uses(engine: sa.Engine) -> None:
    _make_old(engine)
    assert revision_of(engine) == "0000"
    assert upgrade(engine) == ("0000", HEAD)
    assert _differences(engine) == []


def test_a_new_database_has_them_at_once(engine: sa.Engine) -> None:
    assert revision_of(engine) == ""
    assert upgrade(engine) == ("", HEAD)
    assert upgrade(engine) == (HEAD, HEAD)
    assert _differences(engine) == []


def test_the_last_revision_is_the_one_that_is_written() -> None:
    config = Config()
    config.set_main_option("script_location", "service:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


@pytest.mark.parametrize(
    "lacking", ["", "studies.priority", "studies.sources_at", "deliveries.commitment", "deliveries.model"]
)
def test_an_older_database_keeps_what_it_has(lacking: str, engine: sa.Engine, url: str) -> None:
    if lacking == "studies.sources_at":
        with engine.begin() as tx:  # an index of it would go first
            _FIRST._TABLES.create_all(tx)
            tx.execute(sa.text("DROP INDEX studies_with_sources"))
    _make_old(engine, lacking=lacking)
    store = Store(url)
    store.create_tables()
    (row,) = store.studies()
    assert (row["study_uid"], row["state"], row["answers"][0]["findings"]) == (STUDY, "done", 3)
    assert _keep(store, study="1.9") == "new"
    assert store.steps("1.9")
    store.close()
    assert _differences(engine) == []


def test_a_program_goes_on_with_a_database_that_a_newer_one_has_migrated(engine: sa.Engine, url: str) -> None:
    store = Store(url)
    store.create_tables()
    _keep(store)
    with engine.begin() as tx:
        tx.execute(sa.text("ALTER TABLE studies ADD COLUMN novelty TEXT NOT NULL DEFAULT ''"))
        tx.execute(sa.text("CREATE TABLE novelties (number INTEGER PRIMARY KEY)"))
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    assert upgrade(engine) == ("9999", "9999")
    _keep(store, "2")
    assert store.begin_analysis(STUDY, 0, last_at=100.0)
    assert store.save_answers(STUDY, 0, answers={"m": ("findings", {})}, deliveries=[_delivery("9.1")])
    store.close()


def test_of_many_that_start_at_once_one_migrates(engine: sa.Engine, url: str) -> None:
    _make_old(engine)
    found: list[object] = []

    def start() -> None:
        mine = open_engine(url)
        try:
            found.append(upgrade(mine))
        except Exception as exc:
            found.append(exc)
        mine.dispose()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(it, tuple) and it[1] == HEAD for it in found), found
    assert _differences(engine) == []


def test_a_migration_that_breaks_off_leaves_the_database_as_it_was(
    engine: sa.Engine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_old(engine)
    tables = sa.inspect(engine).get_table_names()
    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.create_table", _fail)
        with pytest.raises(RuntimeError):
            upgrade(engine)
    assert revision_of(engine) == "0000"
    assert sa.inspect(engine).get_table_names() == tables
    assert upgrade(engine) == ("0000", HEAD)


def _fail(*_: object, **__: object) -> None:
    raise RuntimeError("the power went")


def test_migrations_only_add() -> None:
    """An older program goes on with a newer database: nothing that it knows is taken away, or filled anew by it."""
    for path in Path(str(_FIRST.__file__)).parent.glob("v*.py"):
        text = path.read_text()
        for word in ("drop_", "alter_column", "rename_", "DROP", "RENAME"):
            assert word not in text, f"{path.name}: {word}"
