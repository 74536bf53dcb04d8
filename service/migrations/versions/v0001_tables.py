"""The tables of the first version that could take a kill anywhere.

Databases that older programs made have no revision; they lack columns and indexes at most, which are added here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLES = sa.MetaData()
sa.Table(
    "studies",
    _TABLES,
    sa.Column("study_uid", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("revision", sa.Integer, nullable=False),  # grows when instances come after the analysis began
    sa.Column("priority", sa.SmallInteger, nullable=False, server_default="2"),
    sa.Column("first_at", sa.Float, nullable=False),  # seconds since 1970
    sa.Column("last_at", sa.Float, nullable=False, index=True),
    sa.Column("started_at", sa.Float),
    sa.Column("source", sa.String(16), nullable=False, server_default=""),  # calling AE title of the last sender
    sa.Column("completeness", sa.String(16), nullable=False, server_default=""),  # once it was judged ready
    sa.Column("judged", sa.Text, nullable=False, server_default=""),  # the evidence for that, in words
    sa.Column("missing", sa.Text, nullable=False, server_default=""),  # what of it is missing, in words
    sa.Column("tries", sa.Integer, nullable=False, default=0),  # of this revision's analysis that came to nothing
    sa.Column("next_at", sa.Float, nullable=False, default=0.0),  # when the next one is due
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
sa.Table(
    "instances",
    _TABLES,
    sa.Column("study_uid", sa.String(64), primary_key=True),  # a PACS that splits studies sends an instance again
    sa.Column("sop_uid", sa.String(64), primary_key=True),
    sa.Column("series_uid", sa.String(64), nullable=False),
    sa.Column("class_uid", sa.String(64), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("received_at", sa.Float, nullable=False),
    sa.Column("gone_at", sa.Float),  # when its file was removed (retention); NULL again when it comes again
)
sa.Table(  # what came under a known SOP Instance UID with other bytes: kept beside, not analysed
    "conflicts",
    _TABLES,
    sa.Column("study_uid", sa.String(64), primary_key=True),
    sa.Column("sop_uid", sa.String(64), primary_key=True),
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("series_uid", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("received_at", sa.Float, nullable=False),
)
sa.Table(
    "answers",
    _TABLES,
    sa.Column("study_uid", sa.String(64), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("body", sa.Text, nullable=False),  # JSON, as the API shows it
)
sa.Table(
    "deliveries",
    _TABLES,
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
    sa.UniqueConstraint("destination", "sop_uid"),  # one object goes to a destination once
)


def upgrade() -> None:
    """Make what is missing."""
    connection = op.get_bind()
    _TABLES.create_all(connection)
    inspector = sa.inspect(connection)
    for table in _TABLES.sorted_tables:
        known = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                words = sa.schema.CreateColumn(column).compile(connection)
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {words}"))
        for index in sorted(table.indexes, key=lambda it: str(it.name)):
            index.create(connection, checkfirst=True)
