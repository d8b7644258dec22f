"""From `kill -9` of a holder to `Granted` at the next waiter."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.measure import Effort, Rounds, Row, Target
from benchmarks.processes import ROOT, Server, bare, clean_environment, gsrun_command, scheduler
from benchmarks.streams import Bare, Scheduler, cancelled, read_messages, read_until

#: Seconds between the last word of a waiter and the kill, so that nothing else is going on.
PAUSE = 0.02
#: Seconds after which something is wrong.
PATIENCE = 20.0

FLOOR = "bare server: one stream killed, a message to another"


def run(effort: Effort) -> list[Row]:
    with scheduler(1) as ours, bare() as floor:
        return asyncio.run(_measure(effort, ours, floor))


async def _measure(effort: Effort, ours: Server, floor: Server) -> list[Row]:
    service, nothing = Scheduler(ours.address), Bare(floor.address)
    await service.ping()
    await nothing.ping()
    rounds, trees = Rounds.empty(), Rounds.empty()
    per_round = 4
    for _ in range(effort.kills // per_round):
        for kept in (rounds, trees):
            kept.ours.append([])
            kept.floor.append([])
        for _ in range(per_round):
            with _raw("scheduler", ours) as holder, _raw("bare", floor) as other:
                rounds.ours[-1].append(await _to_grant(service, holder))
                rounds.floor[-1].append(await _to_message(nothing, other))
            with _gsrun(ours) as holder, _raw("bare", floor) as other:
                trees.ours[-1].append(await _to_grant(service, holder))
                trees.floor[-1].append(await _to_message(nothing, other))
    await service.channel.close()
    await nothing.channel.close()
    return [
        rounds.row("`kill -9` of a holder to `Granted` at the next waiter", "ms", FLOOR, Target(2.0)),
        trees.row(
            "`kill -9` of a `gsrun` to `Granted` at the next waiter",
            "ms",
            FLOOR,
            note="its command is killed first, and seen to be dead",
        ),
    ]


async def _to_grant(service: Scheduler, kill: Callable[[], None]) -> float:
    async with asyncio.timeout(PATIENCE):
        with cancelled(service.acquire()) as stream:
            await read_until(stream, "queued")
            await asyncio.sleep(PAUSE)
            began = time.perf_counter()
            kill()
            await read_until(stream, "granted")
            return (time.perf_counter() - began) * 1e3


async def _to_message(nothing: Bare, kill: Callable[[], None]) -> float:
    async with asyncio.timeout(PATIENCE):
        with cancelled(nothing.wait(b"")) as stream:
            await read_messages(stream, 1)
            await asyncio.sleep(PAUSE)
            began = time.perf_counter()
            kill()
            await read_messages(stream, 1)
            return (time.perf_counter() - began) * 1e3


@contextmanager
def _raw(what: str, server: Server) -> Iterator[Callable[[], None]]:
    """A process that holds a stream and nothing else; gives what kills it."""
    command = [sys.executable, "-m", "benchmarks.holder", what, server.address]
    with _held(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=clean_environment())) as kill:
        yield kill


@contextmanager
def _gsrun(server: Server) -> Iterator[Callable[[], None]]:
    """A gsrun whose command sleeps; gives what kills its front, the process that a shell waits for."""
    command = [*gsrun_command(), "-q", "-n", "1", "sh", "-c", "echo held; exec sleep 1000"]
    with _held(subprocess.Popen(command, stdout=subprocess.PIPE, env=server.environment())) as kill:
        yield kill


@contextmanager
def _held(process: subprocess.Popen[bytes]) -> Iterator[Callable[[], None]]:
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"held\n":
            raise RuntimeError(f"the holder ended with {process.wait()}: {process.args!r}")
        yield process.kill
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
