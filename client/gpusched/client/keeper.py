"""In the helper process: the `Acquire` stream, from the ticket to the end of the lease. Imports grpc."""

from __future__ import annotations

import os
import queue
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc

from gpusched.client import environment, lease_convert, procs, wire
from gpusched.client.address import is_loopback
from gpusched.client.autostart import ensure_server
from gpusched.client.errors import GpuschedError, JobEnded, LeaseLost, ServerMismatch, ServerUnavailable, from_rpc_error
from gpusched.client.lease_views import Grant, Notice, NoticeKind
from gpusched.client.serveruser import check_server_user
from gpusched.client.transport import addressed, failure, open_channel
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2, scheduler_pb2_grpc

if TYPE_CHECKING:
    from gpusched.client.helper import Link

CALL_SECONDS = 10.0
RELEASE_SECONDS = 5.0
FRESH_READING_SECONDS = 3.0

_AWAY = "the scheduler is away; the GPUs stay yours"

Message = dict[str, Any]


def print_traceback() -> None:
    """Into the file that the owner keeps for this."""
    import traceback  # costs start-up time, and is hardly ever needed

    traceback.print_exc()
    sys.stderr.flush()


def look_up(command: Message, link: Link) -> None:
    """Answer the owner what a job has; the address is in the command."""
    from gpusched.client import convert  # brings all views along, which a lease does not need

    check_server_user(command["address"], lambda text: link.send(wire.SAY, text=text))
    with open_channel(command["address"]) as channel:
        stub = scheduler_pb2_grpc.SchedulerStub(channel)
        try:
            answer = stub.GetJob(scheduler_pb2.GetJobRequest(job_id=command["job_id"]), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            link.send(wire.JOB, job=None, error=wire.dump_error(from_rpc_error(error)))
        else:
            link.send(wire.JOB, job=convert.job(answer.job), error=None)


class Keeper:
    """One request and its lease.

    Args:
        request: of `AcquireOptions.message`.
        link: to the owner.
        owner_pid, owner_ticks: the process whose descendants work under the lease.
    """

    def __init__(self, request: Message, link: Link, owner_pid: int, owner_ticks: int) -> None:
        self._request = request
        self._link = link
        self._owner = (owner_pid, owner_ticks)
        self._job_id = ""
        self._token = ""
        self._grant: Grant | None = None
        self._confirmed = False
        self._finishing = False
        address = request["address"]
        say = self._say
        ensure_server(address, say)
        check_server_user(address, lambda text: say(f"gpusched: note: {text}"))
        self._channel = open_channel(address)
        self._stub = scheduler_pb2_grpc.SchedulerStub(self._channel)

    def serve(self, commands: queue.SimpleQueue[Message]) -> None:
        """Ask for the GPUs, and do what the owner says; ends the process in the end."""
        threading.Thread(target=self._stream, daemon=True).start()
        while True:
            command = commands.get()
            if command["kind"] == wire.CONFIRM:
                self._confirm(command["epoch"])
            elif command["kind"] == wire.FINISH:
                self._finish(command["outcome"], command["keep_if_busy"])

    # -- the stream --------------------------------------------------------------------------------------

    def _stream(self) -> None:
        try:
            for response in self._stub.Acquire(self._message()):
                self._take(response)
        except grpc.RpcError as error:
            self._stream_ended(from_rpc_error(error))
        except GpuschedError as error:
            self._link.fail(error)
        except Exception as error:
            print_traceback()
            self._stream_ended(GpuschedError(f"the helper process failed: {error}", reason="HELPER_FAILED"))
        else:
            self._stream_ended(LeaseLost("the scheduler ended the lease", reason="LEASE_LOST"))

    def _message(self) -> scheduler_pb2.AcquireRequest:
        asked = self._request
        pid, ticks = self._owner
        message = scheduler_pb2.AcquireRequest(
            resources=resources_pb2.ResourceRequest(
                gpus=asked["gpus"],
                gpu_memory_bytes=asked["gpu_memory_bytes"],
                gpu_model=asked["gpu_model"],
                node=self._own_node(),
            ),
            name=asked["name"],
            priority=asked["priority"],
            immediate=asked["immediate"],
            request_id=os.urandom(16).hex(),
            command=asked["command"],
            holder=scheduler_pb2.Holder(pid=pid, start_ticks=ticks),
        )
        if asked["time_limit"] is not None:
            message.time_limit.FromNanoseconds(round(asked["time_limit"] * 1e9))
        if asked["max_wait"] is not None:
            message.max_wait.FromNanoseconds(round(asked["max_wait"] * 1e9))
        return message

    def _own_node(self) -> str:
        """The node whose GPUs this process can use: the scheduler's own, as both are on this machine."""
        address = self._request["address"]
        try:
            status = self._stub.GetStatus(scheduler_pb2.GetStatusRequest(), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise failure(error, address) from None
        if status.service != "gpusched":
            raise ServerMismatch(f"what answers at {address} says that it is {status.service[:40]!r}, not gpusched")
        return status.node if is_loopback(address) else ""

    def _take(self, response: scheduler_pb2.AcquireResponse) -> None:
        kind = response.WhichOneof("event")
        if kind == "accepted":
            self._job_id, self._token = response.accepted.job_id, response.accepted.resume_token
            self._link.send(wire.ACCEPTED, job_id=self._job_id)
        elif kind == "queued":
            self._link.send(wire.QUEUED, update=lease_convert.queued(response.queued))
        elif kind == "granted":
            self._grant = lease_convert.granted(response.granted)
            self._link.send(wire.GRANTED, grant=self._grant)
        elif kind == "notice":
            self._link.send(wire.NOTICE, notice=lease_convert.notice(response.notice))

    def _stream_ended(self, error: GpuschedError) -> None:
        if self._finishing:
            return
        if not self._confirmed:
            self._link.fail(addressed(error, self._request["address"]))
        if isinstance(error, ServerUnavailable):
            # Not a verdict on the lease: nobody else is given the GPUs while this process sits on them.
            self._link.send(wire.NOTICE, notice=Notice(NoticeKind.AWAY, f"{_AWAY} ({error})", None, self._job_id))
            return
        self._link.send(wire.LOST, error=wire.dump_error(error))
        os._exit(0)

    def _confirm(self, epoch: int) -> None:
        request = scheduler_pb2.ConfirmRequest(job_id=self._job_id, resume_token=self._token, epoch=epoch)
        try:
            self._stub.Confirm(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            refusal = from_rpc_error(error)
            # Too late: the job is back at its place, and the stream goes on. Other failures end the stream as well.
            if refusal.reason != "GRANT_EXPIRED" and not isinstance(refusal, ServerUnavailable):
                self._link.fail(refusal)
            return
        self._confirmed = True
        self._link.send(wire.CONFIRMED, epoch=epoch)

    # -- the end -----------------------------------------------------------------------------------------

    def _finish(self, outcome: Message, keep_if_busy: bool) -> None:
        """Release, and end the process; or say that something of the owner's still sits on a GPU, and stay."""
        grant = self._grant
        away = False
        if grant is None or not self._confirmed:
            self._link.send(wire.RELEASED, away=away)
            os._exit(0)
        try:
            if keep_if_busy and (busy := self._busy(grant)):
                self._link.send(wire.KEPT, processes=busy)
                return
            self._finishing = True
            self._release(grant, outcome)
        except grpc.RpcError as error:
            refusal = from_rpc_error(error)
            away = isinstance(refusal, ServerUnavailable)
            if isinstance(refusal, (LeaseLost, JobEnded)):
                self._link.send(wire.LOST, error=wire.dump_error(refusal))
                os._exit(0)
        self._link.send(wire.RELEASED, away=away)
        os._exit(0)

    def _release(self, grant: Grant, outcome: Message) -> None:
        self._stub.Release(
            scheduler_pb2.ReleaseRequest(
                job_id=self._job_id,
                resume_token=self._token,
                epoch=grant.epoch,
                outcome=job_pb2.Outcome(exit_status=outcome["exit_status"], message=outcome["message"]),
                timed_out=outcome["timed_out"],
            ),
            timeout=RELEASE_SECONDS,
        )

    def _busy(self, grant: Grant) -> list[list[int]]:
        """The owner's processes on the lease's GPUs, as [GPU index, pid, bytes]. Raises grpc.RpcError."""
        now = datetime.now(UTC)
        uuids = {gpu.uuid for gpu in grant.gpus}
        answer = self._stub.ListGpus(scheduler_pb2.ListGpusRequest(), timeout=CALL_SECONDS)
        gpus = [gpu for gpu in answer.gpus if gpu.uuid in uuids]
        busy = self._owners_processes(gpus)
        if busy or not procs.has_open(self._owner[0], environment.UVM_DEVICE):
            return busy
        # CUDA is initialised over there, but the last look may be older than that: wait for the next one.
        try:
            for answer in self._stub.WatchGpus(scheduler_pb2.WatchGpusRequest(), timeout=FRESH_READING_SECONDS):
                gpus = [gpu for gpu in answer.gpus if gpu.uuid in uuids]
                if (busy := self._owners_processes(gpus)) or all(
                    (seen := lease_convert.when(gpu, "observed_at")) is not None and seen > now for gpu in gpus
                ):
                    break
        except grpc.RpcError:
            pass  # no fresh look in time: what the first one said holds
        return busy

    def _owners_processes(self, gpus: list[resources_pb2.Gpu]) -> list[list[int]]:
        found = []
        for gpu in gpus:
            for process in gpu.processes:
                ours = process.job_id == self._job_id or self._owner[0] in procs.ancestors(process.pid)
                if ours and procs.alive(process.pid):
                    found.append([gpu.index, process.pid, process.memory_bytes])
        return found

    def _say(self, text: str) -> None:
        self._link.send(wire.SAY, text=text)
