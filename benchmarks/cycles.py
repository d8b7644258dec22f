"""How many times a second a GPU is acquired and released, 64 clients at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from benchmarks.measure import Effort, Rounds, Row, Target
from benchmarks.processes import Server, bare, cpu_seconds, scheduler
from benchmarks.streams import Bare, Scheduler, cancelled, read_granted, read_messages

CLIENTS = 64
#: More than clients, so that nobody waits for the end of another's stream.
GPUS = 128
FLOOR = "bare two-message stream, opened, read and cancelled"


def run(effort: Effort) -> list[Row]:
    with scheduler(GPUS) as ours, scheduler(8) as busy, bare() as floor:
        return asyncio.run(_measure(effort, ours, busy, floor))


async def _measure(effort: Effort, ours: Server, busy: Server, floor: Server) -> list[Row]:
    free, queued, nothing = Scheduler(ours.address), Scheduler(busy.address), Bare(floor.address)
    for service in (free, queued, nothing):
        await service.ping()

    async def acquire(service: Scheduler) -> None:
        with cancelled(service.acquire_bytes()) as stream:
            await read_granted(stream)

    async def two() -> None:
        with cancelled(nothing.two(b"")) as stream:
            await read_messages(stream, 2)

    rate, cost, waiting = Rounds.empty(), Rounds.empty(), Rounds.empty()
    for number in range(effort.rounds + 1):
        our_rate, our_cost = await _cycle(lambda: acquire(free), effort.seconds, ours)
        floor_rate, floor_cost = await _cycle(two, effort.seconds, floor)
        queue_rate, _ = await _cycle(lambda: acquire(queued), effort.seconds, busy)
        if number:  # the first round warms up
            for kept, ours_now, floor_now in (
                (rate, our_rate, floor_rate),
                (cost, our_cost, floor_cost),
                (waiting, queue_rate, floor_rate),
            ):
                kept.ours.append([ours_now])
                kept.floor.append([floor_now])
    for service in (free, queued, nothing):
        await service.channel.close()
    return [
        rate.row(
            f"acquire and release, {CLIENTS} at a time on {GPUS} GPUs",
            "/s",
            FLOOR,
            Target(0.7, at_most=False),
            "client and server share the machine's cores; both clients send and read bytes",
        ),
        cost.row("the same: processor time of the server", "ms each", FLOOR),
        waiting.row(
            f"acquire and release, {CLIENTS} at a time on 8 GPUs",
            "/s",
            FLOOR,
            note="most wait in the queue first, and are told their place",
        ),
    ]


async def _cycle(cycle: Callable[[], Awaitable[None]], seconds: float, server: Server) -> tuple[float, float]:
    """Let all clients go round for a while. Gives rounds a second, and the server's processor time for each (ms)."""
    done = 0
    cpu, began = cpu_seconds(server.pid), time.perf_counter()
    end = began + seconds

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await cycle()
            done += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    passed = time.perf_counter() - began
    return done / passed, (cpu_seconds(server.pid) - cpu) / done * 1e3
