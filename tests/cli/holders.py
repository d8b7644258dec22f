"""Jobs for the commands to show: bare `Acquire` streams, confirmed by themselves."""

from __future__ import annotations

import threading
from typing import Any

import grpc

import gpusched.v1.resources_pb2 as resources_pb
import gpusched.v1.scheduler_pb2 as pb
import gpusched.v1.scheduler_pb2_grpc as rpc
from gpusched.client.transport import open_channel
from support.waiting import wait_until


class Holder:
    """One job for as long as the block lasts; it does what it is told by nobody.

    Attributes:
        events: what the stream brought, by kind; the newest of each.
        id: the job's.
    """

    def __init__(self, address: str, gpus: int = 1, **fields: Any) -> None:
        self._channel = open_channel(address)
        self._stub = rpc.SchedulerStub(self._channel)
        resources = resources_pb.ResourceRequest(gpus=gpus)
        self._call = self._stub.Acquire(pb.AcquireRequest(resources=resources, auto_confirm=True, **fields))
        self.events: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.id = wait_until(lambda: self.events.get("accepted"), what="accepted").job_id

    def _read(self) -> None:
        try:
            for message in self._call:
                for field, content in message.ListFields():
                    self.events[field.name] = content
        except grpc.RpcError as error:
            self.events["error"] = error

    def granted(self) -> Any:
        """The grant, once there is one."""
        return wait_until(lambda: self.events.get("granted"), what="granted")

    def queued(self) -> Any:
        """The newest word on how it waits."""
        return wait_until(lambda: self.events.get("queued"), what="queued")

    def notice(self) -> Any:
        """The newest notice."""
        return wait_until(lambda: self.events.get("notice"), what="notice")

    def release(self, exit_status: int = 0) -> None:
        """End it with an exit status."""
        import gpusched.v1.job_pb2 as job_pb

        accepted, granted = self.events["accepted"], self.granted()
        outcome = job_pb.Outcome(exit_status=exit_status)
        self._stub.Release(
            pb.ReleaseRequest(job_id=self.id, resume_token=accepted.resume_token, epoch=granted.epoch, outcome=outcome),
            timeout=10,
        )
        self._thread.join(10)

    def close(self) -> None:
        """Drop the stream."""
        self._call.cancel()
        self._thread.join(10)
        self._channel.close()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
