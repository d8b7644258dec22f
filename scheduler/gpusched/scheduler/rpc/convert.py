"""Between protobuf messages and the core's values. Protobuf types stop here and in the servicers."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import explain as why
from gpusched.scheduler.core.classify import descends_from
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.jobs import Job, JobId, Kind
from gpusched.scheduler.core.model import DeviceReading, ProcessReading, Request
from gpusched.scheduler.core.pool import Device, DeviceState, Node
from gpusched.scheduler.core.states import Finished, Lease, Outcome, State
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2

STATES = {state: job_pb2.JobState.Value(f"JOB_STATE_{state.name}") for state in State}
STATES_BACK = {number: state for state, number in STATES.items()}
KINDS = {kind: job_pb2.JobKind.Value(f"JOB_KIND_{kind.name}") for kind in Kind}
GPU_STATES = {state: resources_pb2.GpuState.Value(f"GPU_STATE_{state.name}") for state in DeviceState}
REASONS = {code: job_pb2.ReasonCode.Value(f"REASON_CODE_{code.name}") for code in why.Code}
NOTICES = {kind: scheduler_pb2.NoticeKind.Value(f"NOTICE_KIND_{kind.name}") for kind in do.NoticeKind}


# -- from the wire -----------------------------------------------------------------------------------------


def job_id(text: str, field: str = "job_id") -> JobId:
    """Raises Invalid."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Invalid(f"{field}: {text[:40]!r} is no job id; ids are whole numbers such as 17", field=field)
    return JobId(int(text))


def seconds(message: Any, field: str) -> float | None:
    """A Duration in seconds, None if unset. Raises Invalid."""
    if not message.HasField(field):
        return None
    duration = getattr(message, field)
    if abs(duration.nanos) >= 10**9 or duration.seconds * duration.nanos < 0:
        raise Invalid(
            f"{field}: {duration.seconds} s and {duration.nanos} ns is no duration; nanos are from 0 to 999999999 and "
            "have the sign of seconds",
            field=field,
        )
    return float(duration.seconds) + float(duration.nanos) / 1e9


def request_of(message: resources_pb2.ResourceRequest) -> Request:
    return Request(message.gpus, message.gpu_memory_bytes, message.gpu_model.strip().lower(), message.node)


def outcome_of(message: job_pb2.Outcome) -> Outcome:
    """Raises Invalid."""
    status = message.exit_status if message.HasField("exit_status") else None
    if status is not None and not 0 <= status <= 255:
        raise Invalid(f"outcome.exit_status: {status} is out of range; 0 to 255", field="outcome.exit_status")
    if not 0 <= message.signal <= 64:
        raise Invalid(f"outcome.signal: {message.signal} is no signal; 0 to 64", field="outcome.signal")
    text = "".join(c if c.isprintable() else "?" for c in message.message[:500])
    return Outcome(status, message.signal, text)


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


def timestamp(at: float | None) -> timestamp_pb2.Timestamp | None:
    return None if at is None else timestamp_at(at)


def timestamp_at(at: float) -> timestamp_pb2.Timestamp:
    whole = math.floor(at)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=int((at - whole) * 1e9))


def duration(length: float | None) -> duration_pb2.Duration | None:
    if length is None:
        return None
    whole = math.floor(length)
    return duration_pb2.Duration(seconds=whole, nanos=int((length - whole) * 1e9))


def resources(request: Request) -> resources_pb2.ResourceRequest:
    return resources_pb2.ResourceRequest(
        gpus=request.gpus, gpu_memory_bytes=request.memory_bytes, gpu_model=request.model, node=request.node
    )


def reason_of(value: why.Reason) -> job_pb2.Reason:
    return job_pb2.Reason(
        code=REASONS[value.code],  # type: ignore[arg-type]
        message=value.message,
        gpus_needed=value.needed,
        gpus_free=value.free,
        ahead_job_id=str(value.ahead) if value.ahead is not None else "",
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


def allocated(engine: Engine, uuids: tuple[str, ...]) -> list[job_pb2.AllocatedGpu]:
    infos = [engine.pool.devices[uuid].info for uuid in uuids]
    return [
        job_pb2.AllocatedGpu(
            uuid=info.uuid, index=info.index, node=info.node, model=info.model, memory_bytes=info.memory_bytes
        )
        for info in infos
    ]


def environment(engine: Engine, job: Job, lease: Lease) -> dict[str, str]:
    """What a holder sets for its work."""
    infos = [engine.pool.devices[uuid].info for uuid in lease.devices]
    out = {
        "GPUSCHED_JOB_ID": str(job.id),
        "GPUSCHED_LEASE_ID": lease.id,
        "GPUSCHED_GPUS": ",".join(info.uuid for info in infos),
    }
    if len({info.node for info in infos}) == 1:
        indices = ",".join(str(info.index) for info in infos)
        out["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        out["CUDA_VISIBLE_DEVICES"] = indices
        out["NVIDIA_VISIBLE_DEVICES"] = indices
        out["GPUSCHED_NODE"] = infos[0].node
    return out


def granted(engine: Engine, job: Job, lease: Lease, *, confirmed: bool) -> scheduler_pb2.AcquireResponse:
    return scheduler_pb2.AcquireResponse(
        granted=scheduler_pb2.Granted(
            job_id=str(job.id),
            lease_id=lease.id,
            epoch=lease.epoch,
            gpus=allocated(engine, lease.devices),
            confirm_by=None if confirmed else timestamp(lease.confirm_by),
            granted_at=timestamp(lease.granted_at),
            expires_at=timestamp(lease.expires_at),
            environment=environment(engine, job, lease),
        )
    )


def queued(engine: Engine, job: Job, position: int, total: int, cause: why.Reason) -> scheduler_pb2.AcquireResponse:
    return scheduler_pb2.AcquireResponse(
        queued=scheduler_pb2.Queued(
            job_id=str(job.id),
            position=position,
            total=total,
            reason=reason_of(cause),
            submitted_at=timestamp(job.submitted_at),
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


def job(engine: Engine, value: Job, *, arguments: bool, history: bool = False) -> job_pb2.Job:
    """A job as its viewers see it.

    Args:
        arguments: the viewer may see the command line.
        history: with what happened to it.
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
        time_limit=duration(spec.time_limit),
        submitted_at=timestamp(value.submitted_at),
        started_at=timestamp(value.started_at),
        holder_pid=spec.holder.pid if spec.holder else 0,
        node=spec.request.node,
    )
    if arguments:
        message.command.extend(spec.command)
    if lease is not None:
        message.gpus.extend(allocated(engine, lease.devices))
        message.lease_id = lease.id
    if isinstance(status, Finished):
        message.ended_at.CopyFrom(timestamp_at(status.at))
        message.outcome.signal = status.outcome.signal
        message.outcome.message = status.outcome.message
        if status.outcome.exit_status is not None:
            message.outcome.exit_status = status.outcome.exit_status
    cause = why.explain(engine, value)
    if cause is not None:
        message.position = engine.queue.position(value)
        message.reason.CopyFrom(reason_of(cause))
    if history:
        message.history.extend(
            job_pb2.JobEvent(at=timestamp(line.at), state=STATES[line.state], message=line.message)  # type: ignore[arg-type]
            for line in value.history
        )
    return message


def gpu(engine: Engine, device: Device, reading: DeviceReading | None, seen_at: float | None) -> resources_pb2.Gpu:
    info = device.info
    holder = engine.jobs.get(device.holder) if device.holder is not None else None
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
        utilization_percent=-1,
        temperature_celsius=-1,
        power_watts=-1.0,
        observed_at=timestamp(seen_at),
    )
    if reading is not None:
        message.memory_used_bytes = max(0, reading.memory_used_bytes)
        message.utilization_percent = reading.utilization_percent
        message.temperature_celsius = reading.temperature_celsius
        message.power_watts = reading.power_watts
        for process in reading.processes:
            spec = holder.spec.holder if holder is not None else None
            ours = spec is not None and descends_from(process, spec)
            message.processes.append(
                resources_pb2.GpuProcess(
                    pid=process.pid,
                    user=process.user,
                    command=process.command,
                    memory_bytes=max(0, process.memory_bytes),
                    job_id=str(holder.id) if holder and ours else "",
                )
            )
    return message


def node(engine: Engine, value: Node, seen_at: float | None) -> resources_pb2.Node:
    info = value.info
    return resources_pb2.Node(
        name=info.name,
        gpus_total=len(value.devices),
        gpus_allocated=sum(device.holder is not None for device in value.devices),
        gpus_free=len(value.available),
        drained=value.drained is not None,
        labels=info.labels,
        last_seen_at=timestamp(seen_at),
        driver_version=info.driver_version,
        local=info.local,
    )
