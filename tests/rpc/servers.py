"""Servers for the tests of the service, and what must be true of each after every test."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpusched.v1 import resources_pb2, scheduler_pb2
from rpc.calls import PATIENCE, Client
from support.server import Server, clean_environment

FORWARDER = Path(__file__).with_name("forwarder.py")
#: A user id that is not ours and has no name.
OTHER_UID = 61234


@contextmanager
def running(simulate: str, *args: str) -> Iterator[Server]:
    """A server for as long as the block lasts, whose log must be clean at the end."""
    server = Server(simulate, args=("--sample-interval", "100ms", *args))
    try:
        server.start()
        yield server
        assert_quiet(server.log)
    finally:
        server.close()


def assert_quiet(log: str) -> None:
    """No traceback, no error, no warning: nothing that a client does may cause one."""
    for line in log.splitlines():
        words = line.split(maxsplit=2)
        loud = "Traceback" in line or (len(words) > 1 and words[1] in ("ERROR", "WARN", "FATAL"))
        assert not loud, f"the server's log is not clean:\n{log[-5000:]}"


async def assert_idle(address: str) -> None:
    """Nobody holds or waits for anything, and every GPU is free: what came has gone without a trace."""
    client = Client(address)
    try:

        async def look() -> tuple[scheduler_pb2.GetStatusResponse, list[resources_pb2.Gpu]]:
            return await client.status(), await client.gpus()

        def idle(seen: tuple[scheduler_pb2.GetStatusResponse, list[resources_pb2.Gpu]]) -> bool:
            status, gpus = seen
            free = all(gpu.state == resources_pb2.GPU_STATE_FREE for gpu in gpus)
            return free and not (status.jobs_running or status.jobs_queued or status.gpus_allocated or status.paused)

        await client.eventually(look, idle, PATIENCE)
    finally:
        await client.close()


@contextmanager
def another_user(address: str, uid: int = OTHER_UID) -> Iterator[str]:
    """Address through which calls reach the server as another user's; to be skipped unless run by root.

    A forwarder of that user's makes the connections: the kernel tells the server who made the socket.
    """
    process = subprocess.Popen(
        [sys.executable, str(FORWARDER), address, str(uid)], stdout=subprocess.PIPE, env=clean_environment()
    )
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that does nothing, killed at the end of the block."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def rss(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no VmRSS")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def now() -> float:
    return time.monotonic()
