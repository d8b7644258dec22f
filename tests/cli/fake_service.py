"""A service that answers what a test tells it to: for answers that a well-behaved scheduler never gives."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

import gpusched.v1.scheduler_pb2 as pb
import gpusched.v1.scheduler_pb2_grpc as rpc

END = object()
"""In a stream's queue: end it with OK."""


class FakeScheduler(rpc.SchedulerServicer):
    """`answers[call]` is a message, a list of messages to give one after another, or a `Refusal`.

    For streams it is a `queue.Queue` of messages, refusals and `END`.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"GetStatus": pb.GetStatusResponse(service="gpusched", version="0.1.0")}
        self.requests: list[tuple[str, Any]] = []
        for name in ("GetStatus", "GetJob", "ListJobs", "CancelJob", "UpdateJob", "ExplainJob", "ListGpus"):
            setattr(self, name, self._unary(name))
        self.ListNodes = self._unary("ListNodes")
        for name in ("WatchJobs", "WatchGpus"):
            setattr(self, name, self._stream(name))

    def of(self, call: str) -> list[Any]:
        """Requests that came for a call."""
        return [request for name, request in self.requests if name == call]

    def _unary(self, name: str) -> Any:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            self.requests.append((name, request))
            found = self.answers[name]
            if isinstance(found, list):
                found = found.pop(0)
            if isinstance(found, Refusal):
                found.raise_in(context)
            return found

        return answer

    def _stream(self, name: str) -> Any:
        def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            self.requests.append((name, request))
            waiting: queue.Queue[Any] = self.answers[name]
            while context.is_active():
                try:
                    item = waiting.get(timeout=0.1)
                except queue.Empty:
                    continue
                if item is END:
                    return
                if isinstance(item, Refusal):
                    item.raise_in(context)
                yield item

        return answer


class Refusal:
    """A status with our error details."""

    def __init__(self, code: grpc.StatusCode, message: str, reason: str, field: str = "") -> None:
        info, bad = any_pb2.Any(), any_pb2.Any()
        info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="gpusched"))
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        bad.Pack(error_details_pb2.BadRequest(field_violations=[violation] if field else []))
        self._status = status_pb2.Status(code=code.value[0], message=message, details=[info, bad])

    def raise_in(self, context: grpc.ServicerContext) -> None:
        """End a call with it."""
        context.abort_with_status(rpc_status.to_status(self._status))


class FakeServer:
    """The service on a free port of 127.0.0.1 for as long as the block lasts."""

    def __init__(self) -> None:
        self.service = FakeScheduler()
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        rpc.add_SchedulerServicer_to_server(self.service, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> FakeServer:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
