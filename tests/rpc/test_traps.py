"""Facts about the gRPC library that the server relies on; library versions move, so each has its test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from gpusched.scheduler.rpc.server import MAX_MESSAGE, OPTIONS, RpcServer
from rpc.calls import PATIENCE

PATH = "/trap.Trap/Call"
CALLS = 2500


def handlers(behaviour: Any, streaming: bool) -> grpc.GenericRpcHandler:
    make = grpc.unary_stream_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler
    return grpc.method_handlers_generic_handler("trap.Trap", {"Call": make(behaviour)})


class Trap:
    """A bare server with one method, and channels to it."""

    def __init__(self) -> None:
        self.servers: list[grpc.aio.Server] = []
        self.channels: list[grpc.aio.Channel] = []

    async def serve(self, behaviour: Any, *, streaming: bool = True, options: Any = OPTIONS, port: int = 0) -> int:
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((handlers(behaviour, streaming),))
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        self.servers.append(server)
        return port

    def channel(self, port: int) -> grpc.aio.Channel:
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        self.channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options))
        return self.channels[-1]

    async def answered(self, options: Any) -> int:
        """How many of thousands of streams opened at once are answered."""

        async def once(request: bytes, context: Any) -> None:
            await context.write(b"x")
            await asyncio.sleep(PATIENCE)

        port = await self.serve(once, options=options)
        channels = [self.channel(port) for _ in range(10)]
        calls = [channels[number % 10].unary_stream(PATH)(b"") for number in range(CALLS)]
        answers = await asyncio.gather(*(call.read() for call in calls), return_exceptions=True)
        for call in calls:
            call.cancel()
        return sum(answer == b"x" for answer in answers)


@pytest.fixture
async def trap() -> AsyncIterator[Trap]:
    made = Trap()
    yield made
    for channel in made.channels:
        await channel.close()
    for server in made.servers:
        await server.stop(0)


@pytest.mark.slow
async def test_max_pending_requests_is_spelled_rightly_and_needed(trap: Trap) -> None:
    """Wrong spellings are silently passed over, so the right one must make a difference."""
    names = {name for name, _ in OPTIONS}
    assert {"grpc.server.max_pending_requests", "grpc.server.max_pending_requests_hard_limit"} <= names
    assert await trap.answered(OPTIONS) == CALLS
    low = [("grpc.server.max_pending_requests", 10), ("grpc.server.max_pending_requests_hard_limit", 20)]
    assert await trap.answered(low) < CALLS


async def test_two_servers_cannot_share_a_port() -> None:
    assert dict(OPTIONS)["grpc.so_reuseport"] == 0
    first = RpcServer()
    port = first.bind("127.0.0.1", 0)
    with pytest.raises(OSError):
        RpcServer().bind("127.0.0.1", port)
    # What would happen otherwise: both are content.
    stock = [grpc.aio.server(), grpc.aio.server()]
    port = stock[0].add_insecure_port("127.0.0.1:0")
    assert stock[1].add_insecure_port(f"127.0.0.1:{port}") == port
    for server in stock:
        await server.stop(0)


async def test_the_end_of_a_client_ends_the_handler_at_once_and_only_so(trap: Trap) -> None:
    """One CancelledError in the handler; `cancelled()` and `done()` tell nothing, so nobody may ask them."""
    seen: list[Any] = []
    ended = asyncio.Event()

    async def hold(request: bytes, context: Any) -> None:
        try:
            await context.write(b"x")
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            seen.append((context.cancelled(), context.done()))
            raise
        finally:
            ended.set()

    port = await trap.serve(hold)
    call = trap.channel(port).unary_stream(PATH)(b"")
    assert await call.read() == b"x"
    call.cancel()
    await asyncio.wait_for(ended.wait(), 1.0)
    assert len(seen) == 1


async def test_a_write_that_nobody_takes_ends_when_its_reader_goes(trap: Trap) -> None:
    """With CancelledError or with an error of the library's own: that is why release is in `finally`."""
    blocked, ended = asyncio.Event(), asyncio.Event()
    caught: list[BaseException] = []

    async def pour(request: bytes, context: Any) -> None:
        try:
            for _ in range(1000):
                blocked.clear()
                asyncio.get_running_loop().call_later(0.2, blocked.set)
                await context.write(b"x" * 100_000)
        except BaseException as error:
            caught.append(error)
            raise asyncio.CancelledError from None
        finally:
            ended.set()

    port = await trap.serve(pour)
    channel = trap.channel(port)
    call = channel.unary_stream(PATH)(b"")
    await call.read()
    await asyncio.wait_for(blocked.wait(), PATIENCE)
    assert not ended.is_set()  # 100 MB do not go out unread
    call.cancel()
    await channel.close()
    await asyncio.wait_for(ended.wait(), PATIENCE)
    assert isinstance(caught[0], asyncio.CancelledError) or type(caught[0]).__name__ == "ExecuteBatchError"


async def test_abort_after_events_reaches_the_client_with_its_status(trap: Trap) -> None:
    """How a stream is ended by us: by a message to its own handler, never by cancelling its task."""

    async def end(request: bytes, context: Any) -> None:
        await context.write(b"x")
        await context.abort(grpc.StatusCode.ABORTED, "superseded", (("key-bin", b"\0\xff"),))

    port = await trap.serve(end)
    call = trap.channel(port).unary_stream(PATH)(b"")
    assert await call.read() == b"x"
    assert await call.code() is grpc.StatusCode.ABORTED
    assert await call.details() == "superseded"
    assert dict(await call.trailing_metadata())["key-bin"] == b"\0\xff"


async def test_the_size_limit_is_spelled_rightly(trap: Trap) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        return b"x"

    port = await trap.serve(answer, streaming=False)
    call = trap.channel(port).unary_unary(PATH)
    assert await call(b"x" * MAX_MESSAGE, timeout=PATIENCE) == b"x"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"x" * (MAX_MESSAGE + 1), timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_status_too_big_for_headers_is_lost_by_the_client(trap: Trap) -> None:
    """Why error texts are cut (`errors.MAX_TEXT`): beyond some KiB a client sees another error than ours."""

    async def refuse(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, "x" * int(request))
        return b""

    port = await trap.serve(refuse, streaming=False)
    call = trap.channel(port).unary_unary(PATH)
    for size, code in ((1000, grpc.StatusCode.NOT_FOUND), (100_000, grpc.StatusCode.RESOURCE_EXHAUSTED)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(str(size).encode(), timeout=PATIENCE)
        assert caught.value.code() is code


async def test_peer_names_the_very_connection(trap: Trap) -> None:
    """The kernel is asked about exactly this address and port."""

    async def peer(request: bytes, context: Any) -> bytes:
        return str(context.peer()).encode()

    port = await trap.serve(peer, streaming=False)
    found = (await trap.channel(port).unary_unary(PATH)(b"", timeout=PATIENCE)).decode()
    family, host, number = found.split(":")
    assert (family, host) == ("ipv4", "127.0.0.1")
    assert 0 < int(number) < 65536
