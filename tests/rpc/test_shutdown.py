"""The server goes: holders are told, nothing is ended by it, and it is quick; and there is never a second one."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gpusched.v1 import resources_pb2, scheduler_pb2
from rpc import http2
from rpc.calls import PATIENCE, Client, Refusal, until
from rpc.servers import assert_quiet
from support.server import Server, free_port


@pytest.fixture
def mortal() -> Iterator[Server]:
    """A server that a test may end."""
    with Server("4", args=("--sample-interval", "100ms")) as server:
        yield server
        assert_quiet(server.log)


async def ended(server: Server) -> int:
    """Exit status of a server that is ending."""
    process = server.process
    assert process is not None
    await until(lambda: process.poll() is not None)
    return int(process.returncode)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_holders_are_told_before_the_server_goes(mortal: Server, number: signal.Signals) -> None:
    assert mortal.process is not None
    client = Client(mortal.address)
    try:
        holder, waiter = await client.holder(4), await client.waiter(1)
        health = health_pb2_grpc.HealthStub(client.channel).Watch(
            health_pb2.HealthCheckRequest(service="gpusched.v1.Scheduler")
        )
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        watching = client.scheduler.WatchJobs(scheduler_pb2.WatchJobsRequest())
        gpus = client.scheduler.WatchGpus(scheduler_pb2.WatchGpusRequest())
        waiting = client.scheduler.WaitJob(scheduler_pb2.WaitJobRequest(job_id=holder.job_id))
        for call in (watching, gpus, waiting):
            await call.read()
        began = time.monotonic()
        mortal.process.send_signal(number)
        mortal.process.send_signal(number)  # a second one is no harm
        for stream in (holder, waiter):
            notice = await stream.until("notice")
            assert notice.kind == scheduler_pb2.NOTICE_KIND_SERVER_STOPPING
            assert notice.job_id == stream.job_id
            assert "stays yours" in notice.message
            assert not notice.HasField("deadline")
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for stream in (holder, waiter):
            end = await stream.end()
            assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
            assert "ended" not in stream.seen  # nothing is ended by it
        for call in (watching, gpus, waiting):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while await call.read() is not grpc.aio.EOF:
                    pass
            found = Refusal.of(caught.value)
            assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
            assert found.message == "the scheduler is stopping"
        assert await ended(mortal) == 0
        assert time.monotonic() - began < 5.0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.scheduler.GetStatus(scheduler_pb2.GetStatusRequest(), timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await client.close()
    # The end of the streams was the server's doing, and says nothing about the jobs.
    log = mortal.log.split("stopping", 1)[1]
    assert "end job=" not in log


@pytest.mark.slow
async def test_streams_that_nobody_reads_do_not_keep_it(mortal: Server) -> None:
    assert mortal.process is not None
    client = Client(mortal.address)
    acquire = scheduler_pb2.AcquireRequest(resources=resources_pb2.ResourceRequest(gpus=1), auto_confirm=True)
    connections = []
    for method, message in (("Acquire", acquire.SerializeToString()), ("WatchJobs", b""), ("WatchGpus", b"")):
        connections += http2.deaf(mortal.address, f"/gpusched.v1.Scheduler/{method}", message, 20, 1)
    await client.eventually(client.status, lambda status: status.jobs_queued == 16)
    await client.close()
    began = time.monotonic()
    mortal.process.terminate()
    assert await ended(mortal) == 0
    assert time.monotonic() - began < 5.0
    for connection in connections:
        connection.close()


async def test_nothing_new_is_granted_while_it_goes(mortal: Server) -> None:
    assert mortal.process is not None
    client = Client(mortal.address)
    holder = await client.holder(4)
    waiter = await client.waiter(4)
    mortal.process.terminate()
    await holder.until("notice")
    holder.cancel()
    await waiter.end()
    assert "granted" not in waiter.seen
    await client.close()
    assert await ended(mortal) == 0


def attempt(*arguments: str) -> tuple[int, str]:
    """Try to serve; gives the exit status and what was said."""
    server = Server("4", port=1)
    command = [*server.command[: server.command.index("--port")], *arguments]
    try:
        done = subprocess.run(
            command, env=server.server_env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
        )
    finally:
        server.close()
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
async def test_a_second_server_on_the_port_is_refused(box: Server, client: Client, tmp_path: Path) -> None:
    stream = await client.holder(1)
    status, said = await asyncio.to_thread(attempt, "--port", str(box.port), "--state-dir", str(tmp_path))
    assert status == 1
    assert f"port {box.port} on 127.0.0.1 is taken" in said
    assert "--port" in said
    assert "Traceback" not in said
    assert said.count("\n") <= 2
    # The first one has not noticed.
    await stream.nothing_for(0.1)
    assert (await client.status()).jobs_running == 1


async def test_a_second_server_on_the_state_directory_is_refused(box: Server, client: Client) -> None:
    assert box.process is not None
    stream = await client.holder(1)
    status, said = await asyncio.to_thread(attempt, "--port", str(free_port()), "--state-dir", str(box.state_dir))
    assert status == 1
    assert str(box.state_dir) in said
    assert str(box.process.pid) in said
    assert "Traceback" not in said
    await stream.nothing_for(0.1)
    assert (await client.status()).jobs_running == 1


@pytest.mark.slow
async def test_kill_9_leaves_nothing_that_keeps_the_next_one_from_starting(
    server_factory: Callable[..., Server], tmp_path: Path
) -> None:
    first = server_factory("4", state_dir=tmp_path)
    client = Client(first.address)
    stream = await client.holder(1)
    first.kill()
    assert (await stream.end()).code is grpc.StatusCode.UNAVAILABLE
    await client.close()
    second = server_factory("4", state_dir=tmp_path, port=first.port)
    client = Client(second.address)
    assert (await client.status()).gpus_total == 4
    await client.close()
    # One that has nothing to do goes at once.
    assert second.process is not None
    began = time.monotonic()
    second.process.terminate()
    assert await ended(second) == 0
    assert time.monotonic() - began < 3.0
    assert_quiet(second.log)
