"""How long a restart takes, with much to take over."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time

import grpc

from benchmarks.jobs import Client, request, submit
from benchmarks.measure import Effort, Rounds, Row, Target
from benchmarks.processes import Server, scheduler

RUNNING = 100
FLOOR = "start on an empty state"
#: Seconds in which all jobs are to be running, or back.
PATIENCE = 60.0
_BACK = re.compile(r"nobody is missing any more .*?after=([0-9.e-]+)")


def run(effort: Effort) -> list[Row]:
    with scheduler(RUNNING) as server, scheduler(RUNNING) as empty:
        try:
            return _measure(effort, server, empty)
        finally:
            _end_all(server)


def _measure(effort: Effort, server: Server, empty: Server) -> list[Row]:
    queued = effort.waiters
    asyncio.run(submit(server, RUNNING, request("sleep", "3600")))
    _wait_until_running(server)
    asyncio.run(submit(server, queued, request("true")))
    serving, back = Rounds.empty(), Rounds.empty()
    for _ in range(max(2, effort.rounds // 3)):
        floor = _restart(empty)
        ours = _restart(server)
        serving.ours.append([ours])
        serving.floor.append([floor])
        back.ours.append([ours + _returned(server)])
        back.floor.append([floor])
    with Client(server) as client:
        status = client.status()
    note = f"{status.jobs_running} running and {status.jobs_queued:,} queued in the end"
    return [
        serving.row(
            f"`kill -9` and start with {queued:,} batch jobs queued and {RUNNING} running: to the first answer",
            "ms",
            FLOOR,
            Target(2000, of_ratio=False),
            "most of it is the import of modules",
        ),
        back.row("the same: until all running ones are back", "ms", FLOOR, Target(3000, of_ratio=False), note),
    ]


def _restart(server: Server) -> float:
    """Kill it, and give the milliseconds from its start to its first answer."""
    server.kill()
    began = time.perf_counter()
    server.start()
    with grpc.insecure_channel(server.address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        grpc.channel_ready_future(channel).result(PATIENCE)
    with Client(server) as client:
        client.status()
    return (time.perf_counter() - began) * 1e3


def _returned(server: Server) -> float:
    """Milliseconds from when it served until nobody was missing, as it says itself."""
    deadline = time.monotonic() + PATIENCE
    while (found := _BACK.search(server.log)) is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all jobs are back after {PATIENCE:g} s")
        time.sleep(0.02)
    return float(found[1]) * 1e3


def _wait_until_running(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    with Client(server) as client:
        while sum(bool(job.holder_pid) for job in client.jobs()) < RUNNING:
            if time.monotonic() > deadline:
                raise RuntimeError(f"not all jobs run after {PATIENCE:g} s")
            time.sleep(0.1)


def _end_all(server: Server) -> None:
    """Their supervisors outlive the server, as they should; but not the benchmark. Each one's agent ends the rest."""
    with Client(server) as client:
        holders = [job.holder_pid for job in client.jobs() if job.holder_pid]
    server.kill()
    for pid in holders:
        os.kill(pid, signal.SIGKILL)
