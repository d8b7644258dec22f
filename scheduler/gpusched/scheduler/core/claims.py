"""Preemption carried out: victims are told, the devices are kept for the one they were ended for, and it starts.

A claim has all devices that its job will start on. Nobody else gets one of them, backfill included, until the job
starts, stops waiting, or cannot use them any more. To others' promises they count as held by that job. A preemption
that was told is not taken back: who was told to end may have ended its work already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core.backfill import Start
from gpusched.scheduler.core.bookings import Bookings
from gpusched.scheduler.core.deadlines import Due
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.model import Condition
from gpusched.scheduler.core.preemption import Choice, Claim, choose, next_chance
from gpusched.scheduler.core.queue import Verdict, limit_of
from gpusched.scheduler.core.sharing import part

if TYPE_CHECKING:
    from gpusched.scheduler.core.moves import Moves


def start_claimed(engine: Moves, now: float) -> None:
    """Start those whose devices have come, before anybody else's turn; give up claims that cannot come true."""
    for claim in list(engine.claims.values()):
        job = engine.jobs[claim.job]
        pool = engine.pool
        if engine.quotas is not None and engine.quotas.is_over(job.spec.owner.name):
            # They were lowered since, and nobody starts over his quota.
            end(engine, claim.job)
            continue
        if engine._may_start and engine.slots != 0:
            devices = pool.place(job.request, pool.available_to(claim.job))
            if devices is not None:
                engine._start(Start(job, devices), now)
                engine._out.append(do.QUEUE_CHANGED)
                continue
        hopeful = [uuid for uuid in claim.devices if _may_come(engine, claim, uuid, now)]
        if pool.place(job.request, pool.joined(pool.free_soon(), hopeful)) is None:
            end(engine, claim.job)
        elif (late := claim.until + engine.settings.set_aside_after) > now:
            # What has not become empty by then is hardly going to.
            _look_at(engine, late)


def make_room(engine: Moves, now: float) -> None:
    """After a pass: preempt for those who must wait though nobody that competes with them stands before them."""
    policy = engine.settings.policy
    if not engine._may_start or engine.slots == 0:
        return
    running = list(engine.running.values())
    if not any(job.spec.preemptible or job.preempting is not None for job in running):
        return
    soonest: list[float] = []
    for head in heads(engine):
        if head.id in engine.claims or not _may_claim(engine, head, now):
            continue
        choice = _choose(engine, head, running, now)
        if choice is not None:
            _begin(engine, head, choice, now)
        elif (at := next_chance(head, running, policy, now)) is not None:
            soonest.append(at)
    if soonest:
        _look_at(engine, min(soonest))


def would_make_room(engine: Moves, job: Job, now: float) -> Choice | None:
    """Whom a job that does not wait would have preempted if it did; None if nobody, or if it would start."""
    if not engine.settings.policy.preemption or not engine._may_start or engine.slots == 0:
        return None
    engine.queue.add(job)
    first = job in heads(engine)
    engine.queue.remove(job)
    if not first or not _may_claim(engine, job, now):
        return None
    return _choose(engine, job, list(engine.running.values()), now)


def _may_claim(engine: Moves, head: Job, now: float) -> bool:
    """Whether anything could be kept for a job."""
    limit, grace = head.spec.max_wait, engine.settings.policy.preempt_grace
    gives_up = head.spec.immediate or (limit is not None and head.submitted_at + limit <= now + grace)
    # A share, or something of a host, cannot be kept for anybody (docs/scheduling.md, "Preemption").
    return not (gives_up or head.request.counted or engine.excess(head) is not None)


def _choose(engine: Moves, head: Job, running: list[Job], now: float) -> Choice | None:
    promised = {uuid for claim in engine.claims.values() for uuid in claim.devices}
    return choose(head, engine.pool, running, engine.settings.policy, now, promised=promised, away=engine.absent)


def heads(engine: Moves) -> list[Job]:
    """Waiting jobs that have nobody before them who could use a device that they could use, in order."""
    queue, pool = engine.queue, engine.pool
    firsts = [
        (queue.lane_index[found.lane], found.keys.first(), number, found)
        for number, found in enumerate(queue.classes.values())
    ]
    out: list[Job] = []
    blocked: set[str] = set()
    for _, key, _, found in sorted(firsts):
        assert key is not None
        job = queue.job(key)
        if job.id not in engine.claims and (
            found.verdict in (Verdict.QUOTA, Verdict.SET_ASIDE)
            # A pass that may start nobody looks at nobody, so that what it says of quotas may be old.
            or engine.excess(job) is not None
        ):
            continue
        eligible = pool.eligible(found.request)
        if eligible.isdisjoint(blocked):
            out.append(job)
        blocked |= eligible
    return out


def end(engine: Moves, job_id: JobId) -> None:
    """Let go of what is kept for a job."""
    claim = engine.claims.pop(job_id, None)
    if claim is None:
        return
    job = engine.jobs[job_id]
    engine.pool.keep(claim.devices, None)
    engine.ends.remove(job_id)
    if engine.quotas is not None:
        engine.quotas.give_back(job.spec.owner.name, job.request.gpus)
    _replan(engine, claim.devices)
    engine._out += [do.DevicesChanged(claim.devices), do.JobChanged(job_id), do.QUEUE_CHANGED]


def refit(engine: Moves, job: Job) -> None:
    """The time limit of a job has changed, for which something may be kept."""
    claim = engine.claims.get(job.id)
    if claim is not None:
        engine.ends.remove(job.id)
        engine.ends.add(job.id, claim.until + limit_of(job), claim.devices)
        _replan(engine, ())


def _begin(engine: Moves, head: Job, choice: Choice, now: float) -> None:
    until = now + engine.settings.policy.preempt_grace
    name = f", {head.name}" if head.name else ""
    text = f"preempted for job {head.id} ({head.spec.owner.name}{name})"
    for victim in choice.victims:
        lease = victim.lease
        assert lease is not None
        victim.preempting = (text, until)
        victim.preempted += 1
        engine._deadlines.add(until, Due.PREEMPT_OVER, victim.id, lease.epoch)
        engine._note(victim, now, f"asked to end: {text}")
        engine._out += [do.Notify(victim.id, do.NoticeKind.PREEMPTION, text, until), do.JobChanged(victim.id)]
    holders = {holder for uuid in choice.devices if (holder := engine.pool.devices[uuid].holder) is not None}
    until = max(told[1] for each in holders if (told := engine.jobs[each].preempting) is not None)
    claim = Claim(head.id, choice.devices, tuple(victim.id for victim in choice.victims), until)
    engine.claims[head.id] = claim
    engine.pool.keep(choice.devices, head.id)
    engine.ends.add(head.id, until + limit_of(head), choice.devices)
    if engine.quotas is not None:
        engine.quotas.take(head.spec.owner.name, head.request.gpus)
    _replan(engine, choice.devices)
    engine._out += [do.DevicesChanged(choice.devices), do.JobChanged(head.id), do.QUEUE_CHANGED]


def _replan(engine: Moves, devices: tuple[str, ...]) -> None:
    """Have promises reckon anew with who has these devices until when."""
    promised = {uuid for claim in engine.claims.values() for uuid in claim.devices}
    for holder in {engine.pool.devices[uuid].holder for uuid in devices}:
        if holder is None:
            continue
        job = engine.jobs[holder]
        lease = job.lease
        assert lease is not None
        times = [at for at in (lease.expires_at, job.preempting and job.preempting[1]) if at is not None]
        engine.ends.remove(holder)
        rest = part(lease.devices, {*lease.devices} - promised)
        engine.ends.add(holder, min(times, default=None), rest)
    if engine.bookings is not None:
        engine.bookings = Bookings()
    engine.pass_wanted = True


def _may_come(engine: Moves, claim: Claim, uuid: str, now: float) -> bool:
    """Whether a device that is kept for a job may still come to be its."""
    device = engine.pool.devices[uuid]
    if device.condition is Condition.UNHEALTHY or engine.pool.drain_reason(device) is not None:
        return False
    if device.holder is not None:
        holder = engine.jobs[device.holder]
        return holder.preempting is not None or holder.cancelling is not None
    return engine.pool.in_service(device) or now < claim.until + engine.settings.set_aside_after


def _look_at(engine: Moves, at: float) -> None:
    """Want a pass at a time."""
    if engine._next_chance is None or at < engine._next_chance:
        engine._next_chance = at
        engine._deadlines.add(at, Due.PREEMPT_LOOK)
