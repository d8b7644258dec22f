"""Shares of GPUs, and cores and memory of hosts: who gets what, who waits, what is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.support import GIB, Box, make_spec, snapshot
from gpusched.scheduler.codec import job_of, record_of
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import DomainError, Invalid, NotSatisfiable
from gpusched.scheduler.core.explain import Code, explain, lines
from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.core.model import Condition, Placement, Request
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.pool import DeviceState, Grant, Pool
from gpusched.scheduler.core.states import State

EASY = PolicySettings("fifo", "easy", aging=0.0)
CONSERVATIVE = PolicySettings("fifo", "conservative", aging=0.0)


def share(box: Box, memory: float, gpus: int = 1, **more: Any) -> JobId:
    return box.submit(gpus, memory=memory, shared=True, **more)


# -- shares --------------------------------------------------------------------------------------------------


def test_shares_fill_a_device_before_the_next_and_wait_when_none_has_room() -> None:
    box = Box("2")
    jobs = [share(box, 30) for _ in range(4)]
    assert [box.gpus(job) for job in jobs] == [("a0",), ("a0",), ("a1",), ("a1",)]
    last = share(box, 30)
    assert box.state(last) is State.QUEUED
    box.release(jobs[1])
    assert box.gpus(last) == ("a0",)


def test_a_share_goes_where_it_fits_most_tightly() -> None:
    box = Box("1xA:80", "1xB:40")
    share(box, 30, model="b")
    share(box, 20, model="a")
    assert box.gpus(share(box, 5)) == ("b0",), "8.8 GiB are left there, 57.6 on the other"
    assert box.gpus(share(box, 5)) == ("a0",)


def test_part_of_the_memory_is_kept_back() -> None:
    box = Box("1")
    share(box, 40)
    assert box.state(share(box, 37.7)) is State.QUEUED, "80 GiB less 3 % are 77.6"
    assert box.state(share(Box("1", share_reserve=0.0), 80)) is State.RUNNING
    with pytest.raises(
        NotSatisfiable, match=r"no GPU has room for shares of 79 GiB; the largest has 77\.6 GiB"
    ) as info:
        share(box, 79)
    assert info.value.field == "resources.gpu_memory_bytes"


def test_whole_and_shared_never_meet() -> None:
    box = Box("2")
    part = share(box, 1)
    whole = box.submit(1)
    assert (box.gpus(part), box.gpus(whole)) == (("a0",), ("a1",))
    assert box.state(box.submit(1)) is State.QUEUED
    box2 = Box("1")
    box2.submit(1)
    assert box2.state(share(box2, 1)) is State.QUEUED


@pytest.mark.parametrize("mixed", [False, True])
def test_a_device_is_shared_by_one_user_unless_it_is_allowed(mixed: bool) -> None:
    box = Box("2", share_between_users=mixed)
    share(box, 10, user="alice")
    other = share(box, 10, user="bob")
    assert box.gpus(other) == (("a0",) if mixed else ("a1",))
    third = share(box, 10, user="carol")
    assert box.state(third) is (State.RUNNING if mixed else State.QUEUED)


def test_all_or_none_over_several_devices() -> None:
    box = Box("3")
    first = share(box, 50)
    both = share(box, 40, gpus=3)
    assert box.state(both) is State.QUEUED and box.engine.pool.divided == {"a0"}
    box.release(first)
    assert box.gpus(both) == ("a0", "a1", "a2")
    assert box.gpus(share(box, 20, gpus=2)) == ("a0", "a1")
    assert box.gpus(share(box, 20)) == ("a2",), "the others have 17.6 GiB left"


def test_shares_on_as_few_nodes_as_can_be() -> None:
    box = Box("2", "2")
    share(box, 30, node="b")
    assert box.gpus(share(box, 30, gpus=2)) == ("b0", "b1")
    assert box.gpus(share(box, 60, gpus=2)) == ("a0", "a1")
    # 17.6 GiB of both devices of b are left, less 30: 17.6, 47.6.
    assert box.gpus(share(box, 10, gpus=3)) == ("a0", "a1", "b0")
    box = Box("2", "2")
    assert box.gpus(share(box, 1, gpus=2, placement=Placement.SPREAD)) == ("a0", "b0")
    assert box.gpus(share(box, 1, gpus=4, per_node=2)) == ("a0", "a1", "b0", "b1")


def test_a_share_that_ends_leaves_the_others_where_they_are() -> None:
    box = Box("1")
    first, second = share(box, 20), share(box, 20)
    box.looks = {"a0": (Condition.DIRTY, "GPU 0: pid 7 of job 1")}
    box.release(first)
    device = box.engine.pool.devices["a0"]
    assert box.state(second) is State.RUNNING and box.engine.pool.state(device) is DeviceState.ALLOCATED
    third = share(box, 20)
    assert box.state(third) is State.QUEUED, "what the first left is still there"
    box.see(Condition.CLEAN, "a0")
    assert box.gpus(third) == ("a0",)
    box.release(second)
    box.release(third)
    assert box.engine.pool.state(device) is DeviceState.FREE and box.engine.pool.free_total == 1


def test_one_who_takes_more_is_told_once_until_it_takes_less() -> None:
    box = Box("1")
    job = share(box, 10)
    other = share(box, 10)

    def seen(size: float) -> list[do.Effect]:
        taken = ((int(job), int(size * GIB)), (int(other), 10 * GIB))
        effects = box.happen(ev.Observe((ev.Seen("a0", Condition.CLEAN, "", taken),)))
        return [effect for effect in effects if isinstance(effect, do.Notify)]

    assert seen(10) == []
    (told,) = seen(12)
    assert isinstance(told, do.Notify) and told.job == job and told.kind is do.NoticeKind.GPU_MEMORY
    assert "take 12.0 GiB, and it asked for 10.0 GiB" in told.message
    assert box.engine.pool.devices["a0"].over == {job: 12 * GIB}
    assert seen(13) == []
    assert seen(9) == [] and box.engine.pool.devices["a0"].over == {}
    assert len(seen(12)) == 1
    box.release(job)
    assert box.engine.pool.devices["a0"].over == {}


def test_every_holder_of_a_shared_device_is_told_of_strangers_and_nobody_new_comes() -> None:
    box = Box("1")
    jobs = [share(box, 10), share(box, 10)]
    box.effects.clear()
    box.see(Condition.FOREIGN, "a0", message="GPU 0: pid 9")
    told = [effect.job for effect in box.effects if isinstance(effect, do.Notify)]
    assert told == jobs
    late = share(box, 10)
    assert box.state(late) is State.QUEUED
    box.see(Condition.CLEAN, "a0")
    assert box.state(late) is State.RUNNING


def test_explain_says_what_is_missing() -> None:
    box = Box("1")
    share(box, 40)
    share(box, 31.6)
    late = share(box, 10)
    reason = box.why(late)
    assert reason.code is Code.RESOURCES
    assert reason.message == (
        "needs 10 GiB of a GPU, at most 6 GiB left; GPU 0 shared by alice (job 1, 40 GiB), alice (job 2, 31.6 GiB)"
    )
    assert [blocker.job for blocker in reason.blockers] == [1, 2]
    account = lines(box.engine, box.job(late), reason, box.now)
    assert "It asks for 1 GPU shared, 10 GiB of each; 1 GPU could serve, 0 have room for it now." in account
    assert "another user's" in box.why(share(box, 1, user="bob")).message or box.why(late).code is Code.RESOURCES


# -- hosts ---------------------------------------------------------------------------------------------------


def test_cores_and_memory_of_a_host_are_not_given_twice() -> None:
    box = Box("4")  # 32 cores, 256 GiB
    first = box.submit(1, cpus=20, mem=100)
    second = box.submit(1, cpus=20)
    third = box.submit(1, mem=200)
    assert [box.state(job) for job in (first, second, third)] == [State.RUNNING, State.QUEUED, State.QUEUED]
    assert box.why(second).message == "needs 20 cores; node a has 12 of 32 cores left"
    assert box.state(box.submit(1)) is State.QUEUED, "strict order: GPUs that those before it could use"
    box.release(first)
    assert [box.state(job) for job in (second, third)] == [State.RUNNING] * 2
    assert box.engine.pool.nodes["a"].left == (12, 56 * GIB)


def test_what_is_asked_of_hosts_is_had_on_each_node() -> None:
    box = Box("2", "2")
    job = box.submit(4, per_node=2, cpus=10)
    assert isinstance(box.gpus(job), Grant) and box.gpus(job) == ("a0", "a1", "b0", "b1")
    assert [node.left.cpus for node in box.engine.pool.nodes.values()] == [6, 6]
    box.release(job)
    assert [node.left.cpus for node in box.engine.pool.nodes.values()] == [16, 16]


def test_a_host_alone_may_be_asked_for() -> None:
    box = Box("1", "1")
    box.submit(0, cpus=6, node="b")
    job = box.submit(0, cpus=2)
    assert box.state(job) is State.RUNNING and box.gpus(job) == ()
    assert box.engine.pool.nodes["b"].left.cpus == 0, "where the least is left"
    assert box.state(box.submit(2)) is State.RUNNING, "GPUs are another thing"
    late = box.submit(0, cpus=8, node="b")
    assert box.why(late).message == "needs 8 cores; node b has 0 of 8 cores left"
    assert box.state(box.submit(0, cpus=8, node="a")) is State.RUNNING, "the one before it cannot use that"
    box.release(job)
    assert box.state(late) is State.QUEUED


def test_a_drained_node_gives_nothing_of_its_host() -> None:
    box = Box("1")
    box.drain(node="a")
    job = box.submit(0, cpus=1)
    assert "is drained" in box.why(job).message
    box.drain(node="a", reason=None)
    assert box.state(job) is State.RUNNING


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"gpus": 0}, "resources.gpus"),
        ({"gpus": -1, "cpus": 2}, "resources.gpus"),
        ({"shared": True}, "resources.gpu_memory_bytes"),
        ({"cpus": -1}, "resources.cpus"),
        ({"mem": -1}, "resources.memory_bytes"),
        ({"gpus": 0, "cpus": 1, "memory": 10}, "resources.gpu_memory_bytes"),
        ({"gpus": 0, "cpus": 1, "shared": True, "memory": 10}, "resources.shared"),
        ({"gpus": 0, "cpus": 1, "per_node": 1}, "resources.gpus_per_node"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as info:
        Box("2").submit(**asked)
    assert info.value.field == field


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"cpus": 17}, "resources.cpus", "asks for 17 cores; the largest node has 16"),
        ({"mem": 129, "node": "a"}, "resources.memory_bytes", "asks for 129 GiB; node a has 128 GiB"),
        ({"gpus": 3, "shared": True, "memory": 1}, "resources.gpus", "there are only 2 that will do"),
    ],
)
def test_what_can_never_be_is_refused(asked: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(NotSatisfiable, match=said) as info:
        Box("2").submit(**asked)
    assert info.value.field == field


# -- the plan ------------------------------------------------------------------------------------------------


def test_backfill_does_not_break_up_the_device_that_the_head_waits_for() -> None:
    box = Box("2", policy=EASY)
    box.submit(1, time_limit=100.0)
    head = box.submit(2, time_limit=100.0)
    assert box.engine.promised[head] == box.now + 100
    assert box.state(share(box, 10, time_limit=200.0)) is State.QUEUED, "it would still be there then"
    assert box.gpus(share(box, 10, time_limit=50.0)) == ("a1",)


def test_backfill_counts_cores_of_the_head() -> None:
    box = Box("4", policy=EASY)
    first = box.submit(1, cpus=20, time_limit=100.0)
    head = box.submit(1, cpus=30, time_limit=100.0)
    assert box.engine.promised[head] == box.now + 100
    assert box.state(box.submit(0, cpus=4, time_limit=300.0)) is State.QUEUED, "then 28 would be left"
    assert box.state(box.submit(0, cpus=2, time_limit=300.0)) is State.RUNNING
    assert box.state(box.submit(1, time_limit=300.0)) is State.RUNNING, "it wants no cores"
    box.release(first)
    assert box.state(head) is State.RUNNING


def test_a_shared_head_has_a_promise() -> None:
    box = Box("1", policy=EASY)
    share(box, 20, time_limit=50.0)
    share(box, 30, time_limit=80.0)
    head = share(box, 40, time_limit=10.0)
    assert box.engine.promised[head] == box.now + 50
    assert box.state(share(box, 10, time_limit=500.0)) is State.QUEUED, "27.6 GiB are left now, and 7.6 then"
    assert box.state(share(box, 7, time_limit=500.0)) is State.RUNNING
    assert box.state(share(box, 20, time_limit=40.0)) is State.RUNNING, "gone by then"


def test_conservative_plans_book_shares_and_cores() -> None:
    box = Box("1", policy=CONSERVATIVE)
    share(box, 40, time_limit=50.0)
    second = share(box, 50, time_limit=20.0)
    third = share(box, 50, time_limit=20.0)
    whole = box.submit(1, time_limit=10.0)
    bookings = box.engine.bookings
    assert bookings is not None
    starts = [bookings.start_of(box.job(job)) for job in (second, third, whole)]
    assert starts == [box.now + 50, box.now + 70, box.now + 90]
    assert box.state(share(box, 20, time_limit=50.0)) is State.RUNNING
    assert box.state(box.submit(0, cpus=8, time_limit=1000.0)) is State.RUNNING
    assert bookings.start_of(box.job(box.submit(0, cpus=1, time_limit=5.0))) == box.now + 1000


def test_forecasts_know_of_shares() -> None:
    box = Box("1")
    share(box, 40, time_limit=50.0, estimate=30.0)
    late = share(box, 50, time_limit=20.0)
    expected = box.engine.outlook.of(box.job(late), box.now)
    assert (expected.promise, expected.forecast) == (box.now + 50, box.now + 30)


def test_a_dry_run_of_a_share_changes_nothing() -> None:
    box = Box("1")
    share(box, 40)
    before = snapshot(box.engine)
    for size, got in ((30, ("a0",)), (60, None)):
        _, devices = box.engine.dry_run(make_spec(1, memory=size, shared=True, cpus=2), box.now)
        assert devices == got
        assert snapshot(box.engine) == before
    assert box.engine.dry_run(make_spec(0, cpus=8), box.now)[1] == ()


# -- restarts ------------------------------------------------------------------------------------------------


def restarted(box: Box, **changes: Any) -> Engine:
    """Another engine that takes over from the first one's records."""
    records = [record_of(job) for job in box.engine.jobs.values() if not job.state.final]
    engine = Engine(box.nodes, replace(box.settings, **changes), first_job=100, first_epoch=1000)
    engine.restore([job_of(record) for record in records], {}, box.now)
    return engine


def test_shares_and_hosts_outlive_a_restart() -> None:
    box = Box("2")
    jobs = [share(box, 30, cpus=2), share(box, 30), box.submit(0, cpus=3, mem=1), share(box, 60)]
    waiting = share(box, 60)
    engine = restarted(box)
    from gpusched.scheduler.core import invariants

    invariants.check(engine)
    assert engine.pool.devices["a0"].shares.keys() == set(jobs[:2])
    assert engine.pool.nodes["a"].left == (11, 127 * GIB)
    assert engine.jobs[waiting].request == box.job(waiting).request
    oversold = restarted(box, share_reserve=0.5)
    invariants.check(oversold)
    assert oversold.pool.oversold == {"a0", "a1"}


def test_a_job_that_an_older_version_kept_asks_for_nothing_new() -> None:
    box = Box("1")
    record = record_of(box.job(box.submit(1)))
    assert "shared" not in record.data and "host" not in record.data
    data = json.loads(record.data)
    assert len(data["status"]["lease"]) == 5
    assert job_of(record).request == Request(1)


# -- in Hypothesis' hands ------------------------------------------------------------------------------------

ASK = st.fixed_dictionaries(
    {
        "gpus": st.sampled_from([0, 1, 1, 1, 2, 3]),
        "memory": st.sampled_from([0, 5, 20, 35, 60]),
        "shared": st.booleans(),
        "cpus": st.sampled_from([0, 0, 0, 2, 9, 16]),
        "mem": st.sampled_from([0, 0, 30, 100]),
        "node": st.sampled_from(["", "", "", "a", "b"]),
        "user": st.sampled_from(["alice", "bob"]),
        "time_limit": st.sampled_from([None, 5.0, 30.0, 100.0]),
        "placement": st.sampled_from(list(Placement)),
    }
)


class Sharing(RuleBasedStateMachine):
    """Whole GPUs, shares and hosts, all at once; what must hold is in `invariants`, which each event is followed by."""

    jobs: list[JobId]

    @initialize(
        policy=st.sampled_from(["none", "easy", "easy", "conservative"]),
        depth=st.sampled_from([1, 1, 3]),
        mixed=st.booleans(),
    )
    def begin(self, policy: str, depth: int, mixed: bool) -> None:
        chosen = PolicySettings("fifo", policy, depth=depth, aging=0.0)
        self.box = Box("2xH100:80", "2xA100:40", policy=chosen, share_between_users=mixed)
        self.jobs = []

    @rule(asked=ASK)
    def submit(self, asked: dict[str, Any]) -> None:
        before = snapshot(self.box.engine)
        try:
            self.box.engine.dry_run(make_spec(**asked), self.box.now)
            assert snapshot(self.box.engine) == before
            self.jobs.append(self.box.submit(**asked))
        except DomainError:
            assert snapshot(self.box.engine) == before

    @precondition(lambda self: self.jobs)
    @rule(number=st.integers(0, 99))
    def end(self, number: int) -> None:
        job = self.jobs.pop(number % len(self.jobs))
        if job in self.box.engine.running:
            self.box.release(job)
        elif not self.box.job(job).state.final:
            self.box.cancel(job)

    @rule(uuid=st.sampled_from(["a0", "a1", "b0", "b1"]), condition=st.sampled_from(list(Condition)))
    def see(self, uuid: str, condition: Condition) -> None:
        if condition is not Condition.CHECKING:
            self.box.see(condition, uuid)

    @rule(node=st.sampled_from("ab"), reason=st.sampled_from([None, None, "move"]))
    def drain(self, node: str, reason: str | None) -> None:
        self.box.drain(node=node, reason=reason)

    @rule(seconds=st.sampled_from([1.0, 10.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.box.wait(seconds)

    @rule()
    def restart(self) -> None:
        from gpusched.scheduler.core import invariants

        engine = restarted(self.box)
        invariants.check(engine)
        pool, other = self.box.engine.pool, engine.pool
        assert {u: d.shares for u, d in pool.devices.items()} == {u: d.shares for u, d in other.devices.items()}
        assert {n: d.taken for n, d in pool.nodes.items()} == {n: d.taken for n, d in other.nodes.items()}

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        """Whoever has nobody before him who could use what he could use has started if he fits."""
        engine = self.box.engine
        ahead: set[str] = set()
        for job in engine.queue:
            eligible = engine.pool.eligible(job.request)
            if eligible.isdisjoint(ahead):
                assert engine.pool.place(job.request) is None, f"job {job.id} fits and waits"
            ahead |= eligible
            reason = explain(engine, job)
            assert reason is not None and reason.message.isprintable()
            assert all(line.isprintable() for line in lines(engine, job, reason, self.box.now))
            engine.outlook.tried(job, self.box.now)

    @invariant()
    def what_is_left_adds_up(self) -> None:
        pool: Pool = self.box.engine.pool
        for device in pool.devices.values():
            assert pool.left_of(device) + sum(s.memory for s in device.shares.values()) == pool.rules.capacity(
                device.info
            )


TestSharing = Sharing.TestCase
TestSharing.settings = settings(
    deadline=None, max_examples=60, stateful_step_count=30, suppress_health_check=list(HealthCheck)
)
