"""What a schedule was like, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from statistics import median

from gpusched.scheduler.simulate.workload import LoggedJob, Seconds

#: Run times below count as this much in a slowdown, lest jobs of seconds decide the mean.
SHORTEST = 10


@dataclass(frozen=True, slots=True)
class Metrics:
    """
    Attributes:
        jobs: how many ran.
        users: how many different users had them, 0 if the log does not tell.
        wait_mean, wait_median, wait_p90, wait_max, wait_total: seconds from submit to start. The median is the mean of
            the two in the middle, the 90th percentile the least wait that 90 % of the jobs do not exceed.
        slowdown_mean: mean over jobs of max(1, (wait + run) / max(10 s, run)), the bounded slowdown.
        utilisation: GPU-seconds of all runs over GPUs times makespan, 0 to 1; 0 if the makespan is.
        makespan: seconds from the first submit to the last end.
        fairness: Jain's index of the users' mean bounded slowdowns x: (sum x)² / (users · sum x²). 1 if all users are
            slowed down alike, 1/users if one of them alone is. None if the log does not tell users.
    """

    jobs: int
    users: int
    wait_mean: float
    wait_median: float
    wait_p90: float
    wait_max: float
    wait_total: float
    slowdown_mean: float
    utilisation: float
    makespan: float
    fairness: float | None


def measure(jobs: Sequence[LoggedJob], starts: Sequence[Seconds], gpus: int) -> Metrics:
    """Figures of a schedule.

    Args:
        jobs: at least one.
        starts: when each of them started, in the same order.
        gpus: how many there are.
    """
    waits = [start - job.submit for job, start in zip(jobs, starts, strict=True)]
    slowdowns = [bounded_slowdown(wait, job.run) for job, wait in zip(jobs, waits, strict=True)]
    ordered = sorted(waits)
    total = _sum(waits)
    makespan = max(start + job.run for job, start in zip(jobs, starts, strict=True)) - min(job.submit for job in jobs)
    work = _sum([job.run * job.gpus for job in jobs])
    of_user: dict[str, list[float]] = {}
    for job, slowdown in zip(jobs, slowdowns, strict=True):
        if job.user:
            of_user.setdefault(job.user, []).append(slowdown)
    return Metrics(
        jobs=len(jobs),
        users=len(of_user),
        wait_mean=total / len(jobs),
        wait_median=median(ordered),
        wait_p90=ordered[-(-9 * len(ordered) // 10) - 1],
        wait_max=ordered[-1],
        wait_total=total,
        slowdown_mean=fsum(slowdowns) / len(jobs),
        utilisation=work / (gpus * makespan) if makespan else 0.0,
        makespan=makespan,
        fairness=jain([fsum(each) / len(each) for each in of_user.values()]) if of_user else None,
    )


def bounded_slowdown(wait: Seconds, run: Seconds) -> float:
    """How many times longer a job took with its wait than without, of short ones as if they took 10 s; at least 1."""
    return max(1.0, (wait + run) / max(SHORTEST, run))


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index of positive values: 1 if all are equal, 1/n if one has everything."""
    return fsum(values) ** 2 / (len(values) * fsum(value * value for value in values))


def _sum(values: Sequence[Seconds]) -> Seconds:
    # Whole numbers stay whole, however many.
    return sum(values) if all(type(value) is int for value in values) else fsum(values)
