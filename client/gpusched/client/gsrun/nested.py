"""gsrun inside a lease: the command runs on the GPUs of that lease. It never queues behind itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from gpusched.client.gsrun import tree
from gpusched.client.gsrun.options import Options
from gpusched.client.usage import UsageError

_ASK_SECONDS = 5.0
_LOOK_SECONDS = 2.0
_CHOOSING = ("--gpu-id", "--node", "--exclude", "--gpu-memory", "--gpu-model")
_WITHOUT_EFFECT = (
    "--time",
    "--estimate",
    "--preemptible",
    "--signal",
    "--priority",
    "--name",
    "--max-wait",
    *_CHOOSING,
    "--constraint",
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

#: Options by which GPUs could not be chosen, as too little is known of them.
_unchecked: set[str] = set()


class _Gpu:
    """One of the outer lease. Unknown is an index of -1, and what is empty or 0."""

    __slots__ = ("index", "memory_bytes", "model", "node", "uuid")

    def __init__(self, uuid: str, index: int, node: str, memory_bytes: int) -> None:
        self.uuid = uuid
        self.index = index
        self.node = node
        self.memory_bytes = memory_bytes
        self.model = ""

    def __str__(self) -> str:
        from gpusched.client.units import format_size

        place = self.uuid if self.index < 0 else f"{self.node}:{self.index}" if self.node else str(self.index)
        facts = [self.model] if self.model else []
        facts += [format_size(self.memory_bytes)] if self.memory_bytes else []
        return f"{place} ({', '.join(facts)})" if facts else place


def outer_environment(options: Options) -> dict[str, str] | None:
    """Changes of the environment that let the command run under the lease around us; None if there is none.

    Args:
        options: the command line; its GPUs are the first so many of the outer lease that will do.

    Raises:
        UsageError: if the outer lease has not so many.
    """
    job_id = os.environ.get("GPUSCHED_JOB_ID", "")
    uuids = _listed("GPUSCHED_GPUS")
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
    chosen = _chosen(options, uuids, job_id)
    changes = {"GPUSCHED_GPUS": ",".join(uuids[position] for position in chosen)}
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        visible = _listed(name)
        if len(visible) != len(uuids):
            visible = uuids  # somebody changed it: back to the lease's own GPUs, by their names
        changes[name] = ",".join(visible[position] for position in chosen)
    return changes


def without_effect(options: Options) -> list[str]:
    """The options given that mean nothing inside a lease, or could not be heeded; after `outer_environment`."""
    found = []
    for name in _WITHOUT_EFFECT:
        if name in _unchecked:
            found.append(f"{name} (no scheduler answers that knows these GPUs, so it could not be checked)")
        elif name in options.given and name not in _CHOOSING:
            found.append(name)
    return found


# -- choosing ----------------------------------------------------------------------------------------------


def _chosen(options: Options, uuids: list[str], job_id: str) -> list[int]:
    """Positions of the GPUs that the command gets. Raises UsageError if those that will do are too few."""
    if options.given.isdisjoint(_CHOOSING):
        return list(range(options.gpus))
    gpus = _gpus_around_us(uuids)
    conditions = list(_conditions(options))
    if any(not known(gpu) for gpu in gpus for _, _, known, _ in conditions):
        _look_up(gpus, options)
    left = list(range(len(gpus)))
    for name, value, known, fits in conditions:
        if not all(known(gpu) for gpu in gpus):
            _unchecked.add(name)
        # What is unknown of a GPU is not held against it.
        left = [position for position in left if not known(gpus[position]) or fits(gpus[position])]
        if len(left) < options.gpus:
            raise UsageError(name, value, _too_few(gpus, len(left), job_id))
    return left[: options.gpus]


_Test = Callable[[_Gpu], bool]


def _conditions(options: Options) -> Iterator[tuple[str, str, _Test, _Test]]:
    """Of each that was named: the option, its value, whether enough is known of a GPU to tell, whether it will do."""
    ids = options.where.get("gpu_ids", ())
    if ids:
        yield "--gpu-id", ",".join(ids), _can_tell(ids), lambda gpu: not _names(gpu).isdisjoint(ids)
    nodes = options.where.get("nodes", ())
    if nodes:
        yield "--node", ",".join(nodes), lambda gpu: bool(gpu.node), lambda gpu: gpu.node in nodes
    exclude = options.where.get("exclude", ())
    if exclude:
        yield "--exclude", ",".join(exclude), _can_tell(exclude), lambda gpu: _names(gpu).isdisjoint(exclude)
    size = options.gpu_memory_bytes
    if size:
        from gpusched.client.units import format_size

        yield "--gpu-memory", format_size(size), lambda gpu: gpu.memory_bytes > 0, lambda gpu: gpu.memory_bytes >= size
    model = options.gpu_model.strip().lower()
    if model:
        yield "--gpu-model", options.gpu_model, lambda gpu: bool(gpu.model), lambda gpu: model in gpu.model.lower()


def _names(gpu: _Gpu) -> set[str]:
    """All that a GPU of this lease may be called, and its node."""
    return {gpu.uuid, gpu.node, str(gpu.index), f"{gpu.node}:{gpu.index}"} - {""}


def _can_tell(names: tuple[str, ...]) -> _Test:
    """Whether it can be seen that none of these is a GPU's, or that one is."""
    by_uuid = all(name.startswith(("GPU-", "MIG-")) for name in names)
    return lambda gpu: by_uuid or not _names(gpu).isdisjoint(names) or (gpu.index >= 0 and bool(gpu.node))


def _too_few(gpus: list[_Gpu], fitting: int, job_id: str) -> str:
    have = f"GPU{'s' if len(gpus) > 1 else ''} {', '.join(map(str, gpus))}"
    do = f", of which {fitting} will do" if fitting else ""
    return (
        f"this runs inside job {job_id}, which has {have}{do}, and would wait for itself; ask for what is there, or "
        "set GPUSCHED_NESTED=new to queue for GPUs beside those"
    )


# -- what the GPUs around us are ---------------------------------------------------------------------------


def _listed(name: str) -> list[str]:
    return [entry.strip() for entry in os.environ.get(name, "").split(",") if entry.strip()]


def _gpus_around_us(uuids: list[str]) -> list[_Gpu]:
    """As the environment tells of them."""
    node = os.environ.get("GPUSCHED_NODE", "")
    indices = _listed("CUDA_VISIBLE_DEVICES")
    # Numbers that somebody has changed, or uuids (MIG), tell no index.
    plain = indices == _listed("NVIDIA_VISIBLE_DEVICES") and all(text.isascii() and text.isdigit() for text in indices)
    numbers = [int(text) for text in indices] if plain and len(indices) == len(uuids) else [-1] * len(uuids)
    part = os.environ.get("GPUSCHED_GPU_MEMORY", "")  # of a GPU that is shared, this is what we have
    memory = int(part) if part.isascii() and part.isdigit() else 0
    return [_Gpu(uuid, index, node, memory) for uuid, index in zip(uuids, numbers, strict=True)]


def _look_up(gpus: list[_Gpu], options: Options) -> None:
    """Have the scheduler tell the rest, if it answers."""
    import json

    said = _asked(lambda: json.dumps(_list_gpus({gpu.uuid for gpu in gpus}, options)))
    known = json.loads(said) if said else {}
    for gpu in gpus:
        if gpu.uuid in known:
            gpu.index, gpu.node, gpu.model, memory = known[gpu.uuid]
            gpu.memory_bytes = gpu.memory_bytes or memory


def _list_gpus(uuids: set[str], options: Options) -> dict[str, tuple[int, str, str, int]]:
    import grpc

    from gpusched.client.address import server_address
    from gpusched.client.transport import open_channel
    from gpusched.v1 import scheduler_pb2, scheduler_pb2_grpc

    # The lease's own scheduler; `--url` may name another one.
    address = server_address(os.environ.get("GPUSCHED_URL") or options.url)
    stub = scheduler_pb2_grpc.SchedulerStub(open_channel(address))
    try:
        gpus = stub.ListGpus(scheduler_pb2.ListGpusRequest(), timeout=_LOOK_SECONDS).gpus
    except grpc.RpcError:
        return {}
    return {gpu.uuid: (gpu.index, gpu.node, gpu.model, gpu.memory_bytes) for gpu in gpus if gpu.uuid in uuids}


# -- whether there is a lease around us --------------------------------------------------------------------


def _holder_is_above_us() -> bool:
    """Whether the process that keeps the lease is an ancestor of ours: the lease lives, with no need to ask."""
    pid, _, start_ticks = os.environ.get("GPUSCHED_HOLDER", "").partition(":")
    if not (pid.isdigit() and start_ticks.isdigit()):
        return False
    return tree.is_ancestor(int(pid), int(start_ticks), os.getpid())


def _lease_lives(job_id: str, options: Options) -> bool:
    """Ask the scheduler. An environment may outlive its lease, in a tmux that was started under one."""
    return _asked(lambda: "yes" if _ask(job_id, options) else "") == "yes"


def _asked(ask: Callable[[], str]) -> str:
    """What a function that calls the scheduler says; nothing if it fails."""
    # In a process of its own: this one is going to fork, which it must not do with gRPC's threads in it.
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a scheduler that is away is no news here
            with os.fdopen(write, "w") as pipe:
                pipe.write(ask())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        pass  # who started us ignores SIGCHLD, and so did we
    return said


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
