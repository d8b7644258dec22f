"""PostgreSQL, through any driver of SQLAlchemy's; tried with psycopg 3. No option of the server offers it yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Engine, Table, create_engine, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.pool import StaticPool

from gpusched.scheduler.ports import StoreError
from gpusched.scheduler.store.backend import Verdict

# Classes of SQLSTATE (its first two characters) after which the same may work later.
_PASSING = frozenset({"08", "40", "53", "55", "57", "58"})
_CONTRADICTION = "23"


class PostgresBackend:
    """A database of a PostgreSQL server, with nothing else in its first schema.

    Args:
        url: how to reach it.
    """

    def __init__(self, url: URL) -> None:
        self._url = url

    @property
    def place(self) -> str:
        return f"database {self._url.render_as_string(hide_password=True)}"

    def engine(self) -> Engine:
        try:
            # Statements are compiled to text once; this is the style whose parameters have no names.
            return create_engine(self._url, poolclass=StaticPool, paramstyle="format")
        except (ImportError, NoSuchModuleError) as error:
            raise StoreError(f"{self.place}: its driver is not installed ({error})", passing=False) from error

    def provide(self, build: Callable[[Connection], None]) -> None:
        engine = self.engine()
        try:
            with engine.connect() as connection:
                if not engine.dialect.get_table_names(connection):
                    build(connection)
        finally:
            engine.dispose()

    def settle(self, connection: DBAPIConnection) -> None:
        pass

    def begin(self, cursor: DBAPICursor, *, sync: bool) -> None:
        # The driver begins by itself. Nothing is gained without sync: what the server told as kept must outlive a
        # crash of PostgreSQL, which `synchronous_commit` off would not.
        pass

    def rebuilding(self, connection: Connection) -> None:
        pass

    def insert(self, table: Table) -> Any:
        return insert(table)

    def contains(self, column: Column[str], text: str) -> ColumnElement[bool]:
        return func.strpos(column, text) > 0

    def explain(self, error: Exception) -> Verdict | None:
        state = getattr(error, "sqlstate", None) or ""
        text = str(error).strip()
        kinds = {base.__name__ for base in type(error).__mro__}  # the DB-API gives these to every driver
        if not isinstance(error, OSError | ValueError | OverflowError) and "Error" not in kinds:
            return None
        # A lost or refused connection has no SQLSTATE.
        if isinstance(error, OSError) or state[:2] in _PASSING or (not state and "OperationalError" in kinds):
            return Verdict(f"{self.place} cannot be used now: {text}", True, True)
        if state[:2] == _CONTRADICTION:
            return Verdict(f"{self.place} refuses a contradiction: {text}", False, False)
        return Verdict(f"{self.place} cannot take this: {text}", False, True)

    def snapshot(self, connection: Connection) -> None:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")

    def damage(self, connection: Connection) -> list[str]:
        return []
