"""Long chains of jobs that follow each other, and followers that are forgotten before their turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.support import Box
from core.test_batch import batch_spec, run, submit
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core import invariants
from gpusched.scheduler.core.batch import After, Dependency
from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.states import State

NewBox = Callable[..., Box]


def test_a_follower_that_is_forgotten_before_its_turn(box: NewBox) -> None:
    """It was cancelled, and many others ended since; the job that it was to follow ends much later."""
    b = box("1", keep_ended=1)
    first = submit(b)
    run(b, first)
    follower = submit(b, dependencies=(Dependency(first),))
    b.cancel(follower)
    for _ in range(3):
        b.cancel(submit(b))
    assert follower not in b.engine.jobs
    b.release(first)
    assert b.engine._followers == {} and b.free == ["a0"]


@pytest.mark.parametrize("after", [After.OK, After.ANY])
def test_a_chain_of_thousands_ends_or_goes_on(box: NewBox, after: After) -> None:
    b = box("1", keep_ended=5000)
    engine = b.engine
    first = submit(b)
    chain = [first]
    for _ in range(3000):
        engine.handle(ev.Submit(batch_spec(dependencies=(Dependency(chain[-1], after),))), b.now)
        chain.append(type(first)(chain[-1] + 1))
    b.cancel(first)
    b.told(first)
    b.release(first, 1)
    if after is After.OK:
        assert {b.state(job) for job in chain} == {State.CANCELLED}
        assert f"job {chain[-2]}, which it was to follow (ok), ended cancelled" in b.outcome(chain[-1]).message
    else:
        assert b.running == [chain[1]] and len(b.waiting) == 2999
    invariants.check(engine)


def test_followers_end_in_the_order_of_their_jobs(box: NewBox) -> None:
    b = box("1")
    first = submit(b, held=True)
    children = [submit(b, dependencies=(Dependency(first),)) for _ in range(2)]
    grandchildren = [submit(b, dependencies=(Dependency(child),)) for child in children]
    b.cancel(first)
    assert [job.id for job in reversed(b.engine.ended_jobs())] == [first, *children, *grandchildren]


def test_a_cancel_takes_back_an_earlier_wish_to_queue_it_again(box: NewBox) -> None:
    b = box("1")
    job = submit(b)
    run(b, job)
    b.happen(ev.Requeue(job, "queued again by bob"))
    b.cancel(job)
    b.told(job)
    b.release(job, 143)
    assert b.state(job) is State.CANCELLED


def test_the_grace_of_an_ended_run_means_nothing_to_the_next(box: NewBox) -> None:
    b = box("1", end_grace=4)
    job = submit(b, grace=0.0)
    run(b, job)
    b.happen(ev.Requeue(job, "queued again by bob"))
    b.told(job)
    b.release(job, 143)
    run(b, job)
    b.wait(100)
    assert (b.running, b.job(job).attempt) == ([job], 2)


def test_a_follower_that_was_cancelled_stays_so(box: NewBox) -> None:
    b = box("1")
    first = submit(b)
    run(b, first)
    follower = submit(b, dependencies=(Dependency(first),))
    b.cancel(follower)
    b.release(first)
    assert b.outcome(follower).message == "cancelled by bob"


def test_a_job_may_follow_a_hundred_others_at_most(box: NewBox) -> None:
    b = box("1")
    with pytest.raises(Invalid, match="at most 100") as caught:
        submit(b, dependencies=tuple(Dependency(number) for number in range(1, 102)))
    assert caught.value.field == "dependencies"


def test_changes_that_could_not_be_saved_are_saved_with_those_that_follow(box: NewBox) -> None:
    b = box("2")
    b.engine.take_changes()
    job = submit(b)
    b.happen(ev.Pause("x"))
    first = b.engine.take_changes()
    b.happen(ev.Pause(None))
    other = b.submit(1)
    b.leave(other)
    both = first.before(b.engine.take_changes())
    assert list(both.jobs) == [job, other] and both.sync and both
    assert [lease.job for lease in both.leases] == [job, other]
    assert [epoch for epoch, _ in both.ended] == [both.leases[1].epoch]
    assert both.settings == {"paused": None}, "the later word counts"
    assert [line.message for _, line, _ in both.events][:2] == ["accepted", "granted 1 GPU"]
    assert not b.engine.take_changes()
