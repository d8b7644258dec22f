"""Waiting jobs: one order for all, and the same order within each class of equal requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.model import Request
from gpusched.scheduler.core.ordered import RankedList

Key = tuple[int, int]


class Verdict(Enum):
    """What the last pass found out about a class."""

    UNSEEN = "unseen"
    WAITS = "waits"  # its first job has no job ahead, but too few free devices
    BEHIND = "behind"  # a job ahead blocks it
    SET_ASIDE = "set aside"  # it waits for devices that somebody must mend; it blocks nobody


@dataclass(slots=True, eq=False)
class JobClass:
    """Jobs that ask for the same: if the first cannot start, none of them can."""

    request: Request
    keys: RankedList[Key] = field(default_factory=RankedList)
    #: Devices that could serve, once a pass has asked.
    eligible: frozenset[str] | None = None
    verdict: Verdict = Verdict.UNSEEN
    #: The first of the jobs whose wait blocks this class (verdict BEHIND).
    blocked_by: JobId | None = None
    #: Since when too few of its devices are in service, None if enough are.
    unavailable_since: float | None = None


Findings: TypeAlias = tuple[Verdict, JobId | None, float | None]


class JobQueue:
    """All waiting jobs. Submit, removal and position are O(log n); a pass sees one job per class."""

    def __init__(self) -> None:
        self.classes: dict[Request, JobClass] = {}
        self._order: RankedList[Key] = RankedList()
        self._jobs: dict[JobId, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: Job) -> bool:
        return job.id in self._jobs

    def __iter__(self) -> Iterator[Job]:
        """In the order of their positions."""
        for _, number in self._order:
            yield self._jobs[JobId(number)]

    def add(self, job: Job) -> None:
        """Let a job wait. One that is not awake has a position and is not considered."""
        self._jobs[job.id] = job
        self._order.add(job.key)
        if job.awake:
            self._class(job.request).keys.add(job.key)

    @property
    def considered(self) -> int:
        """How many of them a pass may start; the others have a gate."""
        return sum(len(found.keys) for found in self.classes.values())

    def remove(self, job: Job) -> None:
        """Take a job out. Its key and wakefulness must be those it was added with."""
        del self._jobs[job.id]
        self._order.remove(job.key)
        if job.awake:
            found = self.classes[job.request]
            found.keys.remove(job.key)
            if not found.keys:
                del self.classes[job.request]

    def change_priority(self, job: Job, priority: int) -> None:
        """Give a waiting job its place in another tier. What is known of its class stays known."""
        lists = [self._order]
        if job.awake:
            lists.append(self.classes[job.request].keys)
        for keys in lists:
            keys.remove(job.key)
        job.priority = priority
        for keys in lists:
            keys.add(job.key)

    def position(self, job: Job) -> int:
        """Rank in the queue; 1 is next."""
        return self._order.rank(job.key) + 1

    def rank(self, key: Key) -> int:
        """How many waiting jobs come before a key."""
        return self._order.rank(key)

    def job(self, key: Key) -> Job:
        return self._jobs[JobId(key[1])]

    def after(self, key: Key | None) -> Job | None:
        """The next job after a key, which need not be there any more; the first job for None."""
        following = self._order.first() if key is None else self._order.after(key)
        return None if following is None else self.job(following)

    def findings(self) -> dict[Request, Findings]:
        """What the last pass found out about each class, to be put back after a pass that was only tried."""
        return {
            request: (found.verdict, found.blocked_by, found.unavailable_since)
            for request, found in self.classes.items()
        }

    def put_back(self, findings: dict[Request, Findings]) -> None:
        """Undo what a pass that was only tried found out. The classes must be those of `findings`."""
        for request, (verdict, blocked_by, since) in findings.items():
            found = self.classes[request]
            found.verdict, found.blocked_by, found.unavailable_since = verdict, blocked_by, since

    def _class(self, request: Request) -> JobClass:
        found = self.classes.get(request)
        if found is None:
            found = self.classes[request] = JobClass(request)
        return found
