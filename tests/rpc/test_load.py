"""Crowds, and readers that do not read: nobody is lost, nobody else waits for them, and memory stays bounded."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2, scheduler_pb2_grpc
from rpc import http2
from rpc.calls import OPTIONS, PATIENCE, Client
from rpc.servers import assert_quiet, cpu_seconds, rss
from support.server import Server

CROWD, CHANNELS = 3000, 20
#: Streams that are never read, of each kind.
DEAF = 60
WINDOWS = {"one byte": 1, "the usual": None}


@pytest.mark.slow
async def test_thousands_of_calls_at_once_are_all_answered(box: Server, client: Client) -> None:
    """A stock server loses a fifth of them with a bare CANCELLED. This is what a restart looks like."""
    await client.holder(8)
    assert box.process is not None
    before = rss(box.process.pid)
    channels = [grpc.aio.insecure_channel(box.address, options=OPTIONS) for _ in range(CHANNELS)]
    stubs = [scheduler_pb2_grpc.SchedulerStub(channel) for channel in channels]
    request = scheduler_pb2.AcquireRequest(resources=resources_pb2.ResourceRequest(gpus=1))
    began = time.monotonic()
    calls = [stubs[number % CHANNELS].Acquire(request) for number in range(CROWD)]
    try:
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(call.read() for call in calls), return_exceptions=True)
        took = time.monotonic() - began
        wrong = [answer for answer in answers if not isinstance(answer, scheduler_pb2.AcquireResponse)]
        assert not wrong, f"{len(wrong)} of {CROWD} were lost, such as {wrong[0]!r}"
        assert len({answer.accepted.job_id for answer in answers}) == CROWD
        assert (await client.status()).jobs_queued == CROWD
        # Each is told its place as well, with its acceptance or right after it.
        async with asyncio.timeout(60):
            for answer, call in list(zip(answers, calls, strict=True))[:: CROWD // 50]:
                place = answer if answer.HasField("queued") else await call.read()
                assert place.queued.position
        each = (rss(box.process.pid) - before) / CROWD
        assert each < 60 * 1024, f"{each / 1024:.0f} KiB for a waiting stream"
        assert took < 30, f"{took:.1f} s"
    finally:
        for call in calls:
            call.cancel()
        for channel in channels:
            await channel.close()


@pytest.mark.slow
async def test_the_first_of_a_crowd_gets_gpus_while_it_is_still_coming_in(client: Client) -> None:
    streams = [client.acquire(1, auto_confirm=True) for _ in range(400)]
    granted = [asyncio.create_task(stream.until("granted")) for stream in streams]
    done: set[asyncio.Task[object]] = set()
    left = set(granted)
    while left:
        done, left = await asyncio.wait(left, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        assert done, f"{len(left)} of them were never granted"
        assert (await client.status()).gpus_allocated <= 8
        for stream, task in zip(streams, granted, strict=True):
            if task in done:
                stream.cancel()
    jobs = [int(stream.job_id) for stream in streams]
    assert len(set(jobs)) == 400


@pytest.fixture(params=WINDOWS.values(), ids=WINDOWS)
def crowd_of_the_deaf(request: pytest.FixtureRequest, box: Server) -> Iterator[Callable[[], None]]:
    """Streams of every kind that are opened and never read; call it to open them."""
    connections: list[socket.socket] = []
    acquire = scheduler_pb2.AcquireRequest(resources=resources_pb2.ResourceRequest(gpus=1), name="deaf")

    def begin() -> None:
        for method, message in (
            ("Acquire", acquire.SerializeToString()),
            ("WatchJobs", b""),
            ("WatchGpus", b""),
        ):
            connections.extend(
                http2.deaf(box.address, f"/gpusched.v1.Scheduler/{method}", message, DEAF, request.param)
            )

    yield begin
    for connection in connections:
        connection.close()


@pytest.mark.slow
async def test_who_does_not_read_costs_little_and_delays_nobody(
    box: Server, client: Client, crowd_of_the_deaf: Callable[[], None]
) -> None:
    assert box.process is not None
    pid = box.process.pid
    holder = await client.holder(8)
    watched = await client.waiter(1, priority=50)
    crowd_of_the_deaf()
    await client.eventually(client.status, lambda status: status.jobs_queued == DEAF + 1)

    async def changes(count: int) -> float:
        """So many comings and goings ahead of everybody; gives how long a call took meanwhile, at worst."""
        worst = 0.0
        for _ in range(count // 40):
            streams = [client.acquire(1, priority=60) for _ in range(20)]
            for stream in streams:
                await stream.enter()
            began = time.monotonic()
            await client.status()
            worst = max(worst, time.monotonic() - began)
            for stream in streams:
                stream.cancel()
        return worst

    await changes(200)  # until then it warms up
    before, cpu = rss(pid), cpu_seconds(pid)
    worst = await changes(1600)
    assert rss(pid) - before < 25 << 20
    assert worst < 1.0
    assert cpu_seconds(pid) - cpu < 10.0
    # The one that reads has been told its place all along, and gets the GPUs at once.
    await watched.queued_as(lambda queued: queued.position == 1 and queued.total == DEAF + 1)
    began = time.monotonic()
    holder.cancel()
    await watched.granted()
    assert time.monotonic() - began < 1.0
    assert (await client.job(watched.job_id)).state == job_pb2.JOB_STATE_RUNNING


async def test_calls_begun_and_cancelled_in_one_breath(box: Server, client: Client) -> None:
    """Rapid resets: headers, request and reset in one packet, thousands of times over one connection."""
    host, port = box.address.rsplit(":", 1)
    acquire = scheduler_pb2.AcquireRequest(resources=resources_pb2.ResourceRequest(gpus=1)).SerializeToString()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(http2.PREFACE + http2.settings() + http2.acknowledge())
        try:
            for first in range(0, 4000, 100):
                numbers = range(first, first + 100)
                connection.sendall(
                    b"".join(
                        http2.call("/gpusched.v1.Scheduler/Acquire", acquire, 2 * number + 1)
                        + http2.reset(2 * number + 1)
                        for number in numbers
                    )
                )
        except OSError:
            pass  # the server may have had enough of us
    stream = await client.holder(8)
    assert len(stream.grant.gpus) == 8


@pytest.fixture
def frugal() -> Iterator[Server]:
    """A server that was started with a low soft limit of open files, as shells and services have one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1000:
        pytest.skip("this system allows no more")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    server = Server("4")
    try:
        server.start()
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        yield server
        assert_quiet(server.log)
    finally:
        server.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_more_clients_than_the_usual_limit_of_open_files(frugal: Server) -> None:
    """Each waiting gsrun has a connection of its own; at the limit, nobody else gets in."""
    host, port = frugal.address.rsplit(":", 1)
    connections = [socket.create_connection((host, int(port))) for _ in range(400)]
    try:
        for connection in connections:
            connection.sendall(http2.PREFACE + http2.settings())
        client = Client(frugal.address)
        assert (await client.status()).gpus_total == 4
        await client.close()
    finally:
        for connection in connections:
            connection.close()
