"""Every call of every service with well-formed nonsense: refused in our own words, never by a bug."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor
from google.protobuf.message_factory import GetMessageClass

from gpusched.v1 import admin_pb2, scheduler_pb2, simulation_pb2
from rpc.calls import Client, admin_token
from rpc.servers import assert_quiet, running
from support.server import Server

SERVICES = (
    scheduler_pb2.DESCRIPTOR.services_by_name["Scheduler"],
    admin_pb2.DESCRIPTOR.services_by_name["Admin"],
    simulation_pb2.DESCRIPTOR.services_by_name["Simulation"],
)
METHODS = {f"{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
ROUNDS = 40
#: What no call may ever end with: the library's or our own word for a bug.
BUGS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED)

WHOLE = (0, 1, -1, 2, 3, 7, 255, 10**6, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
TEXTS = (
    *("", "1", "2", "3", "0", "-1", "999999999999999999", "x", "ü", "\n", "\0", "\x1b[2J", "\u202e", " ", "../../etc"),
    *("/", "/nonexistent/x", "root", "nobody", "true", "%j%a%%%", "node:1", ":", "a" * 3000, "9" * 5000, "\U0010ffff"),
)
FIELD = descriptor.FieldDescriptor


def nonsense(random: random.Random, kind: Any, depth: int = 0) -> Any:
    """A message of a type, with some of its fields set to anything."""
    message = GetMessageClass(kind)()
    for field in kind.fields:
        if random.random() < 0.4 or depth > 3:
            continue
        # A file of that name would be made, by whoever runs the tests.
        if field.name == "output_path":
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)[random.choice(TEXTS)] = random.choice(TEXTS)
        elif field.is_repeated:
            for _ in range(random.choice((1, 1, 2, 30))):
                value = scalar(random, field, depth)
                if field.message_type is not None:
                    getattr(message, field.name).add().CopyFrom(value)
                else:
                    getattr(message, field.name).append(value)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(scalar(random, field, depth))
        else:
            setattr(message, field.name, scalar(random, field, depth))
    return message


def scalar(random: random.Random, field: Any, depth: int) -> Any:
    if field.message_type is not None:
        return nonsense(random, field.message_type, depth + 1)
    match field.cpp_type:
        case FIELD.CPPTYPE_STRING:
            text = random.choice(TEXTS)
            return text.encode() if field.type == FIELD.TYPE_BYTES else text
        case FIELD.CPPTYPE_BOOL:
            return random.random() < 0.5
        case FIELD.CPPTYPE_DOUBLE | FIELD.CPPTYPE_FLOAT:
            return random.choice((0.0, -1.0, 1e308, float("inf"), float("nan")))
        case FIELD.CPPTYPE_INT32 | FIELD.CPPTYPE_ENUM:
            return random.choice([number for number in WHOLE if -(2**31) <= number < 2**31])
        case _:
            return random.choice(WHOLE)


@pytest.fixture(scope="module")
def box() -> Iterator[Server]:
    with running("2x4") as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("path", METHODS)
async def test_nonsense(box: Server, connect: Callable[..., Client], operator: Client, path: str) -> None:
    """As the server's user with the administrator's token, to whom nothing is forbidden."""
    client = connect(token=await admin_token(box.address))
    # Something for job ids to hit.
    for _ in range(2):
        client.acquire(3)
    method = METHODS[path]
    dice = random.Random(path)
    make = client.channel.unary_stream if method.server_streaming else client.channel.unary_unary
    call = make(f"/{path}", lambda message: message.SerializeToString(), GetMessageClass(method.output_type).FromString)
    codes = set()
    for _ in range(ROUNDS):
        request = nonsense(dice, method.input_type)
        code, said = await outcome(call, request, client, bool(method.server_streaming))
        assert code not in BUGS, f"{code}: {said}\n{request}"
        codes.add(code)
    assert codes
    # Put right what got through.
    await operator.admin.ResumeScheduling(admin_pb2.ResumeSchedulingRequest())
    for node in {gpu.node for gpu in await client.gpus()}:
        await operator.undrain(node=node)
    for gpu in await client.gpus():
        await operator.simulate(gpu.uuid, set_processes=True, fault="", linger=0, hang=False)
        await operator.undrain(gpu=gpu.uuid)
    jobs = (await client.scheduler.ListJobs(scheduler_pb2.ListJobsRequest(page_size=1000))).jobs
    for job in jobs:
        await client.cancel_job(job.id)
    assert_quiet(box.log)


async def outcome(call: Any, request: Any, client: Client, streaming: bool) -> tuple[grpc.StatusCode, str]:
    """How a call ended; OK for a stream that goes on."""
    begun = call(request, metadata=client.metadata, timeout=20)
    try:
        if not streaming:
            await begun
            return grpc.StatusCode.OK, ""
        for _ in range(2):
            if await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(begun.read())), 0.05) is grpc.aio.EOF:
                break
    except TimeoutError:
        pass
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    finally:
        begun.cancel()
    return grpc.StatusCode.OK, ""
