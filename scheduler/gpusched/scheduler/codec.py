"""Jobs to records and back: what a store keeps of a job, as JSON that later versions can still read."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any, TypeAlias

import orjson

from gpusched.scheduler.core.batch import After, Attempt, BatchSpec, Dependency, RetryPolicy, Usage
from gpusched.scheduler.core.changes import Changes
from gpusched.scheduler.core.jobs import HistoryLine, Job, JobId, JobSpec, Kind
from gpusched.scheduler.core.model import Holder, Owner, Placement, Request
from gpusched.scheduler.core.records import Batch, EventRecord, JobRecord
from gpusched.scheduler.core.sharing import Grant, stamped
from gpusched.scheduler.core.states import Finished, Gate, Lease, Outcome, Queued, Running, State, Status

#: What most jobs have none of, and most requests do not say.
_RARE = ("attempt", "failures", "losses", "held", "not_before", "requeue_asked", "missed", "preempted")
_WHERE = ("nodes", "gpu_ids", "exclude", "labels", "per_node", "shared", "cpus", "host_bytes")
_rare, _where = attrgetter(*_RARE), attrgetter(*_WHERE)


#: What specs of jobs that have not ended were kept as the last time: a spec does not change.
Specs: TypeAlias = dict[JobId, tuple[JobSpec, bytes]]


def batch_of(changes: Changes, specs: Specs | None = None) -> Batch:
    """What is to be saved.

    Args:
        changes: of the engine.
        specs: what is known of specs, brought up to date here; empty at first. None to remember nothing.
    """
    ended = {epoch for epoch, _ in changes.ended}
    return Batch(
        jobs=tuple([record_of(job, specs) for job in changes.jobs.values()]),
        events=tuple(
            [EventRecord(job, line.at, line.state.value, line.message, run) for job, line, run in changes.events]
        ),
        ended=tuple(changes.ended),
        # A lease that began and ended since the last save never was, as far as the store goes.
        leases=tuple(lease for lease in changes.leases if lease.epoch not in ended),
        settings=changes.settings,
        sync=changes.sync,
    )


def record_of(job: Job, specs: Specs | None = None) -> JobRecord:
    """A job as it is kept. See `batch_of`."""
    status = job.status
    return JobRecord(
        id=job.id,
        state=job.state.value,
        kind=job.spec.kind.value,
        uid=job.spec.owner.uid,
        user=job.spec.owner.name,
        name=job.name,
        submitted_at=job.submitted_at,
        ended_at=status.at if isinstance(status, Finished) else None,
        data=_data_of(job, specs),
    )


def job_of(record: JobRecord, history: tuple[EventRecord, ...] = ()) -> Job:
    """A job as it was.

    Raises:
        ValueError: the record is not one that `record_of` made.
    """
    try:
        data = json.loads(record.data)
        spec = _spec_in(record, data["spec"])
        job = Job(
            id=JobId(record.id),
            spec=spec,
            submitted_at=record.submitted_at,
            priority=data["priority"],
            name=record.name,
            status=_status_in(State(record.state), data["status"], spec.request),
            token_hash=bytes.fromhex(data.get("token_hash", "")),
            holder=Holder(*data["holder"]) if "holder" in data else None,
            attempt=data.get("attempt", 0),
            failures=data.get("failures", 0),
            losses=data.get("losses", 0),
            held=data.get("held", False),
            not_before=data.get("not_before"),
            time_limit=data.get("time_limit"),
            unmet=set(data.get("unmet", ())),
            cancelling=tuple(data["cancelling"]) if "cancelling" in data else None,
            preempting=tuple(data["preempting"]) if "preempting" in data else None,
            preempted=data.get("preempted", 0),
            requeue_asked=data.get("requeue_asked", False),
            missed=data.get("missed", 0),
            attempts=[_attempt_in(each) for each in data.get("attempts", ())],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"job {record.id} is kept in a form that this version does not know ({error!r})") from error
    job.history = [HistoryLine(line.at, State(line.state), line.message) for line in history]
    return job


# -- out ---------------------------------------------------------------------------------------------------


def _encode(data: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(data)
    except TypeError:  # half a character, of a path that is no text, or a very large number
        return json.dumps(data, separators=(",", ":")).encode()


def _data_of(job: Job, specs: Specs | None) -> str:
    known = None if specs is None else specs.pop(job.id, None)
    spec = known[1] if known is not None and known[0] is job.spec else _encode(_spec_out(job.spec))
    if specs is not None and not isinstance(job.status, Finished):
        specs[job.id] = job.spec, spec
    return (b'{"spec":' + spec + b"," + _encode(_job_out(job))[1:]).decode()


def _job_out(job: Job) -> dict[str, Any]:
    """What may change of a job; never empty."""
    data: dict[str, Any] = {
        "priority": job.priority,
        "status": _status_out(job.status),
        "time_limit": job.time_limit,
    }
    if job.holder is not None:
        data["holder"] = [job.holder.pid, job.holder.start_ticks]
    if job.token_hash:
        data["token_hash"] = job.token_hash.hex()
    if any(rare := _rare(job)):
        data |= {name: value for name, value in zip(_RARE, rare, strict=True) if value}
    if job.unmet:
        data["unmet"] = sorted(job.unmet)
    if job.cancelling is not None:
        data["cancelling"] = job.cancelling
    if job.preempting is not None:
        data["preempting"] = job.preempting
    if job.attempts:
        data["attempts"] = [_attempt_out(attempt) for attempt in job.attempts]
    return data


def _spec_out(spec: JobSpec) -> dict[str, Any]:
    request = spec.request
    data: dict[str, Any] = {
        "gpus": request.gpus,
        "memory": request.memory_bytes,
        "model": request.model,
        "node": request.node,
        "name": spec.name,
        "priority": spec.priority,
        "command": spec.command,
        "time_limit": spec.time_limit,
        "max_wait": spec.max_wait,
        "auto_confirm": spec.auto_confirm,
        "request_id": spec.request_id,
    }
    # What most jobs do not say; older versions did not have them.
    if spec.estimate is not None:
        data["estimate"] = spec.estimate
    if spec.preemptible:
        data["preemptible"] = True
    if spec.signal is not None:
        data["signal"] = spec.signal
    if where := _where_out(request):
        data["where"] = where
    if spec.batch is not None:
        batch = spec.batch
        data["batch"] = {
            "environment": batch.environment,
            "working_directory": batch.working_directory,
            "output_path": batch.output_path,
            "retry": [batch.retry.max_retries, batch.retry.backoff, sorted(batch.retry.exit_statuses)],
            "requeue": batch.requeue,
            "dependencies": [[dependency.job, dependency.after.value] for dependency in batch.dependencies],
            "begin_at": batch.begin_at,
            "held": batch.held,
            "grace": batch.grace,
        }
    return data


def _where_out(request: Request) -> dict[str, Any]:
    """What most requests do not say."""
    where: dict[str, Any] = {name: value for name, value in zip(_WHERE, _where(request), strict=True) if value}
    if request.placement is not Placement.PACK:
        where["placement"] = request.placement.value
    return where


def _status_out(status: Status) -> dict[str, Any]:
    match status:
        case Queued():
            return {"since": status.since, "gate": status.gate.value if status.gate else None}
        case Running():
            return {"since": status.since, "lease": _lease_out(status.lease), "confirmed": status.confirmed}
        case Finished():
            lease = _lease_out(status.lease) if status.lease else None
            return {"at": status.at, "outcome": _outcome_out(status.outcome), "lease": lease}


def _lease_out(lease: Lease) -> list[Any]:
    # Nodes, where something of their hosts is had: it may be had without any GPU.
    nodes = [lease.devices.nodes] if isinstance(lease.devices, Grant) else []
    return [lease.epoch, lease.devices, lease.granted_at, lease.confirm_by, lease.expires_at, *nodes]


def _outcome_out(outcome: Outcome) -> list[Any]:
    return [outcome.exit_status, outcome.signal, outcome.message]


def _attempt_out(attempt: Attempt) -> dict[str, Any]:
    usage = attempt.usage
    return {
        "number": attempt.number,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "state": attempt.state.value,
        "outcome": _outcome_out(attempt.outcome),
        "devices": attempt.devices,
        "usage": None
        if usage is None
        else [usage.wall, usage.cpu, usage.peak_memory_bytes, usage.gpu_seconds, usage.peak_gpu_memory_bytes],
    }


# -- in ----------------------------------------------------------------------------------------------------


def _spec_in(record: JobRecord, data: dict[str, Any]) -> JobSpec:
    batch = data.get("batch")
    return JobSpec(
        owner=Owner(record.uid, record.user),
        request=stamped(_request_in(data), record.uid),
        name=data["name"],
        priority=data["priority"],
        command=tuple(data["command"]),
        kind=Kind(record.kind),
        time_limit=data["time_limit"],
        max_wait=data["max_wait"],
        auto_confirm=data["auto_confirm"],
        request_id=data["request_id"],
        batch=_batch_in(batch) if batch else None,
        estimate=data.get("estimate"),
        preemptible=data.get("preemptible", False),
        signal=_signal_in(data["signal"]) if "signal" in data else None,
    )


def _request_in(data: dict[str, Any]) -> Request:
    where = data.get("where", {})
    return Request(
        gpus=data["gpus"],
        memory_bytes=data["memory"],
        model=data["model"],
        node=data["node"],
        nodes=tuple(where.get("nodes", ())),
        gpu_ids=tuple(where.get("gpu_ids", ())),
        exclude=tuple(where.get("exclude", ())),
        labels=tuple((key, value) for key, value in where.get("labels", ())),
        per_node=where.get("per_node", 0),
        placement=Placement(where.get("placement", Placement.PACK)),
        shared=where.get("shared", False),
        cpus=where.get("cpus", 0),
        host_bytes=where.get("host_bytes", 0),
    )


def _signal_in(data: list[Any]) -> tuple[str, float]:
    name, before = data
    return name, before


def _batch_in(data: dict[str, Any]) -> BatchSpec:
    retries, backoff, statuses = data["retry"]
    return BatchSpec(
        environment=tuple((name, value) for name, value in data["environment"]),
        working_directory=data["working_directory"],
        output_path=data["output_path"],
        retry=RetryPolicy(retries, backoff, frozenset(statuses)),
        requeue=data["requeue"],
        dependencies=tuple(Dependency(job, After(after)) for job, after in data["dependencies"]),
        begin_at=data["begin_at"],
        held=data["held"],
        grace=data["grace"],
    )


def _status_in(state: State, data: dict[str, Any], request: Request) -> Status:
    match state:
        case State.QUEUED:
            return Queued(data["since"], Gate(data["gate"]) if data["gate"] else None)
        case State.RUNNING:
            return Running(data["since"], _lease_in(data["lease"], request), data["confirmed"])
        case _:
            lease = _lease_in(data["lease"], request) if data["lease"] else None
            return Finished(data["at"], state, Outcome(*data["outcome"]), lease)


def _lease_in(data: list[Any], request: Request) -> Lease:
    epoch, devices, granted_at, confirm_by, expires_at, *nodes = data
    devices = Grant.of(request, devices, nodes[0]) if nodes else tuple(devices)
    return Lease(epoch, devices, granted_at, confirm_by, expires_at)


def _attempt_in(data: dict[str, Any]) -> Attempt:
    return Attempt(
        data["number"],
        data["started_at"],
        data["ended_at"],
        State(data["state"]),
        Outcome(*data["outcome"]),
        tuple(data["devices"]),
        Usage(*data["usage"]) if data["usage"] else None,
    )
