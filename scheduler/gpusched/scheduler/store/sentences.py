"""How the stores say what contradicts what; the same words from all of them."""

from __future__ import annotations

from collections.abc import Iterable


def taken(device: str, epoch: int, job: int) -> str:
    return f"GPU {device} already has an active lease, L{epoch} of job {job}"


def named_twice(epoch: int) -> str:
    return f"lease L{epoch} names a GPU more than once"


def unknown_job(what: str, job: int) -> str:
    return f"{what} belongs to job {job}, which is unknown"


def running_without_lease(job: int) -> str:
    return f"job {job} is running, but has no active lease"


def lease_not_running(epoch: int, job: int, state: str) -> str:
    return f"lease L{epoch} is active, but its job {job} is {state}"


def several_leases(job: int, epochs: Iterable[int]) -> str:
    return f"job {job} has several active leases: {', '.join(f'L{epoch}' for epoch in sorted(epochs))}"


def taken_twice(device: str, epochs: Iterable[int]) -> str:
    return f"GPU {device} has several active leases: {', '.join(f'L{epoch}' for epoch in sorted(epochs))}"


def half_ended(epoch: int, device: str) -> str:
    return f"lease L{epoch} and its hold on GPU {device} disagree about whether it has ended"


def ended_unclear(job: int, state: str, ended: bool) -> str:
    return f"job {job} is {state}, but has {'a' if ended else 'no'} time at which it ended"


def known_lease(epoch: int) -> str:
    return f"there already is a lease L{epoch}"
