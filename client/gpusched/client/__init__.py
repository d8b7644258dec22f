"""gpusched's Python client.

    from gpusched.client import acquire

    with acquire(gpus=2) as lease:  # waits its turn; sets CUDA_VISIBLE_DEVICES
        train()

`acquire` asks for GPUs, `submit` queues a command that the scheduler runs, `Client` looks at and steers the scheduler;
`gpusched.client.aio` has them all for asyncio. What is imported here is imported when it is first used: `import
gpusched.client` costs next to nothing, and `acquire` never loads grpc into this process.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as that of `typing`, whose import takes longer than all else here
if TYPE_CHECKING:
    from gpusched.client.api import Client, connect
    from gpusched.client.batch import JobFailed, SubmittedJob, submit
    from gpusched.client.errors import (
        GpuschedError,
        GpuschedWarning,
        InvalidRequest,
        JobCancelled,
        JobEnded,
        JobNotFound,
        LeaseLost,
        LimitReached,
        NotSatisfiable,
        PermissionDenied,
        ServerMismatch,
        ServerUnavailable,
        Unauthenticated,
        WaitTimeout,
    )
    from gpusched.client.sync import Lease, Ticket, acquire
    from gpusched.client.usage import UsageError
    from gpusched.client.views import (
        AllocatedGpu,
        Gpu,
        GpuState,
        Job,
        JobState,
        Node,
        Notice,
        NoticeKind,
        QueueUpdate,
        Reason,
        ReasonCode,
        Status,
    )

_HOMES = {
    "sync": ("Lease", "Ticket", "acquire"),
    "api": ("Client", "connect"),
    "batch": ("JobFailed", "SubmittedJob", "submit"),
    "errors": (
        *("GpuschedError", "GpuschedWarning", "InvalidRequest", "JobCancelled", "JobEnded", "JobNotFound", "LeaseLost"),
        *("LimitReached", "NotSatisfiable", "PermissionDenied", "ServerMismatch", "ServerUnavailable"),
        *("Unauthenticated", "WaitTimeout"),
    ),
    "usage": ("UsageError",),
    "views": (
        *("AllocatedGpu", "Gpu", "GpuState", "Job", "JobState", "Node", "Notice", "NoticeKind", "QueueUpdate"),
        *("Reason", "ReasonCode", "Status"),
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AllocatedGpu",
    "Client",
    "Gpu",
    "GpuState",
    "GpuschedError",
    "GpuschedWarning",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobEnded",
    "JobFailed",
    "JobNotFound",
    "JobState",
    "Lease",
    "LeaseLost",
    "LimitReached",
    "Node",
    "NotSatisfiable",
    "Notice",
    "NoticeKind",
    "PermissionDenied",
    "QueueUpdate",
    "Reason",
    "ReasonCode",
    "ServerMismatch",
    "ServerUnavailable",
    "Status",
    "SubmittedJob",
    "Ticket",
    "Unauthenticated",
    "UsageError",
    "WaitTimeout",
    "acquire",
    "connect",
    "submit",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
