"""One job of a pass: whether it starts, blocks others, or may go before somebody that must wait."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from heapq import heapify, heappush
from typing import TypeAlias

from gpusched.scheduler.core.ends import Ends
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.orders.base import Key
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.core.queue import BEHIND, NO_LIMIT, WAITS, JobClass, JobQueue, Verdict, limit_of
from gpusched.scheduler.core.quotas import Quotas
from gpusched.scheduler.core.reservation import Reservation, reserve
from gpusched.scheduler.core.values import value

#: Number of a lane, key of the first of a class that is still to be looked at, and two that only go along.
Head: TypeAlias = tuple[int, Key, int, JobClass]


@value
class Start:
    """A job that starts now, and those before it in the queue that have a promise."""

    job: Job
    devices: tuple[str, ...]
    passed: tuple[Job, ...] = ()


class Candidates:
    """What a pass knows so far: who waits, what is promised to them, and whom they block. See `planner.Pass`."""

    __slots__ = (
        "_backfill",
        "_blocked",
        "_blockers",
        "_borrowers",
        "_ends",
        "_last",
        "_now",
        "_policy",
        "_pool",
        "_queue",
        "_quotas",
        "_set_aside_after",
        "_slots",
        "_wished",
        "_with_claims",
        "incomplete",
        "reservations",
    )

    def __init__(
        self,
        queue: JobQueue,
        pool: Pool,
        ends: Ends,
        policy: PolicySettings,
        now: float,
        set_aside_after: float,
        slots: int | None = None,
        quotas: Quotas | None = None,
        claimed: Collection[JobId] = (),
    ) -> None:
        self._quotas, self._with_claims = quotas, claimed
        #: Classes that are over their owners' quotas and may start on what nobody else waits for.
        self._borrowers: list[Head] = []
        self._queue, self._pool, self._ends, self._policy, self._now = queue, pool, ends, policy, now
        self._set_aside_after = set_aside_after
        self._slots = slots
        self._backfill = policy.backfill != "none"
        #: Whether somebody asks for devices that are out of service, or gone since he asked.
        self.incomplete = False
        #: Promises made in this pass.
        self.reservations: list[Reservation] = []
        self._blocked: frozenset[str] = frozenset()
        self._blockers: list[tuple[frozenset[str], JobId]] = []
        #: Devices that somebody could use who waits without a promise.
        self._wished: set[str] = set()
        #: The last of the jobs that block others.
        self._last: Job | None = None

    # -- who has nobody before him -------------------------------------------------------------------------

    def _first(self, key: Key, found: JobClass, eligible: frozenset[str]) -> Start | None:
        """Start the first job of a class, or have it wait: then it blocks others."""
        devices = self._pool.place(found.request, None, eligible)
        if devices is not None:
            found.unavailable_since = None
            return self._started(self._queue.job(key), devices, ())
        if self.out_of_service(found, eligible):
            return None
        found.verdict = WAITS
        found.blocked_by = None
        self._block(self._queue.job(key), eligible)
        return None

    def out_of_service(self, found: JobClass, eligible: frozenset[str]) -> bool:
        """Whether a class that cannot start has waited long enough for devices that must be mended or brought back."""
        pool, need = self._pool, found.request.gpus
        well = pool.all_in_service and not pool.counting and len(eligible) >= need
        if well or pool.count_serviceable(eligible) >= need:
            found.unavailable_since = None
            return False
        self.incomplete = True
        if found.unavailable_since is None:
            found.unavailable_since = self._now
        if self._now < found.unavailable_since + self._set_aside_after:
            return False
        found.verdict = Verdict.SET_ASIDE
        return True

    def _block(self, job: Job, eligible: frozenset[str]) -> None:
        self._last = job
        blocked = self._blocked
        if not blocked:
            self._blocked = eligible
            self._blockers.append((eligible, job.id))
        elif eligible is not blocked and not eligible <= blocked:
            # Whoever shares a device with a job that adds none is named after an earlier one: a short list will do.
            self._blocked = blocked | eligible
            self._blockers.append((eligible, job.id))
        if self._backfill:
            several = self._policy.depth > 1
            promise = reserve(job, eligible, self._pool, self._ends, self._now, self.reservations, several=several)
            promise.frozen = self._is_frozen(job)
            promise.firm = self._wished.isdisjoint(eligible) and not (several and self.reservations)
            self.reservations.append(promise)

    def _is_frozen(self, job: Job) -> bool:
        policy = self._policy
        often = policy.freeze_bypasses and job.bypassed >= policy.freeze_bypasses
        long = policy.freeze_wait and self._now - job.submitted_at >= policy.freeze_wait
        return bool(often or long)

    # -- who comes after somebody that must wait -----------------------------------------------------------

    def _all_behind_one(self) -> bool:
        """True if one job that waits blocks all others, and no more promises are to be made."""
        return (
            len(self._blockers) == 1
            and len(self._blocked) == len(self._pool.devices)
            and self._pool.all_in_service
            and self._policy.depth == 1
            and self._quotas is None
            and not self._with_claims
            # Those who want something of a host alone are not behind him.
            and not self._pool.counting
        )

    def _hopeful(self, heads: Iterable[Head], own: JobClass) -> list[Head]:
        """Of classes that are all behind one job, its own aside, those of which somebody may start, as counts tell."""
        blocker, free, left = self._blockers[0][1], self._pool.free_total, []
        for lane, key, number, found in heads:
            if found is not own:
                found.verdict, found.blocked_by, found.unavailable_since = BEHIND, blocker, None
            need = found.request.gpus
            if not self._backfill or need > free:
                continue
            if found.eligible is None:
                found.eligible = self._pool.eligible(found.request)
            first = found.keys.after(None, self._longest(found, need))
            if first is not None:
                left.append((lane, first if first > key else key, number, found))
        heapify(left)
        return left

    def _candidate(self, key: Key, found: JobClass, eligible: frozenset[str]) -> Start | None:
        """Start a job although one before it must wait, if nobody is the worse for it."""
        if self.out_of_service(found, eligible):
            return None
        if found.is_told_as(key):
            found.verdict = BEHIND
            found.blocked_by = self._blocker(eligible)
        if not self._backfill:
            self._block(self._queue.job(key), eligible)
            return None
        if found.request.whole_gpus > self._pool.free_total:
            self._reserve_more(key, found, eligible)
            return None
        devices = self._pool.place(found.request, None, eligible)
        if devices is None:
            self._reserve_more(key, found, eligible)
            return None
        job = self._queue.job(key)
        until = self._now + limit_of(job)
        harmed = self._harmed(devices, until)
        if harmed and any(promise.fixed or not eligible <= promise.eligible for promise in harmed):
            # Others of its devices may harm nobody.
            avoid = frozenset[str]().union(
                *(each.devices if each.fixed else each.eligible for each in self.reservations if until > each.at)
            )
            others = self._pool.place(found.request, self._pool.free_now(avoid))
            if others is not None:
                devices, harmed = others, self._harmed(others, until)
        if harmed:
            self._wish(eligible)
            return None
        for promise in self.reservations:
            promise.charge(self._pool, devices, until)
        return self._started(job, devices, tuple([promise.job for promise in self.reservations]))

    def _harmed(self, devices: tuple[str, ...], until: float) -> list[Reservation]:
        """Promises that could not be kept if somebody had these devices until then."""
        return [promise for promise in self.reservations if not promise.allows(self._pool, devices, until)]

    def _blocker(self, eligible: frozenset[str]) -> JobId | None:
        """The first of those that block others whose wait blocks such a job."""
        for devices, job in self._blockers:
            if devices is eligible or not eligible.isdisjoint(devices):
                return job
        return None

    def _wish(self, eligible: frozenset[str]) -> None:
        """Somebody waits behind others, without a promise; who comes after him may have to wait for him, too."""
        if eligible is not self._blocked and not eligible <= self._blocked:
            self._wished |= eligible

    def _reserve_more(self, key: Key, found: JobClass, eligible: frozenset[str]) -> None:
        """Promise something to a job behind others that wait, if so many promises are to be kept."""
        self._wish(eligible)
        if self._policy.depth == 1:
            return
        rivals = sum(1 for each in self.reservations if not each.eligible.isdisjoint(eligible))
        if rivals < self._policy.depth:
            self._block(self._queue.job(key), eligible)

    def _push_candidate(self, heads: list[Head], lane: int, key: Key, number: int, found: JobClass) -> None:
        """Look at the next of a class that may start at all: it fits, and ends in time or takes only what is spare."""
        need = found.request.gpus
        if found.keys and found.eligible is not None:
            self._wish(found.eligible)
        if found.request.whole_gpus > self._pool.free_total:
            return
        following = found.keys.after(key, self._longest(found, need))
        if following is not None:
            heappush(heads, (lane, following, number, found))

    def _longest(self, found: JobClass, need: int) -> float:
        """The longest time limit that a candidate of a class may have (in seconds), as far as counts can tell."""
        longest = NO_LIMIT
        eligible = found.eligible
        assert eligible is not None
        for promise in self.reservations:
            inside = promise.eligible is eligible or eligible <= promise.eligible
            if inside and (promise.frozen or (promise.free is None and need > promise.spare)):
                # A little more than that, as sums of times are not exact; `allows` has the last word.
                longest = min(longest, promise.at - self._now + 1e-6)
        return longest

    def _name_blocker(self, found: JobClass) -> None:
        eligible = found.eligible
        assert eligible is not None
        found.verdict = BEHIND
        found.blocked_by = self._blocker(eligible)

    def _started(self, job: Job, devices: tuple[str, ...], passed: tuple[Job, ...]) -> Start:
        if self._slots is not None:
            self._slots -= 1
        return Start(job, devices, passed)
