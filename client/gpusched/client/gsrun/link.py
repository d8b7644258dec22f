"""The holder's connection to the scheduler: everything that talks gRPC, in a thread of its own.

What the scheduler says is posted to the holder's loop; the loop never waits for the network, but for the short calls
that end a lease.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from gpusched.client.gsrun import exits
from gpusched.client.gsrun.options import Options

if TYPE_CHECKING:
    import grpc

    from gpusched.client.errors import GpuschedError
    from gpusched.v1 import scheduler_pb2

FIRST_ANSWER_SECONDS = 3.0
"""How long a scheduler that listens may refuse the first call as unavailable (starting, stopping, overrun)."""
CONFIRM_SECONDS = 3.0
RELEASE_SECONDS = 1.0
RESTART_AFTER_SECONDS = 3.0
"""How long a scheduler of our own user may be gone before a waiting gsrun starts it again."""
MAX_COMMAND_CHARACTERS = 4000
_OPTIONS = {
    "resources.gpus": "-n",
    "resources.gpu_memory_bytes": "--gpu-memory",
    "resources.gpu_model": "--gpu-model",
    "resources.node": "GPUSCHED_NODE",
    "name": "--name",
    "priority": "--priority",
    "time_limit": "--time",
    "max_wait": "--max-wait",
}
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.1, 1.0


class Listener(Protocol):
    """What the holder does about what the scheduler says; called in the holder's loop."""

    def on_say(self, text: str) -> None: ...
    def on_accepted(self, accepted: scheduler_pb2.Accepted) -> None: ...
    def on_queued(self, queued: scheduler_pb2.Queued) -> None: ...
    def on_granted(self, granted: scheduler_pb2.Granted) -> None: ...
    def on_confirmed(self, epoch: int) -> None: ...
    def on_notice(self, notice: scheduler_pb2.Notice) -> None: ...
    def on_dry_run(self, dry_run: scheduler_pb2.DryRun) -> None: ...
    def on_away(self) -> None:
        """The connection was lost, and nobody said that the lease is gone."""

    def on_refused(self, message: str, code: int) -> None:
        """The scheduler's last word, or ours: there will be no GPUs. `code` is what gsrun exits with."""

    def on_ended(self, message: str, code: int) -> None:
        """The scheduler that granted the lease took it back."""


class Link:
    """One job's calls.

    Args:
        options: what is asked for.
        address: of the scheduler, `host:port`.
        node: this machine's name; GPUs of another are not asked for.
        start_ticks: start time of this process, the holder.
        listener: told what happens.
        post: has a function called in the listener's thread.
    """

    def __init__(
        self,
        options: Options,
        address: str,
        node: str,
        start_ticks: int,
        listener: Listener,
        post: Callable[..., None],
    ) -> None:
        self._options = options
        self._address = address
        self._node = node
        self._start_ticks = start_ticks
        self._listener = listener
        self._post = post
        self._request_id = os.urandom(16).hex()
        self._stub: Any = None
        self._channel: grpc.Channel | None = None
        self._job_id = ""
        self._token = ""
        self._ended = ""
        self._stopping = False
        self._may_restart: bool | None = None  # None: not known yet
        self._lock = threading.Lock()  # over the two: a lease is confirmed on a stream that lives, or not at all
        self._alive = False
        self._confirmed = False

    def start(self) -> None:
        """Begin, in a thread of its own."""
        threading.Thread(target=self._guarded_run, name="link", daemon=True).start()

    # -- calls of the holder's loop ------------------------------------------------------------------------

    def confirm(self, epoch: int) -> None:
        """Tell the scheduler that we are awake; `on_confirmed` follows unless the grant was taken back meanwhile."""
        from gpusched.v1 import scheduler_pb2

        request = scheduler_pb2.ConfirmRequest(job_id=self._job_id, resume_token=self._token, epoch=epoch)
        future = self._stub.Confirm.future(request, timeout=CONFIRM_SECONDS)
        future.add_done_callback(lambda done: self._post(self._confirm_done, done, epoch))

    def release(self, epoch: int, exit_status: int | None, signal: int, message: str, timed_out: bool) -> bool:
        """Give the lease back, with how the work ended; whether the scheduler answered. Takes a second at most."""
        import grpc

        from gpusched.v1 import job_pb2, scheduler_pb2

        outcome = job_pb2.Outcome(signal=signal, message=message)
        if exit_status is not None:
            outcome.exit_status = exit_status
        request = scheduler_pb2.ReleaseRequest(
            job_id=self._job_id, resume_token=self._token, epoch=epoch, outcome=outcome, timed_out=timed_out
        )
        try:
            self._stub.Release(request, timeout=RELEASE_SECONDS)
        except grpc.RpcError:
            return False  # the end of our connection says the same, less the outcome
        return True

    def socket_fd(self) -> int | None:
        """Descriptor of our TCP connection to the scheduler; None if it cannot be told."""
        port = int(self._address.rpartition(":")[2])
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            try:
                if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):  # noqa: PTH115
                    continue
                with socket.socket(fileno=os.dup(int(name))) as sock:
                    # By port alone: gRPC dials IPv4 through an IPv6 socket, and we have no other connection.
                    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getpeername()[1] == port:
                        return int(name)
            except OSError:
                continue  # not connected, or closed meanwhile
        return None

    # -- the thread ----------------------------------------------------------------------------------------

    def _guarded_run(self) -> None:
        try:
            self._run()
        except Exception as error:
            from gpusched.client.usage import UsageError

            self._refuse(str(error), exits.USAGE if isinstance(error, UsageError) else exit_code(error))

    def _run(self) -> None:
        from gpusched.client.serveruser import check_server_user

        began = time.monotonic()
        first = True
        while True:
            if first and self._silence():
                from gpusched.client.autostart import ensure_server

                ensure_server(self._address, self._say)
            check_server_user(self._address, self._say)
            first = False
            error = self._attempt()
            if error is None:
                return
            if not self._job_id and (words := self._hopeless(error, time.monotonic() - began)):
                self._refuse(words, exits.NO_SERVER)
                return
            if self._job_id:
                self._post(self._listener.on_away)
            if self._confirmed:
                return
            self._wait_for_server()

    def _hopeless(self, error: GpuschedError, seconds: float) -> str:
        """Why there is no use in another first call; empty if it is too early to say."""
        hint = "start one with `gpusched serve`, or give another address by --url or GPUSCHED_URL"
        if why := self._silence():
            return f"no scheduler answers at {self._address} ({why}); {hint}"
        if "HTTP/2" in str(error) or seconds > FIRST_ANSWER_SECONDS:
            return f"what listens at {self._address} does not answer as a scheduler does; {hint} ({error})"
        return ""

    def _attempt(self) -> GpuschedError | None:
        """Queue once and listen until the stream ends. Gives the error if it is worth trying again."""
        import grpc

        from gpusched.client.errors import JobCancelled, LeaseLost, ServerUnavailable, from_rpc_error
        from gpusched.client.transport import open_channel
        from gpusched.v1 import scheduler_pb2_grpc

        if self._channel is not None:
            self._channel.close()
        self._channel = open_channel(self._address)
        self._stub = scheduler_pb2_grpc.SchedulerStub(self._channel)
        self._ended = ""
        self._alive = True
        try:
            for response in self._stub.Acquire(self._request()):
                self._dispatch(response)
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(rpc_error)
        else:
            error = ServerUnavailable("the scheduler ended the stream without a word")
            if self._options.dry_run:
                return None
        finally:
            with self._lock:
                self._alive = False
        if isinstance(error, ServerUnavailable) and not self._ended:
            return error
        message = self._ended or _in_our_words(error)
        if self._confirmed:
            lost = isinstance(error, (LeaseLost, JobCancelled)) or bool(self._ended)
            if not lost:
                return error  # an error of the server's own is no verdict on the lease
            cancelled = isinstance(error, JobCancelled)
            self._post(self._listener.on_ended, message, exits.CANCELLED if cancelled else exits.LEASE_LOST)
        else:
            self._refuse(message, exit_code(error))
        return None

    def _dispatch(self, response: scheduler_pb2.AcquireResponse) -> None:
        match response.WhichOneof("event"):
            case "accepted":
                self._job_id, self._token = response.accepted.job_id, response.accepted.resume_token
                self._post(self._listener.on_accepted, response.accepted)
            case "queued":
                self._note_owner()
                self._post(self._listener.on_queued, response.queued)
            case "granted":
                self._post(self._listener.on_granted, response.granted)
            case "notice":
                from gpusched.v1 import scheduler_pb2

                self._stopping |= response.notice.kind == scheduler_pb2.NOTICE_KIND_SERVER_STOPPING
                self._post(self._listener.on_notice, response.notice)
            case "ended":
                self._ended = response.ended.message
            case "dry_run":
                self._post(self._listener.on_dry_run, response.dry_run)

    def _note_owner(self) -> None:
        """See, while it is there, whether the scheduler is our own user's: then we may start it again."""
        if self._may_restart is None:
            from gpusched.client.serveruser import listener_uid

            self._may_restart = listener_uid(self._address) == os.getuid()

    def _request(self) -> scheduler_pb2.AcquireRequest:
        from gpusched.v1 import resources_pb2, scheduler_pb2

        options = self._options
        request = scheduler_pb2.AcquireRequest(
            resources=resources_pb2.ResourceRequest(
                gpus=options.gpus,
                gpu_memory_bytes=options.gpu_memory_bytes,
                gpu_model=options.gpu_model,
                node=self._node,
            ),
            name=options.name,
            priority=options.priority,
            immediate=options.immediate,
            dry_run=options.dry_run,
            request_id=self._request_id,
            command=_shortened(options.command),
            holder=scheduler_pb2.Holder(pid=os.getpid(), start_ticks=self._start_ticks),
        )
        for field, seconds in ((request.time_limit, options.time_limit), (request.max_wait, options.max_wait)):
            if seconds:
                field.FromMilliseconds(round(seconds * 1000))
        return request

    def _wait_for_server(self) -> None:
        """Until something listens again. A scheduler of our own that went without a word is started again, once."""
        import random

        from gpusched.client.autostart import AutostartFailed, ensure_server

        gone_at, backoff = time.monotonic(), _FIRST_BACKOFF
        time.sleep(backoff * random.random())
        while self._silence():
            if self._may_restart and not self._stopping and time.monotonic() - gone_at > RESTART_AFTER_SECONDS:
                self._may_restart = False
                try:
                    ensure_server(self._address, self._say)
                except AutostartFailed as error:
                    self._say(str(error))
            time.sleep(backoff * (0.5 + random.random() / 2))
            backoff = min(2 * backoff, _LONGEST_BACKOFF)

    def _silence(self) -> str:
        """Why nobody can be reached at the address; empty if somebody listens there."""
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
        except OSError as error:
            return str(error.strerror or error).lower()
        return ""

    def _confirm_done(self, done: Any, epoch: int) -> None:
        from gpusched.client.errors import ServerUnavailable, from_rpc_error

        failure = done.exception()
        with self._lock:
            if not self._alive:
                return  # the stream that granted it is gone, and with it the lease: it is queued for again
            self._confirmed = failure is None
        if failure is None:
            self._listener.on_confirmed(epoch)
        elif isinstance(from_rpc_error(failure), ServerUnavailable):
            self.confirm(epoch)  # whether it was heard is unknown; saying it twice does no harm
        # Else the grant was taken back, which the stream tells too: it goes on.

    def _refuse(self, message: str, code: int) -> None:
        self._post(self._listener.on_refused, message, code)

    def _say(self, text: str) -> None:
        self._post(self._listener.on_say, text)


def _in_our_words(error: GpuschedError) -> str:
    """The scheduler's message, with the option that a field of the request came from in the field's place."""
    option = _OPTIONS.get(error.field, error.field)
    message = str(error).removeprefix(f"{error.field}: ")
    return f"{option}: {message}" if option else message


def _shortened(words: list[str]) -> list[str]:
    """The command as lists show it: a megabyte of arguments is cut."""
    kept: list[str] = []
    room = MAX_COMMAND_CHARACTERS
    for word in words:
        if len(word) > room:
            kept.append(word[:room] + "…")
            break
        kept.append(word)
        room -= len(word) + 1
    # Bytes that are no text came as surrogates, which protobuf does not take.
    return [word.encode("utf-8", "replace").decode() for word in kept]


def exit_code(error: Exception) -> int:
    """What gsrun exits with when the scheduler's answer is this."""
    from gpusched.client import errors

    for kinds, code in (
        ((errors.InvalidRequest, errors.NotSatisfiable), exits.USAGE),
        ((errors.LimitReached, errors.WaitTimeout), exits.NO_GPUS_NOW),
        ((errors.PermissionDenied, errors.Unauthenticated), exits.NOT_ALLOWED),
        ((errors.JobCancelled,), exits.CANCELLED),
        ((errors.ServerUnavailable, errors.ServerMismatch), exits.NO_SERVER),
    ):
        if isinstance(error, kinds):
            return code
    return exits.OWN_FAILURE
