"""What differs between databases. Everything else in this folder is the same for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Column, ColumnElement, Connection, Engine, Table
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import ArgumentError

from gpusched.scheduler.ports import StoreError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error of the database means.

    Attributes:
        message: what is wrong and what to do, for people.
        passing: the same may work later.
        reconnect: the connection is not to be trusted any more.
    """

    message: str
    passing: bool
    reconnect: bool


class Backend(Protocol):
    """A kind of database, and one of it. Methods may raise StoreError, and whatever the driver raises."""

    @property
    def place(self) -> str:
        """What people call it: "state file /x/state.db"."""

    def engine(self) -> Engine:
        """A new engine that has one connection, for any thread. Connecting does not change or create anything."""

    def provide(self, build: Callable[[Connection], None]) -> None:
        """Have the database exist. A missing one is filled by `build`, and there with all of that or not at all."""

    def settle(self, connection: DBAPIConnection) -> None:
        """Make a new connection fit for use, once it is known that the database is ours."""

    def begin(self, cursor: DBAPICursor, *, sync: bool) -> None:
        """Begin a transaction that writes; with `sync`, its commit is to survive a power loss."""

    def rebuilding(self, connection: Connection) -> None:
        """Begin a transaction in which tables may be taken apart and put together again."""

    def insert(self, table: Table) -> Any:
        """An INSERT with `on_conflict_do_update` and `excluded`."""

    def contains(self, column: Column[str], text: str) -> ColumnElement[bool]:
        """A column's text has another in it, exactly as written."""

    def explain(self, error: Exception) -> Verdict | None:
        """What an error of the driver or of the system means; None for a fault of our own program."""

    def snapshot(self, connection: Connection) -> None:
        """Begin a transaction that reads, and sees nothing of what is written from now on."""

    def damage(self, connection: Connection) -> list[str]:
        """Look for damage in the database itself: a sentence for each, none if all is well."""


def backend_for(url: str | URL) -> Backend:
    """The backend for a database URL, `sqlite:////path/to/state.db` or `postgresql+psycopg://host/name`.

    Raises:
        StoreError: not a URL of a database that we can use.
    """
    # Imported here so that neither driver is needed for the other.
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError(
            "the database URL cannot be understood; it looks like sqlite:////var/lib/gpusched/state.db", passing=False
        ) from None
    match parsed.get_backend_name():
        case "sqlite":
            from gpusched.scheduler.store.sqlite import SqliteBackend

            return SqliteBackend(parsed)
        case "postgresql":
            from gpusched.scheduler.store.postgres import PostgresBackend

            return PostgresBackend(parsed)
        case other:
            raise StoreError(f"state cannot be kept in {other}; only in sqlite or postgresql", passing=False)
