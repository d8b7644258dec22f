"""Whether a database is ours, how old its schema is, and how to bring it up to date."""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Connection, column, inspect, select, table

from gpusched.scheduler.ports import StoreError

log = logging.getLogger("gpusched.store")

#: The revision that `schema.py` describes.
HEAD = "0002"
#: Alembic's table, under a name by which a database is known as ours.
VERSION_TABLE = "gpusched_schema"


def check_known(connection: Connection, place: str) -> str:
    """The schema's revision: HEAD, or an older one from which there is a way.

    Raises:
        StoreError: the database is not ours, or from a newer program.
    """
    # Inspected anew each time: an inspector remembers.
    if not inspect(connection).has_table(VERSION_TABLE):
        raise StoreError(
            f"{place} is a database, but none of gpusched's; choose another place, or move it away to begin anew",
            passing=False,
        )
    revision = connection.execute(select(column("version_num")).select_from(table(VERSION_TABLE))).scalar_one_or_none()
    if revision is None:
        raise StoreError(f"{place} does not say which schema it has; put it back from a backup", passing=False)
    if revision == HEAD:
        return HEAD
    from alembic.script import ScriptDirectory  # slow to import, and hardly ever needed

    if revision not in {script.revision for script in ScriptDirectory(str(_folder())).walk_revisions()}:
        raise StoreError(
            f"{place} was written by a newer gpusched (schema {revision}; this one knows up to {HEAD}): "
            "install that version again, or put back the backup from before the upgrade",
            passing=False,
        )
    return str(revision)


def upgrade(connection: Connection) -> None:
    """Bring the schema to HEAD, from any older one or from nothing, in the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)


def _folder() -> Path:
    return Path(__file__).with_name("migrations")
