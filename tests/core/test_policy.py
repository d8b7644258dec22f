"""Policies: what may be set, and what each order does by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.support import Box
from core.test_backfill import EXAMPLES, Replay, Work, crowds
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.core.policy import PolicySettings, Quota

NewBox = Callable[..., Box]

BAD: list[tuple[dict[str, Any], str]] = [
    ({"order": "lifo"}, "there is no policy 'lifo'; there are: fifo, priority, sjf, fair_share, fcfs"),
    ({"backfill": "some"}, "policy.backfill: 'some' is none of none, easy, conservative"),
    ({"candidates": "x"}, "policy.candidates"),
    ({"depth": 0}, "policy.depth: 0 is not from 1"),
    ({"freeze_bypasses": -1}, "policy.freeze_bypasses"),
    ({"freeze_wait": -1.0}, "policy.freeze_wait"),
    ({"aging": math.nan}, "policy.aging"),
    ({"starvation": math.inf}, "policy.starvation"),
    ({"half_life": 0.0}, "policy.half_life: 0 is not allowed; it must be above 0"),
    ({"shares": (("x", -1.0),)}, "policy.shares"),
    ({"user_gpus": -1}, "policy.user_gpus"),
    ({"quotas": (Quota("", 1),)}, "policy.quotas"),
    ({"quotas": (Quota("x", -1),)}, "policy.quotas"),
]


@pytest.mark.parametrize(("knobs", "text"), BAD)
def test_what_may_not_be_set(knobs: dict[str, Any], text: str) -> None:
    with pytest.raises(Invalid) as caught:
        PolicySettings(**knobs)
    assert text in str(caught.value) and caught.value.field.startswith("policy.")


def test_fcfs_is_fifo() -> None:
    assert PolicySettings("fcfs").order == "fifo"


def served(b: Box, jobs: list[JobId]) -> list[JobId]:
    """The order in which one GPU goes round."""
    order = []
    while b.running:
        (running,) = b.running
        order.append(running)
        b.release(running, 0)
    return [job for job in order if job in jobs]


def one_gpu(box: NewBox, **knobs: Any) -> Box:
    b = box("1", policy=PolicySettings(backfill="none", **knobs))
    b.submit(1)
    return b


def test_fifo_does_not_look_at_priorities(box: NewBox) -> None:
    b = one_gpu(box, order="fifo")
    jobs = [b.submit(1, priority=priority) for priority in (0, 5, 1)]
    assert served(b, jobs) == jobs


def test_waiting_is_worth_tiers(box: NewBox) -> None:
    b = one_gpu(box, order="priority", aging=100.0)
    low = b.submit(1, priority=0)
    b.wait(150)
    high, higher = b.submit(1, priority=1), b.submit(1, priority=2)
    assert served(b, [low, high, higher]) == [higher, low, high], "150 s are worth a tier and a half"


def test_the_shortest_goes_first_and_the_unknown_last(box: NewBox) -> None:
    b = one_gpu(box, order="sjf")
    unknown = b.submit(1)
    long, short = b.submit(1, time_limit=500.0), b.submit(1, time_limit=50.0)
    told = b.submit(1, time_limit=900.0, estimate=5.0)
    urgent = b.submit(1, time_limit=900.0, priority=1)
    jobs = [unknown, long, short, told, urgent]
    assert served(b, jobs) == [urgent, told, short, long, unknown]


def test_run_times_are_learned(box: NewBox) -> None:
    b = box("1", policy=PolicySettings("sjf", "none"))
    for name, seconds in (("quick", 10.0), ("slow", 400.0)):
        job = b.submit(1, name=name)
        b.wait(seconds)
        b.release(job, 0)
    b.submit(1)
    slow, quick, middle = b.submit(1, name="slow"), b.submit(1, name="quick"), b.submit(1, time_limit=100.0)
    assert [b.job(job).expected for job in (slow, quick, middle)] == [400.0, 10.0, 100.0]
    assert served(b, [slow, quick, middle]) == [quick, middle, slow]


def test_a_long_job_does_not_starve_under_shortest_first(box: NewBox) -> None:
    b = one_gpu(box, order="sjf", starvation=100.0)
    long = b.submit(1, time_limit=5000.0)
    b.wait(60)
    short = [b.submit(1, time_limit=10.0) for _ in range(2)]
    assert b.waiting == [*short, long]
    b.wait(41)
    assert b.waiting == [long, *short], "it has waited a hundred seconds"


def test_nobody_goes_first_for_a_guard_that_is_gone(box: NewBox) -> None:
    b = one_gpu(box, order="sjf", starvation=10.0)
    long = b.submit(1, time_limit=500.0)
    b.happen(ev.SetPolicy(replace(b.settings.policy, starvation=0.0)))
    b.wait(20)
    short = b.submit(1, time_limit=5.0)
    assert b.waiting == [short, long]


def test_fair_share_goes_by_what_was_used(box: NewBox) -> None:
    b = box("1", policy=PolicySettings("fair_share", "none", half_life=1e6))
    first = b.submit(1, user="alice")
    b.wait(100)
    mine = [b.submit(1, user="alice") for _ in range(2)]
    theirs = [b.submit(1, user="bob") for _ in range(2)]
    b.happen(ev.Tick())
    assert b.waiting == [*theirs, *mine], "alice has used a hundred GPU-seconds, bob none"
    assert [b.engine.queue.position(b.job(job)) for job in (*theirs, *mine)] == [1, 2, 3, 4]
    b.release(first, 0)
    assert b.running == [theirs[0]]
    b.wait(300)
    b.release(theirs[0], 0)
    assert b.running == [mine[0]], "now bob has used more"


def test_a_policy_is_changed_while_jobs_wait(box: NewBox) -> None:
    b = one_gpu(box, order="fifo")
    long, short = b.submit(1, time_limit=500.0), b.submit(1, time_limit=50.0)
    high = b.submit(1, priority=3)
    assert b.waiting == [long, short, high]
    b.happen(ev.SetPolicy(PolicySettings("sjf", "none"), "kept"))
    assert b.waiting == [high, short, long]
    assert b.engine.take_changes().settings["policy"] == "kept"
    b.happen(ev.SetPolicy(PolicySettings("priority", "none")))
    assert b.waiting == [high, long, short]
    assert b.engine.take_changes().settings["policy"] is None
    b.happen(ev.SetPolicy(PolicySettings("fair_share", "conservative")))
    b.happen(ev.SetPolicy(PolicySettings("fifo", "none")))
    assert b.waiting == [long, short, high], "and back: nothing was lost"


def overloaded(b: Box, patient: JobId, until: float, **more: Any) -> bool:
    """One GPU; every ten seconds comes work for twenty. Returns whether the patient one got its turn by then."""
    end = b.now + until
    while b.now < end and b.job(patient).state.value == "queued":
        b.submit(1, **{"time_limit": 300.0} | more)
        b.wait(10)
        for job in list(b.running):
            if b.now - (b.job(job).started_at or b.now) >= 20 and job != patient:
                b.release(job, 0)
    return b.job(patient).state.value == "running"


@pytest.mark.parametrize(
    ("knobs", "mine", "theirs", "bound"),
    [
        ({"order": "priority", "aging": 100.0}, {"priority": 0}, {"priority": 1}, 300.0),
        ({"order": "sjf", "starvation": 200.0}, {"time_limit": 999.0}, {}, 300.0),
        ({"order": "fifo"}, {}, {"priority": 5}, 100.0),
        ({"order": "fair_share", "half_life": 1e6}, {"user": "bob"}, {"user": "alice"}, 100.0),
    ],
    ids=["aging", "guard", "fifo", "fair share"],
)
def test_nobody_waits_for_ever(
    box: NewBox, knobs: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any], bound: float
) -> None:
    b = one_gpu(box, **knobs)
    b.release(JobId(1), 0)
    b.submit(1, time_limit=300.0)
    assert overloaded(b, b.submit(1, **mine), bound, **theirs)


@settings(deadline=None, max_examples=2 * EXAMPLES)
@given(history=crowds(gaps=(1, 2, 4, 8)), aging=st.sampled_from([2.0, 5.0, 20.0]))
def test_a_wait_is_bounded_where_waiting_counts(history: list[Work], aging: float) -> None:
    """Until a job's turn has come, only those run that ran when it came, and those whose lead it has not made up.

    Of a tier above, these came at most `aging` seconds after it: the wait has a bound, whatever comes later. Some job
    runs at any moment of it, so it is at most the sum of their limits; of those that ran, which ran beside each other,
    the longest counts.
    """
    replay = Replay("flat", PolicySettings("priority", "none", aging=aging))
    replay.run(history)
    jobs = [replay.engine.jobs[number] for number in sorted(replay.starts)]
    for mine in jobs:
        came, start = mine.submitted_at, replay.starts[mine.id]
        others = [job for job in jobs if job is not mine and replay.ends[job.id] > came]
        ran = [job for job in others if job.id < mine.id and replay.starts[job.id] <= came]
        first = [job for job in others if job.submitted_at <= came + aging * (job.priority - mine.priority)]
        bound = max((replay.ends[job.id] - came for job in ran), default=0.0)
        bound += sum(job.time_limit or 0.0 for job in first if job not in ran)
        assert start - came <= bound + 1e-6, f"job {mine.id} waited {start - came:g} s, and the bound is {bound:g} s"


@pytest.mark.parametrize(
    ("knobs", "mine", "theirs"),
    [
        ({"order": "priority", "aging": 0.0}, {"priority": 0}, {"priority": 1}),
        ({"order": "sjf"}, {"time_limit": 999.0}, {}),
    ],
    ids=["walls", "pure shortest first"],
)
def test_without_a_guard_one_may_starve(
    box: NewBox, knobs: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any]
) -> None:
    """What is known of these policies, and why the guards are on by default."""
    b = one_gpu(box, **knobs)
    b.release(JobId(1), 0)
    b.submit(1, time_limit=300.0)
    assert not overloaded(b, b.submit(1, **mine), 2000.0, **theirs)


def test_the_same_events_make_the_same_decisions(box: NewBox) -> None:
    """A log of events, replayed on another engine, ends in the same state; under every policy."""
    for order in ("fifo", "priority", "sjf", "fair_share"):
        for backfill in ("none", "easy", "conservative"):
            b = box("4", policy=PolicySettings(order, backfill))
            for n in range(30):
                user = ("alice", "bob", "cem")[n % 3]
                b.submit(1 + n % 4, time_limit=200.0 + 70 * (n % 5), priority=n % 2, user=user)
                b.wait(3)
                for job in list(b.running)[: n % 2]:
                    b.release(job, 0)
            other = box("4", policy=PolicySettings(order, backfill))
            for event, at in b.log:
                other.now = at
                other.engine.handle(event, at)
            assert [job.id for job in other.engine.queue] == b.waiting
            assert {j: job.lease for j, job in other.engine.running.items()} == {
                j: job.lease for j, job in b.engine.running.items()
            }


def test_under_sjf_a_new_limit_is_a_new_place(box: NewBox) -> None:
    b = box("1", policy=PolicySettings(order="sjf", backfill="none"))
    b.submit(1, time_limit=1000.0)
    long, short = b.submit(1, time_limit=1000.0, user="x"), b.submit(1, time_limit=500.0, user="y")
    assert b.waiting == [short, long]
    b.happen(ev.Update(long, time_limit=10.0))
    assert b.waiting == [long, short]


def test_the_same_policy_again_changes_no_plan(box: NewBox) -> None:
    policy = PolicySettings(order="fifo", backfill="conservative")
    b = box("4", policy=policy)
    b.submit(3, time_limit=100.0)
    b.submit(2, time_limit=50.0)
    bookings = b.engine.bookings
    assert bookings is not None
    b.happen(ev.SetPolicy(PolicySettings(order="fifo", backfill="conservative"), "kept"))
    assert b.engine.bookings is bookings
    b.happen(ev.SetPolicy(PolicySettings(order="priority", backfill="conservative"), "kept"))
    assert b.engine.bookings is not bookings
