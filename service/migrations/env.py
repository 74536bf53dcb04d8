"""Run by Alembic: the connection is the caller's, and so is the transaction (`service.schema`)."""

from __future__ import annotations

from alembic import context

from service.tables import TABLES

context.configure(connection=context.config.attributes["connection"], target_metadata=TABLES)
context.run_migrations()
