"""Leases that have parts of a device: several of them may be active on one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("lease_devices", sa.Column("shared", sa.Boolean, nullable=False, server_default=sa.false()))
    op.drop_index("lease_devices_one_active", "lease_devices")
    whole = sa.text("active AND NOT shared")
    op.create_index(
        "lease_devices_one_active", "lease_devices", ["device"], unique=True, sqlite_where=whole, postgresql_where=whole
    )
