"""Leases around us: an enclosing block, an outer job in whose process tree we are, leases kept after their block."""

from __future__ import annotations

import contextvars
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gpusched.client import procs
from gpusched.client.address import server_address
from gpusched.client.environment import JOB_ID
from gpusched.client.lease_views import AllocatedGpu
from gpusched.client.units import format_size
from gpusched.client.usage import UsageError

if TYPE_CHECKING:
    import asyncio

    from gpusched.client.lease import BaseLease
    from gpusched.client.options import AcquireOptions
    from gpusched.client.session import Session
    from gpusched.client.views import Job

# A block inside a task encloses what that task and its children do; any other block what its thread does. So leases
# side by side, in tasks or threads, are leases of their own, and only those inside one another share. A lease that its
# task left open when it ended (a cell of a notebook, say) counts for the thread.
_in_task: contextvars.ContextVar[tuple[BaseLease, ...]] = contextvars.ContextVar("gpusched_leases", default=())
_in_thread = threading.local()

_kept: list[Session] = []
_kept_lock = threading.Lock()


class _Entered(NamedTuple):
    """A lease that was entered in this thread, and by which task, if by one."""

    lease: BaseLease
    task: weakref.ref[asyncio.Task[Any]] | None

    @property
    def encloses_thread(self) -> bool:
        task = self.task() if self.task is not None else None
        return task is None or task.done()


def enter(lease: BaseLease) -> None:
    """Note that what follows runs inside the lease's block."""
    task = _current_task()
    # Those that another thread has ended are forgotten here.
    entered = [each for each in _entered_in_thread() if not each.lease.released]
    _in_thread.entered = [*entered, _Entered(lease, weakref.ref(task) if task is not None else None)]
    if task is not None:
        _in_task.set((*(each for each in _in_task.get() if not each.released), lease))


def leave(lease: BaseLease) -> None:
    """The opposite of `enter`; nothing if it was not entered here."""
    _in_task.set(tuple(each for each in _in_task.get() if each is not lease))
    _in_thread.entered = [each for each in _entered_in_thread() if each.lease is not lease]


def enclosing() -> BaseLease | None:
    """The innermost lease of this very process whose block we are in, if it is still held."""
    of_thread = [each.lease for each in _entered_in_thread() if each.encloses_thread]
    for lease in reversed([*of_thread, *_in_task.get()]):
        if lease._owner_pid == os.getpid() and not lease.lost and not lease.released:
            return lease
    return None


def inherited_job(address: str, own_jobs: Sequence[str]) -> str:
    """The job of another process that we run under, as the environment says; empty if there is none.

    Args:
        address: the scheduler that is going to be asked; another scheduler's job is none of its business.
        own_jobs: jobs that this very process holds, whose variables are not inherited.
    """
    job_id = os.environ.get(JOB_ID, "")
    if not job_id or job_id in own_jobs:
        return ""
    try:
        return job_id if server_address() == address else ""
    except UsageError:
        return ""


def runs_under(job: Job) -> bool:
    """Whether this process works under the job's lease now: a variable may outlive its lease (tmux, nohup)."""
    return job.state == "running" and (job.holder_pid == 0 or job.holder_pid in procs.ancestors(os.getpid()))


def fitting(gpus: Sequence[AllocatedGpu], options: AcquireOptions) -> list[int] | None:
    """Positions of the GPUs among these that do for the request; None if they are too few."""
    # What is unknown of an inherited GPU is not held against it. Of one that is shared, our part is what we have.
    suitable = [
        position
        for position, gpu in enumerate(gpus)
        if (not (had := gpu.share_bytes or gpu.memory_bytes) or had >= options.gpu_memory_bytes)
        and options.where.allows(gpu.uuid, gpu.index, gpu.node)
        and (not gpu.model or options.gpu_model.strip().lower() in gpu.model.lower())
    ]
    return suitable[: options.gpus] if len(suitable) >= options.gpus else None


def without_effect(options: AcquireOptions) -> list[str]:
    """What was asked for and means nothing inside a lease, or cannot be known of it, by name of the parameter."""
    where = options.where
    asked = {
        "labels": where.labels,
        "shared": where.shared,
        "cpus": where.cpus,
        "mem": where.mem,
        "gpus_per_node": where.gpus_per_node,
        "placement": where.placement,
        "priority": options.priority,
        "max_wait": options.max_wait is not None,
        "immediate": options.immediate,
        "estimate": options.estimate is not None,
        "preemptible": options.preemptible,
        "signal": options.signal is not None,
    }
    return [name for name, value in asked.items() if value]


def names(gpus: Sequence[AllocatedGpu]) -> str:
    """Some GPUs for people: `GPU 0`, `GPUs 0, 1`, `no GPU`."""
    if not gpus:
        return "no GPU"
    listed = ", ".join(str(gpu.index) if gpu.index >= 0 else gpu.uuid for gpu in gpus)
    return f"GPU{'s' if len(gpus) > 1 else ''} {listed}"


def inside(job_id: str, chosen: Sequence[AllocatedGpu], options: AcquireOptions) -> str:
    """The line that says what a lease inside a job has."""
    used = f"using its {names(chosen)}" if chosen else "using none of its GPUs"
    text = f"gpusched: inside job {job_id}: {used} (nested='new' asks for others)"
    idle = without_effect(options)
    return f"{text}; this has no effect here: {', '.join(idle)}" if idle else text


def too_few(job_id: str, gpus: Sequence[AllocatedGpu], options: AcquireOptions) -> str:
    """Why the GPUs of the job around us will not do."""
    where = options.where
    wanted = f"{options.gpus} GPU{'s' if options.gpus > 1 else ''}"
    if options.gpu_model:
        wanted += f" of model {options.gpu_model}"
    if where.gpu_ids:
        wanted += f" of {', '.join(where.gpu_ids)}"
    if where.nodes:
        wanted += f" on {' or '.join(where.nodes)}"
    if where.exclude:
        wanted += f" other than {', '.join(where.exclude)}"
    if options.gpu_memory_bytes:
        wanted += f" with {format_size(options.gpu_memory_bytes)} each"
    shares = {gpu.share_bytes for gpu in gpus if gpu.share_bytes}
    have = names(gpus) + (f" (at most {format_size(max(shares))} of each)" if shares else "")
    return (
        f"this runs inside job {job_id}, which holds {have}, and asks for {wanted}: that would wait for "
        "itself. Ask for enough in the outer job, or pass nested='new' (or set GPUSCHED_NESTED=new) to queue for others"
    )


def keep(session: Session) -> None:
    """Hold on to a lease whose block has ended while this process still sits on its GPUs."""
    with _kept_lock:
        if session not in _kept:
            _kept.append(session)


def take_kept() -> list[Session]:
    """The kept leases of this process that are still held, oldest first; they are kept no more until put back."""
    with _kept_lock:
        sessions = [session for session in _kept if not session.foreign and not session.over]
        _kept.clear()
    return sessions


def _entered_in_thread() -> list[_Entered]:
    entered: list[_Entered] = getattr(_in_thread, "entered", [])
    return entered


def _current_task() -> asyncio.Task[Any] | None:
    loaded = sys.modules.get("asyncio")  # where it is not imported, no task runs
    try:
        return loaded.current_task() if loaded is not None else None
    except RuntimeError:
        return None
