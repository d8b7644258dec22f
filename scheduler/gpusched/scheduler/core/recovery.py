"""After a restart: who is expected back, how long they are waited for, and what becomes of those who stay away.

Devices of leases that may still come back stay with them until they do, or the window ends. For a moment
the queue waits for its clients too; then those who are missing are passed over, keeping their rank.

The window is time in which a server was there to come back to. Restarts in quick succession go on with the same one,
so that they cannot put off the end of a holder that is gone; a server that lives shorter than a part of it takes
nothing off.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core.deadlines import Due
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.sharing import part
from gpusched.scheduler.core.states import Finished, Gate, Outcome, Queued, Running, State

if TYPE_CHECKING:
    from gpusched.scheduler.core.moves import Moves

#: The window is counted in so many parts.
WINDOW_PARTS = 8

#: Keys of settings that are kept.
PAUSED = "paused"
POLICY = "policy"
DRAINED = "drained:"
DRAINED_NODE = "drained-node:"
CLOCK = "clock"


def restore(
    engine: Moves, jobs: list[Job], settings: dict[str, str], now: float, shift: float, mark: str | None
) -> None:
    """Take over jobs that had not ended.

    Args:
        engine: a new one, to which nothing has happened yet.
        jobs: as they were last saved, by id.
        settings: as they were last saved; those of devices that are gone are left alone.
        now: seconds of the engine's clock.
        shift: by how much the clock was set forward since the jobs were saved; what is due then is due as much later.
        mark: of the clock, to be saved together with the jobs that are shifted.
    """
    if mark is not None:
        engine._changes.settings[CLOCK] = mark
    for job in jobs if shift else ():
        _shift(job, shift)
        engine._changes.jobs[job.id] = job
    _restore_settings(engine, settings)
    window = engine.settings.window
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
        for part in range(1, WINDOW_PARTS):
            engine._deadlines.add(now + window * part / WINDOW_PARTS, Due.WINDOW_PART)
        engine._deadlines.add(now + window, Due.WINDOW_OVER)
        if any(isinstance(engine.jobs[each].status, Queued) for each in engine.absent):
            engine.hold_until = now + engine.settings.hold_after_restart
            engine._deadlines.add(engine.hold_until, Due.HOLD_OVER)
    engine.pass_wanted = True


def keep(engine: Moves, key: str, value: str | None) -> None:
    """Have a setting saved together with what else happens now; None removes it."""
    engine._changes.settings[key] = value


def pass_over_absent(engine: Moves, now: float) -> None:
    """The queue has waited long enough for its clients: the missing are passed over and keep their rank."""
    engine.hold_until = None
    for job_id in sorted(engine.absent):
        job = engine.jobs[job_id]
        if isinstance(job.status, Queued):
            engine._wait(job, now, Gate.REATTACH, "not back since the restart; passed over")
    engine.pass_wanted = True


def count_absence(engine: Moves, now: float) -> None:
    """A part of the window is over: holders that have missed all of it, over restarts in a row, lose their lease."""
    for job_id in sorted(engine.absent):
        job = engine.jobs[job_id]
        # A waiting job that is missing is passed over, so that a new window for it costs nobody anything.
        if isinstance(job.status, Running):
            job.missed += 1
            engine._changes.jobs[job_id] = job
            if job.missed >= WINDOW_PARTS:
                _give_up(engine, job, now)


def give_up_absent(engine: Moves, now: float) -> None:
    """The window is over: who has not come back has lost place or lease."""
    for job_id in sorted(engine.absent):
        _give_up(engine, engine.jobs[job_id], now)


def _give_up(engine: Moves, job: Job, now: float) -> None:
    engine.absent.discard(job.id)
    if isinstance(job.status, Queued):
        outcome = Outcome(message="its client did not come back after the restart")
        engine._end(job, now, State.CANCELLED, outcome, "JOB_CANCELLED")
    else:
        who = "supervisor" if job.spec.batch is not None else "holder"
        engine._lose_run(job, now, f"its {who} did not come back after the restart", "LEASE_REVOKED")


def _shift(job: Job, by: float) -> None:
    """Move the times of a job that is alive to another clock."""
    job.submitted_at += by
    if job.cancelling is not None:
        job.cancelling = (job.cancelling[0], job.cancelling[1] + by)
    if job.preempting is not None:
        job.preempting = (job.preempting[0], job.preempting[1] + by)
    # A pause is an interval; a begin time is what its owner reads off the wall clock.
    if job.not_before is not None and job.attempt:
        job.not_before += by
    match job.status:
        case Queued():
            job.status = replace(job.status, since=job.status.since + by)
        case Running(lease=lease):
            lease = replace(
                lease,
                granted_at=lease.granted_at + by,
                confirm_by=None if lease.confirm_by is None else lease.confirm_by + by,
                expires_at=None if lease.expires_at is None else lease.expires_at + by,
            )
            job.status = replace(job.status, since=job.status.since + by, lease=lease)
        case _:
            pass


def _restore_settings(engine: Moves, settings: dict[str, str]) -> None:
    engine.paused = settings.get(PAUSED)
    for key, reason in settings.items():
        if key.startswith(DRAINED_NODE) and key[len(DRAINED_NODE) :] in engine.pool.nodes:
            engine.pool.drain_node(key[len(DRAINED_NODE) :], reason)
        elif key.startswith(DRAINED) and key[len(DRAINED) :] in engine.pool.devices:
            engine.pool.drain([key[len(DRAINED) :]], reason)


def _restore_waiting(engine: Moves, job: Job, now: float) -> None:
    assert isinstance(job.status, Queued)
    job.status = Queued(job.status.since, job.gate_at(now))
    engine._enqueue(job)
    if job.not_before is not None and job.not_before > now:
        engine._deadlines.add(job.not_before, Due.GATE, job.id)
    if job.spec.max_wait is not None:
        engine._deadlines.add(job.submitted_at + job.spec.max_wait, Due.MAX_WAIT, job.id)
    if job.spec.batch is None:
        engine.absent.add(job.id)


def _restore_running(engine: Moves, job: Job, now: float, window: float) -> None:
    assert isinstance(job.status, Running)
    lease = job.status.lease
    engine.running[job.id] = job
    engine.ends.add(job.id, lease.expires_at, lease.devices)
    engine.usage.change(job.spec.owner.name, len(lease.devices), now)
    if engine.quotas is not None:
        engine.quotas.take(job.spec.owner.name, len(lease.devices))
    # A device that is gone since then is missed by its holder, not by us.
    engine.pool.claim(part(lease.devices, engine.pool.devices), job.id)
    engine.absent.add(job.id)
    # Its holder cannot have been heard while there was nobody to listen.
    earliest = now + window * (WINDOW_PARTS - job.missed) / WINDOW_PARTS
    engine._watch_lease(job, lease, earliest=earliest)
    if job.cancelling is not None:
        engine._deadlines.add(max(earliest, job.cancelling[1]), Due.CANCEL_OVER, job.id, lease.epoch)
    if job.preempting is not None:
        engine._deadlines.add(max(earliest, job.preempting[1]), Due.PREEMPT_OVER, job.id, lease.epoch)
    engine._out.append(do.JobChanged(job.id))
