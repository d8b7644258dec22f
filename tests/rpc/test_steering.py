"""Cancel, priorities, limits, pause and drain, by those who may."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest

from gpusched.v1 import admin_pb2, job_pb2, resources_pb2, scheduler_pb2
from rpc.calls import Client, refusal
from rpc.servers import running
from support.server import Server

GRACE = 0.6


@pytest.fixture(scope="module")
def box() -> Iterator[Server]:
    with running("2x4", "--grace", f"{GRACE}s") as server:
        yield server


def at(stamp: object) -> float:
    return stamp.seconds + stamp.nanos / 1e9  # type: ignore[attr-defined]


async def test_cancel_of_a_waiting_job(client: Client) -> None:
    await client.holder(8)
    waiter = await client.waiter(1)
    job = await client.cancel_job(waiter.job_id, "not needed any more")
    assert job.state == job_pb2.JOB_STATE_CANCELLED
    ended = await waiter.until("ended")
    assert ended.state == job_pb2.JOB_STATE_CANCELLED
    assert ended.message.endswith(": not needed any more")
    got = await waiter.end()
    assert (got.code, got.reason) == (grpc.StatusCode.CANCELLED, "JOB_CANCELLED")
    assert got.message == ended.message


async def test_cancel_of_a_running_job_is_a_notice_then_a_revocation(client: Client) -> None:
    stream = await client.holder(8)
    waiter = await client.waiter(8)
    began = time.monotonic()
    job = await client.cancel_job(stream.job_id, "maintenance")
    assert job.state == job_pb2.JOB_STATE_RUNNING
    notice = await stream.until("notice")
    assert notice.kind == scheduler_pb2.NOTICE_KIND_CANCEL
    assert "maintenance" in notice.message
    assert 0 < at(notice.deadline) - time.time() <= GRACE + 1.0
    seen = await client.job(stream.job_id)
    assert (seen.ending, seen.ending_at) == (notice.message, notice.deadline)
    # Asking twice neither repeats the notice nor moves the deadline.
    await client.cancel_job(stream.job_id)
    assert (await stream.next())[0] == "ended"
    assert GRACE - 0.1 < time.monotonic() - began < GRACE + 2.0
    got = await stream.end()
    assert (got.code, got.reason) == (grpc.StatusCode.ABORTED, "LEASE_REVOKED")
    gone = await client.job(stream.job_id)
    assert gone.state == job_pb2.JOB_STATE_CANCELLED and not gone.ending
    await waiter.granted()


async def test_a_holder_that_obeys_a_cancel_has_been_cancelled(client: Client) -> None:
    for release in (True, False):
        stream = await client.holder(1)
        await client.cancel_job(stream.job_id)
        await stream.until("notice")
        if release:
            await stream.release(outcome=job_pb2.Outcome(signal=15))
        else:
            stream.cancel()
        await client.job_in(stream.job_id, "CANCELLED")


async def test_cancel_of_a_finished_or_unknown_job(client: Client) -> None:
    stream = await client.holder(1)
    await stream.release()
    for _ in range(2):
        got = await refusal(client.scheduler.CancelJob(scheduler_pb2.CancelJobRequest(job_id=stream.job_id)))
        assert (got.code, got.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_ENDED")
        assert got.fields == ("job_id",)
        assert "completed" in got.message


async def test_a_reason_of_any_alphabet_reaches_the_holder(client: Client) -> None:
    """Statuses travel in headers, which clients take up to 8 KiB of: a long text once lost the whole status."""
    await client.holder(8)
    waiter = await client.waiter(1)
    text = "\U0001f600" * 500
    await client.cancel_job(waiter.job_id, text)
    assert (await waiter.until("ended")).message.endswith(text)
    got = await waiter.end()
    assert (got.code, got.reason) == (grpc.StatusCode.CANCELLED, "JOB_CANCELLED")
    assert got.message.endswith("\U0001f600…")


@pytest.mark.slow
async def test_the_time_limit_is_announced_and_then_enforced(client: Client) -> None:
    stream = await client.holder(8, time_limit=1.0)
    assert at(stream.grant.expires_at) - at(stream.grant.granted_at) == pytest.approx(1.0, abs=0.01)
    waiter = await client.waiter(1)
    blockers = (await client.job(waiter.job_id)).reason.blockers
    assert at(blockers[0].until) == pytest.approx(at(stream.grant.expires_at), abs=0.01)
    notice = await stream.until("notice")
    assert notice.kind == scheduler_pb2.NOTICE_KIND_TIME_LIMIT
    assert at(notice.deadline) == pytest.approx(at(stream.grant.expires_at), abs=0.01)
    ended = await stream.until("ended")
    assert ended.state == job_pb2.JOB_STATE_TIMED_OUT
    assert time.time() >= at(stream.grant.expires_at) + GRACE - 0.2
    got = await stream.end()
    assert (got.code, got.reason) == (grpc.StatusCode.ABORTED, "LEASE_REVOKED")
    await waiter.granted()


async def test_priority_can_be_changed_while_waiting(client: Client) -> None:
    holder = await client.holder(8)
    first, second = await client.waiter(8), await client.waiter(8)
    request = scheduler_pb2.UpdateJobRequest(
        job=job_pb2.Job(id=second.job_id, priority=5, name="ignored"), update_mask={"paths": ["priority"]}
    )
    job = (await client.scheduler.UpdateJob(request)).job
    assert (job.priority, job.position, job.name) == (5, 1, "")
    await first.queued_as(lambda queued: queued.position == 2)
    await second.queued_as(lambda queued: queued.position == 1)
    holder.cancel()
    await second.granted()
    assert (await client.job(first.job_id)).state == job_pb2.JOB_STATE_QUEUED


async def test_an_update_that_is_refused_changes_nothing(client: Client) -> None:
    stream = await client.holder(1, name="old")
    cases: list[tuple[dict[str, object], list[str], str, str]] = [
        ({"priority": 7, "name": "two\nlines"}, ["priority", "name"], "name", "printable"),
        ({"priority": 101, "name": "new"}, ["name", "priority"], "priority", "-100 to 100"),
        ({"priority": 7}, [], "update_mask", "priority, name"),
        ({"priority": 7}, ["state"], "update_mask", "priority, name"),
        ({"priority": 7}, ["priority", "x" * 500_000], "update_mask", "priority, name"),
    ]
    for changes, paths, field, allowed in cases:
        request = scheduler_pb2.UpdateJobRequest(
            job=job_pb2.Job(id=stream.job_id, **changes), update_mask={"paths": paths}
        )
        got = await refusal(client.scheduler.UpdateJob(request))
        assert (got.code, got.fields) == (grpc.StatusCode.INVALID_ARGUMENT, (field,))
        assert allowed in got.message
        job = await client.job(stream.job_id)
        assert (job.priority, job.name) == (0, "old")
    await stream.release()
    request = scheduler_pb2.UpdateJobRequest(
        job=job_pb2.Job(id=stream.job_id, name="new"), update_mask={"paths": ["name"]}
    )
    got = await refusal(client.scheduler.UpdateJob(request))
    assert (got.code, got.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_ENDED")


async def test_pause_and_resume(client: Client, operator: Client) -> None:
    holder = await client.holder(1)
    await operator.admin.PauseScheduling(admin_pb2.PauseSchedulingRequest(reason="moving racks"))
    status = await client.status()
    assert (status.paused, status.pause_reason) == (True, "moving racks")
    waiter = client.acquire(1)
    queued = await waiter.until("queued")
    assert queued.reason.code == job_pb2.REASON_CODE_PAUSED
    assert "moving racks" in queued.reason.message
    told = await client.acquire(1, dry_run=True).until("dry_run")
    assert (told.starts_now, told.reason.code) == (False, job_pb2.REASON_CODE_PAUSED)
    # Running jobs go on, and may end.
    await holder.release()
    await client.job_in(holder.job_id, "COMPLETED")
    assert (await client.job(waiter.job_id)).state == job_pb2.JOB_STATE_QUEUED
    await operator.admin.ResumeScheduling(admin_pb2.ResumeSchedulingRequest())
    await waiter.granted()
    assert not (await client.status()).paused


async def test_drain_and_undrain_of_a_gpu(client: Client, operator: Client) -> None:
    holder = await client.holder(1)
    (shown,) = await operator.drain(gpu="0", reason="fan")
    assert (shown.index, shown.drained, shown.state) == (0, True, resources_pb2.GPU_STATE_ALLOCATED)
    notice = await holder.until("notice")
    assert notice.kind == scheduler_pb2.NOTICE_KIND_DRAIN
    assert "fan" in notice.message
    assert not notice.HasField("deadline")
    await holder.release()
    gpu = await client.gpu_in(0, "DRAINED")
    assert gpu.message == "drained: fan"
    assert (await client.holder(1)).indices == [1]
    waiter = client.acquire(8)
    queued = await waiter.until("queued")
    assert queued.reason.code == job_pb2.REASON_CODE_UNAVAILABLE
    assert "fan" in queued.reason.message
    assert "7 of 8" in queued.reason.message
    waiter.cancel()
    (shown,) = await operator.undrain(gpu="0")
    assert (shown.drained, shown.state) == (False, resources_pb2.GPU_STATE_FREE)


async def test_drain_of_a_node_by_name_and_of_a_gpu_by_node_and_index(client: Client, operator: Client) -> None:
    nodes = (await client.scheduler.ListNodes(scheduler_pb2.ListNodesRequest())).nodes
    names = [node.name for node in nodes]
    assert [node.gpus_total for node in nodes] == [4, 4]
    gpus = await operator.drain(node=names[0])
    assert [gpu.node for gpu in gpus] == [names[0]] * 4
    stream = await client.holder(4)
    assert {gpu.node for gpu in stream.grant.gpus} == {names[1]}
    nodes = (await client.scheduler.ListNodes(scheduler_pb2.ListNodesRequest())).nodes
    assert [(node.drained, node.gpus_free, node.gpus_allocated) for node in nodes] == [(True, 0, 0), (False, 0, 4)]
    await operator.undrain(node=names[0])
    (gpu,) = await operator.drain(gpu=f"{names[1]}:2")
    assert (gpu.node, gpu.index) == (names[1], 2)
    await operator.undrain(gpu=gpu.uuid)


async def test_a_grant_over_two_nodes_names_no_single_node(client: Client) -> None:
    stream = await client.holder(8)
    assert len({gpu.node for gpu in stream.grant.gpus}) == 2
    environment = dict(stream.grant.environment)
    assert "CUDA_VISIBLE_DEVICES" not in environment
    assert "GPUSCHED_NODE" not in environment
    assert environment["GPUSCHED_GPUS"].count(",") == 7


async def test_only_administrators_steer_the_box(client: Client) -> None:
    target = admin_pb2.DrainTarget(gpu="0")
    calls = {
        "drain": client.admin.Drain(admin_pb2.DrainRequest(target=target)),
        "undrain": client.admin.Undrain(admin_pb2.UndrainRequest(target=target)),
        "pause": client.admin.PauseScheduling(admin_pb2.PauseSchedulingRequest()),
        "resume": client.admin.ResumeScheduling(admin_pb2.ResumeSchedulingRequest()),
    }
    for word, call in calls.items():
        got = await refusal(call)
        assert (got.code, got.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ADMIN_REQUIRED")
        assert word in got.message
        assert "gpusched token" in got.message


async def test_a_wrong_token_is_worse_than_none(client: Client) -> None:
    for value in ("Bearer wrong", "Bearer ", "Basic abc", "x" * 5000):
        call = client.scheduler.GetStatus(scheduler_pb2.GetStatusRequest(), metadata=(("authorization", value),))
        got = await refusal(call)
        assert (got.code, got.reason, got.fields) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "WRONG_TOKEN",
            ("authorization",),
        )


async def test_wrong_targets(operator: Client) -> None:
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    cases: list[tuple[dict[str, str], grpc.StatusCode, str, str]] = [
        ({}, invalid, "target", "gpu or a node"),
        ({"gpu": ""}, invalid, "target.gpu", "node:index"),
        ({"gpu": "first"}, invalid, "target.gpu", "node:index"),
        ({"gpu": "9" * 5000}, invalid, "target.gpu", "node:index"),
        ({"gpu": "-1"}, invalid, "target.gpu", "node:index"),
        ({"gpu": "4"}, missing, "target.gpu", "has 4, from 0 up"),
        ({"gpu": "nowhere:0"}, missing, "target.gpu", "there is no node 'nowhere'"),
        ({"gpu": "x" * 500_000 + ":0"}, missing, "target.gpu", "there is no node"),
        ({"node": "nowhere"}, missing, "target.node", "there is no node 'nowhere'"),
    ]
    for target, code, field, allowed in cases:
        request = admin_pb2.DrainRequest(target=admin_pb2.DrainTarget(**target))
        got = await refusal(operator.admin.Drain(request))
        assert (got.code, got.fields) == (code, (field,)), target
        assert allowed in got.message
    got = await refusal(operator.admin.PauseScheduling(admin_pb2.PauseSchedulingRequest(reason="a\nb")))
    assert (got.code, got.fields) == (invalid, ("reason",))


async def test_a_limit_that_is_not_given_is_no_limit_taken_away(client: Client) -> None:
    stream = await client.holder(1, time_limit=600.0)
    request = scheduler_pb2.UpdateJobRequest(job=job_pb2.Job(id=stream.job_id))
    request.update_mask.paths.append("time_limit")
    got = await refusal(client.scheduler.UpdateJob(request))
    assert got.code is grpc.StatusCode.INVALID_ARGUMENT and got.fields == ("job.time_limit",)
