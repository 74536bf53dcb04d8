"""How an older database becomes one of this version: Alembic's scripts. Each only adds, so an older program goes on."""
