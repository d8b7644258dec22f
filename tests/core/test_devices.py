"""Devices: handed on only when empty, drained, paused, sick."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.support import Box
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.effects import NoticeKind
from gpusched.scheduler.core.explain import Code
from gpusched.scheduler.core.model import Condition
from gpusched.scheduler.core.pool import DeviceState
from gpusched.scheduler.core.states import Outcome

NewBox = Callable[..., Box]

BAD = [Condition.DIRTY, Condition.FOREIGN, Condition.UNHEALTHY]


def state(b: Box, uuid: str) -> DeviceState:
    return b.engine.pool.state(b.engine.pool.devices[uuid])


# -- free means empty ----------------------------------------------------------------------------------------


def test_a_released_device_is_looked_at_before_it_is_handed_on(box: NewBox) -> None:
    b = box("2")
    job, following = b.submit(2), b.submit(1)
    effects = b.do(ev.Release(job, b.epoch(job), Outcome(0)))
    assert do.CheckDevices(("a0", "a1"), job) in effects
    b.do(ev.Pass())
    assert b.running == [] and state(b, "a0") is DeviceState.CHECKING
    b.do(ev.Observe((ev.Seen("a1", Condition.CLEAN),)))
    assert b.engine.pass_wanted
    b.do(ev.Pass())
    assert b.gpus(following) == ("a1",), "those seen to be empty go on without waiting for the others"
    assert b.engine.pool.devices["a0"].previous == job


@pytest.mark.parametrize("condition", BAD)
def test_a_device_that_is_not_well_and_empty_is_not_handed_on(box: NewBox, condition: Condition) -> None:
    b = box("2")
    b.looks["a0"] = (condition, "GPU 0: something is on it")
    job, following = b.submit(1), b.submit(2)
    b.release(job)
    assert b.waiting == [following]
    assert (state(b, "a0"), state(b, "a1")) == (DeviceState[condition.name], DeviceState.FREE)
    assert b.engine.pool.devices["a0"].message == "GPU 0: something is on it"
    b.see(condition, "a0", message="GPU 0: something else is on it")
    assert b.waiting == [following]
    b.see(Condition.CLEAN, "a0")
    assert b.running == [following]


@pytest.mark.parametrize("condition", BAD)
def test_an_idle_device_that_turns_bad_is_not_handed_out(box: NewBox, condition: Condition) -> None:
    b = box("2")
    b.see(condition, "a0")
    assert b.gpus(b.submit(1)) == ("a1",)
    assert b.claim(do.DevicesChanged)[0].devices == ("a0",)


def test_the_same_look_twice_is_no_news(box: NewBox) -> None:
    b = box("2")
    b.see(Condition.FOREIGN, "a0", message="x")
    effects = b.do(ev.Observe((ev.Seen("a0", Condition.FOREIGN, "x"), ev.Seen("a1", Condition.CLEAN))))
    assert effects == [] and not b.engine.pass_wanted


# -- while leased --------------------------------------------------------------------------------------------


def test_a_sick_gpu_is_told_to_its_holder_once_and_not_handed_on(box: NewBox) -> None:
    b = box("1")
    job, following = b.submit(1), b.submit(1)
    b.see(Condition.UNHEALTHY, "a0", message="GPU 0: Xid 79")
    b.see(Condition.UNHEALTHY, "a0", message="GPU 0: Xid 79, again")
    [notice] = b.claim(do.Notify)
    assert (notice.job, notice.kind, notice.message) == (job, NoticeKind.GPU_UNHEALTHY, "GPU 0: Xid 79")
    assert b.gpus(job) == ("a0",) and state(b, "a0") is DeviceState.ALLOCATED
    b.do(ev.Leave(job, 1))
    assert state(b, "a0") is DeviceState.UNHEALTHY, "sick until a look says otherwise, not only being checked"
    b.settle()
    assert state(b, "a0") is DeviceState.UNHEALTHY and b.waiting == [following]
    b.see(Condition.CLEAN, "a0")
    assert b.running == [following]


def test_a_fault_that_passes_is_told_again_when_it_comes_back(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1)
    for _ in range(2):
        b.see(Condition.UNHEALTHY, "a0", message="hot")
        b.see(Condition.CLEAN, "a0")
    assert b.told(job) == [(NoticeKind.GPU_UNHEALTHY, None)] * 2
    assert b.engine.pool.devices["a0"].message == ""


def test_a_stranger_beside_a_lease_is_told_to_the_holder_once(box: NewBox) -> None:
    b = box("2")
    job = b.submit(2)
    for _ in range(3):
        b.see(Condition.FOREIGN, "a1", message="GPU 1: pid 7 python (eve), not under a lease")
    assert b.told(job) == [(NoticeKind.GPU_FOREIGN, None)]
    assert state(b, "a1") is DeviceState.ALLOCATED and b.claim(do.DevicesChanged) == []
    b.looks.clear()
    b.release(job)
    other = b.submit(2)
    b.see(Condition.FOREIGN, "a1", message="GPU 1: pid 7 python (eve), not under a lease")
    assert b.told(other) == [(NoticeKind.GPU_FOREIGN, None)], "the next holder is told as well"
    b.see(Condition.DIRTY, "a0", message="what is that")
    assert b.told(other) == [], "under a lease nothing is left over"


# -- draining ------------------------------------------------------------------------------------------------


def test_a_drained_device_is_not_handed_out_until_it_is_put_back(box: NewBox) -> None:
    b = box("2")
    b.drain("a0", reason="fan")
    assert state(b, "a0") is DeviceState.DRAINED
    job, following = b.submit(1), b.submit(1)
    assert b.gpus(job) == ("a1",) and b.waiting == [following]
    b.drain("a0", reason=None)
    assert b.gpus(following) == ("a0",)


def test_a_running_job_keeps_a_drained_device_until_its_end(box: NewBox) -> None:
    b = box("2")
    job, other = b.submit(1), b.submit(1)
    b.drain("a0", reason="fan")
    [notice] = b.claim(do.Notify)
    assert (notice.job, notice.kind, notice.deadline) == (job, NoticeKind.DRAIN, None)
    assert notice.message == "a GPU of this lease is taken out of service (fan); finish when you can"
    assert state(b, "a0") is DeviceState.ALLOCATED and b.gpus(job) == ("a0",)
    b.release(job)
    assert state(b, "a0") is DeviceState.DRAINED and b.running == [other]
    assert b.free == []
    b.drain("a0", reason=None)
    assert b.free == ["a0"]


def test_a_node_is_drained_as_a_whole_and_told_once_per_job(box: NewBox) -> None:
    b = box("2", "2")
    both, other = b.submit(2, node="a"), b.submit(1, node="b")
    b.drain(node="a", reason="moving house")
    [notice] = b.claim(do.Notify)
    assert notice.job == both and notice.message.startswith("node a is taken out of service (moving house)")
    b.release(both)
    assert b.gpus(b.submit(1)) == ("b1",)
    waiting = b.submit(1, node="a")
    assert b.why(waiting).code is Code.UNAVAILABLE
    b.drain("a1", reason="fan")
    b.drain(node="a", reason=None)
    assert b.gpus(waiting) == ("a0",) and state(b, "a1") is DeviceState.DRAINED, "drained by itself as well"
    assert b.engine.pool.drain_reason(b.engine.pool.devices["a1"]) == "fan" and other in b.running


def test_a_sick_device_is_shown_as_such_though_drained_and_a_dirty_one_as_drained(box: NewBox) -> None:
    b = box("3")
    b.drain("a0", "a1", "a2")
    b.see(Condition.UNHEALTHY, "a0")
    b.see(Condition.DIRTY, "a1")
    b.see(Condition.CHECKING, "a2")
    assert [state(b, uuid) for uuid in ("a0", "a1", "a2")] == [
        DeviceState.UNHEALTHY,
        DeviceState.DRAINED,
        DeviceState.DRAINED,
    ]


# -- pausing -------------------------------------------------------------------------------------------------


def test_nothing_starts_while_paused_and_all_goes_on_after(box: NewBox) -> None:
    b = box("2")
    running = b.submit(1)
    b.happen(ev.Pause("upgrade"))
    waiting = b.submit(1)
    assert b.waiting == [waiting] and b.running == [running]
    b.release(running)
    assert b.waiting == [waiting], "what runs may end"
    b.happen(ev.Pause(None))
    assert b.running == [waiting]


def test_a_minute_that_ends_while_paused_sets_aside_on_resume(box: NewBox) -> None:
    b = box("2")
    b.drain("a1")
    head = b.submit(2)
    small = b.submit(1)
    b.happen(ev.Pause(""))
    b.wait(100)
    assert b.waiting == [head, small]
    b.happen(ev.Pause(None))
    assert b.running == [small]
