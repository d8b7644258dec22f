"""The views that a lease needs; `views` has these and all others. Apart, since every helper process imports them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class ReasonCode(StrEnum):
    """Why a job waits, for programs. `AWAY` comes from the client itself: the scheduler does not answer."""

    UNKNOWN = "unknown"
    RESOURCES = "resources"
    PRIORITY = "priority"
    PAUSED = "paused"
    UNAVAILABLE = "unavailable"
    UNCONFIRMED = "unconfirmed"
    STARTING = "starting"
    READY = "ready"
    HELD = "held"
    DEPENDENCY = "dependency"
    BEGIN_TIME = "begin_time"
    BACKOFF = "backoff"
    REATTACH = "reattach"
    LIMIT = "limit"
    STORE = "store"
    AWAY = "away"


class GpuState(StrEnum):
    """What a GPU is doing, as far as it may be handed out."""

    UNKNOWN = "unknown"
    FREE = "free"
    ALLOCATED = "allocated"
    DIRTY = "dirty"
    FOREIGN = "foreign"
    UNHEALTHY = "unhealthy"
    DRAINED = "drained"
    CHECKING = "checking"


class NoticeKind(StrEnum):
    """What a notice to a holder is about.

    `AWAY` and `BACK` come from the client itself: the scheduler does not answer, and does again.
    """

    UNKNOWN = "unknown"
    TIME_LIMIT = "time_limit"
    PREEMPTION = "preemption"
    GPU_UNHEALTHY = "gpu_unhealthy"
    GPU_FOREIGN = "gpu_foreign"
    GPU_MEMORY = "gpu_memory"
    DRAIN = "drain"
    SERVER_STOPPING = "server_stopping"
    CANCEL = "cancel"
    AWAY = "away"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class AllocatedGpu:
    """One GPU of a lease.

    Attributes:
        uuid: NVML's stable name.
        index: its number on its node in PCI bus order.
        node: name of its node.
        model: product name.
        memory_bytes: total memory.
        share_bytes: how much of it is ours, beside others; 0 for all of it.
    """

    uuid: str
    index: int = -1
    node: str = ""
    model: str = ""
    memory_bytes: int = 0
    share_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Blocker:
    """One GPU in the way of a waiting job, and who holds it until when."""

    gpu_uuid: str
    gpu_index: int
    node: str
    gpu_state: GpuState
    job_id: str = ""
    user: str = ""
    job_name: str = ""
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """What stands between a waiting job and its GPUs; `message` is for people."""

    code: ReasonCode = ReasonCode.UNKNOWN
    message: str = ""
    gpus_needed: int = 0
    gpus_free: int = 0
    blockers: tuple[Blocker, ...] = ()
    ahead_job_id: str = ""


@dataclass(frozen=True, slots=True)
class QueueUpdate:
    """The place of a waiting job.

    Attributes:
        job_id: the job.
        position: rank in the queue, 1 is next; 0 while it is held.
        total: how many wait.
        reason: why it waits.
        submitted_at: since when.
        forecast: when it is expected to start.
        promise: when it starts at the latest if running jobs keep their limits.
    """

    job_id: str
    position: int
    total: int
    reason: Reason = field(default_factory=Reason)
    submitted_at: datetime | None = None
    forecast: datetime | None = None
    promise: datetime | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A word to the holder of a lease. What it announces happens at `deadline`, if there is one."""

    kind: NoticeKind
    message: str
    deadline: datetime | None = None
    job_id: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a job was given.

    Attributes:
        epoch: fencing token, rises with every grant.
        environment: variables for the work.
        expires_at: when the time limit ends.
    """

    job_id: str
    lease_id: str
    epoch: int
    gpus: tuple[AllocatedGpu, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    granted_at: datetime | None = None
    expires_at: datetime | None = None
