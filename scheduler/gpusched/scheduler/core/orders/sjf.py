"""Shortest job first, by estimate, with a guard against starvation."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from gpusched.scheduler.core.orders.base import Key, Order

if TYPE_CHECKING:
    from gpusched.scheduler.core.jobs import Job
    from gpusched.scheduler.core.states import Lease

#: What is not known counts as longer than anything that is.
UNKNOWN = float("inf")
#: So many runs are remembered, the least recently seen forgotten first.
_MAX_REMEMBERED = 10_000


class ShortestFirst(Order):
    """Tier, then expected run time, then arrival.

    The estimate is the user's own figure; else the mean of the user's last two similar runs (the same name, or where
    it has none the same program, and as many GPUs), at most the time limit; else the time limit.

    Args:
        starvation: seconds of waiting after which a job goes before all shorter ones of its tier, 0 for never.
    """

    def __init__(self, starvation: float = 0.0) -> None:
        self._starvation = starvation
        self._runs: OrderedDict[tuple[int, str, int], tuple[float, ...]] = OrderedDict()

    def estimate(self, job: Job) -> float | None:
        if job.spec.estimate is not None:
            return job.spec.estimate
        runs = self._runs.get(_kind(job))
        learned = sum(runs) / len(runs) if runs else None
        if learned is None or job.time_limit is None:
            return job.time_limit if learned is None else learned
        return min(learned, job.time_limit)

    def key(self, job: Job) -> Key:
        if job.starved:
            return (-job.priority, 0, 0.0, job.id)
        expected = job.expected
        return (-job.priority, 1, UNKNOWN if expected is None else expected, job.id)

    def promote_at(self, job: Job) -> float | None:
        return job.submitted_at + self._starvation if self._starvation and not job.starved else None

    def ended(self, job: Job, lease: Lease, now: float) -> None:
        kind = _kind(job)
        self._runs[kind] = (*self._runs.get(kind, ()), now - lease.granted_at)[-2:]
        self._runs.move_to_end(kind)
        if len(self._runs) > _MAX_REMEMBERED:
            self._runs.popitem(last=False)


def _kind(job: Job) -> tuple[int, str, int]:
    what = job.name or (job.spec.command[0] if job.spec.command else "")
    return (job.spec.owner.uid, what, job.request.gpus)
