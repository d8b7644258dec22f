"""A scheduler whose every word a test decides, to see what a supervisor makes of it."""

from __future__ import annotations

import queue
import threading
import time
from concurrent import futures
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from gpusched.v1 import scheduler_pb2, scheduler_pb2_grpc
from support.server import free_port
from support.waiting import wait_until

STATE = "a state"
TOKEN = "secret"
PATIENCE = 15.0


def refusal(code: str, reason: str = "", *, state: str = "", domain: str = "gpusched", message: str = "no") -> Any:
    """A status with our details, for `Scheduler.refuse`; without a reason, with none."""
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message)
    if reason:
        info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata={"state_id": state} if state else {})
        packed = any_pb2.Any()
        packed.Pack(info)
        status.details.append(packed)
    return rpc_status.to_status(status)


class Scheduler(scheduler_pb2_grpc.SchedulerServicer):
    """Accepts, grants, confirms and takes reports, unless told otherwise.

    Attributes:
        state: its state_id.
        refuse: statuses that calls end with, by the call's name.
        confirm: whether a grant asks to be confirmed.
        attached: how many streams were opened; `released`, `confirmed`: the requests that came.
    """

    def __init__(self, port: int | None = None, state: str = STATE) -> None:
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.state = state
        self.epoch = 1
        self.confirm = True
        self.refuse: dict[str, Any] = {}
        self.attached: list[scheduler_pb2.AcquireRequest] = []
        self.confirmed: list[scheduler_pb2.ConfirmRequest] = []
        self.released: list[scheduler_pb2.ReleaseRequest] = []
        self.open = 0
        self._words: queue.Queue[Any] = queue.Queue()
        self._stopped = threading.Event()
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(self, self._server)
        assert self._server.add_insecure_port(self.address) == self.port
        self._server.start()

    # -- for tests -----------------------------------------------------------------------------------------

    def say(self, **event: Any) -> None:
        """One more event on the stream."""
        self._words.put(scheduler_pb2.AcquireResponse(**event))

    def end_stream(self, status: Any = None) -> None:
        """The stream ends, with OK or a status."""
        self._words.put(status or "end")

    def wait_for_stream(self, count: int = 1) -> None:
        """Until one is open, the count-th, and its grant is confirmed."""
        wait_until(lambda: len(self.attached) >= count and self.open, PATIENCE, "a stream")
        wait_until(lambda: len(self.confirmed) >= count or not self.confirm, PATIENCE, "a confirmation")

    def stop(self) -> None:
        """As a server that is killed: everything breaks off."""
        self._stopped.set()
        self._server.stop(None).wait()

    # -- the service ---------------------------------------------------------------------------------------

    def Acquire(self, request: Any, context: Any) -> Any:
        self.attached.append(request)
        if "Acquire" in self.refuse:
            context.abort_with_status(self.refuse["Acquire"])
        self.open += 1
        try:
            yield scheduler_pb2.AcquireResponse(
                accepted=scheduler_pb2.Accepted(job_id="1", resume_token=TOKEN, state_id=self.state, resumed=True)
            )
            granted = scheduler_pb2.Granted(job_id="1", epoch=self.epoch)
            if self.confirm:
                granted.confirm_by.FromSeconds(int(time.time()) + 5)
            yield scheduler_pb2.AcquireResponse(granted=granted)
            while not self._stopped.is_set() and context.is_active():
                try:
                    word = self._words.get(timeout=0.02)
                except queue.Empty:
                    continue
                if word == "end":
                    return
                if isinstance(word, scheduler_pb2.AcquireResponse):
                    yield word
                else:
                    context.abort_with_status(word)
        finally:
            self.open -= 1

    def Confirm(self, request: Any, context: Any) -> Any:
        self.confirmed.append(request)
        if "Confirm" in self.refuse:
            context.abort_with_status(self.refuse["Confirm"])
        return scheduler_pb2.ConfirmResponse()

    def Release(self, request: Any, context: Any) -> Any:
        if "Release" in self.refuse:
            self.released.append(request)
            context.abort_with_status(self.refuse["Release"])
        self.released.append(request)
        return scheduler_pb2.ReleaseResponse()
