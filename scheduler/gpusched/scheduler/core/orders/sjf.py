"""Shortest job first, by estimate, with a guard against starvation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpusched.scheduler.core.orders.base import Key, Order

if TYPE_CHECKING:
    from gpusched.scheduler.core.jobs import Job

#: What is not known counts as longer than anything that is.
UNKNOWN = float("inf")


class ShortestFirst(Order):
    """Tier, then expected run time (see `estimates.Estimates`), then arrival.

    Args:
        starvation: seconds of waiting after which a job goes before all shorter ones of its tier, 0 for never.
    """

    def __init__(self, starvation: float = 0.0) -> None:
        self._starvation = starvation

    def key(self, job: Job) -> Key:
        if job.starved:
            return (-job.priority, 0, 0.0, job.id)
        return (-job.priority, 1, UNKNOWN if job.expected is None else job.expected, job.id)

    def promote_at(self, job: Job) -> float | None:
        return job.submitted_at + self._starvation if self._starvation and not job.starved else None
