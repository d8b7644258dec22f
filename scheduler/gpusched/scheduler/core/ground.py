"""The engine's state, and the questions that may be asked of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import inf

from gpusched.scheduler.core.bookings import Bookings
from gpusched.scheduler.core.changes import Changes
from gpusched.scheduler.core.deadlines import Deadlines
from gpusched.scheduler.core.effects import Effect
from gpusched.scheduler.core.ends import Ends
from gpusched.scheduler.core.errors import NotFound
from gpusched.scheduler.core.estimates import Estimates
from gpusched.scheduler.core.fairshare import UsageBook
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.model import NodeInfo
from gpusched.scheduler.core.orders import make_order
from gpusched.scheduler.core.outlook import Outlook
from gpusched.scheduler.core.planner import Pass
from gpusched.scheduler.core.pool import Pool, Rules
from gpusched.scheduler.core.preemption import Claim
from gpusched.scheduler.core.queue import JobQueue, Verdict
from gpusched.scheduler.core.quotas import Excess, quotas_of
from gpusched.scheduler.core.reservation import Reservation
from gpusched.scheduler.core.settings import Settings
from gpusched.scheduler.core.states import Status


class Ground:
    """Jobs, queue and devices of one scheduler. See `Engine` for the arguments."""

    def __init__(
        self, nodes: tuple[NodeInfo, ...], settings: Settings | None = None, *, first_job: int = 1, first_epoch: int = 1
    ) -> None:
        self.settings = settings or Settings()
        self.pool = Pool(nodes, Rules(self.settings.share_reserve, self.settings.share_between_users))
        self.usage = UsageBook(self.settings.policy.half_life)
        self.estimates = Estimates()
        self.queue = self._make_queue()
        #: What the last pass promised.
        self._reservations: Sequence[Reservation] = ()
        self.outlook = Outlook(self)
        #: How a time of the engine's clock is written for people; None leaves times out.
        self.show_time: Callable[[float], str] | None = None
        self.ends = Ends()
        self.jobs: dict[JobId, Job] = {}
        self.running: dict[JobId, Job] = {}
        #: Why an administrator paused scheduling, None if nobody did.
        self.paused: str | None = None
        #: Why state cannot be saved, None if it can. Nothing is started meanwhile.
        self.halted: str | None = None
        #: Devices that are kept for those whom others were preempted for.
        self.claims: dict[JobId, Claim] = {}
        self._next_chance: float | None = None
        self._pass_wanted = False
        #: The last pass, while it still tells who may start: nothing has happened since but these submits.
        self._last: Pass | None = None
        self._fresh: list[Job] = []
        #: Jobs whose clients have not come back since the server restarted.
        self.absent: set[JobId] = set()
        #: Until then the queue waits for them.
        self.hold_until: float | None = None
        self._ended: deque[JobId] = deque()
        self._tokens: dict[bytes, JobId] = {}
        self._requests: dict[tuple[int, str], JobId] = {}
        #: Jobs that wait for the end of a job.
        self._followers: dict[JobId, list[JobId]] = {}
        self._deadlines = Deadlines()
        self._next_job = first_job
        self._next_epoch = self._first_epoch = first_epoch
        self._impatient: list[JobId] = []
        self._next_look: float | None = None
        self._out: list[Effect] = []
        self._changes = Changes()

    def _make_queue(self) -> JobQueue:
        policy = self.settings.policy
        self.bookings = Bookings() if policy.backfill == "conservative" else None
        self.quotas = quotas_of(policy)
        group = None if self.quotas is None else self.quotas.group
        return JobQueue(make_order(policy, self.usage), group, shortest=policy.candidates == "sjbf")

    # -- questions ---------------------------------------------------------------------------------------

    @property
    def pass_wanted(self) -> bool:
        """True when a Pass might start something; the driver then sends one, once for a burst of events."""
        return self._pass_wanted

    @pass_wanted.setter
    def pass_wanted(self, wanted: bool) -> None:
        self._pass_wanted = wanted
        if self._last is not None:
            self._last = None
            if self._fresh:
                self._fresh = []

    @property
    def promised(self) -> dict[JobId, float]:
        """When those start at the latest whom the last pass promised it (engine's clock); infinite for unknown."""
        return {each.job.id: each.at for each in self._reservations if each.firm}

    def next_deadline(self) -> float | None:
        """When to send a Tick at the latest, None if nothing is due ever."""
        first = self._deadlines.first
        return None if first == inf else first

    def job(self, job_id: JobId, field: str = "job_id") -> Job:
        """Raises NotFound."""
        found = self.jobs.get(job_id)
        if found is None:
            raise NotFound(f"{field}: there is no job {job_id}", field=field)
        return found

    def job_by_token(self, token_hash: bytes) -> Job | None:
        """The job that waits or runs under a secret, None if there is none."""
        job_id = self._tokens.get(token_hash)
        return None if job_id is None else self.jobs[job_id]

    def job_by_request(self, uid: int, request_id: str) -> Job | None:
        """The job that a user's call with this id made, None if there is none (interactive ones are forgotten)."""
        job_id = self._requests.get((uid, request_id))
        return None if job_id is None else self.jobs[job_id]

    def ended_jobs(self) -> list[Job]:
        """Remembered jobs that have ended, newest first."""
        return [self.jobs[job_id] for job_id in reversed(self._ended)]

    @property
    def slots(self) -> int | None:
        """How many more jobs may run, None for any number."""
        most = self.settings.max_running
        return max(0, most - len(self.running)) if most else None

    @property
    def open_slots(self) -> int | None:
        """How many jobs may start by a pass, None for any number: a slot that was freed for somebody is for him."""
        slots = self.slots
        if slots is None or not self.claims:
            return slots
        running = self.running
        return max(0, slots - sum(all(v not in running for v in each.victims) for each in self.claims.values()))

    def excess(self, job: Job) -> Excess | None:
        """The quota that a job would exceed if it started, None if it may as far as that goes."""
        return None if self.quotas is None else self.quotas.excess(job.spec.owner.name, job.request.gpus)

    def left_out(self, job: Job) -> bool:
        """Whether a waiting job is no business of the plan now: it has a claim, or its owner has all that he may."""
        if job.id in self.claims:
            return True
        if self.excess(job) is None:
            return False
        found = self.queue.class_of(job)
        if found.is_told_as(job.key):
            found.verdict = Verdict.QUOTA
        return True

    @property
    def _may_start(self) -> bool:
        return self.paused is None and self.halted is None and self.hold_until is None

    @property
    def holding(self) -> bool:
        """True while the queue waits for clients to come back after a restart."""
        return self.hold_until is not None

    @property
    def sync_wanted(self) -> bool:
        """True if something of what has changed is to outlive a power loss once it is acknowledged."""
        return self._changes.sync

    def take_changes(self) -> Changes:
        """What has changed since this was last called, to be saved."""
        changes, self._changes = self._changes, Changes()
        return changes

    # -- writing it down ---------------------------------------------------------------------------------

    def _move(self, job: Job, status: Status, now: float, message: str) -> None:
        line = job.move(status, now, message)
        changes = self._changes
        changes.events.append((job.id, line, job.attempt))
        changes.jobs[job.id] = job

    def _note(self, job: Job, now: float, message: str) -> None:
        self._changes.events.append((job.id, job.note(now, message), job.attempt))
        self._changes.jobs[job.id] = job
