"""Preemption and quotas in Hypothesis' hands, judged by a slow and simple account of what may be preempted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import settings
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
from gpusched.scheduler.core.batch import BatchSpec
from gpusched.scheduler.core.effects import NoticeKind
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import DomainError
from gpusched.scheduler.core.explain import explain
from gpusched.scheduler.core.jobs import Job, JobId, Kind
from gpusched.scheduler.core.model import Condition
from gpusched.scheduler.core.policy import PolicySettings, Quota
from gpusched.scheduler.core.pool import Device
from gpusched.scheduler.core.preemption import Claim
from gpusched.scheduler.core.queue import Verdict, limit_of
from gpusched.scheduler.core.states import Outcome, Queued, Running, State

PICK = st.integers(0, 999)
UUIDS = ["a0", "a1", "a2", "b0", "b1"]
KNOBS: dict[str, st.SearchStrategy[Any]] = {
    "order": st.sampled_from(["priority", "fifo", "sjf", "fair_share"]),
    "backfill": st.sampled_from(["none", "easy", "conservative"]),
    "candidates": st.sampled_from(["queue", "sjbf"]),
    "preempt_after": st.sampled_from([0.0, 5.0]),
    "preempt_grace": st.sampled_from([0.0, 3.0, 10.0]),
    "preempt_most": st.sampled_from([0, 1, 2]),
    "user_gpus": st.sampled_from([0, 0, 3]),
    "user_jobs": st.sampled_from([0, 0, 2]),
    "quotas": st.sampled_from([(), (Quota("bob", 4, 2),), (Quota("lab/", 3),)]),
    "borrow": st.booleans(),
}
#: Half of them without quotas, since little is promised where there are some.
NO_QUOTAS: dict[str, st.SearchStrategy[Any]] = {"user_gpus": st.just(0), "user_jobs": st.just(0), "quotas": st.just(())}
POLICY = st.fixed_dictionaries(KNOBS) | st.fixed_dictionaries({**KNOBS, **NO_QUOTAS})
ASK = st.fixed_dictionaries(
    {
        "gpus": st.sampled_from([1, 1, 2, 2, 3, 5]),
        "model": st.sampled_from(["", "", "h100", "a100"]),
        "priority": st.sampled_from([-1, 0, 0, 1, 2]),
        "user": st.sampled_from(["alice", "bob", "carol"]),
        "time_limit": st.sampled_from([None, 3.0, 10.0, 30.0]),
        "max_wait": st.sampled_from([None, None, None, 8.0]),
        "preemptible": st.sampled_from([True, True, False]),
        "batch": st.booleans(),
        "signal": st.sampled_from([None, ("USR1", 2.0)]),
    }
)
#: Work with limits that preempts nobody: with it, promises can be made and kept.
STEADY = st.fixed_dictionaries(
    {
        "gpus": st.sampled_from([1, 1, 2, 3, 4, 5]),
        "model": st.sampled_from(["", "", "h100"]),
        "user": st.sampled_from(["alice", "bob", "carol"]),
        "time_limit": st.sampled_from([2.0, 3.0, 5.0, 10.0]),
    }
)


class PreemptionMachine(RuleBasedStateMachine):
    """Two nodes of different models; most work is preemptible."""

    @initialize(policy=POLICY, batch_size=st.sampled_from([0, 0, 0, 3]))
    def begin(self, policy: dict[str, Any], batch_size: int) -> None:
        shares = (("lab/alice", 1.0), ("lab/bob", 1.0))
        made = PolicySettings(preemption=True, aging=0.0, shares=shares, **policy)
        self.box = Box("3xH100", "2xA100", policy=made, set_aside_after=6.0, end_grace=4.0, max_running=batch_size)
        self.policy = made
        self.stuck: dict[str, Condition] = {}
        #: By which policy something was kept for a job.
        self.claimed_under: dict[JobId, PolicySettings] = {}
        #: The latest start that each waiting job was promised, and whom it was promised to go after.
        self.promises: dict[JobId, tuple[float, set[JobId]]] = {}
        #: Who counted in the last plan, in order, and what else a plan depends on.
        self.planned: list[JobId] = []
        self.ground: object = None

    @property
    def engine(self) -> Engine:
        return self.box.engine

    # -- what happens -----------------------------------------------------------------------------------------

    def act(self, event: ev.Event) -> None:
        """An event, and the pass that follows, each judged."""
        try:
            self.step(event)
        except DomainError:
            pass
        for _ in range(30):
            if self.box._unlooked:
                uuids, self.box._unlooked = dict.fromkeys(self.box._unlooked), []
                self.step(ev.Observe(tuple(ev.Seen(uuid, self.stuck.get(uuid, Condition.CLEAN)) for uuid in uuids)))
            elif self.engine.pass_wanted:
                self.make_pass()
            else:
                self.judge_promises()
                return
        raise AssertionError("pass after pass")

    def step(self, event: ev.Event) -> None:
        heard = len(self.box.effects)
        usage = self.usage()
        claims = dict(self.engine.claims)
        kept = {uuid: claim.job for claim in claims.values() for uuid in claim.devices}
        order = [job.id for job in self.engine.queue]
        self.box.do(event)
        started = [effect.job for effect in self.box.effects[heard:] if isinstance(effect, do.Granted | do.StartRun)]
        for claim in claims.values():
            if claim.job not in self.engine.claims and claim.job not in started:
                self.judge_lost_claim(claim, list(claims.values()), usage)
        self.excuse(order, started)
        if claims != self.engine.claims:
            self.promises = {}
            self.claimed_under |= {number: self.policy for number in self.engine.claims if number not in claims}
        for effect in self.box.effects[heard:]:
            if isinstance(effect, do.Granted | do.StartRun):
                job = self.engine.jobs[effect.job]
                self.judge_start(job, effect.lease.devices, kept, usage)
                usage[job.id] = (job.spec.owner.name, len(effect.lease.devices))
            if isinstance(effect, do.Ended):
                usage.pop(effect.job, None)

    def usage(self) -> dict[JobId, tuple[str, int]]:
        return {job.id: (job.spec.owner.name, job.request.gpus) for job in self.engine.running.values()}

    def judge_start(
        self,
        job: Job,
        devices: tuple[str, ...],
        kept: dict[str, JobId],
        usage: dict[JobId, tuple[str, int]],
    ) -> None:
        """What was kept for another was not snatched, by who made room for him least of all; no quota is exceeded.

        That a claim is not dropped without need, so that its devices are anybody's, is judged where that happens.
        """
        for uuid in devices:
            holder = kept.get(uuid, job.id)
            gone = holder not in self.engine.claims or holder == job.id
            assert holder == job.id or gone, f"{uuid} was kept for job {holder}, and job {job.id} got it"
        user = job.spec.owner.name
        for users, quota in self.applying(user):
            mine = [count for name, count in usage.values() if name in users]
            assert not quota.jobs or len(mine) < quota.jobs, (
                f"job {job.id}: {user} has {len(mine)} jobs of {quota.jobs}"
            )
            if quota.gpus and sum(mine) + len(devices) > quota.gpus:
                assert self.policy.borrow, f"job {job.id}: {user} holds {sum(mine)} of {quota.gpus} GPUs"

    def applying(self, user: str) -> list[tuple[set[str], Quota]]:
        """Quotas that hold for a user, each with those who share it."""
        own = next((quota for quota in self.policy.quotas if quota.name == user), None)
        found = [({user}, own or Quota(user, self.policy.user_gpus, self.policy.user_jobs))]
        if user in ("alice", "bob"):
            found += [({"alice", "bob"}, quota) for quota in self.policy.quotas if quota.name == "lab/"]
        return found

    def judge_lost_claim(self, claim: Claim, claims: list[Claim], usage: dict[JobId, tuple[str, int]]) -> None:
        """What was kept for a job is let go of if it started, does not wait for it any more, or cannot have it."""
        job = self.engine.jobs.get(claim.job)
        if job is None or not isinstance(job.status, Queued) or not job.awake:
            return
        if not all(self.serviceable(self.engine.pool.devices[uuid]) for uuid in claim.devices):
            return
        if self.claimed_under[claim.job] is self.policy:
            raise AssertionError(f"job {job.id} waits, its devices may come, and they are kept for it no more")
        # Quotas may have been lowered since; what is kept for somebody counts as his.
        owners = {each.job: self.engine.jobs[each.job] for each in claims if each.job in self.engine.jobs}
        holding = [*usage.values(), *((each.spec.owner.name, each.request.gpus) for each in owners.values())]
        for users, quota in self.applying(job.spec.owner.name):
            counts = [count for name, count in holding if name in users]
            if (quota.jobs and len(counts) > quota.jobs) or (quota.gpus and sum(counts) > quota.gpus):
                return
        raise AssertionError(f"job {job.id} waits, its devices may come, and they are kept for it no more")

    def make_pass(self) -> None:
        before = {job.id: (job.preempting, job.lease) for job in self.engine.running.values()}
        heard = len(self.box.effects)
        self.step(ev.Pass())
        told = [
            effect.job
            for effect in self.box.effects[heard:]
            if isinstance(effect, do.Notify) and effect.kind is NoticeKind.PREEMPTION
        ]
        for number in told:
            preempting, _ = before.get(number, (None, None))
            assert preempting is None, "told twice"
            self.judge_victim(self.engine.jobs[number])
        for claim in self.engine.claims.values():
            new = set(claim.victims) & set(told)
            if new:
                assert new == set(claim.victims)
                self.judge_claim(self.engine.jobs[claim.job], [self.engine.jobs[each] for each in claim.victims])
        assert set(told) <= {each for claim in self.engine.claims.values() for each in claim.victims}

    def judge_victim(self, job: Job) -> None:
        lease = job.lease
        assert lease is not None and job.spec.preemptible and job.cancelling is None
        assert self.box.now - lease.granted_at >= self.policy.preempt_after, f"job {job.id} was protected"
        assert not self.policy.preempt_most or job.preempted <= self.policy.preempt_most

    def judge_claim(self, head: Job, victims: list[Job]) -> None:
        """All lower, all needed, and enough."""
        assert all(job.priority < head.priority for job in victims)
        gone = [job for job in self.engine.running.values() if job.preempting or job.cancelling]
        others = [job for job in gone if job not in victims]
        assert self.would_place(head, gone), f"job {head.id} does not place: useless"
        for victim in victims:
            assert not self.would_place(head, [*others, *(job for job in victims if job is not victim)]), (
                f"job {head.id} places without {victim.id}'s being preempted"
            )
        limit = head.spec.max_wait
        assert limit is None or head.submitted_at + limit > self.box.now + self.policy.preempt_grace

    # -- the account ------------------------------------------------------------------------------------------

    def serviceable(self, device: Device) -> bool:
        return device.drained is None and device.condition in (Condition.CLEAN, Condition.CHECKING)

    def would_place(self, head: Job, gone: Sequence[Job]) -> bool:
        """Whether a job has enough devices, were these jobs gone; without a look at what is kept for it itself."""
        ids = {job.id for job in gone}
        pool = self.engine.pool
        there = [
            device
            for device in pool.devices.values()
            if self.serviceable(device)
            and device.kept in (None, head.id)
            and (device.holder is None or device.holder in ids)
            and head.request.model in device.info.model.lower()
            and head.request.node in ("", device.info.node)
        ]
        return len(there) >= head.request.gpus

    def check_no_inversion(self) -> None:
        """No head waits without a claim while enough lower jobs could make room for it."""
        engine = self.engine
        if not engine._may_start or engine.slots == 0:
            return
        blocked: set[str] = set()
        for job in engine.queue:
            if not job.awake:
                continue
            aside = engine.queue.class_of(job).verdict in (Verdict.QUOTA, Verdict.SET_ASIDE)
            if aside and job.id not in engine.claims:
                continue
            # A pass in which no slot is left does not say of a class that its owner has all that he may.
            quotas = engine.quotas if job.id not in engine.claims else None
            if quotas is not None and quotas.excess(job.spec.owner.name, job.request.gpus) is not None:
                continue
            eligible = engine.pool.eligible(job.request)
            head = eligible.isdisjoint(blocked)
            blocked |= eligible
            gives_up = (
                job.spec.max_wait is not None
                and job.submitted_at + job.spec.max_wait <= self.box.now + self.policy.preempt_grace
            )
            if not head or job.id in engine.claims or gives_up:
                continue
            ending = [each for each in engine.running.values() if each.preempting or each.cancelling]
            if self.would_place(job, ending):
                continue
            could = [
                each
                for each in engine.running.values()
                if each.spec.preemptible
                and each.priority < job.priority
                and each not in ending
                and each.lease is not None
                and each.lease.granted_at + self.policy.preempt_after <= self.box.now
                and (not self.policy.preempt_most or each.preempted < self.policy.preempt_most)
            ]
            for size in range(1, len(could) + 1):
                for some in combinations(could, size):
                    assert not self.would_place(job, [*ending, *some]), f"job {job.id} could have what {some} hold"

    # -- rules ------------------------------------------------------------------------------------------------

    @rule(asked=st.lists(ASK, min_size=1, max_size=3))
    def submit(self, asked: list[dict[str, Any]]) -> None:
        for ask in asked:
            more = dict(ask)
            if more.pop("batch"):
                more |= {"kind": Kind.BATCH, "batch": BatchSpec(), "command": ("x",)}
            self.act(ev.Submit(make_spec(more.pop("gpus"), **more)))

    @rule(asked=st.lists(ASK, min_size=1, max_size=3), seconds=st.sampled_from([0.5, 3.0, 6.0]))
    def submit_and_wait(self, asked: list[dict[str, Any]], seconds: float) -> None:
        self.submit(asked)
        self.wait(seconds)

    @rule(asked=st.lists(STEADY, min_size=2, max_size=6), seconds=st.sampled_from([0.5, 3.0, 6.0]))
    def steady_work(self, asked: list[dict[str, Any]], seconds: float) -> None:
        for ask in asked:
            self.act(ev.Submit(make_spec(**ask)))
        self.wait(seconds, punctual=True)

    def pick(self, number: int, *, running: bool) -> Job | None:
        jobs = [job for job in self.engine.jobs.values() if isinstance(job.status, Running if running else Queued)]
        return jobs[number % len(jobs)] if jobs else None

    @rule(number=PICK, how=st.sampled_from([Outcome(0), Outcome(1), Outcome(None, 15)]))
    def release(self, number: int, how: Outcome) -> None:
        job = self.pick(number, running=True)
        if job is not None and job.lease is not None:
            told, signal = job.preempting, job.spec.signal
            before_signal = told and signal and self.box.now < told[1] - signal[1] - 3.0
            ending = job.cancelling
            self.act(ev.Release(job.id, job.lease.epoch, how))
            if told and not ending and not before_signal:
                run = job.attempts[-1].state if job.spec.batch else job.state
                assert run is State.PREEMPTED
                assert job.failures == 0 or how.exit_status or how.signal

    @rule(number=PICK)
    def leave(self, number: int) -> None:
        job = self.pick(number, running=True)
        if job is not None:
            self.act(ev.Leave(job.id, job.attachment))

    @rule(number=PICK, running=st.booleans())
    def cancel(self, number: int, running: bool) -> None:
        job = self.pick(number, running=running)
        if job is not None:
            self.act(ev.Cancel(job.id, "cancelled"))

    @rule(
        number=PICK,
        running=st.booleans(),
        priority=st.none() | st.integers(-1, 2),
        held=st.sampled_from([None, None, True, False]),
    )
    def update(self, number: int, running: bool, priority: int | None, held: bool | None) -> None:
        job = self.pick(number, running=running)
        if job is not None:
            self.act(ev.Update(job.id, priority, None, held))

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 5.0, 10.0, 20.0]), punctual=st.sampled_from([True, True, False]))
    def wait(self, seconds: float, punctual: bool = False) -> None:
        """Time goes by; what is due happens, and in punctual times jobs end by their limits."""
        until = self.box.now + seconds
        while True:
            due = self.engine.next_deadline()
            leases = [lease for job in self.engine.running.values() if (lease := job.lease) and lease.expires_at]
            ends = [(lease.expires_at or 0.0, lease.epoch) for lease in leases] if punctual else []
            at = min([each for each, _ in ends] + ([] if due is None else [due]), default=None)
            if at is None or at > until:
                break
            self.box.now = max(self.box.now, at)
            over = [epoch for end, epoch in ends if end <= at]
            if not over:
                self.act(ev.Tick())
            for job in [job for job in self.engine.running.values() if job.lease and job.lease.epoch in over]:
                if job.lease is None:
                    continue  # the end of another has just had it make room, without any grace
                self.act(ev.Release(job.id, job.lease.epoch, Outcome(0)))
        self.box.now = until
        self.act(ev.Tick())

    @rule(
        uuid=st.sampled_from(UUIDS),
        condition=st.sampled_from([Condition.CLEAN, Condition.CLEAN, Condition.DIRTY, Condition.UNHEALTHY]),
    )
    def see(self, uuid: str, condition: Condition) -> None:
        self.stuck[uuid] = condition
        self.act(ev.Observe((ev.Seen(uuid, condition),)))

    @rule()
    def mend(self) -> None:
        """Everything is put right again."""
        self.stuck.clear()
        self.act(ev.Pause(None))
        self.act(ev.Drain(tuple(UUIDS), None))
        self.act(ev.Observe(tuple(ev.Seen(uuid, Condition.CLEAN) for uuid in UUIDS)))

    @rule(node=st.sampled_from("ab"), back=st.sampled_from([True, True, False]))
    def lose_node(self, node: str, back: bool) -> None:
        """All GPUs of a node fail in one look, or it comes back."""
        condition = Condition.CLEAN if back else Condition.UNHEALTHY
        there = [uuid for uuid in UUIDS if uuid[0] == node]
        self.stuck |= dict.fromkeys(there, condition)
        self.act(ev.Observe(tuple(ev.Seen(uuid, condition) for uuid in there)))

    @rule(uuid=st.sampled_from(UUIDS), reason=st.sampled_from([None, None, "fan"]))
    def drain(self, uuid: str, reason: str | None) -> None:
        self.act(ev.Drain((uuid,), reason))

    @rule(reason=st.sampled_from([None, None, None, None, "upgrade"]))
    def pause(self, reason: str | None) -> None:
        self.act(ev.Pause(reason))

    @rule(policy=POLICY)
    def set_policy(self, policy: dict[str, Any]) -> None:
        shares = (("lab/alice", 1.0), ("lab/bob", 1.0))
        self.policy = PolicySettings(preemption=True, aging=0.0, shares=shares, **policy)
        self.act(ev.SetPolicy(self.policy))

    # -- what always holds ------------------------------------------------------------------------------------

    @precondition(lambda self: hasattr(self, "box"))
    @invariant()
    def nothing_is_inverted(self) -> None:
        assert not self.engine.pass_wanted
        self.check_no_inversion()

    # -- promises -----------------------------------------------------------------------------------------------

    def counted(self) -> list[JobId]:
        """Waiting jobs that the plan reckons with, in order."""
        engine = self.engine
        aside = (Verdict.QUOTA, Verdict.SET_ASIDE)
        return [
            job.id
            for job in engine.queue
            if job.awake and job.id not in engine.claims and engine.queue.class_of(job).verdict not in aside
        ]

    def told(self, job: Job) -> float | None:
        """What a waiting job is promised now, as people are told it."""
        engine, conservative = self.engine, self.policy.backfill == "conservative"
        if engine.quotas is not None and engine.quotas.of(job.spec.owner.name):
            return None
        if conservative and (engine.settings.max_running or engine.quotas is not None):
            # With quotas, who is booked may change, and change back, within a pass.
            return None
        return engine.bookings.start_of(job) if engine.bookings is not None else engine.promised.get(job.id)

    def is_behind_one_over_quota(self, number: JobId) -> bool:
        """Whether somebody stands before a job who may start sooner than can be told."""
        for job in self.engine.queue:
            if job.id == number:
                return False
            if job.awake and self.engine.queue.class_of(job).verdict is Verdict.QUOTA:
                return True
        raise AssertionError(f"job {number} does not wait")

    def excuse(self, order: list[JobId], started: list[JobId]) -> None:
        """Promises that somebody could break who came before those who have them and started at once."""
        if started and not self.engine.queue.order.single:
            # Under fair share the pass itself puts the users into another order before it starts anybody.
            self.promises = {}
        for new in [number for number in started if number not in self.planned]:
            # One that lost its run in the same event has come from nowhere.
            place = order.index(new) if new in order else 0
            behind = [number for number in order[place:] if number in self.promises]
            if behind and self.engine.bookings is not None:
                self.promises = {}
            for number in behind:
                self.promises.pop(number, None)

    def judge_promises(self) -> None:
        """No promise gets later, whatever happens, but for a reason that concerns it.

        Reasons: devices were lost, the policy is another, scheduling is paused, devices are kept for somebody or for
        him no more, work outlives its limit, and for a job's own promise somebody before it who was not. A plan of
        bookings is made anew whenever anybody comes before anybody.
        """
        engine, now = self.engine, self.box.now
        pool = engine.pool.devices.values()
        serving = frozenset(device.uuid for device in pool if self.serviceable(device))
        ground = (serving, self.policy, engine.paused, frozenset(engine.claims))
        overdue = any(job.lease and (job.lease.expires_at or now) < now for job in engine.running.values())
        # Who cannot start on what is kept for him, since it must be mended, holds the rest of it beyond the time.
        overdue |= any(claim.until + limit_of(engine.jobs[claim.job]) < now for claim in engine.claims.values())
        counted = self.counted()
        stayed = [number for number in self.planned if number in counted]
        reordered = engine.bookings is not None and stayed != counted[: len(stayed)]
        if ground != self.ground or overdue or reordered or engine.paused is not None:
            self.promises = {}
        promises: dict[JobId, tuple[float, set[JobId]]] = {}
        for place, number in enumerate(counted):
            at = self.told(engine.jobs[number])
            ahead = set(counted[:place])
            before, were = self.promises.get(number, (float("inf"), ahead))
            if at is None:
                if engine.slots == 0 and number in self.promises:
                    # A pass that may start nobody says nothing; what was told before holds all the same, unless
                    # somebody comes before it now, who may start before anything is said again.
                    if ahead <= were:
                        promises[number] = self.promises[number]
                elif before < float("inf") and ahead <= were and not self.is_behind_one_over_quota(number):
                    raise AssertionError(f"job {number} was promised {before}, and now nothing")
                continue
            if ahead <= were:
                assert at <= before + 1e-6, f"job {number} was promised {before}, and now {at}"
            promises[number] = (at, ahead)
        self.promises, self.planned, self.ground = promises, counted, ground

    @precondition(lambda self: hasattr(self, "box"))
    @invariant()
    def no_grace_is_over(self) -> None:
        for job in self.engine.running.values():
            assert job.preempting is None or job.preempting[1] > self.box.now

    @precondition(lambda self: hasattr(self, "box"))
    @invariant()
    def every_wait_has_a_reason(self) -> None:
        for job in self.engine.queue:
            reason = explain(self.engine, job)
            assert reason is not None and reason.message

    def teardown(self) -> None:
        if not hasattr(self, "box"):
            return
        engine, effects = Engine(self.box.nodes, self.box.settings), list[do.Effect]()
        for event, now in self.box.log:
            try:
                effects += engine.handle(event, now)
            except DomainError:
                pass
        assert effects == self.box.effects
        assert snapshot(engine) == snapshot(self.engine)


def test_preemption_machine() -> None:
    run_state_machine_as_test(
        PreemptionMachine, settings=settings(max_examples=40, stateful_step_count=40, deadline=None)
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_preemption_machine_for_longer() -> None:
    run_state_machine_as_test(
        PreemptionMachine, settings=settings(max_examples=600, stateful_step_count=60, deadline=None)
    )
