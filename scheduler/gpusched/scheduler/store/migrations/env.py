"""Run by Alembic; `gpusched.scheduler.store.migrate` is who asks, and gives the connection."""

from __future__ import annotations

from alembic import context

from gpusched.scheduler.store.migrate import VERSION_TABLE
from gpusched.scheduler.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # All steps in the caller's one transaction, on SQLite too: after a failure the old schema is still there.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
