"""The pass as one plain walk over the whole queue, to judge the engine by; slow, and simple enough to be right."""

from __future__ import annotations

from collections.abc import Iterable

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.model import Condition, Request
from gpusched.scheduler.core.pool import Device
from gpusched.scheduler.core.states import Queued


def fits(device: Device, request: Request) -> bool:
    info = device.info
    return (
        info.memory_bytes >= request.memory_bytes
        and request.model in info.model.lower()
        and request.node in ("", info.node)
    )


def share(engine: Engine, one: Job, other: Job) -> bool:
    """Whether there is a device that both could use."""
    return any(fits(device, one.request) and fits(device, other.request) for device in engine.pool.devices.values())


def in_service(engine: Engine, device: Device) -> bool:
    drained = device.drained is not None or engine.pool.nodes[device.info.node].drained is not None
    return device.condition in (Condition.CLEAN, Condition.CHECKING) and not drained


def free(engine: Engine) -> set[str]:
    return {
        device.uuid
        for device in engine.pool.devices.values()
        if device.holder is None and device.condition is Condition.CLEAN and in_service(engine, device)
    }


def waiting(engine: Engine) -> list[Job]:
    """Jobs that a pass may start, in order, without asking the queue."""
    found = [job for job in engine.jobs.values() if isinstance(job.status, Queued) and job.status.gate is None]
    return sorted(found, key=lambda job: (-job.priority, job.submitted_at, job.id))


def walk(
    engine: Engine,
    jobs: Iterable[Job],
    free: set[str],
    since: dict[Request, float],
    now: float,
    slots: int | None,
    grants: Iterable[tuple[JobId, tuple[str, ...]]],
) -> None:
    """Strict order: whoever cannot start blocks all later ones that share a device with it.

    Takes the devices that were really given, having judged them.

    Args:
        jobs: `waiting` before the pass; their requests are all that is asked of them.
        free: devices that were free before the pass.
        since: from when too few devices of a request are in service; kept from pass to pass.
        slots: at most so many may start, None for any number.
        grants: what the pass gave, in order.
    """
    grants, blocked, free = list(grants), set[str](), set(free)
    for job in jobs:
        if slots == 0:
            break
        request = job.request
        eligible = {device.uuid for device in engine.pool.devices.values() if fits(device, request)}
        if not eligible & blocked and len(eligible & free) >= request.gpus:
            assert grants and grants[0][0] == job.id, f"job {job.id} should have started"
            devices = grants.pop(0)[1]
            judge(devices, eligible & free, request.gpus)
            free -= set(devices)
            slots = None if slots is None else slots - 1
            since.pop(request, None)
            continue
        if sum(in_service(engine, engine.pool.devices[uuid]) for uuid in eligible) < request.gpus:
            if now - since.setdefault(request, now) >= engine.settings.set_aside_after:
                continue
        else:
            since.pop(request, None)
        blocked |= eligible
    assert not grants, f"these should not have started: {grants}"


def judge(devices: tuple[str, ...], choice: set[str], count: int) -> None:
    """A placement is whole, and on as few nodes as can be; on one node the tightest, lowest indices first.

    For two nodes; the first letter of a uuid is its node.
    """
    assert len(devices) == len(set(devices)) == count and set(devices) <= choice
    there = {node: sorted(uuid for uuid in choice if uuid[0] == node) for node in "ab"}
    whole = [uuids for uuids in there.values() if len(uuids) >= count]
    used = {uuid[0] for uuid in devices}
    if whole:
        assert len(used) == 1
        mine = there[used.pop()]
        assert len(mine) == min(map(len, whole)) and list(devices) == mine[:count]
    else:
        assert used == {"a", "b"}


def started(effects: Iterable[do.Effect]) -> list[tuple[JobId, tuple[str, ...]]]:
    """Who was given which devices, in order."""
    return [(effect.job, effect.lease.devices) for effect in effects if isinstance(effect, do.Granted | do.StartRun)]
