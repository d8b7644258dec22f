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
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gpusched.v1 import job_pb2, scheduler_pb2, scheduler_pb2_grpc

NODE = os.uname().nodename


class FakeScheduler(scheduler_pb2_grpc.SchedulerServicer):  # type: ignore[misc]
    """Each `Acquire` gets the events that `say` was given, until `abort` or `close`.

    Args:
        port: 0 for a free one.
        state_id: server state that it says it is.

    Attributes:
        address: where it listens.
        requests: each AcquireRequest, as it came.
        confirms: the epoch of each Confirm.
        releases: each ReleaseRequest.
        confirm_errors: statuses that the next Confirms end with.
        turn_away: the server states in whose name the next returns are refused; empty: it does not say.
    """

    def __init__(self, port: int = 0, state_id: str = "s") -> None:
        self.state_id = state_id
        self.turn_away: list[str] = []
        self.requests: list[scheduler_pb2.AcquireRequest] = []
        self.confirms: list[int] = []
        self.releases: list[scheduler_pb2.ReleaseRequest] = []
        self.confirm_errors: list[grpc.StatusCode] = []
        self.confirmed = threading.Event()
        self._script: queue.Queue[Any] = queue.Queue()
        self._server = grpc.server(ThreadPoolExecutor(8))
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def Acquire(self, request: scheduler_pb2.AcquireRequest, context: grpc.ServicerContext) -> Iterator[Any]:
        self.requests.append(request)
        if request.resume_token and self.turn_away:
            context.abort_with_status(_refusal(self.turn_away.pop(0)))
        yield scheduler_pb2.AcquireResponse(
            accepted=scheduler_pb2.Accepted(
                job_id="7", resume_token="secret", state_id=self.state_id, resumed=bool(request.resume_token)
            )
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

    def GetJob(self, request: scheduler_pb2.GetJobRequest, context: grpc.ServicerContext) -> Any:
        return scheduler_pb2.GetJobResponse(job=job_pb2.Job(id="7", outcome=job_pb2.Outcome(message="it was late")))

    def say(self, **event: Any) -> None:
        """Send an event: `say(notice=Notice(...))`."""
        self._script.put(scheduler_pb2.AcquireResponse(**event))

    def queue(self, message: str, position: int = 1, total: int = 1) -> None:
        reason = job_pb2.Reason(code=job_pb2.REASON_CODE_RESOURCES, message=message)
        self.say(queued=scheduler_pb2.Queued(job_id="7", position=position, total=total, reason=reason))

    def grant(
        self,
        epoch: int = 1,
        indices: tuple[int, ...] = (0,),
        node: str = NODE,
        confirm: bool = True,
        environment: dict[str, str] | None = None,
    ) -> None:
        gpus = [job_pb2.AllocatedGpu(uuid=f"GPU-{index}", index=index, node=node) for index in indices]
        variables = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, indices)), "GPUSCHED_JOB_ID": "7"} | (environment or {})
        granted = scheduler_pb2.Granted(job_id="7", epoch=epoch, gpus=gpus, environment=variables)
        if confirm:
            granted.confirm_by.GetCurrentTime()
        self.say(granted=granted)

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
        self.close()

    def close(self) -> None:
        """All connections end, without a word."""
        self._server.stop(0).wait()


def _refusal(state_id: str) -> Any:
    """That of a return by a secret which is not known (any more)."""
    info = error_details_pb2.ErrorInfo(reason="LEASE_LOST", domain="gpusched")
    if state_id:
        info.metadata["state_id"] = state_id
    packed = any_pb2.Any()
    packed.Pack(info)
    status = status_pb2.Status(code=grpc.StatusCode.ABORTED.value[0], message="no such secret", details=[packed])
    return rpc_status.to_status(status)
