"""Who may see and do what, with callers of two users."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from gpusched.v1 import admin_pb2, job_pb2, scheduler_pb2, simulation_pb2
from rpc.calls import Client, admin_token, refusal
from rpc.servers import OTHER_UID, another_user
from support.server import Server, clean_environment

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
DENIED = grpc.StatusCode.PERMISSION_DENIED


async def test_the_kernel_tells_who_calls(client: Client, stranger: Client) -> None:
    assert (await client.status()).caller == "root"
    assert (await stranger.status()).caller == str(OTHER_UID)
    stream = await stranger.holder(1)
    job = await client.job(stream.job_id)
    assert (job.uid, job.user) == (OTHER_UID, str(OTHER_UID))
    assert (await client.gpu(0)).user == str(OTHER_UID)


async def test_arguments_are_for_the_owner_and_the_servers_user(
    box: Server, connect: Callable[..., Client], client: Client, stranger: Client
) -> None:
    secret = ["train.py", "--key", "hunter2"]
    theirs = await stranger.holder(1, command=secret, name="theirs")
    mine = await client.holder(1, command=secret, name="mine")
    for viewer, job_id, sees in (
        (stranger, theirs.job_id, True),
        (client, theirs.job_id, True),  # root runs the server
        (client, mine.job_id, True),
        (stranger, mine.job_id, False),
    ):
        listed = (await viewer.scheduler.ListJobs(scheduler_pb2.ListJobsRequest())).jobs
        explained = await viewer.scheduler.ExplainJob(scheduler_pb2.ExplainJobRequest(job_id=job_id))
        watched = await first_answer(viewer, scheduler_pb2.WatchJobsRequest(job_id=job_id))
        for job in (
            await viewer.job(job_id),
            next(job for job in listed if job.id == job_id),
            explained.job,
            watched.jobs[0],
        ):
            assert list(job.command) == (secret if sees else [])
            # Everybody sees who holds what.
            assert (job.name, len(job.gpus)) == ("mine" if job_id == mine.job_id else "theirs", 1)
            assert sees or "hunter2" not in str(job)
    # A third user sees neither.
    with another_user(box.address, OTHER_UID + 1) as address:
        third = connect(address)
        for job_id in (theirs.job_id, mine.job_id):
            assert list((await third.job(job_id)).command) == []
        await third.close()


async def test_owners_and_administrators_alone_cancel_and_change(
    client: Client, operator: Client, stranger: Client
) -> None:
    mine, theirs = await client.holder(1), await stranger.holder(1)
    for caller, job_id, owner in ((stranger, mine.job_id, "root"), (client, theirs.job_id, str(OTHER_UID))):
        got = await refusal(caller.scheduler.CancelJob(scheduler_pb2.CancelJobRequest(job_id=job_id)))
        assert (got.code, got.reason, got.fields) == (DENIED, "NOT_OWNER", ("job_id",))
        assert f"belongs to {owner}" in got.message
        request = scheduler_pb2.UpdateJobRequest(job=job_pb2.Job(id=job_id, name="x"), update_mask={"paths": ["name"]})
        got = await refusal(caller.scheduler.UpdateJob(request))
        assert (got.code, got.reason) == (DENIED, "NOT_OWNER")
    assert (await client.job(mine.job_id)).state == job_pb2.JOB_STATE_RUNNING
    await mine.nothing_for(0.1)
    # Root's word counts with the administrator's token.
    job = await operator.cancel_job(theirs.job_id, "box goes down")
    assert (await theirs.until("notice")).message == "cancelled by root: box goes down"
    assert job.state == job_pb2.JOB_STATE_RUNNING


async def test_nobody_but_the_servers_user_goes_ahead_of_everybody(client: Client, stranger: Client) -> None:
    await client.holder(8)
    got = await stranger.acquire(1, priority=1).end()
    assert (got.code, got.reason, got.fields) == (DENIED, "ADMIN_REQUIRED", ("priority",))
    got = await stranger.acquire(1, priority=1, dry_run=True).end()
    assert (got.code, got.reason) == (DENIED, "ADMIN_REQUIRED")
    waiter = await stranger.waiter(1, priority=-3)

    def raise_to(priority: int) -> object:
        request = scheduler_pb2.UpdateJobRequest(
            job=job_pb2.Job(id=waiter.job_id, priority=priority), update_mask={"paths": ["priority"]}
        )
        return stranger.scheduler.UpdateJob(request)

    got = await refusal(raise_to(1))
    assert (got.code, got.reason, got.fields) == (DENIED, "ADMIN_REQUIRED", ("priority",))
    assert (await raise_to(0)).job.priority == 0  # type: ignore[misc]
    # One that an administrator put forward may be put back by its owner.
    token = await admin_token(client.address)
    ahead = Client(client.address, token)
    request = scheduler_pb2.UpdateJobRequest(
        job=job_pb2.Job(id=waiter.job_id, priority=9), update_mask={"paths": ["priority"]}
    )
    assert (await ahead.scheduler.UpdateJob(request)).job.priority == 9
    await ahead.close()
    assert (await raise_to(5)).job.priority == 5  # type: ignore[misc]


async def test_the_box_is_not_a_strangers_to_steer(stranger: Client, box: Server) -> None:
    target = admin_pb2.DrainTarget(gpu="0")
    for call in (
        stranger.admin.Drain(admin_pb2.DrainRequest(target=target)),
        stranger.admin.PauseScheduling(admin_pb2.PauseSchedulingRequest()),
        stranger.simulation.SetSimulatedGpu(simulation_pb2.SetSimulatedGpuRequest(gpu="0", fault="x")),
    ):
        got = await refusal(call)
        assert (got.code, got.reason) == (DENIED, "ADMIN_REQUIRED")


async def test_a_holder_is_a_process_of_the_callers(client: Client, stranger: Client) -> None:
    got = await stranger.acquire(1, holder=scheduler_pb2.Holder(pid=os.getpid())).end()
    assert (got.code, got.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ("holder.pid",))
    stream = await client.holder(1, holder=scheduler_pb2.Holder(pid=os.getpid()))
    assert (await client.job(stream.job_id)).holder_pid == os.getpid()
    # One that is not there says nothing, and does no harm.
    for pid in (0, -1, 1 << 40):
        stream = await stranger.holder(1, holder=scheduler_pb2.Holder(pid=pid))
        assert (await client.job(stream.job_id)).holder_pid == 0


async def test_a_caller_that_is_gone_at_once_is_never_taken_for_root(client: Client, box: Server) -> None:
    """Some kernels say uid 0 of a socket that its owner has closed. Whole requests are sent, then it is closed."""
    victim = await client.holder(1, name="root's own")
    script = Path(__file__).with_name("hostile.py")
    arrived: list[job_pb2.Job] = []
    # A busy machine may come to all of them too late: then once more, as they show that calls do arrive.
    for _ in range(10):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(script), box.address, str(OTHER_UID), victim.job_id, "800"), env=clean_environment()
        )
        assert await asyncio.wait_for(process.wait(), 60) == 0
        # All has been handled once a fresh call has been answered and nobody waits or holds but the victim.
        await client.eventually(client.status, lambda status: status.jobs_running + status.jobs_queued == 1)
        if arrived := await named(client, "harmless"):
            break
    assert (await client.job(victim.job_id)).state == job_pb2.JOB_STATE_RUNNING
    await victim.nothing_for(0.1)
    # A priority that is the server's user's alone: an accepted one would have been taken for root's.
    assert await named(client, "hostile") == []
    # And calls did arrive, before their callers were gone.
    assert {job.uid for job in arrived} == {OTHER_UID}


async def named(client: Client, name: str) -> list[job_pb2.Job]:
    request = scheduler_pb2.ListJobsRequest(filter={"include_ended": True, "name": name}, page_size=1000)
    return list((await client.scheduler.ListJobs(request)).jobs)


async def first_answer(client: Client, request: scheduler_pb2.WatchJobsRequest) -> scheduler_pb2.WatchJobsResponse:
    call = client.scheduler.WatchJobs(request)
    answer = await call.read()
    call.cancel()
    return answer
