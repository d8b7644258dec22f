"""What the processes seen on a GPU mean: whose they are, and whether the GPU may be handed on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpusched.scheduler.core.model import Condition, Holder, ProcessReading

_GIB = 1024**3
_MIB = 1024**2
_NOBODY: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one look at a GPU.

    Attributes:
        condition: CLEAN if nothing is amiss, else the worst that is.
        message: the reason for people, starting with the GPU's name; empty when clean.
        attributed: processes of the lease that the GPU is under.
        leftover: processes that an earlier lease left behind.
        foreign: processes under no lease.
    """

    condition: Condition
    message: str = ""
    attributed: tuple[ProcessReading, ...] = ()
    leftover: tuple[ProcessReading, ...] = ()
    foreign: tuple[ProcessReading, ...] = ()


def classify(
    processes: Iterable[ProcessReading],
    *,
    gpu: str,
    fault: str = "",
    leased_to: Holder | None = None,
    known_pids: frozenset[tuple[int, int]] = _NOBODY,
    previous_uid: int | None = None,
    previous_job: int = 0,
) -> Verdict:
    """Judge a GPU by what sits on it.

    Args:
        processes: what the inventory saw, the ignored already left out.
        gpu: how people name it, such as "GPU 3".
        fault: the reading's fault, empty when it is well.
        leased_to: holder of the lease that the GPU is under, None if it is under none.
        known_pids: (pid, start_ticks) of the processes seen under the present lease, or the last one, and of its
            holder. They and all they started belong to that lease, and are leftovers once it has ended.
        previous_uid: owner of the last lease; any process of that user counts as a leftover. None for nobody.
        previous_job: id of the last lease's job, 0 if not known.

    Returns:
        UNHEALTHY for a fault whatever else is seen, DIRTY for leftovers, FOREIGN for other processes
        (under a lease: those that are not the holder's), else CLEAN.
    """
    mine: list[ProcessReading] = []
    leftover: list[ProcessReading] = []
    foreign: list[ProcessReading] = []
    for process in processes:
        known = _seen_before(process, known_pids)
        if leased_to is not None and (known or descends_from(process, leased_to)):
            mine.append(process)
        elif leased_to is None and (known or (previous_uid is not None and process.uid == previous_uid)):
            leftover.append(process)
        else:
            foreign.append(process)
    condition, message = _judged(gpu, fault, leftover, foreign, previous_job)
    return Verdict(condition, message, tuple(mine), tuple(leftover), tuple(foreign))


@dataclass(frozen=True, slots=True)
class Tenant:
    """One of several leases that a GPU is under.

    Attributes:
        job: its id.
        holder: its holder, None if nobody said who that is.
        pids: (pid, start_ticks) of the processes seen under it.
    """

    job: int
    holder: Holder | None
    pids: frozenset[tuple[int, int]] = _NOBODY


@dataclass(frozen=True, slots=True)
class SharedVerdict:
    """The outcome of one look at a GPU that several leases share; `attributed` by the lease's job."""

    condition: Condition
    message: str
    attributed: dict[int, tuple[ProcessReading, ...]]


def classify_shared(
    processes: Iterable[ProcessReading],
    *,
    gpu: str,
    fault: str = "",
    tenants: Sequence[Tenant],
    left_pids: frozenset[tuple[int, int]] = _NOBODY,
    previous_uid: int | None = None,
    previous_job: int = 0,
) -> SharedVerdict:
    """Judge a GPU that several leases share: every process must belong to one of them.

    Args:
        processes, gpu, fault: as for `classify`.
        tenants: the leases.
        left_pids: (pid, start_ticks) of the processes seen under leases on it that have ended.
        previous_uid: owner of the last of those; a process of that user that belongs to no tenant counts as a
            leftover. None for nobody.
        previous_job: id of its job.

    Returns:
        UNHEALTHY, DIRTY and FOREIGN as from `classify`. Where a tenant's holder is not known, whose the rest of the
        processes are cannot be told, and none is called foreign.
    """
    attributed: dict[int, list[ProcessReading]] = {tenant.job: [] for tenant in tenants}
    leftover: list[ProcessReading] = []
    foreign: list[ProcessReading] = []
    for process in processes:
        owner = next((tenant.job for tenant in tenants if _belongs(process, tenant)), None)
        if owner is not None:
            attributed[owner].append(process)
        elif _seen_before(process, left_pids) or (previous_uid is not None and process.uid == previous_uid):
            leftover.append(process)
        elif all(tenant.holder is not None for tenant in tenants):
            foreign.append(process)
    condition, message = _judged(gpu, fault, leftover, foreign, previous_job)
    return SharedVerdict(condition, message, {job: tuple(found) for job, found in attributed.items()})


def _belongs(process: ProcessReading, tenant: Tenant) -> bool:
    if tenant.holder is not None and descends_from(process, tenant.holder):
        return True
    return _seen_before(process, tenant.pids)


def _judged(
    gpu: str, fault: str, leftover: list[ProcessReading], foreign: list[ProcessReading], previous_job: int
) -> tuple[Condition, str]:
    if fault:
        return Condition.UNHEALTHY, f"{gpu}: {fault}"
    if leftover:
        return Condition.DIRTY, f"{gpu}: {_still_there(leftover, previous_job)}"
    if foreign:
        return Condition.FOREIGN, f"{gpu}: {_intruding(foreign)}"
    return Condition.CLEAN, ""


def descends_from(process: ProcessReading, holder: Holder) -> bool:
    """Whether the process is the holder or one of its descendants. A start time of 0 fits any."""
    return any(_same(link, (holder.pid, holder.start_ticks)) for link in _chain(process))


def format_bytes(count: int) -> str:
    """A size for people: "11.2 GiB", "300 MiB"."""
    mebibytes = max(1, round(count / _MIB))
    return f"{mebibytes} MiB" if mebibytes < 1024 else f"{count / _GIB:.1f} GiB"


def _seen_before(process: ProcessReading, known: frozenset[tuple[int, int]]) -> bool:
    return any(_same(link, one) for link in _chain(process) for one in known)


def _chain(process: ProcessReading) -> tuple[tuple[int, int], ...]:
    return process.ancestors or ((process.pid, process.start_ticks),)


def _same(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] == other[0] and (one[1] == other[1] or 0 in (one[1], other[1]))


def _still_there(processes: list[ProcessReading], job: int) -> str:
    biggest = _biggest(processes)
    of_job = f" of job {job}" if job else " of the last job"
    holds = f"still holds {format_bytes(biggest.memory_bytes)}" if biggest.memory_bytes else "is still on it"
    return f"{_name(biggest)}{of_job} {holds}{_more(processes)}"


def _intruding(processes: list[ProcessReading]) -> str:
    biggest = _biggest(processes)
    holds = f"holds {format_bytes(biggest.memory_bytes)}" if biggest.memory_bytes else "is on it"
    return f"{_name(biggest)} {holds}, not under a lease{_more(processes)}"


def _biggest(processes: list[ProcessReading]) -> ProcessReading:
    return max(processes, key=lambda process: (process.memory_bytes, -process.pid))


def _name(process: ProcessReading) -> str:
    command = "" if process.command in ("", "?") else f" {process.command}"
    user = "unknown user" if process.user in ("", "?") else process.user
    return f"pid {process.pid}{command} ({user})"


def _more(processes: list[ProcessReading]) -> str:
    return f", and {len(processes) - 1} more" if len(processes) > 1 else ""
