"""From protobuf messages to views: the one place where the client reads protobuf fields."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from gpusched.client import views
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2

E = TypeVar("E", bound=StrEnum)


def _enum(kind: type[E], wrapper: Any, number: int, prefix: str) -> E:
    """The view's member for an enum number; UNKNOWN for one that this version does not know."""
    try:
        return kind[wrapper.Name(number).removeprefix(prefix)]
    except (ValueError, KeyError):
        return kind["UNKNOWN"]


def job_state(number: int) -> views.JobState:
    return _enum(views.JobState, job_pb2.JobState, number, "JOB_STATE_")


def gpu_state(number: int) -> views.GpuState:
    return _enum(views.GpuState, resources_pb2.GpuState, number, "GPU_STATE_")


def when(message: Any, field: str) -> datetime | None:
    """A Timestamp field; None if unset or beyond what datetime holds."""
    if not message.HasField(field):
        return None
    stamp = getattr(message, field)
    try:
        return datetime.fromtimestamp(stamp.seconds, UTC) + timedelta(microseconds=stamp.nanos // 1000)
    except (OverflowError, ValueError, OSError):
        return None


def _length(message: Any, field: str) -> timedelta | None:
    if not message.HasField(field):
        return None
    duration = getattr(message, field)
    try:
        return timedelta(seconds=duration.seconds, microseconds=duration.nanos // 1000)
    except OverflowError:
        return None


def allocated(gpus: Any) -> tuple[views.AllocatedGpu, ...]:
    return tuple(views.AllocatedGpu(gpu.uuid, gpu.index, gpu.node, gpu.model, gpu.memory_bytes) for gpu in gpus)


def reason(message: job_pb2.Reason) -> views.Reason:
    return views.Reason(
        code=_enum(views.ReasonCode, job_pb2.ReasonCode, message.code, "REASON_CODE_"),
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
        kind=_enum(views.NoticeKind, scheduler_pb2.NoticeKind, message.kind, "NOTICE_KIND_"),
        message=message.message,
        deadline=when(message, "deadline"),
        job_id=message.job_id,
    )


def job(message: job_pb2.Job) -> views.Job:
    outcome = None
    if message.HasField("outcome"):
        given = message.outcome
        status = given.exit_status if given.HasField("exit_status") else None
        outcome = views.Outcome(status, given.signal, given.message)
    return views.Job(
        id=message.id,
        kind=_enum(views.JobKind, job_pb2.JobKind, message.kind, "JOB_KIND_"),
        state=job_state(message.state),
        name=message.name,
        user=message.user,
        uid=message.uid,
        gpus_requested=message.resources.gpus,
        gpu_memory_bytes=message.resources.gpu_memory_bytes,
        gpu_model=message.resources.gpu_model,
        priority=message.priority,
        time_limit=_length(message, "time_limit"),
        command=tuple(message.command),
        submitted_at=when(message, "submitted_at"),
        started_at=when(message, "started_at"),
        ended_at=when(message, "ended_at"),
        position=message.position,
        reason=reason(message.reason) if message.HasField("reason") else None,
        gpus=allocated(message.gpus),
        lease_id=message.lease_id,
        outcome=outcome,
        holder_pid=message.holder_pid,
        node=message.node,
        history=tuple(views.JobEvent(when(e, "at"), job_state(e.state), e.message) for e in message.history),
        forecast=when(message, "forecast"),
        promise=when(message, "promise"),
    )


def gpu(message: resources_pb2.Gpu) -> views.Gpu:
    return views.Gpu(
        uuid=message.uuid,
        index=message.index,
        node=message.node,
        model=message.model,
        memory_bytes=message.memory_bytes,
        state=gpu_state(message.state),
        message=message.message,
        drained=message.drained,
        job_id=message.job_id,
        user=message.user,
        memory_used_bytes=message.memory_used_bytes,
        utilization_percent=message.utilization_percent if message.utilization_percent >= 0 else None,
        temperature_celsius=message.temperature_celsius if message.temperature_celsius >= 0 else None,
        power_watts=message.power_watts if message.power_watts >= 0 else None,
        processes=tuple(
            views.GpuProcess(p.pid, p.user, p.command, p.memory_bytes, p.job_id) for p in message.processes
        ),
        observed_at=when(message, "observed_at"),
        simulated=message.simulated,
    )


def node(message: resources_pb2.Node) -> views.Node:
    return views.Node(
        name=message.name,
        gpus_total=message.gpus_total,
        gpus_allocated=message.gpus_allocated,
        gpus_free=message.gpus_free,
        drained=message.drained,
        labels=dict(message.labels),
        last_seen_at=when(message, "last_seen_at"),
        driver_version=message.driver_version,
        local=message.local,
    )


def status(message: scheduler_pb2.GetStatusResponse) -> views.Status:
    return views.Status(
        service=message.service,
        version=message.version,
        started_at=when(message, "started_at"),
        uptime=_length(message, "uptime"),
        address=message.address,
        gpus_total=message.gpus_total,
        gpus_allocated=message.gpus_allocated,
        gpus_free=message.gpus_free,
        jobs_running=message.jobs_running,
        jobs_queued=message.jobs_queued,
        jobs_total=message.jobs_total,
        paused=message.paused,
        pause_reason=message.pause_reason,
        inventory_mode=message.inventory_mode,
        node=message.node,
        user=message.user,
        uid=message.uid,
        pid=message.pid,
        state_id=message.state_id,
        admin_socket=message.admin_socket,
        policy=message.policy,
        caller=message.caller,
    )


def jobs_change(message: scheduler_pb2.WatchJobsResponse) -> views.JobsChange:
    return views.JobsChange(tuple(job(each) for each in message.jobs), message.snapshot)


def explanation(message: scheduler_pb2.ExplainJobResponse) -> views.Explanation:
    return views.Explanation(job(message.job), tuple(message.lines))
