"""From protobuf messages to views: with `lease_convert` the one place where the client reads protobuf fields."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from gpusched.client import views
from gpusched.client.lease_convert import allocated, enum_of, gpu_state, reason, when
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2


def job_state(number: int) -> views.JobState:
    return enum_of(views.JobState, job_pb2.JobState, number, "JOB_STATE_")


def _length(message: Any, field: str) -> timedelta | None:
    if not message.HasField(field):
        return None
    duration = getattr(message, field)
    try:
        return timedelta(seconds=duration.seconds, microseconds=duration.nanos // 1000)
    except OverflowError:
        return None


def job(message: job_pb2.Job) -> views.Job:
    outcome = None
    if message.HasField("outcome"):
        given = message.outcome
        status = given.exit_status if given.HasField("exit_status") else None
        outcome = views.Outcome(status, given.signal, given.message)
    return views.Job(
        id=message.id,
        kind=enum_of(views.JobKind, job_pb2.JobKind, message.kind, "JOB_KIND_"),
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
        attempt=message.attempt,
        working_directory=message.working_directory,
        output_path=message.output_path,
        held=message.held,
        dependencies=tuple(each.job_id for each in message.dependencies),
        estimate=_length(message, "estimate"),
        preemptible=message.preemptible,
        ending=message.ending,
        ending_at=when(message, "ending_at"),
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
        shares=tuple(views.GpuShare(s.job_id, s.user, s.memory_bytes, s.memory_used_bytes) for s in message.shares),
        memory_left_bytes=message.memory_left_bytes,
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
        cpus_total=message.cpus_total,
        cpus_free=message.cpus_free,
        memory_total_bytes=message.memory_total_bytes,
        memory_free_bytes=message.memory_free_bytes,
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
        trouble=message.trouble,
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
