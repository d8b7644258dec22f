"""Who starts, and in which order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.support import Box, make_nodes
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core import invariants
from gpusched.scheduler.core.errors import NotSatisfiable
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.core.states import State

NewBox = Callable[..., Box]


def test_an_idle_machine_starts_a_job_at_once(box: NewBox) -> None:
    b = box("4")
    job = b.submit(2)
    assert b.gpus(job) == ("a0", "a1")
    [granted] = b.claim(do.Granted)
    assert (granted.job, granted.lease.devices, granted.lease.id) == (job, ("a0", "a1"), "L0.1")


def test_all_or_nothing(box: NewBox) -> None:
    b = box("4")
    first, big = b.submit(3), b.submit(2)
    assert (b.running, b.waiting, b.free) == ([first], [big], ["a3"])
    b.release(first)
    assert b.gpus(big) == ("a0", "a1")


def test_a_big_job_is_not_overtaken_by_small_ones(box: NewBox) -> None:
    b = box("4")
    first = b.submit(2)
    big = b.submit(4)
    small = [b.submit(1) for _ in range(5)]
    assert b.running == [first] and b.waiting == [big, *small] and b.free == ["a2", "a3"]
    b.release(first)
    assert b.running == [big]
    b.release(big)
    assert b.running == small[:4] and b.waiting == small[4:]


def test_positions_run_from_one_without_gaps(box: NewBox) -> None:
    b = box("1")
    holder = b.submit(1)
    waiting = [b.submit(1) for _ in range(6)]
    b.cancel(waiting[2])
    b.leave(waiting[4])
    left = [waiting[i] for i in (0, 1, 3, 5)]
    assert b.waiting == left
    assert [b.engine.queue.position(b.job(job)) for job in left] == [1, 2, 3, 4]
    assert b.engine.queue.after(((), b.job(waiting[2]).key)) is b.job(waiting[3]), "one that left still marks its place"
    assert b.engine.queue.after(None) is b.job(left[0]) and b.engine.queue.after(((), b.job(left[-1]).key)) is None
    b.release(holder)
    assert [b.engine.queue.position(b.job(job)) for job in left[1:]] == [1, 2, 3]


@pytest.mark.parametrize("blocker", [{"model": "h100"}, {"node": "a"}])
def test_jobs_of_other_devices_do_not_wait_for_the_head(box: NewBox, blocker: dict[str, str]) -> None:
    b = box("2xH100", "2xA100")
    b.submit(1, **blocker)
    big = b.submit(2, **blocker)
    same, other = b.submit(1, **blocker), b.submit(2, model="a100")
    assert b.waiting == [big, same]
    assert b.gpus(other) == ("b0", "b1")


def test_a_blocked_job_that_could_use_more_devices_is_not_overtaken_on_those(box: NewBox) -> None:
    """It waits behind the head for the H100s; small A100 jobs that come later must not starve it."""
    b = box("2xH100", "2xA100")
    holder = b.submit(1, model="h100")
    head = b.submit(2, model="h100")
    wide = b.submit(4)
    late = b.submit(1, model="a100")
    assert b.waiting == [head, wide, late]
    assert b.why(late).ahead == wide and b.why(wide).ahead == head
    b.release(holder)
    assert b.running == [head] and b.waiting == [wide, late]
    b.release(head)
    assert b.running == [wide] and b.why(late).ahead is None


def test_memory_parts_the_devices_too(box: NewBox) -> None:
    b = box("1xH100:80", "1xA100:40")
    large = b.submit(1, memory=60)
    second = b.submit(1, memory=60)
    any_gpu = b.submit(1)
    assert b.gpus(large) == ("a0",) and b.waiting == [second, any_gpu], "the head could not use b0, but blocks a0"
    b.release(large)
    assert b.gpus(second) == ("a0",) and b.gpus(any_gpu) == ("b0",)


def test_a_higher_tier_goes_first(box: NewBox) -> None:
    b = box("1")
    b.submit(1)
    low, normal, high = b.submit(1, priority=-5), b.submit(1), b.submit(1, priority=5)
    assert b.waiting == [high, normal, low]


def test_a_change_of_priority_moves_a_waiting_job(box: NewBox) -> None:
    b = box("1")
    holder = b.submit(1)
    one, two, three = (b.submit(1) for _ in range(3))
    b.happen(ev.Update(three, priority=3, by="root"))
    assert b.waiting == [three, one, two]
    assert b.job(three).history[-1].message == "priority 0 -> 3 by root"
    b.happen(ev.Update(three, priority=-1))
    assert b.waiting == [one, two, three]
    b.happen(ev.Update(holder, priority=9))
    assert b.job(holder).priority == 9 and b.waiting == [one, two, three]


def test_a_change_of_priority_lets_a_job_start_that_was_blocked(box: NewBox) -> None:
    b = box("2")
    b.submit(1)
    big, small = b.submit(2), b.submit(1)
    b.happen(ev.Update(small, priority=1))
    assert b.state(small) is State.RUNNING and b.waiting == [big]


def test_names_can_be_changed_and_no_change_is_one_too(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1, name="train")
    b.happen(ev.Update(job, name="train 2"))
    assert b.job(job).name == "train 2"
    before = len(b.job(job).history)
    b.happen(ev.Update(job, priority=0, name="train 2"))
    b.happen(ev.Update(job))
    assert len(b.job(job).history) == before
    b.release(job)
    with pytest.raises(NotSatisfiable) as caught:
        b.happen(ev.Update(job, name="late"))
    assert caught.value.reason == "JOB_ENDED"


def test_a_burst_of_submits_wants_one_pass(box: NewBox) -> None:
    b = box("8")
    jobs = [b.ask(1) for _ in range(100)]
    assert b.engine.pass_wanted and b.running == []
    b.do(ev.Pass())
    assert not b.engine.pass_wanted
    assert b.running == jobs[:8] and b.waiting == jobs[8:]


def test_one_pass_starts_no_more_than_may_run(box: NewBox) -> None:
    b = box("8", max_running=3)
    jobs = [b.ask(1) for _ in range(5)]
    b.do(ev.Pass())
    assert b.running == jobs[:3] and b.engine.slots == 0
    b.release(jobs[0])
    assert b.running == jobs[1:4]


def test_epochs_rise_with_every_grant(box: NewBox) -> None:
    b = box("2")
    b.engine._next_epoch = 7 << 32
    for _ in range(3):
        b.release(b.submit(1))
    epochs = [effect.lease.epoch for effect in b.claim(do.Granted)]
    assert epochs == [7 << 32, (7 << 32) + 1, (7 << 32) + 2]


# -- placement ---------------------------------------------------------------------------------------------


def test_a_job_gets_the_lowest_free_indices_of_one_node(box: NewBox) -> None:
    b = box("4", "4")
    first, second = b.submit(1), b.submit(2)
    b.submit(1)
    b.release(first)
    assert b.gpus(second) == ("a1", "a2")
    assert b.gpus(b.submit(1)) == ("a0",)


def test_the_node_with_least_left_over_is_chosen(box: NewBox) -> None:
    b = box("4", "2", "2")
    assert b.gpus(b.submit(2)) == ("b0", "b1"), "the first of the equally good"
    assert b.gpus(b.submit(2)) == ("c0", "c1")
    assert b.gpus(b.submit(3)) == ("a0", "a1", "a2")


def test_a_job_spans_nodes_only_if_it_must_and_then_few(box: NewBox) -> None:
    b = box("2", "4", "3")
    assert b.gpus(b.submit(7)) == ("b0", "b1", "b2", "b3", "c0", "c1", "c2")
    b = box("2", "4", "3")
    assert b.gpus(b.submit(5)) == ("b0", "b1", "b2", "b3", "a0"), "the rest where it leaves least"


def test_a_node_or_model_asked_for_is_the_one_given(box: NewBox) -> None:
    b = box("2xH100", "4xA100:40")
    assert b.gpus(b.submit(1, node="b")) == ("b0",)
    assert b.gpus(b.submit(2, model="h100", memory=80)) == ("a0", "a1")


def test_devices_are_never_taken_twice(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1)
    with pytest.raises(AssertionError, match="a0 is ALLOCATED, not free"):
        b.engine.pool.take(("a0",), job)


def test_two_devices_of_one_uuid_are_refused(box: NewBox) -> None:
    with pytest.raises(ValueError, match="a0"):
        Pool(make_nodes("1") * 2)


# -- the invariants themselves can fail ----------------------------------------------------------------------


def test_the_invariants_notice_broken_state(box: NewBox) -> None:
    b = box("2")
    holder, waiter = b.submit(2), b.submit(1)
    engine = b.engine
    device = engine.pool.devices["a0"]

    device.holder = None
    with pytest.raises(AssertionError, match="available devices is off"):
        invariants.check(engine)
    device.holder = waiter
    with pytest.raises(AssertionError, match="a0 and the leases disagree"):
        invariants.check(engine)
    device.holder = holder
    invariants.check(engine)

    del engine.running[holder]
    with pytest.raises(AssertionError):
        invariants.check(engine)
    engine.running[holder] = b.job(holder)
    engine.running[waiter] = b.job(waiter)
    with pytest.raises(AssertionError, match="without a lease"):
        invariants.check(engine)
    del engine.running[waiter]

    engine.queue._lanes[()].remove(b.job(waiter).key)
    with pytest.raises(AssertionError, match="queue length"):
        invariants.check(engine)
