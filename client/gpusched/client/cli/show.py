"""The words for jobs and GPUs: states, times, amounts, reasons."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from gpusched.client.units import format_duration

NONE = "-"
"""Shown where a field has no value."""

STATE_COLOURS = {
    "RUNNING": "green",
    "QUEUED": "yellow",
    "COMPLETED": "dim",
    "CANCELLED": "dim",
    "FAILED": "red",
    "TIMED_OUT": "red",
    "PREEMPTED": "magenta",
    "LOST": "red",
    "FREE": "green",
    "ALLOCATED": "cyan",
    "CHECKING": "yellow",
    "DIRTY": "yellow",
    "FOREIGN": "yellow",
    "UNHEALTHY": "red",
    "DRAINED": "magenta",
}


def job_state(number: int) -> str:
    """`RUNNING` for JOB_STATE_RUNNING; a state of a newer server by its number."""
    from gpusched.v1 import job_pb2

    return _enum(job_pb2.JobState, number, "JOB_STATE_")


def gpu_state(number: int) -> str:
    """`FREE` for GPU_STATE_FREE; a state of a newer server by its number."""
    from gpusched.v1 import resources_pb2

    return _enum(resources_pb2.GpuState, number, "GPU_STATE_")


def _enum(kind: Any, number: int, prefix: str) -> str:
    try:
        name: str = kind.Name(number)
    except ValueError:
        return f"STATE_{number}"
    return name.removeprefix(prefix)


def has_ended(job: Any) -> bool:
    """Whether a job is in a final state."""
    return job_state(job.state) not in ("QUEUED", "RUNNING")


def seconds(timestamp: Any) -> float:
    """Seconds since the epoch of a protobuf Timestamp, or seconds of a Duration."""
    whole: float = timestamp.seconds + timestamp.nanos / 1e9
    return whole


def elapsed(job: Any, now: float) -> str:
    """How long a job has run, or waited so far."""
    if job.HasField("started_at"):
        begin = seconds(job.started_at)
    elif job.HasField("submitted_at"):
        begin = seconds(job.submitted_at)
    else:
        return NONE
    end = seconds(job.ended_at) if job.HasField("ended_at") else now
    return format_duration(max(end - begin, 0))


def waits_since(job: Any) -> float | None:
    """When its present or last wait began: as it was submitted, or as its run before ended; None: not known."""
    if not job.HasField("submitted_at"):
        return None
    begin = seconds(job.submitted_at)
    # The present run is the one that `attempt` counts; of one that waits, that is the run before.
    number = job.attempt if job_state(job.state) == "QUEUED" else job.attempt - 1
    if number < 1:
        return begin
    ends = [seconds(run.ended_at) for run in job.attempts if run.number == number and run.HasField("ended_at")]
    return max(begin, *ends) if ends else None


def limit(job: Any) -> str:
    """A job's time limit."""
    return format_duration(seconds(job.time_limit)) if job.HasField("time_limit") else NONE


def clock(timestamp: Any) -> str:
    """A point in time, local, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds(timestamp)))


def gibibytes(count: int) -> str:
    """GiB without the unit, for columns: `11.2`, `80`."""
    return f"{count / 2**30:.1f}".removesuffix(".0")


def count(number: int, noun: str) -> str:
    """`1 GPU`, `3 GPUs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def indices(numbers: Iterable[int]) -> str:
    """`0-2,5` for 0, 1, 2 and 5."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def allocation(gpus: Iterable[Any], with_node: bool) -> str:
    """Indices of an allocation's GPUs, by node where asked: `0-3`, or `node0:0-3 node1:0`."""
    nodes: dict[str, list[int]] = {}
    gone = 0
    for gpu in gpus:
        if gpu.node:
            nodes.setdefault(gpu.node, []).append(gpu.index)
        else:
            gone += 1  # of an old job's, the scheduler knows no more than the uuid
    parts = [f"{node}:{indices(found)}" if with_node else indices(found) for node, found in nodes.items()]
    return " ".join([*parts, *([f"({gone} gone)"] if gone else [])])


def matter(gpu: Any) -> str:
    """What is the matter with a GPU, without its number and what its state says anyway; empty for nothing."""
    return str(gpu.message).removeprefix(f"GPU {gpu.index}: ").removeprefix("drained: ")


def short_reason(job: Any) -> str:
    """Why a job waits or is to end, or how it ended, in a few words; empty for one that runs on."""
    state = job_state(job.state)
    if state == "QUEUED":
        return waiting(job.reason)
    if state == "RUNNING":
        return f"ends by {clock(job.ending_at)}: {job.ending}" if job.ending else ""
    return ended(job.outcome)


def waiting(reason: Any) -> str:
    """Why a job waits, in a few words; the server's sentence where there are none."""
    from gpusched.v1 import job_pb2

    if reason.code == job_pb2.REASON_CODE_RESOURCES:
        if str(reason.message).startswith(f"needs {reason.gpus_needed} GPU"):
            return f"needs {reason.gpus_needed}, {reason.gpus_free} free"
        # Memory of a GPU, cores or memory of a host: counts of GPUs would say nothing.
        return str(reason.message).partition(";")[0].partition(". ")[0]
    if reason.code == job_pb2.REASON_CODE_PRIORITY and reason.ahead_job_id:
        return f"behind job {reason.ahead_job_id}"
    if reason.code == job_pb2.REASON_CODE_UNCONFIRMED:
        return "its client does not answer"
    if reason.code == job_pb2.REASON_CODE_READY:
        return "starts next"
    if reason.code == job_pb2.REASON_CODE_STARTING:
        return "just asked"
    if reason.code == job_pb2.REASON_CODE_HELD:
        return "held"
    if reason.code == job_pb2.REASON_CODE_BEGIN_TIME and reason.HasField("until"):
        return f"not before {clock(reason.until)}"
    if reason.code == job_pb2.REASON_CODE_BACKOFF and reason.HasField("until"):
        return f"tried again at {clock(reason.until)}"
    return str(reason.message).removeprefix("scheduling is ")


def ended(outcome: Any) -> str:
    """How a job ended, in a few words."""
    if outcome.signal:
        return f"killed by {_signal(outcome.signal)}"
    if outcome.HasField("exit_status") and outcome.exit_status:
        words = f"exit {outcome.exit_status}"
        return str(outcome.message) if outcome.message.startswith(f"{words}: ") else words
    return str(outcome.message)


def _signal(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def where(resources: Any) -> str:
    """What a request says of which GPUs and nodes will do, as further parts of a sentence."""
    parts = []
    if resources.nodes:
        parts.append(f"on {', '.join(resources.nodes)}")
    if resources.gpu_ids:
        parts.append(f"of {', '.join(resources.gpu_ids)}")
    if resources.exclude:
        parts.append(f"not {', '.join(resources.exclude)}")
    parts += [f"with {key}={value}" for key, value in sorted(resources.labels.items())]
    if resources.gpus_per_node:
        parts.append(f"{resources.gpus_per_node} on each node")
    if resources.cpus:
        parts.append(count(resources.cpus, "core"))
    if resources.memory_bytes:
        from gpusched.client.units import format_size

        parts.append(f"{format_size(resources.memory_bytes)} of host memory")
    if resources.placement:
        from gpusched.v1 import resources_pb2

        parts.append(resources_pb2.Placement.Name(resources.placement).removeprefix("PLACEMENT_").lower())
    return "".join(f", {part}" for part in parts)
