"""The engine: events in, effects out. The only place where jobs, leases and devices change.

`handle` fixes one `now`, lets due deadlines happen first, then handles the event. It performs no I/O and
reads no clock, so the same events give the same effects, in a test, in a replay and in the live server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, assert_never

from gpusched.scheduler.core import admission, claims, recovery, trial
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.deadlines import Due
from gpusched.scheduler.core.effects import Effect, NoticeKind
from gpusched.scheduler.core.errors import Aborted, NotSatisfiable, Unavailable
from gpusched.scheduler.core.jobs import Job, JobId, JobSpec
from gpusched.scheduler.core.model import NodeInfo
from gpusched.scheduler.core.preemption import Choice
from gpusched.scheduler.core.settings import Settings
from gpusched.scheduler.core.sharing import stamped
from gpusched.scheduler.core.states import LEGAL_MOVES, Finished, Gate, Outcome, Queued, Running, State
from gpusched.scheduler.core.upkeep import Upkeep

#: Holders send the signal so many seconds early: they kill before the deadline, and have clocks of their own.
_SIGNAL_SLACK = 3.0


class Engine(Upkeep):
    """One scheduler.

    Args:
        nodes: what the inventory found.
        settings: knobs.
        first_job: number of the first job.
        first_epoch: fencing token of the first grant; must be above all of earlier runs.
    """

    def __init__(
        self, nodes: tuple[NodeInfo, ...], settings: Settings | None = None, *, first_job: int = 1, first_epoch: int = 1
    ) -> None:
        super().__init__(nodes, settings, first_job=first_job, first_epoch=first_epoch)
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            ev.Submit: self._on_submit,
            ev.Attach: self._on_attach,
            ev.Leave: self._on_leave,
            ev.Confirm: self._on_confirm,
            ev.Release: self._on_release,
            ev.Cancel: self._on_cancel,
            ev.Update: self._on_update,
            ev.NotStarted: self._on_not_started,
            ev.Requeue: self._on_requeue,
            ev.Force: self._on_force,
            ev.Halt: self._on_halt,
            ev.Observe: self._on_observe,
            ev.Drain: self._on_drain,
            ev.Pause: self._on_pause,
            ev.SetPolicy: self._on_set_policy,
            ev.Pass: self._on_pass,
            ev.Tick: lambda event, now: None,
        }

    # -- the one way in ----------------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: float) -> list[Effect]:
        """Let an event happen.

        Args:
            event: what happened.
            now: seconds on a clock that never goes back.

        Returns:
            What is to be done, in this order.

        Raises:
            DomainError: the event is refused and has changed nothing (but a late Confirm wakes its job). Deadlines
                that were due have happened all the same. The effects of both come with the next call.
        """
        deadlines = self._deadlines
        if deadlines.first <= now:
            self._expire(now)
        self._handlers[type(event)](event, now)
        if deadlines.crowded:
            deadlines.sweep(self._is_alive)
        out, self._out = self._out, []
        return out

    def restore(
        self, jobs: list[Job], settings: dict[str, str], now: float, *, shift: float = 0.0, mark: str | None = None
    ) -> None:
        """Take over what an earlier run of the server left, before the first event. See `recovery.restore`."""
        recovery.restore(self, jobs, settings, now, shift, mark)

    def dry_run(self, spec: JobSpec, now: float) -> tuple[Job, tuple[str, ...] | None]:
        """What would become of a job if it were submitted now. See `trial.dry_run`."""
        return trial.dry_run(self, self._new_job, spec, now)

    def would_preempt(self, job: Job, now: float) -> Choice | None:
        """Whom a job that a dry run has found to wait would have preempted for it, None for nobody."""
        return claims.would_make_room(self, job, now)

    # -- asking for GPUs ---------------------------------------------------------------------------------

    def _new_job(self, spec: JobSpec, now: float) -> Job:
        if spec.request.shared:
            spec = replace(spec, request=stamped(spec.request, spec.owner.uid))
        limit = spec.time_limit if spec.time_limit is not None else self.settings.default_limit
        if limit is None:
            limit = self.settings.max_limit
        return Job(
            JobId(self._next_job),
            spec,
            now,
            spec.priority,
            spec.name,
            Queued(now),
            spec.token_hash,
            spec.holder,
            time_limit=limit,
        )

    def _on_submit(self, event: ev.Submit, now: float) -> None:
        spec, settings = event.spec, self.settings
        if self.halted is not None:
            raise Unavailable(self.halted, reason="STORE", retry_after=1.0)
        admission.check(spec, self.pool, settings)
        if self.quotas is not None:
            self.quotas.check(spec.owner.name, spec.request.gpus)
        admission.check_room(len(self.queue), settings)
        job = self._new_job(spec, now)
        if spec.batch is not None:
            job.held, job.not_before = spec.batch.held, spec.batch.begin_at
            job.unmet = admission.unmet(spec.batch, self.jobs, dict(event.ended))
            job.status = Queued(now, job.gate_at(now))
            self._changes.sync = True
        self._next_job += 1
        self.jobs[job.id] = job
        self._note(job, now, "accepted")
        if job.token_hash:
            self._tokens[job.token_hash] = job.id
        if spec.request_id:
            self._requests[spec.owner.uid, spec.request_id] = job.id
        for followed in job.unmet:
            self._followers.setdefault(JobId(followed), []).append(job.id)
        self._enqueue(job)
        if spec.immediate or spec.max_wait == 0:
            # Even one that is not to wait at all gets its pass: the GPUs may be free.
            self._impatient.append(job.id)
        if spec.max_wait:
            self._deadlines.add(now + spec.max_wait, Due.MAX_WAIT, job.id)
        if job.not_before is not None and job.not_before > now:
            self._deadlines.add(job.not_before, Due.GATE, job.id)
        self._out += (do.Accepted(job.id), do.QUEUE_CHANGED)
        self._pass_wanted = True
        if self._last is not None and job.awake:
            self._fresh.append(job)

    def _on_attach(self, event: ev.Attach, now: float) -> None:
        job = self.job(event.job)
        if isinstance(job.status, Finished):
            raise Aborted(f"job {job.id} has ended: {job.status.outcome.message}", reason="JOB_ENDED")
        job.attachment += 1
        if event.holder is not None:
            job.holder = event.holder
        if event.token_hash:
            self._tokens.pop(job.token_hash, None)
            job.token_hash = event.token_hash
            self._tokens[event.token_hash] = job.id
        self._changes.jobs[job.id] = job
        if job.spec.batch is None:
            self._note(job, now, "re-attached")
        self._present(job, now)
        self._out.append(do.Attached(job.id, job.attachment))

    def _on_leave(self, event: ev.Leave, now: float) -> None:
        job = self.jobs.get(event.job)
        if job is None or job.attachment != event.attachment:
            return
        match job.status:
            case Queued() if job.spec.batch is None:
                self._end(job, now, State.CANCELLED, Outcome(message="left the queue"))
            case Running(confirmed=False) if job.spec.batch is not None:
                # Its supervisor may have died before its agent had a share in the stream, so the command may still
                # live: the agent tells when it does not, or the supervisor comes again, or time runs out.
                pass
            case Running():
                who = "supervisor" if job.spec.batch is not None else "holder"
                self._lose_run(job, now, f"its {who} went away without a word")
            case _:
                pass

    def _on_confirm(self, event: ev.Confirm, now: float) -> None:
        job = self.job(event.job)
        match job.status:
            case Running(lease=lease) if lease.epoch == event.epoch:
                if not job.status.confirmed:
                    job.losses = 0
                    self._move(job, Running(job.status.since, lease, confirmed=True), now, "confirmed")
                    self._out.append(do.JobChanged(job.id))
                    if self.settings.policy.preemption and job.spec.preemptible:
                        # From now on it can be told to make room.
                        self.pass_wanted = True
            case Queued(gate=Gate.UNCONFIRMED):
                # A late answer is a sign of life: it counts among those who wait again, at its old place.
                self._present(job, now)
                raise Aborted(
                    "the grant was not confirmed in time and was taken back; the job waits again at its old place",
                    reason="GRANT_EXPIRED",
                )
            case Queued():
                raise Aborted("the job has no grant to confirm; it waits", reason="GRANT_EXPIRED")
            case Running():
                raise Aborted("that grant is not the one that the job has (any more)", reason="GRANT_EXPIRED")
            case Finished():
                raise Aborted(f"job {job.id} has ended: {job.status.outcome.message}", reason="JOB_ENDED")
            case _:
                assert_never(job.status)

    # -- ending ------------------------------------------------------------------------------------------

    def _on_release(self, event: ev.Release, now: float) -> None:
        job = self.job(event.job)
        if not isinstance(job.status, Running) or job.status.lease.epoch != event.epoch:
            raise Aborted(f"job {job.id} does not hold that lease (any more)", reason="LEASE_LOST")
        outcome = event.outcome
        if job.cancelling is not None:
            state, said = State.CANCELLED, job.cancelling[0]
        elif event.timed_out:
            state, said = State.TIMED_OUT, "reached its time limit"
        elif job.preempting is not None and _was_signalled(job, job.preempting[1], now):
            state, said = State.PREEMPTED, job.preempting[0]
        elif outcome.signal:
            state, said = State.FAILED, f"killed by signal {outcome.signal}"
        elif outcome.exit_status:
            state, said = State.FAILED, f"exit {outcome.exit_status}"
        elif outcome.exit_status == 0:
            state, said = State.COMPLETED, "exit 0"
        else:
            state, said = State.COMPLETED, "released"
        # A holder that was asked to end may give the very words back.
        message = f"{said}: {outcome.message}" if outcome.message not in ("", said) else said
        if message != outcome.message:
            outcome = _outcome(outcome.exit_status, outcome.signal, message)
        self._finish_run(job, now, state, outcome, event.usage)

    def _on_not_started(self, event: ev.NotStarted, now: float) -> None:
        job = self.jobs.get(event.job)
        if job is None or not isinstance(job.status, Running) or job.status.lease.epoch != event.epoch:
            return
        # One that has confirmed did start, whatever became of who started it.
        if not job.status.confirmed:
            self._lose_run(job, now, event.message, "LEASE_REVOKED")

    def _on_cancel(self, event: ev.Cancel, now: float) -> None:
        job = self.job(event.job)
        match job.status:
            case Queued():
                self._end(job, now, State.CANCELLED, Outcome(message=event.message), "JOB_CANCELLED")
            case Running():
                job.requeue_asked = False
                self._changes.jobs[job.id] = job
                self._ask_to_end(job, event.message, now)
            case Finished():
                raise NotSatisfiable(
                    f"job {job.id} has ended already ({job.state.value.replace('_', ' ')})",
                    reason="JOB_ENDED",
                    field="job_id",
                )
            case _:
                assert_never(job.status)

    def _on_requeue(self, event: ev.Requeue, now: float) -> None:
        job = self.job(event.job)
        if job.spec.batch is None or not isinstance(job.status, Running):
            what = "it is no batch job" if job.spec.batch is None else f"it is {job.state.value}"
            raise NotSatisfiable(f"job {job.id} cannot be queued again: {what}", field="job_id")
        job.requeue_asked = True
        self._changes.jobs[job.id] = job
        self._ask_to_end(job, event.message, now)

    def _ask_to_end(self, job: Job, message: str, now: float) -> None:
        lease = job.lease
        if job.cancelling is not None or lease is None:
            return
        deadline = now + self._grace(job)
        job.cancelling = (message, deadline)
        self._deadlines.add(deadline, Due.CANCEL_OVER, job.id, lease.epoch)
        self._note(job, now, f"asked to end: {message}")
        # For who lacked just these devices it may now be worth to preempt the rest.
        if self.settings.policy.preemption:
            self.pass_wanted = True
        self._out += [do.Notify(job.id, NoticeKind.CANCEL, message, deadline), do.JobChanged(job.id)]

    def _on_force(self, event: ev.Force, now: float) -> None:
        job = self.job(event.job)
        allowed = [state for state in LEGAL_MOVES[job.state] if state is not State.RUNNING]
        if event.state not in allowed:
            names = ", ".join(state.name for state in allowed)
            raise NotSatisfiable(
                f"state: job {job.id} is {job.state.name}; it can be moved to {names or 'no other state'}",
                reason="ILLEGAL_MOVE",
                field="state",
            )
        outcome = Outcome(message=event.message)
        # A run that is taken off its lease by hand and goes on in the queue counts as cancelled.
        self._record_run(job, now, State.CANCELLED if event.state is State.QUEUED else event.state, outcome)
        if event.state is State.QUEUED:
            self._let_go(job, now)
            job.cancelling = None
            self._wait(job, now, None if job.spec.batch else Gate.UNCONFIRMED, event.message)
            self._out.append(do.Ended(job.id, State.CANCELLED, event.message, "LEASE_REVOKED"))
            return
        self._end(job, now, event.state, outcome, "LEASE_REVOKED" if job.lease else "JOB_CANCELLED")

    # -- changing ----------------------------------------------------------------------------------------

    def _on_update(self, event: ev.Update, now: float) -> None:
        job = self.job(event.job, "job.id")
        if isinstance(job.status, Finished):
            raise NotSatisfiable(f"job {job.id} has ended and cannot be changed", reason="JOB_ENDED", field="job.id")
        admission.check_update(event, job, self.settings)
        by = f" by {event.by}" if event.by else ""
        if event.priority is not None and event.priority != job.priority:
            old = job.priority
            if job not in self.queue:
                job.priority = event.priority
                if self.settings.policy.preemption:
                    self.pass_wanted = True
            else:
                self.queue.change(job, _set_priority(event.priority))
                self._out.append(do.QUEUE_CHANGED)
                self.pass_wanted = True
            self._note(job, now, f"priority {old} -> {job.priority}{by}")
        if event.name is not None:
            job.name = event.name
        if event.time_limit is not None:
            self.queue.change(job, self._set_limit(event.time_limit))
            if self.bookings is not None:
                self.bookings.refit(job)
            claims.refit(self, job)
            self.pass_wanted = True
            self._note(job, now, f"time limit {event.time_limit:g} s{by}")
        if event.held is not None and event.held != job.held:
            job.held = event.held
            self._regate(job, now, f"{'held' if job.held else 'no longer held'}{by}")
        self._changes.jobs[job.id] = job
        self._out.append(do.JobChanged(job.id))

    def _set_limit(self, limit: float) -> Callable[[Job], None]:
        def change(job: Job) -> None:
            job.time_limit = limit
            job.expected = self.estimates.of(job)

        return change


#: Most work ends like other work.
_outcome = lru_cache(maxsize=256)(Outcome)


def _was_signalled(job: Job, deadline: float, now: float) -> bool:
    """Whether the command of a job that is to be preempted by then has been told, so that its end is no surprise."""
    before = float("inf") if job.spec.signal is None else job.spec.signal[1]
    return now >= deadline - before - _SIGNAL_SLACK


def _set_priority(priority: int) -> Callable[[Job], None]:
    def change(job: Job) -> None:
        job.priority = priority

    return change
