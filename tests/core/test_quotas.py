"""Quotas: what users and accounts may have at a time, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.support import Box, make_spec, snapshot
from gpusched.scheduler.codec import job_of, record_of
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import Invalid, NotSatisfiable
from gpusched.scheduler.core.explain import Code, foresee
from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.core.policy import PolicySettings, Quota
from gpusched.scheduler.core.queue import Verdict
from gpusched.scheduler.core.states import State

Boxes = Callable[..., Box]
BACKFILLS = ("none", "easy", "conservative")
SHARES = (("physics/alice", 1.0), ("physics/bob", 1.0), ("chem/org/carol", 1.0))


def policy(**more: Any) -> PolicySettings:
    return PolicySettings(**{"backfill": "none", "aging": 0.0} | more)


@pytest.fixture(params=BACKFILLS)
def backfill(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_one_over_quota_is_passed_over_and_blocks_nobody(box: Boxes, backfill: str) -> None:
    b = box("4", policy=policy(user_gpus=2, backfill=backfill))
    one, two = b.submit(), b.submit()
    third, other = b.submit(), b.submit(2, user="bob")
    assert b.running == [one, two, other] and b.waiting == [third]
    reason = b.why(third)
    assert (reason.code, reason.message) == (Code.LIMIT, "alice holds 2 GPUs, and may have 2 (quota); this needs 1 GPU")
    b.release(one)
    assert b.running == [two, third, other]


def test_jobs_are_counted_too(box: Boxes, backfill: str) -> None:
    b = box("4", policy=policy(user_jobs=1, backfill=backfill))
    one, two, other = b.submit(), b.submit(), b.submit(user="bob")
    assert b.running == [one, other]
    assert b.why(two).message == "alice has 1 job running, and may have 1 (quota)"
    b.cancel(one)
    b.told(one)
    b.wait(30.0)
    assert b.running == [two, other]


def test_several_of_one_burst_stop_at_the_quota(box: Boxes, backfill: str) -> None:
    b = box("8", policy=policy(user_gpus=3, backfill=backfill))
    jobs = [b.ask(user=user) for user in ("alice", "bob") for _ in range(5)]
    b.settle()
    assert b.running == [*jobs[:3], *jobs[5:8]]


@pytest.mark.parametrize("candidates", ["queue", "sjbf"])
def test_backfill_stops_at_the_quota(box: Boxes, candidates: str) -> None:
    b = box("6", policy=policy(user_gpus=3, backfill="easy", candidates=candidates))
    b.submit(3, user="bob", time_limit=100.0)
    head = b.submit(3, user="bob", time_limit=100.0, priority=-1)
    assert b.why(head).code is Code.LIMIT
    wide = b.submit(3, user="carol", time_limit=10.0)
    first = b.submit(3, user="dave", time_limit=50.0)
    jobs = [b.ask(1, time_limit=limit, priority=-1) for limit in (30.0, 20.0, 10.0, 40.0)]
    b.release(wide)
    assert first in b.running
    b.release(first)
    assert [job in b.running for job in jobs] == [True, True, True, False]


@pytest.mark.parametrize(
    ("quotas", "may"),
    [
        ((Quota("alice", 3),), {"alice": 3, "bob": 2, "carol": 2}),
        ((Quota("alice", 0, 1),), {"alice": 1, "bob": 2, "carol": 2}),
        ((Quota("alice"),), {"alice": 4, "bob": 2, "carol": 2}),
        ((Quota("physics/", 3),), {"alice": 2, "bob": 1, "carol": 2}),
        ((Quota("physics/", 0, 1),), {"alice": 1, "bob": 0, "carol": 2}),
        ((Quota("chem/", 1),), {"alice": 2, "bob": 2, "carol": 1}),
        ((Quota("chem/org/", 1), Quota("chem/", 2)), {"alice": 2, "bob": 2, "carol": 1}),
    ],
    ids=lambda value: ";".join(f"{q.name}={q.gpus}:{q.jobs}" for q in value) if isinstance(value, tuple) else "",
)
def test_named_quotas_take_the_place_of_the_general_one(
    box: Boxes, quotas: tuple[Quota, ...], may: dict[str, int]
) -> None:
    b = box("16", policy=policy(user_gpus=2, quotas=quotas, shares=SHARES))
    for user in may:
        for _ in range(4):
            b.ask(1, user=user)
    b.settle()
    have = [job.spec.owner.name for job in b.engine.running.values()]
    assert {user: have.count(user) for user in may} == may


def test_an_account_is_named_in_the_reason(box: Boxes) -> None:
    b = box("4", policy=policy(quotas=(Quota("physics/", 2),), shares=SHARES))
    b.submit(2)
    assert b.why(b.submit(1, user="bob")).message == (
        "account physics holds 2 GPUs, and may have 2 (quota); this needs 1 GPU"
    )


def test_what_never_fits_is_refused(box: Boxes) -> None:
    b = box("8", policy=policy(user_gpus=2, quotas=(Quota("physics/", 1),), shares=SHARES))
    with pytest.raises(NotSatisfiable, match="3 GPUs are more than zoe may hold at a time, 2") as refused:
        b.submit(3, user="zoe")
    assert (refused.value.field, refused.value.reason) == ("resources.gpus", "QUOTA")
    with pytest.raises(NotSatisfiable, match="more than account physics may hold at a time, 1"):
        b.submit(2)
    with pytest.raises(NotSatisfiable):
        b.engine.dry_run(make_spec(3, user="zoe"), b.now)
    b.happen(ev.SetPolicy(policy(user_gpus=2, borrow=True)))
    job = b.submit(3, user="zoe")
    assert b.running == [job]


def test_a_lower_quota_takes_nothing_away(box: Boxes, backfill: str) -> None:
    b = box("4", policy=policy(user_gpus=4, backfill=backfill))
    jobs = [b.submit() for _ in range(3)]
    b.happen(ev.SetPolicy(policy(user_gpus=1, backfill=backfill)))
    later = b.submit()
    assert b.running == jobs and b.why(later).message.startswith("alice holds 3 GPUs, and may have 1")
    for job in jobs[:2]:
        b.release(job)
    assert b.state(later).name == "QUEUED"
    b.release(jobs[2])
    assert b.running == [later]
    b.happen(ev.SetPolicy(policy(backfill=backfill)))
    assert len(b.running) == 1 and b.engine.quotas is None


def test_a_higher_quota_lets_them_start_at_once(box: Boxes, backfill: str) -> None:
    b = box("4", policy=policy(user_gpus=1, backfill=backfill))
    jobs = [b.submit() for _ in range(3)]
    b.happen(ev.SetPolicy(policy(user_gpus=2, backfill=backfill)))
    assert b.running == jobs[:2]


def test_a_restart_counts_what_runs(box: Boxes) -> None:
    b = box("4", policy=policy(user_gpus=2))
    held = [b.submit() for _ in range(2)]
    jobs = [job_of(record_of(job)) for job in b.engine.jobs.values()]
    b.engine = Engine(b.nodes, b.settings, first_job=9, first_epoch=1 << 40)
    b.engine.restore(jobs, {}, b.now)
    b.settle()
    third = b.submit()
    assert b.running == held and b.why(third).code is Code.LIMIT


def test_a_dry_run_says_so_and_changes_nothing(box: Boxes) -> None:
    b = box("4", policy=policy(user_gpus=2))
    b.submit(2)
    before = snapshot(b.engine)
    job, devices = b.engine.dry_run(make_spec(1), b.now)
    assert devices is None and foresee(b.engine, job).code is Code.LIMIT
    assert b.engine.dry_run(make_spec(2, user="bob"), b.now)[1] == ("a2", "a3")
    assert snapshot(b.engine) == before


# -- borrowing -----------------------------------------------------------------------------------------------


def test_borrowing_while_nobody_else_waits(box: Boxes, backfill: str) -> None:
    b = box("4", policy=policy(user_gpus=1, borrow=True, backfill=backfill))
    jobs = [b.submit() for _ in range(3)]
    assert b.running == jobs
    bob = b.submit(2, user="bob")  # within no quota either
    more = b.submit()
    assert b.running == [*jobs, more] or b.running == [*jobs, bob]


def test_no_borrowing_of_what_another_could_use(box: Boxes, backfill: str) -> None:
    b = box("2xH100", "2xA100", policy=policy(user_gpus=2, borrow=True, backfill=backfill))
    zoes = b.submit(1, user="zoe", model="h100")
    right = b.submit(1, model="a100")
    waits = b.submit(2, user="bob", model="h100")
    over = [b.submit(2), b.submit(2, model="a100")]
    assert b.running == [zoes, right], "one free GPU of each model, and bob waits for one of them"
    b.happen(ev.Update(over[0], held=True))
    b.happen(ev.Update(over[1], held=True))
    b.happen(ev.SetPolicy(policy(user_gpus=2, quotas=(Quota("zoe", 1),), borrow=True, backfill=backfill)))
    alone, lent = b.submit(1, user="zoe"), b.submit(1, user="zoe")
    assert b.gpus(alone) == ("b1",) and b.state(lent) is b.state(waits) is State.QUEUED
    b.cancel(waits)
    assert b.gpus(lent) == ("a1",)


def test_whoever_is_within_his_quota_goes_first(box: Boxes, backfill: str) -> None:
    b = box("2", policy=policy(user_gpus=1, borrow=True, backfill=backfill))
    held = [b.submit(1, user="zoe", time_limit=10.0), b.submit(1, user="zoe", time_limit=10.0)]
    over, right = b.submit(1, user="zoe"), b.submit(1, user="bob")
    b.release(held[0])
    assert b.running == [held[1], right] and b.state(over).name == "QUEUED"


def test_jobs_are_never_borrowed(box: Boxes, backfill: str) -> None:
    b = box("4", policy=policy(user_jobs=1, user_gpus=1, borrow=True, backfill=backfill))
    one, two = b.submit(2), b.submit()
    assert b.running == [one] and b.why(two).code is Code.LIMIT


# -- what is allowed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quotas", "text"),
    [
        ((Quota("physics/", 1),), "there is no account 'physics/'"),
        ((Quota("alice", 1), Quota("alice", 2)), "'alice' is named twice"),
        ((Quota("", 1),), "give a name"),
        ((Quota("alice", -1),), "give a name, and 0 or more"),
    ],
)
def test_bad_quotas(quotas: tuple[Quota, ...], text: str) -> None:
    with pytest.raises(Invalid, match=text) as refused:
        PolicySettings(quotas=quotas)
    assert refused.value.field == "policy.quotas"


def test_a_pass_looks_at_each_class_once(box: Boxes) -> None:
    """With very many jobs over quota, what is not theirs starts without a look at each of them."""
    b = box("2", policy=policy(user_gpus=1))
    for _ in range(300):
        b.engine.handle(ev.Submit(make_spec(1)), b.now)
    other = b.ask(1, user="bob")
    looked = 0
    order = b.engine.queue.job

    def count(key: Any) -> Any:
        nonlocal looked
        looked += 1
        return order(key)

    b.engine.queue.job = count  # type: ignore[method-assign]
    b.settle()
    assert b.running == [JobId(1), other] and looked < 20
    assert {found.verdict for found in b.engine.queue.classes.values()} == {Verdict.QUOTA}


# -- starts change who may start -------------------------------------------------------------------------------


def test_who_waits_behind_one_that_has_all_it_may_by_now_starts(box: Boxes) -> None:
    """The first is over its owner's quota only since a later job of his started: from then on it blocks nobody."""
    b = box("4", policy=policy(user_gpus=3, backfill="easy"))
    b.submit(2, user="bob")
    wide, short = b.submit(3), b.submit(1, time_limit=1e5)
    other = b.submit(1, user="carol")
    assert short in b.running and b.why(wide).code is Code.LIMIT
    assert other in b.running


def test_the_same_among_bookings(box: Boxes) -> None:
    b = box("4", policy=policy(user_gpus=3, backfill="conservative", quotas=(Quota("bob", 4),)))
    holder = b.submit(4, user="bob", time_limit=5.0)
    first, second, other = b.submit(2), b.submit(2), b.submit(1, user="dan")
    b.wait(4)
    b.release(holder)
    assert b.running == [first, other] and b.why(second).code is Code.LIMIT


def test_nothing_is_promised_behind_one_that_another_quota_holds_back(box: Boxes) -> None:
    b = box("2", policy=policy(backfill="easy", quotas=(Quota("alice", 1),)))
    one, two = b.submit(1, time_limit=10.0), b.submit(1, user="carol", time_limit=10.0)
    held, behind = b.submit(1, time_limit=1000.0), b.submit(2, user="carol", time_limit=10.0)
    assert b.engine.outlook.of(b.job(behind), b.now).promise is None, "the other may start before it"
    b.release(one)
    assert b.running == [two, held] and b.waiting == [behind]
    assert b.engine.outlook.of(b.job(behind), b.now).promise == b.now + 1000.0


def test_more_than_is_allowed_at_all_waits_for_another_policy(box: Boxes, backfill: str) -> None:
    b = box("4", policy=policy(backfill=backfill))
    b.submit(3, time_limit=10.0)
    wide = b.submit(2, time_limit=10.0)
    b.happen(ev.SetPolicy(policy(backfill=backfill, user_gpus=1)))
    b.wait(1.5)
    assert b.engine.outlook.of(b.job(wide), b.now).forecast is None
    text = "needs 2 GPUs, more than alice may hold at all: 1 (quota)"
    assert b.why(wide).message == f"{text}; it waits until that is changed"
    b.happen(ev.SetPolicy(policy(backfill=backfill, user_gpus=1, borrow=True)))
    assert b.why(wide).message == text


def test_what_is_kept_counts_and_is_told(box: Boxes) -> None:
    """Who has something kept waits for that, and not for his quota; his others are told what counts."""
    knobs = policy(backfill="easy", user_gpus=2, borrow=True, preemption=True, preempt_after=0.0, preempt_grace=30.0)
    b = box("2xH100", "1xA100", policy=knobs)
    low = b.submit(2, model="h100", user="bob", preemptible=True)
    high = b.submit(2, model="h100", priority=1)
    assert b.told(low) and list(b.engine.claims) == [high]
    assert b.why(high).message == "needs 2 GPUs; job 1 (bob) is ending for it"
    other = b.submit(1, model="a100")
    assert b.waiting == [high, other], "nothing is borrowed at the cost of what is kept"
    text = "alice holds 2 GPUs, with those kept for job 2, and may have 2 (quota); this needs 1 GPU"
    assert b.why(other).message == text
    b.submit(1, model="a100", user="dan")
    b.wait(30)
    assert high in b.running and b.claim(do.Ended, low)


def test_only_the_first_of_those_who_compete_preempts_also_with_quotas(box: Boxes) -> None:
    knobs = policy(backfill="easy", quotas=(Quota("alice", 2),), preemption=True, preempt_after=0.0)
    b = box("4", policy=knobs)
    lows = [b.submit(2, user="bob", preemptible=True) for _ in range(2)]
    high, next_one = b.submit(2, priority=1), b.submit(2, user="carol", priority=1)
    b.cancel(b.submit(1, user="eve"))
    assert list(b.engine.claims) == [high] and [job for job in lows if b.told(job)] == [lows[1]]
    assert b.waiting[:2] == [high, next_one]
