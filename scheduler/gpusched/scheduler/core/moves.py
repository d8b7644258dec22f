"""How jobs move: started, taken back, queued again, ended. Each keeps queue, devices, indexes and changes in step."""

from __future__ import annotations

from collections import deque
from math import inf

from gpusched.scheduler.core import claims
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core.backfill import Start
from gpusched.scheduler.core.batch import MAX_LOSSES, Attempt, Usage
from gpusched.scheduler.core.deadlines import Due
from gpusched.scheduler.core.explain import Code, explain
from gpusched.scheduler.core.ground import Ground
from gpusched.scheduler.core.jobs import Job
from gpusched.scheduler.core.model import Condition
from gpusched.scheduler.core.records import LeaseRecord
from gpusched.scheduler.core.states import Finished, Gate, Lease, Outcome, Queued, Running, State

#: Ends from which one learns how long such work takes.
_INSTRUCTIVE = (State.COMPLETED, State.FAILED, State.TIMED_OUT)


class Moves(Ground):
    """A ground on which jobs can be moved."""

    # -- waiting -----------------------------------------------------------------------------------------

    def _enqueue(self, job: Job) -> None:
        """Put a waiting job into the queue."""
        job.expected = self.estimates.of(job)
        promoted = self.queue.order.promote_at(job)
        if promoted is not None:
            self._deadlines.add(promoted, Due.PROMOTE, job.id)
        self.queue.add(job)

    def _wait(self, job: Job, now: float, gate: Gate | None, message: str) -> None:
        """Put a job that has just left its lease, or waits already, (back) into the queue at its place."""
        if job in self.queue:
            self.queue.remove(job)
        since = job.status.since if isinstance(job.status, Queued) else job.submitted_at
        if gate is not None:
            claims.end(self, job.id)
        self._move(job, Queued(since, gate), now, message)
        self._enqueue(job)
        if gate in (Gate.BEGIN_TIME, Gate.BACKOFF) and job.not_before is not None:
            self._deadlines.add(job.not_before, Due.GATE, job.id)
        self._out += [do.JobChanged(job.id), do.QUEUE_CHANGED]
        self.pass_wanted = True

    def _regate(self, job: Job, now: float, message: str) -> None:
        """Look anew what keeps a waiting job back."""
        self._wait(job, now, job.gate_at(now), message)

    def _present(self, job: Job, now: float) -> None:
        """A sign of life: the client of a job that was passed over, or missed since a restart, is there."""
        if job.id in self.absent:
            self.absent.discard(job.id)
            job.missed = 0
            self._check_all_back()
            if self.settings.policy.preemption:
                # Its holder can be told to make room again.
                self.pass_wanted = True
            if job.preempting is not None and job.lease is not None:
                # It is told again, so that it need not have all of the window.
                self._deadlines.add(max(now, job.preempting[1]), Due.PREEMPT_OVER, job.id, job.lease.epoch)
        if isinstance(job.status, Queued) and job.status.gate in (Gate.UNCONFIRMED, Gate.REATTACH):
            self._regate(job, now, "awake again")

    def _check_all_back(self) -> None:
        if self.hold_until is not None and not any(isinstance(self.jobs[each].status, Queued) for each in self.absent):
            self.hold_until = None
            # What the others were told to wait for is over.
            self._out.append(do.QUEUE_CHANGED)
            self.pass_wanted = True

    # -- starting ----------------------------------------------------------------------------------------

    def _start(self, start: Start, now: float) -> None:
        job, devices, settings = start.job, start.devices, self.settings
        spec = job.spec
        batch = spec.batch is not None
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        confirm_by = None
        if not spec.auto_confirm:
            confirm_by = now + (settings.start_within if batch else settings.confirm_within)
        limit = job.time_limit
        lease = Lease(epoch, devices, now, confirm_by, None if limit is None else now + limit)
        if self.claims:
            claims.end(self, job.id)
        self.queue.remove(job)
        self.pool.take(devices, job.id)
        self.running[job.id] = job
        self.ends.add(job.id, lease.expires_at, devices)
        count = len(devices)
        self.usage.change(spec.owner.name, count, now)
        if self.quotas is not None:
            self.quotas.take(spec.owner.name, count)
        for passed in start.passed:
            passed.bypassed += 1
        if batch:
            job.attempt += 1
            # The end of an earlier run's stream means nothing to this one.
            job.attachment += 1
            job.requeue_asked = False
        said = "granted 1 GPU" if count == 1 else f"granted {count} GPUs"
        self._move(job, Running(now, lease, confirmed=spec.auto_confirm), now, said)
        self._changes.leases.append(LeaseRecord(epoch, job.id, devices, now, spec.request.shared))
        self._watch_lease(job, lease)
        self._out.append(do.StartRun(job.id, lease, job.attempt) if batch else do.Granted(job.id, lease))

    def _watch_lease(self, job: Job, lease: Lease, earliest: float = 0.0) -> None:
        """Put down what falls due for a lease; nothing that takes it before `earliest`."""
        settings, add = self.settings, self._deadlines.add
        if lease.confirm_by is not None:
            add(max(earliest, lease.confirm_by), Due.CONFIRM, job.id, lease.epoch)
        expires = lease.expires_at
        if expires is not None:
            if settings.limit_notice > -inf:
                near = expires - min(settings.limit_notice, (expires - lease.granted_at) / 10)
                add(near, Due.LIMIT_NEAR, job.id, lease.epoch)
            if settings.end_grace < inf:
                over = max(earliest, expires + self._grace(job))
                add(over, Due.LIMIT_OVER, job.id, lease.epoch)

    def _grace(self, job: Job) -> float:
        """Seconds from the word that a job must end until its lease is taken."""
        own = job.spec.batch.grace if job.spec.batch is not None else 0.0
        # The supervisor's own grace comes first, and then some, so that it is the one to end the work.
        return max(self.settings.end_grace, own + 5.0 if own else 0.0)

    # -- leaving a lease ---------------------------------------------------------------------------------

    def _let_go(self, job: Job, now: float) -> Lease | None:
        """Take the lease off a running job. Its state is still to be changed. Returns what it held."""
        lease = job.lease
        if lease is not None:
            devices, settings = lease.devices, self.settings
            del self.running[job.id]
            self.ends.remove(job.id)
            self.usage.change(job.spec.owner.name, -len(devices), now)
            if self.quotas is not None:
                self.quotas.give_back(job.spec.owner.name, len(devices))
            job.preempting = None
            if lease.epoch < self._first_epoch:
                # Of a job from before a restart, a device may be gone since.
                known = self.pool.devices
                devices = tuple([uuid for uuid in devices if uuid in known])
            condition = Condition.CHECKING if settings.check_released else Condition.CLEAN
            self.pool.give_back(devices, condition, job.id)
            self.absent.discard(job.id)
            job.missed = 0
            self._changes.ended.append((lease.epoch, now))
            self._out.append(do.DevicesChanged(devices))
            if settings.check_released:
                self._out.append(do.CheckDevices(devices, job.id))
            self.pass_wanted = True
        return lease

    def _withdraw(self, job: Job, lease: Lease, now: float) -> None:
        """Take an unconfirmed grant back. The holder never said that it ran anything, but look all the same."""
        spec = job.spec
        if job.cancelling is not None:
            self._end(job, now, State.CANCELLED, Outcome(message=job.cancelling[0]), "JOB_CANCELLED")
            return
        if spec.immediate or (spec.max_wait is not None and now >= job.submitted_at + spec.max_wait):
            self._give_up(job, now)
            return
        self._let_go(job, now)
        self._wait(job, now, Gate.UNCONFIRMED, "did not confirm its grant in time; passed over")
        self._out.append(do.Withdrawn(job.id, lease.epoch))

    def _finish_run(
        self, job: Job, now: float, state: State, outcome: Outcome, usage: Usage | None = None, reason: str = ""
    ) -> None:
        """A run ended: end the job, or queue it again as its owner wished.

        Args:
            state: what it ends as if it is not queued again.
            reason: for the holder's stream, empty if the holder ended it.
        """
        batch, lease = job.spec.batch, job.lease
        if lease is not None and state in _INSTRUCTIVE:
            self.estimates.learn(job, now - lease.granted_at)
        if batch is None:
            self._end(job, now, state, outcome, reason)
            return
        self._record_run(job, now, state, outcome, usage)
        again: str | None = None
        pause = 0.0
        if job.requeue_asked:
            again = outcome.message
        elif state is State.PREEMPTED:
            # To be preemptible is to be run again; it is no fault of the job's.
            job.losses = 0
            again = f"{outcome.message}; queued again"
        elif state is State.LOST:
            job.losses += 1
            if batch.requeue and job.losses < MAX_LOSSES:
                again = f"{outcome.message}; queued again"
        elif state is State.FAILED:
            job.losses = 0
            job.failures += 1
            wait = batch.retry.pause_after(job.failures, outcome)
            if wait is not None:
                pause = wait
                again = f"{outcome.message}; tried again in {pause:g} s"
        if again is None:
            self._end(job, now, state, outcome, reason)
            return
        self._let_go(job, now)
        job.requeue_asked = False
        job.cancelling = None
        job.not_before = now + pause if pause else None
        self._wait(job, now, job.gate_at(now), again)
        # The old run's stream is to be told that it is over.
        self._out.append(do.Ended(job.id, state, outcome.message, reason))

    def _lose_run(self, job: Job, now: float, message: str, reason: str = "") -> None:
        """A run ended and nobody reported how: as what it was asked to end for, if it was, else as lost."""
        if job.cancelling is not None:
            self._finish_run(job, now, State.CANCELLED, Outcome(message=job.cancelling[0]), reason=reason)
        elif job.preempting is not None:
            self._finish_run(job, now, State.PREEMPTED, Outcome(message=job.preempting[0]), reason=reason)
        else:
            self._finish_run(job, now, State.LOST, Outcome(message=message), reason=reason)

    def _record_run(self, job: Job, now: float, state: State, outcome: Outcome, usage: Usage | None = None) -> None:
        """Put the run of a batch job that ends now, if there is one, among its attempts."""
        lease = job.lease
        if lease is not None and job.spec.batch is not None:
            job.attempts.append(Attempt(job.attempt, lease.granted_at, now, state, outcome, lease.devices, usage))

    def _give_up(self, job: Job, now: float) -> None:
        """End a job that has waited for as long as it was to, or was not to wait at all."""
        if job.lease is not None:
            text = "did not confirm its grant in time, and was not to wait any longer"
        elif job.spec.immediate:
            text = "could not start at once"
        else:
            text = f"waited {job.spec.max_wait or 0:.10g} s, the most it was to wait"
        why = None if job.lease is not None else explain(self, job)
        if why is not None and why.code not in (Code.STARTING, Code.READY):
            text += f": {why.message}"
        reason = "NO_GPU_FREE" if job.spec.immediate else "MAX_WAIT"
        self._end(job, now, State.CANCELLED, Outcome(message=text), reason)

    def _end(self, job: Job, now: float, state: State, outcome: Outcome, reason: str = "") -> None:
        """End a job, and those that follow it and now never can start."""
        self._end_one(job, now, state, outcome, reason)
        if job.id not in self._followers:
            return
        # Not by recursion: a chain may have thousands of jobs.
        ended = deque([(job, state)])
        while ended:
            before, how = ended.popleft()
            for number in self._followers.pop(before.id, ()):
                # One that ended before its turn may be forgotten by now.
                follower = self.jobs.get(number)
                if follower is not None and self._predecessor_ended(follower, before, how, now):
                    ended.append((follower, State.CANCELLED))

    def _end_one(self, job: Job, now: float, state: State, outcome: Outcome, reason: str) -> None:
        lease = None
        if isinstance(job.status, Queued):
            claims.end(self, job.id)
            self.queue.remove(job)
            self._out.append(do.QUEUE_CHANGED)
            self.pass_wanted = True
        else:
            lease = self._let_go(job, now)
        self._move(job, Finished(now, state, outcome, lease), now, outcome.message)
        self._tokens.pop(job.token_hash, None)
        if job.spec.request_id and job.spec.batch is None:
            self._forget_request(job)
        if self.absent:
            self.absent.discard(job.id)
        if self.hold_until is not None:
            self._check_all_back()
        self._ended.append(job.id)
        while len(self._ended) > self.settings.keep_ended:
            forgotten = self.jobs.pop(self._ended.popleft())
            if forgotten.spec.request_id:
                self._forget_request(forgotten)
        self._out.append(do.Ended(job.id, state, outcome.message, reason))

    def _forget_request(self, job: Job) -> None:
        """A batch job's id is kept beyond its end, as a retried submit must not run it twice."""
        request_id = (job.spec.owner.uid, job.spec.request_id)
        if self._requests.get(request_id) == job.id:
            del self._requests[request_id]

    def _predecessor_ended(self, job: Job, ended: Job, state: State, now: float) -> bool:
        """Returns True if the follower had to be ended, too."""
        if not isinstance(job.status, Queued) or job.spec.batch is None:
            return False
        wanted = next(each.after for each in job.spec.batch.dependencies if each.job == ended.id)
        if not wanted.satisfied_by(state):
            text = f"job {ended.id}, which it was to follow ({wanted.value}), ended {state.value.replace('_', ' ')}"
            self._end_one(job, now, State.CANCELLED, Outcome(message=text), "JOB_CANCELLED")
            return True
        job.unmet.discard(ended.id)
        if not job.unmet and job.status.gate is Gate.DEPENDENCY:
            self._regate(job, now, f"job {ended.id}, which it follows, has ended")
        else:
            self._changes.jobs[job.id] = job
        return False
