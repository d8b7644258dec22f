"""The engine: events in, effects out. The only place where jobs, leases and devices change.

`handle` fixes one `now`, lets due deadlines happen first, then handles the event. It performs no I/O and
reads no clock, so the same events give the same effects, in a test, in a replay and in the live server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, assert_never

from gpusched.scheduler.core import admission
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.deadlines import Deadlines, Due
from gpusched.scheduler.core.effects import Effect, NoticeKind
from gpusched.scheduler.core.errors import Aborted, NotFound, NotSatisfiable
from gpusched.scheduler.core.jobs import Job, JobId, JobSpec
from gpusched.scheduler.core.model import Condition, NodeInfo
from gpusched.scheduler.core.planner import Start, plan
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.core.queue import JobQueue
from gpusched.scheduler.core.settings import Settings
from gpusched.scheduler.core.states import Finished, Lease, Outcome, Queued, Running, State


class Engine:
    """The state of one scheduler.

    Args:
        nodes: what the inventory found.
        settings: knobs.
        first_job: number of the first job.
        first_epoch: fencing token of the first grant; must be above all of earlier runs.
    """

    def __init__(
        self,
        nodes: tuple[NodeInfo, ...],
        settings: Settings | None = None,
        *,
        first_job: int = 1,
        first_epoch: int = 1,
    ) -> None:
        self.settings = settings or Settings()
        self.pool = Pool(nodes)
        self.queue = JobQueue()
        self.jobs: dict[JobId, Job] = {}
        self.running: dict[JobId, Job] = {}
        self.paused: str | None = None
        #: True when a Pass might start something; the driver then sends one, once for a burst of events.
        self.pass_wanted = False
        self._ended: deque[JobId] = deque()
        self._tokens: dict[bytes, JobId] = {}
        self._requests: dict[tuple[int, str], JobId] = {}
        self._deadlines = Deadlines()
        self._next_job = first_job
        self._next_epoch = first_epoch
        self._impatient: list[JobId] = []
        self._next_look: float | None = None
        self._out: list[Effect] = []
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            ev.Submit: self._on_submit,
            ev.Attach: self._on_attach,
            ev.Leave: self._on_leave,
            ev.Confirm: self._on_confirm,
            ev.Release: self._on_release,
            ev.Cancel: self._on_cancel,
            ev.Update: self._on_update,
            ev.Observe: self._on_observe,
            ev.Drain: self._on_drain,
            ev.Pause: self._on_pause,
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
        self._expire(now)
        self._handlers[type(event)](event, now)
        self._deadlines.sweep(self._is_alive)
        out, self._out = self._out, []
        return out

    # -- questions ---------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When to send a Tick at the latest, None if nothing is due ever."""
        return self._deadlines.next()

    def job(self, job_id: JobId) -> Job:
        """Raises NotFound."""
        found = self.jobs.get(job_id)
        if found is None:
            raise NotFound(f"there is no job {job_id} (ended jobs are remembered for a while only)", field="job_id")
        return found

    def job_by_token(self, token_hash: bytes) -> Job | None:
        """The job that waits or runs under a secret, None if there is none."""
        job_id = self._tokens.get(token_hash)
        return None if job_id is None else self.jobs[job_id]

    def job_by_request(self, uid: int, request_id: str) -> Job | None:
        """The job that a user's call with this id made, None if there is none that has not ended."""
        job_id = self._requests.get((uid, request_id))
        return None if job_id is None else self.jobs[job_id]

    def ended_jobs(self) -> list[Job]:
        """Remembered jobs that have ended, newest first."""
        return [self.jobs[job_id] for job_id in reversed(self._ended)]

    def dry_run(self, spec: JobSpec, now: float) -> tuple[Job, tuple[str, ...] | None]:
        """What would become of a job if it were submitted now: the same pass on the same state, then undone.

        Returns:
            The job as it would be, in the queue's order though not in it, and its devices, None if it would wait.
        """
        admission.check(spec, self.pool)
        job = Job(JobId(self._next_job), spec, now, spec.priority, spec.name, Queued(now), spec.token_hash)
        taken: list[Start] = []
        got: tuple[str, ...] | None = None
        findings = self.queue.findings()
        self.queue.add(job)
        if self.paused is None:
            for start in plan(self.queue, self.pool, now, self.settings.set_aside_after):
                self.pool.take(start.devices, start.job.id)
                self.queue.remove(start.job)
                taken.append(start)
                if start.job is job:
                    got = start.devices
        for start in taken:
            self.pool.untake(start.devices)
            if start.job is not job:
                self.queue.add(start.job)
        if got is None:
            self.queue.remove(job)
        self.queue.put_back(findings)
        return job, got

    # -- events ------------------------------------------------------------------------------------------

    def _on_submit(self, event: ev.Submit, now: float) -> None:
        spec = event.spec
        admission.check(spec, self.pool)
        job = Job(JobId(self._next_job), spec, now, spec.priority, spec.name, Queued(now), spec.token_hash)
        self._next_job += 1
        job.note(now, "accepted")
        self.jobs[job.id] = job
        if job.token_hash:
            self._tokens[job.token_hash] = job.id
        if spec.request_id:
            self._requests[spec.owner.uid, spec.request_id] = job.id
        self.queue.add(job)
        if spec.immediate or spec.max_wait == 0:
            # Even one that is not to wait at all gets its pass: the GPUs may be free.
            self._impatient.append(job.id)
        if spec.max_wait:
            self._deadlines.add(now + spec.max_wait, Due.MAX_WAIT, job.id)
        self._out += [do.Accepted(job.id), do.JobChanged(job.id), do.QueueChanged()]
        self.pass_wanted = True

    def _on_attach(self, event: ev.Attach, now: float) -> None:
        job = self.job(event.job)
        if isinstance(job.status, Finished):
            raise Aborted(f"job {job.id} has ended: {job.status.outcome.message}", reason="JOB_ENDED")
        job.attachment += 1
        if event.token_hash:
            self._tokens.pop(job.token_hash, None)
            job.token_hash = event.token_hash
            self._tokens[event.token_hash] = job.id
        job.note(now, "re-attached")
        if isinstance(job.status, Queued) and not job.status.awake:
            self._requeue(job, Queued(job.status.since), now, "awake again")
        self._out.append(do.Attached(job.id, job.attachment))

    def _on_leave(self, event: ev.Leave, now: float) -> None:
        job = self.jobs.get(event.job)
        if job is None or job.attachment != event.attachment:
            return
        match job.status:
            case Queued():
                self._end(job, now, State.CANCELLED, Outcome(message="left the queue"))
            case Running() if job.cancelling is not None:
                self._end(job, now, State.CANCELLED, Outcome(message=job.cancelling[0]))
            case Running():
                self._end(job, now, State.LOST, Outcome(message="its holder went away without a word"))
            case Finished():
                pass
            case _:
                assert_never(job.status)

    def _on_confirm(self, event: ev.Confirm, now: float) -> None:
        job = self.job(event.job)
        match job.status:
            case Running(lease=lease) if lease.epoch == event.epoch:
                if not job.status.confirmed:
                    job.move(Running(job.status.since, lease, confirmed=True), now, "confirmed")
            case Queued(awake=False):
                # A late answer is a sign of life: it counts among those who wait again, at its old place.
                self._requeue(job, Queued(job.status.since, awake=True), now, "awake again")
                raise Aborted(
                    "the grant was not confirmed in time and was taken back; the job waits again at its old place",
                    reason="GRANT_EXPIRED",
                )
            case Queued():
                raise Aborted("the job has no grant to confirm; it waits", reason="GRANT_EXPIRED")
            case Running():
                raise Aborted("the grant was superseded by a newer one", reason="GRANT_EXPIRED")
            case Finished():
                raise Aborted(f"job {job.id} has ended: {job.status.outcome.message}", reason="JOB_ENDED")
            case _:
                assert_never(job.status)

    def _on_release(self, event: ev.Release, now: float) -> None:
        job = self.job(event.job)
        if not isinstance(job.status, Running) or job.status.lease.epoch != event.epoch:
            raise Aborted(f"job {job.id} does not hold that lease (any more)", reason="LEASE_LOST")
        outcome = event.outcome
        if event.timed_out:
            state, said = State.TIMED_OUT, "reached its time limit"
        elif job.cancelling is not None:
            state, said = State.CANCELLED, job.cancelling[0]
        elif outcome.signal:
            state, said = State.FAILED, f"killed by signal {outcome.signal}"
        elif outcome.exit_status:
            state, said = State.FAILED, f"exit {outcome.exit_status}"
        elif outcome.exit_status == 0:
            state, said = State.COMPLETED, "exit 0"
        else:
            state, said = State.COMPLETED, "released"
        message = f"{said}: {outcome.message}" if outcome.message else said
        self._end(job, now, state, Outcome(outcome.exit_status, outcome.signal, message))

    def _on_cancel(self, event: ev.Cancel, now: float) -> None:
        job = self.job(event.job)
        match job.status:
            case Queued():
                self._end(job, now, State.CANCELLED, Outcome(message=event.message), "JOB_CANCELLED")
            case Running():
                if job.cancelling is None:
                    deadline = now + self.settings.end_grace
                    job.cancelling = (event.message, deadline)
                    self._deadlines.add(deadline, Due.CANCEL_OVER, job.id, job.status.lease.epoch)
                    job.note(now, f"asked to end: {event.message}")
                    self._out += [
                        do.Notify(job.id, NoticeKind.CANCEL, event.message, deadline),
                        do.JobChanged(job.id),
                    ]
            case Finished():
                raise NotSatisfiable(
                    f"job {job.id} has ended already ({job.state.value.replace('_', ' ')})",
                    reason="JOB_ENDED",
                    field="job_id",
                )
            case _:
                assert_never(job.status)

    def _on_update(self, event: ev.Update, now: float) -> None:
        job = self.job(event.job)
        if isinstance(job.status, Finished):
            raise NotSatisfiable(f"job {job.id} has ended and cannot be changed", reason="JOB_ENDED", field="job.id")
        if event.priority is not None:
            admission.check_priority(event.priority)
        if event.name is not None:
            admission.check_name(event.name)
        if event.priority is not None and event.priority != job.priority:
            job.note(now, f"priority {job.priority} -> {event.priority}{event.by and f' by {event.by}'}")
            if job not in self.queue:
                job.priority = event.priority
            else:
                self.queue.change_priority(job, event.priority)
                self._out.append(do.QueueChanged())
                self.pass_wanted = True
        if event.name is not None:
            job.name = event.name
        self._out.append(do.JobChanged(job.id))

    def _on_observe(self, event: ev.Observe, now: float) -> None:
        changed = []
        for seen in event.seen:
            device = self.pool.devices[seen.uuid]
            condition, message = seen.condition, seen.message
            holder = device.holder
            if holder is not None and condition is not Condition.UNHEALTHY:
                if condition is Condition.FOREIGN and device.warned != holder:
                    device.warned = holder
                    self._out.append(do.Notify(holder, NoticeKind.GPU_FOREIGN, message))
                condition, message = Condition.CLEAN, ""
            before = device.condition
            if not self.pool.observe(seen.uuid, condition, message):
                continue
            changed.append(seen.uuid)
            if holder is not None and condition is Condition.UNHEALTHY and before is not Condition.UNHEALTHY:
                self._out.append(do.Notify(holder, NoticeKind.GPU_UNHEALTHY, message))
        if changed:
            self._out += [do.DevicesChanged(tuple(changed)), do.QueueChanged()]
            self.pass_wanted = True

    def _on_drain(self, event: ev.Drain, now: float) -> None:
        if event.node:
            self.pool.drain_node(event.node, event.reason)
            devices = tuple(device.uuid for device in self.pool.nodes[event.node].devices)
        else:
            self.pool.drain(event.devices, event.reason)
            devices = event.devices
        if event.reason is not None:
            what = f"node {event.node}" if event.node else "a GPU of this lease"
            told = {holder for uuid in devices if (holder := self.pool.devices[uuid].holder) is not None}
            for holder in sorted(told):
                text = f"{what} is taken out of service ({event.reason}); finish when you can"
                self._out.append(do.Notify(holder, NoticeKind.DRAIN, text))
        self._out += [do.DevicesChanged(devices), do.QueueChanged()]
        self.pass_wanted = True

    def _on_pause(self, event: ev.Pause, now: float) -> None:
        self.paused = event.reason
        self._out.append(do.QueueChanged())
        self.pass_wanted = True

    def _on_pass(self, event: ev.Pass, now: float) -> None:
        self.pass_wanted = False
        if self.paused is None:
            started = False
            for start in plan(self.queue, self.pool, now, self.settings.set_aside_after):
                self._start(start, now)
                started = True
            if started:
                self._out.append(do.QueueChanged())
            self._plan_next_look(now)
        for job in [job for job in map(self.jobs.get, self._impatient) if job and isinstance(job.status, Queued)]:
            self._give_up(job, now)
        self._impatient.clear()

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
        if times and self._next_look is None:
            self._next_look = min(times)
            self._deadlines.add(self._next_look, Due.LOOK_AGAIN)

    def _is_alive(self, what: Due, job_id: JobId, epoch: int) -> bool:
        """Whether a deadline may still come to mean something."""
        if what is Due.LOOK_AGAIN:
            return True
        job = self.jobs.get(job_id)
        match job and job.status:
            case Queued():
                return what is Due.MAX_WAIT
            case Running(lease=lease, confirmed=confirmed):
                # An unconfirmed grant may be taken back, and then the wait goes on.
                return not confirmed if what is Due.MAX_WAIT else lease.epoch == epoch
            case _:
                return False

    def _expire(self, now: float) -> None:
        while (due := self._deadlines.pop_due(now)) is not None:
            what, job_id, epoch = due
            if what is Due.LOOK_AGAIN:
                self._next_look = None
                self.pass_wanted = True
                self._out.append(do.QueueChanged())
                continue
            job = self.jobs.get(job_id)
            if job is None:
                continue
            match what, job.status:
                case Due.MAX_WAIT, Queued():
                    self._give_up(job, now)
                case Due.CONFIRM, Running(lease=lease, confirmed=False) if lease.epoch == epoch:
                    self._withdraw(job, lease, now)
                case Due.LIMIT_NEAR, Running(lease=lease) if lease.epoch == epoch:
                    self._out.append(
                        do.Notify(job.id, NoticeKind.TIME_LIMIT, "the time limit is near", lease.expires_at)
                    )
                case Due.LIMIT_OVER, Running(lease=lease) if lease.epoch == epoch:
                    self._end(job, now, State.TIMED_OUT, Outcome(message="outlived its time limit"), "LEASE_REVOKED")
                case Due.CANCEL_OVER, Running(lease=lease) if lease.epoch == epoch and job.cancelling:
                    message = job.cancelling[0]
                    self._end(job, now, State.CANCELLED, Outcome(message=message), "LEASE_REVOKED")

    # -- moves -------------------------------------------------------------------------------------------

    def _start(self, start: Start, now: float) -> None:
        job, settings = start.job, self.settings
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        limit = job.spec.time_limit
        confirm_by = None if job.spec.auto_confirm else now + settings.confirm_within
        lease = Lease(epoch, start.devices, now, confirm_by, None if limit is None else now + limit)
        self.queue.remove(job)
        self.pool.take(start.devices, job.id)
        self.running[job.id] = job
        job.move(Running(now, lease, confirmed=job.spec.auto_confirm), now, f"granted {len(start.devices)} GPU(s)")
        if confirm_by is not None:
            self._deadlines.add(confirm_by, Due.CONFIRM, job.id, epoch)
        if limit is not None and lease.expires_at is not None:
            near = lease.expires_at - min(settings.limit_notice, limit / 10)
            self._deadlines.add(near, Due.LIMIT_NEAR, job.id, epoch)
            self._deadlines.add(lease.expires_at + settings.end_grace, Due.LIMIT_OVER, job.id, epoch)
        self._out += [do.Granted(job.id, lease), do.JobChanged(job.id), do.DevicesChanged(start.devices)]

    def _withdraw(self, job: Job, lease: Lease, now: float) -> None:
        """Take an unconfirmed grant back. The holder never said that it ran anything, but look all the same."""
        spec = job.spec
        if job.cancelling is not None:
            self._end(job, now, State.CANCELLED, Outcome(message=job.cancelling[0]), "JOB_CANCELLED")
            return
        if spec.immediate or (spec.max_wait is not None and now >= job.submitted_at + spec.max_wait):
            self._give_up(job, now)
            return
        del self.running[job.id]
        self.pool.give_back(lease.devices, Condition.CHECKING)
        job.move(Queued(job.submitted_at, awake=False), now, "did not confirm its grant in time; passed over")
        self.queue.add(job)
        self._out += [
            do.Withdrawn(job.id, lease.epoch),
            do.JobChanged(job.id),
            do.QueueChanged(),
            do.DevicesChanged(lease.devices),
            do.CheckDevices(lease.devices, job.id),
        ]
        self.pass_wanted = True

    def _requeue(self, job: Job, status: Queued, now: float, message: str) -> None:
        self.queue.remove(job)
        job.move(status, now, message)
        self.queue.add(job)
        self._out += [do.JobChanged(job.id), do.QueueChanged()]
        self.pass_wanted = True

    def _give_up(self, job: Job, now: float) -> None:
        """End a job that has waited for as long as it was to, or was not to wait at all."""
        if job.lease is not None:
            text = "did not confirm its grant in time, and was not to wait any longer"
        elif job.spec.immediate:
            text = "could not start at once"
        else:
            text = f"waited {job.spec.max_wait or 0:.10g} s, the most it was to wait"
        reason = "NO_GPU_FREE" if job.spec.immediate else "MAX_WAIT"
        self._end(job, now, State.CANCELLED, Outcome(message=text), reason)

    def _end(self, job: Job, now: float, state: State, outcome: Outcome, reason: str = "") -> None:
        lease = job.lease
        if lease is None:
            self.queue.remove(job)
            self._out.append(do.QueueChanged())
        else:
            del self.running[job.id]
            self.pool.give_back(lease.devices, Condition.CHECKING)
        job.move(Finished(now, state, outcome, lease), now, outcome.message)
        self._tokens.pop(job.token_hash, None)
        request_id = (job.spec.owner.uid, job.spec.request_id)
        if self._requests.get(request_id) == job.id:
            del self._requests[request_id]
        self._ended.append(job.id)
        if len(self._ended) > self.settings.keep_ended:
            del self.jobs[self._ended.popleft()]
        self._out += [do.Ended(job.id, state, outcome.message, reason), do.JobChanged(job.id)]
        if lease is not None:
            self._out += [do.DevicesChanged(lease.devices), do.CheckDevices(lease.devices, job.id)]
        self.pass_wanted = True
