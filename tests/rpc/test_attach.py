"""Coming back to a job: by its secret, and by the id of a retried call."""

from __future__ import annotations

import asyncio

import grpc

from gpusched.v1 import job_pb2, scheduler_pb2
from rpc.calls import PATIENCE, Client, Stream, refusal


def resume(client: Client, token: str) -> Stream:
    return client.open(scheduler_pb2.AcquireRequest(resume_token=token))


async def test_a_holder_comes_back_and_keeps_everything(client: Client) -> None:
    first = await client.holder(3, name="run")
    second = resume(client, first.accepted.resume_token)
    accepted = await second.enter()
    assert (accepted.job_id, accepted.resumed) == (first.job_id, True)
    assert accepted.resume_token == first.accepted.resume_token
    assert accepted.state_id == first.accepted.state_id
    kind, grant = await second.next()
    assert kind == "granted"
    assert not grant.HasField("confirm_by")  # it has been confirmed before
    first_grant = scheduler_pb2.Granted()
    first_grant.CopyFrom(first.grant)
    first_grant.ClearField("confirm_by")
    assert grant == first_grant
    await second.nothing_for(0.1)
    # The old stream is told, and its end frees nothing.
    got = await first.end()
    assert (got.code, got.reason) == (grpc.StatusCode.ABORTED, "SUPERSEDED")
    assert (await client.job(first.job_id)).state == job_pb2.JOB_STATE_RUNNING
    assert len((await client.job(first.job_id)).gpus) == 3
    await second.release(outcome=job_pb2.Outcome(exit_status=0))
    assert (await second.end()).code is grpc.StatusCode.OK
    assert (await client.job(first.job_id)).state == job_pb2.JOB_STATE_COMPLETED


async def test_an_old_stream_that_drops_after_the_new_one_came_frees_nothing(client: Client) -> None:
    first = await client.holder(8)
    second = resume(client, first.accepted.resume_token)
    await second.enter()
    first.cancel()
    await second.until("granted")
    waiter = await client.waiter(1)
    await waiter.nothing_for(0.2)
    assert (await client.job(first.job_id)).state == job_pb2.JOB_STATE_RUNNING
    # It is the new stream that counts now.
    second.cancel()
    await waiter.granted()
    assert (await client.job(first.job_id)).state == job_pb2.JOB_STATE_LOST


async def test_a_waiter_comes_back_at_its_place(client: Client) -> None:
    holder = await client.holder(8)
    first, behind = await client.waiter(8), await client.waiter(8)
    again = resume(client, first.accepted.resume_token)
    assert (await again.enter()).resumed
    assert (await again.until("queued")).position == 1
    assert (await first.end()).reason == "SUPERSEDED"
    assert (await client.job(behind.job_id)).position == 2
    holder.cancel()
    grant = await again.until("granted")
    assert grant.HasField("confirm_by")
    await again.confirm()


async def test_a_grant_that_awaits_its_confirmation_is_told_again(client: Client) -> None:
    first = client.acquire(1)
    grant = await first.until("granted")
    again = resume(client, first.accepted.resume_token)
    assert await again.until("granted") == grant
    await again.confirm()
    await again.nothing_for(0.1)


async def test_many_re_attachments_at_once_leave_one(client: Client) -> None:
    first = await client.holder(8)
    rivals = [resume(client, first.accepted.resume_token) for _ in range(30)]
    streams = (first, *rivals)
    ends = {asyncio.create_task(stream.end(2 * PATIENCE)): stream for stream in streams}
    open_ones = set(ends)
    while len(open_ones) > 1:
        done, open_ones = await asyncio.wait(open_ones, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        assert done, f"{len(open_ones)} streams are left"
        assert {task.result().reason for task in done} == {"SUPERSEDED"}
    # One is left, it holds the lease, and it alone can lose it.
    assert (await client.status()).gpus_allocated == 8
    waiter = await client.waiter(8)
    ends[open_ones.pop()].cancel()
    await waiter.granted()


async def test_wrong_tokens(client: Client) -> None:
    stream = await client.holder(1)
    for token in ("wrong", stream.accepted.resume_token[:-1], "x" * 100_000, stream.job_id):
        got = await resume(client, token).end()
        assert (got.code, got.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")
        assert got.fields == ("resume_token",)
    await stream.nothing_for(0.1)
    # After the end of the job its token opens nothing any more.
    await stream.release()
    got = await resume(client, stream.accepted.resume_token).end()
    assert (got.code, got.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")


async def test_somebody_elses_token_is_as_good_as_none(client: Client, stranger: Client) -> None:
    mine = await client.holder(1)
    got = await resume(stranger, mine.accepted.resume_token).end()
    assert (got.code, got.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")
    for call in (
        stranger.scheduler.Confirm(scheduler_pb2.ConfirmRequest(**mine.key)),
        stranger.scheduler.Release(scheduler_pb2.ReleaseRequest(**mine.key)),
    ):
        got = await refusal(call)
        assert (got.code, got.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_OWNER")
    await mine.nothing_for(0.1)


async def test_a_retried_call_joins_the_job_it_made(client: Client) -> None:
    holder = await client.holder(8)
    first = await client.waiter(2, request_id="abc", name="one")
    behind = await client.waiter(2)
    again = client.acquire(2, request_id="abc", name="one")
    accepted = await again.enter()
    assert (accepted.job_id, accepted.resumed) == (first.job_id, True)
    # The secret is a new one (the old answer may have been lost), and the old one is worth nothing.
    assert accepted.resume_token != first.accepted.resume_token
    assert (await first.end()).reason == "SUPERSEDED"
    assert (await resume(client, first.accepted.resume_token).end()).reason == "LEASE_LOST"
    assert (await again.until("queued")).position == 1
    assert (await client.job(behind.job_id)).position == 2
    assert (await client.status()).jobs_queued == 2
    holder.cancel()
    await again.granted()


async def test_a_retried_call_of_a_holder_joins_its_lease(client: Client) -> None:
    first = await client.holder(2, request_id="run-1")
    again = client.acquire(2, request_id="run-1")
    assert (await again.enter()).resumed
    assert (await again.until("granted")).epoch == first.grant.epoch
    await again.release(outcome=job_pb2.Outcome(exit_status=0))
    assert (await again.end()).code is grpc.StatusCode.OK
    # That job has ended: the id makes a new one.
    fresh = await client.holder(1, request_id="run-1")
    assert not fresh.accepted.resumed
    assert fresh.job_id != first.job_id


async def test_another_users_request_id_is_another_one(client: Client, stranger: Client) -> None:
    mine = await client.holder(1, request_id="same")
    theirs = stranger.acquire(1, request_id="same")
    assert not (await theirs.enter()).resumed
    assert theirs.job_id != mine.job_id
    await mine.nothing_for(0.1)
