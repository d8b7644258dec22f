"""A dry run tells what a real submit would do, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.support import Box, make_spec, snapshot
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core import invariants
from gpusched.scheduler.core.errors import DomainError
from gpusched.scheduler.core.explain import Code, explain, foresee
from gpusched.scheduler.core.jobs import JobId, JobSpec
from gpusched.scheduler.core.model import Condition
from gpusched.scheduler.core.policy import BACKFILLS, ORDERS, PolicySettings

NewBox = Callable[..., Box]


def dry(b: Box, spec: JobSpec) -> tuple[int, tuple[str, ...] | None]:
    """Position and devices, having checked that nothing has changed."""
    before = snapshot(b.engine)
    job, devices = b.engine.dry_run(spec, b.now)
    position = b.engine.queue.position(job)
    assert snapshot(b.engine) == before
    invariants.check(b.engine)
    return position, devices


def full(b: Box) -> None:
    """A machine on which everything is going on."""
    b.submit(2)
    b.drain("a3")
    b.submit(3)
    b.submit(1, model="a100", auto_confirm=False)
    b.submit(1, priority=-1)
    b.wait(5)
    b.submit(2, model="a100")
    b.wait(20)


def test_what_would_start(box: NewBox) -> None:
    b = box("4")
    b.submit(1)
    assert dry(b, make_spec(2)) == (1, ("a1", "a2"))
    assert b.gpus(b.submit(2)) == ("a1", "a2")


def test_what_would_wait(box: NewBox) -> None:
    b = box("2")
    b.submit(2)
    first, low = b.submit(1), b.submit(1, priority=-1)
    assert dry(b, make_spec(1)) == (2, None)
    assert dry(b, make_spec(1, priority=9)) == (1, None)
    assert b.waiting == [first, low]


def test_it_changes_nothing_however_much_would_start(box: NewBox) -> None:
    b = box("4", "4")
    for size in (3, 2, 1, 1, 4):
        b.ask(size)
    assert dry(b, make_spec(1)) == (6, None)
    b.settle()
    assert len(b.running) == 4


def test_a_machine_full_of_life_is_left_as_it_was(box: NewBox) -> None:
    b = box("4", "2xA100")
    full(b)
    b.claim(do.Withdrawn)
    for spec in (
        make_spec(1),
        make_spec(5, priority=7),
        make_spec(1, model="a100", priority=3, immediate=True),
        make_spec(6, max_wait=0),
        make_spec(3, node="a"),
    ):
        dry(b, spec)


def test_a_waiting_job_is_not_told_that_it_waits_behind_a_dry_run(box: NewBox) -> None:
    """The verdicts of a tried pass name a job that never was."""
    b = box("2")
    b.submit(1)
    waiting = b.submit(2)
    before = b.why(waiting)
    assert dry(b, make_spec(2, priority=5)) == (1, None)
    assert b.why(waiting) == before
    invariants.check(b.engine)


def test_a_dry_run_starts_no_minute(box: NewBox) -> None:
    b = box("2")
    b.drain("a1")
    head, small = b.ask(2), b.ask(1)
    b.engine.dry_run(make_spec(1), b.now)
    b.now += 60
    b.do(ev.Pass())
    assert b.waiting == [head, small]


def test_paused_or_refused(box: NewBox) -> None:
    b = box("2")
    b.happen(ev.Pause("upgrade"))
    assert dry(b, make_spec(1)) == (1, None)
    before = snapshot(b.engine)
    with pytest.raises(DomainError, match="only 2"):
        b.engine.dry_run(make_spec(3), b.now)
    assert snapshot(b.engine) == before


def test_the_reason_foreseen_is_the_reason_given(box: NewBox) -> None:
    b = box("2xH100", "2xA100")
    b.submit(1, model="h100", name="train", user="bob")
    b.submit(2, model="a100")
    cases = [
        make_spec(2, model="h100"),
        make_spec(1, model="a100"),
        make_spec(1, model="h100", priority=-5),
    ]
    for spec in cases[:2]:
        job, devices = b.engine.dry_run(spec, b.now)
        assert devices is None
        foreseen = foresee(b.engine, job)
        b.do(ev.Submit(spec))
        b.settle()
        assert explain(b.engine, b.job(job.id)) == foreseen
        assert foreseen.code is Code.RESOURCES
    job, devices = b.engine.dry_run(cases[2], b.now)
    assert devices is None
    foreseen = foresee(b.engine, job)
    assert foreseen.code is Code.PRIORITY and foreseen.ahead == 3
    assert foreseen.message == "waits behind job 3 (alice), which needs 2 GPUs"
    b.do(ev.Submit(cases[2]))
    b.settle()
    assert explain(b.engine, b.job(job.id)) == foreseen


def test_reasons_foreseen_on_a_broken_machine(box: NewBox) -> None:
    b = box("2")
    b.see(Condition.UNHEALTHY, "a1", message="GPU 1: Xid 79")
    job, devices = b.engine.dry_run(make_spec(2), b.now)
    foreseen = foresee(b.engine, job)
    assert devices is None and foreseen.code is Code.UNAVAILABLE and "GPU 1: Xid 79" in foreseen.message
    b.happen(ev.Pause(""))
    assert foresee(b.engine, job).message == "scheduling is paused"
    b.happen(ev.Pause("upgrade"))
    assert foresee(b.engine, job).message == "scheduling is paused: upgrade"


def test_nobody_waits_behind_a_job_that_was_set_aside(box: NewBox) -> None:
    b = box("2")
    b.drain("a1")
    b.submit(2)
    b.wait(60)
    holder = b.submit(1, user="bob")
    job, devices = b.engine.dry_run(make_spec(1), b.now)
    foreseen = foresee(b.engine, job)
    assert devices is None and holder in b.running
    assert (foreseen.code, foreseen.message) == (Code.RESOURCES, "needs 1 GPU, 0 free; GPU 0 held by bob")
    assert b.why(b.submit(1)) == foreseen


def test_under_bookings_it_is_what_a_submit_gets(box: Callable[..., Box]) -> None:
    """The very devices, and also where no more than so many may run."""
    b = box("4", max_running=2, policy=PolicySettings(order="fifo", backfill="conservative"))
    b.submit(3, time_limit=100.0)
    b.submit(4, time_limit=50.0)
    _, devices = b.engine.dry_run(make_spec(1, time_limit=10.0), b.now)
    job = b.submit(1, time_limit=10.0)
    assert devices == ("a3",) == b.gpus(job)
    assert b.engine.dry_run(make_spec(1, time_limit=10.0), b.now)[1] is None, "two run"
    b = box("4", policy=PolicySettings(order="fifo", backfill="conservative", borrow=True, user_gpus=2))
    _, devices = b.engine.dry_run(make_spec(3), b.now)
    assert devices == b.gpus(b.submit(3)) == ("a0", "a1", "a2"), "borrowed"


@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
def test_under_fair_share_who_has_used_nothing_goes_first(box: NewBox, backfill: str) -> None:
    b = box("4", policy=PolicySettings(order="fair_share", backfill=backfill))
    b.submit(3, user="bob", time_limit=7200.0)
    b.wait(3600)
    waits = b.submit(4, user="bob", time_limit=100.0)
    before = snapshot(b.engine)
    job, devices = b.engine.dry_run(make_spec(1, user="alice", time_limit=100.0), b.now)
    assert devices == ("a3",) and b.engine.queue.position(job) == 1
    job, devices = b.engine.dry_run(make_spec(2, user="alice", time_limit=100.0), b.now)
    assert devices is None and b.engine.queue.position(job) == 1
    assert foresee(b.engine, job).message.startswith("needs 2 GPUs, 1 free")
    assert b.engine.outlook.tried(job, b.now).forecast == b.now + 3600.0
    assert snapshot(b.engine) == before and b.waiting == [waits]
    real = b.submit(2, user="alice", time_limit=100.0)
    assert b.waiting == [real, waits] and b.why(real) == foresee(b.engine, job)


def test_an_order_that_a_look_has_changed_is_told_by_the_next_pass(box: NewBox) -> None:
    b = box("2", policy=PolicySettings(order="fair_share", backfill="none"))
    used = b.submit(1, user="bob")
    b.wait(50)
    b.release(used)
    b.submit(1, user="alice")
    his, hers = b.submit(2, user="bob"), b.submit(2, user="alice")
    assert b.waiting == [hers, his]
    b.wait(1000)
    b.engine.dry_run(make_spec(1, user="carol"), b.now)
    assert b.waiting == [his, hers], "she has used more by now"
    assert do.QUEUE_CHANGED in b.happen(ev.Pass())
    assert do.QUEUE_CHANGED not in b.happen(ev.Pass())


def test_whom_it_would_preempt(box: NewBox) -> None:
    knobs = PolicySettings(backfill="easy", preemption=True, preempt_after=0.0, preempt_grace=20.0)
    b = box("4", policy=knobs)
    low = b.submit(4, user="bob", name="low", preemptible=True)
    before = snapshot(b.engine)
    job, devices = b.engine.dry_run(make_spec(2, priority=5), b.now)
    choice = b.engine.would_preempt(job, b.now)
    assert devices is None and choice is not None and [each.id for each in choice.victims] == [low]
    text = "needs 2 GPUs, 0 free; it would end job 1 (bob, low) for that"
    assert foresee(b.engine, job, choice).message == text
    equal, _ = b.engine.dry_run(make_spec(2), b.now)
    assert b.engine.would_preempt(equal, b.now) is None
    assert snapshot(b.engine) == before and not b.engine.claims
    high = b.submit(2, priority=5)
    assert b.told(low) and list(b.engine.claims) == [high]
    behind, _ = b.engine.dry_run(make_spec(2, priority=5), b.now)
    assert b.engine.would_preempt(behind, b.now) is None, "only the first of those who compete"


@settings(max_examples=300)
@given(st.randoms(use_true_random=False))
def test_it_is_what_a_submit_gets_whatever_came_before(chance: Random) -> None:
    """The devices, else the place, the times, and whether somebody is preempted; under any policy."""
    knobs = PolicySettings(
        order=chance.choice(ORDERS),
        backfill=chance.choice(BACKFILLS),
        candidates=chance.choice(["queue", "queue", "sjbf"]),
        user_gpus=chance.choice([0, 0, 0, 3]),
        borrow=chance.random() < 0.3,
        aging=0.0,
        preemption=chance.random() < 0.3,
        preempt_after=0.0,
        preempt_grace=10.0,
    )
    b = Box("3xH100", "2xA100", policy=knobs, max_running=chance.choice([0, 0, 0, 3]))

    def make() -> JobSpec:
        return make_spec(
            chance.choice([1, 1, 2, 3, 4]),
            user=chance.choice("abcd"),
            model=chance.choice(["", "", "h100"]),
            time_limit=chance.choice([None, 5.0, 20.0, 60.0]),
            priority=chance.choice([0, 0, 1]),
            preemptible=chance.random() < 0.3,
        )

    def try_to_submit(spec: JobSpec) -> JobId | None:
        before = b.engine._next_job
        try:
            b.happen(ev.Submit(spec))
        except DomainError:
            return None
        return JobId(before)

    for _ in range(chance.randint(2, 14)):
        what = chance.random()
        if what < 0.6:
            try_to_submit(make())
        elif what < 0.8:
            b.wait(chance.choice([1.0, 7.0, 30.0]))
        elif b.running:
            b.release(chance.choice(b.running))
    spec = make()
    try:
        job, devices = b.engine.dry_run(spec, b.now)
    except DomainError:
        assert try_to_submit(spec) is None
        return
    choice = None if devices is not None else b.engine.would_preempt(job, b.now)
    place, expected = b.engine.queue.position(job), b.engine.outlook.tried(job, b.now)
    running = set(b.running)
    real = try_to_submit(spec)
    assert real is not None
    if set(b.running) - running - {real}:
        return  # under fair share, time alone has let somebody else start in the same pass
    if devices is not None:
        assert b.gpus(real) == devices
        return
    assert b.gpus(real) == () and b.engine.queue.position(b.job(real)) == place
    assert (real in b.engine.claims) == (choice is not None)
    if choice is None:
        assert b.engine.outlook.of(b.job(real), b.now) == expected
