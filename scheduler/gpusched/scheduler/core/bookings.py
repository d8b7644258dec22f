"""Conservative backfill: every waiting job has a booking, and no booking ever gets later by what others do.

A new job books the earliest hole that is left. When work ends before its limit, the plan is compressed one job at a
time, in the queue's order: its booking is taken out, fitted anew and put back. Its old place is still there then, so
it can only come forward. Bookings are made anew, and may get later, only when the order
or the capacity changes.

That is work for each waiter, so only the first `DEPTH` of them have bookings; whoever waits behind those may start
where all bookings leave room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from gpusched.scheduler.core.backfill import Start
from gpusched.scheduler.core.ends import NEVER, Ends
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.core.profile import FORMS, Hold, Profile, form_for, profile_of
from gpusched.scheduler.core.queue import ClassId, JobClass, JobQueue, Verdict, limit_of

#: So many waiting jobs have a booking, from the first on.
DEPTH = 1000
#: The same where parts of devices or of hosts are asked for: each of these costs a hundred times as much to book.
DEPTH_COUNTED = 100


@dataclass(slots=True)
class _Booking:
    job: Job
    start: float
    end: float
    hold: Hold


@dataclass(slots=True)
class _Run:
    end: float
    hold: Hold


class _Blockers:
    """Who waits already, for those who come after them to be told of."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._wanted: frozenset[str] = frozenset()
        self._jobs: list[tuple[frozenset[str], JobId]] = []

    def judge(self, found: JobClass) -> None:
        """Whether the first of a class waits behind somebody who could use what it could use."""
        eligible = self._pool.eligible(found.request)
        ahead = next((job for devices, job in self._jobs if not devices.isdisjoint(eligible)), None)
        found.verdict, found.blocked_by = Verdict.WAITS if ahead is None else Verdict.BEHIND, ahead

    def add(self, found: JobClass, job: Job) -> None:
        eligible = self._pool.eligible(found.request)
        if not eligible <= self._wanted:
            self._wanted |= eligible
            self._jobs.append((eligible, job.id))


class Bookings:
    """The plan for all waiting jobs, kept from pass to pass."""

    def __init__(self) -> None:
        self._profile: Profile | None = None
        self._booked: dict[JobId, _Booking] = {}
        self._running: dict[JobId, _Run] = {}
        self._form: type[Profile] | None = None
        self._capacity = -1
        self._order: list[JobId] = []
        #: A hole has opened since the plan was last compressed.
        self._holes = False
        #: Somebody came forward then, so that those before him may be able to now.
        self._loose = False

    def start_of(self, job: Job) -> float | None:
        """When a waiting job starts at the latest, None if that is not known (work without a limit is in the way)."""
        booking = self._booked.get(job.id)
        return None if booking is None else booking.start

    def refit(self, job: Job) -> None:
        """The time limit of a waiting job has changed: its booking is made anew, the others' stay."""
        booking = self._booked.pop(job.id, None)
        if booking is not None:
            assert self._profile is not None
            self._profile.give(booking.hold, booking.start, booking.end)
            self._holes = True

    def copy(self) -> Bookings:
        """The same plan, to be tried out."""
        twin = Bookings()
        twin.__dict__.update(self.__dict__)
        twin._profile = None if self._profile is None else self._profile.copy()
        twin._booked, twin._running, twin._order = dict(self._booked), dict(self._running), list(self._order)
        return twin

    def next_start(self, now: float) -> float | None:
        """The first booking that is yet to come."""
        return min((each.start for each in self._booked.values() if each.start > now), default=None)

    def starts(
        self,
        queue: JobQueue,
        pool: Pool,
        ends: Ends,
        now: float,
        slots: int | None,
        left_out: Callable[[Job], bool] | None,
        aside: Callable[[JobClass], bool],
    ) -> Iterator[Start]:
        """Bring the plan up to date and decide what starts. The caller performs each start before the next.

        Args:
            queue: who waits.
            pool: all devices.
            ends: when running jobs end at the latest.
            now: seconds of the engine's clock.
            slots: at most so many starts, None for any number.
            left_out: whether a waiting job is to have no booking now.
            aside: whether a class waits for devices that must be mended or brought back, and for long enough.
        """
        depth = DEPTH_COUNTED if pool.counting else DEPTH
        gone: set[ClassId] = set()
        for found in queue.classes.values():
            if aside(found):
                gone.add(found.id)
            elif found.verdict is Verdict.SET_ASIDE:
                found.verdict = Verdict.UNSEEN  # what it waits for is back
        if gone:
            left_out = _or_of(gone, queue, left_out)
        waiting = list(islice((job for job in queue if job.awake and not (left_out and left_out(job))), depth))
        self._update(waiting, pool, ends, now)
        blockers = _Blockers(pool)
        passed: list[Job] = []
        for job in waiting:
            if left_out and left_out(job):
                continue  # by what has started since
            booking = self._booked.get(job.id)
            if booking is not None and booking.start <= now and slots != 0:
                assert self._profile is not None
                devices = self._profile.place_now(job.request, booking.hold)
                if devices is not None:
                    self._begin(booking, now)
                    slots = None if slots is None else slots - 1
                    yield Start(job, devices, tuple(passed))
                    continue
            found = queue.class_of(job)
            if found.is_told_as(job.key):
                blockers.judge(found)
                blockers.add(found, job)
            if len(passed) < 8:
                passed.append(job)
        self._order = [job.id for job in waiting]
        if len(waiting) == depth:
            yield from self._beyond(queue, pool, waiting[-1], now, slots, left_out, blockers, tuple(passed))

    def _beyond(
        self,
        queue: JobQueue,
        pool: Pool,
        last: Job,
        now: float,
        slots: int | None,
        left_out: Callable[[Job], bool] | None,
        blockers: _Blockers,
        passed: tuple[Job, ...],
    ) -> Iterator[Start]:
        """Of each class, start the first jobs that stand behind all bookings and are in the way of none."""
        assert self._profile is not None
        index, lane, last_key = queue.lane_index, queue.lane_index[last.lane], last.key
        for found in list(queue.classes.values()):
            if index[found.lane] < lane or found.verdict is Verdict.SET_ASIDE:
                continue
            key = found.keys.after(last_key) if found.lane == last.lane else found.keys.first()
            if key is not None and found.is_told_as(key):
                blockers.judge(found)
            # Any that comes next, until one does not fit; then only those that are over before the first booking.
            most = NEVER
            while key is not None and slots != 0 and found.request.whole_gpus <= pool.free_total:
                job = queue.job(key)
                if left_out and left_out(job):
                    break
                devices = self._squeeze(job, now)
                if devices is not None:
                    slots = None if slots is None else slots - 1
                elif most != NEVER:
                    break
                else:
                    most = (self.next_start(now) or now) - now
                key = found.keys.after(key, most)
                if devices is not None:
                    yield Start(job, devices, passed)

    def _squeeze(self, job: Job, now: float) -> tuple[str, ...] | None:
        """Start a job that has no booking if that is in the way of none. Returns its devices."""
        assert self._profile is not None
        limit = limit_of(job)
        hole = self._profile.earliest(job.request, limit, now)
        if hole is None or hole[0] > now:
            return None
        devices = self._profile.place_now(job.request, hole[1])
        if devices is not None:
            self._profile.take(hole[1], now, now + limit)
            self._running[job.id] = _Run(now + limit, hole[1])
        return devices

    # -- keeping the plan ----------------------------------------------------------------------------------

    def _update(self, waiting: list[Job], pool: Pool, ends: Ends, now: float) -> None:
        form = form_for(pool, (job.request for job in waiting))
        if self._form is not None:
            # Once it has mattered which devices are whose, it goes on mattering: no plan is made anew for less.
            form = max(form, self._form, key=FORMS.index)
        overrun = any(run.end < now and number in ends for number, run in self._running.items())
        reordered = self._reordered(waiting)
        profile = self._profile
        if profile is None or (form, pool.capacity_changes) != (self._form, self._capacity) or overrun or reordered:
            self._form, self._capacity = form, pool.capacity_changes
            self._rebuild(waiting, pool, ends, now, form, keep=not reordered)
            return
        profile.forget(now)
        early, self._holes = self._holes, False
        for ended in [number for number in self._running if number not in ends]:
            run = self._running.pop(ended)
            if run.end > now:
                profile.give(run.hold, now, run.end)
                early = True
            elif self._loose:
                # Who has just come forward has left places to those before him: at the next end they have their turn.
                early = True
        alive = {job.id for job in waiting}
        for left in [number for number in self._booked if number not in alive]:
            gone = self._booked.pop(left)
            profile.give(gone.hold, gone.start, gone.end)
            early = True
        for end, number, devices in ends:
            if number not in self._running:  # started by somebody else: after a restart, by hand
                run = self._running[JobId(number)] = _Run(max(end, now), profile.hold_of(devices))
                profile.take(run.hold, now, run.end)
        if early:
            self._compress(waiting, now)
        else:
            for job in waiting:
                if job.id not in self._booked:
                    self._book(job, now)

    def _reordered(self, waiting: list[Job]) -> bool:
        """Whether anybody stands where he did not, or somebody new before others."""
        alive = {job.id for job in waiting}
        before = [number for number in self._order if number in alive]
        return before != [job.id for job in waiting[: len(before)]]

    def _rebuild(
        self, waiting: list[Job], pool: Pool, ends: Ends, now: float, form: type[Profile], *, keep: bool
    ) -> None:
        """Make the plan anew; with `keep`, as near to the bookings that there were as can be."""
        before = self._booked if keep else {}
        profile = self._profile = profile_of(form, pool, now)
        self._booked, self._running = {}, {}
        for end, number, devices in ends:
            # One that outlives its limit may go at any moment; until it does, its devices are not there.
            until = end if end > now else now + 1.0
            hold = profile.hold_of(devices)
            self._running[JobId(number)] = _Run(until, hold)
            # Held devices are not in `free`: they come when the job ends.
            if until != NEVER:
                profile.give(hold, until, NEVER)
        kept = [job for job in waiting if job.id in before]
        for job in sorted(kept, key=lambda job: before[job.id].start):
            self._book(job, max(now, before[job.id].start))
        if kept:
            self._compress(kept, now)
        for job in waiting:
            if job.id not in self._booked:
                self._book(job, now)

    def _compress(self, waiting: list[Job], now: float) -> None:
        profile = self._profile
        assert profile is not None
        self._loose = False
        for job in waiting:
            booking = self._booked.pop(job.id, None)
            if booking is None:
                self._book(job, now)
                continue
            if booking.start <= now:  # it cannot come any earlier
                self._booked[job.id] = booking
                continue
            profile.give(booking.hold, booking.start, booking.end)
            self._book(job, now)
            fitted = self._booked.get(job.id)
            self._loose = self._loose or fitted is None or fitted.start < booking.start

    def _book(self, job: Job, now: float) -> None:
        profile = self._profile
        assert profile is not None
        limit = limit_of(job)
        found = profile.earliest(job.request, limit, now)
        if found is None:
            return
        start, hold = found
        self._booked[job.id] = _Booking(job, start, start + limit, hold)
        profile.take(hold, start, start + limit)

    def _begin(self, booking: _Booking, now: float) -> None:
        """A job starts as booked."""
        profile = self._profile
        assert profile is not None
        del self._booked[booking.job.id]
        end = now + limit_of(booking.job)
        # A moment late, as timers are, is a moment later at its end.
        profile.take(booking.hold, booking.end, end)
        self._running[booking.job.id] = _Run(end, booking.hold)


def _or_of(classes: set[ClassId], queue: JobQueue, left_out: Callable[[Job], bool] | None) -> Callable[[Job], bool]:
    """Whether a job is left out, or of one of some classes: those that are set aside are in nobody's way."""
    return lambda job: queue.class_of(job).id in classes or (left_out is not None and left_out(job))
