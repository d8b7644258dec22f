"""A head that waits for devices that somebody must mend stops nobody for more than a minute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.support import Box, pending
from gpusched.scheduler.codec import job_of, record_of
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.batch import BatchSpec
from gpusched.scheduler.core.explain import Code
from gpusched.scheduler.core.jobs import Kind
from gpusched.scheduler.core.model import Condition
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.queue import Verdict

NewBox = Callable[..., Box]

BREAK: dict[str, Callable[[Box], None]] = {
    "drained": lambda b: b.drain("a3"),
    "node drained": lambda b: b.drain(node="b"),
    "foreign": lambda b: b.see(Condition.FOREIGN, "a3", message="GPU 3: pid 4242 python (eve), not under a lease"),
    "dirty": lambda b: b.see(Condition.DIRTY, "a3", message="GPU 3: pid 99 python (bob) still holds 1.0 GiB"),
    "unhealthy": lambda b: b.see(Condition.UNHEALTHY, "a3", message="GPU 3: Xid 79"),
}
MEND: dict[str, Callable[[Box], None]] = {
    "drained": lambda b: b.drain("a3", reason=None),
    "node drained": lambda b: b.drain(node="b", reason=None),
    "foreign": lambda b: b.see(Condition.CLEAN, "a3"),
    "dirty": lambda b: b.see(Condition.CLEAN, "a3"),
    "unhealthy": lambda b: b.see(Condition.CLEAN, "a3"),
}


@pytest.mark.parametrize("how", BREAK)
def test_a_head_is_set_aside_after_a_minute_and_starts_when_mended(box: NewBox, how: str) -> None:
    b = box("4", "1")
    BREAK[how](b)
    head = b.submit(5)
    small = b.submit(1)
    assert b.waiting == [head, small]
    assert b.why(head).code is Code.UNAVAILABLE and "set aside" not in b.why(head).message
    b.wait(59.9)
    assert b.waiting == [head, small]
    b.claim(do.QueueChanged)
    b.wait(0.1)
    assert b.running == [small] and b.waiting == [head]
    assert b.claim(do.QueueChanged), "waiters are told anew"
    reason = b.why(head)
    assert reason.code is Code.UNAVAILABLE and (reason.needed, reason.free) == (5, 3)
    assert "only 4 of 5 are in service" in reason.message
    assert reason.message.endswith("; set aside, others go first meanwhile")

    MEND[how](b)
    assert b.waiting == [head], "it waits for its turn like anybody"
    assert b.engine.queue.class_of(b.job(head)).verdict is Verdict.WAITS
    later = b.submit(1)
    assert b.waiting == [head, later], "and blocks again"
    b.release(small)
    assert b.running == [head] and b.waiting == [later]


def test_a_wait_that_mends_itself_sets_nobody_aside(box: NewBox) -> None:
    """Devices that are held or being checked come back by themselves."""
    b = box("2")
    holder, head, small = b.submit(1), b.submit(2), b.submit(1)
    b.wait(1000)
    assert b.running == [holder] and b.waiting == [head, small]
    assert b.why(head).code is Code.RESOURCES


def test_mended_in_time_and_broken_again_counts_from_the_start(box: NewBox) -> None:
    b = box("2")
    holder = b.submit(1)
    b.see(Condition.FOREIGN, "a1")
    head, small = b.submit(2), b.submit(1, priority=-1)
    b.wait(50)
    b.see(Condition.CLEAN, "a1")
    b.see(Condition.FOREIGN, "a1")
    b.wait(50)
    b.release(holder)
    assert b.waiting == [head, small], "only 50 s of the new fault have passed"
    b.wait(10)
    assert b.running == [small]


def test_a_minute_that_began_before_the_mending_is_not_counted_on(box: NewBox) -> None:
    """The devices of a job are mended and break anew while another job blocks it: a new minute begins."""
    b = box("4")
    b.submit(2)
    b.drain("a3")
    head = b.submit(4)
    b.wait(30)
    blocker = b.submit(3, priority=5)
    assert b.waiting == [blocker, head] and b.why(head).ahead == blocker
    b.drain("a3", reason=None)
    b.wait(10)
    b.drain("a3")
    b.wait(10)
    b.cancel(blocker)
    small = b.submit(1)
    b.wait(49.9)
    assert b.waiting == [head, small]
    b.wait(0.1)
    assert b.waiting == [head] and b.gpus(small) == ("a2",)


def test_one_broken_device_stops_nobody_through_a_job_behind_the_head(box: NewBox) -> None:
    """`wide` waits behind the head and for a broken GPU; later A100 jobs wait for it a minute at most."""
    b = box("1xH100", "2xA100")
    b.submit(1, model="h100")
    head = b.submit(1, model="h100")
    b.see(Condition.UNHEALTHY, "b1", message="GPU 1: Xid 79")
    wide, late = b.submit(3), b.submit(1, model="a100")
    assert b.waiting == [head, wide, late]
    b.wait(60)
    assert b.gpus(late) == ("b0",) and b.waiting == [head, wide]


def test_a_new_job_like_one_set_aside_is_set_aside_too_and_others_pass(box: NewBox) -> None:
    b = box("2")
    b.drain("a1")
    b.submit(2)
    b.wait(60)
    again, small = b.submit(2), b.submit(1)
    assert b.running == [small]
    assert b.why(again).code is Code.UNAVAILABLE


def test_a_change_of_priority_begins_no_new_minute(box: NewBox) -> None:
    b = box("2")
    b.drain("a1")
    head = b.submit(2)
    b.wait(40)
    b.happen(ev.Update(head, priority=1))
    small = b.submit(1)
    b.wait(19)
    assert b.waiting == [head, small]
    b.wait(1)
    assert b.running == [small]
    b.happen(ev.Update(head, priority=2))
    another = b.submit(1, node="a")
    b.release(small)
    assert b.running == [another], "and one set aside stays so"


def test_a_start_ends_the_minute_of_those_that_ask_for_the_same(box: NewBox) -> None:
    """Also where no more may run, and the next of them is not looked at in this pass."""
    b = box("2", max_running=1)
    b.drain("a1")
    first, second = b.submit(2), b.submit(2)
    b.wait(50)
    b.drain("a1", reason=None)
    assert b.running == [first]
    b.drain("a1")
    b.told(first)
    b.release(first)
    small = b.submit(1)
    b.wait(30)
    assert b.waiting == [second, small], "only 30 s of the new fault have passed"
    b.wait(30)
    assert b.running == [small]


def test_passes_do_not_pile_up_moments_to_look_again(box: NewBox) -> None:
    b = box("4")
    b.drain("a3")
    b.submit(4)
    b.submit(4, memory=10)
    for _ in range(200):
        b.happen(ev.Pass())
    assert pending(b.engine)["LOOK_AGAIN"] <= 2
    b.claim(do.QueueChanged)
    passes = sum(isinstance(event, ev.Pass) for event, _ in b.log)
    b.wait(60)
    assert sum(isinstance(event, ev.Pass) for event, _ in b.log) - passes <= 2
    assert len(b.claim(do.QueueChanged)) <= 2
    assert all(found.verdict is Verdict.SET_ASIDE for found in b.engine.queue.classes.values())


def test_each_class_is_set_aside_at_its_own_time(box: NewBox) -> None:
    b = box("2xH100", "2xA100")
    b.drain("a1")
    b.submit(2, model="h100")
    b.wait(25)
    b.drain("b1")
    b.submit(2, model="a100")
    small_a, small_b = b.submit(1, model="h100"), b.submit(1, model="a100")
    b.wait(35)
    assert b.running == [small_a]
    b.wait(24)
    assert b.running == [small_a]
    b.wait(1)
    assert b.running == [small_a, small_b]
    assert b.engine.next_deadline() is None


@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
def test_a_job_for_more_than_is_left_after_a_restart_is_set_aside(box: NewBox, backfill: str) -> None:
    """A GPU that cannot be opened at the start is left out: who asked for it before must not stop the box."""
    policy = PolicySettings(order="fifo", backfill=backfill)
    before = box("4", policy=policy)
    before.do(ev.Pause("x"))
    batch: dict[str, Any] = {"kind": Kind.BATCH, "batch": BatchSpec(), "command": ("x",)}
    large, named, small = (
        before.submit(3, **batch),
        before.submit(1, gpu_ids=("a3",), **batch),
        before.submit(1, **batch),
    )
    after = box("2", policy=policy, set_aside_after=30)
    after.engine.restore([job_of(record_of(before.job(each))) for each in (large, named, small)], {}, after.now)
    after.happen(ev.Tick())
    assert "that would do are here now" in after.why(large).message
    after.wait(30.0)
    assert after.running == [small]
    assert after.why(large).message.startswith("needs 3 GPUs, but only 2 that would do are here now")
    assert after.why(named).message.startswith("needs 1 GPU, but none that would do is here now")


@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
def test_who_is_set_aside_keeps_nobody_from_being_preempted_for(box: NewBox, backfill: str) -> None:
    policy = PolicySettings(order="priority", backfill=backfill, preemption=True, preempt_after=0.0, aging=0.0)
    b = box("4", policy=policy)
    b.drain("a3")
    b.submit(3, time_limit=1e5, preemptible=True, priority=-1)
    large = b.submit(4, time_limit=100.0)
    b.wait(100)
    urgent = b.submit(2, time_limit=1000.0)
    b.wait(100)
    assert b.running == [urgent]
    why = "needs 4 GPUs, but only 3 of 4 are in service; GPU 3: drained: fan; set aside"
    assert b.why(large).message.startswith(why)
    assert b.claim(do.Notify)


@pytest.mark.parametrize("candidates", ["queue", "sjbf"])
def test_one_behind_others_is_set_aside_whoever_goes_first(box: NewBox, candidates: str) -> None:
    policy = PolicySettings(
        order="priority", backfill="easy", candidates=candidates, preemption=True, preempt_after=0.0, aging=0.0
    )
    b = box("2xH100", "4xA100", policy=policy)
    b.drain("b3")
    for spec in ({"gpus": 1, "model": "h100"}, {"gpus": 1, "model": "h100"}):
        b.submit(**spec)
    b.submit(3, model="a100", preemptible=True, priority=-1)
    b.submit(1, model="h100")
    large = b.submit(5, exclude=("a0",))
    b.wait(100)
    urgent = b.submit(2, model="a100")
    assert set(b.engine.claims) == {urgent} and "set aside" in b.why(large).message
    assert b.claim(do.Notify)


def test_after_another_policy_it_is_still_a_minute(box: NewBox) -> None:
    """Bookings have times at which to look again, too, and those must not be waited for."""
    b = box("4", policy=PolicySettings("fifo", "conservative"))
    b.submit(2, time_limit=3600.0)
    b.submit(4, time_limit=100.0)
    b.happen(ev.SetPolicy(PolicySettings("fifo", "easy")))
    b.drain("a3")
    long = b.submit(1)
    b.wait(60)
    assert long in b.running


@pytest.mark.parametrize("candidates", ["queue", "sjbf"])
def test_who_is_set_aside_has_no_reservation(box: NewBox, candidates: str) -> None:
    b = box("3xH100", "2xA100", policy=PolicySettings("fifo", "easy", candidates=candidates, depth=2))
    b.submit(2, model="h100", user="bob")
    b.drain("a2")
    b.submit(2, model="h100")
    b.submit(5, user="eve")
    other = b.submit(1, model="a100", user="dan")
    assert other not in b.running
    b.wait(60)
    assert other in b.running
    late = b.submit(1, model="a100", user="carol")
    assert late in b.running
