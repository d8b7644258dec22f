"""Preemption: which running jobs are ended so that the head of the queue can start, if any.

Victims are running, preemptible jobs of a lower tier that have had their protected time and were not preempted too
often. They are taken in the order of lowest tier, least GPU-seconds lost, youngest, until the head really places; then
those that turn out not to be needed are let off. If it never places, nobody is preempted. The choice is a pure
function; `claims` carries it out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.core.states import Running


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom to preempt for a job, and the devices that it gets then. No victims: enough are on their way already."""

    victims: tuple[Job, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """Devices that are kept for a waiting job, as others were ended for it.

    Attributes:
        job: the one that waits for them.
        devices: uuids of all that it will get: those that its victims had, and those that were free.
        victims: who was preempted for it.
        until: when the last of them has lost its lease, in seconds of the engine's clock.
    """

    job: JobId
    devices: tuple[str, ...]
    victims: tuple[JobId, ...]
    until: float


def may_yield(job: Job, head: Job) -> bool:
    """Whether a running job may be ended for a waiting one at all, sooner or later."""
    status = job.status
    return (
        job.spec.preemptible
        and job.priority < head.priority
        and isinstance(status, Running)
        and status.confirmed
        and job.preempting is None
        and job.cancelling is None
    )


def protected_until(job: Job, policy: PolicySettings) -> float:
    """When a running job may be preempted at the earliest, infinite for never."""
    lease = job.lease
    if lease is None or (policy.preempt_most and job.preempted >= policy.preempt_most):
        return float("inf")
    return lease.granted_at + policy.preempt_after


def choose(
    head: Job,
    pool: Pool,
    running: Iterable[Job],
    policy: PolicySettings,
    now: float,
    *,
    promised: Collection[str] = (),
    away: Collection[JobId] = (),
) -> Choice | None:
    """Whom to preempt for a job that cannot start.

    Args:
        head: the job; nobody that competes with it stands before it.
        pool: all devices, as they are now.
        running: all jobs with a lease.
        policy: the knobs.
        now: seconds of the engine's clock.
        promised: uuids of devices that are kept for others.
        away: jobs whose holders cannot be told now.

    Returns:
        The choice, or None: the head would not place, or does without anybody's being preempted for it.
    """
    running = list(running)
    eligible = pool.eligible(head.request)
    free = pool.free_soon()
    yielding = [job for job in running if job.preempting is not None]
    ending = yielding + [job for job in running if job.cancelling is not None and job.preempting is None]
    if pool.place(head.request, free) is not None:
        return None
    for job in ending:
        free = pool.with_(free, _of_use(job, eligible, promised))
    devices = pool.place(head.request, free)
    if devices is not None:
        # Who yields has left more than was needed, or yielded to somebody who does not need it any more.
        freed = {uuid for job in yielding if job.lease is not None for uuid in job.lease.devices}
        return Choice((), devices) if freed.intersection(devices) else None
    candidates = [
        job
        for job in running
        if may_yield(job, head)
        and protected_until(job, policy) <= now
        and job.id not in away
        and _of_use(job, eligible, promised)
    ]
    candidates.sort(key=lambda job: _worth(job, now))
    chosen: list[Job] = []
    for job in candidates:
        chosen.append(job)
        if _placed(head, chosen, free, pool, eligible, promised) is not None:
            break
    else:
        return None
    # The dearest first: what was added last is needed, what came before it may not be.
    for job in reversed(chosen[:]):
        others = [each for each in chosen if each is not job]
        if _placed(head, others, free, pool, eligible, promised) is not None:
            chosen = others
    devices = _placed(head, chosen, free, pool, eligible, promised)
    assert devices is not None
    return Choice(tuple(chosen), devices)


def next_chance(head: Job, running: Iterable[Job], policy: PolicySettings, now: float) -> float | None:
    """When somebody's protected time ends who may be ended for a job, None if nobody's will."""
    times = [protected_until(job, policy) for job in running if may_yield(job, head)]
    return min((at for at in times if now < at < float("inf")), default=None)


def _placed(
    head: Job,
    victims: Iterable[Job],
    free: Mapping[str, list[int]],
    pool: Pool,
    eligible: frozenset[str],
    promised: Collection[str],
) -> tuple[str, ...] | None:
    devices = [uuid for job in victims for uuid in _of_use(job, eligible, promised)]
    return pool.place(head.request, pool.with_(free, devices))


def _of_use(job: Job, eligible: frozenset[str], promised: Collection[str]) -> list[str]:
    # Of a shared device the others would have to go as well.
    devices = () if job.lease is None or job.request.shared else job.lease.devices
    return [uuid for uuid in devices if uuid in eligible and uuid not in promised]


def _worth(job: Job, now: float) -> tuple[float, ...]:
    """Least first: tier, GPU-seconds that would be lost, and of equals the one that started last."""
    lease = job.lease
    assert lease is not None
    return (job.priority, len(lease.devices) * (now - lease.granted_at), -lease.granted_at, -job.id)
