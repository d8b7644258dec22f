"""What the scheduler tells, in words for people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gpusched.client.gsrun import exits
from gpusched.client.gsrun.line import counted, ordinal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpusched.client.gsrun.options import Options
    from gpusched.v1 import job_pb2, scheduler_pb2


def place(queued: scheduler_pb2.Queued, options: Options) -> str:
    """The live line, less the time waited, for what the command line asks for."""
    where = f"{ordinal(queued.position)} of {queued.total} in the queue" if queued.position else "not in line"
    message = queued.reason.message
    parts = [where, message] if message.startswith("needs ") else [where, asked(options), message]
    parts += _times(queued)
    return f"gsrun: {' · '.join(part for part in parts if part)}"


def outlook(dry_run: scheduler_pb2.DryRun, options: Options) -> str:
    """The answer to `--dry-run`."""
    if dry_run.starts_now:
        return f"would start now, {'on' if dry_run.gpus else 'with'} {got(dry_run.gpus, options)}"
    if options.immediate:
        # Place and times are those of one that waits.
        return f"would fail at once, as --immediate asks (status {exits.NO_GPUS_NOW}): {dry_run.reason.message}"
    text = f"would wait, {ordinal(dry_run.position)} in the queue: {dry_run.reason.message}"
    times = _times(dry_run)
    return f"{text} ({', '.join(times)})" if times else text


def _times(message: scheduler_pb2.Queued | scheduler_pb2.DryRun) -> list[str]:
    """When it starts: as expected, and at the latest where that is another time."""
    found = []
    # One of this very minute is too soon gone: who reads it in a log would wonder.
    if message.HasField("forecast") and message.forecast.ToNanoseconds() / 1e9 - time.time() >= 60:
        found.append(f"expected at {_clock_time(message.forecast.ToNanoseconds() / 1e9)}")
    if message.HasField("promise"):
        latest = _clock_time(message.promise.ToNanoseconds() / 1e9)
        if not found or found[0] != f"expected at {latest}":
            found.append(f"{latest} at the latest")
    return found


def limit_of(granted: scheduler_pb2.Granted) -> float:
    """Seconds from the grant to its time limit, the scheduler's own perhaps; 0 for none."""
    if not (granted.HasField("granted_at") and granted.HasField("expires_at")):
        return 0.0
    return (granted.expires_at.ToNanoseconds() - granted.granted_at.ToNanoseconds()) / 1e9


def asked(options: Options) -> str:
    """`2 GPUs`; of a request for none, what else it is for: `4 cores, 2 GiB of memory`."""
    if options.gpus:
        return counted(options.gpus, "GPU")
    parts = []
    if cpus := options.where.get("cpus"):
        parts.append(counted(cpus, "core"))
    if mem := options.where.get("mem"):
        from gpusched.client.units import format_size

        parts.append(f"{format_size(mem)} of memory")
    return ", ".join(parts) or "no GPU"


def got(granted: Iterable[job_pb2.AllocatedGpu], options: Options) -> str:
    """What a command runs on: `GPU 0,1`; without any, what was asked for instead."""
    listed = list(granted)
    return gpus(listed) if listed else asked(options)


def gpus(granted: Iterable[job_pb2.AllocatedGpu]) -> str:
    """`GPU 0,1`."""
    return f"GPU {','.join(str(gpu.index) for gpu in granted)}"


def _clock_time(moment: float) -> str:
    local = time.localtime(moment)
    return time.strftime("%H:%M" if moment - time.time() < 86400 else "%Y-%m-%d %H:%M", local)
