"""How long work is expected to take: the user's own figure, else what similar work of the same user took."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpusched.scheduler.core.jobs import Job

#: So many kinds of work are remembered, the least recently seen forgotten first; and so many runs of any kind.
_MAX_KINDS = 10_000
_MAX_RUNS = 50


class Estimates:
    """What has been seen of run times.

    The estimate is min(limit, mean of the user's last two similar runs) (Tsafrir et al. 2007). Similar runs have the
    same user, as many GPUs, and the same name or, without one, the same program.
    """

    def __init__(self) -> None:
        self._kinds: OrderedDict[tuple[int, str, int], tuple[float, ...]] = OrderedDict()
        self._runs: deque[float] = deque(maxlen=_MAX_RUNS)

    def of(self, job: Job) -> float | None:
        """Seconds that a job's work is expected to take, None if nothing is known of it."""
        limit = job.time_limit
        expected = job.spec.estimate
        if expected is None:
            kind = _kind(job)
            runs = None if kind is None else self._kinds.get(kind)
            expected = sum(runs) / len(runs) if runs else limit
        if expected is None or limit is None:
            return expected
        return min(expected, limit)

    def typical(self) -> float | None:
        """Seconds that half of the last runs of anybody took at most, None if there were none."""
        return sorted(self._runs)[len(self._runs) // 2] if self._runs else None

    def learn(self, job: Job, seconds: float) -> None:
        """A job's work has ended after so many seconds."""
        self._runs.append(seconds)
        kind = _kind(job)
        if kind is None:
            return
        self._kinds[kind] = (*self._kinds.get(kind, ()), seconds)[-2:]
        self._kinds.move_to_end(kind)
        if len(self._kinds) > _MAX_KINDS:
            self._kinds.popitem(last=False)


def _kind(job: Job) -> tuple[int, str, int] | None:
    """What similar work has in common, None for work that says nothing of itself."""
    what = job.name or (job.spec.command[0] if job.spec.command else "")
    return (job.spec.owner.uid, what, job.spec.request.gpus) if what else None
