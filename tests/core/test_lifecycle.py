"""A job from its acceptance to its end: confirming, attaching, leaving, releasing, cancelling, limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.support import Box, make_spec, pending, snapshot
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.effects import NoticeKind
from gpusched.scheduler.core.errors import Aborted, DomainError, NotFound, NotSatisfiable
from gpusched.scheduler.core.explain import Code
from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.core.model import Condition
from gpusched.scheduler.core.states import Gate, Outcome, Queued, Running, State

NewBox = Callable[..., Box]


def refused(b: Box, event: ev.Event, error: type[DomainError], reason: str) -> str:
    """The event is refused like this and has changed nothing; returns what people are told."""
    before = snapshot(b.engine)
    with pytest.raises(error) as caught:
        b.do(event)
    assert caught.value.reason == reason
    assert snapshot(b.engine) == before
    return caught.value.message


# -- accepting ---------------------------------------------------------------------------------------------


def test_a_job_is_accepted_before_anything_else_is_told(box: NewBox) -> None:
    b = box("1")
    effects = b.do(ev.Submit(make_spec(1, name="train", token_hash=b"t", request_id="r")))
    assert effects == [do.Accepted(JobId(1)), do.QueueChanged()]
    job = b.job(JobId(1))
    assert (job.name, job.submitted_at, job.started_at, job.lease) == ("train", 1000.0, None, None)
    assert b.engine.job_by_token(b"t") is job and b.engine.job_by_token(b"u") is None
    assert b.engine.job_by_request(job.spec.owner.uid, "r") is job
    assert b.engine.job_by_request(0, "r") is None
    assert "b't'" not in repr(job), "no secret in a log line"


def test_an_unknown_job(box: NewBox) -> None:
    b = box("1")
    unknown = JobId(77)
    for event in (
        ev.Attach(unknown),
        ev.Confirm(unknown, 1),
        ev.Release(unknown, 1, Outcome(0)),
        ev.Cancel(unknown, "x"),
        ev.Update(unknown, name="x"),
    ):
        assert "there is no job 77" in refused(b, event, NotFound, "JOB_NOT_FOUND")
    assert b.do(ev.Leave(unknown, 1)) == []


# -- confirming --------------------------------------------------------------------------------------------


def test_a_confirmed_grant_stays(box: NewBox) -> None:
    b = box("1", confirm_within=3)
    job = b.submit(1, auto_confirm=False)
    [granted] = b.claim(do.Granted)
    assert granted.lease.confirm_by == b.now + 3
    b.wait(2.9)
    b.confirm(job)
    b.confirm(job)
    b.wait(100)
    assert b.gpus(job) == ("a0",)
    assert [line.message for line in b.job(job).history] == ["accepted", "granted 1 GPU", "confirmed"]


def test_a_frozen_waiter_does_not_sit_on_gpus(box: NewBox) -> None:
    b = box("2", confirm_within=5)
    frozen = b.submit(2, auto_confirm=False)
    epoch = b.epoch(frozen)
    waiting = [b.submit(1), b.submit(2)]
    b.wait(4.9)
    assert b.waiting == waiting
    b.wait(0.1)
    assert b.claim(do.Withdrawn) == [do.Withdrawn(frozen, epoch)]
    assert b.running == [waiting[0]]
    assert b.waiting == [frozen, waiting[1]], "it keeps its rank, and is passed over"
    assert b.why(frozen).code is Code.UNCONFIRMED
    assert b.claim(do.CheckDevices, frozen)[0].devices == ("a0", "a1"), "nobody knows what it has run"
    b.release(waiting[0])
    assert b.running == [waiting[1]] and b.waiting == [frozen]

    with pytest.raises(Aborted) as caught:
        b.confirm(frozen, epoch)
    assert caught.value.reason == "GRANT_EXPIRED"
    assert b.why(frozen).code is Code.RESOURCES, "a late answer is a sign of life"
    b.release(waiting[1])
    assert b.gpus(frozen) == ("a0", "a1") and b.epoch(frozen) > epoch
    b.confirm(frozen)
    assert isinstance(b.job(frozen).status, Running)


def test_only_frozen_waiters_leave_the_gpus_free(box: NewBox) -> None:
    b = box("1")
    frozen = b.submit(1, auto_confirm=False)
    b.wait(5)
    assert b.free == ["a0"] and b.waiting == [frozen] and len(b.claim(do.Withdrawn)) == 1
    b.happen(ev.Attach(frozen))
    assert b.gpus(frozen) == ("a0",), "coming back is a sign of life, too"
    b.confirm(frozen)


def test_confirming_what_one_does_not_hold(box: NewBox) -> None:
    b = box("1")
    holder, waiter = b.submit(1, auto_confirm=False), b.submit(1)
    epoch = b.epoch(holder)
    assert "not the one that the job has" in refused(b, ev.Confirm(holder, epoch - 1), Aborted, "GRANT_EXPIRED")
    assert "it waits" in refused(b, ev.Confirm(waiter, epoch), Aborted, "GRANT_EXPIRED")
    b.release(holder)
    assert "has ended: exit 0" in refused(b, ev.Confirm(holder, epoch), Aborted, "JOB_ENDED")


def test_a_grant_withdrawn_while_a_cancel_is_under_way_ends_the_job(box: NewBox) -> None:
    """Else it would wait on, deaf to the next cancel."""
    b = box("1")
    job = b.submit(1, auto_confirm=False)
    b.cancel(job)
    assert b.told(job) == [(NoticeKind.CANCEL, 30)]
    b.wait(5)
    assert b.state(job) is State.CANCELLED and b.outcome(job).message == "cancelled by bob"
    assert b.claim(do.Ended) == [do.Ended(job, State.CANCELLED, "cancelled by bob", "JOB_CANCELLED")]
    assert b.free == ["a0"]


def test_a_grant_withdrawn_after_the_longest_wait_ends_the_job(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1, auto_confirm=False, max_wait=3)
    b.wait(4)
    assert b.state(job) is State.RUNNING
    b.wait(1)
    assert b.state(job) is State.CANCELLED
    assert b.claim(do.Ended)[0].reason == "MAX_WAIT"


def test_a_grant_withdrawn_before_the_longest_wait_lets_the_job_wait_on(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1, auto_confirm=False, max_wait=20)
    b.wait(5)
    assert b.waiting == [job] and b.claim(do.Withdrawn)
    b.wait(14.9)
    assert b.waiting == [job]
    b.wait(0.1)
    assert b.claim(do.Ended)[0].message.startswith("waited 20 s, the most it was to wait: it was offered GPUs and did")


def test_an_immediate_job_whose_grant_is_withdrawn_does_not_wait(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1, auto_confirm=False, immediate=True)
    b.wait(5)
    assert b.claim(do.Ended)[0].reason == "NO_GPU_FREE" and b.state(job) is State.CANCELLED


# -- attaching and leaving -----------------------------------------------------------------------------------


def test_a_waiting_job_ends_with_its_stream(box: NewBox) -> None:
    b = box("1")
    b.submit(1)
    job = b.submit(1)
    b.leave(job)
    assert (b.state(job), b.outcome(job).message) == (State.CANCELLED, "left the queue")
    assert b.claim(do.Ended) == [do.Ended(job, State.CANCELLED, "left the queue", "")]
    b.leave(job)
    assert b.claim(do.Ended) == []


def test_drop_means_free(box: NewBox) -> None:
    b = box("2")
    holder, following = b.submit(2), b.submit(2)
    b.leave(holder)
    assert (b.state(holder), b.gpus(following)) == (State.LOST, ("a0", "a1"))
    assert "went away" in b.outcome(holder).message and b.job(holder).started_at == 1000.0


def test_a_newer_stream_supersedes_the_older(box: NewBox) -> None:
    b = box("1")
    holder, waiter = b.submit(1), b.submit(1)
    for job in (holder, waiter):
        b.happen(ev.Attach(job))
    assert b.claim(do.Attached) == [do.Attached(holder, 2), do.Attached(waiter, 2)]
    for job in (holder, waiter):
        b.leave(job, 1)
    assert b.running == [holder] and b.waiting == [waiter], "the end of the older one frees nothing"
    b.leave(holder, 2)
    assert b.state(holder) is State.LOST and b.running == [waiter]


def test_attaching_may_change_the_secret(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1, token_hash=b"old")
    b.happen(ev.Attach(job))
    assert b.engine.job_by_token(b"old") is b.job(job)
    b.happen(ev.Attach(job, b"new"))
    assert b.engine.job_by_token(b"old") is None and b.engine.job_by_token(b"new") is b.job(job)
    b.release(job)
    assert b.engine.job_by_token(b"new") is None


def test_attaching_to_an_ended_job_is_refused(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1)
    b.release(job, 3)
    assert refused(b, ev.Attach(job), Aborted, "JOB_ENDED") == f"job {job} has ended: exit 3"


def test_the_end_of_one_job_does_not_hide_anothers_request_id(box: NewBox) -> None:
    b = box("2")
    engine = b.engine
    for _ in range(2):
        engine.handle(ev.Submit(make_spec(1, request_id="same")), b.now)
    engine.handle(ev.Leave(JobId(1), 1), b.now)
    second = engine.jobs[JobId(2)]
    assert engine.job_by_request(second.spec.owner.uid, "same") is second


# -- releasing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "timed_out", "state", "message"),
    [
        (Outcome(0), False, State.COMPLETED, "exit 0"),
        (Outcome(3), False, State.FAILED, "exit 3"),
        (Outcome(None), False, State.COMPLETED, "released"),
        (Outcome(None, message="block left"), False, State.COMPLETED, "released: block left"),
        (Outcome(None, signal=9), False, State.FAILED, "killed by signal 9"),
        (Outcome(137, signal=9), False, State.FAILED, "killed by signal 9"),
        (Outcome(1, message="no such file"), False, State.FAILED, "exit 1: no such file"),
        (Outcome(None, signal=15), True, State.TIMED_OUT, "reached its time limit"),
    ],
)
def test_what_the_holder_says_decides_the_state(
    box: NewBox, outcome: Outcome, timed_out: bool, state: State, message: str
) -> None:
    b = box("1")
    job, following = b.submit(1), b.submit(1)
    epoch = b.epoch(job)
    b.happen(ev.Release(job, epoch, outcome, timed_out))
    assert b.state(job) is state
    assert b.outcome(job) == Outcome(outcome.exit_status, outcome.signal, message)
    assert b.claim(do.Ended) == [do.Ended(job, state, message, "")]
    assert b.running == [following]
    refused(b, ev.Release(job, epoch, outcome), Aborted, "LEASE_LOST")


def test_an_unconfirmed_lease_can_be_released(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1, auto_confirm=False)
    b.release(job)
    b.wait(10)
    assert b.state(job) is State.COMPLETED


def test_a_stale_epoch_releases_nothing(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1, auto_confirm=False)
    old = b.epoch(job)
    b.wait(5)
    b.claim(do.Withdrawn)
    refused(b, ev.Release(job, old, Outcome(0)), Aborted, "LEASE_LOST")
    b.happen(ev.Attach(job))
    assert b.epoch(job) > old
    refused(b, ev.Release(job, old, Outcome(0)), Aborted, "LEASE_LOST")
    refused(b, ev.Confirm(job, old), Aborted, "GRANT_EXPIRED")
    assert b.gpus(job) == ("a0",)


# -- cancelling ----------------------------------------------------------------------------------------------


def test_cancelling_a_waiting_job(box: NewBox) -> None:
    b = box("1")
    b.submit(1)
    job = b.submit(1)
    b.cancel(job)
    assert b.claim(do.Ended) == [do.Ended(job, State.CANCELLED, "cancelled by bob", "JOB_CANCELLED")]
    assert b.waiting == []


def test_cancelling_a_running_job_asks_first_and_takes_after_the_grace(box: NewBox) -> None:
    b = box("1", end_grace=30)
    job, following = b.submit(1), b.submit(1)
    b.cancel(job)
    b.cancel(job, "and again")
    assert b.told(job) == [(NoticeKind.CANCEL, 30)], "told once"
    b.wait(29.9)
    assert b.running == [job]
    b.wait(0.1)
    assert b.claim(do.Ended) == [do.Ended(job, State.CANCELLED, "cancelled by bob", "LEASE_REVOKED")]
    assert b.running == [following]


@pytest.mark.parametrize("how", ["release", "leave"])
def test_a_cancelled_job_that_ends_in_time_is_cancelled_not_lost(box: NewBox, how: str) -> None:
    b = box("1")
    job = b.submit(1)
    b.cancel(job)
    b.told(job)
    if how == "release":
        b.release(job, 143)
        assert b.outcome(job).exit_status == 143
    else:
        b.leave(job)
    assert b.state(job) is State.CANCELLED and b.outcome(job).message == "cancelled by bob"
    following = b.submit(1)
    b.wait(60)
    assert b.running == [following], "the grace of the old lease means nothing to the new one"


def test_cancelling_an_ended_job_is_refused_and_says_how_it_ended(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1)
    b.happen(ev.Release(job, b.epoch(job), Outcome(None), timed_out=True))
    assert "has ended already (timed out)" in refused(b, ev.Cancel(job, "x"), NotSatisfiable, "JOB_ENDED")


# -- time --------------------------------------------------------------------------------------------------


def test_the_longest_wait(box: NewBox) -> None:
    b = box("1")
    b.submit(1)
    job = b.submit(1, max_wait=1_209_600)
    b.wait(1_209_599)
    assert b.waiting == [job]
    b.wait(1)
    assert b.claim(do.Ended) == [
        do.Ended(
            job,
            State.CANCELLED,
            "waited 1209600 s, the most it was to wait: needs 1 GPU, 0 free; GPU 0 held by alice",
            "MAX_WAIT",
        )
    ]


def test_the_longest_wait_means_nothing_once_it_runs(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1, max_wait=1)
    b.wait(100)
    assert b.running == [job]


@pytest.mark.parametrize(
    ("options", "reason", "message"),
    [
        ({"immediate": True}, "NO_GPU_FREE", "could not start at once"),
        ({"max_wait": 0}, "MAX_WAIT", "waited 0 s, the most it was to wait"),
    ],
)
def test_a_job_that_is_not_to_wait_starts_or_ends(
    box: NewBox, options: dict[str, Any], reason: str, message: str
) -> None:
    b = box("2")
    lucky = b.submit(1, **options)
    assert b.running == [lucky]
    unlucky = b.submit(2, **options)
    message += ": needs 2 GPUs, 1 free; GPU 0 held by alice"
    assert b.claim(do.Ended) == [do.Ended(unlucky, State.CANCELLED, message, reason)]
    assert b.waiting == [] and b.running == [lucky] and b.engine._impatient == []


def test_an_immediate_job_that_ends_makes_way_at_once(box: NewBox) -> None:
    b = box("2")
    b.submit(1)
    b.ask(2, immediate=True, priority=5)
    small = b.ask(1)
    b.settle()
    assert b.gpus(small) == ("a1",)


def test_an_immediate_job_that_leaves_before_the_pass(box: NewBox) -> None:
    b = box("1")
    job = b.ask(1, immediate=True)
    b.leave(job)
    assert len(b.claim(do.Ended)) == 1


def test_an_immediate_job_ends_while_scheduling_is_paused(box: NewBox) -> None:
    b = box("1")
    b.happen(ev.Pause("upgrade"))
    job = b.submit(1, immediate=True)
    assert b.state(job) is State.CANCELLED


def test_a_time_limit_is_announced_and_then_enforced(box: NewBox) -> None:
    b = box("1", limit_notice=60, end_grace=30)
    job, following = b.submit(1, time_limit=3600), b.submit(1)
    lease = b.job(job).lease
    assert lease is not None and lease.expires_at == b.now + 3600
    b.wait(3539)
    assert b.told(job) == []
    b.wait(1)
    assert b.told(job) == [(NoticeKind.TIME_LIMIT, 60)]
    b.wait(60 + 29.9)
    assert b.running == [job], "the holder has a grace to end by itself"
    b.wait(0.1)
    assert b.claim(do.Ended) == [do.Ended(job, State.TIMED_OUT, "outlived its time limit", "LEASE_REVOKED")]
    assert b.running == [following]


def test_a_short_limit_is_announced_a_tenth_before(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1, time_limit=10)
    b.wait(9)
    assert b.told(job) == [(NoticeKind.TIME_LIMIT, 1)]
    b.release(job)
    b.wait(100)
    assert b.state(job) is State.COMPLETED


def test_the_limit_of_a_withdrawn_grant_means_nothing_to_the_next(box: NewBox) -> None:
    b = box("1", confirm_within=5, end_grace=1)
    job = b.submit(1, auto_confirm=False, time_limit=8)
    b.wait(5)
    b.claim(do.Withdrawn)
    b.happen(ev.Attach(job))
    b.confirm(job)
    b.wait(7)
    assert b.running == [job] and b.told(job) == []
    b.wait(0.2)
    assert b.told(job) == [(NoticeKind.TIME_LIMIT, pytest.approx(0.8))]


def test_a_late_tick_lets_everything_due_happen(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1, time_limit=100)
    b.now += 1000
    b.happen(ev.Tick())
    assert b.state(job) is State.TIMED_OUT
    assert [kind for kind, _ in b.told(job)] == [NoticeKind.TIME_LIMIT]


def test_what_fell_due_before_a_refusal_is_told_with_the_next_call(box: NewBox) -> None:
    b = box("1")
    b.submit(1)
    job = b.submit(1, max_wait=10)
    b.now += 10
    with pytest.raises(NotFound):
        b.do(ev.Cancel(JobId(99), "x"))
    assert b.state(job) is State.CANCELLED
    assert b.claim(do.Ended) == []
    b.do(ev.Tick())
    assert len(b.claim(do.Ended, job)) == 1


def test_no_deadline_no_tick(box: NewBox) -> None:
    b = box("1")
    assert b.engine.next_deadline() is None
    b.submit(1)
    assert b.engine.next_deadline() is None
    b.submit(1, max_wait=5)
    assert b.engine.next_deadline() == b.now + 5


# -- what is remembered --------------------------------------------------------------------------------------


def test_history_is_bounded_and_keeps_its_first_line(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1)
    for _ in range(200):
        b.happen(ev.Attach(job))
    history = b.job(job).history
    assert len(history) == 50 and history[0].message == "accepted" and history[-1].message == "re-attached"


def test_ended_jobs_are_remembered_for_a_while_only(box: NewBox) -> None:
    b = box("1", keep_ended=3)
    jobs = [b.submit(1, token_hash=b"%d" % n, request_id=f"r{n}") for n in range(5)]
    for job in jobs:
        b.release(job)
    assert [job.id for job in b.engine.ended_jobs()] == jobs[:1:-1]
    assert set(b.engine.jobs) == set(jobs[2:])
    with pytest.raises(NotFound, match="there is no job 1"):
        b.engine.job(jobs[0])
    assert b.engine.job(jobs[4]) is b.job(jobs[4])
    b.leave(jobs[0])


def test_nothing_remembered_at_all_works_too(box: NewBox) -> None:
    b = box("1", keep_ended=0)
    for _ in range(3):
        b.release(b.submit(1))
    b.leave(b.submit(1))
    b.submit(1)
    b.submit(1, immediate=True)
    assert len(b.engine.jobs) == 1 and b.engine.ended_jobs() == []


def test_a_deadline_of_a_job_that_is_forgotten_means_nothing(box: NewBox) -> None:
    b = box("1", keep_ended=0)
    b.release(b.submit(1, time_limit=10))
    running = b.submit(1)
    b.wait(100)
    assert b.running == [running] and sum(pending(b.engine).values()) == 0


def test_limits_of_ended_jobs_do_not_pile_up(box: NewBox) -> None:
    """A day-long limit of a job that ran for a second must not be kept for a day."""
    b = box("1", keep_ended=10)
    keeper = b.submit(1, time_limit=7 * 86400)
    waiter = b.submit(1, max_wait=7 * 86400)
    frozen = b.submit(1, node="a", priority=-1, auto_confirm=False)
    for _ in range(300):
        b.leave(b.submit(1, time_limit=86400.0, max_wait=86400.0, priority=-2))
    b.flood(1000, max_wait=86400.0)
    assert sum(pending(b.engine).values()) <= 1100
    b.release(keeper)
    b.release(waiter)
    b.flood(1500, max_wait=86400.0)
    assert sum(pending(b.engine).values()) <= 1100
    assert b.epoch(frozen)
    b.wait(5)
    assert b.claim(do.Withdrawn), "no deadline that matters was swept out"


def test_a_sweep_keeps_every_deadline_that_matters(box: NewBox) -> None:
    b = box("7")
    limited = b.submit(1, time_limit=5000)
    cancelled = b.submit(1)
    unconfirmed = b.submit(1, auto_confirm=False, max_wait=3)
    frozen = b.submit(1, auto_confirm=False, max_wait=50)
    confirmed = b.submit(1, max_wait=3)
    b.drain("a6", "a5")
    waiting = b.submit(6, max_wait=4000)
    small = b.submit(1)
    b.cancel(cancelled)
    b.flood(1100, max_wait=100.0)
    found = pending(b.engine)
    assert sum(found.values()) < 1100
    assert {"CONFIRM", "LIMIT_NEAR", "LIMIT_OVER", "CANCEL_OVER", "LOOK_AGAIN", "MAX_WAIT"} == set(found)
    b.claim(do.Ended)
    b.wait(5)
    assert [effect.reason for effect in b.claim(do.Ended, unconfirmed)] == ["MAX_WAIT"]
    assert len(b.claim(do.Withdrawn, frozen)) == 1
    b.wait(25)
    assert [effect.reason for effect in b.claim(do.Ended, cancelled)] == ["LEASE_REVOKED"]
    b.wait(20)
    assert [effect.reason for effect in b.claim(do.Ended, frozen)] == ["MAX_WAIT"]
    b.wait(10)
    assert b.state(small) is State.RUNNING, "the head was set aside"
    b.wait(4000)
    assert [effect.reason for effect in b.claim(do.Ended, waiting)] == ["MAX_WAIT"]
    b.wait(2000)
    assert [effect.reason for effect in b.claim(do.Ended, limited)] == ["LEASE_REVOKED"]
    assert b.state(confirmed) is State.RUNNING
    assert {kind for kind, _ in b.told(limited) + b.told(cancelled)} == {NoticeKind.TIME_LIMIT, NoticeKind.CANCEL}


def test_a_refused_update_changes_nothing(box: NewBox) -> None:
    b = box("1")
    b.submit(1)
    job = b.submit(1)
    for event in (ev.Update(job, priority=5, name="two\nlines"), ev.Update(job, priority=101, name="fine")):
        refused(b, event, DomainError, "INVALID_REQUEST")


def test_a_submit_that_is_refused_changes_nothing(box: NewBox) -> None:
    b = box("1")
    refused(b, ev.Submit(make_spec(2)), NotSatisfiable, "NOT_SATISFIABLE")
    assert b.submit(1) == 1, "not even a number is used up"


def test_a_withdrawn_job_waits_since_it_was_submitted(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1, auto_confirm=False)
    b.wait(5)
    b.claim(do.Withdrawn)
    assert b.job(job).status == Queued(1000.0, Gate.UNCONFIRMED)
    b.happen(ev.Update(job, priority=4))
    assert b.waiting == [job] and b.running == [], "a change of priority wakes nobody"
    b.leave(job)
    assert b.waiting == []


def test_dirty_after_a_withdrawal_like_after_any_end(box: NewBox) -> None:
    b = box("1")
    b.looks["a0"] = (Condition.DIRTY, "GPU 0: pid 9 python (bob) of job 1 still holds 1.0 GiB")
    b.submit(1, auto_confirm=False)
    following = b.submit(1)
    b.now += 5
    b.do(ev.Tick())
    b.do(ev.Pass())
    assert b.running == [], "not before the first look"
    b.settle()
    b.claim(do.Withdrawn)
    assert b.running == [], "nor while something is on it"
    b.see(Condition.CLEAN, "a0")
    assert b.running == [following]
