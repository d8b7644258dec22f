"""Higher tiers first; waiting is worth something, too; then the order of arrival."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpusched.scheduler.core.orders.base import Key, Order

if TYPE_CHECKING:
    from gpusched.scheduler.core.jobs import Job


class Priority(Order):
    """Tier plus waiting time, in units of `aging`.

    All jobs age alike, so the difference between two never changes: `tier + (now - submitted) / aging` orders them
    as `tier - submitted / aging` does, and the key is fixed when the job arrives (linear aging).

    Args:
        aging: seconds of waiting that are worth one tier, 0 for none.
    """

    def __init__(self, aging: float = 0.0) -> None:
        self._aging = aging

    def key(self, job: Job) -> Key:
        worth = job.submitted_at / self._aging if self._aging else 0.0
        return (worth - job.priority, job.id)
