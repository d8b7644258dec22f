"""What must hold after every event. Called after each step of every test, and by `gpusched doctor`."""

from __future__ import annotations

from typing import assert_never

from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.sharing import HOST, Grant, Host, Share
from gpusched.scheduler.core.states import Finished, Lease, Queued, Running


def check(engine: Engine) -> None:
    """Raises AssertionError that names the invariant and the job or device that breaks it."""
    _check_devices(engine)
    _check_hosts(engine)
    _check_jobs(engine)
    _check_queue(engine)
    _check_claims(engine)
    _check_quotas(engine)


def _check_devices(engine: Engine) -> None:
    owners: dict[str, int] = {}
    sharers: dict[str, dict[int, Share]] = {}
    for job in engine.running.values():
        lease = job.lease
        assert lease is not None, f"job {job.id} is listed as running without a lease"
        assert len(lease.devices) == job.request.gpus == len(set(lease.devices)), f"job {job.id}: all or nothing"
        for uuid in lease.devices:
            assert uuid not in owners, f"device {uuid} is leased to jobs {owners[uuid]} and {job.id}"
            if job.request.shared:
                sharers.setdefault(uuid, {})[job.id] = Share(job.spec.owner.uid, job.request.memory_bytes)
            else:
                owners[uuid] = job.id
            known = uuid in engine.pool.devices  # else it is gone since the job got it
            allowed = not known or uuid in engine.pool.eligible(job.request)
            if known and not allowed:
                host = HOST + engine.pool.devices[uuid].info.node
                allowed = not engine.pool.oversold.isdisjoint((uuid, host))
            assert allowed, f"job {job.id} got {uuid}, which it may not have"
    epochs = [job.lease.epoch for job in engine.running.values() if job.lease]
    assert len(epochs) == len(set(epochs)), "two leases have one epoch"
    for node in engine.pool.nodes.values():
        available = [p for p, device in enumerate(node.devices) if engine.pool.is_available(device)]
        assert node.available == available, f"node {node.info.name}: list of available devices is off"
    free = sum(len(node.available) for node in engine.pool.nodes.values())
    assert engine.pool.free_total == free, "count of free devices is off"
    held = (owners.keys() | sharers.keys()) & engine.pool.devices.keys()
    assert engine.pool._held == len(held), "count of held devices is off"
    for number, places in engine.pool._taken.items():
        where = {node.devices[position].uuid for node, positions in places for position in positions}
        taker = engine.running.get(number)
        assert taker and taker.lease and where == set(taker.lease.devices), (
            f"job {number}: where its devices are is off"
        )
    assert engine.pool.divided == sharers.keys() & engine.pool.devices.keys(), "list of shared devices is off"
    for device in engine.pool.devices.values():
        counted = engine.pool.count_serviceable(frozenset((device.uuid,)))
        assert counted == engine.pool.in_service(device), f"device {device.uuid}: list of those in service is off"
        assert device.holder == owners.get(device.uuid), f"device {device.uuid} and the leases disagree"
        assert device.shares == sharers.get(device.uuid, {}), f"device {device.uuid} and its shares disagree"
        assert not (device.shares and device.holder is not None), f"device {device.uuid} is shared and held as a whole"
        assert device.over.keys() <= device.shares.keys(), f"device {device.uuid}: one that takes too much is gone"
        left, grown = engine.pool.left_of(device), device.uuid in engine.pool.oversold
        assert left >= 0 or grown or not device.shares, f"device {device.uuid} is oversold by {-left} bytes"
        uids = {share.sharer for share in device.shares.values()}
        mixed = engine.pool.rules.mixed or grown
        assert len(uids) <= 1 or mixed, f"device {device.uuid} is shared by the users {sorted(uids)}"


def _check_hosts(engine: Engine) -> None:
    pool = engine.pool
    taken = dict.fromkeys(pool.nodes, Host(0, 0))
    for job in engine.running.values():
        assert (job.id in pool.grants) == job.request.counted, f"job {job.id} and the list of grants disagree"
        if not (job.request.cpus or job.request.host_bytes):
            continue
        lease = job.lease
        assert isinstance(lease, Lease) and isinstance(lease.devices, Grant), f"job {job.id} does not say where it is"
        here = {pool.devices[uuid].info.node for uuid in lease.devices if uuid in pool.devices}
        assert here <= set(lease.devices.nodes), f"job {job.id} has GPUs of a node that it has nothing else of"
        for name in lease.devices.nodes:
            if name in taken:
                taken[name] = taken[name].less(-job.request.cpus, -job.request.host_bytes)
    for name, node in pool.nodes.items():
        assert node.taken == taken[name], f"node {name}: what is taken of its host is off"
        fits = node.left.cpus >= 0 and node.left.memory >= 0
        assert fits or HOST + name in pool.oversold, f"node {name} is oversold: {node.left} is left"


def _check_jobs(engine: Engine) -> None:
    for job in engine.jobs.values():
        match job.status:
            case Queued():
                assert job in engine.queue and job.id not in engine.running, f"job {job.id} waits, but is not queued"
            case Running():
                assert job not in engine.queue and job.id in engine.running, f"job {job.id} runs, but is not listed"
            case Finished():
                assert job not in engine.queue and job.id not in engine.running, f"job {job.id} ended, but is listed"
            case _:
                assert_never(job.status)


def _check_queue(engine: Engine) -> None:
    waiting = list(engine.queue)
    assert len(waiting) == len(engine.queue), "queue length is off"
    ranks = [engine.queue.ranked(job.lane, job.key) for job in waiting]
    assert ranks == sorted(ranks), "queue is out of order"
    in_line = [job for job in waiting if job.in_line]
    assert len(in_line) == engine.queue.in_line, "count of jobs in line is off"
    for position, job in enumerate(in_line, 1):
        assert engine.queue.position(job) == position, f"job {job.id}: position is off"
    assert not any(engine.queue.position(job) for job in waiting if not job.in_line), "a position outside the line"
    by_class = [key[-1] for found in engine.queue.classes.values() for key in found.keys]
    assert sorted(by_class) == sorted(job.id for job in waiting if job.awake), "classes and queue disagree"
    assert engine.queue.considered == len(by_class), "count of jobs that may start is off"
    for name, found in engine.queue.classes.items():
        assert found.keys, f"empty class {name}"
    listed = sorted(number for _, number, _ in engine.ends)
    assert listed == sorted([*engine.running, *engine.claims]), "ends and leases disagree"


def _check_claims(engine: Engine) -> None:
    kept: dict[str, int] = {}
    for claim in engine.claims.values():
        job = engine.jobs[claim.job]
        assert job.awake and job in engine.queue, f"devices are kept for job {job.id}, which does not wait for them"
        assert len(set(claim.devices)) == job.request.gpus, f"job {job.id}: all or nothing"
        for uuid in claim.devices:
            assert uuid not in kept, f"device {uuid} is kept for jobs {kept[uuid]} and {job.id}"
            kept[uuid] = job.id
    for device in engine.pool.devices.values():
        assert device.kept == kept.get(device.uuid), f"device {device.uuid} and the claims disagree"
    pool = engine.pool
    held = [u for _, _, devices in engine.ends for u in devices if u in pool.devices and u not in pool.divided]
    assert len(held) == len(set(held)), "the ends count a device twice"


def _check_quotas(engine: Engine) -> None:
    quotas = engine.quotas
    if quotas is None:
        return
    held: dict[str, tuple[int, int]] = {}
    for job in [*engine.running.values(), *(engine.jobs[number] for number in engine.claims)]:
        for quota in quotas.of(job.spec.owner.name):
            gpus, jobs = held.get(quota.name, (0, 0))
            held[quota.name] = (gpus + job.request.gpus, jobs + 1)
    counted = {name: both for name in quotas._gpus if (both := (quotas._gpus[name], quotas._jobs[name])) != (0, 0)}
    assert counted == held, "the counts of quotas and the leases disagree"
