"""Promises and forecasts, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.support import Box, make_spec
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.core.outlook import DEPTH, DEPTH_COUNTED, NOTHING
from gpusched.scheduler.core.policy import PolicySettings, Quota

NewBox = Callable[..., Box]


def told(b: Box, job: JobId) -> tuple[float | None, float | None]:
    """Promise and forecast, in seconds from now."""
    expected = b.engine.outlook.of(b.job(job), b.now)
    return tuple(None if at is None else round(at - b.now, 6) for at in (expected.promise, expected.forecast))  # type: ignore[return-value]


def full(box: NewBox, backfill: str = "easy", **knobs: Any) -> Box:
    """Four GPUs: two for 100 s at most, two for 300 s."""
    b = box("4", policy=PolicySettings("fifo", backfill, **knobs))
    b.submit(2, time_limit=100.0)
    b.submit(2, time_limit=300.0)
    return b


def test_under_easy_the_head_has_a_promise_and_all_have_a_forecast(box: NewBox) -> None:
    b = full(box)
    head, second = b.submit(4, time_limit=50.0), b.submit(1, time_limit=1000.0)
    assert told(b, head) == (300.0, 300.0)
    assert told(b, second) == (None, 350.0)


def test_under_strict_order_all_have_promises(box: NewBox) -> None:
    b = full(box, "none")
    jobs = [b.submit(4, time_limit=50.0), b.submit(1, time_limit=10.0), b.submit(4, time_limit=10.0)]
    assert [told(b, job) for job in jobs] == [(300.0, 300.0), (350.0, 350.0), (360.0, 360.0)]


def test_under_conservative_bookings_are_promises(box: NewBox) -> None:
    b = full(box, "conservative")
    wide, narrow, long = b.submit(4, time_limit=50.0), b.submit(2, time_limit=200.0), b.submit(2, time_limit=201.0)
    assert [told(b, job) for job in (wide, narrow, long)] == [(300.0, 300.0), (100.0, 100.0), (350.0, 350.0)]
    b.wait(10)
    b.release(JobId(1), 0)
    assert narrow in b.running, "the first ended early, and the hole came forward"
    assert told(b, wide)[0] == 290.0 and told(b, long)[0] == 340.0, "nobody is worse off"


def test_what_users_say_and_what_was_seen_makes_the_forecast(box: NewBox) -> None:
    b = box("1", policy=PolicySettings("fifo", "easy"))
    seen = b.submit(1, name="train", time_limit=1000.0)
    b.wait(40)
    b.release(seen, 0)
    b.submit(1, name="train", time_limit=1000.0)
    head, behind = b.submit(1, time_limit=500.0, estimate=7.0), b.submit(1, time_limit=500.0)
    assert told(b, head) == (1000.0, 40.0), "the limit promises, the last run forecasts"
    assert told(b, behind) == (None, 47.0)
    b.wait(100)
    assert told(b, head) == (900.0, 50.0), "it has outlived its estimate: half as long again"


def test_with_no_limit_and_nothing_seen_nothing_is_said(box: NewBox) -> None:
    b = box("1", policy=PolicySettings("fifo", "easy"))
    running = b.submit(1)
    waits = b.submit(1)
    assert told(b, waits) == (None, None)
    b.wait(30)
    b.release(running, 0)
    other = b.submit(1)
    assert told(b, other) == (None, 30.0), "what others took is better than nothing"


def test_nothing_is_promised_while_nothing_starts(box: NewBox) -> None:
    b = full(box)
    head, held = b.submit(4), b.submit(1)
    b.happen(ev.Update(held, held=True))
    assert b.engine.outlook.of(b.job(held), b.now) == NOTHING
    b.happen(ev.Pause("upgrade"))
    assert b.engine.outlook.of(b.job(head), b.now) == NOTHING


def test_far_back_the_work_ahead_is_counted(box: NewBox) -> None:
    b = box("4", policy=PolicySettings("fifo", "none"))
    b.submit(4, time_limit=100.0)
    jobs = [b.submit(2, time_limit=10.0) for _ in range(DEPTH + 100)]
    b.wait(2.0)
    planned, beyond = told(b, jobs[DEPTH - 1])[1], told(b, jobs[-1])[1]
    assert planned == 98.0 + 10.0 * (DEPTH / 2 - 1)
    # Each of the others is 20 GPU-seconds on four GPUs.
    assert beyond is not None and beyond == pytest.approx(planned + 99 * 5.0)
    job, _ = b.engine.dry_run(make_spec(2, time_limit=10.0), b.now)
    tried = b.engine.outlook.tried(job, b.now)
    assert tried.forecast == pytest.approx(b.now + planned + 100 * 5.0), "not as if only those that are planned waited"
    assert tried.promise is None


@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
def test_shares_are_planned_less_deep(box: NewBox, backfill: str) -> None:
    b = box("2", policy=PolicySettings("fifo", backfill))
    b.submit(2, time_limit=100.0)
    jobs = [b.submit(1, shared=True, memory=30, time_limit=10.0 + i / 10) for i in range(DEPTH_COUNTED + 60)]
    times = [told(b, job)[1] for job in jobs]
    assert None not in times and times[0] == 100.0 and sorted(times) == times, "later ones are told nothing earlier"  # type: ignore[type-var]


@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
def test_a_dry_run_is_told_what_the_job_would_be(box: NewBox, backfill: str) -> None:
    b = full(box, backfill)
    spec = make_spec(3, time_limit=20.0)
    job, devices = b.engine.dry_run(spec, b.now)
    tried = b.engine.outlook.tried(job, b.now)
    assert devices is None and tried.forecast == b.now + 300.0
    assert tried.promise == b.now + 300.0, "it would be the first to wait"
    real = b.submit(3, time_limit=20.0)
    assert told(b, real) == (300.0, 300.0)
    small, got = b.engine.dry_run(make_spec(1, time_limit=10.0), b.now)
    assert got is None and b.engine.outlook.tried(small, b.now).forecast is not None


def test_what_can_start_beside_all_bookings_would_start(box: NewBox) -> None:
    b = box("4", policy=PolicySettings("fifo", "conservative"))
    b.submit(2, time_limit=100.0)
    b.submit(4, time_limit=10.0)
    assert b.engine.dry_run(make_spec(2, time_limit=100.0), b.now)[1] is not None
    assert b.engine.dry_run(make_spec(2, time_limit=101.0), b.now)[1] is None, "it would delay the second"


# -- limits beside devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
def test_who_waits_for_a_quota_is_told_no_time_at_which_it_cannot_start(box: NewBox, backfill: str) -> None:
    b = box("4", policy=PolicySettings("fifo", backfill, user_gpus=2))
    b.submit(2, time_limit=3600.0)
    second, third = b.submit(1, time_limit=60.0), b.submit(2, time_limit=60.0)
    assert [told(b, job) for job in (second, third)] == [(None, 3600.0), (None, 3660.0)]
    tried = b.engine.outlook.tried(b.engine.dry_run(make_spec(1), b.now)[0], b.now)
    assert tried.promise is None and tried.forecast is not None and tried.forecast >= b.now + 3600.0
    assert b.engine.dry_run(make_spec(1), b.now)[1] is None, "and would not start either"


@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
def test_who_waits_for_others_to_end_is_told_when(box: NewBox, backfill: str) -> None:
    b = box("4", policy=PolicySettings("fifo", backfill), max_running=1)
    b.submit(1, time_limit=3600.0)
    second, third = b.submit(1, time_limit=60.0), b.submit(1, time_limit=60.0)
    assert [told(b, job) for job in (second, third)] == [(None, 3600.0), (None, 3660.0)]


def test_a_quota_of_jobs_counts_those_of_an_account(box: NewBox) -> None:
    shares, quotas = (("lab/alice", 1.0), ("lab/bob", 1.0)), (Quota("lab/", jobs=1),)
    b = box("4", policy=PolicySettings("fifo", "easy", shares=shares, quotas=quotas))
    b.submit(1, time_limit=100.0, user="alice")
    follows = b.submit(1, time_limit=50.0, user="bob")
    other = b.submit(1, time_limit=50.0, user="cyd")
    assert told(b, follows) == (None, 100.0) and other in b.running


def test_a_dry_run_under_strict_order_goes_by_that_order(box: NewBox) -> None:
    b = full(box, "none")
    b.submit(4, time_limit=50.0)
    job, devices = b.engine.dry_run(make_spec(1, time_limit=10.0), b.now)
    assert devices is None
    expected = b.engine.outlook.tried(job, b.now)
    assert (expected.promise, expected.forecast) == (b.now + 350.0, b.now + 350.0)


def test_who_may_not_start_is_in_nobodys_way(box: Callable[..., Box]) -> None:
    """Under strict order a job over its owner's quota is passed over, by the forecast, too."""
    b = box("4", policy=PolicySettings(order="fifo", backfill="none", user_gpus=2))
    b.submit(2, user="alice", time_limit=1000.0)
    b.submit(2, user="bob", time_limit=100.0)
    b.submit(1, user="alice")
    late = b.submit(1, user="carol", time_limit=10.0)
    assert b.engine.outlook.of(b.job(late), b.now).forecast == b.now + 100


@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
def test_what_is_kept_for_somebody_is_nobody_elses(box: NewBox, backfill: str) -> None:
    knobs = PolicySettings("priority", backfill, aging=0.0, preemption=True, preempt_after=0.0, preempt_grace=60.0)
    b = box("2", policy=knobs)
    low = b.submit(1, time_limit=300.0, preemptible=True)
    b.submit(1, time_limit=500.0)
    b.wait(100)
    high = b.submit(1, time_limit=30.0, priority=1)
    behind = b.submit(1, time_limit=50.0)
    assert [notice.job for notice in b.claim(do.Notify)] == [low] and high in b.engine.claims
    assert told(b, high) == (60.0, 60.0), "when the victim's grace is over"
    assert told(b, behind) == (90.0, 90.0), "when that one is done, not when the victim goes"
    job, _ = b.engine.dry_run(make_spec(1, time_limit=9.0), b.now)
    assert b.engine.outlook.tried(job, b.now).forecast == b.now + 140.0
    b.wait(60)
    assert b.claim(do.Ended, low) and high in b.running and told(b, behind)[1] == 30.0
