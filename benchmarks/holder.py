"""A holder to be killed: `python -m benchmarks.holder scheduler|bare ADDRESS`. Says `held`, then does nothing."""

from __future__ import annotations

import asyncio
import sys

from benchmarks.streams import EOF, Bare, Scheduler, read_messages, read_until


async def hold(what: str, address: str) -> None:
    """Open a stream, say when it holds, and keep it."""
    if what == "scheduler":
        stream = Scheduler(address).acquire()
        await read_until(stream, "granted")
    else:
        stream = Bare(address).hold(b"")
        await read_messages(stream, 1)
    print("held", flush=True)
    while await stream.read() is not EOF:
        pass


if __name__ == "__main__":
    asyncio.run(hold(*sys.argv[1:]))
