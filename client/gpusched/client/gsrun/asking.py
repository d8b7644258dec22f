"""What gsrun asks the scheduler for, and what the answers mean to whoever typed the command line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gpusched.client.gsrun import exits
from gpusched.client.gsrun.options import Options

if TYPE_CHECKING:
    from gpusched.client.errors import GpuschedError
    from gpusched.v1 import resources_pb2, scheduler_pb2

MAX_COMMAND_CHARACTERS = 4000
_OPTIONS = {
    "resources.gpus": "-n",
    "resources.gpu_memory_bytes": "--gpu-memory",
    "resources.gpu_model": "--gpu-model",
    "resources.node": "GPUSCHED_NODE",
    "resources.nodes": "--node",
    "resources.gpu_ids": "--gpu-id",
    "resources.exclude": "--exclude",
    "resources.labels": "--constraint",
    "resources.gpus_per_node": "--gpus-per-node",
    "resources.shared": "--shared",
    "resources.cpus": "--cpus",
    "resources.memory_bytes": "--mem",
    "name": "--name",
    "priority": "--priority",
    "time_limit": "--time",
    "estimate": "--estimate",
    "preempt_signal.name": "--signal",
    "preempt_signal.before": "--signal",
    "max_wait": "--max-wait",
    "grace": "GPUSCHED_KILL_AFTER",
}


def resources(options: Options, node: str) -> resources_pb2.ResourceRequest:
    """The GPUs that the command line asks for, of one node."""
    from gpusched.v1 import resources_pb2

    message = resources_pb2.ResourceRequest(
        gpus=options.gpus,
        gpu_memory_bytes=options.gpu_memory_bytes,
        gpu_model=options.gpu_model,
        node=node,
    )
    if options.where:
        from gpusched.client.where import Where

        Where(**options.where).put(message)
    return message


def first_request(options: Options, node: str, request_id: str, start_ticks: int) -> scheduler_pb2.AcquireRequest:
    """The request that queues.

    Args:
        options: the command line.
        node: this machine's name.
        request_id: the same for a call that is repeated.
        start_ticks: start time of this process, the holder.
    """
    from gpusched.v1 import scheduler_pb2

    request = scheduler_pb2.AcquireRequest(
        resources=resources(options, node),
        name=options.name,
        priority=options.priority,
        immediate=options.immediate,
        dry_run=options.dry_run,
        preemptible=options.preemptible,
        request_id=request_id,
        command=_shortened(options.command),
        holder=scheduler_pb2.Holder(pid=os.getpid(), start_ticks=start_ticks),
    )
    if options.signal:
        from gpusched.client.units import parse_signal

        request.preempt_signal.name, before = parse_signal(options.signal, "--signal")
        request.preempt_signal.before.FromMilliseconds(round(before * 1000))
    durations = (
        (request.time_limit, options.time_limit),
        (request.max_wait, options.max_wait),
        (request.estimate, options.estimate),
    )
    for field, seconds in durations:
        if seconds:
            field.FromMilliseconds(round(seconds * 1000))
    return request


def return_request(token: str, start_ticks: int) -> scheduler_pb2.AcquireRequest:
    """The request that comes back to a job by its secret."""
    from gpusched.v1 import scheduler_pb2

    return scheduler_pb2.AcquireRequest(
        resume_token=token, holder=scheduler_pb2.Holder(pid=os.getpid(), start_ticks=start_ticks)
    )


def in_our_words(error: GpuschedError) -> str:
    """The scheduler's message, with the option that a field of the request came from in the field's place."""
    from gpusched.client.fields import named

    return named(error, _OPTIONS)


def exit_code(error: Exception) -> int:
    """What gsrun exits with when the scheduler's answer is this."""
    from gpusched.client import errors

    for kinds, code in (
        ((errors.InvalidRequest, errors.NotSatisfiable), exits.USAGE),
        ((errors.LimitReached, errors.WaitTimeout), exits.NO_GPUS_NOW),
        ((errors.PermissionDenied, errors.Unauthenticated), exits.NOT_ALLOWED),
        ((errors.JobCancelled,), exits.CANCELLED),
        ((errors.ServerUnavailable, errors.ServerMismatch), exits.NO_SERVER),
    ):
        if isinstance(error, kinds):
            return code
    return exits.OWN_FAILURE


def _shortened(words: list[str]) -> list[str]:
    """The command as lists show it: a megabyte of arguments is cut."""
    kept: list[str] = []
    room = MAX_COMMAND_CHARACTERS
    for word in words:
        if len(word) > room:
            kept.append(word[:room] + "…")
            break
        kept.append(word)
        room -= len(word) + 1
    # Bytes that are no text came as surrogates, which protobuf does not take.
    return [word.encode("utf-8", "replace").decode() for word in kept]
