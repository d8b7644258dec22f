"""What the engine does by itself: the pass, which starts jobs, and what falls due with time."""

from __future__ import annotations

from collections.abc import Iterator

from gpusched.scheduler.core import claims, recovery
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.backfill import Start
from gpusched.scheduler.core.bookings import Bookings
from gpusched.scheduler.core.deadlines import Due
from gpusched.scheduler.core.effects import NoticeKind
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.moves import Moves
from gpusched.scheduler.core.planner import Pass
from gpusched.scheduler.core.queue import JobClass
from gpusched.scheduler.core.states import Gate, Outcome, Queued, Running, State


class Duties(Moves):
    """Moves that nobody asks for."""

    def _make_pass(self, now: float) -> Pass:
        slots, after, policy = self.open_slots, self.settings.set_aside_after, self.settings.policy
        return Pass(self.queue, self.pool, self.ends, policy, now, after, slots, self.quotas, self.claims)

    # -- the pass ----------------------------------------------------------------------------------------

    def _on_pass(self, event: ev.Pass, now: float) -> None:
        last, fresh = self._last, self._fresh
        if self.claims:
            last = None
            claims.start_claimed(self, now)
        self.pass_wanted = False
        queue, single = self.queue, self.queue.order.single
        if not queue.considered and single and self.bookings is None:
            # Nobody waits that could start.
            self._reservations = ()
        elif self._may_start:
            if not single and queue.arrange(now):
                self._out.append(do.QUEUE_CHANGED)
            if self.bookings is not None:
                looked = self._make_pass(now)
                starts = self._booked_starts(self.bookings, looked, now)
            elif last is not None and last.still_holds(now, fresh):
                looked, starts = last, last.more(fresh, now)
            else:
                looked = self._make_pass(now)
                starts = looked.starts()
            started = False
            for start in starts:
                self._start(start, now)
                started = True
            if started:
                self._out.append(do.QUEUE_CHANGED)
            if not self.pool.all_in_service or looked.incomplete:
                self._plan_next_look(now)
            if self.bookings is None:
                self._reservations = looked.reservations
                self._last = looked
            else:
                self._plan_next_booking(now)
            if started and self.quotas is not None:
                # Whoever had to wait behind an owner who has now all that he may need not any more.
                self.pass_wanted = True
            if self.settings.policy.preemption:
                claims.make_room(self, now)
        if self._impatient:
            for job in [job for job in map(self.jobs.get, self._impatient) if job and isinstance(job.status, Queued)]:
                self._give_up(job, now)
            self._impatient.clear()

    def _booked_starts(self, bookings: Bookings, looked: Pass, now: float) -> Iterator[Start]:
        def aside(found: JobClass) -> bool:
            return looked.out_of_service(found, self.pool.eligible(found.request))

        left_out = self.left_out if self.quotas is not None or self.claims else None
        yield from bookings.starts(self.queue, self.pool, self.ends, now, self.open_slots, left_out, aside)
        if self.quotas is not None and self.settings.policy.borrow:
            yield from self._make_pass(now).borrowed()

    # -- deadlines ---------------------------------------------------------------------------------------

    def _plan_next_look(self, now: float) -> None:
        """Jobs are set aside at a time, not at an event: want a pass when the next of them is due."""
        after = self.settings.set_aside_after
        times = [
            due
            for found in self.queue.classes.values()
            if found.unavailable_since is not None and (due := found.unavailable_since + after) > now
        ]
        # One moment is enough: those found later are due later, and the pass made then plans the next.
        if times:
            self._look_again(min(times))

    def _plan_next_booking(self, now: float) -> None:
        """A booking comes at a time, not at an event."""
        at = None if self.bookings is None else self.bookings.next_start(now)
        if at is not None:
            self._look_again(at)

    def _look_again(self, at: float) -> None:
        if self._next_look is None or at < self._next_look:
            self._next_look = at
            self._deadlines.add(at, Due.LOOK_AGAIN)

    def _is_alive(self, what: Due, job_id: JobId, epoch: int) -> bool:
        """Whether a deadline may still come to mean something."""
        job = self.jobs.get(job_id)
        if job is None:
            return what in (Due.LOOK_AGAIN, Due.PREEMPT_LOOK, Due.HOLD_OVER, Due.WINDOW_PART, Due.WINDOW_OVER)
        match job.status:
            case Queued():
                return what in (Due.MAX_WAIT, Due.GATE, Due.PROMOTE)
            case Running(lease=lease, confirmed=confirmed):
                # An unconfirmed grant may be taken back, and then the wait goes on.
                return not confirmed if what is Due.MAX_WAIT else lease.epoch == epoch
            case _:
                return False

    def _expire(self, now: float) -> None:
        while (due := self._deadlines.pop_due(now)) is not None:
            what, job_id, epoch = due
            match what:
                case Due.LOOK_AGAIN:
                    self._next_look = None
                    self.pass_wanted = True
                    self._out.append(do.QUEUE_CHANGED)
                case Due.PREEMPT_LOOK:
                    if self._next_chance is None or self._next_chance <= now:
                        self._next_chance = None
                    self.pass_wanted = True
                case Due.HOLD_OVER:
                    recovery.pass_over_absent(self, now)
                case Due.WINDOW_PART:
                    recovery.count_absence(self, now)
                case Due.WINDOW_OVER:
                    recovery.give_up_absent(self, now)
                case _:
                    job = self.jobs.get(job_id)
                    if job is not None:
                        self._fall_due(what, job, epoch, now)

    def _fall_due(self, what: Due, job: Job, epoch: int, now: float) -> None:
        match what, job.status:
            case Due.MAX_WAIT, Queued():
                self._give_up(job, now)
            case Due.GATE, Queued(gate=Gate.BEGIN_TIME | Gate.BACKOFF):
                if job.gate_at(now) is None:
                    self._regate(job, now, "its time to start has come")
            case Due.PROMOTE, Queued() if not job.starved:
                at = self.queue.order.promote_at(job)
                if at is not None and at <= now:  # else it was by another policy
                    self.queue.change(job, _set_starved)
                    self._out.append(do.QUEUE_CHANGED)
                    self.pass_wanted = True
            case Due.CONFIRM, Running(lease=lease, confirmed=False) if lease.epoch == epoch:
                if job.spec.batch is None:
                    self._withdraw(job, lease, now)
                else:
                    self._lose_run(job, now, "its supervisor did not come for the lease in time", "LEASE_REVOKED")
            case Due.LIMIT_NEAR, Running(lease=lease) if lease.epoch == epoch:
                self._out.append(do.Notify(job.id, NoticeKind.TIME_LIMIT, "the time limit is near", lease.expires_at))
            case Due.LIMIT_OVER, Running(lease=lease) if lease.epoch == epoch:
                outcome = Outcome(message="outlived its time limit")
                self._finish_run(job, now, State.TIMED_OUT, outcome, reason="LEASE_REVOKED")
            case Due.PREEMPT_OVER, Running(lease=lease) if lease.epoch == epoch and job.preempting:
                self._lose_run(job, now, job.preempting[0], "LEASE_REVOKED")
            case Due.CANCEL_OVER, Running(lease=lease) if lease.epoch == epoch and job.cancelling:
                outcome = Outcome(message=job.cancelling[0])
                self._finish_run(job, now, State.CANCELLED, outcome, reason="LEASE_REVOKED")


def _set_starved(job: Job) -> None:
    job.starved = True
