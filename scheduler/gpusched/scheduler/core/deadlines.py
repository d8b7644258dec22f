"""Times at which something falls due, in one heap; a stale entry is recognised by its owner, and swept out late."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from heapq import heapify, heappop, heappush
from math import inf

from gpusched.scheduler.core.jobs import JobId

#: So many entries are kept without asking whether they still mean anything.
_SWEEP_AT = 1024


class Due(Enum):
    MAX_WAIT = "max wait"
    CONFIRM = "confirm"
    LIMIT_NEAR = "time limit near"
    LIMIT_OVER = "time limit and grace over"
    CANCEL_OVER = "cancel grace over"
    PREEMPT_OVER = "preemption grace over"
    PREEMPT_LOOK = "look again who may be preempted"
    LOOK_AGAIN = "look again"
    PROMOTE = "goes first for having waited long"
    GATE = "begin time or pause over"
    HOLD_OVER = "hold after a restart over"
    WINDOW_PART = "part of the window for coming back over"
    WINDOW_OVER = "window for coming back over"


class Deadlines:
    """A heap of (time, what, job, epoch). Epoch 0 where no lease is meant.

    Attributes:
        first: when the next entry falls due, infinite if there is none.
        crowded: the heap has doubled since it was last swept.
    """

    __slots__ = ("_count", "_heap", "_sweep_at", "crowded", "first")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Due, JobId, int]] = []
        self._count = 0
        self._sweep_at = _SWEEP_AT
        self.first = inf
        self.crowded = False

    def add(self, at: float, what: Due, job: JobId = JobId(0), epoch: int = 0) -> None:  # noqa: B008 - a constant
        """Put something down for a time; infinity is never."""
        if at < inf:
            self._count += 1
            heappush(self._heap, (at, self._count, what, job, epoch))
            self._look()

    def pop_due(self, now: float) -> tuple[Due, JobId, int] | None:
        """Take out the earliest entry that is due, None if none is."""
        if self.first > now:
            return None
        _, _, what, job, epoch = heappop(self._heap)
        self._look()
        return what, job, epoch

    def sweep(self, alive: Callable[[Due, JobId, int], bool]) -> None:
        """Forget entries that mean nothing any more. To be called when the heap is crowded.

        So a limit of days, of a job that ended within a second, does not stay for days; the cost spread over the
        entries added is constant.
        """
        self._heap = [entry for entry in self._heap if alive(*entry[2:])]
        heapify(self._heap)
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._heap))
        self._look()

    def _look(self) -> None:
        heap = self._heap
        self.first = heap[0][0] if heap else inf
        self.crowded = len(heap) >= self._sweep_at
