"""From protobuf messages to the views that a lease needs. With `convert`, where protobuf fields are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from gpusched.client import lease_views as views
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2

E = TypeVar("E", bound=StrEnum)


def enum_of(kind: type[E], wrapper: Any, number: int, prefix: str) -> E:
    """The view's member for an enum number; UNKNOWN for one that this version does not know."""
    try:
        return kind[wrapper.Name(number).removeprefix(prefix)]
    except (ValueError, KeyError):
        return kind["UNKNOWN"]


def gpu_state(number: int) -> views.GpuState:
    return enum_of(views.GpuState, resources_pb2.GpuState, number, "GPU_STATE_")


def when(message: Any, field: str) -> datetime | None:
    """A Timestamp field; None if unset or beyond what datetime holds."""
    if not message.HasField(field):
        return None
    stamp = getattr(message, field)
    try:
        return datetime.fromtimestamp(stamp.seconds, UTC) + timedelta(microseconds=stamp.nanos // 1000)
    except (OverflowError, ValueError, OSError):
        return None


def allocated(gpus: Any) -> tuple[views.AllocatedGpu, ...]:
    return tuple(
        views.AllocatedGpu(gpu.uuid, gpu.index, gpu.node, gpu.model, gpu.memory_bytes, gpu.share_bytes) for gpu in gpus
    )


def reason(message: job_pb2.Reason) -> views.Reason:
    return views.Reason(
        code=enum_of(views.ReasonCode, job_pb2.ReasonCode, message.code, "REASON_CODE_"),
        message=message.message,
        gpus_needed=message.gpus_needed,
        gpus_free=message.gpus_free,
        blockers=tuple(
            views.Blocker(
                gpu_uuid=blocker.gpu_uuid,
                gpu_index=blocker.gpu_index,
                node=blocker.node,
                gpu_state=gpu_state(blocker.gpu_state),
                job_id=blocker.job_id,
                user=blocker.user,
                job_name=blocker.job_name,
                until=when(blocker, "until"),
            )
            for blocker in message.blockers
        ),
        ahead_job_id=message.ahead_job_id,
    )


def queued(message: scheduler_pb2.Queued) -> views.QueueUpdate:
    return views.QueueUpdate(
        job_id=message.job_id,
        position=message.position,
        total=message.total,
        reason=reason(message.reason),
        submitted_at=when(message, "submitted_at"),
        forecast=when(message, "forecast"),
        promise=when(message, "promise"),
    )


def granted(message: scheduler_pb2.Granted) -> views.Grant:
    return views.Grant(
        job_id=message.job_id,
        lease_id=message.lease_id,
        epoch=message.epoch,
        gpus=allocated(message.gpus),
        environment=dict(message.environment),
        granted_at=when(message, "granted_at"),
        expires_at=when(message, "expires_at"),
    )


def notice(message: scheduler_pb2.Notice) -> views.Notice:
    return views.Notice(
        kind=enum_of(views.NoticeKind, scheduler_pb2.NoticeKind, message.kind, "NOTICE_KIND_"),
        message=message.message,
        deadline=when(message, "deadline"),
        job_id=message.job_id,
    )
