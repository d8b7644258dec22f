"""Many clients in one process, each holding one GPU for a while and coming back when the server does.

Run as a program: `python -m acceptance.swarm ADDRESS CLIENTS HOLD_SECONDS OUT.json FIRST`. Each client asks for one
GPU, confirms, holds it, releases it, and writes down from its own side when it held what. A lost connection is taken
for a server that is away: the client goes on holding, or waiting, and re-attaches with its token.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc

from gpusched.v1 import resources_pb2, scheduler_pb2, scheduler_pb2_grpc

OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@dataclass
class Story:
    """What one client saw.

    Attributes:
        positions: places told, in order, one list per wait on one server.
        held: (device, epoch, from, until) by the monotonic clock.
        attaches: how often it came back.
        trouble: what should never happen.
    """

    job: str = ""
    positions: list[int] = field(default_factory=list)
    held: list[tuple[str, int, float, float]] = field(default_factory=list)
    attaches: int = 0
    trouble: str = ""


class Client:
    def __init__(self, stub: scheduler_pb2_grpc.SchedulerStub, hold: float, number: int) -> None:
        self.stub = stub
        self.story = Story()
        self._hold = hold
        self._number = number
        self._token = ""
        self._granted: tuple[str, int, float] | None = None
        #: What it has asked the server to take back.
        self._released: tuple[str, int, float, float] | None = None

    async def run(self) -> None:
        pause = 0.1
        while True:
            try:
                if await self._stream():
                    return
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
                    await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                    pause = min(pause * 2, 1.0)
                    continue
                if error.code() is grpc.StatusCode.ABORTED and self._released is not None:
                    # It had heard that, and was killed before it could say so.
                    self.story.held.append(self._released)
                    return
                self.story.trouble = f"{error.code().name}: {error.details()}"
                return

    async def _stream(self) -> bool:
        if self._token:
            request = scheduler_pb2.AcquireRequest(resume_token=self._token)
            self.story.attaches += 1
        else:
            request = scheduler_pb2.AcquireRequest(
                resources=resources_pb2.ResourceRequest(gpus=1), request_id=f"swarm-{self._number}"
            )
        call = self.stub.Acquire(request)
        try:
            async for event in call:
                kind = event.WhichOneof("event")
                if event.HasField("accepted"):
                    self._token, self.story.job = event.accepted.resume_token, event.accepted.job_id
                if kind == "queued":
                    self.story.positions.append(event.queued.position)
                elif kind == "granted" and await self._hold_and_release(event.granted):
                    return True
                elif kind == "ended":
                    self.story.trouble = f"ended: {event.ended.message}"
                    return True
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "over")
        finally:
            call.cancel()

    async def _hold_and_release(self, granted: scheduler_pb2.Granted) -> bool:
        device = granted.gpus[0].uuid
        if self._granted is None:
            self._granted = (device, granted.epoch, time.monotonic())
            if granted.HasField("confirm_by"):
                confirm = scheduler_pb2.ConfirmRequest(
                    job_id=granted.job_id, resume_token=self._token, epoch=granted.epoch
                )
                try:
                    await self.stub.Confirm(confirm)
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.ABORTED:
                        self._granted = None  # too late: it never ran anything
                        return False
                    raise
        elif self._granted[:2] != (device, granted.epoch):
            self.story.trouble = f"had {self._granted[:2]}, came back to {(device, granted.epoch)}"
        elif granted.HasField("confirm_by"):
            await self.stub.Confirm(
                scheduler_pb2.ConfirmRequest(job_id=granted.job_id, resume_token=self._token, epoch=granted.epoch)
            )
        _, epoch, since = self._granted
        await asyncio.sleep(max(0.0, since + self._hold * random.uniform(0.5, 1.5) - time.monotonic()))
        until = time.monotonic()
        self._released = (device, epoch, since, until)
        release = scheduler_pb2.ReleaseRequest(job_id=granted.job_id, resume_token=self._token, epoch=epoch)
        release.outcome.exit_status = 0
        try:
            await self.stub.Release(release)
        except grpc.aio.AioRpcError as error:
            # Released, and the answer was lost with the server: the lease is over all the same.
            if error.code() is not grpc.StatusCode.ABORTED or self.story.attaches == 0:
                raise
        self.story.held.append(self._released)
        return True


async def main(address: str, clients: int, hold: float, first: int) -> list[Story]:
    channels = [
        grpc.aio.insecure_channel(address, options=[*OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
        for _ in range(max(1, clients // 100))
    ]
    stubs = [scheduler_pb2_grpc.SchedulerStub(channel) for channel in channels]
    swarm = [Client(stubs[number % len(stubs)], hold, first + number) for number in range(clients)]
    await asyncio.gather(*(client.run() for client in swarm))
    for channel in channels:
        await channel.close()
    return [client.story for client in swarm]


if __name__ == "__main__":
    stories = asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[5])))
    Path(sys.argv[4]).write_text(json.dumps([asdict(story) for story in stories]))
