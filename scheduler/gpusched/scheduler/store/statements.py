"""The statements of a commit, compiled to text once.

Building a statement, and executing it through SQLAlchemy, costs more than SQLite takes to run it: a commit hands text
and rows to the driver directly. Everything rarer goes the ordinary way.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, Table, bindparam, delete, false, insert, update
from sqlalchemy.engine import Dialect

from gpusched.scheduler.store.backend import Backend
from gpusched.scheduler.store.schema import events, jobs, lease_devices, leases, settings


class Statements:
    """SQL text for one database, and in each comment the values that it takes.

    Args:
        backend: knows how the database puts a row in or over the old one.
        dialect: of the engine that will run them.
    """

    def __init__(self, backend: Backend, dialect: Dialect) -> None:
        def sql(statement: Any, *names: str) -> str:
            compiled = statement.compile(dialect=dialect, column_keys=[n for n in names if not n.startswith("_")])
            # A statement whose values have other places than its caller thinks must never get any.
            assert list(compiled.positiontup or ()) == list(names), (compiled.positiontup, names)
            return str(compiled)

        def put(table: Table, key: str) -> str:
            new = backend.insert(table)
            names = [column.name for column in table.columns]
            rest = {name: new.excluded[name] for name in names if name != key}
            return sql(new.on_conflict_do_update(index_elements=[key], set_=rest), *names)

        #: id, state, kind, uid, user, name, name_lower, submitted_at, ended_at, data
        self.put_job = put(jobs, "id")
        #: key, value
        self.put_setting = put(settings, "key")
        #: key
        self.drop_setting = sql(delete(settings).where(settings.c.key == bindparam("_key")), "_key")
        #: job, at, state, message, attempt
        self.add_event = sql(insert(events), "job", "at", "state", "message", "attempt")
        #: epoch, job, granted_at, ended_at
        self.add_lease = sql(insert(leases), "epoch", "job", "granted_at", "ended_at")
        #: epoch, device, active, shared
        self.add_device = sql(insert(lease_devices), "epoch", "device", "active", "shared")
        epoch: BindParameter[int] = bindparam("_epoch")
        at: BindParameter[float] = bindparam("_at")
        #: ended_at, epoch
        self.end_lease = sql(
            update(leases).where(leases.c.epoch == epoch, leases.c.ended_at.is_(None)).values(ended_at=at),
            "_at",
            "_epoch",
        )
        #: epoch
        self.free_devices = sql(
            update(lease_devices).where(lease_devices.c.epoch == epoch).values(active=false()), "_epoch"
        )
