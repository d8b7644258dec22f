"""Preemption: who is ended for whom, how it is told, and that what is freed goes to the one it was freed for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.support import Box
from gpusched.scheduler.codec import job_of, record_of
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.batch import BatchSpec
from gpusched.scheduler.core.effects import NoticeKind
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.explain import device_text, lines
from gpusched.scheduler.core.jobs import JobId, Kind
from gpusched.scheduler.core.model import Condition
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.states import Outcome, State

Boxes = Callable[..., Box]
GRACE = 60.0


def policy(**more: Any) -> PolicySettings:
    more = {"backfill": "none", "aging": 0.0, "preemption": True, "preempt_after": 0.0, "preempt_grace": GRACE} | more
    return PolicySettings(**more)


def batch(box: Box, gpus: int = 1, **more: Any) -> JobId:
    """A preemptible batch job that runs, if there is room."""
    spec = {"kind": Kind.BATCH, "batch": BatchSpec(), "command": ("x",), "preemptible": True, **more}
    return box.submit(gpus, **spec)


def victims(box: Box) -> list[JobId]:
    """Who was told to make room and was not claimed yet, in the order of being told; each has the whole grace."""
    found = [effect for effect in box.claim(do.Notify) if effect.kind is NoticeKind.PREEMPTION]
    assert all(effect.deadline == box.now + box.settings.policy.preempt_grace for effect in found)
    return [effect.job for effect in found]


# -- the whole story -----------------------------------------------------------------------------------------


def test_a_batch_job_makes_room_and_waits_again_at_its_old_place(box: Boxes) -> None:
    b = box("2", policy=policy())
    low = batch(b, 2)
    other = b.submit(1, user="carol")
    submitted = b.job(low).submitted_at
    b.now += 100
    high = b.submit(1, priority=1, user="bob", name="urgent")
    assert b.told(low) == [(NoticeKind.PREEMPTION, GRACE)]
    assert b.job(low).preempting == (f"preempted for job {high} (bob, urgent)", b.now + GRACE)
    assert b.state(low) is State.RUNNING and b.state(high) is State.QUEUED
    b.wait(GRACE - 0.1)
    assert b.state(low) is State.RUNNING
    b.wait(0.1)
    assert b.state(low) is State.QUEUED and b.state(high) is State.RUNNING
    assert b.job(low).submitted_at == submitted and b.waiting == [low, other]
    assert [attempt.state for attempt in b.job(low).attempts] == [State.PREEMPTED]
    assert (b.job(low).failures, b.job(low).losses, b.job(low).preempted, b.job(low).preempting) == (0, 0, 1, None)
    ended = b.claim(do.Ended, low)
    assert [(each.state, each.reason) for each in ended] == [(State.PREEMPTED, "LEASE_REVOKED")]
    b.release(high)
    assert b.gpus(low) == ("a0", "a1") and b.job(low).attempt == 2


def test_interactive_work_ends_preempted(box: Boxes) -> None:
    b = box("1", policy=policy())
    low = b.submit(preemptible=True)
    high = b.submit(priority=1)
    b.wait(GRACE)
    assert victims_told(b, low) and b.state(low) is State.PREEMPTED and b.gpus(high) == ("a0",)
    assert b.outcome(low).message == f"preempted for job {high} (alice)"
    assert b.claim(do.Ended, low)[0].reason == "LEASE_REVOKED"


def victims_told(b: Box, job: JobId) -> bool:
    return [kind for kind, _ in b.told(job)] == [NoticeKind.PREEMPTION]


@pytest.mark.parametrize(
    ("setting", "low"),
    [
        ({"preemption": False}, {"preemptible": True}),
        ({}, {"preemptible": False}),
        ({}, {"preemptible": True, "priority": 1}),
        ({}, {"preemptible": True, "priority": 2}),
        ({"preempt_after": 1000.0}, {"preemptible": True}),
        ({}, {"preemptible": True, "auto_confirm": False}),
    ],
    ids=["off", "not preemptible", "equal tier", "higher tier", "protected", "not confirmed"],
)
def test_nobody_is_preempted(box: Boxes, setting: dict[str, Any], low: dict[str, Any]) -> None:
    b = box("1", policy=policy(**setting))
    running = b.submit(**low)
    b.submit(priority=1)
    assert b.running == [running] and victims(b) == []


# -- who ---------------------------------------------------------------------------------------------------


def test_lowest_tier_then_least_lost_then_youngest(box: Boxes) -> None:
    b = box("5", policy=policy())
    old = b.submit(1, preemptible=True)
    b.now += 10
    big = b.submit(2, preemptible=True)  # 2 GPUs for 20 s: as much lost as...
    b.now += 20
    young = b.submit(1, preemptible=True, priority=-1)
    dear = b.submit(1, preemptible=True, priority=1)
    b.now += 10
    # Lost so far: old 40, big 60, young 10, dear 10.
    for expected in (young, old, big):
        b.submit(1, priority=5)
        assert victims(b) == [expected]
        b.wait(GRACE)
    assert b.state(dear) is State.RUNNING


def test_of_equals_the_youngest_goes(box: Boxes) -> None:
    b = box("2", policy=policy())
    jobs = [b.submit(1, preemptible=True), b.submit(1, preemptible=True)]
    b.submit(1, priority=1)
    assert victims(b) == [jobs[1]]


def test_who_is_not_needed_is_let_off(box: Boxes) -> None:
    b = box("4", policy=policy())
    cheap, dear = b.submit(1, preemptible=True), b.submit(3, preemptible=True)
    b.now += 100
    b.submit(3, priority=1)
    assert victims(b) == [dear], "the cheap one would come first, and its GPU is no use beside those of the dear one"
    assert b.state(cheap) is State.RUNNING


def test_if_it_never_places_nobody_is_preempted(box: Boxes) -> None:
    b = box("2", "2", policy=policy())
    b.submit(2, preemptible=True)
    b.submit(1)
    b.submit(4, priority=1)
    assert victims(b) == []


def test_only_devices_of_use_count(box: Boxes) -> None:
    b = box("1xH100", "1xA100", policy=policy())
    b.submit(1, preemptible=True, model="h100")
    slow = b.submit(1, preemptible=True, model="a100", priority=1)
    b.submit(1, priority=2, model="a100")
    assert victims(b) == [slow]


def test_none_for_what_frees_itself_any_moment(box: Boxes) -> None:
    b = box("2", policy=policy())
    first, _ = b.submit(1), b.submit(1, preemptible=True)
    b.do(ev.Release(first, b.epoch(first), Outcome(0)))  # not looked at yet
    b.ask(1, priority=1)
    b.do(ev.Pass())
    assert victims(b) == []
    b.settle()
    assert len(b.running) == 2


def test_none_for_one_who_was_cancelled_and_is_ending(box: Boxes) -> None:
    b = box("2", policy=policy())
    first, _ = b.submit(1), b.submit(1, preemptible=True)
    b.cancel(first)
    b.told(first)
    b.submit(1, priority=1)
    assert victims(b) == []


@pytest.mark.parametrize("more", [{"immediate": True}, {"max_wait": 0.0}, {"max_wait": GRACE}])
def test_none_for_one_who_gives_up_before(box: Boxes, more: dict[str, Any]) -> None:
    b = box("1", policy=policy())
    b.submit(1, preemptible=True)
    b.submit(1, priority=1, **more)
    assert victims(b) == []


def test_only_the_head_preempts(box: Boxes) -> None:
    b = box("2", policy=policy())
    b.submit(1)
    low = b.submit(1, preemptible=True)
    b.submit(2, priority=2)  # never places
    b.submit(1, priority=1)
    assert victims(b) == [] and b.state(low) is State.RUNNING


def test_protected_time_is_waited_for(box: Boxes) -> None:
    b = box("1", policy=policy(preempt_after=100.0))
    low = b.submit(1, preemptible=True)
    b.now += 30
    b.submit(1, priority=1)
    b.wait(69.9)
    assert victims(b) == []
    b.wait(0.1)
    assert victims(b) == [low]


def test_one_that_confirms_later_can_be_preempted_then(box: Boxes) -> None:
    b = box("1", policy=policy())
    low = b.submit(1, preemptible=True, auto_confirm=False)
    b.submit(1, priority=1)
    b.confirm(low)
    assert victims(b) == [low]


def test_no_more_often_than_allowed(box: Boxes) -> None:
    b = box("1", policy=policy(preempt_most=2))
    low = batch(b)
    for _ in range(2):
        high = b.submit(1, priority=1)
        assert victims(b) == [low]
        b.wait(GRACE)
        b.release(high)
    assert b.state(low) is State.RUNNING and b.job(low).preempted == 2
    b.submit(1, priority=1)
    assert victims(b) == []


# -- what is freed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
def test_freed_gpus_are_nobody_elses(box: Boxes, backfill: str) -> None:
    b = box("3", policy=policy(backfill=backfill))
    one, two = (b.submit(1, preemptible=True, time_limit=1000.0) for _ in range(2))
    high = b.submit(3, priority=1, time_limit=1000.0)
    assert sorted(victims(b)) == [one, two]
    b.leave(one)
    # The free GPU and the freed one wait for the other, whoever comes, however short or urgent.
    short = b.submit(1, priority=1, time_limit=1.0)
    urgent = b.submit(1, priority=9, time_limit=1.0)
    assert b.running == [two] and b.free == []
    assert "ending for it" in b.why(high).message and b.why(high).until == b.now + GRACE
    assert b.engine.outlook.of(b.job(high), b.now).promise == b.now + GRACE
    b.leave(two)
    assert b.running == [high] and b.waiting == [urgent, short]


def test_what_is_not_needed_of_it_is_free_for_others(box: Boxes) -> None:
    b = box("4", policy=policy(backfill="easy"))
    low = b.submit(4, preemptible=True)
    high = b.submit(1, priority=1)
    other = b.submit(3)
    assert victims(b) == [low]
    b.leave(low)
    assert b.running == [high, other]


def test_the_hold_ends_with_the_wait(box: Boxes) -> None:
    b = box("2", policy=policy())
    one, two = b.submit(1, preemptible=True), b.submit(1, preemptible=True)
    high, other = b.submit(2, priority=1), b.submit(1)
    assert sorted(victims(b)) == [one, two]
    b.leave(one)
    b.cancel(high)
    assert b.running == [two, other] and not b.engine.claims
    b.wait(GRACE)
    assert b.state(two) is State.PREEMPTED, "what was told is not taken back"


def test_it_starts_elsewhere_if_that_comes_first(box: Boxes) -> None:
    b = box("2", policy=policy())
    short, low = b.submit(1, priority=1), b.submit(1, preemptible=True)
    high = b.submit(1, priority=1)
    assert victims(b) == [low]
    b.release(short)
    assert b.gpus(high) == ("a0",) and not b.engine.claims
    later = b.submit(1)
    b.wait(GRACE)
    assert b.gpus(later) == ("a1",)


def test_a_broken_gpu_ends_the_hold_and_another_choice_is_made(box: Boxes) -> None:
    b = box("3", policy=policy())
    one, two, three = (b.submit(1, preemptible=True, priority=i) for i in range(3))
    b.submit(2, priority=9)
    assert victims(b) == [one, two]
    b.leave(one)
    b.see(Condition.UNHEALTHY, "a0")
    assert victims(b) == [three], "in place of the first one"
    b.wait(GRACE)
    assert len(b.running) == 1


def test_a_gpu_that_is_slow_to_empty_stays_kept_for_a_while(box: Boxes) -> None:
    b = box("2", policy=policy())
    low, _ = b.submit(1, preemptible=True), b.submit(1, preemptible=True, priority=1)
    b.submit(1, priority=5)
    assert victims(b) == [low]
    b.looks["a0"] = (Condition.DIRTY, "x")
    b.leave(low)
    b.wait(GRACE + b.settings.set_aside_after - 1.0)
    assert victims(b) == [] and b.engine.claims
    b.wait(1.0)
    assert len(victims(b)) == 1, "now it is somebody else's turn to make room"


# -- no ping-pong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["fifo", "priority", "sjf", "fair_share"])
def test_who_yielded_waits_behind_in_any_order(box: Boxes, order: str) -> None:
    b = box("1", policy=policy(order=order))
    low = batch(b, user="zoe", time_limit=1000.0, estimate=10.0)
    high = b.submit(1, priority=1, preemptible=True, time_limit=5000.0)
    assert victims(b) == [low]
    b.wait(GRACE)
    assert (b.running, b.waiting) == ([high], [low])
    b.wait(1000.0)
    assert (b.running, b.waiting) == ([high], [low]) and victims(b) == []


def test_the_protected_time_begins_anew_with_each_start(box: Boxes) -> None:
    b = box("1", policy=policy(preempt_after=100.0))
    low = batch(b)
    b.now += 100
    high = b.submit(1, priority=1)
    assert victims(b) == [low]
    b.wait(GRACE)
    b.release(high)
    b.submit(1, priority=1)
    b.wait(99.0)
    assert victims(b) == [] and b.state(low) is State.RUNNING
    b.wait(1.0)
    assert victims(b) == [low]


# -- how a run that was told ends --------------------------------------------------------------------------


@pytest.mark.parametrize("how", [Outcome(0), Outcome(3), Outcome(None, 15), Outcome()])
def test_any_end_after_the_signal_is_a_preemption(box: Boxes, how: Outcome) -> None:
    b = box("1", policy=policy())
    low = batch(b)
    b.submit(1, priority=1)
    assert victims(b) == [low]
    b.happen(ev.Release(low, b.epoch(low), how))
    assert b.state(low) is State.QUEUED
    attempt = b.job(low).attempts[0]
    assert (attempt.state, attempt.outcome.exit_status, attempt.outcome.signal) == (
        State.PREEMPTED,
        how.exit_status,
        how.signal,
    )


def test_before_its_signal_a_run_ends_as_it_ends(box: Boxes) -> None:
    b = box("2", policy=policy())
    done, told = (batch(b, signal=("USR1", 20.0)) for _ in range(2))
    b.submit(2, priority=1)
    assert sorted(victims(b)) == [done, told]
    b.now += 30
    b.release(done)
    assert b.state(done) is State.COMPLETED
    b.now += 10
    b.release(told)
    assert b.state(told) is State.QUEUED


def test_a_cancel_and_a_time_limit_count_for_more(box: Boxes) -> None:
    b = box("2", policy=policy())
    cancelled, late = batch(b), batch(b, time_limit=10.0)
    b.submit(2, priority=1)
    assert sorted(victims(b)) == [cancelled, late]
    b.cancel(cancelled)
    assert [kind for kind, _ in b.told(cancelled)] == [NoticeKind.CANCEL]
    b.now += 10
    b.release(late, 1, timed_out=True)
    b.wait(GRACE)
    b.told(late)
    assert (b.state(cancelled), b.state(late)) == (State.CANCELLED, State.TIMED_OUT)


# -- with the rest of the world ----------------------------------------------------------------------------


def test_a_slot_freed_for_somebody_is_his(box: Boxes) -> None:
    b = box("4", max_running=2, policy=policy(backfill="easy"))
    stays, low = b.submit(1), b.submit(3, preemptible=True)
    assert b.running == [stays, low]
    b.do(ev.SetPolicy(b.settings.policy))
    high = b.ask(3, priority=1)
    b.settle()
    assert victims(b) == [], "with no slot left nobody is looked at"
    b.leave(low)
    assert b.running == [stays, high]


def test_who_waits_for_a_slot_that_is_kept_is_told_so(box: Boxes) -> None:
    b = box("4xH100", "2xA100", max_running=2, policy=policy(backfill="easy"))
    low = b.submit(2, model="h100", preemptible=True)
    high = b.submit(4, model="h100", priority=1)
    assert victims(b) == [low]
    b.looks = {"a0": (Condition.DIRTY, "left over")}
    b.release(low)
    started, waits = b.submit(1, model="a100"), b.submit(1, model="a100")
    assert b.running == [started]
    assert b.why(waits).message == f"no more may run (max-running) before job {high}, for which others made room"
    assert b.why(high).message.startswith("needs 4 GPUs; ")


def test_what_is_kept_is_held_by_nobody(box: Boxes) -> None:
    b = box("3", policy=policy(backfill="easy"))
    low = b.submit(2, user="bob", preemptible=True)
    high = b.submit(3, user="carol", name="big", priority=1)
    assert victims(b) == [low]
    other = b.submit(1)
    assert [(each.job, each.kept) for each in b.why(other).blockers] == [(low, False), (low, False), (high, True)]
    assert device_text(b.engine, b.engine.pool.devices["a2"]) == f"kept for job {high} (carol, big)"
    assert f"GPU 2 on a: kept for job {high} (carol, big)." in lines(b.engine, b.job(other), b.why(other), b.now)
    assert not [line for line in lines(b.engine, b.job(high), b.why(high), b.now) if "kept" in line]


def test_another_limit_of_who_has_something_kept(box: Boxes) -> None:
    b = box("2", policy=policy(backfill="easy"))
    low = b.submit(2, preemptible=True)
    high, behind = b.submit(2, priority=1, time_limit=10.0), b.submit(2, time_limit=10.0)
    assert victims(b) == [low]
    assert b.engine.promised[behind] == b.now + GRACE + 10.0
    b.happen(ev.Update(high, time_limit=1000.0))
    assert b.engine.promised[behind] == b.now + GRACE + 1000.0


def test_nothing_is_kept_for_a_job_beyond_its_owners_quota(box: Boxes) -> None:
    """A pass in which no slot is left says nothing of quotas, and what is kept counts towards them."""
    b = box("2xH100", "1xA100", max_running=2, policy=policy(user_jobs=2))
    low = b.submit(3, user="carol", preemptible=True)
    high = b.submit(1, model="h100", priority=1)
    assert victims(b) == [low]
    b.cancel(high)
    first = b.submit(1, model="h100", user="carol")
    second = b.submit(1, model="a100", user="carol")
    assert set(b.engine.claims) == {first}, "and not for both in turn, pass after pass"
    b.wait(GRACE)
    assert b.claim(do.Ended, low) and b.running == [first, second]


def test_while_paused_the_hold_stays(box: Boxes) -> None:
    b = box("1", policy=policy())
    low = b.submit(1, preemptible=True)
    high, other = b.submit(1, priority=1), b.submit(1)
    assert victims(b) == [low]
    b.happen(ev.Pause("x"))
    b.wait(GRACE)
    assert b.running == [] and b.state(low) is State.PREEMPTED
    b.happen(ev.Pause(None))
    assert b.running == [high] and b.state(other) is State.QUEUED


def test_a_restart_in_the_grace(box: Boxes) -> None:
    """The deadline survives; what is freed is kept for the head that is there then."""
    b = box("2", policy=policy(backfill="easy"))
    low = batch(b, 2)
    high = b.submit(1, priority=1, kind=Kind.BATCH, batch=BatchSpec(), command=("y",))
    assert victims(b) == [low]
    deadline = b.now + GRACE
    jobs = [job_of(record_of(job)) for job in b.engine.jobs.values()]
    b.engine = Engine(b.nodes, b.settings, first_job=9, first_epoch=1 << 40)
    b.now += 1
    b.engine.restore(jobs, {}, b.now)
    b.happen(ev.Tick())
    assert b.job(low).preempting == (f"preempted for job {high} (alice)", deadline) and b.job(low).preempted == 1
    assert victims(b) == [] and set(b.engine.claims) == {high}
    b.happen(ev.Attach(low))
    b.wait(deadline - b.now - 0.1)
    assert b.running == [low]
    b.wait(0.1)
    assert b.running == [high] and b.waiting == [low]


def test_after_a_restart_only_who_is_away_has_the_window(box: Boxes) -> None:
    b = box("2", window=30.0, policy=policy(preempt_grace=5.0))
    back, away = batch(b), batch(b)
    batch(b, 2, priority=1, preemptible=False)
    assert sorted(victims(b)) == [back, away]
    jobs = [job_of(record_of(job)) for job in b.engine.jobs.values()]
    b.engine = Engine(b.nodes, b.settings, first_job=9, first_epoch=1 << 40)
    b.engine.restore(jobs, {}, b.now)
    b.happen(ev.Attach(back))
    b.wait(5.0)
    assert b.running == [away]
    b.wait(25.0)
    assert away not in b.running


def test_a_holder_that_is_away_is_not_chosen(box: Boxes) -> None:
    b = box("1", policy=policy())
    low = batch(b)
    jobs = [job_of(record_of(job)) for job in b.engine.jobs.values()]
    b.engine = Engine(b.nodes, b.settings, first_job=9, first_epoch=1 << 40)
    b.engine.restore(jobs, {}, b.now)
    b.happen(ev.Tick())
    b.submit(1, priority=1)
    assert victims(b) == []
    b.happen(ev.Attach(low))
    assert victims(b) == [low]


def test_a_policy_without_preemption_lets_a_round_end(box: Boxes) -> None:
    b = box("1", policy=policy())
    low = b.submit(1, preemptible=True)
    high = b.submit(1, priority=1)
    assert victims(b) == [low]
    b.happen(ev.SetPolicy(policy(preemption=False, order="fifo")))
    b.wait(GRACE)
    assert b.running == [high]


def test_dry_runs_change_nothing_and_get_nothing_that_is_kept(box: Boxes) -> None:
    from core.support import make_spec, snapshot

    b = box("2", policy=policy(backfill="easy"))
    one, two = b.submit(1, preemptible=True), b.submit(1, preemptible=True)
    b.submit(2, priority=1)
    assert sorted(victims(b)) == [one, two]
    b.leave(one)
    before = snapshot(b.engine)
    assert b.engine.dry_run(make_spec(1, priority=5, time_limit=1.0), b.now)[1] is None
    assert snapshot(b.engine) == before
