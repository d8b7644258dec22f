"""Shares of GPUs and what is counted of hosts, through the service: real processes hold, simulated GPUs tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest

from gpusched.v1 import resources_pb2, scheduler_pb2
from rpc.calls import Client, Stream
from rpc.servers import running
from support.server import Server

GIB = 2**30
INVALID, NEVER = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
Sleeper = Callable[[], Awaitable[int]]


@pytest.fixture(scope="module")
def box() -> Iterator[Server]:
    with running("2xH100:80GB", "--cpus", "12", "--mem", "100G", "--sample-interval", "100ms") as server:
        yield server


@pytest.fixture
async def sleeper() -> AsyncIterator[Sleeper]:
    """Starts a process that does nothing; its pid."""
    processes: list[asyncio.subprocess.Process] = []

    async def start() -> int:
        processes.append(await asyncio.create_subprocess_exec("sleep", "300"))
        return processes[-1].pid

    yield start
    for process in processes:
        process.kill()
        await process.wait()


def ask(client: Client, gpus: int = 1, pid: int = 0, **resources: Any) -> Stream:
    return client.open(
        scheduler_pb2.AcquireRequest(
            resources=resources_pb2.ResourceRequest(gpus=gpus, **resources), holder=scheduler_pb2.Holder(pid=pid)
        )
    )


async def share(client: Client, gib: float, pid: int = 0) -> Stream:
    stream = ask(client, pid=pid, shared=True, gpu_memory_bytes=int(gib * GIB))
    await stream.enter()
    await stream.granted()
    return stream


async def idle(client: Client) -> None:
    await client.eventually(client.status, lambda status: status.gpus_allocated == 0 and not status.jobs_running)
    await client.gpu_in(0, "FREE")


async def test_shares_are_told_and_shown(client: Client) -> None:
    first = ask(client, shared=True, gpu_memory_bytes=30 * GIB)
    await first.enter()
    granted = await first.granted()
    assert granted.environment["GPUSCHED_GPU_MEMORY"] == str(30 * GIB)
    assert granted.environment["CUDA_VISIBLE_DEVICES"] == "0" and granted.gpus[0].share_bytes == 30 * GIB
    second = await share(client, 40)
    gpu = await client.gpu(0)
    assert [(part.job_id, part.memory_bytes) for part in gpu.shares] == [
        (first.job_id, 30 * GIB),
        (second.job_id, 40 * GIB),
    ]
    assert not gpu.job_id and gpu.memory_left_bytes == int(80 * GIB * 0.97) - 70 * GIB
    job = await client.job(second.job_id)
    assert job.resources.shared and job.resources.gpu_memory_bytes == 40 * GIB
    third = await share(client, 50)
    assert [part.job_id for part in (await client.gpu(1)).shares] == [third.job_id]
    late = ask(client, shared=True, gpu_memory_bytes=30 * GIB)
    await late.enter()
    said = (await late.until("queued")).reason
    assert said.message.startswith("needs 30 GiB of a GPU, at most 27.6 GiB left; GPU 0 shared by ")
    second.cancel()
    assert [each.index for each in (await late.granted()).gpus] == [0]
    for stream in (first, third, late):
        stream.cancel()
    await idle(client)


async def test_each_process_is_laid_to_its_lease_and_too_much_is_told(client: Client, sleeper: Sleeper) -> None:
    pids = [await sleeper(), await sleeper()]
    first, second = await share(client, 10, pids[0]), await share(client, 10, pids[1])
    processes = [
        resources_pb2.GpuProcess(pid=pids[0], memory_bytes=12 * GIB),
        resources_pb2.GpuProcess(pid=pids[1], memory_bytes=9 * GIB),
    ]
    await client.simulate("0", processes=processes, set_processes=True)
    notice = await first.until("notice")
    assert notice.kind == scheduler_pb2.NOTICE_KIND_GPU_MEMORY
    assert "take 12.0 GiB, and it asked for 10.0 GiB" in notice.message
    gpu = await client.gpu(0)
    assert [part.memory_used_bytes for part in gpu.shares] == [12 * GIB, 9 * GIB]
    assert [process.job_id for process in gpu.processes] == [first.job_id, second.job_id]
    assert f"job {first.job_id} takes 12.0 GiB" in gpu.message
    # The first leaves, its process stays: nobody new comes, the second goes on.
    first.cancel()
    await client.eventually(lambda: client.gpu(0), lambda gpu: f"of job {first.job_id} still holds" in gpu.message)
    assert resources_pb2.GpuState.Name((await client.gpu(0)).state) == "GPU_STATE_ALLOCATED"
    third = await share(client, 10)
    assert [part.job_id for part in (await client.gpu(1)).shares] == [third.job_id]
    await client.simulate("0", processes=processes[1:], set_processes=True)
    await client.eventually(lambda: client.gpu(0), lambda gpu: not gpu.message)
    await client.simulate("0", processes=[], set_processes=True)
    for stream in (second, third):
        stream.cancel()
    await idle(client)


async def test_a_stranger_on_a_shared_gpu_is_told_to_all_who_share_it(client: Client, sleeper: Sleeper) -> None:
    holders = [await share(client, 10, await sleeper()) for _ in range(2)]
    stranger = resources_pb2.GpuProcess(pid=await sleeper(), memory_bytes=GIB)
    await client.simulate("0", processes=[stranger], set_processes=True)
    for stream in holders:
        assert (await stream.until("notice")).kind == scheduler_pb2.NOTICE_KIND_GPU_FOREIGN
    await client.simulate("0", processes=[], set_processes=True)
    for stream in holders:
        stream.cancel()
    await idle(client)


async def test_cores_and_memory_are_counted(client: Client) -> None:
    first = ask(client, 0, cpus=8, memory_bytes=60 * GIB)
    await first.enter()
    granted = await first.granted()
    assert "CUDA_VISIBLE_DEVICES" in granted.environment and not granted.environment["CUDA_VISIBLE_DEVICES"]
    assert granted.environment["GPUSCHED_CPUS"] == "8"
    assert granted.environment["GPUSCHED_MEM"] == str(60 * GIB) and granted.environment["GPUSCHED_NODE"]
    (node,) = (await client.scheduler.ListNodes(scheduler_pb2.ListNodesRequest())).nodes
    assert (node.cpus_total, node.cpus_free) == (12, 4)
    assert (node.memory_total_bytes, node.memory_free_bytes) == (100 * GIB, 40 * GIB)
    late = ask(client, 1, cpus=5)
    await late.enter()
    said = (await late.until("queued")).reason.message
    assert said == f"needs 5 cores; node {node.name} has 4 of 12 cores left"
    first.cancel()
    await late.granted()
    late.cancel()
    await idle(client)


@pytest.mark.parametrize(
    ("gpus", "resources", "code", "field"),
    [
        (1, {"shared": True}, INVALID, "resources.gpu_memory_bytes"),
        (0, {}, INVALID, "resources.gpus"),
        (0, {"cpus": 1, "gpu_model": "h100"}, INVALID, "resources.gpu_model"),
        (1, {"cpus": -1}, INVALID, "resources.cpus"),
        (1, {"memory_bytes": -1}, INVALID, "resources.memory_bytes"),
        (1, {"cpus": 13}, NEVER, "resources.cpus"),
        (1, {"memory_bytes": 101 * GIB}, NEVER, "resources.memory_bytes"),
        (1, {"shared": True, "gpu_memory_bytes": 79 * GIB}, NEVER, "resources.gpu_memory_bytes"),
    ],
)
async def test_what_cannot_be_had_is_refused(
    client: Client, gpus: int, resources: dict[str, Any], code: grpc.StatusCode, field: str
) -> None:
    refused = await ask(client, gpus, **resources).end()
    assert (refused.code, refused.fields) == (code, (field,))
