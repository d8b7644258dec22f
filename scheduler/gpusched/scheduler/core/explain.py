"""Why a job waits: a structured reason, the same for the live line, lists, programs and tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, assert_never

from gpusched.scheduler.core.classify import format_bytes
from gpusched.scheduler.core.constraints import describe
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.lacking import lacks
from gpusched.scheduler.core.model import Placement, Request
from gpusched.scheduler.core.pool import Device, DeviceState
from gpusched.scheduler.core.preemption import Choice, Claim
from gpusched.scheduler.core.queue import Verdict
from gpusched.scheduler.core.states import Gate, Queued

if TYPE_CHECKING:
    from gpusched.scheduler.core.ground import Ground

#: At most so many GPUs in the way are listed.
MAX_BLOCKERS = 16


class Code(Enum):
    RESOURCES = "resources"
    PRIORITY = "priority"
    PAUSED = "paused"
    UNAVAILABLE = "unavailable"
    UNCONFIRMED = "unconfirmed"
    STARTING = "starting"
    READY = "ready"
    HELD = "held"
    DEPENDENCY = "dependency"
    BEGIN_TIME = "begin time"
    BACKOFF = "backoff"
    REATTACH = "reattach"
    LIMIT = "limit"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class Blocker:
    """A GPU in the way; `until` is when its holder's time limit ends, on the engine's clock."""

    device: str
    index: int
    node: str
    state: DeviceState
    job: JobId | None = None
    user: str = ""
    job_name: str = ""
    until: float | None = None
    kept: bool = False  # the job does not have it yet: others made room for it


@dataclass(frozen=True, slots=True)
class Reason:
    code: Code
    message: str
    needed: int = 0
    free: int = 0
    blockers: tuple[Blocker, ...] = ()
    ahead: JobId | None = None
    until: float | None = None  # on the engine's clock


def explain(engine: Ground, job: Job) -> Reason | None:
    """Why a waiting job waits, None if it does not wait. O(number of GPUs), and no pass is made."""
    if not isinstance(job.status, Queued):
        return None
    request = job.request
    needed = request.gpus
    if job.status.gate is not None:
        return _gated(job, job.status.gate, needed)
    claim = engine.claims.get(job.id)
    stopped = _stopped(engine, needed, claimed=claim is not None)
    if stopped is not None:
        return stopped
    if claim is not None:
        return _claimed(engine, job, claim)
    found = engine.queue.class_of(job)
    first = engine.queue.job(found.keys.first() or job.key)
    if found.verdict is Verdict.UNSEEN:
        return Reason(Code.STARTING, "just accepted", needed)
    free = engine.pool.free(request)
    if found.verdict is Verdict.QUOTA and (over := _over_quota(engine, job)) is not None:
        return over
    gone = engine.pool.usable(request) < needed
    if not gone and found.verdict is Verdict.BEHIND and found.blocked_by is not None:
        ahead = engine.jobs.get(found.blocked_by)
        if ahead is None or not ahead.awake or not engine.queue.is_before(ahead, job):
            # Things have moved since the last pass; the next one, which is wanted, will tell.
            return Reason(Code.STARTING, "about to be looked at", needed, free)
        return _behind(ahead, needed, free)
    if gone or found.unavailable_since is not None:
        out = tuple(_blockers(engine, job, mended=True))
        return Reason(Code.UNAVAILABLE, _unavailable_text(engine, job, out), needed, free, out)
    if first is not job:
        return _behind(first, needed, free)
    blockers = tuple(_blockers(engine, job, mended=False))
    if free >= needed and not (request.shaped and engine.pool.place(request) is None):
        return Reason(Code.READY, "about to start", needed, free)
    return Reason(Code.RESOURCES, _resources_text(engine, job.request, free, blockers), needed, free, blockers)


def foresee(engine: Ground, job: Job, choice: Choice | None = None) -> Reason:
    """Why a job that is not in the queue would wait if it were (a dry run's job).

    Args:
        engine: the state.
        job: as `dry_run` made it.
        choice: whom it would preempt, None for nobody.
    """
    needed, free = job.request.gpus, engine.pool.free(job.request)
    stopped = _stopped(engine, needed)
    if stopped is not None:
        return stopped
    over = _over_quota(engine, job)
    if over is not None:
        return over
    if choice is not None:
        who = _few([f"job {each.id} ({_owner(each.spec.owner.name, each.name)})" for each in choice.victims])
        text = f"it would end {who} for that" if who else "they are about to be empty"
        return Reason(Code.RESOURCES, f"needs {_gpus(needed)}, {free} free; {text}", needed, free)
    eligible = engine.pool.eligible(job.request)
    queue, policy = engine.queue, engine.settings.policy
    passed = [Verdict.SET_ASIDE, Verdict.QUOTA]
    if policy.backfill == "easy" and policy.depth == 1:
        passed.append(Verdict.BEHIND)  # who has no reservation is in nobody's way
    before = queue.ranked(job.lane, job.key)
    firsts = [
        (queue.ranked(found.lane, first), first)
        for found in queue.classes.values()
        if found.verdict not in passed
        and (first := found.keys.first()) is not None
        and queue.ranked(found.lane, first) < before
        and not eligible.isdisjoint(engine.pool.eligible(found.request))
    ]
    if firsts:
        return _behind(queue.job(min(firsts)[1]), needed, free)
    if engine.pool.serviceable(job.request) < needed:
        out = tuple(_blockers(engine, job, mended=True))
        return Reason(Code.UNAVAILABLE, _unavailable_text(engine, job, out), needed, free, out)
    blockers = tuple(_blockers(engine, job, mended=False))
    return Reason(Code.RESOURCES, _resources_text(engine, job.request, free, blockers), needed, free, blockers)


def lines(engine: Ground, job: Job, reason: Reason, now: float) -> list[str]:
    """The whole account, a sentence a line; `now` in seconds of the engine's clock."""
    place = engine.queue.position(job)
    out = [f"Job {job.id} is number {place} of {engine.queue.in_line} in the queue."]
    if not place:
        out = [f"Job {job.id} does not stand in line for GPUs yet."]
    out.append(reason.message[:1].upper() + reason.message[1:] + ".")
    request = job.request
    wants = " ".join(filter(None, [_gpus(request.gpus), describe(request)]))
    usable = engine.pool.usable(request)
    free = engine.pool.free(request)
    if request.gpus:
        have = "has" if free == 1 else "have"
        room = f"{free} {have} room for it now" if request.shared else f"{free} free now"
        out.append(f"It asks for {wants}; {_gpus(usable)} could serve, {room}.")
    else:
        out.append(f"It asks for {wants.removeprefix(_gpus(0)).strip().removeprefix('with ')}, and no GPU.")
    if reason.code is not Code.RESOURCES:  # else it has been said
        out += lacks(engine.pool, request, engine.jobs)
    for blocker in _blockers(engine, job, mended=None):
        if blocker.job is not None:
            held = "shared by" if blocker.device in engine.pool.divided else "kept for" if blocker.kept else "held by"
            what = f"{held} job {blocker.job} ({_owner(blocker.user, blocker.job_name)})"
        else:
            device = engine.pool.devices[blocker.device]
            what = (device_text(engine, device) or blocker.state.value).removeprefix(f"GPU {blocker.index}: ")
        out.append(f"GPU {blocker.index} on {blocker.node}: {what}.")
    return out + _times(engine, job, reason, now)


def _times(engine: Ground, job: Job, reason: Reason, now: float) -> list[str]:
    """When it starts, as far as anybody knows."""
    show = engine.show_time
    if show is None:
        return []
    if reason.code in (Code.BEGIN_TIME, Code.BACKOFF) and reason.until is not None:
        return [f"It does not start before {show(reason.until)}."]
    expected = engine.outlook.of(job, now)
    latest = "" if expected.promise is None else f"at the latest at {show(expected.promise)}"
    if expected.forecast is None:
        return [f"It starts {latest}."] if latest else []
    return [f"It is expected to start at {show(expected.forecast)}" + (f", {latest}." if latest else ".")]


def device_text(engine: Ground, device: Device) -> str:
    """One sentence on why a device is not free, empty if it is or is simply held."""
    drained = engine.pool.drain_reason(device)
    if drained is not None and engine.pool.state(device) in (DeviceState.DRAINED, DeviceState.ALLOCATED):
        return f"drained: {drained}" if drained else "drained"
    if device.kept is not None and device.holder is None and (job := engine.jobs.get(device.kept)) is not None:
        return f"kept for job {job.id} ({_owner(job.spec.owner.name, job.name)})"
    if device.over and not device.message:
        who = ", ".join(
            f"job {number} takes {format_bytes(used)}, and asked for {format_bytes(device.shares[number].memory)}"
            for number, used in device.over.items()
        )
        return f"GPU {device.info.index}: {who}"
    return device.message


def _stopped(engine: Ground, needed: int, *, claimed: bool = False) -> Reason | None:
    """What keeps everybody from starting, or all but those for whom something is kept; None if nothing does."""
    if engine.halted is not None:
        return Reason(Code.STORE, f"nothing is started while state cannot be saved: {engine.halted}", needed)
    if engine.paused is not None:
        return Reason(Code.PAUSED, _paused_text(engine.paused), needed)
    if engine.holding:
        return Reason(Code.REATTACH, "the scheduler has just restarted and waits for its clients to come back", needed)
    if engine.slots == 0:
        most = engine.settings.max_running
        return Reason(
            Code.LIMIT,
            f"{most} {'job runs' if most == 1 else 'jobs run'}, which is the most that may (max-running)",
            needed,
        )
    if not claimed and engine.open_slots == 0:
        whom = ", ".join(str(each) for each in sorted(engine.claims)[:3])
        text = f"no more may run (max-running) before job {whom}, for which others made room"
        return Reason(Code.LIMIT, text, needed)
    return None


def _over_quota(engine: Ground, job: Job) -> Reason | None:
    """What its owner's quota has to say, None if it may start as far as that goes."""
    needed, quotas, excess = job.request.gpus, engine.quotas, engine.excess(job)
    if quotas is None or excess is None:
        return None
    if not excess.jobs and needed > excess.quota.gpus:
        text = f"needs {_gpus(needed)}, more than {excess.whose} may hold at all: {excess.quota.gpus} (quota)"
        if not engine.settings.policy.borrow:
            text += "; it waits until that is changed"
    else:
        kept = [each for each in engine.claims if excess.quota in quotas.of(engine.jobs[each].spec.owner.name)]
        text = excess.message(kept) + ("" if excess.jobs else f"; this needs {_gpus(needed)}")
    return Reason(Code.LIMIT, text, needed, engine.pool.free(job.request))


def _claimed(engine: Ground, job: Job, claim: Claim) -> Reason:
    """Why a job still waits for whom others are made to end."""
    needed = job.request.gpus
    free = sum(map(len, engine.pool.available_to(job.id).values()))
    leaving = [
        each for each in engine.running.values() if set(each.lease.devices if each.lease else ()) & set(claim.devices)
    ]
    who = _few([f"job {each.id} ({each.spec.owner.name})" for each in leaving])
    text = f"needs {_gpus(needed)}; " + (f"{who} is ending for it" if who else "they are about to be empty")
    return Reason(Code.RESOURCES, text, needed, free, until=claim.until)


def _gated(job: Job, gate: Gate, needed: int) -> Reason:
    match gate:
        case Gate.UNCONFIRMED:
            return Reason(Code.UNCONFIRMED, "it was offered GPUs and did not answer; passed over until it does", needed)
        case Gate.REATTACH:
            return Reason(Code.REATTACH, "its client is not back since the scheduler restarted; passed over", needed)
        case Gate.HELD:
            return Reason(Code.HELD, "it is held until it is released", needed)
        case Gate.DEPENDENCY:
            jobs = ", ".join(str(each) for each in sorted(job.unmet)[:5]) + (", …" if len(job.unmet) > 5 else "")
            return Reason(Code.DEPENDENCY, f"waits for the end of job {jobs}", needed)
        case Gate.BEGIN_TIME:
            return Reason(Code.BEGIN_TIME, "its begin time is yet to come", needed, until=job.not_before)
        case Gate.BACKOFF:
            failed = f"attempt {job.attempt} failed; it is tried again after a pause"
            return Reason(Code.BACKOFF, failed, needed, until=job.not_before)
        case _:
            assert_never(gate)


def _behind(job: Job, needed: int, free: int) -> Reason:
    request = job.request
    what = describe(request) if request.counted and not request.shared else ""
    wants = what.removeprefix("with ") if what and not request.gpus else f"{_gpus(request.gpus)} {what}".rstrip()
    text = f"waits behind job {job.id} ({_owner(job.spec.owner.name, job.name)}), which needs {wants}"
    return Reason(Code.PRIORITY, text, needed, free, ahead=job.id)


def _paused_text(reason: str) -> str:
    return f"scheduling is paused: {reason}" if reason else "scheduling is paused"


def _blockers(engine: Ground, job: Job, *, mended: bool | None) -> list[Blocker]:
    """GPUs in the way; `mended` True: only those that somebody must mend, False: only held ones, None: all."""
    out: list[Blocker] = []
    pool = engine.pool
    eligible = pool.eligible(job.request)
    for node in pool.nodes.values():
        for device in node.devices:
            if device.uuid not in eligible or pool.is_available(device):
                continue
            state = pool.state(device)
            out_of_service = state in _OUT_OF_SERVICE or pool.drain_reason(device) is not None
            if mended is not None and mended != out_of_service:
                continue
            info = device.info
            if device.shares:
                if pool.has_room(device, job.request):
                    continue
                for number, name, owner, until in _sharers(engine, device):
                    out.append(Blocker(info.uuid, info.index, info.node, state, number, owner, name, until))
                if len(out) >= MAX_BLOCKERS:
                    return out[:MAX_BLOCKERS]
                continue
            held_by = device.holder if device.holder is not None or out_of_service else device.kept
            if held_by == job.id:
                continue
            holder = engine.jobs.get(held_by) if held_by is not None else None
            if holder is None:
                out.append(Blocker(info.uuid, info.index, info.node, state))
            else:
                # One that it is kept for has no lease yet.
                owner, until = holder.spec.owner.name, None if holder.lease is None else holder.lease.expires_at
                kept = device.holder is None
                out.append(Blocker(info.uuid, info.index, info.node, state, holder.id, owner, holder.name, until, kept))
            if len(out) == MAX_BLOCKERS:
                return out
    return out


_OUT_OF_SERVICE = (DeviceState.DRAINED, DeviceState.FOREIGN, DeviceState.DIRTY, DeviceState.UNHEALTHY)


def _resources_text(engine: Ground, request: Request, free: int, blockers: tuple[Blocker, ...]) -> str:
    if request.counted:
        missing = "; ".join(lacks(engine.pool, request, engine.jobs))
        if missing or not request.gpus:
            return (missing[:1].lower() + missing[1:]).rstrip(".") or "nodes that have enough are out of service"
    text = f"needs {_gpus(request.gpus)}{_shape(request)}, {free} free"
    held: dict[JobId, list[Blocker]] = {}
    for blocker in blockers:
        if blocker.job is not None:
            held.setdefault(blocker.job, []).append(blocker)
    # The fewest words that still say whom to ask: three holders at most.
    for group in list(held.values())[:3]:
        several = len(engine.pool.nodes) > 1
        indices = ",".join(f"{blocker.node}:{blocker.index}" if several else f"{blocker.index}" for blocker in group)
        until = group[0].until
        if until is not None and engine.show_time is not None:
            text += f"; GPU {indices} until {engine.show_time(until)} ({_owner(group[0].user, group[0].job_name)})"
        else:
            text += f"; GPU {indices} {'kept for' if group[0].kept else 'held by'} {_who(group[0])}"
    if len(held) > 3:
        text += f"; and {len(held) - 3} more job{'s' if len(held) > 4 else ''}"
    return text


def _shape(request: Request) -> str:
    """What else must hold of free GPUs, where enough of them may not be enough."""
    if request.per_node:
        return f" ({request.per_node} on each node)"
    return " on one node or whole ones" if request.placement is Placement.CONSOLIDATE else ""


def _unavailable_text(engine: Ground, job: Job, out: tuple[Blocker, ...]) -> str:
    needed, usable = job.request.gpus, engine.pool.usable(job.request)
    well = engine.pool.serviceable(job.request)
    some = "none" if not well else f"only {well}"
    text = f"needs {_gpus(needed)}, but {some} of {usable} {'are' if well > 1 else 'is'} in service"
    if usable < needed:
        # There were more when it was taken on.
        left = (
            "none that would do is" if not usable else f"only {usable} that would do {'is' if usable == 1 else 'are'}"
        )
        text = f"needs {_gpus(needed)}, but {left} here now"
    for blocker in out[:3]:
        said = device_text(engine, engine.pool.devices[blocker.device]) or blocker.state.value
        text += f"; {said if said.startswith('GPU ') else f'GPU {blocker.index}: {said}'}"
    waits = job in engine.queue and job.awake
    if waits and engine.queue.class_of(job).verdict is Verdict.SET_ASIDE:
        text += "; set aside, others go first meanwhile"
    return text


def _sharers(engine: Ground, device: Device) -> Iterator[tuple[JobId, str, str, float | None]]:
    """Who has shares of a device: job, its name, its owner's, and when its time limit ends."""
    for number in device.shares:
        job = engine.jobs[number]
        yield number, job.name, job.spec.owner.name, None if job.lease is None else job.lease.expires_at


def _owner(user: str, name: str) -> str:
    """Whose a job is, and what it is called."""
    return f"{user}, {name}" if name else user


def _few(words: list[str]) -> str:
    """Three at most, and how many more."""
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


def _who(blocker: Blocker) -> str:
    return f"{blocker.user} ({blocker.job_name})" if blocker.job_name else blocker.user


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"
