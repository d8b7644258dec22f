"""What the engine wants done: one immutable value each, performed by the driver in this order.

Whoever watches jobs sees a change in each of `Accepted`, `Granted`, `StartRun` and `Ended` too, and whoever watches
devices one in each grant: no `JobChanged` or `DevicesChanged` comes beside them.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.core.states import Lease, State
from gpusched.scheduler.core.values import value


class NoticeKind(Enum):
    TIME_LIMIT = "time limit"
    PREEMPTION = "preemption"
    GPU_UNHEALTHY = "gpu unhealthy"
    GPU_FOREIGN = "gpu foreign"
    GPU_MEMORY = "gpu memory"
    DRAIN = "drain"
    SERVER_STOPPING = "server stopping"
    CANCEL = "cancel"


@value
class Accepted:
    """A job was accepted. Answers Submit."""

    job: JobId


@value
class Attached:
    """A stream may now speak for the job. Answers Attach."""

    job: JobId
    attachment: int


@value
class Granted:
    """Tell the holder its GPUs."""

    job: JobId
    lease: Lease


@value
class Withdrawn:
    """An unconfirmed grant was taken back; the job waits again."""

    job: JobId
    epoch: int


@value
class Notify:
    """Tell the holder something. `deadline` is on the engine's clock, None if nothing is threatened."""

    job: JobId
    kind: NoticeKind
    message: str
    deadline: float | None = None


@value
class Ended:
    """The job reached a final state; its stream, if still there, is to be told and ended.

    `reason` is the domain reason for programs; empty when the holder itself ended it.
    """

    job: JobId
    state: State
    message: str
    reason: str = ""


@value
class JobChanged:
    """Something that watchers of the job can see is different (its position and reason are not counted)."""

    job: JobId


@value
class QueueChanged:
    """Positions or reasons may be different."""


#: One will do for all.
QUEUE_CHANGED = QueueChanged()


@value
class DevicesChanged:
    devices: tuple[str, ...]


@value
class CheckDevices:
    """Look whether these are empty, and go on looking until they are; answer with Observe.

    `job` is who had them last.
    """

    devices: tuple[str, ...]
    job: JobId


@value
class StartRun:
    """Have a supervisor run a batch job's command under this lease."""

    job: JobId
    lease: Lease
    attempt: int


Effect: TypeAlias = (
    Accepted
    | Attached
    | Granted
    | Withdrawn
    | Notify
    | Ended
    | JobChanged
    | QueueChanged
    | DevicesChanged
    | CheckDevices
    | StartRun
)
