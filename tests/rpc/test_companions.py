"""Health and reflection, so that other people's tools work with no file of ours."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from rpc.calls import PATIENCE, Client, refusal

SERVING = health_pb2.HealthCheckResponse.SERVING
OURS = ["gpusched.v1.Scheduler", "gpusched.v1.Admin", "gpusched.v1.Simulation"]


@pytest.mark.parametrize("service", ["", *OURS])
async def test_health_of_each_service(client: Client, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(client.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await stub.Check(request, timeout=PATIENCE)).status == SERVING
    call = stub.Watch(request)
    assert (await asyncio.wait_for(call.read(), PATIENCE)).status == SERVING
    call.cancel()


async def test_health_of_a_service_that_is_not_there(client: Client) -> None:
    stub = health_pb2_grpc.HealthStub(client.channel)
    got = await refusal(stub.Check(health_pb2.HealthCheckRequest(service="gpusched.v1.Nonsense")))
    assert got.code is grpc.StatusCode.NOT_FOUND


class Reflected:
    """What a tool learns of the server by reflection alone."""

    def __init__(self, client: Client) -> None:
        self._stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        self.pool = descriptor_pool.DescriptorPool()

    async def ask(self, **question: Any) -> reflection_pb2.ServerReflectionResponse:
        call = self._stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(**question))
        answer = await asyncio.wait_for(call.read(), PATIENCE)
        await call.done_writing()
        return answer

    async def learn(self, symbol: str) -> None:
        """Fetch the file of a symbol, and those that it needs."""
        answer = await self.ask(file_containing_symbol=symbol)
        files = {}
        wanted = list(answer.file_descriptor_response.file_descriptor_proto)
        while wanted:
            file = descriptor_pb2.FileDescriptorProto.FromString(wanted.pop())
            if file.name in files:
                continue
            files[file.name] = file
            for name in file.dependency:
                if name not in files:
                    more = await self.ask(file_by_filename=name)
                    wanted += more.file_descriptor_response.file_descriptor_proto

        def add(name: str) -> None:
            file = files.pop(name, None)
            if file is not None:
                for dependency in file.dependency:
                    add(dependency)
                self.pool.Add(file)

        for name in list(files):
            add(name)

    def message(self, name: str) -> Any:
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))


async def test_reflection_lists_the_services(client: Client) -> None:
    answer = await Reflected(client).ask(list_services="")
    names = {service.name for service in answer.list_services_response.service}
    assert names == {*OURS, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_a_tool_that_knows_nothing_can_acquire_a_gpu(client: Client) -> None:
    """As grpcurl does: descriptors by reflection, messages from JSON, the method by its path."""
    reflected = Reflected(client)
    await reflected.learn("gpusched.v1.Scheduler")
    service = reflected.pool.FindServiceByName("gpusched.v1.Scheduler")
    method = service.methods_by_name["Acquire"]
    assert method.server_streaming
    request = reflected.message(method.input_type.full_name)()
    json_format.ParseDict({"resources": {"gpus": 1}, "autoConfirm": True, "name": "by hand"}, request)
    call = client.channel.unary_stream(
        f"/{service.full_name}/{method.name}",
        lambda message: message.SerializeToString(),
        reflected.message(method.output_type.full_name).FromString,
    )(request)
    event = json_format.MessageToDict(await asyncio.wait_for(call.read(), PATIENCE))
    assert list(event) == ["accepted", "granted"]
    assert event["granted"]["environment"]["CUDA_VISIBLE_DEVICES"] == "0"
    call.cancel()


async def test_admin_and_simulation_are_described_too(client: Client) -> None:
    reflected = Reflected(client)
    for name in OURS[1:]:
        await reflected.learn(name)
        assert reflected.pool.FindServiceByName(name).methods


async def test_a_method_can_be_described(client: Client) -> None:
    answer = await Reflected(client).ask(file_containing_symbol="gpusched.v1.Scheduler.Acquire")
    assert answer.file_descriptor_response.file_descriptor_proto
    answer = await Reflected(client).ask(file_containing_symbol="gpusched.v1.Scheduler.Nonsense")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize("method", ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"])
async def test_health_refuses_what_cannot_be_read(client: Client, method: str) -> None:
    kind = client.channel.unary_unary if method.endswith("Check") else client.channel.unary_stream
    call: Any = kind(f"/{method}", request_serializer=bytes, response_deserializer=bytes)(b"\xff" * 4 + b"\x0f")
    got = await refusal(call if method.endswith("Check") else call.read())
    assert got.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_reflection_refuses_what_cannot_be_read(client: Client) -> None:
    name = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    call: Any = client.channel.stream_stream(name, request_serializer=bytes, response_deserializer=bytes)()
    await call.write(b"\xff" * 4 + b"\x0f")
    got = await refusal(asyncio.wait_for(call.read(), PATIENCE))
    assert got.code is grpc.StatusCode.INVALID_ARGUMENT
