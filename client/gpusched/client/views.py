"""What the scheduler tells, as plain immutable values. No protobuf here; `convert` makes them.

Times are aware datetimes in UTC, durations timedeltas, sizes bytes. A value that the scheduler did not give is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from gpusched.client.lease_views import (
    AllocatedGpu,
    Blocker,
    GpuState,
    Grant,
    Notice,
    NoticeKind,
    QueueUpdate,
    Reason,
    ReasonCode,
)

__all__ = [
    "AllocatedGpu",
    "Blocker",
    "Explanation",
    "Gpu",
    "GpuProcess",
    "GpuShare",
    "GpuState",
    "Grant",
    "Job",
    "JobEvent",
    "JobKind",
    "JobState",
    "JobsChange",
    "Node",
    "Notice",
    "NoticeKind",
    "Outcome",
    "QueueUpdate",
    "Reason",
    "ReasonCode",
    "Status",
]


class JobState(StrEnum):
    """Where a job is between its acceptance and its end."""

    UNKNOWN = "unknown"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    PREEMPTED = "preempted"
    LOST = "lost"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self not in (JobState.UNKNOWN, JobState.QUEUED, JobState.RUNNING)


class JobKind(StrEnum):
    """Who runs the job's work."""

    UNKNOWN = "unknown"
    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    exit_status: int | None = None
    signal: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line of a job's history."""

    at: datetime | None
    state: JobState
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """One request for GPUs.

    Attributes:
        gpus_requested: how many it asked for; `gpu_memory_bytes` and `gpu_model` what each must have.
        command: what runs, for its owner and the scheduler's own user alone.
        position: rank of one that stands in line, else 0; `reason` says why it waits.
        gpus: what it has or had.
        holder_pid: the process that holds its lease, 0 if unknown.
        history: what happened to it, oldest first (from `job()` only).
        attempt: runs of a batch job so far, the present one included; 0 before the first.
        working_directory: where a batch job's command runs.
        output_path: file that gets what it writes, with `%j` for the id and `%a` for the attempt; empty for the
            scheduler's own.
        held: waits until it is released by hand.
        dependencies: ids of the jobs that it waits for.
        estimate: how long its owner expects the work to take.
        preemptible: it may be ended for a job of a higher tier.
        ending: why it was asked to end, while it still runs; `ending_at` is when it loses its GPUs at the latest.
    """

    id: str
    kind: JobKind
    state: JobState
    name: str
    user: str
    uid: int
    gpus_requested: int
    gpu_memory_bytes: int
    gpu_model: str
    priority: int
    time_limit: timedelta | None
    command: tuple[str, ...]
    submitted_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    position: int
    reason: Reason | None
    gpus: tuple[AllocatedGpu, ...]
    lease_id: str
    outcome: Outcome | None
    holder_pid: int
    node: str
    history: tuple[JobEvent, ...] = ()
    forecast: datetime | None = None
    promise: datetime | None = None
    attempt: int = 0
    working_directory: str = ""
    output_path: str = ""
    held: bool = False
    dependencies: tuple[str, ...] = ()
    estimate: timedelta | None = None
    preemptible: bool = False
    ending: str = ""
    ending_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class JobsChange:
    """Jobs that changed; with `snapshot`, all that match (the first of a watch)."""

    jobs: tuple[Job, ...]
    snapshot: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job waits: the job, and the whole account in sentences."""

    job: Job
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process on a GPU; `job_id` is the job under whose lease it runs, empty for none."""

    pid: int
    user: str
    command: str
    memory_bytes: int
    job_id: str = ""


@dataclass(frozen=True, slots=True)
class GpuShare:
    """A part of a GPU's memory that a job has, and what its processes were seen to take."""

    job_id: str
    user: str
    memory_bytes: int
    memory_used_bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU and its last reading; readings that the device does not give are None.

    Attributes:
        message: why it is not free.
        job_id, user: who holds it; empty while several jobs share it.
        observed_at: when it was read.
        shares: who has parts of it.
        memory_left_bytes: what further shares may have, 0 while one job has all of it.
    """

    uuid: str
    index: int
    node: str
    model: str
    memory_bytes: int
    state: GpuState
    message: str
    drained: bool
    job_id: str
    user: str
    memory_used_bytes: int
    utilization_percent: int | None
    temperature_celsius: int | None
    power_watts: float | None
    processes: tuple[GpuProcess, ...]
    observed_at: datetime | None
    simulated: bool
    shares: tuple[GpuShare, ...] = ()
    memory_left_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with GPUs; `local` is the scheduler's own.

    Attributes:
        cpus_total, memory_total_bytes: cores and memory of the host that jobs may be given, 0 if they are not counted.
        cpus_free, memory_free_bytes: what is left of them.
    """

    name: str
    gpus_total: int
    gpus_allocated: int
    gpus_free: int
    drained: bool
    labels: Mapping[str, str]
    last_seen_at: datetime | None
    driver_version: str
    local: bool
    cpus_total: int = 0
    cpus_free: int = 0
    memory_total_bytes: int = 0
    memory_free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """Who answers, and a count of everything.

    Attributes:
        jobs_total: jobs known: running, queued and those in the history.
        inventory_mode: `real` or `simulated`.
        user, uid, pid: the scheduler's process.
        caller: who you are, as the kernel told the scheduler.
        trouble: why nothing is started although it is not paused; empty when all is well.
    """

    service: str
    version: str
    started_at: datetime | None
    uptime: timedelta | None
    address: str
    gpus_total: int
    gpus_allocated: int
    gpus_free: int
    jobs_running: int
    jobs_queued: int
    jobs_total: int
    paused: bool
    pause_reason: str
    inventory_mode: str
    node: str
    user: str
    uid: int
    pid: int
    state_id: str
    admin_socket: str
    policy: str
    caller: str
    trouble: str = ""
