"""The replay: jobs of a log go through the engine of the live server, in simulated time. No I/O.

Only time is simulated. What the driver of the server does upon calls and timers is done here upon the next submit,
the next end or the engine's next deadline, whichever comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from math import inf
from typing import TypeAlias

from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.effects import Granted
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import DomainError
from gpusched.scheduler.core.jobs import JobId, JobSpec
from gpusched.scheduler.core.model import NodeInfo, Owner, Placement, Request
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.settings import Settings
from gpusched.scheduler.core.states import Outcome
from gpusched.scheduler.simulate.workload import LoggedJob, Seconds, SimulationError

#: Time limit of work that takes no time at all: a limit must be more than 0.
_INSTANT = 1e-3
#: So many jobs are submitted before the engine's changes, which nobody saves here, are thrown away.
_FORGET_EVERY = 256
#: Deadlines that may pass without a start when nothing else is left to happen.
_PATIENCE = 1000
_ENDED_WELL = Outcome(exit_status=0)
#: When, place in the order of starts, the engine's number, and the lease's epoch of a running job.
_End: TypeAlias = tuple[Seconds, int, JobId, int]
_PASS = ev.Pass()
_TICK = ev.Tick()


class Estimate(Enum):
    """What the scheduler is told about how long a job will take."""

    EXACT = "exact"  # its run time, as nobody knows it in life
    LIMIT = "limit"  # the time that its user asked for; of named jobs, what is learned from their like


class Events(Enum):
    """What happens first at one instant, and when the engine looks who can start.

    TOGETHER: ends (in the order of their starts), then submits, then one pass: as in the live server, which takes a
    burst of events together.
    ONE_BY_ONE: submits with a pass for each, then ends with a pass for each; there is no pass for a submit that needs
    more than is free, unless the shortest candidates go first. Jobs whose limits expire at this instant are free
    before all that. The schedules published for EASY are made this way.
    """

    TOGETHER = "together"
    ONE_BY_ONE = "one-by-one"


@dataclass(slots=True)
class Replayed:
    """What became of a log.

    Attributes:
        starts: when each job started, in the order of the jobs given.
        placements: uuids that each job had, in the same order; empty unless they were asked for.
        events: how many the engine handled.
        outlived: jobs that ran for longer than their users asked for. Their limit is taken to be their run time.
    """

    starts: list[Seconds]
    placements: list[tuple[str, ...]] = field(default_factory=list)
    events: int = 0
    outlived: int = 0


def settings_for(policy: PolicySettings) -> Settings:
    """Settings of a simulated server under a policy.

    Nobody looks at simulated devices, and no log has a job that outlives its limit (see `Replayed.outlived`), so
    nothing need be done about either.
    """
    return Settings(policy=policy, check_released=False, keep_ended=0, limit_notice=-inf, end_grace=inf)


def replay(
    jobs: Sequence[LoggedJob],
    nodes: tuple[NodeInfo, ...],
    settings: Settings,
    *,
    estimate: Estimate = Estimate.EXACT,
    events: Events = Events.TOGETHER,
    placement: Placement = Placement.PACK,
    keep_placements: bool = False,
) -> Replayed:
    """Let the engine schedule jobs.

    Args:
        jobs: in the order in which they are submitted; times must not go back.
        nodes: where they run.
        settings: those of `settings_for`, as a rule; released devices must be free at once.
        estimate: what the engine is told of run times.
        events: what comes first at one instant.
        placement: how jobs choose among nodes.
        keep_placements: tell which devices each job had.

    Raises:
        SimulationError: the engine refuses a job, or one of them can never start.
    """
    run = _Replay(jobs, nodes, settings, estimate, placement, keep_placements)
    if events is Events.TOGETHER:
        run.together()
    else:
        policy = settings.policy
        run.one_by_one(always_pass=policy.backfill == "easy" and policy.candidates == "sjbf")
    return run.result()


class _Replay:
    def __init__(
        self,
        jobs: Sequence[LoggedJob],
        nodes: tuple[NodeInfo, ...],
        settings: Settings,
        estimate: Estimate,
        placement: Placement,
        keep_placements: bool,
    ) -> None:
        self._jobs = jobs
        self._placement = placement
        self._exact = estimate is Estimate.EXACT
        self._engine = Engine(nodes, settings)
        self._free = sum(len(node.devices) for node in nodes)
        # The engine numbers jobs as they come, from 1: what it calls n is job n - 1 here.
        self._next = 0
        self._starts: list[Seconds] = [-1] * len(jobs)
        self._limits: list[float] = [inf] * len(jobs)
        self._placements: list[tuple[str, ...]] = [()] * len(jobs) if keep_placements else []
        self._ends: list[_End] = []
        self._started = 0
        self._handled = 0
        self._outlived = 0
        self._requests: dict[int, Request] = {}
        self._owners: dict[str, Owner] = {}

    def result(self) -> Replayed:
        return Replayed(self._starts, self._placements, self._handled, self._outlived)

    # -- the two orders of events -----------------------------------------------------------------------------------

    def together(self) -> None:
        jobs, engine, ends = self._jobs, self._engine, self._ends
        count = len(jobs)
        release, submit = self._release, self._submit
        while True:
            now = self._advance()
            if now is None:
                return
            while ends and ends[0][0] == now:
                release(heappop(ends), now)
            while self._next < count and jobs[self._next].submit == now:
                submit(now)
            if engine.pass_wanted:
                self._pass(now)

    def one_by_one(self, always_pass: bool) -> None:
        jobs, ends, limits, starts, engine = self._jobs, self._ends, self._limits, self._starts, self._engine
        count = len(jobs)
        while True:
            now = self._advance()
            if now is None:
                return
            over: list[_End | None] = []
            while ends and ends[0][0] == now:
                end = heappop(ends)
                index = end[2] - 1
                # Who has used its whole limit is gone by now for everybody; the others are so at their turn.
                if starts[index] + limits[index] <= now:
                    self._release(end, now)
                    over.append(None)
                else:
                    over.append(end)
            while self._next < count and jobs[self._next].submit == now:
                fits = jobs[self._next].gpus <= self._free
                self._submit(now)
                if always_pass or fits:
                    self._pass(now)
            for still_there in over:
                if still_there is not None:
                    self._release(still_there, now)
                if engine.pass_wanted:
                    self._pass(now)

    def _advance(self) -> Seconds | None:
        """Go to the next instant at which anything happens; None if nothing will. Deadlines on the way are kept."""
        engine, ends, jobs = self._engine, self._ends, self._jobs
        patience = _PATIENCE
        while True:
            now: Seconds | None = jobs[self._next].submit if self._next < len(jobs) else None
            if ends and (now is None or ends[0][0] < now):
                now = ends[0][0]
            due = engine.next_deadline()
            if now is None:
                if not len(engine.queue):
                    return None
                if due is None or patience == 0:
                    waiting = next(iter(engine.queue))
                    raise SimulationError(
                        f"{self._name(waiting.id)} and {len(engine.queue) - 1} more never start, with nothing running"
                    )
                patience -= 1
            elif due is None or due >= now:
                return now
            # A pass that was left out after a submit is not made up for here.
            wanted = engine.pass_wanted
            engine.handle(_TICK, due)
            self._handled += 1
            if engine.pass_wanted and not wanted:
                self._pass(due)

    # -- events -----------------------------------------------------------------------------------------------------

    def _submit(self, now: Seconds) -> None:
        index = self._next
        self._next = index + 1
        job = self._jobs[index]
        gpus = job.gpus
        request = self._requests.get(gpus)
        if request is None:
            request = self._requests[gpus] = Request(gpus, placement=self._placement)
        owner = self._owners.get(job.user)
        if owner is None:
            owner = self._owners[job.user] = Owner(1000 + len(self._owners), job.user or "-")
        limit: float | None
        estimate: float | None
        if self._exact:
            limit = estimate = job.run or _INSTANT
        else:
            limit = job.requested
            if limit is not None and limit < job.run:
                limit = job.run
                self._outlived += 1
            estimate = job.estimate
            # Without a name there is nothing to learn from.
            if estimate is None and not job.name:
                estimate = limit
        if limit is not None:
            self._limits[index] = limit
        spec = JobSpec(owner, request, job.name, job.priority, time_limit=limit, estimate=estimate, auto_confirm=True)
        try:
            self._engine.handle(ev.Submit(spec), now)
        except DomainError as error:
            raise SimulationError(f"{self._name(index + 1)}: {error}") from None
        self._handled += 1
        if not index % _FORGET_EVERY:
            self._engine.take_changes()

    def _release(self, end: _End, now: Seconds) -> None:
        self._engine.handle(ev.Release(end[2], end[3], _ENDED_WELL), now)
        self._handled += 1
        self._free += self._jobs[end[2] - 1].gpus

    def _pass(self, now: Seconds) -> None:
        self._handled += 1
        for effect in self._engine.handle(_PASS, now):
            if type(effect) is Granted:
                number = effect.job
                index = number - 1
                job = self._jobs[index]
                self._starts[index] = now
                self._free -= job.gpus
                self._started += 1
                heappush(self._ends, (now + job.run, self._started, number, effect.lease.epoch))
                if self._placements:
                    self._placements[index] = effect.lease.devices

    def _name(self, number: int) -> str:
        job = self._jobs[number - 1]
        return f"job {job.id}" + (f" (line {job.line})" if job.line else "")
