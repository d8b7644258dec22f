"""Batch jobs from several clients at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from benchmarks.processes import Server
from gpusched.v1 import resources_pb2, scheduler_pb2, scheduler_pb2_grpc

CLIENTS = 8
#: Seconds after which a call is given up.
PATIENCE = 120.0
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


def request(*command: str, **fields: Any) -> scheduler_pb2.SubmitRequest:
    """A job for one GPU that depends on nothing of the caller's."""
    known: dict[str, Any] = {"environment": {"PATH": "/usr/bin:/bin"}, "working_directory": "/"}
    resources = resources_pb2.ResourceRequest(gpus=1)
    return scheduler_pb2.SubmitRequest(command=command, resources=resources, **known | fields)


async def submit(
    server: Server, count: int, job: scheduler_pb2.SubmitRequest, on_acknowledged: Callable[[str], None] | None = None
) -> None:
    """Submit a job so many times, from clients with connections of their own, each of which waits for its answers.

    Args:
        on_acknowledged: told the id of each job that the server has taken on; with it, errors end a client silently.
    """
    left = count

    async def client() -> None:
        nonlocal left
        async with grpc.aio.insecure_channel(server.address, options=_OWN_CONNECTION) as channel:
            stub: Any = scheduler_pb2_grpc.SchedulerStub(channel)
            while left > 0:
                left -= 1
                try:
                    found = await stub.Submit(job, timeout=PATIENCE)
                except grpc.aio.AioRpcError:
                    if on_acknowledged is None:
                        raise
                    return
                if on_acknowledged is not None:
                    on_acknowledged(found.job.id)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


class Client:
    """One connection to a server, for what is not measured."""

    def __init__(self, server: Server) -> None:
        self._channel = grpc.insecure_channel(server.address, options=_OWN_CONNECTION)
        self.stub: Any = scheduler_pb2_grpc.SchedulerStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def status(self) -> scheduler_pb2.GetStatusResponse:
        call = scheduler_pb2.GetStatusRequest()
        found: scheduler_pb2.GetStatusResponse = self.stub.GetStatus(call, timeout=PATIENCE, wait_for_ready=True)
        return found

    def jobs(self, *, include_ended: bool = False) -> list[Any]:
        """All jobs."""
        found: list[Any] = []
        job_filter = scheduler_pb2.JobFilter(include_ended=include_ended)
        call = scheduler_pb2.ListJobsRequest(page_size=1000, filter=job_filter)
        while True:
            page = self.stub.ListJobs(call, timeout=PATIENCE, wait_for_ready=True)
            found += page.jobs
            if not page.next_page_token:
                return found
            call.page_token = page.next_page_token
