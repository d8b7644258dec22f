"""After a restart: who is expected back, how long they are waited for, and what becomes of those who stay away.

Devices of leases that may still come back stay with them until they do, or the window ends. For a moment
the queue waits for its clients too; then those who are missing are passed over, keeping their rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core.deadlines import Due
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.states import Finished, Gate, Outcome, Queued, Running, State

if TYPE_CHECKING:
    from gpusched.scheduler.core.engine import Engine

#: Keys of settings that are kept.
PAUSED = "paused"
DRAINED = "drained:"
DRAINED_NODE = "drained-node:"


def restore(engine: Engine, jobs: list[Job], settings: dict[str, str], now: float) -> None:
    """Take over jobs that had not ended.

    Args:
        engine: a new one, to which nothing has happened yet.
        jobs: as they were last saved, by id.
        settings: as they were last saved; those of devices that are gone are left alone.
        now: seconds of the engine's clock.
    """
    _restore_settings(engine, settings)
    window = now + engine.settings.window
    for job in jobs:
        engine.jobs[job.id] = job
        if job.token_hash:
            engine._tokens[job.token_hash] = job.id
        if job.spec.request_id:
            engine._requests[job.spec.owner.uid, job.spec.request_id] = job.id
        match job.status:
            case Queued():
                _restore_waiting(engine, job, now)
            case Running():
                _restore_running(engine, job, now, window)
            case Finished():
                raise AssertionError(f"job {job.id} has ended and cannot be taken over")
    for job in jobs:
        for followed in list(job.unmet):
            engine._followers.setdefault(JobId(followed), []).append(job.id)
    if engine.absent:
        engine._deadlines.add(window, Due.WINDOW_OVER)
        if any(isinstance(engine.jobs[each].status, Queued) for each in engine.absent):
            engine.hold_until = now + engine.settings.hold_after_restart
            engine._deadlines.add(engine.hold_until, Due.HOLD_OVER)
    engine.pass_wanted = True


def pass_over_absent(engine: Engine, now: float) -> None:
    """The queue has waited long enough for its clients: the missing are passed over and keep their rank."""
    engine.hold_until = None
    for job_id in sorted(engine.absent):
        job = engine.jobs[job_id]
        if isinstance(job.status, Queued):
            engine._wait(job, now, Gate.REATTACH, "not back since the restart; passed over")
    engine.pass_wanted = True


def give_up_absent(engine: Engine, now: float) -> None:
    """The window is over: who has not come back has lost place or lease."""
    for job_id in sorted(engine.absent):
        job = engine.jobs[job_id]
        engine.absent.discard(job_id)
        if isinstance(job.status, Queued):
            outcome = Outcome(message="its client did not come back after the restart")
            engine._end(job, now, State.CANCELLED, outcome, "JOB_CANCELLED")
        else:
            who = "supervisor" if job.spec.batch is not None else "holder"
            outcome = Outcome(message=f"its {who} did not come back after the restart")
            engine._finish_run(job, now, State.LOST, outcome, reason="LEASE_REVOKED")


def _restore_settings(engine: Engine, settings: dict[str, str]) -> None:
    engine.paused = settings.get(PAUSED)
    for key, reason in settings.items():
        if key.startswith(DRAINED_NODE) and key[len(DRAINED_NODE) :] in engine.pool.nodes:
            engine.pool.drain_node(key[len(DRAINED_NODE) :], reason)
        elif key.startswith(DRAINED) and key[len(DRAINED) :] in engine.pool.devices:
            engine.pool.drain([key[len(DRAINED) :]], reason)


def _restore_waiting(engine: Engine, job: Job, now: float) -> None:
    assert isinstance(job.status, Queued)
    job.status = Queued(job.status.since, job.gate_at(now))
    engine.queue.add(job)
    if job.not_before is not None and job.not_before > now:
        engine._deadlines.add(job.not_before, Due.GATE, job.id)
    if job.spec.max_wait is not None:
        engine._deadlines.add(job.submitted_at + job.spec.max_wait, Due.MAX_WAIT, job.id)
    if job.spec.batch is None:
        engine.absent.add(job.id)


def _restore_running(engine: Engine, job: Job, now: float, window: float) -> None:
    assert isinstance(job.status, Running)
    lease = job.status.lease
    engine.running[job.id] = job
    # A device that is gone since then is missed by its holder, not by us.
    engine.pool.claim([uuid for uuid in lease.devices if uuid in engine.pool.devices], job.id)
    engine.absent.add(job.id)
    # Its holder cannot have been heard while there was nobody to listen.
    engine._watch_lease(job, lease, earliest=window)
    if job.cancelling is not None:
        engine._deadlines.add(max(window, job.cancelling[1]), Due.CANCEL_OVER, job.id, lease.epoch)
    engine._out.append(do.JobChanged(job.id))
