"""Waiting jobs: one order for all, and the same order within each class of equal requests."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from gpusched.scheduler.core.bounded import BoundedList
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.model import Request
from gpusched.scheduler.core.ordered import RankedList
from gpusched.scheduler.core.orders.base import ONE_LANE, Key, Lane, Order

#: A place in the order that stays good when the job that stood there has left.
Place: TypeAlias = tuple[Lane, Key]
#: Number of a lane at this moment, and the key within it: comparable across lanes until they are arranged anew.
Rank: TypeAlias = tuple[int, Key]
#: What sets classes apart.
ClassId: TypeAlias = tuple[Request, Lane, Hashable]

NO_LIMIT = float("inf")


class Verdict(Enum):
    """What the last pass found out about a class."""

    UNSEEN = "unseen"
    WAITS = "waits"  # its first job has no job ahead, but too few free devices
    BEHIND = "behind"  # a job ahead blocks it
    SET_ASIDE = "set aside"  # it waits for devices that somebody must mend; it blocks nobody
    QUOTA = "quota"  # its owner has as much as allowed; it blocks nobody


#: By names of their own: Python 3.11 takes ten times as long to find a member of an enumeration, and every pass does.
WAITS, BEHIND = Verdict.WAITS, Verdict.BEHIND


@dataclass(slots=True, eq=False)
class JobClass:
    """Jobs that ask for the same, of one lane: if the first cannot start for want of devices, none of them can."""

    id: ClassId
    request: Request
    lane: Lane
    #: Their keys, each with the job's time limit in seconds.
    keys: BoundedList[Key] = field(default_factory=BoundedList)
    #: The same by (limit, key), kept only where the shortest is looked for.
    by_limit: RankedList[tuple[float, Key]] | None = None
    #: Devices that could serve, once a pass has asked.
    eligible: frozenset[str] | None = None
    verdict: Verdict = Verdict.UNSEEN
    #: The first of the jobs whose wait blocks this class (verdict BEHIND).
    blocked_by: JobId | None = None
    #: Since when too few of its devices are in service, None if enough are.
    unavailable_since: float | None = None

    def is_told_as(self, key: Key) -> bool:
        """Whether what is found out about a job holds for its class: it is the first, which need not be sorted in."""
        first = self.keys.first()
        return first is None or not first < key


Findings: TypeAlias = tuple[Verdict, JobId | None, float | None]


def limit_of(job: Job) -> float:
    """Seconds that backfill must reckon with: the time limit, infinite where there is none."""
    return NO_LIMIT if job.time_limit is None else job.time_limit


class JobQueue:
    """All waiting jobs. Submit, removal and position are O(log n); a pass sees one job per class.

    Most jobs start in the first pass that sees them. So one that was added is sorted in only when somebody asks for
    something that depends on it.

    Args:
        order: who is next.
        group: what sets jobs with equal requests apart in a pass, such as their owner where there are quotas.
        shortest: keep each class by time limit, too.
    """

    def __init__(self, order: Order, group: Callable[[Job], Hashable] | None = None, *, shortest: bool = False) -> None:
        self.order = order
        self._classes: dict[ClassId, JobClass] = {}
        self._group = group
        self._shortest = shortest
        self._lanes: dict[Lane, RankedList[Key]] = {ONE_LANE: RankedList()} if order.single else {}
        self._sorted: list[Lane] = list(self._lanes)
        #: Number of each lane, first to last, until they are arranged anew.
        self.lane_index: dict[Lane, int] = {lane: i for i, lane in enumerate(self._sorted)}
        self._jobs: dict[JobId, Job] = {}
        self._found: dict[JobId, JobClass] = {}
        #: Of each lane, those who are not in line: they have a place in the order, and no position.
        self._aside: dict[Lane, RankedList[Key]] = {}
        #: The last of them while it is not sorted in yet; others wait for that, lest what is known of a class be lost.
        self._late: dict[JobId, Job] = {}
        #: The order has changed in a mere look, and nobody was told yet.
        self._drifted = False
        #: How many of them a pass may start; the others have a gate.
        self.considered = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: Job) -> bool:
        return job.id in self._jobs

    def __iter__(self) -> Iterator[Job]:
        """In the order of their positions."""
        self._sort_in()
        for lane in list(self._sorted):
            for key in self._lanes[lane]:
                yield self._jobs[key[-1]]

    # -- changing ----------------------------------------------------------------------------------------

    def place(self, job: Job) -> None:
        """Work out where a job stands, or would stand."""
        job.lane = self.order.lane(job)
        job.key = self.order.key(job)

    def add(self, job: Job) -> None:
        """Let a job wait. One that is not awake has a position and is not considered."""
        self._sort_in()
        self.place(job)
        self._jobs[job.id] = self._late[job.id] = job
        if job.lane not in self.lane_index:
            self._lanes[job.lane] = RankedList()
            self.lane_index[job.lane] = len(self._sorted)
            self._sorted.append(job.lane)
        if job.awake:
            self.considered += 1

    def _sort_in(self) -> None:
        """Put jobs to where they belong that were added since."""
        if not self._late:
            return
        late, self._late = self._late, {}
        for job in late.values():
            self._lanes[job.lane].add(job.key)
            if job.awake:
                found = self.class_for(job)
                found = self._found[job.id] = self._classes.setdefault(found.id, found)
                limit = limit_of(job)
                found.keys.add(job.key, limit)
                if found.by_limit is not None:
                    found.by_limit.add((limit, job.key))
            elif not job.in_line:
                self._aside.setdefault(job.lane, RankedList()).add(job.key)

    def remove(self, job: Job) -> None:
        """Take a job out. Its wakefulness and time limit must be those it was added with."""
        del self._jobs[job.id]
        late = self._late.pop(job.id, None) is not None
        if not late:
            self._sort_in()
            self._lanes[job.lane].remove(job.key)
        if job.awake:
            self.considered -= 1
            found = self._found.pop(job.id, None)
            if found is not None and not late:
                if not found.keys.remove(job.key):
                    del self._classes[found.id]
                if found.by_limit is not None:
                    found.by_limit.remove((limit_of(job), job.key))
        elif not late and not job.in_line:
            self._aside[job.lane].remove(job.key)

    def change(self, job: Job, change: Callable[[Job], None]) -> None:
        """Change something of a waiting job on which its place depends. What is known of its class stays known."""
        found = self.class_of(job) if job.awake else None
        self.remove(job)
        if found is not None and not found.keys:
            self._classes[found.id] = found
        change(job)
        self.add(job)
        if found is not None:
            self._sort_in()
            if not found.keys:
                del self._classes[found.id]

    def arrange(self, now: float, trial: Lane | None = None) -> bool:
        """Put the lanes in order.

        Args:
            now: seconds of the engine's clock.
            trial: a lane that is to be among them though nobody waits in it, as nothing but a look is meant.

        Returns:
            True if anybody's position has changed, by this or by looks before it.
        """
        if self.order.single:
            return False
        self._sort_in()
        empty = [lane for lane, keys in self._lanes.items() if not keys]
        for lane in empty:
            del self._lanes[lane]
            self._aside.pop(lane, None)
        before = [lane for lane in self._sorted if lane in self._lanes]
        if trial is not None:
            self._lanes.setdefault(trial, RankedList())
        arranged = self.order.arrange(self._lanes, now)
        changed = self._drifted or before != [lane for lane in arranged if self._lanes[lane]]
        self._drifted = changed and trial is not None
        self._sorted = arranged
        self.lane_index = {lane: i for i, lane in enumerate(arranged)}
        return changed

    # -- questions ---------------------------------------------------------------------------------------

    def job(self, key: Key) -> Job:
        return self._jobs[key[-1]]

    def get(self, job_id: JobId) -> Job | None:
        """A waiting job, None if it does not wait."""
        return self._jobs.get(job_id)

    @property
    def classes(self) -> dict[ClassId, JobClass]:
        """All classes of awake jobs."""
        self._sort_in()
        return self._classes

    def firsts(self) -> Iterator[Job]:
        """The first of each class."""
        return (self.job(found.keys.first() or ()) for found in self.classes.values())

    def class_of(self, job: Job) -> JobClass:
        """The class of a waiting, awake job."""
        self._sort_in()
        return self._found[job.id]

    def class_for(self, job: Job) -> JobClass:
        """The same for a look: the last job need not be in its class yet, nor the class among the others."""
        found = self._found.get(job.id)
        if found is None:
            name = (job.spec.request, job.lane, None if self._group is None else self._group(job))
            found = self._classes.get(name)
            if found is None:
                found = JobClass(name, job.spec.request, job.lane)
                if self._shortest:
                    found.by_limit = RankedList()
            self._found[job.id] = found
        return found

    def ranked(self, lane: Lane, key: Key) -> Rank:
        """What to compare to tell who of several lanes is first."""
        return self.lane_index[lane], key

    def is_before(self, job: Job, other: Job) -> bool:
        """Whether a job stands before another one; both must wait."""
        return (self.lane_index[job.lane], job.key) < (self.lane_index[other.lane], other.key)

    def rank(self, job: Job) -> int:
        """How many waiting jobs come before a job, which need not be among them if its place is known."""
        self._sort_in()
        return self._before(job, self._lanes)

    def position(self, job: Job) -> int:
        """Rank among those in line, 1 is next; 0 for one that is not."""
        if not job.in_line:
            return 0
        rank = self.rank(job)
        return rank + 1 - self._before(job, self._aside) if self._aside else rank + 1

    @property
    def in_line(self) -> int:
        """How many have a position."""
        self._sort_in()
        return len(self._jobs) - sum(map(len, self._aside.values()))

    def _before(self, job: Job, lanes: dict[Lane, RankedList[Key]]) -> int:
        """How many of some come before a job."""
        before = 0
        for lane in self._sorted:
            keys = lanes.get(lane)
            if lane == job.lane:
                return before + (keys.rank(job.key) if keys is not None else 0)
            before += len(keys) if keys is not None else 0
        return before

    def first(self) -> Job | None:
        """The first job, None if nobody waits."""
        if len(self._late) == 1 == len(self._jobs):
            (job,) = self._late.values()
            return job
        return self.after(None)

    def after(self, place: Place | None) -> Job | None:
        """The next job after a place, at which nobody need stand any more; the first job for None."""
        self._sort_in()
        start = 0
        if place is not None:
            lane, key = place
            start = self.lane_index.get(lane, 0)
            if lane in self._lanes and (following := self._lanes[lane].after(key)) is not None:
                return self.job(following)
            start += lane in self._lanes
        for lane in self._sorted[start:]:
            first = self._lanes[lane].first()
            if first is not None:
                return self.job(first)
        return None

    def findings(self) -> dict[ClassId, Findings]:
        """What the last pass found out about each class, to be put back after a pass that was only tried."""
        return {
            name: (found.verdict, found.blocked_by, found.unavailable_since) for name, found in self.classes.items()
        }

    def put_back(self, findings: dict[ClassId, Findings]) -> None:
        """Undo what a pass that was only tried found out. The classes must be those of `findings`."""
        for name, (verdict, blocked_by, since) in findings.items():
            found = self.classes[name]
            found.verdict, found.blocked_by, found.unavailable_since = verdict, blocked_by, since
