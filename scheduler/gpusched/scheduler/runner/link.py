"""A supervisor's lease: the stream that keeps it, and the report that ends it. In a thread of its own.

This is the only module of the runner that talks gRPC. It is imported by the agent before it forks, and makes its first
gRPC object in the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import grpc.experimental
from google.rpc import error_details_pb2, status_pb2

from gpusched.client.gsrun import tree
from gpusched.client.transport import open_channel
from gpusched.scheduler.runner.model import Report, Run
from gpusched.v1 import job_pb2, scheduler_pb2, scheduler_pb2_grpc

CONFIRM_SECONDS = 5.0
RELEASE_SECONDS = 10.0
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 1.0
_CONFIRM_TRIES = 3
_DOMAIN = "gpusched"
_PACKED_STATUS = "grpc-status-details-bin"
# One thread fewer, and no hand-over of each event from one to the other.
_ONE_THREAD = (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1)

# What a scheduler says of a lease that it does not have (any more). Every other status may pass.
_FINAL = frozenset({grpc.StatusCode.ABORTED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND})


class Listener(Protocol):
    """What the supervisor does about what the scheduler says; called in the supervisor's loop."""

    def on_attached(self) -> None:
        """The stream is there: a report can be delivered by `Link.release`."""

    def on_notice(self, notice: scheduler_pb2.Notice) -> None: ...

    def on_lost(self, message: str) -> None:
        """The server state that granted the lease says that it is gone."""

    def on_reported(self) -> None:
        """The report has arrived, or nobody is left whom it concerns."""


class Link:
    """One lease.

    Args:
        run: whose.
        listener: told what happens.
        post: has a function called in the listener's thread.
        share: given a descriptor of each new connection, before the server is told that we are awake.
    """

    def __init__(
        self,
        run: Run,
        listener: Listener,
        post: Callable[..., None],
        share: Callable[[int], None],
    ) -> None:
        self._run = run
        self._listener = listener
        self._post = post
        self._share = share
        self._channel: grpc.Channel | None = None
        self._stub: Any = None
        self._backoff = FIRST_BACKOFF
        self._start_ticks = 0  # of this process
        self.started = False
        #: True while a stream lives that the right server state has accepted.
        self.attached = False
        #: How the run ended, as soon as it has. Where there is no stream then, it is sent without opening one.
        self.report: Report | None = None

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self.started = True
        me = tree.look_up(os.getpid())
        self._start_ticks = me.start_ticks if me is not None else 0
        threading.Thread(target=self._keep, name="link", daemon=True).start()

    def release_at_once(self, report: Report) -> bool:
        """End a lease that no stream was opened for, instead of `start`. Whether that is settled."""
        self._open()
        return self.release(report)

    def release(self, report: Report) -> bool:
        """End the lease. Whether that is settled; else it is to be tried again. Takes 10 s at most.

        In any thread; while `attached`, or with nothing known of who answers.
        """
        outcome = job_pb2.Outcome(signal=report.signal, message=_text(report.message))
        if report.exit_status is not None:
            outcome.exit_status = report.exit_status
        usage = job_pb2.Usage(peak_memory_bytes=report.peak_memory_bytes, gpu_seconds=report.gpu_seconds)
        usage.wall.FromNanoseconds(int(report.wall * 1e9))
        usage.cpu.FromNanoseconds(int(report.cpu * 1e9))
        request = scheduler_pb2.ReleaseRequest(
            job_id=self._run.job_id,
            resume_token=self._run.resume_token,
            epoch=self._run.epoch,
            outcome=outcome,
            timed_out=report.timed_out,
            usage=usage,
        )
        try:
            self._stub.Release(request, timeout=RELEASE_SECONDS)
        except grpc.RpcError as error:
            return self._is_final(error, self.attached)
        except ValueError:
            return False  # the channel was closed this moment, for a new one
        return True

    # -- the thread ----------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Hold the stream, and open it again whenever it is lost, for as long as it takes."""
        try:
            self._open()
            while not self._attempt():
                self._wait()
                self._open()
        except Exception:
            # A bug. Without the stream the lease is lost, and no command may go on without one: the agent kills it.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _open(self) -> None:
        """A new channel: the old one may know a server that is gone."""
        if self._channel is not None:
            self._channel.close()
        self._channel = open_channel(self._run.address, _ONE_THREAD)
        self._stub = scheduler_pb2_grpc.SchedulerStub(self._channel)

    def _attempt(self) -> bool:
        """Once. Whether it is all over, because somebody who may say so has said so."""
        if self.report is not None and self.release(self.report):
            self._post(self._listener.on_reported)
            return True
        request = scheduler_pb2.AcquireRequest(
            resume_token=self._run.resume_token,
            holder=scheduler_pb2.Holder(pid=os.getpid(), start_ticks=self._start_ticks),
        )
        accepted = False
        call = self._stub.Acquire(request)
        try:
            for response in call:
                if response.HasField("accepted"):
                    if response.accepted.state_id != self._run.state_id:
                        call.cancel()
                        return False
                    accepted = True
                    self._accepted()
                match response.WhichOneof("event"):
                    case "granted":
                        if why := self._granted(response.granted):
                            return self._lost(why)
                    case "queued":
                        return self._lost("the grant was taken back")
                    case "notice":
                        self._post(self._listener.on_notice, response.notice)
                    case "ended":
                        return self._lost(response.ended.message)
        except grpc.RpcError as error:
            if self._is_final(error, accepted):
                return self._lost(error.details() or "the scheduler does not know it")
        finally:
            self.attached = False
        return False

    def _accepted(self) -> None:
        self._backoff = FIRST_BACKOFF
        self._share_connection()
        self.attached = True
        self._post(self._listener.on_attached)

    def _granted(self, granted: scheduler_pb2.Granted) -> str:
        """Say that we are awake. Returns why the lease is not ours, empty if it is."""
        if granted.epoch != self._run.epoch:
            return "the job was granted GPUs anew"
        if not granted.HasField("confirm_by") or self.report is not None:
            return ""
        request = scheduler_pb2.ConfirmRequest(
            job_id=self._run.job_id, resume_token=self._run.resume_token, epoch=self._run.epoch
        )
        for _ in range(_CONFIRM_TRIES):
            try:
                self._stub.Confirm(request, timeout=CONFIRM_SECONDS)
                break
            except grpc.RpcError as error:
                if self._is_final(error, False):
                    return error.details() or "the grant was taken back"
        # If it was refused or did not get through, the stream has ended too, or will tell.
        return ""

    def _lost(self, message: str) -> bool:
        self._post(self._listener.on_lost, message)
        return True

    def _is_final(self, error: grpc.RpcError, of_our_state: bool) -> bool:
        """Whether this is the word of the server state that granted the lease, and says that it is gone.

        Args:
            error: how a call failed.
            of_our_state: that state has just accepted us; else the error itself must say which state speaks, because
                a channel finds its way to whoever listens there now.
        """
        info = _error_info(error)
        if info is None:
            return False  # the library's word, or that of something that is not gpusched
        code = error.code()
        if code not in _FINAL:
            return False
        state: str = info.metadata.get("state_id", "")
        if not state:
            return of_our_state and code is not grpc.StatusCode.NOT_FOUND
        return state == self._run.state_id

    def _share_connection(self) -> None:
        """Whoever has a descriptor keeps the connection open when we die, until it has cleaned up after us."""
        port = int(self._run.address.rpartition(":")[2])
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            try:
                if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):  # noqa: PTH115
                    continue
                with socket.socket(fileno=os.dup(int(name))) as sock:
                    if sock.family in (socket.AF_INET, socket.AF_INET6) and _connected(sock, port):
                        self._share(sock.fileno())
            except OSError:
                continue  # closed meanwhile

    def _wait(self) -> None:
        """Until something listens again."""
        while True:
            time.sleep(self._backoff * (0.5 + random.random() / 2))
            self._backoff = min(2 * self._backoff, LONGEST_BACKOFF)
            host, _, port = self._run.address.rpartition(":")
            with contextlib.suppress(OSError):
                socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
                return


def _connected(sock: socket.socket, port: int) -> bool:
    """Whether a TCP socket is connected to a port, and not merely was. gRPC dials IPv4 through an IPv6 socket."""
    established = 1
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state == established and sock.getpeername()[1] == port


def _error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo | None:
    """The server's own word about a failed call, None if it is not the server's."""
    trailers: Any = error.trailing_metadata() or ()
    packed = next((value for key, value in trailers if key == _PACKED_STATUS), None)
    if not isinstance(packed, bytes):
        return None
    try:
        for detail in status_pb2.Status.FromString(packed).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                return info if info.domain == _DOMAIN else None
    except ValueError:  # DecodeError is one
        pass
    return None


def _text(text: str) -> str:
    """What protobuf takes: bytes that are no text came as surrogates."""
    return text.encode("utf-8", "replace").decode()
