"""In the helper process: the `Acquire` stream, opened again whenever it is lost without a verdict. Imports grpc.

Only the server state that accepted the job can say that its lease or its place is gone; whatever else happens means
that the scheduler is away, and the job's secret is shown again until it is back.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

import grpc

from gpusched.client.errors import (
    GpuschedError,
    JobCancelled,
    JobEnded,
    LeaseLost,
    ServerUnavailable,
    WaitTimeout,
    from_rpc_error,
)
from gpusched.client.gsrun.reach import Backoff, silence, state_of
from gpusched.client.serveruser import check_server_user, listener_uid
from gpusched.client.transport import open_channel
from gpusched.client.usage import UsageError
from gpusched.v1 import scheduler_pb2, scheduler_pb2_grpc

WHY_SECONDS = 1.0


class Listener(Protocol):
    """Whom the stream speaks to, in its thread."""

    @property
    def confirmed(self) -> bool:
        """Whether the lease is ours, and not only a place in the queue."""

    def take(self, response: scheduler_pb2.AcquireResponse) -> None:
        """An event of the stream."""

    def away(self) -> None:
        """The stream is lost, and nobody said that lease or place is gone."""

    def not_now(self, why: str) -> None:
        """The scheduler has answered, and can take no job at the moment."""

    def stranger(self) -> None:
        """Another scheduler, or another user's program, answers in the place of the one that is away."""


class Attachment:
    """One job's stream.

    Args:
        address: of the scheduler.
        holder: the process that works under the lease.
        listener: told what comes.
        max_wait: seconds after which a wait ends also while the scheduler is away; None for never.

    Attributes:
        stub: for calls beside the stream; another one after each return.
        generation: counts the streams; a call that belongs to an earlier one is void.
        away: no stream stands.
        job_id, token, state_id: of the accepted job; empty before.
    """

    def __init__(
        self, address: str, holder: scheduler_pb2.Holder, listener: Listener, max_wait: float | None = None
    ) -> None:
        self.generation = 0
        self.away = True
        self.job_id = self.token = self.state_id = ""
        self._address = address
        self._holder = holder
        self._listener = listener
        self._give_up_at = time.monotonic() + max_wait if max_wait is not None else None
        self._server_uid: int | None = None
        self._backoff = Backoff()
        self._accepted = False  # by the present stream
        self._ended = ""
        self._lacked = "no GPUs"
        self._stranger_told = False
        self._connect()

    def run(self, request: scheduler_pb2.AcquireRequest) -> GpuschedError:
        """Ask, and listen until the job is over, however often the scheduler goes away. Returns how it ended."""
        self._lacked = "no GPUs" if request.resources.gpus else "no lease"
        error = self._listen(request)
        said = ""
        while error.reason == "STORE" and not self.token and not request.immediate:
            # It has answered, and cannot save that it took us on.
            if self._over_patience():
                return WaitTimeout(f"{self._lacked} within max_wait: {error}", reason="MAX_WAIT")
            if str(error) != said:
                said = str(error)
                self._listener.not_now(said)
            self._backoff.pause()
            error = self._listen(request)
        while not self._is_verdict(error):
            self._listener.away()
            error = self._come_back()
        return error

    def is_ours(self) -> bool:
        """Whether who listens now may be believed: the scheduler's user of the beginning, or root."""
        uid = listener_uid(self._address)
        if uid is None:
            return True  # on another machine, or gone again, as the call will show
        if self._server_uid is not None and uid not in (0, self._server_uid):
            return False
        try:
            check_server_user(self._address, lambda text: None)
        except ServerUnavailable:
            return True
        except (GpuschedError, UsageError):
            return False
        return True

    # -- one stream --------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._channel = open_channel(self._address)
        self.stub = scheduler_pb2_grpc.SchedulerStub(self._channel)

    def _listen(self, request: scheduler_pb2.AcquireRequest) -> GpuschedError:
        """Open a stream and hear it to its end; how it ended."""
        self._accepted, self._ended = False, ""
        self.generation += 1
        call: Any = None
        try:
            call = self.stub.Acquire(request)
            for response in call:
                if not self._take(response):
                    return ServerUnavailable("another scheduler answers")
        except grpc.RpcError as error:
            if request.resume_token and not self._accepted:
                return self._refused(error)
            return self._in_words(from_rpc_error(error))
        except GpuschedError as error:
            return error
        except Exception as error:
            print_traceback()
            return GpuschedError(f"the helper process failed: {error}", reason="HELPER_FAILED")
        finally:
            self.away = True
            if call is not None:
                call.cancel()
        return self._in_words(ServerUnavailable("the scheduler ended the stream without a word", reason="NO_WORD"))

    def _take(self, response: scheduler_pb2.AcquireResponse) -> bool:
        """Pass an event on; False if it comes from another scheduler than the job's own."""
        if response.HasField("accepted"):
            accepted = response.accepted
            if self.token and accepted.state_id != self.state_id:
                self._meet_stranger()
                return False
            self.job_id, self.token, self.state_id = accepted.job_id, accepted.resume_token, accepted.state_id
            self._accepted = True
            self._stranger_told = False
            self.away = False
            self._backoff.reset()
        if response.HasField("ended"):
            self._ended = response.ended.message or "the scheduler has ended this job"
        self._listener.take(response)
        if self._server_uid is None and self._accepted:
            self._server_uid = listener_uid(self._address)
        return True

    def _in_words(self, error: GpuschedError) -> GpuschedError:
        """The error; where its job's end was told and the status got lost, that end."""
        if self._ended and isinstance(error, ServerUnavailable):
            return LeaseLost(self._ended, reason="LEASE_LOST") if self._listener.confirmed else JobEnded(self._ended)
        return error

    def _is_verdict(self, error: GpuschedError) -> bool:
        """Whether it ends the lease or the wait, rather than mean that the scheduler is away."""
        if not self.token:
            return True  # never accepted: there is nothing to come back to
        if self._listener.confirmed:
            return isinstance(error, (LeaseLost, JobCancelled, JobEnded)) or bool(self._ended)
        return not isinstance(error, ServerUnavailable)

    # -- coming back -------------------------------------------------------------------------------------

    def _come_back(self) -> GpuschedError:
        """Try until a stream was had, or the wait is over; how that ended."""
        while True:
            self._backoff.pause()
            if not self._listener.confirmed and self._over_patience():
                return WaitTimeout(f"{self._lacked} within max_wait; the scheduler is away", reason="MAX_WAIT")
            if silence(self._address):
                continue
            if not self.is_ours():
                self._meet_stranger()
                continue
            # A new channel: the old one may be in a pause of its own.
            self._channel.close()
            self._connect()
            return self._listen(scheduler_pb2.AcquireRequest(resume_token=self.token, holder=self._holder))

    def _over_patience(self) -> bool:
        return self._give_up_at is not None and time.monotonic() > self._give_up_at

    def _refused(self, error: grpc.RpcError) -> GpuschedError:
        """What follows from a return that was not let in."""
        refusal, state = from_rpc_error(error), state_of(error)
        if state and state != self.state_id:
            self._meet_stranger()
        elif state and isinstance(refusal, LeaseLost):
            why = self._why_over()
            if self._listener.confirmed:
                return LeaseLost(why, reason="LEASE_LOST")
            return GpuschedError(
                f"the place of job {self.job_id} in the queue is lost ({why}); acquire again", reason="PLACE_LOST"
            )
        # An error of the server's own is no verdict.
        return refusal if isinstance(refusal, ServerUnavailable) else ServerUnavailable(str(refusal))

    def _why_over(self) -> str:
        """What the scheduler says has become of the job."""
        try:
            answer = self.stub.GetJob(scheduler_pb2.GetJobRequest(job_id=self.job_id), timeout=WHY_SECONDS)
        except grpc.RpcError:
            return "the scheduler no longer knows it"
        return str(answer.job.outcome.message) or "the scheduler has ended it"

    def _meet_stranger(self) -> None:
        if not self._stranger_told:
            self._stranger_told = True
            self._listener.stranger()


def print_traceback() -> None:
    """Into the file that the owner keeps for this."""
    import traceback  # costs start-up time, and is hardly ever needed

    traceback.print_exc()
    sys.stderr.flush()
