"""The tables. A change here needs a migration beside it: docs/state.md, "Changing the schema"."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    false,
    text,
)

metadata = MetaData()

# SQLite makes a column the table's own row number only if it is called INTEGER; that has 64 bits there.
_Id = BigInteger().with_variant(Integer, "sqlite")

#: One row: whose state this is.
meta = Table(
    "meta",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="meta_one_row"), primary_key=True, autoincrement=False),
    Column("state_id", Text, nullable=False),
    Column("starts", BigInteger, nullable=False),
    # The highest number of a job that was pruned: it is not given out again.
    Column("pruned_to", BigInteger, nullable=False),
)

#: `data` is last, so that looking through the other columns does not read it.
jobs = Table(
    "jobs",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=False),
    Column("state", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("uid", BigInteger, nullable=False),
    Column("user", Text, nullable=False),
    Column("name", Text, nullable=False),
    # Databases disagree about the lower case of other than ASCII letters; Python's is kept.
    Column("name_lower", Text, nullable=False),
    Column("submitted_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("data", Text, nullable=False),
)
Index("jobs_open", jobs.c.id, sqlite_where=text("ended_at IS NULL"), postgresql_where=text("ended_at IS NULL"))
Index(
    "jobs_ended",
    jobs.c.ended_at,
    jobs.c.id,
    sqlite_where=text("ended_at IS NOT NULL"),
    postgresql_where=text("ended_at IS NOT NULL"),
)

events = Table(
    "events",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("job", BigInteger, ForeignKey("jobs.id"), nullable=False),
    Column("at", Double, nullable=False),
    Column("state", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
)
Index("events_job", events.c.job)

leases = Table(
    "leases",
    metadata,
    Column("epoch", _Id, primary_key=True, autoincrement=False),
    Column("job", BigInteger, ForeignKey("jobs.id"), nullable=False),
    Column("granted_at", Double, nullable=False),
    Column("ended_at", Double),
)
Index("leases_job", leases.c.job)

lease_devices = Table(
    "lease_devices",
    metadata,
    Column("epoch", BigInteger, ForeignKey("leases.epoch"), primary_key=True, autoincrement=False),
    Column("device", Text, primary_key=True),
    Column("active", Boolean, nullable=False),
    # Of several leases that have parts of the device.
    Column("shared", Boolean, nullable=False, server_default=false()),
    sqlite_with_rowid=False,
)
#: The database itself forbids that a device has two active leases that have all of it.
Index(
    "lease_devices_one_active",
    lease_devices.c.device,
    unique=True,
    sqlite_where=text("active AND NOT shared"),
    postgresql_where=text("active AND NOT shared"),
)

settings = Table(
    "settings",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_with_rowid=False,
)
