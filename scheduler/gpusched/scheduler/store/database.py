"""A store in a database."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from threading import RLock
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    Engine,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError

from gpusched.scheduler.core.records import Batch, Boot, EventRecord, JobRecord
from gpusched.scheduler.ports import StoreError
from gpusched.scheduler.store import checks, migrate, sentences
from gpusched.scheduler.store.backend import backend_for
from gpusched.scheduler.store.schema import events, jobs, lease_devices, leases, meta, settings
from gpusched.scheduler.store.statements import Statements

log = logging.getLogger("gpusched.store")

# What fits a database's integers.
_BIGGEST = 2**63 - 1
_DIGITS = len(str(_BIGGEST))
_JOB = tuple(jobs.c[field.name] for field in fields(JobRecord))
_EVENT = tuple(events.c[name] for name in EventRecord._fields)


class DatabaseStore:
    """A `Store`, see `gpusched.scheduler.ports`. It has one connection, and gets itself a new one after an error.

    Calls that come at the same time wait for each other, except for `check`, which has a connection of its own.

    Args:
        url: the database; `sqlite.sqlite_url` makes one for a file.

    Raises:
        StoreError: not a URL of a database that we can use.
    """

    def __init__(self, url: str | URL) -> None:
        self._backend = backend_for(url)
        # Calls come from the event loop and from the thread that syncs; there is one connection.
        self._lock = RLock()
        self._sql: Statements | None = None
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        self._cursor: DBAPICursor | None = None
        #: state_id and starts, once open.
        self._whose: tuple[str, int] | None = None

    def open(self) -> Boot:
        with self._lock:
            return self._open()

    def _open(self) -> Boot:
        self.close()
        try:
            with self._explained():
                self._backend.provide(self._build)
                self._connect(upgrade=True)
            with self._writing(sync=True) as (connection, _):
                connection.execute(update(meta).values(starts=meta.c.starts + 1))
            with self._reading() as connection:
                whose = _whose(connection, self._backend.place)
                waiting_or_running = select(*_JOB).where(jobs.c.ended_at.is_(None)).order_by(jobs.c.id)
                boot = Boot(
                    state_id=whose[0],
                    starts=whose[1],
                    next_job=1 + _highest_job(connection),
                    jobs=tuple(JobRecord(*row) for row in connection.execute(waiting_or_running)),
                    settings={
                        row.key: row.value for row in connection.execute(select(settings.c.key, settings.c.value))
                    },
                )
        except BaseException:
            self.close()
            raise
        self._whose = whose
        return boot

    def commit(self, batch: Batch) -> None:
        if not (batch.jobs or batch.events or batch.ended or batch.leases or batch.settings):
            return
        self._must_be_open()
        try:
            with self._writing(sync=batch.sync) as (_, cursor):
                self._put(cursor, batch)
        except StoreError as error:
            if not error.passing and (clash := self._clash(batch)):
                raise StoreError(f"{self._backend.place} refuses a contradiction: {clash}", passing=False) from error
            raise

    def job(self, job_id: int) -> JobRecord | None:
        self._must_be_open()
        if abs(job_id) > _BIGGEST:
            return None
        with self._reading() as connection:
            row = connection.execute(select(*_JOB).where(jobs.c.id == job_id)).one_or_none()
        return None if row is None else JobRecord(*row)

    def events(self, job_id: int) -> tuple[EventRecord, ...]:
        self._must_be_open()
        if abs(job_id) > _BIGGEST:
            return ()
        with self._reading() as connection:
            rows = connection.execute(select(*_EVENT).where(events.c.job == job_id).order_by(events.c.id)).all()
        return tuple(EventRecord(*row) for row in rows)

    def ended_jobs(
        self,
        *,
        states: frozenset[str] = frozenset(),
        user: str = "",
        name: str = "",
        after: tuple[float, int] | None = None,
        limit: int = 100,
    ) -> tuple[JobRecord, ...]:
        self._must_be_open()
        place = (jobs.c.ended_at, jobs.c.id)
        wanted = select(*_JOB).where(*self._ended(states, user, name))
        if after is not None:
            wanted = wanted.where(tuple_(*place) < tuple_(*after))
        wanted = wanted.order_by(*(column.desc() for column in place)).limit(max(0, limit))
        with self._reading() as connection:
            return tuple(JobRecord(*row) for row in connection.execute(wanted))

    def count_ended(self, *, states: frozenset[str] = frozenset(), user: str = "", name: str = "") -> int:
        self._must_be_open()
        with self._reading() as connection:
            return connection.execute(
                select(func.count()).select_from(jobs).where(*self._ended(states, user, name))
            ).scalar_one()

    def prune(self, before: float, limit: int = 1000) -> int:
        self._must_be_open()
        # A job whose lease is still active stays, ended or not: its devices are not free.
        held = exists().where(leases.c.job == jobs.c.id, leases.c.ended_at.is_(None))
        old = select(jobs.c.id).where(jobs.c.ended_at < before, ~held).order_by(jobs.c.ended_at, jobs.c.id)
        of_job: BindParameter[int] = bindparam("_job")
        of_lease = select(leases.c.epoch).where(leases.c.job == of_job)
        with self._writing(sync=False) as (connection, _):
            ids = connection.execute(old.limit(max(0, limit))).scalars().all()
            if ids:
                each = [{"_job": job} for job in ids]
                connection.execute(delete(lease_devices).where(lease_devices.c.epoch.in_(of_lease)), each)
                connection.execute(delete(leases).where(leases.c.job == of_job), each)
                connection.execute(delete(events).where(events.c.job == of_job), each)
                connection.execute(delete(jobs).where(jobs.c.id == of_job), each)
                connection.execute(update(meta).where(meta.c.pruned_to < max(ids)).values(pruned_to=max(ids)))
        return len(ids)

    def check(self) -> list[str]:
        engine = self._backend.engine()
        try:
            with self._explained(ours=False), engine.connect() as connection:
                self._backend.snapshot(connection)
                if migrate.check_known(connection, self._backend.place) != migrate.HEAD:
                    return [self._older()]
                return [*self._backend.damage(connection), *checks.contradictions(connection)]
        except StoreError as error:
            if error.passing:
                raise
            return [str(error)]
        finally:
            engine.dispose()

    def close(self) -> None:
        with self._lock:
            self._whose = None
            self._drop()

    def _put(self, cursor: DBAPICursor, batch: Batch) -> None:
        """Send a batch's rows; jobs first, since the others point to them."""
        sql = self._sql
        assert sql is not None
        if batch.jobs:
            cursor.executemany(
                sql.put_job,
                [
                    (j.id, j.state, j.kind, j.uid, j.user, j.name, j.name.lower(), j.submitted_at, j.ended_at, j.data)
                    for j in batch.jobs
                ],
            )
        if batch.ended:
            cursor.executemany(sql.end_lease, [(at, epoch) for epoch, at in batch.ended])
            cursor.executemany(sql.free_devices, [(epoch,) for epoch, _ in batch.ended])
        if batch.leases:
            # A lease may come and go within one batch.
            over = dict(batch.ended)
            cursor.executemany(sql.add_lease, [(n.epoch, n.job, n.granted_at, over.get(n.epoch)) for n in batch.leases])
            cursor.executemany(
                sql.add_device,
                [(n.epoch, device, n.epoch not in over, n.shared) for n in batch.leases for device in n.devices],
            )
        if batch.events:
            cursor.executemany(sql.add_event, batch.events)
        if batch.settings:
            kept = [(key, value) for key, value in batch.settings.items() if value is not None]
            if kept:
                cursor.executemany(sql.put_setting, kept)
            if len(kept) < len(batch.settings):
                cursor.executemany(sql.drop_setting, [(key,) for key, value in batch.settings.items() if value is None])

    def _clash(self, batch: Batch) -> str:
        """What is wrong with a refused batch's leases, in words; empty if nothing."""
        for lease in batch.leases:
            if len(set(lease.devices)) < len(lease.devices):
                return sentences.named_twice(lease.epoch)
        new = [lease.epoch for lease in batch.leases]
        # Of parts of a device there may be several; that they are not beside a lease of all of it, `check` sees.
        devices = {device for lease in batch.leases for device in lease.devices if not lease.shared}
        known = select(leases.c.epoch).where(leases.c.epoch.in_(new)).order_by(leases.c.epoch)
        taken = (
            select(lease_devices.c.device, leases.c.epoch, leases.c.job)
            .join(leases, leases.c.epoch == lease_devices.c.epoch)
            .where(lease_devices.c.active, ~lease_devices.c.shared, lease_devices.c.device.in_(devices))
            .where(leases.c.epoch.not_in([epoch for epoch, _ in batch.ended]))
            .order_by(lease_devices.c.device)
        )
        try:
            with self._reading() as connection:
                if (epoch := connection.execute(known).scalars().first()) is not None:
                    return sentences.known_lease(epoch)
                row = connection.execute(taken).first()
        except StoreError:
            return ""
        return "" if row is None else sentences.taken(*row)

    def _ended(self, states: frozenset[str], user: str, name: str) -> list[Any]:
        """The conditions on ended jobs."""
        conditions: list[Any] = [jobs.c.ended_at.is_not(None)]
        if states:
            conditions.append(jobs.c.state.in_(sorted(states)))
        if user:
            same = jobs.c.user == user
            if user.isascii() and user.isdigit() and len(user) < _DIGITS and str(int(user)) == user:
                same = or_(same, jobs.c.uid == int(user))
            conditions.append(same)
        if name:
            conditions.append(self._backend.contains(jobs.c.name_lower, name.lower()))
        return conditions

    def _must_be_open(self) -> None:
        if self._whose is None:
            raise StoreError(f"{self._backend.place} is not open", passing=False)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._lock, self._explained():
            connection, _ = self._connected()
            try:
                yield connection
            finally:
                self._roll_back()

    @contextmanager
    def _writing(self, *, sync: bool) -> Iterator[tuple[Connection, DBAPICursor]]:
        """A transaction; both ways of sending statements take part in it."""
        with self._lock, self._explained():
            connection, cursor = self._connected()
            try:
                self._backend.begin(cursor, sync=sync)
                yield connection, cursor
                connection.connection.commit()
            except BaseException:
                self._roll_back()
                raise
            if connection.in_transaction():
                connection.rollback()  # ends what SQLAlchemy thinks has begun; the driver has nothing left to do

    @contextmanager
    def _explained(self, *, ours: bool = True) -> Iterator[None]:
        """Turn what the driver raises into words; `ours` if it is about the connection that we keep."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            cause = error.orig if isinstance(error, DBAPIError) and isinstance(error.orig, Exception) else error
            verdict = self._backend.explain(cause)
            if ours and (verdict is None or verdict.reconnect):
                self._drop()
            if verdict is None:
                raise
            raise StoreError(verdict.message, passing=verdict.passing) from cause

    def _roll_back(self) -> None:
        """Leave any transaction; if that cannot be done, leave the connection."""
        if self._connection is None:
            return
        try:
            if self._connection.in_transaction():
                self._connection.rollback()
            self._connection.connection.rollback()
        except Exception:
            log.debug("could not roll back", exc_info=True)
            self._drop()

    def _connected(self) -> tuple[Connection, DBAPICursor]:
        if self._connection is None or self._cursor is None:
            self._connect(upgrade=False)
        assert self._connection is not None and self._cursor is not None
        return self._connection, self._cursor

    def _connect(self, *, upgrade: bool) -> None:
        self._drop()
        place = self._backend.place
        self._engine = self._backend.engine()
        try:
            self._connection = connection = self._engine.connect()
            revision = migrate.check_known(connection, place)
            connection.rollback()
            if revision != migrate.HEAD:
                if not upgrade:
                    raise StoreError(self._older(), passing=False)
                self._backend.rebuilding(connection)
                migrate.upgrade(connection)
                connection.commit()
                log.info("%s: schema brought from %s to %s", place, revision, migrate.HEAD)
            driver = connection.connection
            self._backend.settle(driver)
            if self._whose is not None and _whose(connection, place) != self._whose:
                raise StoreError(
                    f"{place} has been replaced, or another server has started on it: restart this one", passing=False
                )
            connection.rollback()
            self._cursor = driver.cursor()
            self._sql = self._sql or Statements(self._backend, self._engine.dialect)
        except BaseException:
            self._drop()
            raise

    def _older(self) -> str:
        return f"{self._backend.place} has an older schema; the server brings it up to date when it starts"

    def _drop(self) -> None:
        """Close the connection, whatever state it is in."""
        connection, engine = self._connection, self._engine
        self._connection = self._cursor = self._engine = None
        for close in (connection and connection.close, engine and engine.dispose):
            try:
                if close:
                    close()
            except Exception:
                log.debug("could not close", exc_info=True)

    def _build(self, connection: Connection) -> None:
        """Fill an empty database."""
        self._backend.rebuilding(connection)
        migrate.upgrade(connection)
        connection.execute(insert(meta).values(id=1, state_id=secrets.token_hex(8), starts=0, pruned_to=0))
        connection.commit()


def _whose(connection: Connection, place: str) -> tuple[str, int]:
    row = connection.execute(select(meta.c.state_id, meta.c.starts)).one_or_none()
    if row is None:
        raise StoreError(f"{place} does not say whose it is; put it back from a backup", passing=False)
    return row[0], row[1]


def _highest_job(connection: Connection) -> int:
    """The highest number that a job ever had, 0 if there was none."""
    kept: int | None = connection.execute(select(func.max(jobs.c.id))).scalar_one()
    pruned: int = connection.execute(select(meta.c.pruned_to)).scalar_one()
    return max(kept or 0, pruned)
