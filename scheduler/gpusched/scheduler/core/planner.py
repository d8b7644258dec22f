"""The pass: which waiting jobs start now, on which devices.

Strict order: a job that cannot start blocks every later job that could use a device that it could use; one that is
blocked blocks in its turn. Jobs with nothing in common do not wait for each other. With backfill a later job may go
before one that must wait, if that cannot delay the promise made to it (see `reservation`). A job that waits for
devices that are drained, foreign, dirty or unhealthy for over a minute blocks nobody, lest one broken GPU stop the
box.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from heapq import heapify, heappop, heappush
from operator import itemgetter

from gpusched.scheduler.core.backfill import Candidates, Head, Start
from gpusched.scheduler.core.jobs import Job
from gpusched.scheduler.core.orders.base import Key
from gpusched.scheduler.core.policy import Quota
from gpusched.scheduler.core.queue import WAITS, JobClass, Verdict, limit_of


class Pass(Candidates):
    """One look at the queue. `starts` is asked for one start at a time; the caller performs each before the next.

    Cost: O(k log k) for k classes of equal requests, O(log n) for each start, and O(r) for r running jobs once
    somebody must wait; with what backfill must look at for jobs that fit and may not start.

    Args:
        queue: who waits.
        pool: all devices.
        ends: when running jobs end at the latest.
        policy: who may pass whom.
        now: seconds of the engine's clock.
        set_aside_after: seconds that a job may block others while its devices are out of service.
        slots: at most so many starts, None for any number.
        quotas: what everybody may hold; each class then has one owner, and starts are counted as they are performed.
        claimed: jobs that start from devices that are kept for them, and not by a pass.
    """

    __slots__ = ()

    def starts(self) -> Iterator[Start]:
        """Decide what starts."""
        shortest = self._policy.candidates == "sjbf" and self._backfill
        plain = self._quotas is None and not self._with_claims and self._queue.order.single
        if plain and not shortest and self._pool.all_in_service:
            heads = yield from self._in_order()
        else:
            heads = self._heads()
            heapify(heads)
        later: list[JobClass] = []
        while heads and self._slots != 0:
            lane, key, number, found = heappop(heads)
            eligible = found.eligible
            if eligible is None:
                eligible = found.eligible = self._pool.eligible(found.request)
            if self._with_claims and key[-1] in self._with_claims:
                # What is kept for it counts towards its owner's quota already.
                self._leave_to_claim(heads, lane, key, number, found)
                continue
            if self._quotas is not None and self._over_quota(lane, key, number, found):
                continue
            if not self._blocked or eligible.isdisjoint(self._blocked):
                start = self._first(key, found, eligible)
                if start is not None:
                    following = found.keys.after(key)
                    yield start
                    if following is not None:
                        heappush(heads, (lane, following, number, found))
                elif self._backfill and found.verdict is WAITS and not shortest:
                    # Others that ask for the same may be short enough to go before it.
                    self._push_candidate(heads, lane, key, number, found)
                elif shortest and found.verdict is WAITS:
                    later.append(found)
                if start is None and not shortest and self._all_behind_one():
                    heads = self._hopeful(heads, found)
                continue
            if shortest:
                if self.out_of_service(found, eligible):
                    continue
                later.append(found)
                if found.request.whole_gpus > self._pool.free_total:
                    self._reserve_more(key, found, eligible)
                else:
                    self._wish(eligible)
                continue
            start = self._candidate(key, found, eligible)
            if start is not None:
                yield start
            if self._backfill and found.verdict is not Verdict.SET_ASIDE:
                self._push_candidate(heads, lane, key, number, found)
        if shortest:
            yield from self._shortest(later)
        if self._borrowers:
            yield from self._borrow()

    def _heads(self) -> list[Head]:
        """The first of each class."""
        index = self._queue.lane_index
        return [
            (index[found.lane], found.keys.first(), number, found)  # type: ignore[misc]
            for number, found in enumerate(self._queue.classes.values())
        ]

    def _in_order(self) -> Generator[Start, None, list[Head]]:
        """Start jobs from the first on, until one must wait; gives those of whom somebody may start all the same.

        What `starts` does, without a look at the other classes while the first of all can start, as it mostly can.
        """
        queue = self._queue
        while self._slots != 0:
            job = queue.first()
            if job is None:
                return []
            if not job.awake:
                break
            found = queue.class_for(job)
            eligible = found.eligible
            if eligible is None:
                eligible = found.eligible = self._pool.eligible(found.request)
            start = self._first(job.key, found, eligible)
            if start is None:
                heads = [head for head in self._heads() if head[3] is not found]
                if self._backfill and found.verdict is WAITS:
                    self._push_candidate(heads, 0, job.key, 0, found)
                if self._all_behind_one():
                    return self._hopeful(heads, found)
                heapify(heads)
                return heads
            yield start
        heads = self._heads()
        heapify(heads)
        return heads

    def still_holds(self, now: float, fresh: Sequence[Job]) -> bool:
        """Whether what this pass found is all there is to know, if nothing has happened since but these submits."""
        if self._slots is not None or not self._queue.order.single or not self._pool.all_in_service or self.incomplete:
            return False
        if self._pool.counting:
            return False  # a part of something may be had in more ways than is remembered
        if self._borrowers:
            return False
        self._now = now
        for promise in self.reservations:
            if promise.at < now or promise.frozen != self._is_frozen(promise.job):
                return False  # or passed often or long enough since
        last = self._last
        return last is None or not [job for job in fresh if not self._queue.is_before(last, job)]

    def more(self, fresh: Sequence[Job], now: float) -> Iterator[Start]:
        """Decide which of some jobs start that were submitted since; all others still cannot."""
        self._now = now
        queue = self._queue
        shortest = self._policy.candidates == "sjbf" and self._backfill
        later: list[tuple[float, Job]] = []
        if len(fresh) > 1:
            fresh = sorted(fresh, key=lambda job: queue.ranked(job.lane, job.key))
        for job in fresh:
            found = queue.class_for(job)
            if self._quotas is not None and self._over_quota(queue.lane_index[job.lane], job.key, 0, found):
                continue
            eligible = found.eligible
            if eligible is None:
                eligible = found.eligible = self._pool.eligible(found.request)
            if not self._blocked or eligible.isdisjoint(self._blocked):
                start = self._first(job.key, found, eligible)
            elif shortest:
                later.append((limit_of(job), job))
                self._wish(eligible)
                continue
            else:
                start = self._candidate(job.key, found, eligible)
            if start is not None:
                yield start
        for _, job in sorted(later, key=itemgetter(0)):
            found = queue.class_of(job)
            if self._quotas is not None and self._over_quota(queue.lane_index[job.lane], job.key, 0, found):
                continue
            start = self._candidate(job.key, found, found.eligible or frozenset())
            if start is not None:
                yield start
        if self._borrowers:
            yield from self._borrow()

    # -- who is not to be considered like the others -------------------------------------------------------

    def _over_quota(self, lane: int, key: Key, number: int, found: JobClass) -> bool:
        """Whether the owner of a class has all that he may: then it is passed over, and blocks nobody."""
        quotas = self._quotas
        assert quotas is not None
        excess = quotas.excess(self._queue.job(key).spec.owner.name, found.request.gpus)
        if excess is None:
            return False
        if found.is_told_as(key):
            found.verdict, found.blocked_by, found.unavailable_since = Verdict.QUOTA, None, None
        # Once its owner may have more, it goes before those that stand behind it.
        self._wished |= self._pool.eligible(found.request) if found.eligible is None else found.eligible
        if self._policy.borrow and not excess.jobs:
            self._borrowers.append((lane, key, number, found))
        return True

    def borrowed(self) -> Iterator[Start]:
        """The same for whom another plan found to be over their quotas."""
        index = self._queue.lane_index
        for number, found in enumerate(list(self._queue.classes.values())):
            if found.verdict is Verdict.QUOTA and (key := found.keys.first()) is not None:
                self._borrowers.append((index[found.lane], key, number, found))
        yield from self._borrow()

    def _borrow(self) -> Iterator[Start]:
        """Let jobs start over their owners' quotas on devices that no other waiting job could use."""
        pool, queue = self._pool, self._queue
        heads, self._borrowers = self._borrowers, []
        wanted: set[str] = set()
        for found in queue.classes.values():
            if found.verdict not in (Verdict.QUOTA, Verdict.SET_ASIDE):
                wanted |= pool.eligible(found.request)
        # What is kept for somebody is so within his quota: who exceeded it would have it taken from him.
        claimed = [job for number in self._with_claims if (job := queue.get(number)) is not None]
        bound = {quota.name for job in claimed for quota in self._quotas_of(job)}
        heapify(heads)
        while heads and self._slots != 0:
            lane, key, number, found = heappop(heads)
            if not bound.isdisjoint(quota.name for quota in self._quotas_of(queue.job(key))):
                continue
            excess = (
                None
                if self._quotas is None
                else self._quotas.excess(queue.job(key).spec.owner.name, found.request.gpus)
            )
            if excess is not None and excess.jobs:
                continue
            devices = pool.place(found.request, pool.available_but(wanted))
            if devices is None:
                self._borrowers.append((lane, key, number, found))
                continue
            following = found.keys.after(key)
            yield self._started(queue.job(key), devices, ())
            if following is not None:
                heappush(heads, (lane, following, number, found))

    def _quotas_of(self, job: Job) -> tuple[Quota, ...]:
        return () if self._quotas is None else self._quotas.of(job.spec.owner.name)

    def _leave_to_claim(self, heads: list[Head], lane: int, key: Key, number: int, found: JobClass) -> None:
        """Pass over a job for which devices are kept. Nobody can take those, so it blocks nobody but by the order."""
        eligible = found.eligible
        assert eligible is not None
        if key == found.keys.first():
            found.verdict, found.blocked_by, found.unavailable_since = WAITS, None, None
            if not eligible.isdisjoint(self._blocked):
                self._name_blocker(found)
        if not self._backfill:
            self._block(self._queue.job(key), eligible)
            return
        following = found.keys.after(key)
        if following is not None:
            heappush(heads, (lane, following, number, found))

    def _shortest(self, later: list[JobClass]) -> Iterator[Start]:
        """Backfill with the shortest limit first; equal ones in the queue's order."""
        index = self._queue.lane_index
        heap: list[tuple[float, int, Key, int, JobClass]] = []

        def push(found: JobClass, number: int, after: tuple[float, Key] | None) -> None:
            assert found.by_limit is not None
            if found.request.whole_gpus > self._pool.free_total:
                return
            entry = found.by_limit.first() if after is None else found.by_limit.after(after)
            if entry is not None and entry[0] <= self._longest(found, found.request.gpus):
                heappush(heap, (entry[0], index[found.lane], entry[1], number, found))

        for number, found in enumerate(later):
            assert found.eligible is not None
            if self.out_of_service(found, found.eligible):
                continue
            if found.verdict is not WAITS:
                self._name_blocker(found)
            push(found, number, None)
        while heap and self._slots != 0:
            limit, _, key, number, found = heappop(heap)
            assert found.eligible is not None
            start = None
            if self._quotas is not None and self._over_quota(index[found.lane], key, number, found):
                continue
            if key[-1] not in self._with_claims and not any(each.job.key == key for each in self.reservations):
                verdict = found.verdict, found.blocked_by
                start = self._candidate(key, found, found.eligible)
                found.verdict, found.blocked_by = verdict
            if start is not None:
                yield start
            push(found, number, (limit, key))
