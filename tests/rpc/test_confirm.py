"""A granted holder must say that it is awake; who does not, sits on nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest

from gpusched.v1 import job_pb2, scheduler_pb2
from rpc.calls import Client, refusal
from rpc.servers import running
from support.server import Server

WINDOW = 0.5


@pytest.fixture(scope="module")
def box() -> Iterator[Server]:
    with running("4", "--confirm-within", f"{WINDOW}s") as server:
        yield server


async def test_a_grant_that_is_not_confirmed_goes_to_the_next_and_comes_back(client: Client) -> None:
    sleeper = client.acquire(4)
    await sleeper.until("granted")
    began = time.monotonic()
    second = await client.waiter(4)
    third = await client.waiter(1)
    # Withdrawn: it is told that it waits, at its old place, and why.
    queued = await sleeper.until("queued")
    assert time.monotonic() - began < WINDOW + 2.0
    assert (queued.position, queued.reason.code) == (1, job_pb2.REASON_CODE_UNCONFIRMED)
    assert "did not answer" in queued.reason.message
    await second.granted()
    job = await client.job(sleeper.job_id)
    assert (job.state, job.position, list(job.gpus)) == (job_pb2.JOB_STATE_QUEUED, 1, [])
    # It is passed over, though it is first: the one behind it is served as soon as there is room.
    second.cancel()
    await third.granted()
    assert (await client.status()).gpus_free == 3
    assert (await client.job(sleeper.job_id)).position == 1
    # The late answer is refused, and counts as a sign of life: it is offered GPUs again.
    got = await refusal(client.scheduler.Confirm(scheduler_pb2.ConfirmRequest(**sleeper.key)))
    assert (got.code, got.reason) == (grpc.StatusCode.ABORTED, "GRANT_EXPIRED")
    old = sleeper.grant.epoch
    await sleeper.queued_as(lambda queued: queued.reason.code == job_pb2.REASON_CODE_RESOURCES)
    third.cancel()
    grant = await sleeper.granted()
    assert grant.epoch > old
    assert (await client.job(sleeper.job_id)).state == job_pb2.JOB_STATE_RUNNING


async def test_a_confirmed_grant_stays(client: Client) -> None:
    stream = await client.holder(4)
    waiter = await client.waiter(1)
    await stream.nothing_for(WINDOW + 0.3)
    assert (await client.job(waiter.job_id)).state == job_pb2.JOB_STATE_QUEUED


async def test_confirming_twice_is_fine_and_an_expired_epoch_is_not(client: Client) -> None:
    stream = await client.holder(1)
    await stream.confirm()
    got = await refusal(client.scheduler.Confirm(scheduler_pb2.ConfirmRequest(**(stream.key | {"epoch": 1 << 62}))))
    assert (got.code, got.reason) == (grpc.StatusCode.ABORTED, "GRANT_EXPIRED")
    await stream.nothing_for(0.1)


async def test_a_withdrawn_lease_cannot_be_released_and_no_gpu_is_lost(client: Client) -> None:
    stream = client.acquire(2)
    await stream.until("granted")
    await stream.until("queued")
    got = await refusal(stream.release())
    assert (got.code, got.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")
    other = await client.holder(4)
    assert other.indices == [0, 1, 2, 3]


async def test_one_who_sleeps_on_and_leaves_is_gone(client: Client) -> None:
    stream = client.acquire(2)
    await stream.until("granted")
    await stream.until("queued")
    stream.cancel()
    assert (await client.job_in(stream.job_id, "CANCELLED")).outcome.message == "left the queue"


async def test_coming_back_with_the_token_wakes_a_sleeper(client: Client) -> None:
    stream = client.acquire(4)
    await stream.until("granted")
    await stream.until("queued")
    again = client.open(scheduler_pb2.AcquireRequest(resume_token=stream.accepted.resume_token))
    assert (await again.enter()).resumed
    assert (await again.granted()).epoch > stream.grant.epoch
    assert (await stream.end()).reason == "SUPERSEDED"


async def test_auto_confirm_is_not_withdrawn(client: Client) -> None:
    stream = client.acquire(4, auto_confirm=True)
    await stream.until("granted")
    await stream.nothing_for(WINDOW + 0.3)
