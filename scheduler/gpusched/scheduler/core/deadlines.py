"""Times at which something falls due, in one heap; a stale entry is recognised by its owner, not removed."""

from __future__ import annotations

from enum import Enum
from heapq import heappop, heappush

from gpusched.scheduler.core.jobs import JobId


class Due(Enum):
    MAX_WAIT = "max wait"
    CONFIRM = "confirm"
    LIMIT_NEAR = "time limit near"
    LIMIT_OVER = "time limit and grace over"
    CANCEL_OVER = "cancel grace over"
    LOOK_AGAIN = "look again"
    GATE = "begin time or pause over"
    HOLD_OVER = "hold after a restart over"
    WINDOW_OVER = "window for coming back over"


class Deadlines:
    """A heap of (time, what, job, epoch). Epoch 0 where no lease is meant."""

    __slots__ = ("_count", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Due, JobId, int]] = []
        self._count = 0

    def add(self, at: float, what: Due, job: JobId = JobId(0), epoch: int = 0) -> None:  # noqa: B008 - a constant
        self._count += 1
        heappush(self._heap, (at, self._count, what, job, epoch))

    def next(self) -> float | None:
        """When the next entry falls due, None if there is none."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> tuple[Due, JobId, int] | None:
        """Take out the earliest entry that is due, None if none is."""
        if not self._heap or self._heap[0][0] > now:
            return None
        _, _, what, job, epoch = heappop(self._heap)
        return what, job, epoch
