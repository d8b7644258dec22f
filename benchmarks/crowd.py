"""Many waiters in one process, told what to do on stdin. `python -m benchmarks.crowd scheduler|bare ADDRESS COUNT`.

Says `ready` when every stream has had its first answer. Then, a line each:

- `go`: whoever is granted the GPU gives it back at once and queues again.
- `hold`: whoever is granted the GPU keeps it, until the next word.
- `drain`: whoever is granted the GPU gives it back and is done.

After `hold` at once, and after `drain` when all are done, comes a line of JSON with what was counted so far.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

import grpc.aio

from benchmarks.streams import EOF, Bare, Scheduler, cancelled

STREAMS_PER_CONNECTION = 50
#: Within this time every stream has its first answer.
READY_SECONDS = 180.0


class Crowd:
    """The waiters of this process."""

    def __init__(self) -> None:
        self.grants = 0
        self.updates = 0
        self.lost = 0
        self.answered = 0
        self.draining = False
        self.go = asyncio.Event()
        self._changed = asyncio.Event()

    def changed(self) -> None:
        self._changed.set()

    async def until_answered(self, count: int) -> None:
        """Until so many streams have had their first answer, or have failed."""
        while self.answered + self.lost < count:
            self._changed.clear()
            await self._changed.wait()

    async def wait_for_gpu(self, service: Scheduler) -> None:
        """One waiter: queue, take the GPU, give it back, and so on until the crowd is drained."""
        first = True
        while True:
            with cancelled(service.acquire()) as stream:
                if not await self._kept(stream, self._granted(stream, first)):
                    return
                first = False
                await self.go.wait()
                self.grants += 1
            if self.draining:
                return

    async def _granted(self, stream: Any, first: bool) -> bool:
        while (response := await stream.read()) is not EOF:
            match response.WhichOneof("event"):
                case "granted":
                    self._answer(first)
                    return True
                case "queued":
                    self._answer(first)
                    first = False
                    self.updates += 1
        return False

    async def _kept(self, stream: Any, reading: Awaitable[bool]) -> bool:
        """What was read, False if the stream is lost; how the first one was lost is told on stderr."""
        why = "it ended"
        try:
            if await reading:
                return True
        except grpc.aio.AioRpcError as error:
            why = f"{error.code().name}: {error.details()}"
        if not self.lost:
            print(f"the first stream that was lost: {why}", file=sys.stderr, flush=True)
        self.lost += 1
        self.changed()
        return False

    def _answer(self, first: bool) -> None:
        if first:
            self.answered += 1
            self.changed()

    async def sit(self, stream: Any) -> None:
        """One stream of the bare server: a message, then nothing."""
        if await self._kept(stream, self._message(stream)):
            self._answer(first=True)
            await stream.read()

    async def _message(self, stream: Any) -> bool:
        return await stream.read() is not EOF

    def say(self) -> None:
        print(json.dumps({"grants": self.grants, "updates": self.updates, "lost": self.lost}), flush=True)


async def main(what: str, address: str, count: str) -> None:
    crowd = Crowd()
    waiters: list[asyncio.Task[None]] = []
    number = int(count)
    for begin in range(0, number, STREAMS_PER_CONNECTION):
        several = min(STREAMS_PER_CONNECTION, number - begin)
        if what == "scheduler":
            service = Scheduler(address)
            waiters += [asyncio.create_task(crowd.wait_for_gpu(service)) for _ in range(several)]
        else:
            nothing = Bare(address)
            waiters += [asyncio.create_task(crowd.sit(nothing.hold(b""))) for _ in range(several)]
    try:
        async with asyncio.timeout(READY_SECONDS):
            await crowd.until_answered(number)
    except TimeoutError:
        unheard = number - crowd.answered - crowd.lost
        sys.exit(f"{unheard} of {number} streams had no answer within {READY_SECONDS:g} s, and {crowd.lost} were lost")
    if crowd.lost:
        sys.exit(f"{crowd.lost} of {number} streams were lost")
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while word := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        match word:
            case "go":
                crowd.go.set()
            case "hold":
                crowd.go.clear()
                crowd.say()
            case "drain":
                crowd.draining = True
                crowd.go.set()
                await asyncio.gather(*waiters)
                crowd.say()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
