"""SQLite: one file, with its write-ahead log beside it."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Column, ColumnElement, Connection, Engine, Table, create_engine, func
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.pool import StaticPool

from gpusched.scheduler.ports import StoreError
from gpusched.scheduler.store.backend import Verdict

log = logging.getLogger("gpusched.store")

#: How long to wait for another process (`sqlite3` in a shell) that holds the lock, in seconds.
BUSY_SECONDS = 0.1
# The log grows with a burst, and is cut back to this when it has been copied into the file.
_LOG_BYTES = 16 << 20
# That copying waits for the disk: not after every 1000 pages, which a burst fills in half a second.
_LOG_PAGES = _LOG_BYTES // 4096 // 2
_DAMAGE_LINES = 20
_OURS = 0o600
# Less than this and a disk counts as full: the log's shared memory alone takes 32 KiB.
_FULL_BYTES = 64 << 10


def sqlite_url(path: Path) -> URL:
    """The URL of a state file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path.absolute()))


class SqliteBackend:
    """A state file.

    Args:
        url: names the file; it takes no options.

    Raises:
        StoreError: it names no file.
    """

    def __init__(self, url: URL) -> None:
        if not url.database or url.database == ":memory:" or url.query:
            raise StoreError(
                "the database URL must name a file and nothing else, like sqlite:////var/lib/gpusched/state.db",
                passing=False,
            )
        # Where a link points to: the file's log is beside that, and a new file must not replace a link.
        self._path = Path(os.path.realpath(url.database))
        self._log = self._path.with_name(self._path.name + "-wal")
        self._synchronous: bool | None = None
        self._identity: tuple[int, int] | None = None
        self._log_identity: tuple[int, int] | None = None

    @property
    def place(self) -> str:
        return f"state file {self._path}"

    def engine(self) -> Engine:
        return self._engine(self._path)

    def _engine(self, path: Path) -> Engine:
        def connect() -> sqlite3.Connection:
            # mode=rw: a state file that is gone must not come back empty. No isolation level: transactions begin
            # where we say so, before schema changes too.
            return sqlite3.connect(
                f"file:{quote(os.fsencode(path))}?mode=rw",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )

        return create_engine("sqlite://", creator=connect, poolclass=StaticPool)

    def provide(self, build: Callable[[Connection], None]) -> None:
        self._identity = None
        if self._path.exists():
            self._check_file()
            return
        if _size(self._log):
            raise StoreError(
                f"{self.place} is gone, but its log {self._log.name} is there: put the file back from a backup, "
                "or move the log away to begin anew",
                passing=False,
            )
        # Built aside, so that a state file is there whole or not at all, and an empty one always means damage.
        draft = self._path.with_name(self._path.name + ".new")
        for leftover in (draft, *(draft.with_name(draft.name + end) for end in ("-journal", "-wal", "-shm"))):
            leftover.unlink(missing_ok=True)
        try:
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _OURS))
            engine = self._engine(draft)
            try:
                with engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA synchronous=FULL")
                    build(connection)
            finally:
                engine.dispose()
            draft.rename(self._path)
            _sync_directory(self._path.parent)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        log.info("new %s", self.place)

    def _check_file(self) -> None:
        found = self._path.stat()
        if not found.st_size:
            raise StoreError(
                f"{self.place} is empty: put it back from a backup, or move it away to begin anew", passing=False
            )
        if found.st_uid == os.geteuid() and found.st_mode & 0o077:
            self._path.chmod(_OURS)  # a backup that was put back; the log gets the file's mode from SQLite

    def settle(self, connection: DBAPIConnection) -> None:
        cursor = connection.cursor()
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            if cursor.fetchone() != ("wal",):
                raise StoreError(
                    f"{self.place}: its file system cannot share memory between processes, which SQLite's log needs; "
                    "choose a local one with --state-dir or GPUSCHED_STATE_DIR",
                    passing=False,
                )
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}")
            cursor.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
            cursor.execute("PRAGMA synchronous=FULL")
            # The log comes to be with the first transaction.
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute("COMMIT")
        finally:
            cursor.close()
        self._synchronous = True
        self._log_identity = _identity(self._log)
        if self._identity is None:
            self._identity = _identity(self._path)

    def begin(self, cursor: DBAPICursor, *, sync: bool) -> None:
        # SQLite goes on writing to a file that has been deleted or replaced, and all of it would be lost.
        if _identity(self._path) != self._identity:
            raise StoreError(
                f"{self.place} is gone or was replaced while in use: put the same file back, or restart the server "
                "to go on with what is there",
                passing=True,
            )
        if _identity(self._log) != self._log_identity:
            self._save_log(cursor)
        if sync is not self._synchronous:
            self._synchronous = None
            cursor.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
            self._synchronous = sync
        cursor.execute("BEGIN IMMEDIATE")

    def _save_log(self, cursor: DBAPICursor) -> None:
        """The log was deleted or replaced, but is still open: copy into the file what only it has."""
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        busy, *_ = cursor.fetchone() or (1,)
        if busy:
            raise StoreError(self._locked(), passing=True)
        raise _LogGone

    def rebuilding(self, connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")  # `settle` turns it on
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def insert(self, table: Table) -> Any:
        return insert(table)

    def contains(self, column: Column[str], text: str) -> ColumnElement[bool]:
        # Not LIKE: it has a limit on the length, and ideas of its own about case.
        return func.instr(column, text) > 0

    def explain(self, error: Exception) -> Verdict | None:
        if isinstance(error, _LogGone):
            return Verdict(f"{self.place}: its log {self._log.name} was removed while in use", True, True)
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return Verdict(self._full(), True, False)
            return Verdict(f"{self.place} cannot be used: {os.strerror(error.errno or 0)}", True, False)
        if isinstance(error, ValueError | OverflowError):  # numbers beyond 64 bits, text that is not Unicode
            return Verdict(f"{self.place} cannot take this: {error}", False, False)
        if not isinstance(error, sqlite3.Error):
            return None
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:  # the driver's own, about our use of it
            return Verdict(f"{self.place} cannot take this: {error}", False, True)
        return self._explain_code(code, code & 0xFF, error)

    def _explain_code(self, code: int, kind: int, error: sqlite3.Error) -> Verdict:
        # The connection is kept wherever it can be. A commit that failed while it was synced may be in the log all the
        # same: this connection knows that it is not to count, and will overwrite it; a new one would believe it.
        if kind in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and self._is_full():
            kind = sqlite3.SQLITE_FULL
        match kind:
            case sqlite3.SQLITE_FULL:
                return Verdict(self._full(), True, False)
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
                return Verdict(self._locked(), True, False)
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return Verdict(
                    f"{self.place} cannot be written: it, its directory or the disk is read-only for this user",
                    True,
                    False,
                )
            case sqlite3.SQLITE_CANTOPEN:
                return Verdict(
                    f"{self.place} cannot be opened: it or its directory is missing, or this user may not", True, False
                )
            case sqlite3.SQLITE_IOERR:
                name = getattr(error, "sqlite_errorname", code)
                return Verdict(f"{self.place}: the disk reports an error ({name}); see the kernel's log", True, False)
            case sqlite3.SQLITE_NOMEM | sqlite3.SQLITE_INTERRUPT:
                return Verdict(f"{self.place} cannot be used now: {error}", True, False)
            case sqlite3.SQLITE_NOTADB:
                return Verdict(
                    f"{self.place} is not a database, or its beginning is damaged; stop the server and put the file "
                    "back from a backup, or move it away to begin anew",
                    False,
                    True,
                )
            case sqlite3.SQLITE_CORRUPT:
                return Verdict(
                    f"{self.place} is damaged ({error}); stop the server and put the file back from a backup, "
                    "or move it away to begin anew",
                    False,
                    True,
                )
            case sqlite3.SQLITE_CONSTRAINT:
                return Verdict(f"{self.place} refuses a contradiction: {error}", False, False)
            case _:
                return Verdict(f"{self.place} cannot take this: {error}", False, True)

    def _locked(self) -> str:
        return f"{self.place} is locked by another process; end that one (`fuser -v '{self._path}'` shows it)"

    def _full(self) -> str:
        why = "no space left on its disk; make room; a running server then goes on by itself"
        return f"{self.place} cannot be written: {why}"

    def _is_full(self) -> bool:
        try:
            found = os.statvfs(self._path.parent)
        except OSError:
            return False
        return found.f_bavail * found.f_frsize < _FULL_BYTES

    def snapshot(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    def damage(self, connection: Connection) -> list[str]:
        found = connection.exec_driver_sql(f"PRAGMA integrity_check({_DAMAGE_LINES})").scalars().all()
        return [] if found == ["ok"] else [f"{self.place} is damaged: {line}" for line in found]


class _LogGone(Exception):
    """Somebody removed the write-ahead log of the open file."""


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - before each transaction, and half the time of Path.stat
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
