"""A burst costs one pass, and telling places costs the same however long the queue is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from gpusched.scheduler import driver
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import NotFound, Unavailable
from gpusched.scheduler.core.jobs import Job, JobId, JobSpec
from gpusched.scheduler.core.model import DeviceInfo, NodeInfo, Owner, Request
from gpusched.scheduler.core.records import Batch
from gpusched.scheduler.core.states import Finished, Outcome, Running, State
from gpusched.scheduler.desk import Desk, Superseded, Ticket
from gpusched.scheduler.driver import Driver
from gpusched.scheduler.ports import Store, StoreError
from gpusched.scheduler.store.memory import MemoryStore
from rpc.calls import PATIENCE, until

GPUS = 4


class Room:
    """An engine with four GPUs, driven, and a count of its passes."""

    def __init__(self, store: Store | None = None) -> None:
        devices = tuple(DeviceInfo(f"gpu-{index}", index, "here", "H100", 80 << 30) for index in range(GPUS))
        self.engine = Engine((NodeInfo("here", devices),))
        self.driver = Driver(self.engine, time.monotonic, store)
        self.desk = Desk(self.engine)
        self.driver.listen(self.desk.on_effect)
        self.passes = 0
        handle = self.engine.handle

        def counted(event: ev.Event, now: float) -> list[do.Effect]:
            self.passes += isinstance(event, ev.Pass)
            return handle(event, now)

        self.engine.handle = counted  # type: ignore[method-assign]
        self.publisher = asyncio.create_task(self.desk.publish())

    def submit(self, gpus: int = 1, **fields: object) -> Job:
        spec = JobSpec(Owner(1000, "alice"), Request(gpus), auto_confirm=True, **fields)  # type: ignore[arg-type]
        for effect in self.driver.handle(ev.Submit(spec)):
            if isinstance(effect, do.Accepted):
                return self.engine.jobs[effect.job]
        raise AssertionError

    def open(self, job: Job) -> Ticket:
        ticket = self.desk.open(job, job.attachment)
        ticket.stale = False
        return ticket


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    made = Room()
    yield made
    made.publisher.cancel()
    made.driver.stop()


async def test_a_burst_of_events_costs_one_pass(room: Room) -> None:
    jobs = [room.submit() for _ in range(1000)]
    assert room.passes == 0
    await asyncio.sleep(0)
    assert room.passes == 1
    assert [isinstance(job.status, Running) for job in jobs[: GPUS + 1]] == [True] * GPUS + [False]
    for job in jobs:
        room.driver.handle(ev.Leave(job.id, 1))
    await asyncio.sleep(0)
    assert room.passes == 2
    await asyncio.sleep(0)
    assert room.passes == 2


async def test_deadlines_are_kept_without_anything_else_happening(room: Room) -> None:
    blocker = room.submit(GPUS)
    short = room.submit(1, max_wait=0.05)
    shorter = room.submit(1, max_wait=0.02)  # the timer that is set already must give way to an earlier one
    await until(lambda: isinstance(short.status, Finished))
    assert isinstance(shorter.status, Finished)
    assert shorter.status.at < short.status.at
    assert isinstance(blocker.status, Running)


async def test_what_falls_due_with_a_refused_event_is_told_all_the_same(room: Room) -> None:
    room.submit(GPUS)
    waiter = room.submit(1, max_wait=0.01)
    ticket = room.open(waiter)
    await asyncio.sleep(0)
    time.sleep(0.02)  # noqa: ASYNC251 - the timer must not come first
    with pytest.raises(NotFound):
        room.driver.handle(ev.Cancel(JobId(999), "no such job"))
    await asyncio.sleep(0)
    message = ticket.take()
    assert isinstance(message, do.Ended)
    assert message.reason == "MAX_WAIT"


async def test_a_listener_that_fails_does_not_keep_the_others_from_hearing(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[do.Effect] = []

    def broken(effect: do.Effect) -> None:
        raise ValueError("broken")

    room.driver.listen(broken)
    room.driver.listen(heard.append)
    with caplog.at_level(logging.CRITICAL):
        job = room.submit()
        await asyncio.sleep(0)
    assert isinstance(job.status, Running)
    assert any(isinstance(effect, do.Granted) for effect in heard)


async def test_a_listener_hears_only_the_kinds_that_it_asked_for(room: Room) -> None:
    heard: list[do.Effect] = []
    room.driver.listen(heard.append, do.Granted, do.Ended)
    job = room.submit()
    await asyncio.sleep(0)
    room.driver.handle(ev.Leave(job.id, 1))
    await asyncio.sleep(0)
    assert [type(effect) for effect in heard] == [do.Granted, do.Ended]


class CountingStore(MemoryStore):
    """Counts the saves."""

    saves = 0

    def commit(self, batch: Batch) -> None:
        self.saves += 1
        super().commit(batch)


async def test_a_burst_is_saved_in_fewer_and_larger_pieces_and_a_lone_job_at_once() -> None:
    store = CountingStore()
    store.open()
    room = Room(store)
    loop = asyncio.get_running_loop()

    async def granted(job: Job) -> float:
        began = loop.time()
        while not isinstance(job.status, Running):  # noqa: ASYNC110 - a turn of the loop is what is measured
            await asyncio.sleep(0)
        return loop.time() - began

    async def flood(seconds: float) -> float:
        """Jobs that come and go without a pause. Gives the seconds from one save to the next."""
        before, end = store.saves, loop.time() + seconds
        while loop.time() < end:
            for _ in range(20):
                room.driver.handle(ev.Leave(room.submit().id, 1))
            await asyncio.sleep(0)
        return seconds / (store.saves - before)

    # The middle of several, one right after the other, as other processes may hold this one up.
    waits = sorted([await granted(room.submit()) for _ in range(GPUS)])
    assert waits[GPUS // 2] < driver.GATHER_WAITING
    assert await flood(0.3) > 0.9 * driver.GATHER_MOST
    await room.driver.saved()
    await asyncio.sleep(2 * driver.GATHER_MOST)
    room.publisher.cancel()
    await room.driver.close()


async def test_a_pass_that_fails_keeps_nothing_from_being_saved(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in a plan is no reason to forget who has asked, or to answer nobody."""
    store = MemoryStore()
    store.open()
    room = Room(store)
    handle = room.driver.engine.handle

    def fail(event: ev.Event, now: float) -> list[do.Effect]:
        if isinstance(event, ev.Pass):
            raise KeyError("lane")
        return handle(event, now)

    monkeypatch.setattr(room.driver.engine, "handle", fail)
    job = room.submit()
    async with asyncio.timeout(5):
        await room.driver.saved()
    assert store.job(job.id) is not None and job.state is State.QUEUED
    assert "the pass failed" in caplog.text
    monkeypatch.undo()
    other = room.submit()
    async with asyncio.timeout(5):
        await room.driver.saved()
    assert isinstance(other.status, Running) and isinstance(job.status, Running), "the next event has another pass"
    room.publisher.cancel()
    await room.driver.close()


async def test_a_stopped_driver_starts_nothing_but_takes_what_comes(room: Room) -> None:
    job = room.submit(1, max_wait=0.01)
    room.driver.stop()
    await asyncio.sleep(0.05)
    assert job.state is State.QUEUED
    room.driver.handle(ev.Leave(job.id, 1))
    assert job.state is State.CANCELLED


async def test_waiters_are_told_nearest_to_the_front_first_and_so_many_at_a_time(room: Room) -> None:
    holder = room.submit(GPUS)
    await asyncio.sleep(0)
    tickets = [room.open(room.submit(GPUS)) for _ in range(5 * Desk.CHUNK)]
    # Until the round that these began is over.
    await until(lambda: all(ticket.stale for ticket in tickets))
    while any(ticket.stale for ticket in tickets):
        for ticket in tickets:
            ticket.stale = False
        await asyncio.sleep(2.5 * Desk.TICK)
    began = time.monotonic()
    room.driver.handle(ev.Update(tickets[-1].job.id, priority=-1))
    told = [0]
    while told[-1] < len(tickets):
        await asyncio.sleep(0.005)
        stale = [ticket.stale for ticket in tickets]
        assert stale == sorted(stale, reverse=True)  # a prefix of the queue
        if sum(stale) != told[-1]:
            told.append(sum(stale))
        assert time.monotonic() - began < PATIENCE
    steps = [later - earlier for earlier, later in pairwise(told)]
    assert max(steps) <= 2 * Desk.CHUNK
    assert time.monotonic() - began > 3 * Desk.TICK
    assert isinstance(holder.status, Running)


async def test_ceaseless_changes_reach_the_front_at_once_and_the_end_in_time(room: Room) -> None:
    room.submit(GPUS)
    await asyncio.sleep(0)
    tickets = [room.open(room.submit(GPUS)) for _ in range(4 * Desk.CHUNK)]
    await until(lambda: tickets[-1].stale)
    pokes = 0
    front: list[float] = []
    last = 0
    began = time.monotonic()
    while last < 2:
        assert time.monotonic() - began < PATIENCE
        # A change at least every 10 ms, as when a long queue drains.
        room.submit(GPUS)
        await asyncio.sleep(0.01)
        if tickets[0].stale:
            front.append(time.monotonic())
        last += tickets[-1].stale
        for ticket in tickets:
            pokes += ticket.stale
            ticket.stale = False
    gaps = [later - earlier for earlier, later in pairwise(front)]
    assert min(gaps) < 2 * Desk.TICK + 0.1
    assert pokes / (time.monotonic() - began) < 2 * 2 * Desk.CHUNK / Desk.TICK


async def test_a_reader_that_does_not_read_has_its_news_in_order_and_one_place(room: Room) -> None:
    holder = room.submit(GPUS)
    waiter = room.submit(GPUS)
    ticket = room.open(waiter)
    for _ in range(1000):
        job = room.submit(GPUS)
        room.driver.handle(ev.Leave(job.id, 1))
        await asyncio.sleep(0)
    await until(lambda: ticket.stale)
    assert ticket.take() is None
    room.driver.handle(ev.Leave(holder.id, 1))
    # Nobody looks at GPUs here: say that they are empty.
    clean = tuple(ev.Seen(uuid, room.engine.pool.devices[uuid].condition.CLEAN) for uuid in room.engine.pool.devices)
    room.driver.handle(ev.Observe(clean))
    await asyncio.sleep(0)
    assert waiter.lease is not None
    room.driver.handle(ev.Cancel(waiter.id, "enough"))
    room.driver.handle(ev.Release(waiter.id, waiter.lease.epoch, Outcome(0)))
    await asyncio.sleep(0)
    kinds = []
    while (message := ticket.take()) is not None:
        kinds.append(type(message))
    assert kinds == [do.Granted, do.Notify, do.Ended]


async def test_a_newer_ticket_takes_over_and_the_older_ones_end_means_nothing(room: Room) -> None:
    room.submit(GPUS)
    job = room.submit()
    older = room.open(job)
    waiting = asyncio.create_task(older.wait())
    newer = room.open(job)
    await asyncio.wait_for(waiting, PATIENCE)
    assert isinstance(older.take(), Superseded)
    room.desk.close(older)
    assert len(room.desk) == 1
    room.driver.handle(ev.Cancel(job.id, "x"))
    await asyncio.sleep(0)
    assert isinstance(newer.take(), do.Ended)
    room.desk.close(newer)
    assert len(room.desk) == 0


class FullStore(MemoryStore):
    """It takes nothing while it is full."""

    full = True

    def commit(self, batch: Batch) -> None:
        if self.full:
            raise StoreError("no room", passing=True)
        super().commit(batch)


async def test_between_two_tries_nothing_counts_as_saved() -> None:
    store = FullStore()
    store.open()
    room = Room(store)
    job = room.submit()
    with pytest.raises(Unavailable, match="no room"):
        await room.driver.saved()
    await asyncio.sleep(0.05)  # what followed upon the failure is over, and the next try is a second away
    with pytest.raises(Unavailable, match="no room"):
        await room.driver.saved()
    store.full = False
    await until(lambda: room.engine.halted is None, PATIENCE)
    await room.driver.saved()
    assert store.job(job.id) is not None
    room.publisher.cancel()
    room.driver.stop()
