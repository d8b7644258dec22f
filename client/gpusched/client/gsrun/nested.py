"""gsrun inside a lease: the command runs on the GPUs of that lease. It never queues behind itself."""

from __future__ import annotations

import os

from gpusched.client.gsrun import tree
from gpusched.client.gsrun.options import Options
from gpusched.client.usage import UsageError

_ASK_SECONDS = 5.0
_WITHOUT_EFFECT = (
    "--time",
    "--estimate",
    "--preemptible",
    "--signal",
    "--priority",
    "--name",
    "--max-wait",
    "--gpu-memory",
    "--gpu-model",
    "--gpu-id",
    "--exclude",
    "--constraint",
    "--node",
    "--gpus-per-node",
    "--shared",
    "--cpus",
    "--mem",
    "--pack",
    "--spread",
    "--leave-children",
    "--on-lost",
    "--url",
)


def outer_environment(options: Options) -> dict[str, str] | None:
    """Changes of the environment that let the command run under the lease around us; None if there is none.

    Args:
        options: the command line; its GPUs are the first so many of the outer lease.

    Raises:
        UsageError: if it asks for more GPUs than the outer lease has.
    """
    job_id = os.environ.get("GPUSCHED_JOB_ID", "")
    uuids = [uuid for uuid in os.environ.get("GPUSCHED_GPUS", "").split(",") if uuid]
    if not job_id or not uuids or os.environ.get("GPUSCHED_NESTED") == "new":
        return None
    if not _holder_is_above_us() and not _lease_lives(job_id, options):
        return None
    if options.gpus > len(uuids):
        have = "1 GPU" if len(uuids) == 1 else f"{len(uuids)} GPUs"
        allowed = (
            f"this runs inside job {job_id}, which has {have}, and would wait for itself; ask for at most "
            f"{len(uuids)}, or set GPUSCHED_NESTED=new to queue for GPUs beside those"
        )
        raise UsageError("-n", options.gpus, allowed)
    changes = {"GPUSCHED_GPUS": ",".join(uuids[: options.gpus])}
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        visible = [device for device in os.environ.get(name, "").split(",") if device]
        if len(visible) != len(uuids):
            visible = uuids  # somebody changed it: back to the lease's own GPUs, by their names
        changes[name] = ",".join(visible[: options.gpus])
    return changes


def without_effect(options: Options) -> list[str]:
    """The options given that mean nothing inside a lease."""
    return [name for name in _WITHOUT_EFFECT if name in options.given]


def _holder_is_above_us() -> bool:
    """Whether the process that keeps the lease is an ancestor of ours: the lease lives, with no need to ask."""
    pid, _, start_ticks = os.environ.get("GPUSCHED_HOLDER", "").partition(":")
    if not (pid.isdigit() and start_ticks.isdigit()):
        return False
    return tree.is_ancestor(int(pid), int(start_ticks), os.getpid())


def _lease_lives(job_id: str, options: Options) -> bool:
    """Ask the scheduler. An environment may outlive its lease, in a tmux that was started under one."""
    # In a process of its own: this one is going to fork, which it must not do with gRPC's threads in it.
    child = os.fork()
    if child == 0:
        lives = False
        try:
            lives = _ask(job_id, options)
        finally:
            os._exit(0 if lives else 1)
    return os.waitpid(child, 0)[1] == 0


def _ask(job_id: str, options: Options) -> bool:
    import grpc

    from gpusched.client.address import server_address
    from gpusched.client.transport import open_channel
    from gpusched.v1 import job_pb2, scheduler_pb2, scheduler_pb2_grpc

    stub = scheduler_pb2_grpc.SchedulerStub(open_channel(server_address(options.url)))
    try:
        job = stub.GetJob(scheduler_pb2.GetJobRequest(job_id=job_id), timeout=_ASK_SECONDS).job
    except grpc.RpcError:
        return False
    return bool(job.state == job_pb2.JOB_STATE_RUNNING and job.uid == os.getuid())
