"""``overread database``: which revision the tables have; and how they become this version's before it starts."""

from __future__ import annotations

from service import schema
from service.errors import ConfigError
from service.settings.store import StoreSection
from service.show import console
from service.tables import open_engine, url_of


def show(store: StoreSection) -> int:
    """Print the revision of the database, and that of this version."""
    return _with(store, change=False)


def upgrade(store: StoreSection) -> int:
    """Bring the tables to what this version knows; services that are at work on them go on meanwhile."""
    return _with(store, change=True)


def _with(store: StoreSection, *, change: bool) -> int:
    engine = open_engine(url_of(store))
    try:
        before, after = schema.upgrade(engine) if change else 2 * (schema.revision_of(engine),)
    except Exception as exc:  # each driver has exceptions of its own; the URL may hold a name, so it is not shown
        raise ConfigError(
            doing="opening the database",
            found=type(exc).__name__,
            rule="[store] database is the URL of a PostgreSQL that answers, or empty: a SQLite file in the directory",
            way_out="start the server, or correct the URL",
        ) from exc
    finally:
        engine.dispose()
    was = f"; it was {before or 'without tables'}" if before != after else ""
    newer = ", newer than this version, which goes on with it" if after > schema.HEAD else ""
    console.print(f"revision {after or 'none: it has no tables'}{newer}{was}; this version knows {schema.HEAD}")
    return 0
