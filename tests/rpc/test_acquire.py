"""The stream that is ticket, grant and lease: its events, its end, and what history keeps."""

from __future__ import annotations

import time

import grpc
import pytest

from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2
from rpc.calls import Client, refusal


async def test_a_free_gpu_is_granted_right_after_the_acceptance_and_told_once(client: Client) -> None:
    stream = client.acquire(2)
    assert (await stream.enter()).resume_token
    kind, grant = await stream.next()
    assert kind == "granted"
    await stream.confirm()
    await stream.nothing_for(0.2)
    assert stream.seen == ["accepted", "granted"]
    assert grant.job_id == stream.job_id
    assert [gpu.index for gpu in grant.gpus] == [0, 1]
    assert grant.lease_id
    assert grant.epoch > 0
    assert 0 < grant.confirm_by.seconds - time.time() < 10
    assert not grant.HasField("expires_at")


async def test_what_is_known_at_the_acceptance_comes_with_it(client: Client) -> None:
    """One message for who need not wait: to be told twice would cost each of them as much again."""
    call = client.scheduler.Acquire(scheduler_pb2.AcquireRequest(resources=resources_pb2.ResourceRequest(gpus=8)))
    first = await call.read()
    assert first.accepted.job_id == first.granted.job_id and first.accepted.resume_token
    waiter = client.scheduler.Acquire(scheduler_pb2.AcquireRequest(resources=resources_pb2.ResourceRequest(gpus=1)))
    first = await waiter.read()
    assert first.accepted.job_id == first.queued.job_id and first.queued.position == 1
    call.cancel()
    second = await waiter.read()
    while second.HasField("queued"):
        second = await waiter.read()
    assert second.HasField("granted") and not second.HasField("accepted")
    waiter.cancel()


async def test_events_of_a_waiter_are_full_states(client: Client) -> None:
    first = await client.holder(8, name="big run")
    second = await client.waiter(3, name="second")
    third = client.acquire(1)
    accepted = await third.enter()
    assert (accepted.job_id, accepted.resumed, bool(accepted.state_id)) == (third.job_id, False, True)
    kind, queued = await third.next()
    assert kind == "queued"
    assert (queued.job_id, queued.position, queued.total) == (third.job_id, 2, 2)
    assert queued.HasField("submitted_at")
    assert queued.reason.code == job_pb2.REASON_CODE_PRIORITY
    assert queued.reason.ahead_job_id == second.job_id
    assert second.job_id in queued.reason.message
    assert "needs 3 GPUs" in queued.reason.message
    # The second one goes: the third one is told its new place and the new cause, all of it.
    second.cancel()
    queued = await third.queued_as(lambda queued: queued.position == 1)
    assert (queued.job_id, queued.total, queued.reason.code) == (third.job_id, 1, job_pb2.REASON_CODE_RESOURCES)
    assert (queued.reason.gpus_needed, queued.reason.gpus_free) == (1, 0)
    assert len(queued.reason.blockers) == 8
    blocker = queued.reason.blockers[3]
    assert (blocker.gpu_index, blocker.job_id, blocker.job_name) == (3, first.job_id, "big run")
    assert "big run" in queued.reason.message
    first.cancel()
    await third.granted()
    assert third.seen[0] == "accepted"
    assert third.seen[-1] == "granted"


async def test_the_environment_of_a_grant(client: Client) -> None:
    await client.holder(3)
    stream = await client.holder(2)
    uuids = [gpu.uuid for gpu in stream.grant.gpus]
    assert stream.indices == [3, 4]
    node = stream.grant.gpus[0].node
    assert dict(stream.grant.environment) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "3,4",
        "NVIDIA_VISIBLE_DEVICES": "3,4",
        "GPUSCHED_JOB_ID": stream.job_id,
        "GPUSCHED_LEASE_ID": stream.grant.lease_id,
        "GPUSCHED_GPUS": ",".join(uuids),
        "GPUSCHED_NODE": node,
    }


async def test_epochs_rise_with_every_grant(client: Client) -> None:
    epochs = []
    for _ in range(3):
        stream = await client.holder(1)
        epochs.append(stream.grant.epoch)
        await stream.release()
        await stream.end()
    assert epochs == sorted(set(epochs))


@pytest.mark.parametrize(
    ("outcome", "state", "message"),
    [
        ({"exit_status": 0}, "COMPLETED", "exit 0"),
        ({"exit_status": 3}, "FAILED", "exit 3"),
        ({"signal": 9}, "FAILED", "killed by signal 9"),
        ({"exit_status": 3, "message": "out of memory"}, "FAILED", "exit 3: out of memory"),
        ({}, "COMPLETED", "released"),
        ({"exit_status": 0, "message": "a\nb\x1b[31m"}, "COMPLETED", "exit 0: a?b?[31m"),
    ],
)
async def test_release_says_how_the_work_ended(
    client: Client, outcome: dict[str, object], state: str, message: str
) -> None:
    stream = await client.holder(1)
    await stream.release(outcome=job_pb2.Outcome(**outcome))
    kind, ended = await stream.next()
    assert kind == "ended"
    assert (ended.state, ended.message) == (job_pb2.JobState.Value(f"JOB_STATE_{state}"), message)
    assert (await stream.end()).code is grpc.StatusCode.OK
    job = await client.job(stream.job_id)
    assert (job.state, job.outcome.message) == (ended.state, message)
    assert job.outcome.HasField("exit_status") == ("exit_status" in outcome)
    assert [gpu.index for gpu in job.gpus] == [0]
    assert [(job_pb2.JobState.Name(line.state)[10:], line.message) for line in job.history] == [
        ("QUEUED", "accepted"),
        ("RUNNING", "granted 1 GPU"),
        ("RUNNING", "confirmed"),
        (state, message),
    ]


async def test_release_because_of_the_time_limit(client: Client) -> None:
    stream = await client.holder(1, time_limit=60)
    assert stream.grant.expires_at.seconds - stream.grant.granted_at.seconds == 60
    await stream.release(timed_out=True, outcome=job_pb2.Outcome(signal=15))
    assert (await client.job_in(stream.job_id, "TIMED_OUT")).outcome.signal == 15


async def test_release_and_confirm_want_the_right_token_epoch_and_job(client: Client, connect: object) -> None:
    stream = await client.holder(1)
    other = await client.holder(1)
    cases: list[tuple[dict[str, object], grpc.StatusCode, str, str]] = [
        ({"resume_token": "wrong"}, grpc.StatusCode.PERMISSION_DENIED, "WRONG_TOKEN", "resume_token"),
        ({"resume_token": ""}, grpc.StatusCode.PERMISSION_DENIED, "WRONG_TOKEN", "resume_token"),
        ({"job_id": other.job_id}, grpc.StatusCode.PERMISSION_DENIED, "WRONG_TOKEN", "resume_token"),
        ({"job_id": "999999"}, grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", "job_id"),
        ({"job_id": "seven"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "job_id"),
    ]
    for changes, code, reason, field in cases:
        for call in (scheduler_pb2.ConfirmRequest, scheduler_pb2.ReleaseRequest):
            method = client.scheduler.Confirm if call is scheduler_pb2.ConfirmRequest else client.scheduler.Release
            got = await refusal(method(call(**(stream.key | changes))))
            assert (got.code, got.reason, got.fields) == (code, reason, (field,)), changes
    epoch = {"epoch": stream.grant.epoch + 1}
    got = await refusal(client.scheduler.Confirm(scheduler_pb2.ConfirmRequest(**(stream.key | epoch))))
    assert (got.code, got.reason) == (grpc.StatusCode.ABORTED, "GRANT_EXPIRED")
    got = await refusal(stream.release(**epoch))
    assert (got.code, got.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")
    for status in (-1, 256):
        got = await refusal(stream.release(outcome=job_pb2.Outcome(exit_status=status)))
        assert (got.code, got.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ("outcome.exit_status",))
        assert "0 to 255" in got.message
    # None of that has ended anything.
    await stream.nothing_for(0.1)
    await stream.release()
    got = await refusal(stream.release())
    assert (got.code, got.reason) == (grpc.StatusCode.ABORTED, "JOB_ENDED")


async def test_a_dropped_holder_is_lost_and_its_gpus_are_free_at_once(client: Client) -> None:
    stream = await client.holder(8)
    waiter = await client.waiter(8)
    stream.cancel()
    began = time.monotonic()
    await waiter.granted()
    assert time.monotonic() - began < 1.0
    job = await client.job(stream.job_id)
    assert job.state == job_pb2.JOB_STATE_LOST
    assert not job.outcome.HasField("exit_status")


async def test_leaving_the_queue_leaves_no_trace_in_it(client: Client) -> None:
    await client.holder(8)
    waiters = [await client.waiter(1) for _ in range(3)]
    waiters[1].cancel()
    queued = await waiters[2].queued_as(lambda queued: queued.total == 2)
    assert queued.position == 2
    assert (await client.job_in(waiters[1].job_id, "CANCELLED")).outcome.message == "left the queue"
    assert (await client.status()).jobs_queued == 2


async def test_auto_confirm_has_nothing_to_confirm(client: Client) -> None:
    stream = client.acquire(1, auto_confirm=True)
    grant = await stream.until("granted")
    assert not grant.HasField("confirm_by")
    await stream.confirm()  # is allowed, and changes nothing


async def test_immediate_does_not_wait(client: Client) -> None:
    holder = client.acquire(8, immediate=True)
    await holder.granted()
    stream = client.acquire(1, immediate=True)
    await stream.enter()
    ended = await stream.until("ended")
    assert ended.state == job_pb2.JOB_STATE_CANCELLED
    got = await stream.end()
    assert (got.code, got.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_GPU_FREE")
    assert "queued" not in stream.seen


async def test_immediate_right_after_a_release(client: Client) -> None:
    """A GPU that is just being looked at counts as not free; but for a simulated one that is over at once."""
    for _ in range(20):
        stream = client.acquire(8, immediate=True)
        await stream.granted()
        await stream.release()


async def test_max_wait_ends_the_wait(client: Client) -> None:
    await client.holder(8)
    began = time.monotonic()
    stream = await client.waiter(1, max_wait=0.3)
    assert (await stream.until("ended")).state == job_pb2.JOB_STATE_CANCELLED
    got = await stream.end()
    assert (got.code, got.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "MAX_WAIT")
    assert 0.25 < time.monotonic() - began < 5.0


async def test_max_wait_means_nothing_once_granted(client: Client) -> None:
    stream = await client.holder(1, max_wait=0.2)
    await stream.nothing_for(0.5)


async def test_a_dry_run_tells_and_changes_nothing(client: Client) -> None:
    before = await client.status()
    answer = client.acquire(5, dry_run=True)
    kind, told = await answer.next()
    assert kind == "dry_run"
    assert told.starts_now
    assert [gpu.index for gpu in told.gpus] == [0, 1, 2, 3, 4]
    assert (await answer.end()).code is grpc.StatusCode.OK
    assert (await client.status()).jobs_total == before.jobs_total

    await client.holder(6)
    waiter = await client.waiter(4)
    told = await client.acquire(3, dry_run=True).until("dry_run")
    assert (told.starts_now, told.position, len(told.gpus)) == (False, 2, 0)
    assert told.reason.ahead_job_id == waiter.job_id
    await waiter.nothing_for(0.2)
    assert (await client.status()).jobs_total == before.jobs_total + 2


async def test_a_dry_run_ahead_of_others_leaves_them_their_reasons(client: Client) -> None:
    """Its verdicts once stayed behind: those who wait were said to wait behind a job that does not exist."""
    holder = await client.holder(8, name="holder")
    waiter = await client.waiter(1)
    told = await client.acquire(2, dry_run=True, priority=10).until("dry_run")
    assert (told.starts_now, told.position) == (False, 1)
    job = await client.job(waiter.job_id)
    assert (job.position, job.reason.code) == (1, job_pb2.REASON_CODE_RESOURCES)
    assert "holder" in job.reason.message
    holder.cancel()
    await waiter.granted()


async def test_a_dry_run_is_refused_like_the_real_thing(client: Client) -> None:
    got = await client.acquire(9, dry_run=True).end()
    assert (got.code, got.fields) == (grpc.StatusCode.FAILED_PRECONDITION, ("resources.gpus",))


async def test_all_or_nothing_and_no_overtaking(client: Client) -> None:
    """A big job is not passed by small ones that would fit, and gets all its GPUs in one grant."""
    holders = [await client.holder(2) for _ in range(4)]
    big = await client.waiter(8)
    small = await client.waiter(1)
    for holder in holders[:3]:
        holder.cancel()
    await big.queued_as(lambda queued: queued.reason.gpus_free == 6)
    await small.nothing_for(0.2)
    holders[3].cancel()
    await big.granted()
    assert big.indices == list(range(8))
    assert (await client.job(small.job_id)).state == job_pb2.JOB_STATE_QUEUED
    big.cancel()
    await small.granted()


async def test_higher_priority_goes_first_and_equal_ones_in_order(client: Client) -> None:
    holder = await client.holder(8)
    low = await client.waiter(8, priority=-5)
    first, second = await client.waiter(8), await client.waiter(8)
    high = await client.waiter(8, priority=7)
    assert (await low.queued_as(lambda queued: queued.position == 4)).total == 4
    order = []
    holder.cancel()
    for stream, name in ((high, "high"), (first, "first"), (second, "second"), (low, "low")):
        await stream.granted()
        order.append(name)
        stream.cancel()
    assert order == ["high", "first", "second", "low"]
