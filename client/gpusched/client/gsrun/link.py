"""The holder's connection to the scheduler: everything that talks gRPC, in a thread of its own.

What the scheduler says is posted to the holder's loop; the loop never waits for the network, but for the short calls
that end a lease. A stream that is lost is opened again by the job's secret, for as long as it takes: only the server
state that accepted the job can say that it is over.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpusched.client.gsrun import asking, exits, reach
from gpusched.client.gsrun.options import Options

if TYPE_CHECKING:
    import grpc

    from gpusched.client.errors import GpuschedError
    from gpusched.client.gsrun.listener import Listener
    from gpusched.v1 import scheduler_pb2

FIRST_ANSWER_SECONDS = 3.0
"""How long a scheduler that listens may refuse the first call as unavailable (starting, stopping, overrun)."""
CONFIRM_SECONDS = 3.0
CONFIRM_PAUSE_SECONDS = 0.05
CONNECT_SECONDS = 5.0
_HINT = "start one with `gpusched serve`, or give another address by --url or GPUSCHED_URL"
RESTART_AFTER_SECONDS = 3.0
"""How long a scheduler of our own user may be gone before a waiting gsrun starts it again."""


class Ticket:
    """What a job is known by.

    Attributes:
        job_id: empty before the scheduler has accepted it.
        token: secret by which its holder is known; empty when there is no job to come back to.
        state_id: the server state that keeps it.
    """

    __slots__ = ("job_id", "state_id", "token")

    def __init__(self) -> None:
        self.job_id = ""
        self.token = ""
        self.state_id = ""


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
        self._call: Any = None
        self._ticket = Ticket()
        self._accepted = False  # by the stream that is, or was last
        self._ended = ""
        self._stopping = False
        self._closed = False
        self._began = time.monotonic()
        self._told = ""  # why no job is taken now
        self._owner: int | None = None  # uid of the scheduler; None: not known (yet)
        self._may_restart = True
        self._backoff = reach.Backoff()
        # Over the three: a grant is confirmed on the stream that told it, while that lives, or not at all.
        self._lock = threading.Lock()
        self._stream = 0
        self._alive = False
        self._confirmed = False

    def start(self) -> None:
        """Begin, in a thread of its own."""
        threading.Thread(target=self._guarded_run, name="link", daemon=True).start()

    # -- calls of the holder's loop ------------------------------------------------------------------------

    def confirm(self, epoch: int) -> None:
        """Tell the scheduler that we are awake; `on_confirmed` follows unless the grant was taken back meanwhile."""
        from gpusched.v1 import scheduler_pb2

        request = scheduler_pb2.ConfirmRequest(job_id=self._ticket.job_id, resume_token=self._ticket.token, epoch=epoch)
        stream = self._stream
        try:
            future = self._stub.Confirm.future(request, timeout=CONFIRM_SECONDS)
        except ValueError:
            return  # the channel was closed this moment; on the next one the grant is told again
        future.add_done_callback(lambda done: self._post(self._confirm_done, done, epoch, stream))

    def release(self, epoch: int, exit_status: int | None, signal: int, message: str, timed_out: bool) -> bool:
        """Give the lease back, with how the work ended; whether the scheduler took note. Takes a second at most."""
        from gpusched.client.gsrun import calls

        ending = calls.Ending(epoch, exit_status, signal, message, timed_out)
        return calls.release(self._address, self._stub if self._alive else None, self._ticket, ending)

    def note_owner(self) -> None:
        """See, while it is there, whose scheduler it is: another user's has no say when this one is away."""
        if self._owner is None:
            from gpusched.client.serveruser import listener_uid

            self._owner = listener_uid(self._address)

    def close(self) -> None:
        """Hear and say no more."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    # -- the thread ----------------------------------------------------------------------------------------

    def _guarded_run(self) -> None:
        try:
            self._run()
        except Exception as error:
            from gpusched.client.usage import UsageError

            self._refuse(str(error), exits.USAGE if isinstance(error, UsageError) else asking.exit_code(error))

    def _run(self) -> None:
        from gpusched.client.errors import ServerUnavailable
        from gpusched.client.serveruser import check_server_user

        if silent := bool(reach.silence(self._address)):
            from gpusched.client.autostart import ensure_server

            ensure_server(self._address, self._say)
        try:
            check_server_user(self._address, self._say)
        except ServerUnavailable:
            self._refuse(self._unreachable("connection refused"), exits.NO_SERVER)
            return
        while not self._closed:
            error = self._try_once()
            if error is None:
                return
            if isinstance(error, _PlaceLost):
                self._ticket.token = ""
                self._post(self._listener.on_place_lost, str(error))
                self._backoff.pause()
            elif self._ticket.job_id:
                self._post(self._listener.on_away)
                self._wait_for_server()
            elif words := self._not_now(error):
                if self._options.immediate or self._over_patience():
                    self._refuse(words, exits.NO_GPUS_NOW)
                    return
                if words != self._told:
                    self._told = words
                    self._post(self._listener.on_not_now, words)
                self._backoff.pause()
            elif words := self._hopeless(error, silent, time.monotonic() - self._began):
                self._refuse(words, exits.NO_SERVER)
                return
            else:
                self._backoff.pause()

    def _not_now(self, error: Exception) -> str:
        """Why the scheduler, which has answered, cannot take the job now; empty if it is not that."""
        from gpusched.client.errors import ServerUnavailable

        if isinstance(error, ServerUnavailable) and error.reason == "STORE":
            return f"the scheduler at {self._address} can take no job now: {error}"
        return ""

    def _over_patience(self) -> bool:
        """Whether we have waited for as long as we were to."""
        most = self._options.max_wait
        return bool(most) and time.monotonic() - self._began >= most

    def _hopeless(self, error: Exception, silent: bool, seconds: float) -> str:
        """Why there is no use in another first call; empty if it is too early to say.

        Args:
            error: how the last one failed.
            silent: nobody listened at the very first.
            seconds: since then.
        """
        late = seconds > FIRST_ANSWER_SECONDS
        if (silent or late) and (why := reach.silence(self._address)):
            return self._unreachable(why)
        if "HTTP/2" in str(error) or late:
            return f"what listens at {self._address} does not answer as a scheduler does; {_HINT} ({error})"
        return ""

    def _unreachable(self, why: str) -> str:
        return f"no scheduler answers at {self._address} ({why}); {_HINT}"

    def _try_once(self) -> Exception | None:
        """Queue, or come back, and listen until the stream ends. Gives the error if it is worth trying again."""
        try:
            return self._attempt()
        except Exception as error:
            if not self._confirmed:
                raise
            return error  # nothing that goes wrong on our side ends a command

    def _attempt(self) -> Exception | None:
        from gpusched.client.errors import ServerUnavailable

        returning = bool(self._ticket.token)
        if returning and not self._may_be_ours():
            self._post(self._listener.on_stranger)
            return ServerUnavailable("another user's program listens there")
        self._connect()
        if returning:
            request = asking.return_request(self._ticket.token, self._start_ticks)
        else:
            request = asking.first_request(self._options, self._node, self._request_id, self._start_ticks)
        error, state = self._listen(request, returning)
        if self._closed or error is None:
            return None
        if returning and not self._accepted:
            return self._not_let_in(error, state)
        return self._stream_ended(error)

    def _connect(self) -> None:
        import grpc

        from gpusched.client.transport import open_channel
        from gpusched.v1 import scheduler_pb2_grpc

        if self._channel is not None:
            self._channel.close()
        self._channel = open_channel(self._address)
        self._stub = scheduler_pb2_grpc.SchedulerStub(self._channel)
        if self._confirmed:
            # The front is to have its share in this connection before the lease hangs on it.
            grpc.channel_ready_future(self._channel).result(CONNECT_SECONDS)
            self._post(self._listener.on_connected)

    def _listen(self, request: scheduler_pb2.AcquireRequest, returning: bool) -> tuple[GpuschedError | None, str]:
        """Open a stream and hear it to its end.

        Returns:
            How it ended, None if as it should; and which server state did not let us in, empty if none said so.
        """
        import grpc

        from gpusched.client.errors import ServerUnavailable, from_rpc_error

        self._ended = stranger = ""
        self._accepted = False
        with self._lock:
            self._stream += 1
            self._alive = True
        try:
            self._call = self._stub.Acquire(request)
            for response in self._call:
                if returning and not self._accepted and response.accepted.state_id != self._ticket.state_id:
                    stranger = response.accepted.state_id
                    self._call.cancel()
                    break
                self._dispatch(response)
        except grpc.RpcError as error:
            return from_rpc_error(error), reach.state_of(error)
        finally:
            with self._lock:
                self._alive = False
        if self._options.dry_run:
            return None, ""
        return ServerUnavailable("the scheduler ended the stream without a word"), stranger

    def _stream_ended(self, error: GpuschedError) -> Exception | None:
        """What follows from the end of a stream that had let us in. Gives the error if it is worth trying again."""
        from gpusched.client.errors import JobCancelled, LeaseLost, ServerUnavailable

        if isinstance(error, ServerUnavailable) and not self._ended:
            return error
        message = self._ended or asking.in_our_words(error)
        if not self._confirmed:
            self._refuse(message, asking.exit_code(error))
            return None
        if not self._ended and not isinstance(error, (LeaseLost, JobCancelled)):
            return error  # an error of the server's own is no verdict on the lease
        cancelled = isinstance(error, JobCancelled)
        self._post(self._listener.on_ended, message, exits.CANCELLED if cancelled else exits.LEASE_LOST)
        return None

    def _may_be_ours(self) -> bool:
        """Whether the one who listens there may be believed: our scheduler's user, or root."""
        from gpusched.client.errors import ServerUnavailable
        from gpusched.client.serveruser import ServerRefused, check_server_user, listener_uid

        uid = listener_uid(self._address)
        if uid is None:
            return True  # on another machine, or gone again, as the call will show
        if self._owner is not None and uid not in (0, self._owner):
            return False
        try:
            check_server_user(self._address, self._say)
        except ServerRefused:
            return False
        except ServerUnavailable:
            pass  # gone again
        return True

    def _not_let_in(self, error: GpuschedError, state: str) -> Exception | None:
        """What follows from a return that was refused by the server state `state` (empty: it did not say).

        Returns:
            The error if it is worth trying again.
        """
        from gpusched.client.errors import LeaseLost
        from gpusched.client.gsrun import calls

        if state and state != self._ticket.state_id:
            if self._confirmed:
                self._post(self._listener.on_stranger)
                return error
            return _PlaceLost(f"another scheduler answers at {self._address} now, and knows nothing of this job")
        if not state or not isinstance(error, LeaseLost):
            return error
        why = calls.why_over(self._stub, self._ticket.job_id)
        if self._confirmed:
            self._post(self._listener.on_ended, why, exits.LEASE_LOST)
            return None
        if self._over_patience():
            self._refuse(why, exits.NO_GPUS_NOW)
            return None
        return _PlaceLost(f"this job's place in the queue is lost ({why})")

    def _dispatch(self, response: scheduler_pb2.AcquireResponse) -> None:
        if response.HasField("accepted"):
            accepted, ticket = response.accepted, self._ticket
            ticket.job_id, ticket.token, ticket.state_id = accepted.job_id, accepted.resume_token, accepted.state_id
            self._accepted = True
            self._stopping = False
            self._backoff.reset()
            self._post(self._listener.on_accepted, accepted)
        match response.WhichOneof("event"):
            case "queued":
                self.note_owner()
                self._post(self._listener.on_queued, response.queued)
            case "granted":
                self._post(self._listener.on_granted, response.granted)
            case "notice":
                from gpusched.v1 import scheduler_pb2

                self._stopping |= response.notice.kind == scheduler_pb2.NOTICE_KIND_SERVER_STOPPING
                self._post(self._listener.on_notice, response.notice)
            case "ended":
                self._ended = response.ended.message or "it has ended this job"
            case "dry_run":
                self._post(self._listener.on_dry_run, response.dry_run)

    def _wait_for_server(self) -> None:
        """Until something listens again. A scheduler of our own that went without a word is started again, once."""
        gone_at = time.monotonic()
        self._backoff.pause()
        while not self._closed and reach.silence(self._address):
            ours = self._owner == os.getuid() and not self._stopping and not self._confirmed
            if ours and self._may_restart and time.monotonic() - gone_at > RESTART_AFTER_SECONDS:
                from gpusched.client.autostart import AutostartFailed, ensure_server

                self._may_restart = False
                try:
                    ensure_server(self._address, self._say)
                except AutostartFailed as error:
                    self._say(str(error))
            self._backoff.pause()

    def _confirm_done(self, done: Any, epoch: int, stream: int) -> None:
        from gpusched.client.errors import ServerUnavailable, from_rpc_error

        with self._lock:
            if not self._alive or stream != self._stream:
                return  # the stream that granted it is gone; the next one tells again what is ours
            failure = done.exception()
            self._confirmed = self._confirmed or failure is None
        if failure is None:
            self._listener.on_confirmed(epoch)
        elif isinstance(from_rpc_error(failure), ServerUnavailable):
            # Whether it was heard is unknown; saying it twice does no harm.
            again = threading.Timer(CONFIRM_PAUSE_SECONDS, self.confirm, (epoch,))
            again.daemon = True
            again.start()
        # Else the grant was taken back, which the stream tells too: it goes on.

    def _refuse(self, message: str, code: int) -> None:
        self._post(self._listener.on_refused, message, code)

    def _say(self, text: str) -> None:
        self._post(self._listener.on_say, text)


class _PlaceLost(Exception):
    """The job that we queued with is over before its turn came; in words."""
