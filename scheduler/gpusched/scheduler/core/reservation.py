"""The promise that backfill keeps: when a waiting job starts at the latest, and what may run beside it until then."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpusched.scheduler.core.ends import NEVER, Ends
from gpusched.scheduler.core.jobs import Job
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.core.queue import limit_of
from gpusched.scheduler.core.sharing import HOST, Grant, Room


@dataclass(slots=True, eq=False)
class Reservation:
    """What a job that must wait is promised.

    Attributes:
        job: the one that waits.
        eligible: uuids of the devices that could serve it.
        at: when it starts at the latest if running jobs keep their time limits, in seconds of the engine's clock;
            infinite where a job without a limit is in the way.
        spare: devices of `eligible` that are free at `at` beyond what it needs.
        free: by node, positions of the devices that are free at `at`; only where it matters which ones are, and then
            instead of `spare`.
        devices: what it would get at `at` of `free`.
        frozen: it has been passed often or long enough: nobody takes even spare devices beyond `at`.
    """

    job: Job
    eligible: frozenset[str]
    at: float
    spare: int = 0
    free: dict[str, list[int]] | None = None
    devices: tuple[str, ...] = ()
    frozen: bool = False
    #: Nobody before this job can come in its way, so that the time can be told to people.
    firm: bool = True
    #: Others may have promises, too, so that nobody's devices can be chosen anew.
    fixed: bool = False

    def allows(self, pool: Pool, devices: Sequence[str], until: float) -> bool:
        """Whether somebody may have these devices until then without delaying this job.

        Args:
            pool: where they are.
            devices: uuids, free now.
            until: seconds of the engine's clock, infinite for somebody without a time limit.
        """
        if until <= self.at and until != NEVER and not (self.frozen and self.at == NEVER):
            return True
        taken = self._taken(devices)
        if not taken:
            return True
        if self.frozen or self.at == NEVER:
            return False
        if self.free is None:
            return taken <= self.spare
        if isinstance(devices, Grant) or isinstance(self.free, Room):
            then = pool.without(self.free, devices)
            return pool.fits(self.devices, then) or (not self.fixed and pool.place(self.job.request, then) is not None)
        if self.fixed or set(devices).isdisjoint(self.devices):
            return set(devices).isdisjoint(self.devices)
        return pool.place(self.job.request, pool.without(self.free, devices)) is not None

    def charge(self, pool: Pool, devices: Sequence[str], until: float) -> None:
        """Somebody has got these devices until then, as was allowed."""
        if until <= self.at:
            return
        if self.free is None:
            self.spare -= self._taken(devices)
        else:
            self.free = pool.without(self.free, devices)
            if not self.fixed:
                self.devices = pool.place(self.job.request, self.free) or self.devices

    def _taken(self, devices: Sequence[str]) -> int:
        eligible = self.eligible
        taken = sum([uuid in eligible for uuid in devices])
        if isinstance(devices, Grant):
            taken += sum(HOST + name in eligible for name in devices.nodes)
        return taken


def reserve(
    job: Job,
    eligible: frozenset[str],
    pool: Pool,
    ends: Ends,
    now: float,
    earlier: Iterable[Reservation] = (),
    *,
    several: bool = False,
) -> Reservation:
    """The earliest time at which a job starts if all running jobs use their time limits to the full.

    Args:
        job: one that cannot start now.
        eligible: devices that could serve it.
        pool: all devices, as they are now.
        ends: running jobs by the end of their limits; one that outlives its limit counts as ending now.
        now: seconds of the engine's clock.
        earlier: promises made to jobs before it, which take their devices first.
        several: there may be more than one promise on the same devices.
    """
    if several or job.request.shaped or pool.divided:
        before = [each for each in earlier if not each.eligible.isdisjoint(eligible)]
        return _reserve_places(job, eligible, pool, ends, now, before, several)
    need = job.request.gpus
    free = pool.count_soon(eligible)
    at = now if free >= need else NEVER
    if at == NEVER and pool.everything(eligible):
        at, free = ends.when_free(need, free, now)
    else:
        for end, _, devices in ends:
            if end > at:
                break
            free += pool.count_of(devices, eligible)
            if free >= need and at == NEVER:
                at = end if end > now else now
    if at == NEVER:
        return Reservation(job, eligible, NEVER, fixed=several)
    return Reservation(job, eligible, at, free - need)


def _reserve_places(
    job: Job,
    eligible: frozenset[str],
    pool: Pool,
    ends: Ends,
    now: float,
    earlier: list[Reservation],
    several: bool,
) -> Reservation:
    """The same by where devices are, since it matters to the job, or some are promised to one before it."""
    free = pool.free_soon()
    promised = [each for each in earlier if each.at != NEVER and each.devices]
    over = {each.at + limit_of(each.job) for each in promised}
    times = sorted({max(end, now) for end, _, _ in ends} | over)
    running = deque((max(end, now), devices) for end, _, devices in ends if end != NEVER)
    for at in [now, *times]:
        if at == NEVER:
            continue
        while running and running[0][0] <= at:
            free = pool.with_(free, running.popleft()[1])
        # From then on until the job's end, nobody promised earlier must be missing what he needs.
        then = free
        until = at + limit_of(job)
        for each in promised:
            if each.at < until and each.at + limit_of(each.job) > at:
                then = pool.without(then, each.devices)
        got = pool.place(job.request, then)
        if got is not None:
            return Reservation(job, eligible, at, free=then, devices=got, fixed=several)
    return Reservation(job, eligible, NEVER, fixed=several)
