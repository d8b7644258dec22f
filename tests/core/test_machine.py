"""Anything may happen, in any order: the engine against a plain oracle, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.support import Box, make_spec, snapshot
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import DomainError
from gpusched.scheduler.core.explain import Code, explain, foresee, lines
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.model import Condition, Request
from gpusched.scheduler.core.pool import Device
from gpusched.scheduler.core.queue import Verdict
from gpusched.scheduler.core.states import Outcome, Queued, Running

ASK = st.fixed_dictionaries(
    {
        "gpus": st.sampled_from([1, 1, 1, 2, 2, 3, 4, 5]),
        "model": st.sampled_from(["", "", "h100", "a100"]),
        "node": st.sampled_from(["", "", "", "a", "b"]),
        "memory": st.sampled_from([0, 0, 0, 60]),
        "priority": st.sampled_from([0, 0, 0, 1, -1]),
        "user": st.sampled_from(["alice", "bob"]),
        "time_limit": st.sampled_from([None, None, 2.0, 30.0]),
        "max_wait": st.sampled_from([None, None, 0.0, 4.0, 25.0]),
        "immediate": st.sampled_from([False, False, False, True]),
        "auto_confirm": st.booleans(),
    }
)
PICK = st.integers(0, 999)
UUIDS = ["a0", "a1", "a2", "b0", "b1"]
BAD = [Condition.DIRTY, Condition.FOREIGN, Condition.UNHEALTHY]


class EngineMachine(RuleBasedStateMachine):
    """Two nodes of different models, short times, and a memory of three ended jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.box = Box(
            "3xH100:80",
            "2xA100:40",
            confirm_within=5,
            end_grace=4,
            limit_notice=2,
            set_aside_after=10,
            keep_ended=3,
        )
        self.engine: Engine = self.box.engine
        self.jobs: list[JobId] = []
        self.epochs: list[int] = [0]
        #: Since when too few devices of a shape are in service, as the oracle sees it.
        self.since: dict[Request, float] = {}
        #: What one knows from the effects alone.
        self.known: dict[JobId, str] = {}
        self.leases: dict[JobId, tuple[str, ...]] = {}
        self.unseen: set[str] = set()  # given back, and not seen to be empty since
        #: What looks at released devices will find.
        self.stuck: dict[str, Condition] = {}
        #: Whether looks and passes follow at once, as they do in life, or come when they are drawn.
        self.eager = False
        self._heard = 0
        self._number = 0

    # -- doing -------------------------------------------------------------------------------------------

    def step(self, event: ev.Event) -> DomainError | None:
        """An event; if it is refused, nothing but a late Confirm's job may be different."""
        self.box.do(ev.Tick())
        before = snapshot(self.engine)
        late = (
            isinstance(event, ev.Confirm)
            and isinstance(
                status := self.engine.jobs[event.job].status if event.job in self.engine.jobs else None, Queued
            )
            and not status.awake
        )
        try:
            self.box.do(event)
        except DomainError as error:
            assert error.message.isprintable() and error.reason
            if late:
                assert self.engine.jobs[event.job].awake  # type: ignore[union-attr]
                self.box.do(ev.Tick())
            else:
                assert snapshot(self.engine) == before, "refused, but something has changed"
            return error
        finally:
            self.hear()
        return None

    def hear(self) -> None:
        """Take in what the effects say."""
        for effect in self.box.effects[self._heard :]:
            match effect:
                case do.Accepted(job):
                    assert job not in self.known
                    self.known[job] = "queued"
                case do.Granted(job, lease):
                    assert self.known[job] == "queued"
                    assert lease.epoch > self.epochs[-1], "epochs rise"
                    assert self.unseen.isdisjoint(lease.devices), "free means seen to be empty"
                    taken = {uuid for devices in self.leases.values() for uuid in devices}
                    assert taken.isdisjoint(lease.devices), "no double grant"
                    self.epochs.append(lease.epoch)
                    self.known[job], self.leases[job] = "running", lease.devices
                case do.Withdrawn(job):
                    assert self.known[job] == "running"
                    self.known[job] = "queued"
                    del self.leases[job]
                case do.Ended(job):
                    assert self.known.pop(job) in ("queued", "running")
                    self.leases.pop(job, None)
                case do.CheckDevices(devices):
                    self.unseen.update(devices)
                case do.Notify(job):
                    assert self.known[job] == "running", "a notice is for a holder"
                case _:
                    pass
        self._heard = len(self.box.effects)

    def pick(self, number: int) -> JobId:
        """A job: mostly one that has not ended, sometimes one long forgotten."""
        alive = [job for job in self.jobs if job in self.known]
        candidates = alive if alive and number % 5 else self.jobs
        return candidates[number % len(candidates)]

    # -- rules -------------------------------------------------------------------------------------------

    @initialize(asked=st.lists(ASK, min_size=2, max_size=8), eager=st.sampled_from([True, True, False]))
    def begin(self, asked: list[dict[str, Any]], eager: bool) -> None:
        self.eager = eager
        self.submit(asked)

    @rule(asked=st.lists(ASK, min_size=1, max_size=4))
    def submit(self, asked: list[dict[str, Any]]) -> None:
        """A burst of them."""
        for one in asked:
            self._number += 1
            spec = make_spec(**one, token_hash=b"%d" % self._number, request_id=f"r{self._number}")
            if self.step(ev.Submit(spec)) is None:
                self.jobs.append(JobId(self.engine._next_job - 1))
            else:
                idle = [device for device in self.devices() if fits(device, spec.request)]
                assert len(idle) < spec.request.gpus, "only what can never be had is refused"
        self.follow()

    @rule(asked=ASK)
    def dry_run(self, asked: dict[str, Any]) -> None:
        """It changes nothing, and the real one then does the same."""
        self.box.do(ev.Tick())
        self.hear()
        before = snapshot(self.engine)
        spec = make_spec(**asked)
        try:
            job, devices = self.engine.dry_run(spec, self.box.now)
        except DomainError:
            assert snapshot(self.engine) == before
            return
        assert snapshot(self.engine) == before
        if devices is None:
            assert foresee(self.engine, job).message.isprintable()
        place = self.engine.queue.rank(job.key) + 1
        assert self.step(ev.Submit(spec)) is None
        self.jobs.append(job.id)
        assert self.engine.queue.position(self.engine.jobs[job.id]) == place
        self.make_pass()
        assert self.leases.get(job.id) == devices
        self.follow()

    @precondition(lambda self: self.jobs)
    @rule(number=PICK, secret=st.booleans())
    def attach(self, number: int, secret: bool) -> None:
        job = self.pick(number)
        self._number += 1
        error = self.act(ev.Attach(job, b"%d" % self._number if secret else b""))
        assert (error is None) == (job in self.known)

    @precondition(lambda self: self.jobs)
    @rule(number=PICK, older=st.booleans())
    def leave(self, number: int, older: bool) -> None:
        job = self.pick(number)
        was = self.known.get(job)
        attachment = self.engine.jobs[job].attachment if job in self.engine.jobs else 1
        assert self.act(ev.Leave(job, attachment - older)) is None
        assert self.known.get(job) == (was if older else None), "the newest stream decides, and it alone"

    @precondition(lambda self: self.jobs)
    @rule(number=PICK, stale=PICK, current=st.booleans())
    def confirm(self, number: int, stale: int, current: bool) -> None:
        job = self.pick(number)
        epoch = self.epoch_of(job) if current else self.epochs[stale % len(self.epochs)]
        holds = self.known.get(job) == "running" and epoch == self.epoch_of(job)
        assert (self.act(ev.Confirm(job, epoch)) is None) == holds

    @precondition(lambda self: self.jobs)
    @rule(
        number=PICK,
        stale=PICK,
        current=st.booleans(),
        outcome=st.sampled_from([Outcome(0), Outcome(1), Outcome(), Outcome(None, 9), Outcome(0, 0, "bye")]),
        timed_out=st.sampled_from([False, False, True]),
    )
    def release(self, number: int, stale: int, current: bool, outcome: Outcome, timed_out: bool) -> None:
        job = self.pick(number)
        epoch = self.epoch_of(job) if current else self.epochs[stale % len(self.epochs)]
        holds = self.known.get(job) == "running" and epoch == self.epoch_of(job)
        assert (self.act(ev.Release(job, epoch, outcome, timed_out)) is None) == holds
        assert not holds or job not in self.known

    @precondition(lambda self: self.jobs)
    @rule(number=PICK)
    def cancel(self, number: int) -> None:
        job = self.pick(number)
        was = self.known.get(job)
        assert (self.act(ev.Cancel(job, "cancelled by root")) is None) == (was is not None)
        assert self.known.get(job) == ("running" if was == "running" else None)

    @precondition(lambda self: self.jobs)
    @rule(number=PICK, priority=st.none() | st.integers(-2, 2), name=st.none() | st.sampled_from(["x", "y\n"]))
    def update(self, number: int, priority: int | None, name: str | None) -> None:
        self.act(ev.Update(self.pick(number), priority, name, by="root"))

    @rule(uuid=st.sampled_from(UUIDS), condition=st.sampled_from([Condition.CLEAN, *BAD]))
    def see(self, uuid: str, condition: Condition) -> None:
        self.look({uuid: condition})
        self.follow()

    @rule(uuid=st.sampled_from(UUIDS), condition=st.sampled_from([Condition.CLEAN, *BAD]))
    def linger(self, uuid: str, condition: Condition) -> None:
        """From now on something is found on this device after each release."""
        self.stuck[uuid] = condition

    @precondition(lambda self: self.box._unlooked)
    @rule()
    def look_at_released(self) -> None:
        uuids, self.box._unlooked = dict.fromkeys(self.box._unlooked), []
        self.look({uuid: self.stuck.get(uuid, Condition.CLEAN) for uuid in uuids})

    @rule()
    def mend(self) -> None:
        """Everything is put right again."""
        self.stuck.clear()
        self.act(ev.Pause(None))
        self.act(ev.Drain((), None, "a"))
        self.act(ev.Drain((), None, "b"))
        self.act(ev.Drain(tuple(UUIDS), None))
        self.look(dict.fromkeys(UUIDS, Condition.CLEAN))
        self.follow()

    @rule(uuids=st.lists(st.sampled_from(UUIDS), min_size=1, max_size=2), reason=st.sampled_from([None, None, "fan"]))
    def drain(self, uuids: list[str], reason: str | None) -> None:
        self.act(ev.Drain(tuple(uuids), reason))

    @rule(node=st.sampled_from("ab"), reason=st.sampled_from([None, None, "move"]))
    def drain_node(self, node: str, reason: str | None) -> None:
        self.act(ev.Drain((), reason, node))

    @rule(reason=st.sampled_from([None, None, None, "", "upgrade"]))
    def pause(self, reason: str | None) -> None:
        self.act(ev.Pause(reason))

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 5.0, 10.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.box.now += seconds
        self.act(ev.Tick())

    def act(self, event: ev.Event) -> DomainError | None:
        """An event, and in an eager example all that follows from it."""
        error = self.step(event)
        self.follow()
        return error

    def follow(self) -> None:
        """In an eager example: looks and passes until nothing is wanted."""
        for _ in range(20 if self.eager else 0):
            if self.box._unlooked:
                self.look_at_released()
            elif self.engine.pass_wanted:
                self.make_pass()
            else:
                return
        assert not self.eager, "the engine wants pass after pass"

    @rule()
    def make_pass(self) -> None:
        """Who starts is what a plain walk over the whole queue says."""
        self.step(ev.Tick())
        waiting, heard = self.waiting(), len(self.box.effects)
        before = {device.uuid: is_free(self.engine, device) for device in self.devices()}
        self.step(ev.Pass())
        grants = [effect for effect in self.box.effects[heard:] if isinstance(effect, do.Granted)]
        if self.engine.paused is not None:
            assert not grants
            return
        free = {uuid for uuid, yes in before.items() if yes}
        left = self.walk(waiting, free, self.since, grants)
        assert not left, f"these should not have started: {left}"
        started = [self.engine.jobs[effect.job] for effect in grants if effect.job in self.engine.jobs]
        for job in started:
            for other in self.waiting():
                aside = self.engine.queue.classes[other.request].verdict is Verdict.SET_ASIDE
                assert aside or other.key > job.key or not self.share(job, other), f"{job.id} overtook {other.id}"

    # -- the oracle --------------------------------------------------------------------------------------

    def walk(
        self, waiting: Iterable[Job], free: set[str], since: dict[Request, float], grants: list[do.Granted]
    ) -> list[do.Granted]:
        """Strict order by one plain walk; takes the devices that were really given, having judged them.

        Returns:
            The grants that should not have been.
        """
        grants, blocked = list(grants), set[str]()
        for job in waiting:
            request = job.request
            eligible = {device.uuid for device in self.devices() if fits(device, request)}
            if not eligible & blocked and len(eligible & free) >= request.gpus:
                assert grants and grants[0].job == job.id, f"job {job.id} should have started"
                devices = grants.pop(0).lease.devices
                self.judge(devices, eligible & free, request.gpus)
                free -= set(devices)
                since.pop(request, None)
                continue
            if sum(in_service(self.engine, self.engine.pool.devices[uuid]) for uuid in eligible) < request.gpus:
                if self.box.now - since.setdefault(request, self.box.now) >= 10:
                    continue
            else:
                since.pop(request, None)
            blocked |= eligible
        return grants

    def judge(self, devices: tuple[str, ...], choice: set[str], count: int) -> None:
        """A placement is whole, and on as few nodes as can be; on one node the tightest, lowest indices first."""
        assert len(devices) == len(set(devices)) == count and set(devices) <= choice
        there = {node: sorted(uuid for uuid in choice if uuid[0] == node) for node in "ab"}
        whole = [uuids for uuids in there.values() if len(uuids) >= count]
        used = {uuid[0] for uuid in devices}
        if whole:
            assert len(used) == 1
            mine = there[used.pop()]
            assert len(mine) == min(map(len, whole)) and list(devices) == mine[:count]
        else:
            assert used == {"a", "b"}

    def devices(self) -> Iterable[Device]:
        return self.engine.pool.devices.values()

    def waiting(self) -> list[Job]:
        """Jobs that wait and are awake, in order, without asking the queue."""
        found = [job for job in self.engine.jobs.values() if isinstance(job.status, Queued) and job.status.awake]
        return sorted(found, key=lambda job: (-job.priority, job.submitted_at, job.id))

    def share(self, one: Job, other: Job) -> bool:
        return any(fits(device, one.request) and fits(device, other.request) for device in self.devices())

    def epoch_of(self, job: JobId) -> int:
        lease = self.engine.jobs[job].lease if job in self.engine.jobs else None
        return lease.epoch if lease else 0

    def look(self, found: dict[str, Condition]) -> None:
        said = {uuid: f"GPU: {condition.value}" if condition in BAD else "" for uuid, condition in found.items()}
        self.step(ev.Observe(tuple(ev.Seen(uuid, found[uuid], said[uuid]) for uuid in found)))
        self.unseen -= {uuid for uuid, condition in found.items() if condition is Condition.CLEAN}

    # -- what always holds (besides invariants.check and the indexes, after every event) -----------------

    @invariant()
    def effects_tell_all(self) -> None:
        alive = {job.id: job.state.value for job in self.engine.jobs.values() if not job.state.final}
        assert self.known == alive, "the effects and the engine tell different stories"
        assert self.leases == {job.id: job.lease.devices for job in self.engine.running.values() if job.lease}

    @invariant()
    def no_shape_is_forgotten_or_kept(self) -> None:
        shapes = {job.request for job in self.waiting()}
        for request in list(self.since):
            if request not in shapes:
                del self.since[request]
        found = {
            r: c.unavailable_since for r, c in self.engine.queue.classes.items() if c.unavailable_since is not None
        }
        assert set(self.engine.queue.classes) == shapes and found == self.since

    @invariant()
    def nothing_is_overlooked(self) -> None:
        """If no pass is wanted, a pass would start nothing: no event forgets to ask for one."""
        if not self.engine.pass_wanted and self.engine.paused is None:
            free = {device.uuid for device in self.devices() if is_free(self.engine, device)}
            self.walk(self.waiting(), free, dict(self.since), [])

    @invariant()
    def nothing_is_overdue(self) -> None:
        now = self.box.now
        due = self.engine.next_deadline()
        assert due is None or due > now or self.engine._out == []
        for job in self.engine.jobs.values():
            match job.status:
                case Queued():
                    assert not job.spec.max_wait or job.submitted_at + job.spec.max_wait > now
                    assert job.cancelling is None
                case Running(lease=lease, confirmed=confirmed):
                    assert confirmed or (lease.confirm_by is not None and lease.confirm_by > now)
                    assert lease.expires_at is None or lease.expires_at + 4 > now
                    assert job.cancelling is None or job.cancelling[1] > now

    @invariant()
    def every_wait_has_a_reason(self) -> None:
        for place, job in enumerate(self.engine.queue, 1):
            reason = explain(self.engine, job)
            assert reason is not None and reason.message and reason.message.isprintable()
            assert reason.needed == job.request.gpus
            account = lines(self.engine, job, reason)
            assert account[0] == f"Job {job.id} is number {place} of {len(self.engine.queue)} in the queue."
            if reason.ahead is not None:
                ahead = self.engine.jobs[reason.ahead]
                assert ahead.awake and ahead.key < job.key and self.share(job, ahead)
            if not self.engine.pass_wanted:
                assert reason.code not in (Code.STARTING, Code.READY), "settled, and yet about to start"

    def teardown(self) -> None:
        """The same events give the same effects, to the letter."""
        engine, effects = Engine(self.box.nodes, self.box.settings), list[do.Effect]()
        for event, now in self.box.log:
            try:
                effects += engine.handle(event, now)
            except DomainError:
                pass
        assert effects == self.box.effects
        assert snapshot(engine) == snapshot(self.engine)


def fits(device: Device, request: Request) -> bool:
    info = device.info
    return (
        info.memory_bytes >= request.memory_bytes
        and request.model in info.model.lower()
        and request.node in ("", info.node)
    )


def in_service(engine: Engine, device: Device) -> bool:
    drained = device.drained is not None or engine.pool.nodes[device.info.node].drained is not None
    return device.condition in (Condition.CLEAN, Condition.CHECKING) and not drained


def is_free(engine: Engine, device: Device) -> bool:
    return device.holder is None and device.condition is Condition.CLEAN and in_service(engine, device)


FAST = settings(max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_anything_in_any_order() -> None:
    run_state_machine_as_test(EngineMachine, settings=FAST)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_anything_in_any_order_for_longer() -> None:
    run_state_machine_as_test(EngineMachine, settings=settings(FAST, max_examples=500, stateful_step_count=60))
