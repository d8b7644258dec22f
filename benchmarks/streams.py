"""A client of both servers: streams of the scheduler, and of the bare server that is their floor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio

from benchmarks.bare import MESSAGE, SERVICE
from gpusched.client.transport import open_aio_channel
from gpusched.v1 import resources_pb2, scheduler_pb2, scheduler_pb2_grpc

#: What `read` of a stream gives at its end (the stubs of mypy lack it).
EOF: Any = vars(grpc.aio)["EOF"]


def _one_gpu(*, auto_confirm: bool) -> scheduler_pb2.AcquireRequest:
    return scheduler_pb2.AcquireRequest(
        resources=resources_pb2.ResourceRequest(gpus=1), name="benchmark", auto_confirm=auto_confirm
    )


#: What `Scheduler.acquire_bytes` sends, and what only an answer that it is granted has: the name of a variable.
_ONE_GPU = _one_gpu(auto_confirm=True).SerializeToString()
_LEASE = b"CUDA_VISIBLE_DEVICES"


class Scheduler:
    """Calls of the scheduler over one channel; to be made inside the running loop."""

    def __init__(self, address: str) -> None:
        self.channel: Any = open_aio_channel(address)
        self.stub: Any = scheduler_pb2_grpc.SchedulerStub(self.channel)
        self._bytes: Any = self.channel.unary_stream("/gpusched.v1.Scheduler/Acquire", None, None)

    def acquire_bytes(self) -> Any:
        """What `acquire` gives, of messages that the client neither makes nor parses: as cheap as the floor's."""
        return self._bytes(_ONE_GPU)

    def acquire(self, *, auto_confirm: bool = True) -> Any:
        """An `Acquire` stream for one GPU."""
        return self.stub.Acquire(_one_gpu(auto_confirm=auto_confirm))

    async def ping(self) -> None:
        """Let the channel connect."""
        await self.stub.GetStatus(scheduler_pb2.GetStatusRequest(), wait_for_ready=True)


class Bare:
    """Calls of the bare server over one channel; to be made inside the running loop."""

    def __init__(self, address: str) -> None:
        channel: Any = open_aio_channel(address)
        self.channel = channel
        self.two: Any = channel.unary_stream(f"/{SERVICE}/Two")
        self.hold: Any = channel.unary_stream(f"/{SERVICE}/Hold")
        self.wait: Any = channel.unary_stream(f"/{SERVICE}/Wait")
        self._ping: Any = channel.unary_unary(f"/{SERVICE}/Ping")

    async def ping(self) -> None:
        """One call and its answer."""
        await self._ping(MESSAGE, wait_for_ready=True)


async def read_until(stream: Any, event: str) -> Any:
    """Read an `Acquire` stream up to an event of a kind; gives the event. Raises RuntimeError if it ends before."""
    while (response := await stream.read()) is not EOF:
        if response.WhichOneof("event") == event:
            return getattr(response, event)
    raise RuntimeError(f"the stream ended before {event!r}: {await stream.details()}")


async def read_granted(stream: Any) -> None:
    """Read a stream of `acquire_bytes` up to the grant. Raises RuntimeError if it ends before."""
    while (response := await stream.read()) is not EOF:
        if _LEASE in response:
            return
    raise RuntimeError(f"the stream ended before the grant: {await stream.details()}")


async def read_messages(stream: Any, count: int) -> None:
    """Read so many messages of a bare stream. Raises RuntimeError if it ends before."""
    for _ in range(count):
        if await stream.read() is EOF:
            raise RuntimeError(f"the stream ended early: {await stream.details()}")


@contextmanager
def cancelled(stream: Any) -> Iterator[Any]:
    """A stream that is ended with the block: an abandoned one of grpc.aio would stay."""
    try:
        yield stream
    finally:
        stream.cancel()
