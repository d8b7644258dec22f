"""Backfill: what it may and may not do, over random histories, judged by plain walks over everything."""

from __future__ import annotations

import os
from dataclasses import dataclass
from heapq import heappop, heappush

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import oracle
from core.support import make_nodes, make_spec
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core import invariants
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.settings import Settings
from gpusched.scheduler.core.states import Outcome

NEVER = float("inf")
#: Histories for each test; more by hand, after a change of the planner: GPUSCHED_EXAMPLES=500.
EXAMPLES = int(os.environ.get("GPUSCHED_EXAMPLES", "20"))
#: Nodes, and what part of them jobs ask for.
SITES = {
    "flat": (("8",), ({},)),
    "two nodes": (("4", "4"), ({}, {"node": "a"}, {"node": "b"})),
    "models": (("3xH100", "5xA100"), ({}, {"model": "h100"}, {"model": "a100"})),
}


@dataclass(frozen=True)
class Work:
    """A job of a made-up history."""

    gap: int
    gpus: int
    where: int
    limit: int | None
    run: float  # share of the limit
    priority: int


def works(priorities: bool = False, unlimited: bool = False) -> st.SearchStrategy[list[Work]]:
    limits = st.sampled_from([1, 2, 3, 5, 8, 20, *([None] if unlimited else [])])
    work = st.builds(
        Work,
        gap=st.sampled_from([0, 0, 1, 1, 2, 5]),
        gpus=st.sampled_from([1, 1, 1, 2, 2, 3, 4, 5, 8]),
        where=st.integers(0, 2),
        limit=limits,
        run=st.sampled_from([0.1, 0.5, 0.9, 1.0, 1.0]),
        priority=st.sampled_from([0, 0, 1]) if priorities else st.just(0),
    )
    return st.lists(work, min_size=1, max_size=40)


class Replay:
    """Made-up work on an engine, in simulated time."""

    def __init__(self, site: str, policy: PolicySettings) -> None:
        shapes, self.wheres = SITES[site]
        self.engine = Engine(make_nodes(*shapes), Settings(policy=policy, check_released=False))
        self.now = 100.0
        self.starts: dict[JobId, float] = {}
        self.order: list[JobId] = []
        self._runs: dict[JobId, float] = {}
        self._ends: list[tuple[float, JobId]] = []

    def run(self, history: list[Work], after_pass: object = None) -> None:
        """All of it to the end; `after_pass` is called with the replay after each pass that was made."""
        look = after_pass if callable(after_pass) else lambda replay: None
        for work in history:
            self._until(self.now + work.gap, look)
            most = len(self.engine.pool.devices)
            where = self.wheres[work.where % len(self.wheres)]
            spec = make_spec(
                min(work.gpus, most), time_limit=None if work.limit is None else float(work.limit),
                priority=work.priority, **where,
            )  # fmt: skip
            have = len(self.engine.pool.eligible(spec.request))
            if spec.request.gpus > have:
                spec = make_spec(have, time_limit=spec.time_limit, priority=work.priority, **where)
            (accepted,) = [e for e in self.engine.handle(ev.Submit(spec), self.now) if isinstance(e, do.Accepted)]
            self._runs[accepted.job] = work.run * (work.limit or 7)
            self._pass(look)
        self._until(NEVER, look)
        assert not self.engine.jobs.keys() - self.starts.keys(), "everybody gets his turn"

    def _until(self, end: float, look: object) -> None:
        while self._ends and self._ends[0][0] <= end:
            self._wake(self._ends[0][0], look)
            self.now, number = heappop(self._ends)
            lease = self.engine.jobs[number].lease
            assert lease is not None
            self.engine.handle(ev.Release(number, lease.epoch, Outcome(0)), self.now)
            while self._ends and self._ends[0][0] == self.now:
                _, number = heappop(self._ends)
                lease = self.engine.jobs[number].lease
                assert lease is not None
                self.engine.handle(ev.Release(number, lease.epoch, Outcome(0)), self.now)
            self._pass(look)
        self._wake(end, look)
        if self._ends and self._ends[0][0] <= end:
            self._until(end, look)
        if end != NEVER:
            self.now = end

    def _wake(self, end: float, look: object) -> None:
        """What falls due by itself before then: bookings come at a time, not at an event."""
        while self.engine.queue and (due := self.engine.next_deadline()) is not None and due < end:
            if self._ends and self._ends[0][0] <= due:
                break
            self.now = max(due, self.now)
            self.engine.handle(ev.Tick(), self.now)
            self._pass(look)

    def _pass(self, look: object) -> None:
        if not self.engine.pass_wanted:
            return
        for effect in self.engine.handle(ev.Pass(), self.now):
            if isinstance(effect, do.Granted):
                self.starts[effect.job] = self.now
                self.order.append(effect.job)
                heappush(self._ends, (self.now + self._runs[effect.job], effect.job))
        invariants.check(self.engine)
        assert callable(look)
        look(self)


def shadow(engine: Engine, job: Job, now: float, extra: tuple[tuple[str, ...], float] | None = None) -> float:
    """The earliest time at which a job has enough devices, if all running work takes as long as it may."""
    free = oracle.free(engine)
    ends = [
        (NEVER if lease.expires_at is None else max(lease.expires_at, now), lease.devices)
        for lease in (other.lease for other in engine.running.values())
        if lease is not None
    ]
    if extra is not None:
        free -= set(extra[0])
        ends.append((extra[1], extra[0]))
    good = {device.uuid for device in engine.pool.devices.values() if oracle.fits(device, job.request)}
    if len(free & good) >= job.request.gpus:
        return now
    for at, devices in sorted(ends):
        free |= set(devices)
        if at != NEVER and len(free & good) >= job.request.gpus:
            return at
    return NEVER


def heads(engine: Engine) -> list[Job]:
    """Waiting jobs that share no device with one before them that waits."""
    found: list[Job] = []
    for job in engine.queue:
        if not any(oracle.share(engine, job, other) for other in found):
            found.append(job)
    return found


POLICIES = {
    "easy": PolicySettings("fifo", "easy"),
    "shortest first": PolicySettings("fifo", "easy", "sjbf"),
    "by priority": PolicySettings("priority", "easy", aging=0.0),
}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works(priorities=True))
def test_easy_fills_what_harms_no_head_and_nothing_else(site: str, policy: str, history: list[Work]) -> None:
    """After each pass: whoever could start without delaying a head has started; and no head was ever delayed."""
    promised: dict[JobId, float] = {}

    def look(replay: Replay) -> None:
        engine, now = replay.engine, replay.now
        first = heads(engine)
        for job in engine.queue:
            devices = engine.pool.place(job.request)
            if devices is None:
                continue
            assert job not in first, f"head {job.id} fits and waits"
            until = now + (job.time_limit or NEVER)
            harmed = [head for head in first if shadow(engine, head, now, (devices, until)) > shadow(engine, head, now)]
            assert harmed, f"job {job.id} fits, harms nobody, and waits"
        if policy != "by priority":
            for number, at in engine.promised.items():
                if at != NEVER:
                    assert at == shadow(engine, engine.jobs[number], now)
                    assert at <= promised.get(number, NEVER), f"head {number} was promised an earlier start"
                    promised[number] = at

    replay = Replay(site, POLICIES[policy])
    replay.run(history, look)
    for number, at in promised.items():
        assert replay.starts[number] <= at


@pytest.mark.parametrize("site", SITES)
@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works(unlimited=True), bypasses=st.sampled_from([0, 2]))
def test_work_without_limits_is_never_let_in_front(site: str, history: list[Work], bypasses: int) -> None:
    replay = Replay(site, PolicySettings("fifo", "easy", freeze_bypasses=bypasses))
    jobs = replay.engine.jobs

    def look(replay: Replay) -> None:
        first = heads(replay.engine)
        for number in [number for number, at in replay.starts.items() if at == replay.now]:
            job = jobs[number]
            ahead = [head for head in first if head.id < number and oracle.share(replay.engine, head, job)]
            for head in ahead:
                if job.time_limit is None and shadow(replay.engine, head, replay.now) == NEVER:
                    mine = job.lease.devices if job.lease else ()
                    good = {u for u, d in replay.engine.pool.devices.items() if oracle.fits(d, head.request)}
                    assert not good & set(mine), f"job {number} has no limit and passed job {head.id}"
        if bypasses:
            assert all(job.bypassed <= bypasses + len(jobs) for job in replay.engine.queue)

    replay.run(history, look)


@pytest.mark.parametrize("site", SITES)
@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works())
def test_conservative_bookings_never_get_later(site: str, history: list[Work]) -> None:
    booked: dict[JobId, float] = {}

    def look(replay: Replay) -> None:
        bookings = replay.engine.bookings
        assert bookings is not None
        for job in replay.engine.queue:
            at = bookings.start_of(job)
            assert at is not None and at >= replay.now, "everybody has a booking that is yet to come"
            assert at <= booked.get(job.id, NEVER), f"job {job.id} was booked for an earlier time"
            booked[job.id] = at

    replay = Replay(site, PolicySettings("fifo", "conservative"))
    replay.run(history, look)
    for number, at in booked.items():
        assert replay.starts[number] <= at


@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works())
def test_strict_fifo_starts_in_the_order_of_arrival(history: list[Work]) -> None:
    replay = Replay("flat", PolicySettings("fifo", "none"))
    replay.run(history)
    assert replay.order == sorted(replay.order)


@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works(), factor=st.sampled_from([2, 10]))
def test_slower_clocks_change_nothing(backfill: str, history: list[Work], factor: int) -> None:
    """All times multiplied by a number: starts are, too."""
    slow = [
        Work(each.gap * factor, each.gpus, each.where, (each.limit or 0) * factor, each.run, each.priority)
        for each in history
    ]
    one, other = (Replay("flat", PolicySettings("fifo", backfill)) for _ in range(2))
    one.run(history)
    other.run(slow)
    assert {n: (at - 100.0) * factor for n, at in one.starts.items()} == pytest.approx(
        {n: at - 100.0 for n, at in other.starts.items()}
    )


@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works(), later=works())
def test_what_comes_later_changes_nothing_before_it_under_strict_fifo(history: list[Work], later: list[Work]) -> None:
    one, other = (Replay("flat", PolicySettings("fifo", "none")) for _ in range(2))
    one.run(history)
    other.run([*history, *later])
    assert all(other.starts[number] == at for number, at in one.starts.items())


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("depth", [2, 4])
@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works())
def test_deeper_reservations_hold_too(site: str, depth: int, history: list[Work]) -> None:
    promised: dict[JobId, float] = {}

    def look(replay: Replay) -> None:
        assert len(replay.engine.promised) == min(1, len(replay.engine.queue)) or site != "flat"
        for number, at in replay.engine.promised.items():
            assert at <= promised.get(number, NEVER) + 1e-9, f"job {number} was promised an earlier start"
            promised[number] = at

    replay = Replay(site, PolicySettings("fifo", "easy", depth=depth))
    replay.run(history, look)
    for number, at in promised.items():
        assert replay.starts[number] <= at


def test_a_job_passed_often_enough_is_passed_only_by_what_ends_in_time() -> None:
    replay = Replay("flat", PolicySettings("fifo", "easy", freeze_bypasses=2))
    history = [Work(0, 7, 0, 20, 1.0, 0), Work(0, 4, 0, 5, 1.0, 0)]
    # Each leaves the head's four devices alone, and outlives its start.
    history += [Work(1, 1, 0, 30, 0.03, 0) for _ in range(4)]
    replay.run(history)
    passed = [number for number in replay.order if number > 2 and replay.starts[number] < replay.starts[JobId(2)]]
    assert passed == [3, 4], "two were let by, then no more"
