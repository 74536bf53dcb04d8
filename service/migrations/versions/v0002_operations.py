"""Time lines, processes and their leases, why a study waits, how many findings an answer has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what is new; nothing of it is needed by a program that does not know it."""
    for column in (
        sa.Column("holder", sa.String(64), nullable=False, server_default=""),
        sa.Column("progress", sa.Text, nullable=False, server_default=""),
        sa.Column("waits", sa.Text, nullable=False, server_default=""),
        sa.Column("waits_until", sa.Float, nullable=False, server_default="0"),
    ):
        op.add_column("studies", column)
    op.add_column("deliveries", sa.Column("holder", sa.String(64), nullable=False, server_default=""))
    op.create_index("deliveries_by_destination", "deliveries", ["destination", "state"])
    op.add_column("answers", sa.Column("findings", sa.Integer))
    op.create_table(
        "steps",
        sa.Column("step_id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("study_uid", sa.String(64), nullable=False, index=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("step", sa.String(32), nullable=False),
        sa.Column("words", sa.Text, nullable=False, server_default=""),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "processes",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("parts", sa.String(64), nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False, index=True),
        sa.Column("status", sa.Text, nullable=False, server_default=""),
    )
