"""What is wrong is refused with the right status, the field at fault and what is allowed; and nothing is lost."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2

from gpusched.v1 import job_pb2, scheduler_pb2
from rpc.calls import OPTIONS, PATIENCE, Client, Refusal, refusal
from rpc.servers import running
from support.server import Server

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NEVER = grpc.StatusCode.FAILED_PRECONDITION
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def box() -> Iterator[Server]:
    with running("2xH100:80GB,2xA100:40GB") as server:
        yield server


ACQUIRE: list[tuple[str, dict[str, Any], grpc.StatusCode, str, str, str]] = [
    ("no GPUs", {"gpus": 0}, INVALID, "INVALID_REQUEST", "resources.gpus", "at least 1"),
    ("negative GPUs", {"gpus": -3}, INVALID, "INVALID_REQUEST", "resources.gpus", "at least 1"),
    ("more than exist", {"gpus": 5}, NEVER, "NOT_SATISFIABLE", "resources.gpus", "only 4"),
    ("huge", {"gpus": 2**31 - 1}, NEVER, "NOT_SATISFIABLE", "resources.gpus", "only 4"),
    ("unknown model", {"gpu_model": "B200"}, NEVER, "UNKNOWN_MODEL", "resources.gpu_model", "'B200'; there are: A100"),
    ("too many of a model", {"gpus": 3, "gpu_model": "a100"}, NEVER, "NOT_SATISFIABLE", "resources.gpus", "only 2"),
    ("model of two lines", {"gpu_model": "a\nb"}, INVALID, "INVALID_REQUEST", "resources.gpu_model", "128 printable"),
    ("long model", {"gpu_model": "x" * 900_000}, INVALID, "INVALID_REQUEST", "resources.gpu_model", "128 printable"),
    (
        "too much memory",
        {"gpu_memory_bytes": 81 << 30},
        NEVER,
        "NOT_SATISFIABLE",
        "resources.gpu_memory_bytes",
        "the largest has 80 GiB",
    ),
    (
        "too much memory for a model",
        {"gpu_memory_bytes": 2**63 - 1, "gpu_model": "A100"},
        NEVER,
        "NOT_SATISFIABLE",
        "resources.gpu_memory_bytes",
        "the largest has 40 GiB",
    ),
    (
        "too many with memory",
        {"gpus": 3, "gpu_memory_bytes": 60 << 30},
        NEVER,
        "NOT_SATISFIABLE",
        "resources.gpus",
        "only 2 that will do",
    ),
    (
        "negative memory",
        {"gpu_memory_bytes": -1},
        INVALID,
        "INVALID_REQUEST",
        "resources.gpu_memory_bytes",
        "must not be negative",
    ),
    ("unknown node", {"node": "mars"}, NEVER, "UNKNOWN_NODE", "resources.node", "no node 'mars'; there is"),
    ("node of two lines", {"node": "a\nb"}, INVALID, "INVALID_REQUEST", "resources.node", "128 printable"),
    ("name of two lines", {"name": "a\nb"}, INVALID, "INVALID_REQUEST", "name", "printable"),
    ("terminal escape", {"name": "\x1b[2J"}, INVALID, "INVALID_REQUEST", "name", "printable"),
    ("text turned round", {"name": "abc\u202edef"}, INVALID, "INVALID_REQUEST", "name", "printable"),
    ("1 MB name", {"name": "x" * 1_000_000}, INVALID, "INVALID_REQUEST", "name", "at most 128"),
    ("priority", {"priority": 101}, INVALID, "INVALID_REQUEST", "priority", "-100 to 100"),
    ("low priority", {"priority": -(2**31)}, INVALID, "INVALID_REQUEST", "priority", "-100 to 100"),
    ("no time", {"time_limit": 0}, INVALID, "INVALID_REQUEST", "time_limit", "more than 0 s up to ten years"),
    ("negative time", {"time_limit": -5}, INVALID, "INVALID_REQUEST", "time_limit", "more than 0 s"),
    ("eternity", {"time_limit": 10**11}, INVALID, "INVALID_REQUEST", "time_limit", "up to ten years"),
    ("negative wait", {"max_wait": -0.5}, INVALID, "INVALID_REQUEST", "max_wait", "from 0 s up to ten years"),
    (
        "nanos of the other sign",
        {"time_limit": duration_pb2.Duration(seconds=5, nanos=-1)},
        INVALID,
        "INVALID_REQUEST",
        "time_limit",
        "have the sign of seconds",
    ),
    (
        "too many nanos",
        {"max_wait": duration_pb2.Duration(seconds=1, nanos=2_000_000_000)},
        INVALID,
        "INVALID_REQUEST",
        "max_wait",
        "0 to 999999999",
    ),
    ("two wishes", {"max_wait": 5, "immediate": True}, INVALID, "INVALID_REQUEST", "max_wait", "one of them"),
    ("long request id", {"request_id": "x" * 129}, INVALID, "INVALID_REQUEST", "request_id", "at most 128"),
    ("odd request id", {"request_id": "\0"}, INVALID, "INVALID_REQUEST", "request_id", "printable"),
    ("words", {"command": ["x"] * 5000}, INVALID, "INVALID_REQUEST", "command", "at most 4096 words"),
    ("long word", {"command": ["x" * 70_000]}, INVALID, "INVALID_REQUEST", "command", "65536 characters"),
]


@pytest.mark.parametrize(
    ("fields", "code", "reason", "field", "allowed"), [case[1:] for case in ACQUIRE], ids=[case[0] for case in ACQUIRE]
)
async def test_acquire(
    client: Client, fields: dict[str, Any], code: grpc.StatusCode, reason: str, field: str, allowed: str
) -> None:
    before = (await client.status()).jobs_total
    got = await client.acquire(**fields).end()
    assert (got.code, got.reason, got.domain, got.fields) == (code, reason, "gpusched", (field,))
    assert allowed in got.message
    assert got.message.startswith(f"{field}: ")
    assert got.message.isprintable()
    assert (await client.status()).jobs_total == before


async def test_what_is_on_the_edge_is_taken(client: Client) -> None:
    for fields in (
        {"name": "x" * 128},
        {"name": "größer als 中文"},
        {"priority": 100},
        {"priority": -100},
        {"gpus": 2, "gpu_model": " h100 ", "gpu_memory_bytes": 80 << 30},
        {"time_limit": duration_pb2.Duration(nanos=1)},
        {"request_id": "x" * 128},
        {"command": ["x" * 65536]},
    ):
        stream = client.acquire(**fields)
        await stream.enter()
        stream.cancel()


JOB_IDS = ["", "x", "-1", "1.0", "١", "1" * 19, "9" * 100_000, "1\n"]


def calls_by_job(client: Client, job_id: str) -> dict[str, Any]:
    stub = client.scheduler
    mask = {"paths": ["name"]}
    return {
        "job_id": [
            stub.GetJob(scheduler_pb2.GetJobRequest(job_id=job_id)),
            stub.CancelJob(scheduler_pb2.CancelJobRequest(job_id=job_id)),
            stub.ExplainJob(scheduler_pb2.ExplainJobRequest(job_id=job_id)),
            stub.Confirm(scheduler_pb2.ConfirmRequest(job_id=job_id)),
            stub.Release(scheduler_pb2.ReleaseRequest(job_id=job_id)),
        ],
        "job.id": [
            stub.UpdateJob(scheduler_pb2.UpdateJobRequest(job=job_pb2.Job(id=job_id), update_mask=mask)),
        ],
    }


@pytest.mark.parametrize("job_id", JOB_IDS, ids=lambda text: repr(text[:20]))
async def test_what_is_no_job_id(client: Client, job_id: str) -> None:
    for field, calls in calls_by_job(client, job_id).items():
        for call in calls:
            got = await refusal(call)
            assert (got.code, got.reason, got.fields) == (INVALID, "INVALID_REQUEST", (field,))
            assert "whole numbers such as 17" in got.message
            assert len(got.message) < 200
    if job_id:
        got = await end_of(client.scheduler.WatchJobs(scheduler_pb2.WatchJobsRequest(job_id=job_id)))
        assert (got.code, got.fields) == (INVALID, ("job_id",))


async def test_an_unknown_job(client: Client) -> None:
    for calls in calls_by_job(client, "123456789").values():
        for call in calls:
            got = await refusal(call)
            assert (got.code, got.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
            assert "123456789" in got.message
    got = await end_of(client.scheduler.WatchJobs(scheduler_pb2.WatchJobsRequest(job_id="123456789")))
    assert (got.code, got.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")


def page(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


TOKENS = {
    "garbage": "garbage",
    "no base64": "a",
    "not ascii": "ü" * 4,
    "no JSON": page("{"),
    "an object": page("{}"),
    "a number": page("5"),
    "empty": page("[]"),
    "words": page('["a", "b"]'),
    "whole numbers": page("[1, 2]"),
    "too many": page("[0.0, 1.0, 2.0, 3.0]"),
    "no number": page("[NaN, NaN]"),
    "no end": page("[Infinity, 0.0]"),
    "too short": page("[2.0, 1.0]"),
    "too long": page("[0.0, 1.0, 2.0]"),
    "of no kind": page("[3.0, 1.0, 2.0]"),
    "too far": page("[2.0, 1.0, -1e300]"),
    "deep": page("[" * 100_000),
    "high": page("[" + "9" * 4000 + ", 1]"),
    "huge": "A" * 900_000,
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
async def test_page_tokens_that_were_never_given(client: Client, token: str) -> None:
    got = await refusal(client.scheduler.ListJobs(scheduler_pb2.ListJobsRequest(page_token=token)))
    assert (got.code, got.reason, got.fields) == (INVALID, "INVALID_REQUEST", ("page_token",))


async def test_lists_and_watches(client: Client) -> None:
    stub = client.scheduler
    got = await refusal(stub.ListJobs(scheduler_pb2.ListJobsRequest(page_size=-1)))
    assert (got.code, got.fields) == (INVALID, ("page_size",))
    assert "0 to 1000" in got.message
    for number in (0, 99, -5):
        filter = scheduler_pb2.JobFilter(states=[number])  # type: ignore[list-item]
        for call in (
            refusal(stub.ListJobs(scheduler_pb2.ListJobsRequest(filter=filter))),
            end_of(stub.WatchJobs(scheduler_pb2.WatchJobsRequest(filter=filter))),
        ):
            got = await call
            assert (got.code, got.fields) == (INVALID, ("filter.states",))
            assert "JOB_STATE_RUNNING" in got.message
    for call in (
        refusal(stub.ListGpus(scheduler_pb2.ListGpusRequest(node="mars" * 1000))),
        end_of(stub.WatchGpus(scheduler_pb2.WatchGpusRequest(node="mars" * 1000))),
    ):
        got = await call
        assert (got.code, got.reason, got.fields) == (NEVER, "UNKNOWN_NODE", ("node",))
        assert "; there is " in got.message


async def test_reasons_and_names_given_later(client: Client) -> None:
    stream = await client.holder(1)
    for text in ("a\nb", "\x1b[2J", "x" * 501, "x" * 1_000_000):
        request = scheduler_pb2.CancelJobRequest(job_id=stream.job_id, reason=text)
        got = await refusal(client.scheduler.CancelJob(request))
        assert (got.code, got.fields) == (INVALID, ("reason",))
        assert "500 printable" in got.message
    assert (await client.job(stream.job_id)).state == job_pb2.JOB_STATE_RUNNING
    await stream.nothing_for(0.1)


async def test_a_message_beyond_the_size_limit(client: Client) -> None:
    stream = await client.holder(1)
    got = await client.acquire(name="x" * (LIMIT + 1)).end()
    assert got.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(LIMIT) in got.message
    # Neither the connection nor what else goes over it is harmed.
    await stream.nothing_for(0.1)


@pytest.mark.slow
async def test_a_small_message_that_unpacks_to_a_big_one(box: Server, client: Client) -> None:
    channel = grpc.aio.insecure_channel(box.address, options=OPTIONS, compression=grpc.Compression.Gzip)
    try:
        call = channel.unary_unary("/gpusched.v1.Scheduler/GetJob", lambda data: data, lambda data: data)
        bomb = scheduler_pb2.GetJobRequest(job_id="7" * (64 * LIMIT)).SerializeToString()
        got = await refusal(call(bomb))
    finally:
        await channel.close()
    assert got.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xff", b"\x0a\x7f"], ids=["junk", "utf-8", "short"])
async def test_what_is_no_message_at_all(client: Client, data: bytes) -> None:
    for method in ("GetJob", "ListJobs", "CancelJob", "Confirm"):
        call = client.channel.unary_unary(f"/gpusched.v1.Scheduler/{method}", lambda data: data, lambda data: data)
        got = await refusal(call(data))
        assert (got.code, got.reason) == (INVALID, "INVALID_REQUEST")
        assert "cannot be read" in got.message
    for method in ("Acquire", "WatchJobs"):
        stream = client.channel.unary_stream(f"/gpusched.v1.Scheduler/{method}", lambda data: data, lambda data: data)
        got = await end_of(stream(data))
        assert (got.code, got.reason) == (INVALID, "INVALID_REQUEST")


async def test_fields_of_a_later_version_are_passed_over(client: Client) -> None:
    """Field 500, a string: a client of another version must not be refused for what it knows more."""
    data = scheduler_pb2.GetStatusRequest().SerializeToString() + b"\xa2\x1f\x03new"
    call = client.channel.unary_unary(
        "/gpusched.v1.Scheduler/GetStatus", lambda data: data, scheduler_pb2.GetStatusResponse.FromString
    )
    assert (await call(data, timeout=PATIENCE)).service == "gpusched"


async def test_an_unknown_method(client: Client) -> None:
    for path in ("/gpusched.v1.Scheduler/Nonsense", "/gpusched.v2.Scheduler/GetStatus"):
        call = client.channel.unary_unary(path, lambda data: data, lambda data: data)
        assert (await refusal(call(b""))).code is grpc.StatusCode.UNIMPLEMENTED


async def end_of(call: Any) -> Refusal:
    """How a stream that must fail ends."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return Refusal.of(error)
    raise AssertionError("the stream ended well")
