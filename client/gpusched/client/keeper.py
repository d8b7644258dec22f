"""In the helper process: the `Acquire` stream, from the ticket to the end of the lease. Imports grpc."""

from __future__ import annotations

import dataclasses
import os
import queue
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from gpusched.client import environment, lease_convert, procs, wire
from gpusched.client.address import is_loopback
from gpusched.client.attachment import Attachment, print_traceback
from gpusched.client.autostart import ensure_server
from gpusched.client.errors import GpuschedError, JobEnded, LeaseLost, ServerMismatch, ServerUnavailable, from_rpc_error
from gpusched.client.fields import in_parameters
from gpusched.client.gsrun.reach import state_of
from gpusched.client.lease_views import Grant, Notice, NoticeKind, QueueUpdate, Reason, ReasonCode
from gpusched.client.serveruser import check_server_user
from gpusched.client.transport import addressed, failure, open_channel
from gpusched.client.where import Where
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2, scheduler_pb2_grpc

if TYPE_CHECKING:
    from gpusched.client.helper import Link

CALL_SECONDS = 5.0
CONFIRM_PAUSE_SECONDS = 0.05
RELEASE_SECONDS = 5.0
AWAY_RELEASE_SECONDS = 1.0
"""How long the end of a lease waits for a scheduler that is away."""
RETRY_SECONDS = 0.1
FRESH_READING_SECONDS = 3.0

Message = dict[str, Any]


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
        self._grant: Grant | None = None
        self._place: QueueUpdate | None = None
        self._finishing = False
        self._told_away = False
        #: What sends the owner the signal of its wish, and when; None before there is a reason.
        self._signalling: tuple[threading.Timer, datetime] | None = None
        self.confirmed = False
        address = request["address"]
        say = self._say
        ensure_server(address, say)
        check_server_user(address, lambda text: say(f"gpusched: note: {text}"))
        holder = scheduler_pb2.Holder(pid=owner_pid, start_ticks=owner_ticks)
        self._stream = Attachment(address, holder, self, request["max_wait"])

    def serve(self, commands: queue.SimpleQueue[Message]) -> None:
        """Ask for the GPUs, and do what the owner says; ends the process in the end."""
        threading.Thread(target=self._run_stream, daemon=True).start()
        while True:
            command = commands.get()
            if command["kind"] == wire.CONFIRM:
                self._confirm(command["epoch"])
            elif command["kind"] == wire.FINISH:
                self._finish(command["outcome"], command["keep_if_busy"])

    # -- the stream --------------------------------------------------------------------------------------

    def _run_stream(self) -> None:
        try:
            message = self._message()
        except GpuschedError as error:
            self._link.fail(error)
        except Exception as error:
            print_traceback()
            self._link.fail(GpuschedError(f"the helper process failed: {error}", reason="HELPER_FAILED"))
        end = self._stream.run(message)
        if self._finishing:
            return
        if not self.confirmed:
            self._link.fail(in_parameters(addressed(end, self._request["address"])))
        self._lose(end)

    def take(self, response: scheduler_pb2.AcquireResponse) -> None:
        """An event of the stream."""
        if response.HasField("accepted") and not response.accepted.resumed:
            self._link.send(wire.ACCEPTED, job_id=response.accepted.job_id)
        kind = response.WhichOneof("event")
        if kind == "queued":
            if self.confirmed:
                self._lose(LeaseLost("the scheduler has queued this job again", reason="LEASE_LOST"))
            self._told_away = False
            self._place = lease_convert.queued(response.queued)
            self._link.send(wire.QUEUED, update=self._place)
        elif kind == "granted":
            grant = lease_convert.granted(response.granted)
            if self.confirmed:
                self._again(grant, unconfirmed=response.granted.HasField("confirm_by"))
                return
            self._told_away = False
            self._grant = grant
            self._link.send(wire.GRANTED, grant=grant)
        elif kind == "notice":
            notice = lease_convert.notice(response.notice)
            self._link.send(wire.NOTICE, notice=notice)
            if notice.kind is NoticeKind.PREEMPTION and notice.deadline is not None:
                self._signal_before(notice.deadline, NoticeKind.PREEMPTION, "the GPUs are taken for another job")

    def away(self) -> None:
        """The scheduler is away: said once, until it is back."""
        if not self._told_away:
            self._tell_away("the scheduler is away")
        self._told_away = True

    def not_now(self, why: str) -> None:
        """The scheduler can take no job now."""
        self._say(f"gpusched: the scheduler at {self._request['address']} can take no job now: {why}; trying on")

    def stranger(self) -> None:
        """Another one answers in its place, and has no say."""
        other = (
            f"another scheduler answers at {self._request['address']}, which knows nothing of this job; ours is away"
        )
        self._tell_away(other)

    def _tell_away(self, what: str) -> None:
        job_id = self._stream.job_id
        if self._finishing:
            return
        if self.confirmed:
            stays = "the GPUs stay" if self._request["gpus"] else "the lease stays"
            self._link.send(wire.NOTICE, notice=Notice(NoticeKind.AWAY, f"{what}; {stays} yours", None, job_id))
        elif self._place is not None:
            reason = Reason(ReasonCode.AWAY, f"{what}; keeping your place in the queue")
            self._link.send(wire.QUEUED, update=dataclasses.replace(self._place, reason=reason))

    def _again(self, grant: Grant, *, unconfirmed: bool) -> None:
        """The scheduler is back, and tells what it knows of our lease."""
        assert self._grant is not None
        if grant.epoch != self._grant.epoch:
            self._lose(LeaseLost("the scheduler has granted these GPUs anew since then", reason="LEASE_LOST"))
        if unconfirmed:
            self._call_confirm(grant.epoch)
        if self._told_away:
            self._told_away = False
            back = Notice(NoticeKind.BACK, "the scheduler is back", None, grant.job_id)
            self._link.send(wire.NOTICE, notice=back)

    def _signal_before(self, deadline: datetime, kind: NoticeKind, what: str) -> None:
        """The lease ends at the deadline: have the owner sent what it wished for, so long before as it wished."""
        if self._request["signal"] is None:
            return
        name, before = self._request["signal"]
        at = deadline - timedelta(seconds=before)
        if self._signalling is not None:
            timer, planned = self._signalling
            # Once: the scheduler tells it again to who comes back to it, and the time limit may come after that.
            if planned <= at or not timer.is_alive():
                return
            timer.cancel()
        wait = max(0.0, (at - datetime.now(UTC)).total_seconds())
        timer = threading.Timer(wait, self._send_signal, (name, deadline, kind, what))
        timer.daemon = True
        self._signalling = timer, at
        timer.start()

    def _send_signal(self, name: str, deadline: datetime, kind: NoticeKind, what: str) -> None:
        if self._finishing:
            return
        if problem := procs.send_if_caught(*self._owner, name):
            text = f"SIG{name} was not sent before {what}: {problem}"
            self._link.send(wire.NOTICE, notice=Notice(kind, text, deadline, self._stream.job_id))

    def _lose(self, error: GpuschedError) -> NoReturn:
        self._link.send(wire.LOST, error=wire.dump_error(error))
        os._exit(0)

    def _message(self) -> scheduler_pb2.AcquireRequest:
        asked = self._request
        pid, ticks = self._owner
        resources = resources_pb2.ResourceRequest(
            gpus=asked["gpus"],
            gpu_memory_bytes=asked["gpu_memory_bytes"],
            gpu_model=asked["gpu_model"],
            node=self._own_node(),
        )
        Where(**asked["where"]).put(resources)
        message = scheduler_pb2.AcquireRequest(
            resources=resources,
            name=asked["name"],
            priority=asked["priority"],
            immediate=asked["immediate"],
            preemptible=asked["preemptible"],
            request_id=os.urandom(16).hex(),
            command=asked["command"],
            holder=scheduler_pb2.Holder(pid=pid, start_ticks=ticks),
        )
        if asked["time_limit"] is not None:
            message.time_limit.FromNanoseconds(round(asked["time_limit"] * 1e9))
        if asked["max_wait"] is not None:
            message.max_wait.FromNanoseconds(round(asked["max_wait"] * 1e9))
        if asked["estimate"] is not None:
            message.estimate.FromNanoseconds(round(asked["estimate"] * 1e9))
        if asked["signal"] is not None:
            message.preempt_signal.name, before = asked["signal"]
            message.preempt_signal.before.FromNanoseconds(round(before * 1e9))
        return message

    def _own_node(self) -> str:
        """The node whose GPUs this process can use: the scheduler's own, as both are on this machine."""
        address = self._request["address"]
        try:
            status = self._stream.stub.GetStatus(scheduler_pb2.GetStatusRequest(), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise failure(error, address) from None
        if status.service != "gpusched":
            raise ServerMismatch(f"what answers at {address} says that it is {status.service[:40]!r}, not gpusched")
        return status.node if is_loopback(address) else ""

    def _confirm(self, epoch: int) -> None:
        """Take the grant, unless its stream is lost: the next stream tells it again."""
        generation = self._stream.generation
        while generation == self._stream.generation and not self._stream.away:
            refusal = self._call_confirm(epoch)
            if refusal is None:
                self.confirmed = True
                self._link.send(wire.CONFIRMED, epoch=epoch)
                if self._grant is not None and self._grant.expires_at is not None:
                    self._signal_before(self._grant.expires_at, NoticeKind.TIME_LIMIT, "the time limit")
                return
            if not isinstance(refusal, ServerUnavailable):
                # Too late: the job is back at its place, and the stream goes on. Other failures end it all.
                if refusal.reason != "GRANT_EXPIRED":
                    self._link.fail(refusal)
                return
            # Whether it was heard is unknown; saying it twice does no harm.
            time.sleep(CONFIRM_PAUSE_SECONDS)

    def _call_confirm(self, epoch: int) -> GpuschedError | None:
        stream = self._stream
        request = scheduler_pb2.ConfirmRequest(job_id=stream.job_id, resume_token=stream.token, epoch=epoch)
        try:
            stream.stub.Confirm(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            return from_rpc_error(error)
        except ValueError:
            return ServerUnavailable("the channel was closed this moment")
        return None

    # -- the end -----------------------------------------------------------------------------------------

    def _finish(self, outcome: Message, keep_if_busy: bool) -> None:
        """Release, and end the process; or say that something of the owner's still sits on a GPU, and stay."""
        grant = self._grant
        if grant is None or not self.confirmed:
            self._link.send(wire.RELEASED, away=False)
            os._exit(0)
        if keep_if_busy and not self._stream.away and (busy := self._busy(grant)):
            self._link.send(wire.KEPT, processes=busy)
            return
        self._finishing = True
        self._link.send(wire.RELEASED, away=not self._release(grant, outcome))
        os._exit(0)

    def _release(self, grant: Grant, outcome: Message) -> bool:
        """Tell how the lease ends; whether the scheduler took note. One that is away is waited for, for a second."""
        stream = self._stream
        request = scheduler_pb2.ReleaseRequest(
            job_id=stream.job_id,
            resume_token=stream.token,
            epoch=grant.epoch,
            outcome=job_pb2.Outcome(exit_status=outcome["exit_status"], message=outcome["message"]),
            timed_out=outcome["timed_out"],
        )
        stub: Any = None if stream.away else stream.stub
        seconds, until = RELEASE_SECONDS, time.monotonic() + AWAY_RELEASE_SECONDS
        while seconds > 0:
            if stub is None:
                time.sleep(RETRY_SECONDS)
                if stream.is_ours():
                    # Nobody closes this channel: the process is about to end.
                    stub = scheduler_pb2_grpc.SchedulerStub(open_channel(self._request["address"]))
            try:
                if stub is not None:
                    stub.Release(request, timeout=seconds)
                    return True
            except grpc.RpcError as error:
                refusal, state = from_rpc_error(error), state_of(error)
                if isinstance(refusal, (LeaseLost, JobEnded)) and state in ("", stream.state_id):
                    self._lose(refusal)
            except ValueError:
                pass  # the channel was closed this moment
            stub, seconds = None, until - time.monotonic()
        return False

    def _busy(self, grant: Grant) -> list[list[int]]:
        """The owner's processes on the lease's GPUs, as [GPU index, pid, bytes]; none if the scheduler is away."""
        now = datetime.now(UTC)
        uuids = {gpu.uuid for gpu in grant.gpus}
        stub = self._stream.stub
        try:
            answer = stub.ListGpus(scheduler_pb2.ListGpusRequest(), timeout=CALL_SECONDS)
        except (grpc.RpcError, ValueError):
            return []
        gpus = [gpu for gpu in answer.gpus if gpu.uuid in uuids]
        busy = self._owners_processes(gpus)
        if busy or not procs.has_open(self._owner[0], environment.UVM_DEVICE):
            return busy
        # CUDA is initialised over there, but the last look may be older than that: wait for the next one.
        try:
            for answer in stub.WatchGpus(scheduler_pb2.WatchGpusRequest(), timeout=FRESH_READING_SECONDS):
                gpus = [gpu for gpu in answer.gpus if gpu.uuid in uuids]
                if (busy := self._owners_processes(gpus)) or all(
                    (seen := lease_convert.when(gpu, "observed_at")) is not None and seen > now for gpu in gpus
                ):
                    break
        except (grpc.RpcError, ValueError):
            pass  # no fresh look in time: what the first one said holds
        return busy

    def _owners_processes(self, gpus: list[resources_pb2.Gpu]) -> list[list[int]]:
        found = []
        for gpu in gpus:
            for process in gpu.processes:
                ours = process.job_id == self._stream.job_id or self._owner[0] in procs.ancestors(process.pid)
                if ours and procs.alive(process.pid):
                    found.append([gpu.index, process.pid, process.memory_bytes])
        return found

    def _say(self, text: str) -> None:
        self._link.send(wire.SAY, text=text)
