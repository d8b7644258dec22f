"""The engine in Hypothesis' hands: interactive jobs, devices, time. What must hold is said here, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core import oracle
from core.support import Box, make_spec, snapshot
from gpusched.scheduler.codec import record_of
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.effects import NoticeKind
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import DomainError
from gpusched.scheduler.core.explain import Code, explain, foresee, lines
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.model import Condition, Request
from gpusched.scheduler.core.queue import Verdict
from gpusched.scheduler.core.records import JobRecord
from gpusched.scheduler.core.states import Gate, Outcome, Queued, Running, State

REQUEST = {
    "gpus": st.sampled_from([1, 1, 1, 2, 2, 3, 4, 5]),
    "model": st.sampled_from(["", "", "h100", "a100"]),
    "node": st.sampled_from(["", "", "", "a", "b"]),
    "memory": st.sampled_from([0, 0, 0, 60]),
    "priority": st.sampled_from([0, 0, 0, 1, -1]),
    "user": st.sampled_from(["alice", "bob"]),
    "time_limit": st.sampled_from([None, None, 2.0, 30.0]),
}
ASK = st.fixed_dictionaries(
    {
        **REQUEST,
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
        self.jobs: list[JobId] = []
        self.epochs: list[int] = [0]
        #: Since when too few devices of a shape are in service, as the oracle sees it.
        self.since: dict[Request, float] = {}
        #: What one knows from the effects alone.
        self.known: dict[JobId, str] = {}
        self.leases: dict[JobId, tuple[str, ...]] = {}
        self.unseen: set[str] = set()  # given back, and not seen to be empty since
        #: What is saved: records of jobs, active leases by epoch, settings.
        self.saved: dict[JobId, JobRecord] = {}
        self.saved_leases: dict[int, JobId] = {}
        self.saved_settings: dict[str, str] = {}
        #: What looks at released devices will find.
        self.stuck: dict[str, Condition] = {}
        self.restarted_at = 0.0
        self.forced: set[JobId] = set()  # moved by hand
        #: Who stood where after the last event, and when each job came.
        self.places: dict[JobId, int] = {}
        self.came_at: dict[JobId, float] = {}
        self._heard = 0
        self._number = 0

    @initialize(
        asked=st.lists(ASK, min_size=2, max_size=8),
        eager=st.sampled_from([True, True, False]),
        max_running=st.sampled_from([0, 0, 0, 2]),
    )
    def begin(self, asked: list[dict[str, Any]], eager: bool, max_running: int) -> None:
        self.box = Box(
            "3xH100:80",
            "2xA100:40",
            confirm_within=5,
            start_within=6,
            end_grace=4,
            limit_notice=2,
            set_aside_after=10,
            keep_ended=3,
            window=8,
            hold_after_restart=2,
            max_running=max_running,
        )
        #: Makes the engine as it was before the first event of the log.
        self.origin: Callable[[], Engine] = lambda: Engine(self.box.nodes, self.box.settings)
        #: Whether looks and passes follow at once, as they do in life, or come when they are drawn.
        self.eager = eager
        self.submit(asked)

    @property
    def engine(self) -> Engine:
        return self.box.engine

    # -- doing -------------------------------------------------------------------------------------------

    def step(self, event: ev.Event) -> DomainError | None:
        """An event; if it is refused, nothing but a late Confirm's job may be different."""
        self.tick()
        before = snapshot(self.engine)
        job = self.engine.jobs.get(event.job) if isinstance(event, ev.Confirm) else None
        late = job is not None and isinstance(job.status, Queued) and job.status.gate is Gate.UNCONFIRMED
        try:
            self.box.do(event)
        except DomainError as error:
            assert error.message.isprintable() and error.reason
            if late:
                assert job is not None and isinstance(job.status, Queued) and job.status.gate is not Gate.UNCONFIRMED
                self.box.do(ev.Tick())
            else:
                assert snapshot(self.engine) == before, "refused, but something has changed"
                assert not self.engine._changes, "refused, but something is to be saved"
            return error
        finally:
            self.hear()
            self.save()
        return None

    def tick(self) -> None:
        """Let happen what is due."""
        self.box.do(ev.Tick())
        self.hear()
        self.save()

    def hear(self) -> None:
        """Take in what the effects say."""
        for effect in self.box.effects[self._heard :]:
            match effect:
                case do.Accepted(job):
                    assert job not in self.known
                    self.known[job] = "queued"
                case do.Granted(job, lease) | do.StartRun(job, lease):
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
                    if job in self.engine.jobs and not self.engine.jobs[job].state.final:
                        self.known[job] = "queued"  # its run ended, it is queued again
                case do.CheckDevices(devices):
                    self.unseen.update(devices)
                case do.Notify(job):
                    assert self.known[job] == "running", "a notice is for a holder"
                case _:
                    pass
        self._heard = len(self.box.effects)

    def save(self) -> None:
        """What the engine says has changed is all that has changed."""
        changes = self.engine.take_changes()
        self.saved |= {number: record_of(job) for number, job in changes.jobs.items()}
        for number, job in self.engine.jobs.items():
            assert self.saved[number] == record_of(job), f"job {number} has changed, and that is not saved"
        ended = {epoch for epoch, _ in changes.ended}
        self.saved_leases |= {lease.epoch: lease.job for lease in changes.leases}
        self.saved_leases = {epoch: job for epoch, job in self.saved_leases.items() if epoch not in ended}
        assert self.saved_leases == {job.lease.epoch: job.id for job in self.engine.running.values() if job.lease}
        merged: dict[str, str | None] = {**self.saved_settings, **changes.settings}
        self.saved_settings = {key: value for key, value in merged.items() if value is not None}
        self.judge_places([(job, line.message) for job, line, _ in changes.events if line.state is State.QUEUED])

    def judge_places(self, said: list[tuple[JobId, str]]) -> None:
        """Nobody falls back, but behind who was newly let in before him or moved by hand; and that is written down.

        Args:
            said: of waiting jobs, what was written down with the last event.
        """
        jobs, queue = self.engine.jobs, [job.id for job in self.engine.queue]
        line = [number for number in queue if jobs[number].in_line]
        positions = [self.engine.queue.position(jobs[number]) for number in line]
        assert positions == [*range(1, len(line) + 1)], "positions run from 1 without gaps"
        places = {number: place for place, number in enumerate(queue, 1)}
        told = {number for number, _ in said}
        moved = {number for number, line in said if line.startswith("priority ")}
        let_in = 0
        for number, place in places.items():
            before = self.places.get(number)
            if before is None:
                assert number in told, f"job {number} has come (back) into the queue, and no line says so"
            if before is None or number in moved:
                let_in += 1
            else:
                assert place <= before + let_in, f"job {number} fell back from {before} to {place}"
            assert self.came_at.setdefault(number, jobs[number].submitted_at) == jobs[number].submitted_at
        stayed = [number for number in queue if number in self.places and number not in moved]
        assert stayed == sorted(stayed, key=self.places.__getitem__), "somebody was overtaken in the queue"
        # Who was let in stands where his tier and his time of arrival put him, and not before that.
        order = [(-jobs[number].priority, self.came_at[number], number) for number in queue]
        assert order == sorted(order), "the queue is not in the order of tiers and arrival"
        self.places = places

    def pick(self, number: int) -> JobId:
        """A job: mostly one that has not ended, sometimes one long forgotten."""
        alive = [job for job in self.jobs if job in self.known]
        candidates = alive if alive and number % 5 else self.jobs
        return candidates[number % len(candidates)]

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

    def enter(self, job: JobId) -> None:
        self.jobs.append(job)

    # -- jobs --------------------------------------------------------------------------------------------

    @rule(asked=st.lists(ASK, min_size=1, max_size=4))
    def submit(self, asked: list[dict[str, Any]]) -> None:
        """A burst of them."""
        for one in asked:
            self._number += 1
            spec = make_spec(**one, token_hash=b"%d" % self._number, request_id=f"r{self._number}")
            if self.step(ev.Submit(spec)) is None:
                self.enter(JobId(self.engine._next_job - 1))
            elif self.engine.halted is None:
                idle = [device for device in self.engine.pool.devices.values() if oracle.fits(device, spec.request)]
                assert len(idle) < spec.request.gpus, "only what can never be had is refused"
        self.follow()

    @precondition(lambda self: self.engine.halted is None)
    @rule(asked=ASK)
    def dry_run(self, asked: dict[str, Any]) -> None:
        """It changes nothing, and the real one then does the same."""
        self.tick()
        before = snapshot(self.engine)
        spec = make_spec(**asked)
        try:
            job, devices = self.engine.dry_run(spec, self.box.now)
        except DomainError:
            assert snapshot(self.engine) == before
            return
        assert snapshot(self.engine) == before and not self.engine._changes
        if devices is None:
            assert foresee(self.engine, job).message.isprintable()
        place = self.engine.queue.position(job)
        assert self.step(ev.Submit(spec)) is None
        self.enter(job.id)
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
        batch = job in self.engine.jobs and self.engine.jobs[job].spec.batch is not None
        attachment = self.engine.jobs[job].attachment if job in self.engine.jobs else 1
        assert self.step(ev.Leave(job, attachment - older)) is None
        if older or (batch and was == "queued"):
            assert self.known.get(job) == was, "the newest stream decides, and it alone"
        elif not batch:
            assert job not in self.known
        self.follow()

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
        assert (self.step(ev.Release(job, epoch, outcome, timed_out)) is None) == holds
        assert not holds or self.known.get(job) != "running"
        self.follow()

    @precondition(lambda self: self.jobs)
    @rule(number=PICK)
    def cancel(self, number: int) -> None:
        job = self.pick(number)
        was = self.known.get(job)
        assert (self.act(ev.Cancel(job, "cancelled by root")) is None) == (was is not None)
        assert self.known.get(job) == ("running" if was == "running" else None)

    @precondition(lambda self: self.jobs)
    @rule(
        number=PICK,
        priority=st.none() | st.integers(-2, 2),
        name=st.none() | st.sampled_from(["x", "y\n"]),
        held=st.sampled_from([None, None, None, True, False]),
        time_limit=st.sampled_from([None, None, None, 7.0]),
    )
    def update(
        self, number: int, priority: int | None, name: str | None, held: bool | None, time_limit: float | None
    ) -> None:
        self.act(ev.Update(self.pick(number), priority, name, held, time_limit, "root"))

    # -- devices, the administrator, time ----------------------------------------------------------------

    def look(self, found: dict[str, Condition]) -> None:
        said = {uuid: f"GPU: {condition.value}" if condition in BAD else "" for uuid, condition in found.items()}
        self.step(ev.Observe(tuple(ev.Seen(uuid, found[uuid], said[uuid]) for uuid in found)))
        self.unseen -= {uuid for uuid, condition in found.items() if condition is Condition.CLEAN}

    @rule(uuid=st.sampled_from(UUIDS), condition=st.sampled_from([Condition.CLEAN, *BAD]))
    def see(self, uuid: str, condition: Condition) -> None:
        self.look({uuid: condition})
        self.follow()

    @rule(node=st.sampled_from("ab"))
    def lose_node(self, node: str) -> None:
        """All its GPUs fail in one look, and later looks say no better; whoever holds one of them is told, once."""
        self.tick()
        there = [device for device in self.engine.pool.devices.values() if device.info.node == node]
        to_tell = [
            holder for device in there for holder in device.holders if device.condition is not Condition.UNHEALTHY
        ]
        lost = {device.uuid: Condition.UNHEALTHY for device in there}
        heard = len(self.box.effects)
        self.stuck |= lost
        self.look(lost)
        told = [
            effect.job
            for effect in self.box.effects[heard:]
            if isinstance(effect, do.Notify) and effect.kind is NoticeKind.GPU_UNHEALTHY
        ]
        assert sorted(told) == sorted(to_tell)
        assert oracle.free(self.engine).isdisjoint(lost)
        self.follow()

    @rule(node=st.sampled_from("ab"))
    def find_node(self, node: str) -> None:
        """It is back, and all its GPUs are well."""
        found = [device.uuid for device in self.engine.pool.devices.values() if device.info.node == node]
        for uuid in found:
            self.stuck.pop(uuid, None)
        self.look(dict.fromkeys(found, Condition.CLEAN))
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

    @rule()
    def make_pass(self) -> None:
        """Who starts is what a plain walk over the whole queue says."""
        self.tick()
        waiting, free, slots = oracle.waiting(self.engine), oracle.free(self.engine), self.engine.slots
        heard = len(self.box.effects)
        may = self.may_start()
        self.step(ev.Pass())
        grants = oracle.started(self.box.effects[heard:])
        if not may:
            assert not grants
            return
        oracle.walk(self.engine, waiting, free, self.since, self.box.now, slots, grants)
        # Once more and without the oracle: nobody was overtaken.
        for number, _ in grants:
            job = self.engine.jobs[number]
            for other in oracle.waiting(self.engine):
                aside = self.engine.queue.class_of(other).verdict is Verdict.SET_ASIDE
                overtaken = other.key < job.key and oracle.share(self.engine, job, other)
                assert aside or not overtaken, f"{job.id} overtook {other.id}"

    def may_start(self) -> bool:
        return self.engine.paused is None and self.engine.halted is None and not self.engine.holding

    def epoch_of(self, job: JobId) -> int:
        lease = self.engine.jobs[job].lease if job in self.engine.jobs else None
        return lease.epoch if lease else 0

    # -- what always holds (besides invariants.check and the indexes, after every event) -----------------

    @invariant()
    def effects_tell_all(self) -> None:
        alive = {job.id: job.state.value for job in self.engine.jobs.values() if not job.state.final}
        assert self.known == alive, "the effects and the engine tell different stories"
        assert self.leases == {job.id: job.lease.devices for job in self.engine.running.values() if job.lease}

    @invariant()
    def no_shape_is_forgotten_or_kept(self) -> None:
        shapes = {job.request for job in oracle.waiting(self.engine)}
        for request in list(self.since):
            if request not in shapes:
                del self.since[request]
        since = {found.request: found.unavailable_since for found in self.engine.queue.classes.values()}
        assert since == {request: self.since.get(request) for request in shapes}

    @invariant()
    def nothing_is_overlooked(self) -> None:
        """If no pass is wanted, a pass would start nothing: no event forgets to ask for one."""
        if not self.engine.pass_wanted and self.may_start():
            waiting, free = oracle.waiting(self.engine), oracle.free(self.engine)
            oracle.walk(self.engine, waiting, free, dict(self.since), self.box.now, self.engine.slots, [])

    @invariant()
    def nothing_is_overdue(self) -> None:
        now, settings = self.box.now, self.box.settings
        for job in self.engine.jobs.values():
            match job.status:
                case Queued(gate=gate):
                    limit = job.spec.max_wait
                    again = job.attempt or job.id in self.forced  # has run, and waits anew
                    assert not limit or again or job.submitted_at + limit > now
                    assert job.cancelling is None
                    assert gate in (Gate.UNCONFIRMED, Gate.REATTACH) or gate is job.gate_at(now)
                case Running(lease=lease, confirmed=confirmed):
                    # Who held a lease before a restart has the window to come back.
                    window = self.restarted_at + settings.window if lease.granted_at <= self.restarted_at else 0.0
                    assert confirmed or (lease.confirm_by is not None and max(window, lease.confirm_by) > now)
                    grace = self.grace(job)
                    assert lease.expires_at is None or max(window, lease.expires_at + grace) > now
                    assert job.cancelling is None or max(window, job.cancelling[1]) > now

    def grace(self, job: Job) -> float:
        return max(4.0, job.spec.batch.grace + 5.0) if job.spec.batch and job.spec.batch.grace else 4.0

    @invariant()
    def every_wait_has_a_reason(self) -> None:
        for job in self.engine.queue:
            reason = explain(self.engine, job)
            assert reason is not None and reason.message and reason.message.isprintable()
            assert reason.needed == job.request.gpus
            account = lines(self.engine, job, reason, self.box.now)
            number = f"is number {self.engine.queue.position(job)} of {self.engine.queue.in_line} in the queue"
            assert account[0] == f"Job {job.id} {number if job.in_line else 'does not stand in line for GPUs yet'}."
            if reason.ahead is not None:
                ahead = self.engine.jobs[reason.ahead]
                assert ahead.awake and ahead.key < job.key and oracle.share(self.engine, job, ahead)
            if not self.engine.pass_wanted:
                assert reason.code not in (Code.STARTING, Code.READY), "settled, and yet about to start"

    def replay(self) -> None:
        """The same events give the same effects, to the letter."""
        engine, effects = self.origin(), list[do.Effect]()
        for event, now in self.box.log:
            try:
                effects += engine.handle(event, now)
            except DomainError:
                pass
        assert effects == self.box.effects
        assert snapshot(engine) == snapshot(self.engine)

    def teardown(self) -> None:
        if hasattr(self, "box"):
            self.replay()
