"""The pass: which waiting jobs start now, on which devices.

Strict order. A job that cannot start blocks every later job that could use a device that it could use, so a
big job is never overtaken by small ones; one that is blocked blocks in its turn. Jobs with nothing in common
do not wait for each other. A job that waits for devices that are drained, foreign, dirty or unhealthy for over
a minute blocks nobody, lest one broken GPU stop the box.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.core.queue import JobClass, JobQueue, Key, Verdict


@dataclass(frozen=True, slots=True)
class Start:
    """A job that starts now."""

    job: Job
    devices: tuple[str, ...]


def plan(queue: JobQueue, pool: Pool, now: float, set_aside_after: float, slots: int | None = None) -> Iterator[Start]:
    """Decide what starts. The caller performs each start (queue and pool change) before it asks for the next.

    Cost: O(k log k) for k classes of equal requests, and O(log n) for each start; independent of how many wait.

    Args:
        now: seconds of the engine's clock.
        set_aside_after: seconds that a job may block others while its devices are out of service.
        slots: at most so many starts, None for any number.
    """
    heads: list[tuple[Key, int, JobClass]] = [
        (first, number, found)
        for number, found in enumerate(queue.classes.values())
        if (first := found.keys.first()) is not None
    ]
    heapify(heads)
    blocked: set[str] = set()
    blockers: list[tuple[frozenset[str], JobId]] = []
    while heads and slots != 0:
        key, number, found = heappop(heads)
        if found.eligible is None:
            found.eligible = pool.eligible(found.request)
        eligible = found.eligible
        behind = not eligible.isdisjoint(blocked)
        devices = None if behind else pool.place(found.request)
        if devices is not None:
            found.unavailable_since = None
            following = found.keys.after(key)
            slots = None if slots is None else slots - 1
            yield Start(queue.job(key), devices)
            if following is not None:
                heappush(heads, (following, number, found))
            continue
        if pool.count_serviceable(eligible) < found.request.gpus:
            if found.unavailable_since is None:
                found.unavailable_since = now
            if now >= found.unavailable_since + set_aside_after:
                found.verdict = Verdict.SET_ASIDE
                continue
        else:
            found.unavailable_since = None
        found.verdict = Verdict.BEHIND if behind else Verdict.WAITS
        found.blocked_by = next((job for devices, job in blockers if not eligible.isdisjoint(devices)), None)
        if not eligible <= blocked:
            # Whoever shares a device with a job that adds none is named after an earlier one: a short list will do.
            blocked |= eligible
            blockers.append((eligible, queue.job(key).id))
