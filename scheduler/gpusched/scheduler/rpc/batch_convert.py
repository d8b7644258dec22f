"""Conversions of what only batch jobs have."""

from __future__ import annotations

from typing import Any

from gpusched.scheduler.core.batch import (
    DEFAULT_BACKOFF,
    DEFAULT_GRACE,
    After,
    BatchSpec,
    Dependency,
    RetryPolicy,
    Usage,
)
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.jobs import Job
from gpusched.scheduler.core.states import Running
from gpusched.scheduler.rpc.basics import (
    STATES,
    allocated,
    duration,
    duration_of,
    job_id,
    outcome,
    seconds,
    time_of,
    timestamp,
    timestamp_at,
)
from gpusched.v1 import job_pb2, scheduler_pb2

_AFTER = {after: job_pb2.DependencyCondition.Value(f"DEPENDENCY_CONDITION_{after.name}") for after in After}
_AFTER_BACK = {number: after for after, number in _AFTER.items()} | {0: After.OK}


def batch_of(request: scheduler_pb2.SubmitRequest) -> BatchSpec:
    """Raises Invalid."""
    backoff = seconds(request.retry, "backoff")
    grace = seconds(request, "grace")
    return BatchSpec(
        environment=tuple(sorted(request.environment.items())),
        working_directory=request.working_directory,
        output_path=request.output_path,
        retry=RetryPolicy(
            request.retry.max_retries,
            DEFAULT_BACKOFF if backoff is None else backoff,
            frozenset(request.retry.exit_statuses),
        ),
        requeue=request.requeue,
        dependencies=tuple(map(_dependency_of, request.dependencies)),
        begin_at=time_of(request, "begin_at"),
        held=request.held,
        grace=DEFAULT_GRACE if grace is None else grace,
    )


def usage_of(message: job_pb2.Usage) -> Usage:
    """What a supervisor says its run used; nonsense counts as not known."""
    return Usage(
        wall=max(0.0, seconds(message, "wall") or 0.0),
        cpu=max(0.0, seconds(message, "cpu") or 0.0),
        peak_memory_bytes=max(0, message.peak_memory_bytes),
        gpu_seconds=max(0.0, message.gpu_seconds),
        peak_gpu_memory_bytes=max(0, message.peak_gpu_memory_bytes),
    )


def usage(value: Usage) -> job_pb2.Usage:
    return job_pb2.Usage(
        wall=duration(value.wall),
        cpu=duration(value.cpu),
        peak_memory_bytes=value.peak_memory_bytes,
        gpu_seconds=value.gpu_seconds,
        peak_gpu_memory_bytes=value.peak_gpu_memory_bytes,
    )


def add_batch(engine: Engine, message: job_pb2.Job, job: Job, batch: BatchSpec, *, attempts: bool) -> None:
    """Fill in the fields of a batch job.

    Args:
        attempts: with all its runs.
    """
    message.working_directory = batch.working_directory
    message.output_path = batch.output_path
    message.retry.max_retries = batch.retry.max_retries
    message.retry.exit_statuses.extend(sorted(batch.retry.exit_statuses))
    if batch.retry.max_retries:
        message.retry.backoff.CopyFrom(duration_of(batch.retry.backoff))
    message.attempt = job.attempt
    message.requeue = batch.requeue
    message.held = job.held
    if batch.begin_at is not None:
        message.begin_at.CopyFrom(timestamp_at(batch.begin_at))
    for dependency in batch.dependencies:
        condition: Any = _AFTER[dependency.after]
        message.dependencies.append(job_pb2.Dependency(job_id=str(dependency.job), condition=condition))
    if job.attempts and job.attempts[-1].usage is not None:
        message.usage.CopyFrom(usage(job.attempts[-1].usage))
    if not attempts:
        return
    for attempt in job.attempts:
        state: Any = STATES[attempt.state]
        message.attempts.append(
            job_pb2.Attempt(
                number=attempt.number,
                started_at=timestamp(attempt.started_at),
                ended_at=timestamp(attempt.ended_at),
                state=state,
                outcome=outcome(attempt.outcome),
                usage=None if attempt.usage is None else usage(attempt.usage),
                gpus=allocated(engine, attempt.devices),
            )
        )
    if isinstance(job.status, Running):
        lease = job.status.lease
        running: Any = STATES[job.state]
        message.attempts.append(
            job_pb2.Attempt(
                number=job.attempt,
                started_at=timestamp(lease.granted_at),
                state=running,
                gpus=allocated(engine, lease.devices),
            )
        )


def _dependency_of(message: job_pb2.Dependency) -> Dependency:
    if message.condition not in _AFTER_BACK:
        allowed = ", ".join(f"DEPENDENCY_CONDITION_{after.name}" for after in After)
        raise Invalid(f"dependencies: {message.condition} is no condition; allowed are {allowed}", field="dependencies")
    return Dependency(job_id(message.job_id, "dependencies"), _AFTER_BACK[message.condition])
