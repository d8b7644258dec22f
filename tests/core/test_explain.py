"""Why a job waits, in sentences."""

from __future__ import annotations

from collections.abc import Callable

from core.support import Box
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.explain import Blocker, Code, device_text, explain, lines
from gpusched.scheduler.core.model import Condition
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.pool import DeviceState

NewBox = Callable[..., Box]


def test_a_job_that_does_not_wait_has_no_reason(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1)
    assert explain(b.engine, b.job(job)) is None
    b.release(job)
    assert explain(b.engine, b.job(job)) is None


def test_resources(box: NewBox) -> None:
    b = box("4")
    b.submit(1, user="bob", name="train", time_limit=3600)
    job = b.submit(4)
    reason = b.why(job)
    assert (reason.code, reason.needed, reason.free) == (Code.RESOURCES, 4, 3)
    assert reason.message == "needs 4 GPUs, 3 free; GPU 0 held by bob (train)"
    assert reason.blockers == (
        Blocker("a0", 0, "a", DeviceState.ALLOCATED, 1, "bob", "train", b.now + 3600),  # type: ignore[arg-type]
    )


def test_at_most_three_holders_are_named(box: NewBox) -> None:
    b = box("8")
    b.submit(2, user="ann")
    for user in ("bob", "cy", "dee", "eve"):
        b.submit(1, user=user)
    job = b.submit(8)
    assert b.why(job).message == (
        "needs 8 GPUs, 2 free; GPU 0,1 held by ann; GPU 2 held by bob; GPU 3 held by cy; and 2 more jobs"
    )


def test_with_several_nodes_the_gpus_are_named_with_theirs(box: NewBox) -> None:
    b = box("1", "1")
    b.submit(2, user="bob")
    assert b.why(b.submit(1)).message == "needs 1 GPU, 0 free; GPU a:0,b:0 held by bob"


def test_a_long_list_of_blockers_is_cut(box: NewBox) -> None:
    b = box("40")
    b.submit(40)
    assert len(b.why(b.submit(1)).blockers) == 16


def test_a_device_that_is_being_checked_is_in_the_way_too(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1)
    waiting = b.submit(1)
    b.do(ev.Leave(job, 1))
    b.do(ev.Pass())
    reason = b.why(waiting)
    assert reason.message == "needs 1 GPU, 0 free"
    assert [(one.index, one.state, one.job) for one in reason.blockers] == [(0, DeviceState.CHECKING, None)]
    b.settle()


def test_priority(box: NewBox) -> None:
    b = box("2")
    b.submit(1)
    big = b.submit(2, user="bob", name="sweep")
    small = b.submit(1)
    same = b.submit(2)
    reason = b.why(small)
    assert (reason.code, reason.ahead, reason.needed, reason.free) == (Code.PRIORITY, big, 1, 1)
    assert reason.message == f"waits behind job {big} (bob, sweep), which needs 2 GPUs"
    assert b.why(same).ahead == big, "a job of the same shape waits behind it, too"


def test_paused(box: NewBox) -> None:
    b = box("1")
    b.happen(ev.Pause(""))
    job = b.submit(1)
    assert (b.why(job).code, b.why(job).message) == (Code.PAUSED, "scheduling is paused")
    b.happen(ev.Pause("upgrade at noon"))
    assert b.why(job).message == "scheduling is paused: upgrade at noon"


def test_unconfirmed(box: NewBox) -> None:
    b = box("1")
    job = b.submit(1, auto_confirm=False)
    b.wait(5)
    b.claim(do.Withdrawn)
    assert b.why(job).code is Code.UNCONFIRMED
    assert b.why(job).message == "it was offered GPUs and did not answer; passed over until it does"


def test_starting_and_ready(box: NewBox) -> None:
    b = box("1")
    holder = b.submit(1)
    job = b.ask(1)
    assert (b.why(job).code, b.why(job).message) == (Code.STARTING, "just accepted")
    b.settle()
    b.do(ev.Leave(holder, 1))
    b.do(ev.Observe((ev.Seen("a0", Condition.CLEAN),)))
    assert (b.why(job).code, b.why(job).message) == (Code.READY, "about to start")
    b.settle()


def test_a_reason_that_names_a_job_which_has_gone_since(box: NewBox) -> None:
    """Between an event and the pass, the last pass's finding may name a job that is no longer remembered."""
    b = box("2", keep_ended=0)
    b.submit(1)
    big, small = b.submit(2), b.submit(1)
    assert b.why(small).ahead == big
    b.do(ev.Cancel(big, "x"))
    assert b.why(small).code is Code.STARTING
    b.settle()


def test_nobody_is_told_to_wait_behind_a_job_of_lower_rank(box: NewBox) -> None:
    b = box("2")
    b.submit(1)
    big, small = b.submit(2), b.submit(1)
    urgent = b.ask(1, priority=5)
    assert b.why(small).ahead == big
    assert b.why(urgent).code is Code.STARTING
    b.settle()


def test_nobody_is_told_to_wait_behind_a_job_that_is_held_since(box: NewBox) -> None:
    b = box("2")
    b.submit(1)
    big, small = b.submit(2), b.submit(1)
    b.do(ev.Update(big, held=True))
    assert b.why(small).code is Code.STARTING
    assert b.why(big).code is Code.HELD
    b.settle()
    assert small in b.running


def test_unavailable(box: NewBox) -> None:
    b = box("6")
    b.drain("a0", reason="fan")
    b.drain("a1", reason="")
    b.see(Condition.FOREIGN, "a2", message="GPU 2: pid 4242 python (eve) holds 11.2 GiB, not under a lease")
    b.see(Condition.UNHEALTHY, "a3")
    job = b.submit(6)
    reason = b.why(job)
    assert (reason.code, reason.needed, reason.free) == (Code.UNAVAILABLE, 6, 2)
    assert reason.message == (
        "needs 6 GPUs, but only 2 of 6 are in service; GPU 0: drained: fan; GPU 1: drained; "
        "GPU 2: pid 4242 python (eve) holds 11.2 GiB, not under a lease"
    )
    assert [one.state for one in reason.blockers] == [
        DeviceState.DRAINED,
        DeviceState.DRAINED,
        DeviceState.FOREIGN,
        DeviceState.UNHEALTHY,
    ]


def test_a_held_device_that_is_drained_must_be_mended_too(box: NewBox) -> None:
    b = box("2")
    holder = b.submit(1, user="bob")
    b.drain("a0", reason="fan")
    b.told(holder)
    job = b.submit(2)
    reason = b.why(job)
    assert reason.code is Code.UNAVAILABLE
    assert [(one.index, one.state, one.user) for one in reason.blockers] == [(0, DeviceState.ALLOCATED, "bob")]
    assert reason.message == "needs 2 GPUs, but only 1 of 2 is in service; GPU 0: drained: fan"


def test_a_job_behind_another_is_told_so_before_anything_else(box: NewBox) -> None:
    b = box("3")
    b.submit(1)
    b.drain("a2")
    ahead = b.submit(2)
    behind = b.submit(3)
    assert (b.why(behind).code, b.why(behind).ahead) == (Code.PRIORITY, ahead)
    b.wait(60)
    assert b.why(behind).code is Code.UNAVAILABLE and "set aside" in b.why(behind).message


def test_the_whole_account(box: NewBox) -> None:
    b = box("3xH100:80", "2xA100:40")
    train = b.submit(1, user="bob", name="train", node="a")
    other = b.submit(1, user="cy", node="a")
    b.see(Condition.DIRTY, "a2", message="GPU 2: pid 7 python (eve) of job 9 still holds 300 MiB")
    job = b.submit(3, node="a", memory=60, model="h100")
    account = lines(b.engine, b.job(job), b.why(job), b.now)
    assert account[0] == f"Job {job} is number 1 of 1 in the queue."
    assert account[1].startswith("Needs 3 GPUs, but only 2 of 3 are in service; GPU 2: pid 7 python (eve)")
    assert account[2] == (
        "It asks for 3 GPUs of model 'h100' with at least 60 GiB each on node a; 3 GPUs could serve, 0 free now."
    )
    assert account[3:] == [
        f"GPU 0 on a: held by job {train} (bob, train).",
        f"GPU 1 on a: held by job {other} (cy).",
        "GPU 2 on a: pid 7 python (eve) of job 9 still holds 300 MiB.",
    ]
    assert all(line.endswith(".") and line[0].isupper() for line in account)


def test_the_account_of_a_simple_job_on_one_gpu(box: NewBox) -> None:
    b = box("1")
    b.submit(1)
    job = b.submit(1)
    assert lines(b.engine, b.job(job), b.why(job), b.now)[2] == "It asks for 1 GPU; 1 GPU could serve, 0 free now."


def test_the_account_tells_a_devices_state_where_nothing_else_is_known(box: NewBox) -> None:
    b = box("2")
    b.see(Condition.UNHEALTHY, "a0")
    job = b.submit(2)
    assert b.why(job).message.endswith("; GPU 0: unhealthy")
    assert lines(b.engine, b.job(job), b.why(job), b.now)[-1] == "GPU 0 on a: unhealthy."


def test_what_is_said_of_a_device(box: NewBox) -> None:
    b = box("2")
    devices = b.engine.pool.devices
    assert device_text(b.engine, devices["a0"]) == ""
    b.see(Condition.FOREIGN, "a0", message="GPU 0: busy")
    assert device_text(b.engine, devices["a0"]) == "GPU 0: busy"
    b.drain("a0", reason="fan")
    assert device_text(b.engine, devices["a0"]) == "drained: fan"
    b.see(Condition.UNHEALTHY, "a0", message="GPU 0: Xid 79")
    assert device_text(b.engine, devices["a0"]) == "GPU 0: Xid 79"


def test_the_first_of_its_kind_waits_behind_nobody(box: NewBox) -> None:
    """Also after a pass that has looked at the next of its kind, which is short enough to go before it."""
    b = box("2xH100", "2xA100", policy=PolicySettings(backfill="easy"))
    b.submit(2, model="h100", user="bob")
    first, second = b.submit(1, model="h100"), b.submit(1, model="h100")
    other = b.submit(1, model="a100", user="eve")
    for _ in range(2):
        assert b.why(first).message == "needs 1 GPU, 0 free; GPU a:0,a:1 held by bob"
        assert b.why(second).ahead == first
        if other in b.running:
            b.release(other)


def test_who_goes_before_for_cores_is_said_to_need_them(box: NewBox) -> None:
    b = box("4", policy=PolicySettings(backfill="none"))
    cores = b.nodes[0].cpus
    b.submit(0, cpus=cores, user="bob")
    b.submit(1, cpus=4, user="eve")
    behind = b.submit(1, cpus=1)
    assert b.why(behind).message == "waits behind job 2 (eve), which needs 1 GPU with 4 cores"


def test_the_head_of_all_waits_behind_nobody_either(box: NewBox) -> None:
    """One that blocks everybody and has others of its kind behind it, which would fit as far as counts tell."""
    b = box("2", "2", policy=PolicySettings(backfill="easy"))
    one, two = b.submit(2, per_node=2, time_limit=9.0), b.submit(2, per_node=2, time_limit=9.0)
    b.release(one)
    b.submit(1, node="a", time_limit=9.0)
    b.release(two)
    b.submit(1, node="b", time_limit=9.0)
    head, second = b.submit(2, per_node=2), b.submit(2, per_node=2)
    for _ in range(2):
        assert b.why(head).message.startswith("needs 2 GPUs (2 on each node), 2 free; ")
        assert b.why(second).ahead == head
        b.cancel(b.submit(3))
