"""Calls that come while the server is too busy to look at them wait for it, however long that takes."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import pytest

from rpc.calls import OPTIONS

CALLS = 200
#: gRPC's own patience is 30 s; after that it ends calls that nobody has looked at, with a bare CANCELLED.
BUSY = 32.0

#: A server with the scheduler's options whose event loop stands still from its first call on.
SERVER = f"""
import asyncio, time
import grpc.aio
from gpusched.scheduler.rpc.server import OPTIONS

async def main():
    server = grpc.aio.server(options=OPTIONS)
    entered = False

    async def call(request, context):
        nonlocal entered
        if not entered:
            entered = True
            print("busy", flush=True)
            time.sleep({BUSY})
        return request

    handler = grpc.unary_unary_rpc_method_handler(call)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("busy.Busy", {{"Call": handler}}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_calls_outwait_a_busy_server() -> None:
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    try:
        port = int(await asyncio.wait_for(server.stdout.readline(), 20))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
            untyped: Any = channel
            call = untyped.unary_unary("/busy.Busy/Call")
            first = asyncio.ensure_future(call(b"first", wait_for_ready=True))
            assert await asyncio.wait_for(server.stdout.readline(), 20) == b"busy\n"
            async with asyncio.timeout(BUSY + 20):
                answers = await asyncio.gather(*(call(b"x") for _ in range(CALLS)), return_exceptions=True)
                await first
        lost = [answer for answer in answers if answer != b"x"]
        assert not lost, f"{len(lost)} of {CALLS} were lost, such as {lost[0]!r}"
    finally:
        server.kill()
        await server.wait()
