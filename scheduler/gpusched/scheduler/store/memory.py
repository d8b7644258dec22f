"""A store that lasts as long as its object: for tests, and for measuring what durability costs."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from threading import RLock
from typing import Concatenate, ParamSpec, TypeVar

from gpusched.scheduler.core.records import Batch, Boot, EventRecord, JobRecord, LeaseRecord
from gpusched.scheduler.core.states import State
from gpusched.scheduler.ports import StoreError
from gpusched.scheduler.store import sentences

_FINAL = frozenset(state.value for state in State if state.final)
_RUNNING = State.RUNNING.value
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _alone(method: Callable[Concatenate[MemoryStore, _P], _R]) -> Callable[Concatenate[MemoryStore, _P], _R]:
    """Calls from several threads wait for each other."""

    @wraps(method)
    def locked(store: MemoryStore, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with store._lock:
            return method(store, *args, **kwargs)

    return locked


class MemoryStore:
    """A `Store`, see `gpusched.scheduler.ports`. What it keeps outlives `close`: open it again for a restart.

    Attributes:
        failure: raised by every call but `close` while it is set: a full disk, for tests.
    """

    def __init__(self) -> None:
        self.failure: StoreError | None = None
        self._lock = RLock()
        self._state_id = secrets.token_hex(8)
        self._starts = 0
        self._open = False
        self._pruned_to = 0
        self._jobs: dict[int, JobRecord] = {}
        self._events: defaultdict[int, list[EventRecord]] = defaultdict(list)
        self._leases: dict[int, LeaseRecord] = {}
        #: epochs of active leases, and the one that holds each device.
        self._active: set[int] = set()
        self._held: dict[str, int] = {}  # as a whole
        self._settings: dict[str, str] = {}

    @_alone
    def open(self) -> Boot:
        self._fail()
        self._open = True
        self._starts += 1
        return Boot(
            state_id=self._state_id,
            starts=self._starts,
            next_job=1 + max(self._pruned_to, max(self._jobs, default=0)),
            jobs=tuple(self._jobs[id] for id in sorted(self._jobs) if self._jobs[id].ended_at is None),
            settings=dict(self._settings),
        )

    @_alone
    def commit(self, batch: Batch) -> None:
        self._must_work()
        for problem in self._problems(batch):
            raise StoreError(f"memory refuses a contradiction: {problem}", passing=False)
        self._jobs.update((job.id, job) for job in batch.jobs)
        for event in batch.events:
            self._events[event.job].append(event)
        for epoch, _ in batch.ended:
            self._end(epoch)
        over = {epoch for epoch, _ in batch.ended}
        for lease in batch.leases:
            self._leases[lease.epoch] = lease
            if lease.epoch not in over:
                self._active.add(lease.epoch)
                if not lease.shared:
                    self._held.update(dict.fromkeys(lease.devices, lease.epoch))
        for key, value in batch.settings.items():
            if value is None:
                self._settings.pop(key, None)
            else:
                self._settings[key] = value

    @_alone
    def job(self, job_id: int) -> JobRecord | None:
        self._must_work()
        return self._jobs.get(job_id)

    @_alone
    def events(self, job_id: int) -> tuple[EventRecord, ...]:
        self._must_work()
        return tuple(self._events.get(job_id, ()))

    @_alone
    def ended_jobs(
        self,
        *,
        states: frozenset[str] = frozenset(),
        user: str = "",
        name: str = "",
        after: tuple[float, int] | None = None,
        limit: int = 100,
    ) -> tuple[JobRecord, ...]:
        self._must_work()
        found = {(at, job.id): job for at, job in self._ended(states, user, name)}
        places = sorted((place for place in found if after is None or place < after), reverse=True)
        return tuple(found[place] for place in places[: max(0, limit)])

    @_alone
    def count_ended(self, *, states: frozenset[str] = frozenset(), user: str = "", name: str = "") -> int:
        self._must_work()
        return sum(1 for _ in self._ended(states, user, name))

    @_alone
    def prune(self, before: float, limit: int = 1000) -> int:
        self._must_work()
        held = {self._leases[epoch].job for epoch in self._active}
        old = sorted(
            (at, job.id) for at, job in self._ended(frozenset(), "", "") if at < before and job.id not in held
        )[: max(0, limit)]
        gone = {job for _, job in old}
        for job in gone:
            del self._jobs[job]
            self._events.pop(job, None)
        self._leases = {epoch: lease for epoch, lease in self._leases.items() if lease.job not in gone}
        self._pruned_to = max(self._pruned_to, max(gone, default=0))
        return len(gone)

    @_alone
    def check(self) -> list[str]:
        self._fail()
        return list(self._contradictions())

    def close(self) -> None:
        self._open = False

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _must_work(self) -> None:
        self._fail()
        if not self._open:
            raise StoreError("memory is not open", passing=False)

    def _end(self, epoch: int) -> None:
        if epoch in self._active:
            self._active.discard(epoch)
            for device in self._leases[epoch].devices:
                if self._held.get(device) == epoch:
                    del self._held[device]

    def _problems(self, batch: Batch) -> Iterator[str]:
        """Why a batch must be refused, in words. A database finds these by its keys and indexes."""
        known = self._jobs.keys() | {job.id for job in batch.jobs}
        for event in batch.events:
            if event.job not in known:
                yield sentences.unknown_job("a history line", event.job)
        over = {epoch for epoch, _ in batch.ended}
        held = {device: epoch for device, epoch in self._held.items() if epoch not in over} if batch.leases else {}
        new: dict[int, LeaseRecord] = {}
        for lease in batch.leases:
            if lease.job not in known:
                yield sentences.unknown_job(f"lease L{lease.epoch}", lease.job)
            if lease.epoch in self._leases or lease.epoch in new:
                yield sentences.known_lease(lease.epoch)
            new[lease.epoch] = lease
            if len(set(lease.devices)) < len(lease.devices):
                yield sentences.named_twice(lease.epoch)
            if lease.epoch in over or lease.shared:
                continue  # it came and went within the batch, or has no device for itself
            for device in lease.devices:
                if device in held:
                    epoch = held[device]
                    yield sentences.taken(device, epoch, (self._leases.get(epoch) or new[epoch]).job)
                held[device] = lease.epoch

    def _ended(self, states: frozenset[str], user: str, name: str) -> Iterator[tuple[float, JobRecord]]:
        part = name.lower()
        for job in self._jobs.values():
            if (
                job.ended_at is not None
                and (not states or job.state in states)
                and user in ("", job.user, str(job.uid))
                and part in job.name.lower()
            ):
                yield job.ended_at, job

    def _contradictions(self) -> Iterator[str]:
        by_job: defaultdict[int, list[int]] = defaultdict(list)
        by_device: defaultdict[str, list[int]] = defaultdict(list)
        for epoch in sorted(self._active):
            lease = self._leases[epoch]
            job = self._jobs[lease.job]
            by_job[job.id].append(epoch)
            for device in lease.devices:
                by_device[device].append(epoch)
            if job.state != _RUNNING:
                yield sentences.lease_not_running(epoch, job.id, job.state)
        for id, epochs in by_job.items():
            if len(epochs) > 1:
                yield sentences.several_leases(id, epochs)
        for device in self._held:
            if len(by_device[device]) > 1:
                yield sentences.taken_twice(device, by_device[device])
        for job in self._jobs.values():
            if job.state == _RUNNING and job.id not in by_job:
                yield sentences.running_without_lease(job.id)
            if (job.state in _FINAL) is not (job.ended_at is not None):
                yield sentences.ended_unclear(job.id, job.state, job.ended_at is not None)
