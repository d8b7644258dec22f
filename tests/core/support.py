"""An engine on fake time, so that a scenario is three lines.

`Box` feeds events, answers the looks at released GPUs, makes the passes that the engine wants, and checks the
invariants after every step. Nodes are called a, b, c…; their GPUs a0, a1, …
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, TypeVar

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core import invariants
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.explain import Reason, explain
from gpusched.scheduler.core.jobs import Job, JobId, JobSpec
from gpusched.scheduler.core.model import Condition, DeviceInfo, NodeInfo, Owner, Request
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.settings import Settings
from gpusched.scheduler.core.states import Finished, Outcome, State

GIB = 2**30

E = TypeVar("E", bound=do.Effect)

_WHERE = ("nodes", "gpu_ids", "exclude", "labels", "per_node", "placement", "shared", "cpus")
_SHAPE = re.compile(r"(\d+)(?:x(\w+))?(?::(\d+))?")


def make_nodes(*shapes: str) -> tuple[NodeInfo, ...]:
    """Nodes a, b, …: "4" (four GPUs), "2xH100" (of that model), "2xA100:40" (with 40 GiB each).

    Each has 8 cores and 64 GiB for each of its GPUs.
    """
    out = []
    for name, shape in zip("abcdefgh", shapes, strict=False):
        found = _SHAPE.fullmatch(shape)
        assert found, shape
        count, model, memory = int(found[1]), found[2] or "H100", int(found[3] or 80)
        infos = (DeviceInfo(f"{name}{i}", i, name, f"NVIDIA {model}", memory * GIB, True) for i in range(count))
        out.append(NodeInfo(name, tuple(infos), local=name == "a", cpus=8 * count, memory_bytes=64 * count * GIB))
    return tuple(out)


def make_spec(gpus: int = 1, *, user: str = "alice", **more: Any) -> JobSpec:
    """A spec; `memory`, `mem` (GiB) and what is a request's go to the request, the rest to the spec.

    Confirmed by itself.
    """
    owner = Owner(1000 + sum(map(ord, user)), user)
    memory, model, node = more.pop("memory", 0), more.pop("model", ""), more.pop("node", "")
    more.setdefault("auto_confirm", True)
    where = {name: more.pop(name) for name in _WHERE if name in more}
    where["host_bytes"] = int(more.pop("mem", 0) * GIB)
    return JobSpec(owner, Request(gpus, int(memory * GIB), model, node, **where), **more)


def snapshot(engine: Engine) -> dict[str, Any]:
    """All that an engine knows, as plain values; what must be equal if nothing has changed."""
    return {
        "jobs": {job.id: [_plain(getattr(job, name)) for name in Job.__slots__] for job in engine.jobs.values()},
        "queue": [job.id for job in engine.queue],
        "classes": {
            request: (list(found.keys), found.verdict, found.blocked_by, found.unavailable_since)
            for request, found in engine.queue.classes.items()
        },
        "running": set(engine.running),
        "ended": list(engine._ended),
        "devices": {
            device.uuid: (
                device.condition,
                device.message,
                device.drained,
                device.holder,
                device.kept,
                device.previous,
                frozenset(device.warned),
                dict(device.shares),
                dict(device.over),
            )
            for device in engine.pool.devices.values()
        },
        "nodes": {name: (node.drained, list(node.available), node.taken) for name, node in engine.pool.nodes.items()},
        "rest": (engine.paused, engine.halted, engine.pass_wanted, engine._next_job, engine._next_epoch),
        "lists": (list(engine._impatient), set(engine.absent), engine.hold_until, engine._next_look),
        "indexes": (
            dict(engine._tokens),
            dict(engine._requests),
            {job: list(jobs) for job, jobs in engine._followers.items()},
        ),
        "claims": dict(engine.claims),
        "deadlines": sorted((at, number, what.name, job, epoch) for at, number, what, job, epoch in _heap(engine)),
        "untold": list(engine._out),
    }


def _plain(value: object) -> object:
    """A value that does not change any more: lists and sets of values are copied."""
    return tuple(value) if isinstance(value, list) else frozenset(value) if isinstance(value, set) else value


def pending(engine: Engine) -> Counter[str]:
    """How many entries the heap of deadlines has of each kind."""
    return Counter(what.name for _, _, what, _, _ in _heap(engine))


def _heap(engine: Engine) -> list[tuple[Any, ...]]:
    return engine._deadlines._heap


def check_indexes(engine: Engine) -> None:
    """Secrets and request ids lead to jobs that have not ended, and to all of those."""
    alive = [job for job in engine.jobs.values() if not job.state.final]
    assert engine._tokens == {job.token_hash: job.id for job in alive if job.token_hash}, "secrets are off"
    requests = {(job.spec.owner.uid, job.spec.request_id): job.id for job in alive if job.spec.request_id}
    kept = {key: job for key, job in engine._requests.items() if not engine.jobs[job].state.final}
    assert kept == requests, "request ids are off"
    assert all(engine.jobs[job].spec.batch for key, job in engine._requests.items() if key not in requests)
    ended = [job.id for job in engine.jobs.values() if job.state.final]
    assert sorted(engine._ended) == sorted(ended), "the list of ended jobs is off"
    assert len(ended) <= engine.settings.keep_ended, "too many ended jobs are remembered"


class Box:
    """The machine under test.

    Args:
        shapes: of the nodes, see `make_nodes`.
        now: the clock's start.
        settings: fields of `Settings` that are not the defaults.

    Attributes:
        now: the clock, in seconds.
        looks: what a look at a released GPU says, by uuid; CLEAN for those not named.
        effects: all effects so far.
        log: all events so far with their times, for a replay.
    """

    def __init__(self, *shapes: str, now: float = 1000.0, **settings: Any) -> None:
        self.nodes = make_nodes(*(shapes or ("4",)))
        # Strict order unless a test says otherwise: the rules that hold under every policy are easiest to see there.
        settings.setdefault("policy", PolicySettings(backfill="none", aging=0.0))
        self.settings = Settings(**settings)
        self.engine = Engine(self.nodes, self.settings)
        self.now = now
        self.looks: dict[str, tuple[Condition, str]] = {}
        self.effects: list[do.Effect] = []
        self.log: list[tuple[ev.Event, float]] = []
        self._unclaimed: list[do.Effect] = []
        self._unlooked: list[str] = []

    # -- letting things happen -----------------------------------------------------------------------------

    def do(self, event: ev.Event) -> list[do.Effect]:
        """One event, and nothing after it."""
        self.log.append((event, self.now))
        try:
            effects = self.engine.handle(event, self.now)
        finally:
            invariants.check(self.engine)
            check_indexes(self.engine)
        self.effects += effects
        self._unclaimed += effects
        for effect in effects:
            if isinstance(effect, do.CheckDevices):
                self._unlooked += effect.devices
        return effects

    def settle(self) -> None:
        """Answer looks and make passes until nothing is wanted."""
        for _ in range(50):
            if self._unlooked:
                uuids, self._unlooked = dict.fromkeys(self._unlooked), []
                self.do(
                    ev.Observe(tuple(ev.Seen(uuid, *self.looks.get(uuid, (Condition.CLEAN, ""))) for uuid in uuids))
                )
            elif self.engine.pass_wanted:
                self.do(ev.Pass())
            else:
                return
        raise AssertionError("the engine wants pass after pass")

    def happen(self, event: ev.Event) -> list[do.Effect]:
        """An event, and all that follows from it."""
        try:
            return self.do(event)
        finally:
            # A refusal may leave effects of what happened all the same; the driver fetches them like this, too.
            if self.engine._out:
                self.do(ev.Tick())
            self.settle()

    def wait(self, seconds: float) -> None:
        """Let time pass, with a tick at each deadline."""
        until = self.now + seconds
        while (due := self.engine.next_deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self.happen(ev.Tick())
        self.now = until
        self.happen(ev.Tick())

    # -- the events in short -------------------------------------------------------------------------------

    def ask(self, gpus: int = 1, **more: Any) -> JobId:
        """Submit, and nothing after it (so no pass yet)."""
        effects = self.do(ev.Submit(make_spec(gpus, **more)))
        return next(effect.job for effect in effects if isinstance(effect, do.Accepted))

    def submit(self, gpus: int = 1, **more: Any) -> JobId:
        """Submit, and all that follows from it."""
        job = self.ask(gpus, **more)
        self.settle()
        return job

    def flood(self, number: int, **more: Any) -> None:
        """Very many jobs come and go; without a look at each step."""
        for _ in range(number):
            self.engine.handle(ev.Submit(make_spec(**more)), self.now)
            self.engine.handle(ev.Cancel(JobId(self.engine._next_job - 1), "x"), self.now)
        self.settle()

    def leave(self, job: JobId, attachment: int = 1) -> None:
        self.happen(ev.Leave(job, attachment))

    def release(self, job: JobId, exit_status: int | None = 0, **more: Any) -> None:
        self.happen(ev.Release(job, self.epoch(job), Outcome(exit_status), **more))

    def confirm(self, job: JobId, epoch: int | None = None) -> None:
        self.happen(ev.Confirm(job, self.epoch(job) if epoch is None else epoch))

    def cancel(self, job: JobId, message: str = "cancelled by bob") -> None:
        self.happen(ev.Cancel(job, message))

    def see(self, condition: Condition, *uuids: str, message: str = "") -> None:
        """A look says this of devices, and later looks will too."""
        self.looks |= dict.fromkeys(uuids, (condition, message))
        self.happen(ev.Observe(tuple(ev.Seen(uuid, condition, message) for uuid in uuids)))

    def drain(self, *uuids: str, node: str = "", reason: str | None = "fan") -> None:
        self.happen(ev.Drain(uuids, reason, node))

    # -- what came of it -----------------------------------------------------------------------------------

    def job(self, job: JobId) -> Job:
        return self.engine.jobs[job]

    def state(self, job: JobId) -> State:
        return self.job(job).state

    def epoch(self, job: JobId) -> int:
        lease = self.job(job).lease
        assert lease is not None, f"job {job} holds nothing: {self.job(job).status}"
        return lease.epoch

    def gpus(self, job: JobId) -> tuple[str, ...]:
        """What a job holds now."""
        lease = self.job(job).lease
        return () if lease is None else lease.devices

    def outcome(self, job: JobId) -> Outcome:
        status = self.job(job).status
        assert isinstance(status, Finished), f"job {job} has not ended: {status}"
        return status.outcome

    def why(self, job: JobId) -> Reason:
        found = explain(self.engine, self.job(job))
        assert found is not None
        return found

    @property
    def running(self) -> list[JobId]:
        return sorted(self.engine.running)

    @property
    def waiting(self) -> list[JobId]:
        """In the order of their positions."""
        return [job.id for job in self.engine.queue]

    @property
    def free(self) -> list[str]:
        return [uuid for uuid, device in self.engine.pool.devices.items() if self.engine.pool.is_available(device)]

    # -- claiming effects ----------------------------------------------------------------------------------

    def claim(self, kind: type[E], job: JobId | None = None) -> list[E]:
        """Take the effects of a kind (for a job) that were not claimed yet."""
        out: list[E] = []
        rest: list[do.Effect] = []
        for effect in self._unclaimed:
            if isinstance(effect, kind) and job in (None, getattr(effect, "job", None)):
                out.append(effect)
            else:
                rest.append(effect)
        self._unclaimed = rest
        return out

    def told(self, job: JobId) -> list[tuple[do.NoticeKind, float | None]]:
        """Notices to a job that were not claimed yet: kind, and seconds until the deadline."""
        return [
            (effect.kind, None if effect.deadline is None else effect.deadline - self.now)
            for effect in self.claim(do.Notify, job)
        ]

    def assert_all_told(self) -> None:
        """Fail for notices and withdrawals that no test line claimed."""
        left = [effect for effect in self._unclaimed if isinstance(effect, do.Notify | do.Withdrawn)]
        assert not left, f"unexpected: {left}"
