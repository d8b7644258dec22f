"""Shares of a GPU that are outgrown: seen, told, shown, and not prevented."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core.classify import format_bytes
from gpusched.scheduler.core.pool import Device

if TYPE_CHECKING:
    from gpusched.scheduler.core.moves import Moves


def note(engine: Moves, device: Device, taken: tuple[tuple[int, int], ...], now: float) -> bool:
    """Tell those who take more of a device than their shares, once until they no longer do.

    Args:
        engine: what runs.
        device: one that jobs share.
        taken: (job, bytes that its processes were seen to have of it).
        now: seconds of the engine's clock.

    Returns:
        Whether anything of it is new.
    """
    before = dict(device.over)
    seen = dict(taken)
    for job_id, share in device.shares.items():
        used = seen.get(job_id, 0)
        if used <= share.memory:
            device.over.pop(job_id, None)
            continue
        if job_id not in device.over:
            text = (
                f"GPU {device.info.index}: its processes take {format_bytes(used)}, and it asked for "
                f"{format_bytes(share.memory)}; whoever shares the GPU may run out of memory"
            )
            engine._note(engine.jobs[job_id], now, text)
            engine._out += [do.Notify(job_id, do.NoticeKind.GPU_MEMORY, text), do.JobChanged(job_id)]
        device.over[job_id] = used
    return device.over != before
