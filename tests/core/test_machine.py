"""Anything may happen, in any order: the engine against a plain oracle, step by step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from core.machine import PICK, REQUEST, UUIDS, EngineMachine
from core.support import Box
from core.test_batch import batch_spec
from gpusched.scheduler.codec import job_of, record_of
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core import invariants
from gpusched.scheduler.core.batch import After, Dependency, RetryPolicy
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.core.model import Condition
from gpusched.scheduler.core.states import EPOCH_BITS, Gate, Queued, Running, State

BATCH = st.fixed_dictionaries(
    {
        **REQUEST,
        "held": st.sampled_from([False, False, False, True]),
        "requeue": st.booleans(),
        "grace": st.sampled_from([0.0, 3.0]),
        "retry": st.sampled_from([RetryPolicy(), RetryPolicy(2, 0.0), RetryPolicy(3, 4.0, frozenset({1}))]),
    }
)
AFTER = st.sampled_from(After)


class BatchMachine(EngineMachine):
    """With batch jobs, a store that fails, and a server that is killed."""

    def __init__(self) -> None:
        super().__init__()
        self.starts = 0

    @rule(
        asked=BATCH,
        follows=st.lists(st.tuples(PICK, AFTER), max_size=2),
        begins_in=st.sampled_from([None, None, None, 3.0]),
    )
    def submit_batch(self, asked: dict[str, Any], follows: list[tuple[int, After]], begins_in: float | None) -> None:
        self._number += 1
        others = {self.pick(number): after for number, after in follows if self.jobs}
        spec = batch_spec(
            **asked,
            dependencies=tuple(Dependency(job, after) for job, after in others.items()),
            begin_at=None if begins_in is None else self.box.now + begins_in,
            token_hash=b"%d" % self._number,
            request_id=f"r{self._number}",
        )
        if self.act(ev.Submit(spec)) is None:
            self.enter(JobId(self.engine._next_job - 1))

    @precondition(lambda self: self.jobs)
    @rule(number=PICK)
    def supervise(self, number: int) -> None:
        """A supervisor comes for its lease."""
        job = self.pick(number)
        if self.known.get(job) == "running":
            self.act(ev.Attach(job))
            assert self.act(ev.Confirm(job, self.epoch_of(job))) is None

    @precondition(lambda self: self.jobs)
    @rule(number=PICK, stale=st.booleans())
    def not_started(self, number: int, stale: bool) -> None:
        job = self.pick(number)
        self.tick()
        was = self.known.get(job)
        status = self.engine.jobs[job].status if job in self.engine.jobs else None
        started = isinstance(status, Running) and status.confirmed
        assert self.step(ev.NotStarted(job, self.epoch_of(job) - stale, "no agent")) is None
        if stale or started:
            assert self.known.get(job) == was
        else:
            assert self.known.get(job) != "running"
        self.follow()

    @precondition(lambda self: self.jobs)
    @rule(number=PICK)
    def requeue(self, number: int) -> None:
        job = self.pick(number)
        batch = job in self.engine.jobs and self.engine.jobs[job].spec.batch is not None
        error = self.act(ev.Requeue(job, "queued again by root"))
        assert (error is None) == (batch and self.known.get(job) == "running")

    @precondition(lambda self: self.jobs)
    @rule(number=PICK, state=st.sampled_from(State))
    def force(self, number: int, state: State) -> None:
        job = self.pick(number)
        if self.step(ev.Force(job, state, "moved by root")) is None:
            assert self.known.get(job) == ("queued" if state is State.QUEUED else None)
            self.forced.add(job)
        self.follow()

    @rule(reason=st.sampled_from([None, None, "the disk is full"]))
    def halt(self, reason: str | None) -> None:
        self.act(ev.Halt(reason))

    @rule()
    def mend_all(self) -> None:
        self.act(ev.Halt(None))
        self.mend()

    @rule(away=st.sampled_from([0.0, 1.0, 5.0]), back=st.booleans())
    def restart(self, away: float, back: bool) -> None:
        """kill -9 and start again, from what was saved; everybody may come back at once."""
        self.tick()
        self.replay()
        old, alive = self.box, sorted(self.known)
        records = [self.saved[job] for job in alive]
        leases, held = dict(self.leases), dict(self.saved_settings)
        self.starts += 1
        first_job, starts, now = self.engine._next_job, self.starts, old.now + away

        def make() -> Engine:
            engine = Engine(old.nodes, old.settings, first_job=first_job, first_epoch=(starts << EPOCH_BITS) + 1)
            engine.restore([job_of(record) for record in records], held, now)
            return engine

        self.box = Box(now=now)
        self.box.nodes, self.box.settings, self.box.engine = old.nodes, old.settings, make()
        self.origin = make
        self.restarted_at, self._heard = now, 0
        self.since, self.unseen = {}, set()
        # What keeps a waiting job back is found out anew, which needs no saving.
        self.saved = {job: record_of(self.engine.jobs[job]) for job in alive}
        invariants.check(self.engine)
        assert {job.id: job.lease.devices for job in self.engine.running.values() if job.lease} == leases
        # The server reads all GPUs before it lets anybody in.
        looks = dict.fromkeys(UUIDS, Condition.CLEAN) | self.stuck
        self.box.do(ev.Observe(tuple(ev.Seen(uuid, looks[uuid]) for uuid in UUIDS)))
        self.hear()
        self.save()
        for job in alive if back else ():
            if job in self.known:
                self.act(ev.Attach(job))
        self.follow()

    @invariant()
    def followers_wait_for_those_that_have_not_ended(self) -> None:
        for job in self.engine.jobs.values():
            if isinstance(job.status, Queued):
                for number in job.unmet:
                    assert not self.engine.jobs[JobId(number)].state.final, "it would wait for ever"
                    assert job.id in self.engine._followers[JobId(number)]

    @invariant()
    def the_missing_are_waited_for_no_longer_than_told(self) -> None:
        settings, now = self.box.settings, self.box.now
        assert not self.engine.absent or now < self.restarted_at + settings.window
        assert not self.engine.holding or now < self.restarted_at + settings.hold_after_restart
        for job in self.engine.jobs.values():
            if isinstance(job.status, Queued) and job.status.gate is Gate.REATTACH:
                assert job.id in self.engine.absent


FAST = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
SLOW = settings(FAST, max_examples=150, stateful_step_count=60)
MACHINES = [EngineMachine, BatchMachine]

# Time for Hypothesis to find a short example when there is something to be told.
pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("machine", MACHINES)
def test_anything_in_any_order(machine: type[EngineMachine]) -> None:
    run_state_machine_as_test(machine, settings=FAST)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_anything_in_any_order_for_longer(machine: type[EngineMachine]) -> None:
    run_state_machine_as_test(machine, settings=SLOW)
