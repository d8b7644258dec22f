"""The statements that write, compiled to text once.

Building and compiling a statement costs more than SQLite takes to run it, so a commit goes to the driver directly.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete, exists, false, insert, select, update
from sqlalchemy.engine import Dialect

from gpusched.scheduler.store.backend import Backend
from gpusched.scheduler.store.schema import events, jobs, lease_devices, leases, meta, settings


class Statements:
    """SQL text for one database. The values that each statement takes, in order, are in its comment.

    Args:
        backend: knows the database's upsert.
        dialect: of the engine that will run them.
    """

    def __init__(self, backend: Backend, dialect: Dialect) -> None:
        def sql(statement: Any, *names: str) -> str:
            compiled = statement.compile(dialect=dialect, column_keys=[n for n in names if not n.startswith("_")])
            # A statement whose values have other places than its caller thinks must not get any.
            assert list(compiled.positiontup or ()) == list(names), (compiled.positiontup, names)
            return str(compiled)

        def upsert(table: Any, key: str) -> Any:
            new = backend.insert(table)
            rest = {name: new.excluded[name] for name in table.columns.keys() if name != key}
            return new.on_conflict_do_update(index_elements=[key], set_=rest)

        # id, state, kind, uid, user, name, name_lower, submitted_at, ended_at, data
        self.put_job = sql(upsert(jobs, "id"), *jobs.columns.keys())
        # job, at, state, message, attempt
        self.add_event = sql(insert(events), "job", "at", "state", "message", "attempt")
        # epoch, job, granted_at, ended_at
        self.add_lease = sql(insert(leases), "epoch", "job", "granted_at", "ended_at")
        # epoch, device, active
        self.add_device = sql(insert(lease_devices), "epoch", "device", "active")
        # ended_at, epoch
        self.end_lease = sql(
            update(leases)
            .where(leases.c.epoch == bindparam("_epoch"), leases.c.ended_at.is_(None))
            .values(ended_at=bindparam("_at")),
            "_at",
            "_epoch",
        )
        # epoch
        self.free_devices = sql(
            update(lease_devices).where(lease_devices.c.epoch == bindparam("_epoch")).values(active=false()),
            "_epoch",
        )
        # key, value
        self.put_setting = sql(upsert(settings, "key"), "key", "value")
        # key
        self.drop_setting = sql(delete(settings).where(settings.c.key == bindparam("_key")), "_key")
        # state_id, starts, pruned_to
        self.count_start = sql(update(meta).values(starts=meta.c.starts + bindparam("_one")), "_one")

        of_job = select(leases.c.epoch).where(leases.c.job == bindparam("_job"))
        # job, in this order
        self.forget = (
            sql(delete(lease_devices).where(lease_devices.c.epoch.in_(of_job)), "_job"),
            sql(delete(leases).where(leases.c.job == bindparam("_job")), "_job"),
            sql(delete(events).where(events.c.job == bindparam("_job")), "_job"),
            sql(delete(jobs).where(jobs.c.id == bindparam("_job")), "_job"),
        )
        # highest pruned id, twice
        self.note_pruned = sql(
            update(meta).where(meta.c.pruned_to < bindparam("_least")).values(pruned_to=bindparam("_to")),
            "_to",
            "_least",
        )


def prunable(before: float, limit: int) -> Any:
    """Ids of the jobs to be forgotten first. One whose lease is still active stays: its devices are not free."""
    active = exists().where(leases.c.job == jobs.c.id, leases.c.ended_at.is_(None))
    return select(jobs.c.id).where(jobs.c.ended_at < before, ~active).order_by(jobs.c.ended_at, jobs.c.id).limit(limit)
