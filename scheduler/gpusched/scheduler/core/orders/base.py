"""What an order is: a key for each job, least first, and lanes whose order may change.

Jobs of one lane are ordered by keys that do not change while they wait (but by an event of their own). Most orders
have one lane; fair share has one for each user, and moves a user's jobs by moving the lane.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from gpusched.scheduler.core.jobs import Job

#: Place within a lane: numbers, the last of which is the job's id, so that keys are unique.
Key: TypeAlias = tuple[Any, ...]
Lane: TypeAlias = Hashable
ONE_LANE: Lane = ()


class Order:
    """First come, first served, unless a subclass says otherwise."""

    #: True if there is one lane only.
    single = True

    def lane(self, job: Job) -> Lane:
        """The lane that a job waits in."""
        return ONE_LANE

    def key(self, job: Job) -> Key:
        """Its place in the lane; unique, and the same until `promote_at` or a change of the job by somebody."""
        return (job.id,)

    def arrange(self, lanes: Iterable[Lane], now: float) -> list[Lane]:
        """Lanes in the order in which they are served, first to last."""
        return list(lanes)

    def promote_at(self, job: Job) -> float | None:
        """When the key of a waiting job changes by itself (seconds of the engine's clock), None for never."""
        return None
