"""What a store keeps: flat values that say nothing of how they are stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from gpusched.scheduler.core.values import value


@value
class JobRecord:
    """A job as it is kept. `data` has everything else about it as JSON; the columns are for finding it.

    Attributes:
        state: lower-case name of its state ("queued").
        ended_at: seconds since the epoch, None while it has not ended.
        kind: "interactive" or "batch".
        data: JSON object text.
    """

    id: int
    state: str
    kind: str
    uid: int
    user: str
    name: str
    submitted_at: float
    ended_at: float | None
    data: str


class EventRecord(NamedTuple):
    """One line of a job's history. `attempt` counts its runs from 1; 0 before the first."""

    job: int
    at: float
    state: str
    message: str
    attempt: int = 0


class LeaseRecord(NamedTuple):
    """A new, active lease: it makes every one of its devices taken until the lease is ended.

    A device may have several of the leases that are `shared`, and none besides them.
    """

    epoch: int
    job: int
    devices: tuple[str, ...]
    granted_at: float
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """What changes together: all of it is kept, or nothing.

    Attributes:
        jobs: inserted, or replaced by id.
        ended: (epoch, seconds since the epoch) of leases that ended; applied before `leases`.
        leases: new ones.
        settings: values by key; None removes.
        sync: must survive a power loss once `commit` has returned.
    """

    jobs: tuple[JobRecord, ...] = ()
    events: tuple[EventRecord, ...] = ()
    ended: tuple[tuple[int, float], ...] = ()
    leases: tuple[LeaseRecord, ...] = ()
    settings: dict[str, str | None] = field(default_factory=dict)
    sync: bool = False


@dataclass(frozen=True, slots=True)
class Boot:
    """What was kept when the server starts.

    Attributes:
        state_id: names this state for ever; made when the store is new.
        starts: how often a server started on this state, this start included; synced before it is returned.
        next_job: number for the next new job.
        jobs: those that have not ended, by id.
        settings: all of them.
    """

    state_id: str
    starts: int
    next_job: int
    jobs: tuple[JobRecord, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
