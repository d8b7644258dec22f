"""The floor: a grpc.aio server with the scheduler's options and nothing behind it. `python -m benchmarks.bare PORT`.

Messages are bytes that nobody parses. Calls:

- `Two`: two messages at once, then nothing until the stream ends.
- `Hold`: one message; when the stream ends, however it does, the oldest `Wait` gets its second message.
- `Wait`: one message at once, one when a `Hold` ends.
- `Ping`: one message for one message.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import Any

import grpc
import grpc.aio

from gpusched.scheduler.rpc.server import OPTIONS

SERVICE = "bare.Bare"
MESSAGE = b"x" * 32

Context = grpc.aio.ServicerContext[bytes, bytes]


class Bare:
    """The calls."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def two(self, request: bytes, context: Context) -> None:
        await context.write(MESSAGE)
        await context.write(MESSAGE)
        await asyncio.get_running_loop().create_future()

    async def hold(self, request: bytes, context: Context) -> None:
        try:
            await context.write(MESSAGE)
            await asyncio.get_running_loop().create_future()
        finally:
            while self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    break

    async def wait(self, request: bytes, context: Context) -> None:
        await context.write(MESSAGE)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(ended)
        await ended
        await context.write(MESSAGE)
        await asyncio.get_running_loop().create_future()

    async def ping(self, request: bytes, context: Context) -> bytes:
        return MESSAGE


async def serve(port: int) -> None:
    """Serve until killed."""
    server: Any = grpc.aio.server(options=OPTIONS)
    calls = Bare()
    stream, unary = grpc.unary_stream_rpc_method_handler, grpc.unary_unary_rpc_method_handler
    handlers = {
        "Two": stream(calls.two),
        "Hold": stream(calls.hold),
        "Wait": stream(calls.wait),
        "Ping": unary(calls.ping),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"serving on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
