"""Records for the tests of stores, with everything defaulted that a test is not about."""

from __future__ import annotations

from gpusched.scheduler.core.records import Batch, EventRecord, JobRecord, LeaseRecord


def job(
    id: int,
    state: str = "queued",
    *,
    ended_at: float | None = None,
    kind: str = "batch",
    uid: int = 1000,
    user: str = "alice",
    name: str = "train",
    submitted_at: float = 1_500_000_000.0,
    data: str = "{}",
) -> JobRecord:
    return JobRecord(id, state, kind, uid, user, name, submitted_at, ended_at, data)


def event(
    job: int, message: str = "submitted", state: str = "queued", at: float = 1.5, attempt: int = 0
) -> EventRecord:
    return EventRecord(job, at, state, message, attempt)


def lease(epoch: int, job: int, *devices: str, granted_at: float = 2.5, shared: bool = False) -> LeaseRecord:
    return LeaseRecord(epoch, job, devices, granted_at, shared)


def submitted(*ids: int, sync: bool = True) -> Batch:
    """New queued jobs, each with a line of history."""
    return Batch(jobs=tuple(job(id) for id in ids), events=tuple(event(id) for id in ids), sync=sync)


def granted(id: int, epoch: int, *devices: str) -> Batch:
    """A job that gets a lease."""
    return Batch(
        jobs=(job(id, "running"),), events=(event(id, "granted", "running"),), leases=(lease(epoch, id, *devices),)
    )


def finished(id: int, epoch: int, at: float = 9.0) -> Batch:
    """A job that ends, and its lease with it."""
    return Batch(
        jobs=(job(id, "completed", ended_at=at),), events=(event(id, "ended", "completed", at),), ended=((epoch, at),)
    )
