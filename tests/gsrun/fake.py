"""A scheduler that says what a test tells it to, for what a real one says rarely or never."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc

from gpusched.v1 import job_pb2, scheduler_pb2, scheduler_pb2_grpc

NODE = os.uname().nodename


class FakeScheduler(scheduler_pb2_grpc.SchedulerServicer):  # type: ignore[misc]
    """Each `Acquire` gets the events that `say` was given, until `abort` or `close`.

    Attributes:
        address: where it listens.
        requests: each AcquireRequest, as it came.
        confirms: the epoch of each Confirm.
        releases: each ReleaseRequest.
        confirm_errors: statuses that the next Confirms end with.
    """

    def __init__(self) -> None:
        self.requests: list[scheduler_pb2.AcquireRequest] = []
        self.confirms: list[int] = []
        self.releases: list[scheduler_pb2.ReleaseRequest] = []
        self.confirm_errors: list[grpc.StatusCode] = []
        self.confirmed = threading.Event()
        self._script: queue.Queue[Any] = queue.Queue()
        self._server = grpc.server(ThreadPoolExecutor(8))
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Acquire(self, request: scheduler_pb2.AcquireRequest, context: grpc.ServicerContext) -> Iterator[Any]:
        self.requests.append(request)
        yield scheduler_pb2.AcquireResponse(
            accepted=scheduler_pb2.Accepted(job_id="7", resume_token="secret", state_id="s")
        )
        while True:
            item = self._script.get()
            if isinstance(item, tuple):
                context.abort(*item)
            yield item

    def Confirm(self, request: scheduler_pb2.ConfirmRequest, context: grpc.ServicerContext) -> Any:
        self.confirms.append(request.epoch)
        if self.confirm_errors:
            context.abort(self.confirm_errors.pop(0), "not now")
        self.confirmed.set()
        return scheduler_pb2.ConfirmResponse()

    def Release(self, request: scheduler_pb2.ReleaseRequest, context: grpc.ServicerContext) -> Any:
        self.releases.append(request)
        return scheduler_pb2.ReleaseResponse()

    def say(self, **event: Any) -> None:
        """Send an event: `say(notice=Notice(...))`."""
        self._script.put(scheduler_pb2.AcquireResponse(**event))

    def queue(self, message: str, position: int = 1, total: int = 1) -> None:
        reason = job_pb2.Reason(code=job_pb2.REASON_CODE_RESOURCES, message=message)
        self.say(queued=scheduler_pb2.Queued(job_id="7", position=position, total=total, reason=reason))

    def grant(self, epoch: int = 1, indices: tuple[int, ...] = (0,), node: str = NODE) -> None:
        gpus = [job_pb2.AllocatedGpu(uuid=f"GPU-{index}", index=index, node=node) for index in indices]
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, indices)), "GPUSCHED_JOB_ID": "7"}
        self.say(granted=scheduler_pb2.Granted(job_id="7", epoch=epoch, gpus=gpus, environment=environment))

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        """End the stream."""
        self._script.put((code, details))

    def __enter__(self) -> FakeScheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for _ in range(8):
            self.abort(grpc.StatusCode.UNAVAILABLE, "the test is over")
        self._server.stop(0).wait()
