"""The eyes on GPUs whose driver may be slow or hang: on threads, one call at a time for each, and never trusted."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest

from gpusched.scheduler import observer as module
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.jobs import Job, JobSpec
from gpusched.scheduler.core.model import (
    Condition,
    DeviceInfo,
    DeviceReading,
    Holder,
    NodeInfo,
    Owner,
    ProcessReading,
    Request,
)
from gpusched.scheduler.core.states import Outcome, Queued, Running
from gpusched.scheduler.driver import Driver
from gpusched.scheduler.observer import Observer
from rpc.calls import PATIENCE, until

OWNER = Owner(1000, "alice")
HOLDER = Holder(500, 1)
OLD = ProcessReading(600, 2, 1000, "alice", "python", 1 << 30, ((600, 2), (500, 1)))


class SlowInventory:
    """Two GPUs behind a driver that can be made to hang, to fail and to see things."""

    mode = "real"
    blocking = True

    def __init__(self) -> None:
        self.sits: dict[str, tuple[ProcessReading, ...]] = {"a": (), "b": ()}
        self.gates: dict[str, threading.Event] = {}
        self.failing: dict[str, Exception] = {}
        self.looks: list[tuple[str, float]] = []
        self.inside: dict[str, int] = {"a": 0, "b": 0}
        self.most_inside = 0
        self.on_read: Callable[[str], None] = lambda uuid: None

    def discover(self) -> tuple[NodeInfo, ...]:
        return (NodeInfo("here", tuple(DeviceInfo(u, i, "here", "H100", 80 << 30) for i, u in enumerate("ab"))),)

    def read(self, uuid: str) -> DeviceReading:
        found = self._ask(uuid)
        self.on_read(uuid)
        return DeviceReading(uuid, 0, 0, 30, 50.0, found)

    def processes(self, uuid: str) -> tuple[ProcessReading, ...]:
        self.looks.append((uuid, time.monotonic()))
        return self._ask(uuid)

    def released(self, uuid: str, owner: Owner, holder: Holder | None) -> None:
        pass

    def clear_fault(self, uuid: str) -> None:
        pass

    def close(self) -> None:
        pass

    def _ask(self, uuid: str) -> tuple[ProcessReading, ...]:
        self.inside[uuid] += 1
        self.most_inside = max(self.most_inside, self.inside[uuid])
        try:
            found = self.sits[uuid]
            if uuid in self.gates:
                assert self.gates[uuid].wait(PATIENCE)
            if uuid in self.failing:
                raise self.failing[uuid]
            return found
        finally:
            self.inside[uuid] -= 1


class Box:
    """An engine, its driver and its observer over such an inventory."""

    def __init__(self) -> None:
        self.inventory = SlowInventory()
        self.engine = Engine(self.inventory.discover())
        self.driver = Driver(self.engine, time.monotonic)
        self.observer = Observer(self.driver, self.inventory, 0.05)
        self.effects: list[do.Effect] = []
        self.driver.listen(self.observer.on_effect)
        self.driver.listen(self.effects.append)
        self.tasks: list[asyncio.Task[None]] = []

    def submit(self, gpus: int = 1, holder: Holder = HOLDER) -> Job:
        spec = JobSpec(OWNER, Request(gpus), auto_confirm=True, holder=holder)
        for effect in self.driver.handle(ev.Submit(spec)):
            if isinstance(effect, do.Accepted):
                return self.engine.jobs[effect.job]
        raise AssertionError

    def release(self, job: Job) -> None:
        assert job.lease is not None
        self.driver.handle(ev.Release(job.id, job.lease.epoch, Outcome(0)))

    def condition(self, uuid: str) -> Condition:
        return self.engine.pool.devices[uuid].condition

    def message(self, uuid: str) -> str:
        return self.engine.pool.devices[uuid].message

    def sample(self) -> None:
        """Begin the regular readings."""
        self.tasks.append(asyncio.create_task(self.observer.run()))

    async def running(self, job: Job) -> None:
        await until(lambda: isinstance(job.status, Running))


@pytest.fixture
async def box(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Box]:
    monkeypatch.setattr(module, "CALL_TIMEOUT", 0.5)
    made = Box()
    yield made
    for gate in made.inventory.gates.values():
        gate.set()
    for task in made.tasks:
        task.cancel()
    made.observer.close()


async def test_a_released_gpu_goes_on_once_it_was_seen_to_be_empty(box: Box) -> None:
    first = box.submit(2)
    await box.running(first)
    second = box.submit(2)
    box.release(first)
    assert box.condition("a") is Condition.CHECKING
    await box.running(second)
    assert sorted(uuid for uuid, _ in box.inventory.looks) == ["a", "b"]


@pytest.mark.slow
async def test_a_dirty_gpu_is_looked_at_ever_more_seldom(box: Box) -> None:
    first = box.submit(2)
    await box.running(first)
    await box.observer.read_all()
    box.inventory.sits["a"] = (OLD,)
    await box.observer.read_all()  # seen under the lease: it is the lease's own
    second = box.submit(2)
    box.release(first)
    await until(lambda: box.condition("a") is Condition.DIRTY)
    assert f"of job {first.id} still holds 1.0 GiB" in box.message("a")
    assert box.condition("b") is Condition.CLEAN
    await until(lambda: len([uuid for uuid, _ in box.inventory.looks if uuid == "a"]) == 6)
    times = [at for uuid, at in box.inventory.looks if uuid == "a"]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    for gap, least in zip(gaps, (0.02, 0.04, 0.08, 0.16, 0.32), strict=True):
        assert gap >= least * 0.95
    assert isinstance(second.status, Queued)
    box.inventory.sits["a"] = ()
    await box.running(second)


async def test_a_hanging_look_harms_only_its_own_gpu(box: Box) -> None:
    first = box.submit(2)
    await box.running(first)
    gate = box.inventory.gates["a"] = threading.Event()
    box.release(first)
    await until(lambda: box.condition("b") is Condition.CLEAN)
    other = box.submit(1)
    await box.running(other)
    assert other.lease is not None
    assert other.lease.devices == ("b",)
    await until(lambda: box.condition("a") is Condition.UNHEALTHY)
    assert "did not answer within 0.5 s" in box.message("a")
    # While that call hangs, no other one is made on the GPU.
    calls = len(box.inventory.looks)
    await asyncio.sleep(0.2)
    assert len(box.inventory.looks) == calls
    waiter = box.submit(1)
    del box.inventory.gates["a"]
    gate.set()
    await box.running(waiter)


async def test_a_hanging_reading_is_told_and_the_others_go_on(box: Box) -> None:
    gate = box.inventory.gates["b"] = threading.Event()
    box.sample()
    await until(lambda: box.condition("b") is Condition.UNHEALTHY)
    assert box.condition("a") is Condition.CLEAN
    assert box.observer.readings["b"][0].fault == "the driver did not answer within 0.5 s"
    taken = box.observer.readings["a"][1]
    await until(lambda: box.observer.readings["a"][1] > taken)
    del box.inventory.gates["b"]
    gate.set()
    await until(lambda: box.condition("b") is Condition.CLEAN)


async def test_a_failing_driver_is_a_fault_and_no_end_of_the_looking(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    box.sample()
    for error, told in ((OSError("GPU is lost"), "GPU 0: GPU is lost"), (ValueError("a bug"), "GPU 0: a bug")):
        box.inventory.failing["a"] = error
        await until(lambda told=told: box.message("a") == told)  # type: ignore[misc]
        assert box.condition("a") is Condition.UNHEALTHY
        del box.inventory.failing["a"]
        await until(lambda: box.condition("a") is Condition.CLEAN)
    # Only the second one is a bug of ours, worth a traceback.
    assert {record.exc_info[1] for record in caplog.records if record.levelno == logging.ERROR and record.exc_info} == {
        error
    }


async def test_a_failing_look_does_not_lose_the_gpu(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    first = box.submit(2)
    await box.running(first)
    box.inventory.failing["a"] = ValueError("a bug")
    box.release(first)
    await until(lambda: box.condition("a") is Condition.UNHEALTHY)
    del box.inventory.failing["a"]
    await box.running(box.submit(2))


async def test_one_call_at_a_time_for_each_gpu(box: Box) -> None:
    """A regular reading and the look before a hand-over may fall together."""
    box.sample()
    for _ in range(30):
        job = box.submit(2)
        await box.running(job)
        box.release(job)
    await until(lambda: box.condition("a") is box.condition("b") is Condition.CLEAN)
    assert box.inventory.most_inside == 1


async def test_a_reading_from_before_a_hand_over_accuses_nobody(box: Box) -> None:
    """It was begun under the old lease and is judged under the new one: those processes are gone by now."""
    first, other = box.submit(1), box.submit(1)
    await box.running(other)
    read: list[str] = []
    box.inventory.on_read = read.append
    box.inventory.sits["a"] = (OLD,)
    gate = box.inventory.gates["b"] = threading.Event()
    reading = asyncio.create_task(box.observer.read_all())
    await until(lambda: read == ["a"])
    # The reading of all still waits for the other GPU, and this one changes hands.
    box.inventory.sits["a"] = ()
    second = box.submit(1, Holder(700, 3))
    box.release(first)
    await box.running(second)
    assert not reading.done()
    gate.set()
    await reading
    await box.observer.read_all()
    assert read == ["a", "b", "a", "b"] or read == ["a", "b", "b", "a"]
    assert [effect for effect in box.effects if isinstance(effect, do.Notify)] == []
