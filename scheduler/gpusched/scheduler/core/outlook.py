"""When a waiting job will start: a promise made from time limits, and a forecast made from what is expected.

The promise holds as long as nobody with a higher claim comes and no device is lost. Under strict order every job
has one, under conservative backfill its booking is one, under EASY only the jobs that have a reservation have one.
The forecast is a plan of the same queue with expected run times instead of limits, and may move either way.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.profile import NEVER, form_for, profile_of
from gpusched.scheduler.core.queue import Verdict, limit_of
from gpusched.scheduler.core.sharing import part

if TYPE_CHECKING:
    from gpusched.scheduler.core.ground import Ground

#: So many jobs from the front are planned; beyond, the forecast goes by the work ahead.
DEPTH = 200
#: The same where parts of devices or of hosts are asked for: each of these costs some ten times as much to plan.
DEPTH_COUNTED = 50
#: A plan is used for so long, in seconds, however much happens meanwhile.
KEEP = 1.0
#: The same, where somebody asks who was not there when it was made.
KEEP_NEW = 0.05
#: Work that has outlived its estimate is expected to take so much of the time it has had already.
OUTLIVED = 0.5


@dataclass(frozen=True, slots=True)
class Expected:
    """Times on the engine's clock, None where nothing can be said.

    Attributes:
        promise: the job starts then at the latest.
        forecast: the job is expected to start then.
    """

    promise: float | None = None
    forecast: float | None = None


NOTHING = Expected()


class Outlook:
    """Plans for the queue, made when somebody asks and kept for a moment.

    Args:
        ground: the engine's state.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        #: The job of the last dry run, and when it would start at the latest, as its pass has found.
        self.found_last: tuple[JobId, float | None] | None = None
        self._made_at = -NEVER
        self._forecasts: dict[JobId, float] = {}
        self._promises: dict[JobId, float] = {}
        self._planned: frozenset[JobId] = frozenset()
        self._work = 0.0  # GPU-seconds of each planned job, on average
        self._last = 0.0  # the latest planned start

    def of(self, job: Job, now: float) -> Expected:
        """What a waiting job may expect."""
        ground = self._ground
        if not job.awake or ground.paused is not None or ground.halted is not None:
            return NOTHING
        self._refresh(now, new=self._made_at < job.submitted_at and len(self._forecasts) < self._depth)
        forecast = self._forecasts.get(job.id)
        if forecast is None and job.id not in self._planned:
            forecast = self._beyond(job)
        promise = self._promise(job)
        if promise is not None and forecast is not None:
            forecast = min(forecast, promise)
        return Expected(
            None if promise is None else max(promise, now), None if forecast is None else max(forecast, now)
        )

    def tried(self, job: Job, now: float) -> Expected:
        """The same for a job that is not in the queue, but has just been tried: what it could expect if it were."""
        ground = self._ground
        if ground.paused is not None or ground.halted is not None:
            return NOTHING
        rank, depth, backfill = ground.queue.rank(job), self._depth, ground.settings.policy.backfill
        ahead = [each for each in islice(ground.queue, min(rank, depth)) if each.awake]
        if rank > depth:
            self._refresh(now)
            forecast = self._beyond(job)
        else:
            forecast = self._plan([*ahead, job], now, self._duration, strict=backfill == "none").get(job.id)
        promise = None
        if self._may_promise(job):
            if backfill == "none" and rank <= depth:
                promise = self._plan([*ahead, job], now, limit_of, strict=True).get(job.id)
            elif backfill != "none" and self.found_last is not None and self.found_last[0] == job.id:
                promise = self.found_last[1]
        promise = None if promise == NEVER else promise
        if promise is not None and forecast is not None:
            forecast = min(forecast, promise)
        return Expected(
            None if promise is None else max(promise, now), None if forecast is None else max(forecast, now)
        )

    @property
    def _depth(self) -> int:
        return DEPTH_COUNTED if self._ground.pool.counting else DEPTH

    def _refresh(self, now: float, *, new: bool = False) -> None:
        if not 0 <= now - self._made_at < (KEEP_NEW if new else KEEP):
            self._make(now)

    def _beyond(self, job: Job) -> float | None:
        """When a job starts that has more before it than are planned, if all those do: work goes on like that."""
        if len(self._forecasts) < self._depth:
            return None
        behind = max(0, self._ground.queue.rank(job) - self._depth)
        return self._last + behind * self._work / max(1, len(self._ground.pool.devices))

    def _promise(self, job: Job) -> float | None:
        ground = self._ground
        if (claim := ground.claims.get(job.id)) is not None:
            return claim.until
        if not self._may_promise(job):
            return None
        if ground.bookings is not None:
            promise = ground.bookings.start_of(job)
        elif ground.settings.policy.backfill == "easy":
            promise = ground.promised.get(job.id)
        else:
            promise = self._promises.get(job.id)
        return None if promise is None or promise == NEVER else promise

    def _may_promise(self, job: Job) -> bool:
        """Whether devices alone decide when a job starts, and no limit of how many jobs or GPUs may run."""
        ground = self._ground
        easy = ground.settings.policy.backfill == "easy"
        if ground.quotas is not None and (not easy or ground.quotas.of(job.spec.owner.name)):
            return False  # in a plan of all that wait, even the quotas of others count
        # Under EASY, the last of those whose end it waits for leaves it the place.
        return easy or not ground.settings.max_running

    def _make(self, now: float) -> None:
        ground, depth = self._ground, self._depth
        self._made_at = now
        waiting = [job for job in islice(ground.queue, depth * 2) if job.awake][:depth]
        strict = ground.settings.policy.backfill == "none"
        self._planned = frozenset([job.id for job in waiting])
        self._forecasts = self._plan(waiting, now, self._duration, strict=strict)
        self._promises = self._plan(waiting, now, limit_of, strict=True) if strict else {}
        self._last = max(self._forecasts.values(), default=now)
        work = [self._duration(job) * job.request.gpus for job in waiting if job.id in self._forecasts]
        self._work = sum(work) / len(work) if work else 0.0

    def _duration(self, job: Job) -> float:
        expected = self._ground.estimates.of(job)
        if expected is None:
            expected = self._ground.estimates.typical()
        return NEVER if expected is None else expected

    def _plan(
        self, waiting: Iterable[Job], now: float, duration: Callable[[Job], float], *, strict: bool
    ) -> dict[JobId, float]:
        """Start times, in the queue's order, if work takes as long as told; those that never come are left out."""
        ground = self._ground
        waiting = list(waiting)
        limits = _Limits(ground)
        profile = profile_of(form_for(ground.pool, (job.request for job in waiting)), ground.pool, now)
        claimed = {uuid for claim in ground.claims.values() for uuid in claim.devices}
        for job in ground.running.values():
            lease = job.lease
            assert lease is not None
            end = lease.granted_at + duration(job)
            if end <= now:
                # It has outlived what was expected of it; a limit, though, is kept.
                end = now + OUTLIVED * (now - lease.granted_at)
                if lease.expires_at is not None:
                    end = max(now, min(end, lease.expires_at))
            if job.preempting is not None:
                end = max(now, min(end, job.preempting[1]))
            limits.hold(job, end)
            if end != NEVER:
                # What is kept for somebody comes to nobody else.
                rest = part(lease.devices, {*lease.devices} - claimed) if claimed else lease.devices
                profile.give(profile.hold_of(rest), end, NEVER)
        starts: dict[JobId, float] = {}
        for claim in ground.claims.values():
            job = ground.jobs[claim.job]
            starts[job.id] = begin = max(now, claim.until)
            end = begin + duration(job)
            limits.hold(job, end)
            if end != NEVER:
                profile.give(profile.hold_of(claim.devices), end, NEVER)
        after: dict[frozenset[str], float] = {}
        for job in waiting:
            eligible = ground.pool.eligible(job.request)
            if job.id in starts:
                if strict:
                    after[eligible] = max(starts[job.id], after.get(eligible, now))
                continue
            begin = now
            if strict:
                begin = max((at for other, at in after.items() if not eligible.isdisjoint(other)), default=now)
            begin = max(begin, limits.earliest(job, now))
            takes = duration(job)
            found = None if begin == NEVER else profile.earliest(job.request, takes, begin)
            if strict and not self._is_aside(job):
                after[eligible] = NEVER if found is None else max(found[0], after.get(eligible, now))
            if found is not None:
                starts[job.id] = found[0]
                profile.take(found[1], found[0], found[0] + takes)
                limits.hold(job, found[0] + takes)
        return starts

    def _is_aside(self, job: Job) -> bool:
        """Whether a waiting job is in nobody's way: its owner has all he may, or its devices must be mended first."""
        queue = self._ground.queue
        return job in queue and job.awake and queue.class_of(job).verdict in (Verdict.QUOTA, Verdict.SET_ASIDE)


class _Limits:
    """What keeps jobs waiting beside devices: how many may run, and how much their owners may hold.

    A planned job counts from now on, so that what is told is rather late than early.
    """

    def __init__(self, ground: Ground) -> None:
        self._most = ground.settings.max_running
        self._quotas = ground.quotas
        self._ends: list[float] = []
        #: By a quota's name, the end of each job that counts towards it, and its GPUs; first to last.
        self._held: dict[str, list[tuple[float, int]]] = {}

    def hold(self, job: Job, end: float) -> None:
        """A job runs until then, or is planned to."""
        if self._most:
            insort(self._ends, end)
        if self._quotas is not None:
            for quota in self._quotas.of(job.spec.owner.name):
                insort(self._held.setdefault(quota.name, []), (end, job.request.gpus))

    def earliest(self, job: Job, now: float) -> float:
        """When a job may start as far as these go, infinite for never."""
        found = now
        if self._most and len(self._ends) >= self._most:
            found = max(found, self._ends[-self._most])
        if self._quotas is None:
            return found
        gpus = job.request.gpus
        for quota in self._quotas.of(job.spec.owner.name):
            held = self._held.get(quota.name, [])
            if quota.jobs and len(held) >= quota.jobs:
                found = max(found, held[-quota.jobs][0])
            if quota.gpus and gpus > quota.gpus:  # only by borrowing, if at all
                return NEVER
            if quota.gpus:
                left = sum(count for _, count in held)
                for end, count in held:
                    if left + gpus <= quota.gpus:
                        break
                    left -= count
                    found = max(found, end)
        return found
