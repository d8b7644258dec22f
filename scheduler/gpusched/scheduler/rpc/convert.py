"""Between protobuf messages and the core's values. Protobuf types stop here and in the servicers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import explain as why
from gpusched.scheduler.core.classify import descends_from
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.jobs import HistoryLine, Job, JobId
from gpusched.scheduler.core.model import DeviceReading, ProcessReading
from gpusched.scheduler.core.outlook import NOTHING, Expected
from gpusched.scheduler.core.pool import Device, DeviceState, Node
from gpusched.scheduler.core.states import Finished, Lease, Running
from gpusched.scheduler.environment import lease_environment
from gpusched.scheduler.rpc.basics import (
    KINDS,
    STATES,
    STATES_BACK,
    allocated,
    duration,
    duration_of,
    job_id,
    outcome,
    outcome_of,
    request_of,
    resources,
    seconds,
    set_time,
    signal_of,
    timestamp,
    timestamp_at,
)
from gpusched.scheduler.rpc.batch_convert import add_batch
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2

__all__ = [
    "STATES_BACK",
    "allocated",
    "duration",
    "ended",
    "gpu",
    "granted",
    "job",
    "job_id",
    "node",
    "notice",
    "outcome_of",
    "process_of",
    "queued",
    "reason_of",
    "request_of",
    "seconds",
    "signal_of",
    "timestamp",
]

GPU_STATES = {state: resources_pb2.GpuState.Value(f"GPU_STATE_{state.name}") for state in DeviceState}
REASONS = {code: job_pb2.ReasonCode.Value(f"REASON_CODE_{code.name}") for code in why.Code}
NOTICES = {kind: scheduler_pb2.NoticeKind.Value(f"NOTICE_KIND_{kind.name}") for kind in do.NoticeKind}


# -- from the wire -----------------------------------------------------------------------------------------


def process_of(message: resources_pb2.GpuProcess) -> ProcessReading:
    """A process that a simulated GPU is to pretend. Raises Invalid."""
    if not (message.user + message.command).isprintable() or len(message.user) + len(message.command) > 128:
        raise Invalid("processes: user and command have at most 128 printable characters", field="processes")
    return ProcessReading(
        pid=message.pid,
        user=message.user or "?",
        command=message.command or "?",
        memory_bytes=max(0, message.memory_bytes),
    )


# -- to the wire -------------------------------------------------------------------------------------------


def reason_of(value: why.Reason) -> job_pb2.Reason:
    return job_pb2.Reason(
        code=REASONS[value.code],  # type: ignore[arg-type]
        message=value.message,
        gpus_needed=value.needed,
        gpus_free=value.free,
        ahead_job_id=str(value.ahead) if value.ahead is not None else "",
        until=timestamp(value.until),
        blockers=[
            job_pb2.Blocker(
                gpu_uuid=blocker.device,
                gpu_index=blocker.index,
                node=blocker.node,
                gpu_state=GPU_STATES[blocker.state],  # type: ignore[arg-type]
                job_id=str(blocker.job) if blocker.job is not None else "",
                user=blocker.user,
                job_name=blocker.job_name,
                until=timestamp(blocker.until),
            )
            for blocker in value.blockers
        ],
    )


def granted(engine: Engine, job: Job, lease: Lease, *, confirmed: bool) -> scheduler_pb2.AcquireResponse:
    # Filled in place: a message given to another's constructor is copied, and this is made for each job.
    response = scheduler_pb2.AcquireResponse()
    message = response.granted
    message.job_id = str(job.id)
    message.lease_id = lease.id
    message.epoch = lease.epoch
    message.gpus.extend(allocated(engine, lease.devices))
    if not confirmed and lease.confirm_by is not None:
        set_time(message.confirm_by, lease.confirm_by)
    set_time(message.granted_at, lease.granted_at)
    if lease.expires_at is not None:
        set_time(message.expires_at, lease.expires_at)
    environment = message.environment
    for name, value in lease_environment(engine, job, lease).items():
        environment[name] = value
    return response


def queued(
    engine: Engine, job: Job, position: int, total: int, cause: why.Reason, expected: Expected = NOTHING
) -> scheduler_pb2.AcquireResponse:
    return scheduler_pb2.AcquireResponse(
        queued=scheduler_pb2.Queued(
            job_id=str(job.id),
            position=position,
            total=total,
            reason=reason_of(cause),
            submitted_at=timestamp(job.submitted_at),
            forecast=timestamp(expected.forecast),
            promise=timestamp(expected.promise),
        )
    )


def notice(effect: do.Notify) -> scheduler_pb2.AcquireResponse:
    return scheduler_pb2.AcquireResponse(
        notice=scheduler_pb2.Notice(
            job_id=str(effect.job),
            kind=NOTICES[effect.kind],  # type: ignore[arg-type]
            message=effect.message,
            deadline=timestamp(effect.deadline),
        )
    )


def ended(effect: do.Ended) -> scheduler_pb2.AcquireResponse:
    state: Any = STATES[effect.state]
    return scheduler_pb2.AcquireResponse(
        ended=scheduler_pb2.Ended(job_id=str(effect.job), state=state, message=effect.message)
    )


def job(
    engine: Engine,
    value: Job,
    *,
    arguments: bool,
    history: Sequence[HistoryLine] | None = None,
    now: float | None = None,
) -> job_pb2.Job:
    """A job as its viewers see it.

    Args:
        arguments: the viewer may see the command line.
        history: what happened to it; with it come the runs of a batch job.
    """
    status, spec = value.status, value.spec
    lease = status.lease if isinstance(status, Finished) else value.lease
    message = job_pb2.Job(
        id=str(value.id),
        kind=KINDS[spec.kind],  # type: ignore[arg-type]
        state=STATES[value.state],  # type: ignore[arg-type]
        name=value.name,
        user=spec.owner.name,
        uid=spec.owner.uid,
        resources=resources(spec.request),
        priority=value.priority,
        time_limit=duration(value.time_limit),
        estimate=duration(spec.estimate),
        preemptible=spec.preemptible,
        submitted_at=timestamp(value.submitted_at),
        started_at=timestamp(value.started_at),
        holder_pid=value.holder.pid if value.holder else 0,
        node=spec.request.node,
    )
    if spec.signal is not None:
        message.preempt_signal.name = spec.signal[0]
        message.preempt_signal.before.CopyFrom(duration_of(spec.signal[1]))
    if arguments:
        message.command.extend(spec.command)
    if lease is not None:
        message.gpus.extend(allocated(engine, lease.devices))
        message.lease_id = lease.id
    ending = value.cancelling or value.preempting
    if ending is not None and isinstance(status, Running):
        message.ending = ending[0]
        message.ending_at.CopyFrom(timestamp_at(ending[1]))
    if isinstance(status, Finished):
        message.ended_at.CopyFrom(timestamp_at(status.at))
        message.outcome.CopyFrom(outcome(status.outcome))
    if spec.batch is not None:
        add_batch(engine, message, value, spec.batch, attempts=history is not None)
    cause = why.explain(engine, value)
    if cause is not None:
        message.position = engine.queue.position(value)
        message.reason.CopyFrom(reason_of(cause))
        expected = NOTHING if now is None else engine.outlook.of(value, now)
        if expected.forecast is not None:
            message.forecast.CopyFrom(timestamp_at(expected.forecast))
        if expected.promise is not None:
            message.promise.CopyFrom(timestamp_at(expected.promise))
    if history is not None:
        message.history.extend(
            job_pb2.JobEvent(at=timestamp(line.at), state=STATES[line.state], message=line.message)  # type: ignore[arg-type]
            for line in history
        )
    return message


def gpu(engine: Engine, device: Device, reading: DeviceReading | None, seen_at: float | None) -> resources_pb2.Gpu:
    info = device.info
    holder = engine.jobs.get(device.holder) if device.holder is not None else None
    holders = [engine.jobs[number] for number in device.holders]
    used: dict[JobId | None, int] = {}
    message = resources_pb2.Gpu(
        uuid=info.uuid,
        index=info.index,
        node=info.node,
        model=info.model,
        memory_bytes=info.memory_bytes,
        state=GPU_STATES[engine.pool.state(device)],  # type: ignore[arg-type]
        message=why.device_text(engine, device),
        drained=engine.pool.drain_reason(device) is not None,
        job_id=str(holder.id) if holder else "",
        user=holder.spec.owner.name if holder else "",
        simulated=info.simulated,
        numa_node=info.numa if info.numa >= 0 else None,
        parent_index=info.parent if info.parent >= 0 else None,
        labels=dict(info.labels),
        utilization_percent=-1,
        temperature_celsius=-1,
        power_watts=-1.0,
        observed_at=timestamp(seen_at),
        memory_left_bytes=0 if holder is not None else max(0, engine.pool.left_of(device)),
    )
    if reading is not None:
        message.memory_used_bytes = max(0, reading.memory_used_bytes)
        message.utilization_percent = reading.utilization_percent
        message.temperature_celsius = reading.temperature_celsius
        message.power_watts = reading.power_watts
        for process in reading.processes:
            job_id = next((job.id for job in holders if job.holder and descends_from(process, job.holder)), None)
            used[job_id] = used.get(job_id, 0) + max(0, process.memory_bytes)
            message.processes.append(
                resources_pb2.GpuProcess(
                    pid=process.pid,
                    user=process.user,
                    command=process.command,
                    memory_bytes=max(0, process.memory_bytes),
                    job_id=str(job_id or ""),
                )
            )
    for number, share in device.shares.items():
        message.shares.add(
            job_id=str(number),
            user=engine.jobs[number].spec.owner.name,
            memory_bytes=share.memory,
            memory_used_bytes=device.over.get(number, used.get(number, 0)),
        )
    return message


def node(engine: Engine, value: Node, seen_at: float | None) -> resources_pb2.Node:
    info = value.info
    return resources_pb2.Node(
        name=info.name,
        gpus_total=len(value.devices),
        gpus_allocated=sum(device.held for device in value.devices),
        gpus_free=len(value.available),
        drained=value.drained is not None,
        labels=info.labels,
        last_seen_at=timestamp(seen_at),
        driver_version=info.driver_version,
        local=info.local,
        links=[resources_pb2.GpuLinks(scores=row) for row in info.links],
        cpus_total=info.cpus,
        cpus_free=max(0, value.left.cpus),
        memory_total_bytes=info.memory_bytes,
        memory_free_bytes=max(0, value.left.memory),
    )
