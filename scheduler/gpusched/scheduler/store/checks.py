"""Contradictions in what a database keeps: none may ever be there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from sqlalchemy import Connection, and_, inspect, or_, select

from gpusched.scheduler.core.states import State
from gpusched.scheduler.store import sentences
from gpusched.scheduler.store.schema import events, jobs, lease_devices, leases, metadata

_FINAL = [state.value for state in State if state.final]
_RUNNING = State.RUNNING.value
#: Of one kind of contradiction so many are told; the rest are most likely the same mistake.
_MOST = 20


def contradictions(connection: Connection) -> Iterator[str]:
    """A sentence for each contradiction, in no particular order."""
    for find in (_indexes, _leases, _devices, _ended, _unknown):
        yield from find(connection)


def _indexes(connection: Connection) -> Iterator[str]:
    inspector = inspect(connection)
    for table in metadata.sorted_tables:
        there = {index["name"] for index in inspector.get_indexes(table.name)}
        for index in sorted(str(index.name) for index in table.indexes):
            if index not in there:
                yield f"the index {index} is missing: put the state back from a backup"


def _leases(connection: Connection) -> Iterator[str]:
    active = leases.c.ended_at.is_(None)
    wrong = (
        select(leases.c.epoch, jobs.c.id, jobs.c.state)
        .join(jobs, jobs.c.id == leases.c.job)
        .where(active, jobs.c.state != _RUNNING)
        .order_by(leases.c.epoch)
        .limit(_MOST)
    )
    for epoch, job, state in connection.execute(wrong):
        yield sentences.lease_not_running(epoch, job, state)
    by_job: dict[int, list[int]] = defaultdict(list)
    for job, epoch in connection.execute(select(leases.c.job, leases.c.epoch).where(active)):
        by_job[job].append(epoch)
    several = [job for job in sorted(by_job) if len(by_job[job]) > 1]
    for job in several[:_MOST]:
        yield sentences.several_leases(job, by_job[job])
    running = connection.execute(select(jobs.c.id).where(jobs.c.state == _RUNNING).order_by(jobs.c.id)).scalars()
    for job in [job for job in running if job not in by_job][:_MOST]:
        yield sentences.running_without_lease(job)


def _devices(connection: Connection) -> Iterator[str]:
    # Counted here, not in SQL: there the very index that ought to forbid it would answer.
    held: dict[str, list[int]] = defaultdict(list)
    whole: set[str] = set()
    for device, epoch, shared in connection.execute(
        select(lease_devices.c.device, lease_devices.c.epoch, lease_devices.c.shared).where(lease_devices.c.active)
    ):
        held[device].append(epoch)
        if not shared:
            whole.add(device)
    twice = [device for device in sorted(whole) if len(held[device]) > 1]
    for device in twice[:_MOST]:
        yield sentences.taken_twice(device, held[device])
    ended = leases.c.ended_at.is_not(None)
    disagree = (
        select(leases.c.epoch, lease_devices.c.device)
        .join(leases, leases.c.epoch == lease_devices.c.epoch)
        .where(or_(and_(ended, lease_devices.c.active), and_(~ended, ~lease_devices.c.active)))
        .order_by(leases.c.epoch, lease_devices.c.device)
        .limit(_MOST)
    )
    for epoch, device in connection.execute(disagree):
        yield sentences.half_ended(epoch, device)


def _ended(connection: Connection) -> Iterator[str]:
    final = jobs.c.state.in_(_FINAL)
    unclear = (
        select(jobs.c.id, jobs.c.state, jobs.c.ended_at)
        .where(or_(and_(final, jobs.c.ended_at.is_(None)), and_(~final, jobs.c.ended_at.is_not(None))))
        .order_by(jobs.c.id)
        .limit(_MOST)
    )
    for job, state, ended_at in connection.execute(unclear):
        yield sentences.ended_unclear(job, state, ended_at is not None)


def _unknown(connection: Connection) -> Iterator[str]:
    # A foreign key forbids these; a file repaired by hand may have them all the same.
    known = select(jobs.c.id)
    lines = select(events.c.id, events.c.job).where(events.c.job.not_in(known)).order_by(events.c.id).limit(_MOST)
    for line, job in connection.execute(lines):
        yield sentences.unknown_job(f"history line {line}", job)
    orphans = select(leases.c.epoch, leases.c.job).where(leases.c.job.not_in(known)).order_by(leases.c.epoch)
    for epoch, job in connection.execute(orphans.limit(_MOST)):
        yield sentences.unknown_job(f"lease L{epoch}", job)
