"""A queue of 10,000: memory, hand-off, and processor time while it moves."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.measure import Effort, Rounds, Row, Spread, Target
from benchmarks.processes import ROOT, Server, bare, clean_environment, cpu_seconds, resident_bytes, scheduler
from benchmarks.streams import EOF, Scheduler
from gpusched.v1 import scheduler_pb2

#: Processes that the waiters of a long queue are spread over.
PROCESSES = 4
FEW = 10
#: A crowd that has not done what it was told within this time never will. Longer than its own deadline.
ANSWER_SECONDS = 600.0
#: Seconds between two hand-offs: the holder's work.
PAUSE = 0.01


def run(effort: Effort) -> list[Row]:
    return asyncio.run(_measure(effort))


async def _measure(effort: Effort) -> list[Row]:
    count = effort.waiters
    many_text = f"{count:,} waiting"
    with bare() as nothing:
        before = resident_bytes(nothing.pid)
        async with _crowds("bare", nothing, count):
            floor = (resident_bytes(nothing.pid) - before) / count / 1024
    with scheduler(1) as few, scheduler(1) as many:
        in_front = effort.rounds * effort.handoffs + 1
        async with _fronts(few, FEW) as short, _fronts(many, in_front) as long:
            before = resident_bytes(many.pid)
            async with _crowds("scheduler", many, count) as crowd:
                ours = (resident_bytes(many.pid) - before) / count / 1024
                latency = await _hand_offs(effort, short, long)
                short.leave()
                long.leave()
                async with _crowds("scheduler", few, FEW + 1) as small:
                    cost = await _cycles(effort, few, small, many, crowd)
                drained = await _drain(many, crowd, count)
    memory = Row(
        f"server memory for each waiter, {many_text}",
        "KiB",
        Spread.of([ours]),
        "stream of the bare server",
        Spread.of([floor]),
        Spread.of([ours / floor]),
        Target(60.0, of_ratio=False),
    )
    return [
        memory,
        latency.row(f"lease released to `Granted` at the next, {many_text}", "ms", f"with {FEW} waiting", Target(3.0)),
        cost.row(f"processor time of the server for each grant, {many_text}", "ms", f"with {FEW} waiting"),
        *drained,
    ]


# -- hand-offs ---------------------------------------------------------------------------------------------


class _Waiter:
    """A stream that is read as it comes, so that old news do not stand before the grant."""

    def __init__(self, service: Scheduler) -> None:
        self._stream = service.acquire()
        loop = asyncio.get_running_loop()
        self.queued: asyncio.Future[None] = loop.create_future()
        self.granted: asyncio.Future[tuple[float, Any]] = loop.create_future()
        self.accepted: Any = None
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while not self.granted.done():
            response = await self._stream.read()
            if response is EOF:
                raise RuntimeError(f"a waiter's stream ended: {await self._stream.details()}")
            if response.HasField("accepted"):
                self.accepted = response.accepted
            if response.WhichOneof("event") == "granted":
                self.granted.set_result((time.perf_counter(), response.granted))
            elif response.HasField("queued") and not self.queued.done():
                self.queued.set_result(None)

    def leave(self) -> None:
        self._task.cancel()
        self._stream.cancel()


class _Front:
    """The holder of a server's one GPU, and those who wait right behind it."""

    def __init__(self, service: Scheduler) -> None:
        self.service = service
        self.holder = _Waiter(service)
        self.waiting: deque[_Waiter] = deque()

    async def join(self) -> None:
        """One more waits."""
        waiter = _Waiter(self.service)
        await waiter.queued
        self.waiting.append(waiter)

    async def hand_off(self) -> float:
        """The holder releases; gives the milliseconds until the next one has the GPU."""
        _, granted = await self.holder.granted
        following = self.waiting.popleft()
        request = scheduler_pb2.ReleaseRequest(
            job_id=granted.job_id, resume_token=self.holder.accepted.resume_token, epoch=granted.epoch
        )
        began = time.perf_counter()
        release = self.service.stub.Release(request)
        ended, _ = await following.granted
        await release
        self.holder.leave()
        self.holder = following
        return (ended - began) * 1e3

    def leave(self) -> None:
        for waiter in (*self.waiting, self.holder):
            waiter.leave()


@asynccontextmanager
async def _fronts(server: Server, count: int) -> AsyncIterator[_Front]:
    service = Scheduler(server.address)
    await service.ping()
    front = _Front(service)
    await front.holder.granted
    for _ in range(count):
        await front.join()
    try:
        yield front
    finally:
        front.leave()
        await service.channel.close()


async def _hand_offs(effort: Effort, short: _Front, long: _Front) -> Rounds:
    rounds = Rounds.empty()
    for _ in range(effort.rounds):
        with_few, with_many = [], []
        for _ in range(effort.handoffs):
            with_few.append(await short.hand_off())
            await short.join()
            await asyncio.sleep(PAUSE)
            with_many.append(await long.hand_off())
            await asyncio.sleep(PAUSE)
        rounds.ours.append(with_many)
        rounds.floor.append(with_few)
    return rounds


# -- processor time ----------------------------------------------------------------------------------------


async def _cycles(effort: Effort, few: Server, small: _Crowds, many: Server, crowd: _Crowds) -> Rounds:
    """The GPU goes round as fast as it can; the server's processor time for each grant, in milliseconds."""
    rounds = Rounds.empty()
    for _ in range(effort.rounds):
        rounds.ours.append([await _cycle(many, crowd, effort.seconds)])
        rounds.floor.append([await _cycle(few, small, effort.seconds)])
    return rounds


async def _cycle(server: Server, crowd: _Crowds, seconds: float) -> float:
    before = await crowd.hold()
    cpu = cpu_seconds(server.pid)
    await crowd.tell("go")
    await asyncio.sleep(seconds)
    after = await crowd.hold()
    return (cpu_seconds(server.pid) - cpu) / (after["grants"] - before["grants"]) * 1e3


async def _drain(server: Server, crowd: _Crowds, count: int) -> list[Row]:
    before = await crowd.hold()
    cpu, began = cpu_seconds(server.pid), time.perf_counter()
    await crowd.tell("drain")
    after = await crowd.counts()
    passed, cpu = time.perf_counter() - began, cpu_seconds(server.pid) - cpu
    grants, updates = after["grants"] - before["grants"], after["updates"] - before["updates"]
    return [
        Row(
            "waiters that got the GPU in the end",
            "",
            Spread.of([float(grants)]),
            "waiters",
            Spread.of([float(count)]),
            Spread.of([grants / count]),
            Target(1.0, at_most=False),
            f"{after['lost']} streams were lost",
        ),
        Row(
            f"time in which one GPU goes through all {count:,}",
            "s",
            Spread.of([passed]),
            note=f"server: {cpu:.1f} s of processor time, {cpu / grants * 1e3:.2f} ms a grant; "
            f"{updates / grants:.1f} places told for each grant",
        ),
    ]


class _Crowds:
    """Processes full of waiters, as one."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    async def tell(self, word: str) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n".encode())
            await process.stdin.drain()

    async def hold(self) -> dict[str, int]:
        await self.tell("hold")
        return await self.counts()

    async def counts(self) -> dict[str, int]:
        """The sums of what each one says."""
        total: dict[str, int] = {}
        for line in await self.lines():
            for name, value in json.loads(line).items():
                total[name] = total.get(name, 0) + value
        return total

    async def lines(self) -> list[bytes]:
        """The next line of each. Raises RuntimeError if one has ended, or says nothing for long."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                lines = [await process.stdout.readline() for process in self._processes if process.stdout is not None]
        except TimeoutError:
            raise RuntimeError(f"a process full of waiters said nothing for {ANSWER_SECONDS:g} s") from None
        if not all(lines):
            raise RuntimeError("a process full of waiters ended; what it said on stderr is above")
        return lines


@asynccontextmanager
async def _crowds(what: str, server: Server, count: int) -> AsyncIterator[_Crowds]:
    """So many waiters, each of which has had its first answer."""
    number = min(PROCESSES, count)
    processes = []
    try:
        for index in range(number):
            share = count // number + (index < count % number)
            processes.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "benchmarks.crowd", what, server.address, str(share)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    cwd=ROOT,
                    env=clean_environment(),
                )
            )
        crowds = _Crowds(processes)
        await crowds.lines()
        yield crowds
    finally:
        for process in processes:
            process.kill()
            await process.wait()
