"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "meta",
        sa.Column(
            "id", sa.Integer, sa.CheckConstraint("id = 1", name="meta_one_row"), primary_key=True, autoincrement=False
        ),
        sa.Column("state_id", sa.Text, nullable=False),
        sa.Column("starts", sa.BigInteger, nullable=False),
        sa.Column("pruned_to", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("id", number, primary_key=True, autoincrement=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("uid", sa.BigInteger, nullable=False),
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("name_lower", sa.Text, nullable=False),
        sa.Column("submitted_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("data", sa.Text, nullable=False),
    )
    _index("jobs_open", "jobs", ["id"], where="ended_at IS NULL")
    _index("jobs_ended", "jobs", ["ended_at", "id"], where="ended_at IS NOT NULL")
    op.create_table(
        "events",
        sa.Column("id", number, primary_key=True),
        sa.Column("job", sa.BigInteger, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
    )
    op.create_index("events_job", "events", ["job"])
    op.create_table(
        "leases",
        sa.Column("epoch", number, primary_key=True, autoincrement=False),
        sa.Column("job", sa.BigInteger, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("granted_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
    )
    op.create_index("leases_job", "leases", ["job"])
    op.create_table(
        "lease_devices",
        sa.Column("epoch", sa.BigInteger, sa.ForeignKey("leases.epoch"), primary_key=True, autoincrement=False),
        sa.Column("device", sa.Text, primary_key=True),
        sa.Column("active", sa.Boolean, nullable=False),
        sqlite_with_rowid=False,
    )
    _index("lease_devices_one_active", "lease_devices", ["device"], where="active", unique=True)
    op.create_table(
        "settings",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )


def _index(name: str, table: str, columns: list[str], *, where: str, unique: bool = False) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=condition, postgresql_where=condition)
