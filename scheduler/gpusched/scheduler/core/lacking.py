"""What keeps a request from being met where devices are shared, or something of hosts is asked for, in words."""

from __future__ import annotations

from collections.abc import Mapping

from gpusched.scheduler.core.constraints import describe_host
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.model import Request
from gpusched.scheduler.core.pool import Device, Pool
from gpusched.scheduler.core.sharing import HOST

#: Of so many devices it is said who shares them.
_MOST = 3


def lacks(pool: Pool, request: Request, jobs: Mapping[JobId, Job]) -> list[str]:
    """A sentence for each thing that is asked for and not left now: memory of GPUs, cores and memory of hosts."""
    out = []
    if request.shared and pool.free(request) < request.gpus:
        out.append(_shares(pool, request, jobs))
    if (request.cpus or request.host_bytes) and (text := _host(pool, request)):
        out.append(text)
    return out


def shared_by(device: Device, jobs: Mapping[JobId, Job]) -> str:
    """Who shares a device, and how much each of them has."""
    return ", ".join(
        f"{jobs[number].spec.owner.name} (job {number}, {_size(share.memory)})"
        for number, share in device.shares.items()
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.4g} GiB"


def _shares(pool: Pool, request: Request, jobs: Mapping[JobId, Job]) -> str:
    eligible = pool.eligible(request)
    divided = [pool.devices[uuid] for uuid in sorted(pool.divided & eligible)]
    own = [
        device
        for device in divided
        if pool.rules.mixed or all(share.sharer == request.sharer for share in device.shares.values())
    ]
    what = "a GPU" if request.gpus == 1 else f"each of {request.gpus} GPUs"
    text = f"Needs {_size(request.memory_bytes)} of {what}"
    if own:
        most = max(max(0, pool.left_of(device)) for device in own)
        text += f", at most {_size(most)} left"
    else:
        text += ", and none is left that it may share"
    several = len(pool.nodes) > 1
    for device in divided[:_MOST]:
        name = f"{device.info.node}:{device.info.index}" if several else f"{device.info.index}"
        other = "" if device in own else ", another user's"
        text += f"; GPU {name} shared by {shared_by(device, jobs)}{other}"
    if len(divided) > _MOST:
        text += f"; and {len(divided) - _MOST} more GPUs are shared"
    return f"{text}."


def _host(pool: Pool, request: Request) -> str:
    """What of its host each node has left, where too few nodes have enough."""
    eligible = pool.eligible(request)
    nodes = [node for name, node in pool.nodes.items() if HOST + name in eligible]
    if any(node.left.holds(request.cpus, request.host_bytes) and node.drained is None for node in nodes):
        return ""
    asked = describe_host(request).removeprefix("with ")
    text = f"Needs {asked}"
    for node in nodes[:_MOST]:
        parts = []
        if request.cpus:
            parts.append(f"{max(0, node.left.cpus)} of {node.info.cpus} cores")
        if request.host_bytes:
            parts.append(f"{_size(max(0, node.left.memory))} of {_size(node.info.memory_bytes)}")
        text += f"; node {node.info.name} has {' and '.join(parts)} left"
        text += " and is drained" if node.drained is not None else ""
    return f"{text}."
