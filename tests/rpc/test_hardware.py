"""Free means empty: GPUs that are foreign, dirty, sick or silent, and what those who wait are told."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2, simulation_pb2
from rpc.calls import Client, refusal, seconds
from rpc.servers import running, sleeper
from support.server import Server

SET_ASIDE = 0.6
#: Above every pid that the kernel gives, so that no process of this machine is meant.
NOBODY = (1 << 22) + 4242
ALICE = resources_pb2.GpuProcess(pid=NOBODY, user="alice", command="python", memory_bytes=int(11.2 * 2**30))
FOREIGN_TEXT = f"GPU 3: pid {NOBODY} python (alice) holds 11.2 GiB, not under a lease"


@pytest.fixture(scope="module")
def box() -> Iterator[Server]:
    with running("4", "--set-aside-after", f"{SET_ASIDE}s") as server:
        yield server


@pytest.fixture
async def client(connect: object) -> AsyncIterator[Client]:
    """A client that makes all GPUs well again at the end."""
    made: Client = connect()  # type: ignore[operator]
    yield made
    for index in range(4):
        await made.simulate(str(index), set_processes=True, fault="", linger=0, hang=False, utilization_percent=0)


def me() -> scheduler_pb2.Holder:
    return scheduler_pb2.Holder(pid=os.getpid())


async def test_a_foreign_process_keeps_a_gpu_from_being_granted_until_it_is_gone(client: Client) -> None:
    shown = await client.simulate("3", processes=[ALICE], set_processes=True)
    assert (shown.state, shown.message) == (resources_pb2.GPU_STATE_FOREIGN, FOREIGN_TEXT)
    (process,) = (await client.gpu(3)).processes
    assert (process.pid, process.user, process.command, process.job_id) == (NOBODY, "alice", "python", "")
    assert (await client.status()).gpus_free == 3
    holder = await client.holder(3)
    assert holder.indices == [0, 1, 2]
    waiter = client.acquire(1)
    queued = await waiter.until("queued")
    assert (queued.reason.code, queued.reason.gpus_free) == (job_pb2.REASON_CODE_RESOURCES, 0)
    holder.cancel()
    await waiter.granted()
    whole = client.acquire(4)
    queued = await whole.queued_as(lambda queued: queued.reason.code == job_pb2.REASON_CODE_UNAVAILABLE)
    assert FOREIGN_TEXT in queued.reason.message
    (blocker,) = queued.reason.blockers
    assert (blocker.gpu_index, blocker.gpu_state) == (3, resources_pb2.GPU_STATE_FOREIGN)
    waiter.cancel()
    # Seen again and again, it stays what it is.
    await whole.nothing_for(0.3)
    await client.simulate("3", set_processes=True)
    await whole.granted()


async def test_a_foreign_process_that_the_sampling_finds_or_misses(client: Client) -> None:
    """The regular look alone, without a word from anybody, finds a process that ends by itself."""
    with sleeper() as process:
        seen = resources_pb2.GpuProcess(pid=process.pid, memory_bytes=300 << 20)
        shown = await client.simulate("0", processes=[seen], set_processes=True)
        assert shown.state == resources_pb2.GPU_STATE_FOREIGN
        assert shown.message.startswith(f"GPU 0: pid {process.pid} sleep (")
        assert shown.message.endswith("holds 300 MiB, not under a lease")
        waiter = await client.waiter(4)
    await waiter.granted(3.0)


async def test_a_foreign_process_on_a_leased_gpu_is_told_to_the_holder_once(client: Client) -> None:
    stream = await client.holder(4, holder=me())
    await client.simulate("3", processes=[ALICE], set_processes=True)
    notice = await stream.until("notice")
    assert (notice.kind, notice.message) == (scheduler_pb2.NOTICE_KIND_GPU_FOREIGN, FOREIGN_TEXT)
    await stream.nothing_for(0.3)
    assert (await client.gpu(3)).state == resources_pb2.GPU_STATE_ALLOCATED
    await stream.release()
    # It was never the lease's: once that is over, the GPU is foreign, not dirty.
    await client.gpu_in(3, "FOREIGN")


async def test_the_holders_own_processes_are_no_strangers(client: Client) -> None:
    stream = await client.holder(1, holder=me())
    with sleeper() as child:
        seen = resources_pb2.GpuProcess(pid=child.pid, memory_bytes=2 << 30)
        shown = await client.simulate("0", processes=[seen], set_processes=True)
        assert (shown.state, shown.message) == (resources_pb2.GPU_STATE_ALLOCATED, "")
        assert shown.processes[0].job_id == stream.job_id
        await stream.nothing_for(0.3)
        # The lease ends, but the work does not: the next one must not get the GPU.
        waiter = await client.waiter(4)
        await stream.release()
        gpu = await client.gpu_in(0, "DIRTY")
        assert gpu.message.startswith(f"GPU 0: pid {child.pid} sleep (")
        assert gpu.message.endswith(f") of job {stream.job_id} still holds 2.0 GiB")
        queued = await waiter.queued_as(lambda queued: queued.reason.code == job_pb2.REASON_CODE_UNAVAILABLE)
        assert gpu.message in queued.reason.message
        await waiter.nothing_for(0.3)
    await waiter.granted(3.0)


async def test_a_lingering_process_delays_the_next_grant_until_it_is_gone(client: Client) -> None:
    for index in range(4):
        await client.simulate(str(index), linger=0.5)
    stream = await client.holder(4, holder=me())
    waiter = await client.waiter(2)
    stream.cancel()
    began = time.monotonic()
    gpu = await client.gpu_in(0, "DIRTY", 0.4)
    assert f"pid {os.getpid()} python" in gpu.message
    assert f"of job {stream.job_id}" in gpu.message
    await waiter.granted()
    assert 0.45 < time.monotonic() - began < 3.0


async def test_a_fault_is_told_to_the_holder_and_outlives_the_lease(client: Client) -> None:
    fault = "Xid 79: GPU has fallen off the bus"
    stream = await client.holder(4)
    await client.simulate("2", fault=fault)
    notice = await stream.until("notice")
    assert (notice.kind, notice.message) == (scheduler_pb2.NOTICE_KIND_GPU_UNHEALTHY, f"GPU 2: {fault}")
    assert not notice.HasField("deadline")
    await stream.nothing_for(0.3)
    await stream.release()
    gpu = await client.gpu_in(2, "UNHEALTHY")
    assert gpu.message == f"GPU 2: {fault}"
    assert (await client.holder(3)).indices == [0, 1, 3]
    waiter = await client.waiter(1)
    await waiter.nothing_for(0.2)
    await client.simulate("2", fault="")
    await waiter.granted()
    assert waiter.indices == [2]


async def test_undrain_believes_a_gpu_that_it_is_well(client: Client, operator: Client) -> None:
    await client.simulate("1", fault="Xid 48: double bit error")
    await client.gpu_in(1, "UNHEALTHY")
    (shown,) = await operator.undrain(gpu="1")
    assert shown.state == resources_pb2.GPU_STATE_FREE


async def test_a_silent_gpu_is_not_granted_and_comes_back(client: Client) -> None:
    shown = await client.simulate("0", hang=True)
    assert shown.state == resources_pb2.GPU_STATE_UNHEALTHY
    assert "does not answer" in shown.message
    assert shown.utilization_percent == -1
    holder = await client.holder(1)
    assert holder.indices == [1]
    waiter = await client.waiter(4)
    await client.simulate("0", hang=False)
    holder.cancel()
    await waiter.granted()


async def test_a_gpu_that_falls_silent_under_a_lease_is_not_handed_on(client: Client) -> None:
    stream = await client.holder(4, holder=me())
    waiter = await client.waiter(4)
    await client.simulate("1", hang=True)
    assert (await stream.until("notice")).kind == scheduler_pb2.NOTICE_KIND_GPU_UNHEALTHY
    stream.cancel()
    await waiter.queued_as(lambda queued: queued.reason.code == job_pb2.REASON_CODE_UNAVAILABLE)
    await client.gpu_in(1, "UNHEALTHY")
    await client.simulate("1", hang=False)
    await waiter.granted(3.0)


async def test_a_head_that_waits_for_a_sick_gpu_is_set_aside_and_told(client: Client) -> None:
    await client.simulate("0", fault="Xid 79")
    began = time.monotonic()
    head = client.acquire(4)
    queued = await head.until("queued")
    assert "set aside" not in queued.reason.message
    behind = client.acquire(3)
    queued = await behind.until("queued")
    assert (queued.reason.code, queued.reason.ahead_job_id) == (job_pb2.REASON_CODE_PRIORITY, head.job_id)
    queued = await head.queued_as(lambda queued: "set aside" in queued.reason.message)
    assert (queued.position, queued.reason.code) == (1, job_pb2.REASON_CODE_UNAVAILABLE)
    assert "Xid 79" in queued.reason.message
    await behind.granted()
    assert SET_ASIDE - 0.1 < time.monotonic() - began < SET_ASIDE + 3.0
    # It has kept its place: with the GPU mended and the others gone, it starts before those who came later.
    late = await client.waiter(4)
    await client.simulate("0", fault="")
    await head.queued_as(lambda queued: "set aside" not in queued.reason.message)
    behind.cancel()
    await head.granted()
    assert (await client.job(late.job_id)).state == job_pb2.JOB_STATE_QUEUED


async def test_readings_are_shown(client: Client) -> None:
    gpu = await client.simulate("1", utilization_percent=90)
    assert gpu.utilization_percent == 90
    assert gpu.temperature_celsius > 60
    assert gpu.power_watts > 500
    assert gpu.simulated
    assert abs(gpu.observed_at.seconds - time.time()) < 5


async def test_a_simulation_takes_only_what_makes_sense(client: Client) -> None:
    cases: list[tuple[dict[str, object], grpc.StatusCode, tuple[str, ...], str]] = [
        ({"gpu": "9"}, grpc.StatusCode.NOT_FOUND, ("gpu",), "has 4, from 0 up"),
        ({"gpu": ""}, grpc.StatusCode.INVALID_ARGUMENT, ("gpu",), "node:index"),
        ({"utilization_percent": 101}, grpc.StatusCode.INVALID_ARGUMENT, (), "0 to 100"),
        ({"linger": seconds(-1)}, grpc.StatusCode.INVALID_ARGUMENT, ("linger",), "0 s to 3600 s"),
        ({"fault": "a\nb"}, grpc.StatusCode.INVALID_ARGUMENT, ("fault",), "printable"),
        (
            {"set_processes": True, "processes": [resources_pb2.GpuProcess(pid=NOBODY, command="\x1b[2J")]},
            grpc.StatusCode.INVALID_ARGUMENT,
            ("processes",),
            "printable",
        ),
    ]
    for fields, code, at, allowed in cases:
        request = simulation_pb2.SetSimulatedGpuRequest(**({"gpu": "0"} | fields))
        got = await refusal(client.simulation.SetSimulatedGpu(request))
        assert (got.code, got.fields) == (code, at), fields
        assert allowed in got.message
    assert (await client.gpu(0)).state == resources_pb2.GPU_STATE_FREE
