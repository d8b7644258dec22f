"""What would become of a job: the same pass on the same state, then undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpusched.scheduler.core import admission
from gpusched.scheduler.core.backfill import Start
from gpusched.scheduler.core.jobs import Job, JobSpec

if TYPE_CHECKING:
    from gpusched.scheduler.core.duties import Duties


def dry_run(
    engine: Duties, make: Callable[[JobSpec, float], Job], spec: JobSpec, now: float
) -> tuple[Job, tuple[str, ...] | None]:
    """Try a submit. Nothing of the engine's state is changed by it.

    Args:
        engine: where it is tried.
        make: a job of a spec, as a submit makes it.
        spec: what is asked for.
        now: seconds of the engine's clock.

    Returns:
        The job as it would be, in the queue's order though not in it, and its devices, None if it would wait.

    Raises:
        DomainError: a submit would be refused.
    """
    admission.check(spec, engine.pool, engine.settings)
    if engine.quotas is not None:
        engine.quotas.check(spec.owner.name, spec.request.gpus)
    job = make(spec, now)
    job.expected = engine.estimates.of(job)
    engine.queue.place(job)
    engine.queue.arrange(now, job.lane)
    queue, pool, quotas = engine.queue, engine.pool, engine.quotas
    taken: list[Start] = []
    got: tuple[str, ...] | None = None
    findings = queue.findings()
    queue.add(job)
    plan = None if engine.bookings is None else engine.bookings.copy()
    if engine._may_start:
        looked = engine._make_pass(now)
        for start in looked.starts() if plan is None else engine._booked_starts(plan, looked, now):
            pool.take(start.devices, start.job.id)
            if quotas is not None:
                quotas.take(start.job.spec.owner.name, len(start.devices))
            queue.remove(start.job)
            limit = start.job.time_limit
            engine.ends.add(start.job.id, None if limit is None else now + limit, start.devices)
            taken.append(start)
            if start.job is job:
                got = start.devices
        promised = {each.job.id: each.at for each in looked.reservations if each.firm}
        found = promised.get(job.id) if plan is None else plan.start_of(job)
        engine.outlook.found_last = (job.id, found)
    for start in taken:
        engine.ends.remove(start.job.id)
        pool.untake(start.devices, start.job.id)
        if quotas is not None:
            quotas.give_back(start.job.spec.owner.name, len(start.devices))
        if start.job is not job:
            queue.add(start.job)
    if got is None:
        queue.remove(job)
    queue.put_back(findings)
    return job, got
