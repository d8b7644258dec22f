"""What the scheduler tells, in words for people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gpusched.client.gsrun.line import counted, ordinal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpusched.v1 import job_pb2, scheduler_pb2


def place(queued: scheduler_pb2.Queued, wanted: int) -> str:
    """The live line, less the time waited; `wanted` GPUs are waited for."""
    where = f"{ordinal(queued.position)} of {queued.total} in the queue"
    message = queued.reason.message
    parts = [where, message] if message.startswith("needs ") else [where, counted(wanted, "GPU"), message]
    if queued.HasField("forecast"):
        parts.append(f"expected at {_clock_time(queued.forecast.ToNanoseconds() / 1e9)}")
    return f"gsrun: {' · '.join(part for part in parts if part)}"


def outlook(dry_run: scheduler_pb2.DryRun) -> str:
    """The answer to `--dry-run`."""
    if dry_run.starts_now:
        return f"would start now, on {gpus(dry_run.gpus)}"
    text = f"would wait, {ordinal(dry_run.position)} in the queue: {dry_run.reason.message}"
    if dry_run.HasField("forecast"):
        text += f" (expected to start at {_clock_time(dry_run.forecast.ToNanoseconds() / 1e9)})"
    return text


def gpus(granted: Iterable[job_pb2.AllocatedGpu]) -> str:
    """`GPU 0,1`."""
    return f"GPU {','.join(str(gpu.index) for gpu in granted)}"


def _clock_time(moment: float) -> str:
    local = time.localtime(moment)
    return time.strftime("%H:%M" if moment - time.time() < 86400 else "%Y-%m-%d %H:%M", local)
