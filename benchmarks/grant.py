"""From a stream opened to `Granted`, on an idle server."""

from __future__ import annotations

import asyncio
import time

from benchmarks.measure import Effort, Rounds, Row, Target
from benchmarks.processes import bare, scheduler
from benchmarks.streams import Bare, Scheduler, cancelled, read_messages, read_until

#: Seconds from one sample to the next, in which the end of the last stream is dealt with.
PAUSE = 0.002


def run(effort: Effort) -> list[Row]:
    with scheduler(8) as ours, bare() as floor:
        return asyncio.run(_measure(effort, ours.address, floor.address))


async def _measure(effort: Effort, ours: str, floor: str) -> list[Row]:
    service, nothing = Scheduler(ours), Bare(floor)
    await service.ping()
    await nothing.ping()
    rounds = Rounds.empty()
    for number in range(effort.rounds + 1):
        granted, two = [], []
        for _ in range(effort.samples):
            granted.append(await _granted(service))
            two.append(await _two(nothing))
        if number:  # the first round warms up
            rounds.ours.append(granted)
            rounds.floor.append(two)
    await service.channel.close()
    await nothing.channel.close()
    return [rounds.row("stream opened to `Granted`, idle server", "ms", "bare two-message stream", Target(2.0))]


async def _granted(service: Scheduler) -> float:
    await asyncio.sleep(PAUSE)
    began = time.perf_counter()
    with cancelled(service.acquire()) as stream:
        await read_until(stream, "granted")
        return (time.perf_counter() - began) * 1e3


async def _two(nothing: Bare) -> float:
    await asyncio.sleep(PAUSE)
    began = time.perf_counter()
    with cancelled(nothing.two(b"")) as stream:
        await read_messages(stream, 2)
        return (time.perf_counter() - began) * 1e3
