"""Lists page through everything once; watches tell all there is and then what changes."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2
from rpc.calls import PATIENCE, Client

QUEUED, RUNNING, CANCELLED = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_CANCELLED


async def listed(client: Client, page_size: int = 0, **filter: Any) -> tuple[list[job_pb2.Job], list[int], list[int]]:
    """All jobs of all pages, the pages' lengths, and their total sizes."""
    jobs: list[job_pb2.Job] = []
    lengths, totals, token = [], [], ""
    while True:
        request = scheduler_pb2.ListJobsRequest(filter=filter, page_size=page_size, page_token=token)
        answer = await client.scheduler.ListJobs(request, timeout=PATIENCE)
        jobs += answer.jobs
        lengths.append(len(answer.jobs))
        totals.append(answer.total_size)
        token = answer.next_page_token
        if not token:
            return jobs, lengths, totals


class Watch:
    """A watching stream."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self._rest: list[Any] = []
        self.ended = asyncio.Event()
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for answer in self.call:
                self.answers.put_nowait(answer)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        finally:
            self.ended.set()

    async def next(self) -> Any:
        """The next answer."""
        return await asyncio.wait_for(self.answers.get(), PATIENCE)

    async def until(self, condition: Any) -> Any:
        """The first job or GPU for which a condition holds; the rest of its answer is looked at by the next call."""
        async with asyncio.timeout(PATIENCE):
            while True:
                while self._rest:
                    if condition(item := self._rest.pop(0)):
                        return item
                answer = await self.next()
                self._rest += answer.jobs if hasattr(answer, "jobs") else answer.gpus


def watch(client: Client, **fields: Any) -> Watch:
    return Watch(client.scheduler.WatchJobs(scheduler_pb2.WatchJobsRequest(**fields)))


async def crowd(client: Client, count: int, **fields: Any) -> list[Any]:
    """Many waiters, in order."""
    streams = []
    for _ in range(count):
        stream = client.acquire(8, **fields)
        await stream.enter()
        streams.append(stream)
    return streams


@pytest.mark.slow
async def test_pages_have_everything_once_and_in_order(client: Client) -> None:
    running = [await client.holder(1) for _ in range(8)]
    waiting = await crowd(client, 180)
    urgent = await crowd(client, 10, priority=5)
    leavers = await crowd(client, 70)
    for stream in leavers:
        await client.cancel_job(stream.job_id)
    ids = [stream.job_id for stream in running + urgent + waiting]
    for size in (7, 100, 0, 1000, 2**31 - 1):
        jobs, lengths, totals = await listed(client, size)
        assert [job.id for job in jobs] == ids
        assert set(totals) == {198}
        assert set(lengths[:-1]) <= {min(size or 100, 1000)}
    assert [job.position for job in jobs] == [0] * 8 + list(range(1, 191))
    # With those that have ended: newest first, behind the others.
    everything, _, totals = await listed(client, 50, include_ended=True)
    mine = [stream.job_id for stream in reversed(leavers)]
    assert [job.id for job in everything][: 198 + 70] == ids + mine
    assert len({job.id for job in everything}) == len(everything) == totals[0]


async def test_jobs_that_ended_in_one_moment_are_not_lost_between_pages(client: Client) -> None:
    """Two that fall due in one pass end in the order of their deadlines, which is not that of their numbers."""
    await client.holder(8)
    streams = [client.acquire(1, name="due", max_wait=0.4 - 0.002 * number) for number in range(60)]
    for stream in streams:
        await stream.end()
    jobs, _, _ = await listed(client, 3, name="due", include_ended=True)
    assert sorted(int(job.id) for job in jobs) == sorted(int(stream.job_id) for stream in streams)


async def test_paging_goes_on_though_jobs_come_and_go(client: Client) -> None:
    await client.holder(8)
    waiting = await crowd(client, 30)
    first = await client.scheduler.ListJobs(scheduler_pb2.ListJobsRequest(filter={"states": [QUEUED]}, page_size=10))
    # The last of the page goes, and so does one yet to come; more come behind.
    for stream in (waiting[9], waiting[15]):
        stream.cancel()
        await client.job_in(stream.job_id, "CANCELLED")
    more = await crowd(client, 3)
    token, rest = first.next_page_token, []
    while token:
        request = scheduler_pb2.ListJobsRequest(filter={"states": [QUEUED]}, page_size=10, page_token=token)
        answer = await client.scheduler.ListJobs(request)
        rest += answer.jobs
        token = answer.next_page_token
    stay = [stream for stream in waiting if stream is not waiting[15]]
    assert [job.id for job in (*first.jobs, *rest)] == [stream.job_id for stream in (*stay, *more)]


async def test_filters(client: Client) -> None:
    mine = await client.holder(6, name="Train A")
    waiter = await client.waiter(8, name="train b")
    gone = await client.waiter(8, name="other")
    await client.cancel_job(gone.job_id)
    me, node = (await client.job(mine.job_id)).user, (await client.gpu(0)).node

    async def ids(**filter: Any) -> list[str]:
        return [job.id for job in (await listed(client, **filter))[0]]

    assert await ids() == [mine.job_id, waiter.job_id]
    assert await ids(states=[RUNNING]) == [mine.job_id]
    assert await ids(states=[QUEUED, RUNNING]) == [mine.job_id, waiter.job_id]
    assert (await ids(states=[CANCELLED]))[0] == gone.job_id
    assert mine.job_id not in await ids(states=[CANCELLED])
    # `states` decides alone where both are given.
    assert await ids(states=[QUEUED], include_ended=True) == [waiter.job_id]
    assert await ids(name="TRAIN") == [mine.job_id, waiter.job_id]
    assert await ids(name="train b") == [waiter.job_id]
    assert await ids(user=me) == await ids(user="0") == [mine.job_id, waiter.job_id]
    assert await ids(user="nobody-of-that-name") == []
    assert await ids(node=node) == [mine.job_id]  # where it runs; the other one runs nowhere
    other = await client.waiter(8, node=node)
    assert await ids(node=node) == [mine.job_id, other.job_id]  # where it wants to run
    assert await ids(node="mars") == []


async def test_a_list_of_long_commands_fits_the_clients_limit(client: Client) -> None:
    """Clients take 4 MiB by default: a page that would be longer is cut short, and goes on."""
    await client.holder(8)
    command = ["x" * 65_000]
    streams = await crowd(client, 100, command=command)
    jobs, lengths, totals = await listed(client, 1000)
    assert [job.id for job in jobs[1:]] == [stream.job_id for stream in streams]
    assert len(lengths) > 2
    assert set(totals) == {101}
    assert list(jobs[-1].command) == command
    watching = watch(client)
    seen: list[str] = []
    while len(seen) < 101:
        answer = await watching.next()
        assert answer.snapshot
        assert answer.ByteSize() < 3 << 20
        seen += [job.id for job in answer.jobs]
    assert seen == [job.id for job in jobs]
    watching.call.cancel()


async def test_a_watch_tells_all_there_is_then_what_changes(client: Client) -> None:
    holder = await client.holder(8, name="first")
    waiter = await client.waiter(1, name="second")
    watching = watch(client)
    snapshot = await watching.next()
    assert snapshot.snapshot
    assert [(job.id, job.state) for job in snapshot.jobs] == [(holder.job_id, RUNNING), (waiter.job_id, QUEUED)]
    third = await client.waiter(1, name="third")
    job = await watching.until(lambda job: job.id == third.job_id and job.position)
    assert (job.state, job.position, job.name) == (QUEUED, 2, "third")
    # Places are told too, though nothing has happened to the job itself.
    await client.cancel_job(waiter.job_id)
    seen: set[str] = set()

    def both(job: Any) -> bool:
        """Ended ones are told, and the new place of the other; one answer may have them in any order."""
        if job.id == waiter.job_id and job.state != QUEUED:  # an earlier change may still be on its way
            seen.add(f"ended {job.state == CANCELLED}")
        elif job.id == third.job_id and job.position == 1:
            seen.add(f"moved {job.state == QUEUED}")
        return len(seen) == 2

    await watching.until(both)
    assert seen == {"ended True", "moved True"}
    await holder.release(outcome=job_pb2.Outcome(exit_status=3))
    job = await watching.until(lambda job: job.id == holder.job_id and job.state != RUNNING)
    assert (job.state, job.outcome.exit_status) == (job_pb2.JOB_STATE_FAILED, 3)
    job = await watching.until(lambda job: job.id == third.job_id and job.state == RUNNING)
    assert [gpu.index for gpu in job.gpus] == [0]
    watching.call.cancel()


async def test_an_empty_watch_says_so_at_once(client: Client) -> None:
    watching = watch(client, filter={"name": "nothing like it"})
    answer = await watching.next()
    assert (answer.snapshot, list(answer.jobs)) == (True, [])
    watching.call.cancel()


async def test_a_filtered_watch_sees_a_job_leave_the_filter(client: Client) -> None:
    holder = await client.holder(8)
    waiter = await client.waiter(1)
    watching = watch(client, filter={"states": [QUEUED]})
    assert [job.id for job in (await watching.next()).jobs] == [waiter.job_id]
    other = await client.waiter(1)
    await watching.until(lambda job: job.id == other.job_id)
    holder.cancel()
    await watching.until(lambda job: job.id == waiter.job_id and job.state == RUNNING)
    watching.call.cancel()


async def test_a_watch_of_one_job_ends_with_it(client: Client) -> None:
    holder = await client.holder(8)
    waiter = await client.waiter(8)
    watching = watch(client, job_id=waiter.job_id)
    assert [job.id for job in (await watching.next()).jobs] == [waiter.job_id]
    holder.cancel()
    await watching.until(lambda job: job.state == RUNNING)
    await waiter.granted()
    await waiter.release(outcome=job_pb2.Outcome(exit_status=0))
    await watching.until(lambda job: job.state == job_pb2.JOB_STATE_COMPLETED)
    await asyncio.wait_for(watching.ended.wait(), PATIENCE)
    assert await watching.call.code() is grpc.StatusCode.OK
    # One that has ended already: told, and that is it.
    watching = watch(client, job_id=waiter.job_id)
    assert (await watching.next()).jobs[0].state == job_pb2.JOB_STATE_COMPLETED
    await asyncio.wait_for(watching.ended.wait(), PATIENCE)


async def test_a_watch_of_one_job_ends_though_others_never_rest(client: Client) -> None:
    """The end was once put off for as long as anything changed anywhere."""
    await client.holder(7)
    stream = await client.holder(1)
    watching = watch(client, job_id=stream.job_id)
    await watching.next()

    calm = asyncio.Event()

    async def unrest() -> None:
        while not calm.is_set():
            other = client.acquire(8)
            await other.enter()
            other.cancel()

    tasks = [asyncio.create_task(unrest()) for _ in range(4)]
    try:
        await asyncio.sleep(0.1)
        await stream.release()
        await asyncio.wait_for(watching.ended.wait(), 5.0)
        assert watching.answers.qsize() < 20  # what happens to others is not told
    finally:
        calm.set()
        await asyncio.gather(*tasks)


async def test_gpus_are_watched(client: Client) -> None:
    watching = Watch(client.scheduler.WatchGpus(scheduler_pb2.WatchGpusRequest()))
    first = await watching.next()
    assert [gpu.index for gpu in first.gpus] == list(range(8))
    assert {gpu.state for gpu in first.gpus} == {resources_pb2.GPU_STATE_FREE}
    stream = await client.holder(1, name="x")
    gpu = await watching.until(lambda gpu: gpu.state == resources_pb2.GPU_STATE_ALLOCATED)
    assert (gpu.index, gpu.job_id, gpu.model, gpu.memory_bytes) == (0, stream.job_id, "Simulated GPU", 80 << 30)
    stream.cancel()
    await watching.until(lambda gpu: gpu.index == 0 and gpu.state == resources_pb2.GPU_STATE_FREE)
    # Also without any change: at each reading.
    stamp = (await watching.next()).gpus[0].observed_at
    await watching.until(lambda gpu: gpu.observed_at.ToNanoseconds() > stamp.ToNanoseconds())
    watching.call.cancel()


async def test_status_nodes_and_explanations(client: Client) -> None:
    status = await client.status()
    assert (status.service, status.gpus_total, status.gpus_free, status.inventory_mode) == (
        "gpusched",
        8,
        8,
        "simulated",
    )
    assert status.address == client.address
    assert status.uptime.ToNanoseconds() > 0
    assert status.state_id
    assert status.version
    assert (status.jobs_running, status.jobs_queued, status.paused) == (0, 0, False)
    (node,) = (await client.scheduler.ListNodes(scheduler_pb2.ListNodesRequest())).nodes
    assert (node.name, node.gpus_total, node.gpus_free, node.local) == (status.node, 8, 8, True)
    assert len(await client.gpus(node=node.name)) == 8

    holder = await client.holder(5, name="big")
    waiter = await client.waiter(4, gpu_memory_bytes=10 << 30)
    answer = await client.scheduler.ExplainJob(scheduler_pb2.ExplainJobRequest(job_id=waiter.job_id))
    text = "\n".join(answer.lines)
    assert "number 1 of 1 in the queue" in text
    assert "needs 4 GPUs, 3 free" in text.replace("Needs", "needs")
    assert "at least 10 GiB each" in text
    assert f"GPU 0 on {node.name}: held by job {holder.job_id}" in text
    assert [line.message for line in answer.job.history] == ["accepted"]
    answer = await client.scheduler.ExplainJob(scheduler_pb2.ExplainJobRequest(job_id=holder.job_id))
    assert answer.lines[0] == f"Job {holder.job_id} does not wait: it is running."
    status = await client.status()
    assert (status.jobs_running, status.jobs_queued, status.gpus_allocated, status.gpus_free) == (1, 1, 5, 3)


@pytest.mark.parametrize("name", ["", "x"])
async def test_a_grpc_deadline_ends_a_stream_and_its_job(client: Client, name: str) -> None:
    """Somebody's own deadline on the call is a drop like any other."""
    await client.holder(8)
    stub = client.scheduler
    call = stub.Acquire(
        scheduler_pb2.AcquireRequest(resources=resources_pb2.ResourceRequest(gpus=1), name=name), timeout=0.3
    )
    events = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while True:
            events.extend(field.name for field, _ in (await call.read()).ListFields())
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert events == ["accepted", "queued"]
    await client.eventually(client.status, lambda status: status.jobs_queued == 0)
