"""Backfill: what it may and may not do, over random histories, judged by plain walks over everything."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import oracle
from core.support import Box, make_nodes, make_spec
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core import invariants
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.model import NodeInfo
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
    """A job of a made-up history. One without GPUs asks for a core.

    With `cancels`, somebody who has not ended is cancelled as it comes: the last to come for 1, and so on round.
    """

    gap: int
    gpus: int
    where: int
    limit: int | None
    run: float  # share of the limit
    priority: int
    cancels: int = 0


def works(
    priorities: bool = False, unlimited: bool = False, cancels: bool = False, hosts: bool = False
) -> st.SearchStrategy[list[Work]]:
    limits = st.sampled_from([1, 2, 3, 5, 8, 20, *([None] if unlimited else [])])
    work = st.builds(
        Work,
        gap=st.sampled_from([0, 0, 1, 1, 2, 5]),
        gpus=st.sampled_from([1, 1, 1, 2, 2, 3, 4, 5, 8, *([0] * 5 if hosts else [])]),
        where=st.integers(0, 2),
        limit=limits,
        run=st.sampled_from([0.1, 0.5, 0.9, 1.0, 1.0]),
        priority=st.sampled_from([0, 0, 1]) if priorities else st.just(0),
        cancels=st.sampled_from([0, 0, 0, 1, 2, 3, 5, 8]) if cancels else st.just(0),
    )
    return st.lists(work, min_size=1, max_size=40)


@st.composite
def crowds(draw: st.DrawFn, unlimited: bool = False, gaps: tuple[int, ...] = (0, 0, 0, 1)) -> list[Work]:
    """Histories in which many wait at a time, of all widths and limits: what Hypothesis seldom makes by itself."""
    dice = Random(draw(st.integers(0, 2**32)))
    return [
        Work(
            gap=dice.choice(gaps),
            gpus=dice.choice([1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8]),
            where=dice.choice([0, 0, 1, 2]),
            limit=None if unlimited and dice.random() < 0.1 else dice.randint(1, 20),
            run=dice.choice([0.1, 0.3, 0.5, 0.9, 1.0]),
            priority=dice.choice([0, 0, 1, 2]),
            cancels=dice.randint(1, 12) if dice.random() < 0.3 else 0,
        )
        for _ in range(draw(st.integers(10, 30)))
    ]


class Replay:
    """Made-up work on an engine, in simulated time. Jobs are numbered from 1, as they come.

    Args:
        site: one of SITES.
        policy: of the engine.
        nodes: others than the site's.

    Attributes:
        starts, ends: when jobs started and ended, as far as they did.
        order: who has started, in order.
        cancelled: those who were.
    """

    def __init__(self, site: str, policy: PolicySettings, nodes: tuple[NodeInfo, ...] = ()) -> None:
        shapes, self.wheres = SITES[site]
        self.engine = Engine(nodes or make_nodes(*shapes), Settings(policy=policy, check_released=False))
        self.now = 100.0
        self.starts: dict[JobId, float] = {}
        self.ends: dict[JobId, float] = {}
        self.order: list[JobId] = []
        self.cancelled: set[JobId] = set()
        self._runs: dict[JobId, float] = {}
        self._ends: list[tuple[float, JobId]] = []

    def run(self, history: list[Work], after_pass: object = None) -> None:
        """All of it to the end; `after_pass` is called with the replay after each pass that was made."""
        look = after_pass if callable(after_pass) else lambda replay: None
        for work in history:
            self._until(self.now + work.gap, look)
            if work.cancels:
                self._cancel(work.cancels)
                self._pass(look)
            most = len(self.engine.pool.devices)
            where = self.wheres[work.where % len(self.wheres)]
            spec = make_spec(
                min(work.gpus, most), time_limit=None if work.limit is None else float(work.limit),
                priority=work.priority, cpus=0 if work.gpus else 1, **where,
            )  # fmt: skip
            have = len(self.engine.pool.eligible(spec.request))
            if spec.request.gpus > have:
                spec = make_spec(have, time_limit=spec.time_limit, priority=work.priority, **where)
            (accepted,) = [e for e in self.engine.handle(ev.Submit(spec), self.now) if isinstance(e, do.Accepted)]
            self._runs[accepted.job] = work.run * (work.limit or 7)
            self._pass(look)
        self._until(NEVER, look)
        assert not self.engine.jobs.keys() - self.starts.keys() - self.cancelled, "everybody gets his turn"

    def assert_kept(self, promised: Mapping[JobId, float]) -> None:
        """After `run`: whoever was promised a start has started by then, if he was not cancelled before."""
        late = {number for number, at in promised.items() if self.starts.get(number, self.ends[number]) > at}
        assert not late, f"jobs {late} started later than promised"

    def _until(self, end: float, look: object) -> None:
        while self._ends and self._ends[0][0] <= end:
            self._wake(self._ends[0][0], look)
            self.now = self._ends[0][0]
            while self._ends and self._ends[0][0] == self.now:
                self._release(heappop(self._ends)[1])
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

    def _release(self, number: JobId) -> None:
        lease = self.engine.jobs[number].lease
        assert lease is not None
        self.engine.handle(ev.Release(number, lease.epoch, Outcome(0)), self.now)
        self.ends[number] = self.now

    def _cancel(self, which: int) -> None:
        """Cancel one of those that have not ended; who runs lets go at once."""
        alive = sorted(self._runs.keys() - self.ends.keys(), reverse=True)
        if not alive:
            return
        number = alive[(which - 1) % len(alive)]
        self.cancelled.add(number)
        self.engine.handle(ev.Cancel(number, "not wanted any more"), self.now)
        self.ends[number] = self.now
        if number in self.starts:
            self._release(number)
            self._ends = [end for end in self._ends if end[1] != number]
            heapify(self._ends)

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
@given(history=works(priorities=True, cancels=True))
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
    replay.assert_kept(promised)


@pytest.mark.parametrize("site", SITES)
@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works(unlimited=True))
def test_work_without_limits_is_never_let_in_front(site: str, history: list[Work]) -> None:
    replay = Replay(site, PolicySettings("fifo", "easy"))
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

    replay.run(history, look)


@pytest.mark.parametrize("site", SITES)
@settings(deadline=None, max_examples=2 * EXAMPLES)
@given(history=crowds(unlimited=True, gaps=(0, 0, 1, 1, 2)), bypasses=st.sampled_from([1, 2]))
def test_who_was_passed_often_enough_is_passed_only_in_time(site: str, history: list[Work], bypasses: int) -> None:
    """Once a head was passed so often, whoever takes devices that it could use ends by its promised start."""
    replay = Replay(site, PolicySettings("fifo", "easy", freeze_bypasses=bypasses))
    passed: dict[JobId, int] = {}  # as it was before the pass
    seen: set[JobId] = set()

    def look(replay: Replay) -> None:
        engine, now = replay.engine, replay.now
        began = [engine.jobs[number] for number in replay.starts.keys() - seen]
        for head in heads(engine):
            if passed.get(head.id, 0) < bypasses:
                continue
            at = shadow(engine, head, now)
            good = {uuid for uuid, device in engine.pool.devices.items() if oracle.fits(device, head.request)}
            for job in (job for job in began if job.id > head.id):
                assert job.lease is not None
                in_time = job.time_limit is not None and now + job.time_limit <= at < NEVER
                assert in_time or not good & set(job.lease.devices), f"job {job.id} passed job {head.id} once too often"
        seen.update(job.id for job in began)
        passed.update({job.id: job.bypassed for job in engine.queue})

    replay.run(history, look)


@pytest.mark.parametrize("site", SITES)
@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works(cancels=True))
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
    replay.assert_kept(booked)


@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works(cancels=True))
def test_strict_fifo_starts_in_the_order_of_arrival(history: list[Work]) -> None:
    replay = Replay("flat", PolicySettings("fifo", "none"))
    replay.run(history)
    assert replay.order == sorted(replay.order)


@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works(cancels=True), factor=st.sampled_from([2, 10]))
def test_slower_clocks_change_nothing(backfill: str, history: list[Work], factor: int) -> None:
    """All times multiplied by a number: starts are, too."""
    slow = [replace(each, gap=each.gap * factor, limit=(each.limit or 0) * factor) for each in history]
    one, other = (Replay("flat", PolicySettings("fifo", backfill)) for _ in range(2))
    one.run(history)
    other.run(slow)
    assert {n: (at - 100.0) * factor for n, at in one.starts.items()} == pytest.approx(
        {n: at - 100.0 for n, at in other.starts.items()}
    )


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
@settings(deadline=None, max_examples=EXAMPLES)
@given(history=crowds(), order=st.randoms(use_true_random=False), anywhere=st.booleans())
def test_relabelled_gpus_start_the_same_jobs(
    site: str, backfill: str, history: list[Work], order: Random, anywhere: bool
) -> None:
    """What GPUs are called, and which node is first, decides who gets which, and not who starts when.

    Where jobs wish for nodes or models, only the names change: there it matters which of two nodes serves the others.
    """
    policy = PolicySettings("fifo", backfill)
    nodes = list(make_nodes(*SITES[site][0]))
    for i, node in enumerate(nodes):
        uuids = order.sample([device.uuid for device in node.devices], len(node.devices))
        renamed = tuple(replace(each, uuid=uuid) for each, uuid in zip(node.devices, uuids, strict=True))
        nodes[i] = replace(node, devices=renamed)
    if anywhere:
        order.shuffle(nodes)
        history = [replace(each, where=0) for each in history]
    one, other = Replay(site, policy), Replay(site, policy, tuple(nodes))
    one.run(history)
    other.run(history)
    assert one.starts == other.starts


@pytest.mark.parametrize("site", SITES)
@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works(hosts=True))
def test_work_without_gpus_delays_nobody(site: str, history: list[Work]) -> None:
    """Under strict FIFO, jobs that ask for a core alone start as they come, and others as if those were not there."""
    mixed = [each if each.gpus else replace(each, gap=0, where=0) for each in history]
    one, other = (Replay(site, PolicySettings("fifo", "none")) for _ in range(2))
    one.run([each for each in mixed if each.gpus])
    other.run(mixed)
    starts = [other.starts[job] for job in sorted(other.starts)]
    arrivals = [other.engine.jobs[job].submitted_at for job in sorted(other.starts)]
    served = [at for at, each in zip(starts, mixed, strict=True) if each.gpus]
    assert served == [one.starts[job] for job in sorted(one.starts)]
    assert all(each.gpus or at == came for at, came, each in zip(starts, arrivals, mixed, strict=True))


@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works(cancels=True), later=works())
def test_what_comes_later_changes_nothing_before_it_under_strict_fifo(history: list[Work], later: list[Work]) -> None:
    one, other = (Replay("flat", PolicySettings("fifo", "none")) for _ in range(2))
    one.run(history)
    other.run([*history, *later])
    assert all(other.starts[number] == at for number, at in one.starts.items())


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("depth", [2, 4])
@settings(deadline=None, max_examples=EXAMPLES)
@given(history=works(cancels=True))
def test_deeper_reservations_hold_too(site: str, depth: int, history: list[Work]) -> None:
    promised: dict[JobId, float] = {}

    def look(replay: Replay) -> None:
        assert len(replay.engine.promised) == min(1, len(replay.engine.queue)) or site != "flat"
        for number, at in replay.engine.promised.items():
            assert at <= promised.get(number, NEVER) + 1e-9, f"job {number} was promised an earlier start"
            promised[number] = at

    replay = Replay(site, PolicySettings("fifo", "easy", depth=depth))
    replay.run(history, look)
    replay.assert_kept(promised)


def test_a_job_passed_often_enough_is_passed_only_by_what_ends_in_time() -> None:
    replay = Replay("flat", PolicySettings("fifo", "easy", freeze_bypasses=2))
    history = [Work(0, 7, 0, 20, 1.0, 0), Work(0, 4, 0, 5, 1.0, 0)]
    # Each leaves the head's four devices alone, and outlives its start.
    history += [Work(1, 1, 0, 30, 0.03, 0) for _ in range(4)]
    replay.run(history)
    passed = [number for number in replay.order if number > 2 and replay.starts[number] < replay.starts[JobId(2)]]
    assert passed == [3, 4], "two were let by, then no more"


@pytest.mark.parametrize("candidates", ["queue", "sjbf"])
def test_the_depth_protects_whoever_goes_first(box: Callable[..., Box], candidates: str) -> None:
    b = box("8", policy=PolicySettings(order="fifo", backfill="easy", candidates=candidates, depth=2))
    for gpus, limit in ((4, 100.0), (2, 100.0), (6, 100.0), (8, 100.0), (2, 10_000.0)):
        b.submit(gpus, time_limit=limit)
    b.cancel(b.submit(1))
    assert b.running == [1, 2], "the last would have the fourth wait for hours"


@pytest.mark.parametrize("depth", [1, 2])
def test_what_no_promise_needs_is_had(box: Callable[..., Box], depth: int) -> None:
    b = box("8", policy=PolicySettings(order="fifo", backfill="easy", depth=depth))
    b.submit(4, time_limit=100.0)
    b.submit(6, time_limit=100.0)
    small = b.submit(2, time_limit=10_000.0)
    assert b.running == [1, small]
