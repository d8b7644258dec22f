"""What the sync and the async batch client share: the calls, patience with a scheduler that is away, results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from gpusched.client import convert, views
from gpusched.client.calls import Call
from gpusched.client.errors import GpuschedError, ServerUnavailable
from gpusched.v1 import scheduler_pb2

T = TypeVar("T")

#: Seconds between two tries to reach a scheduler that is away, and how long it is waited for.
RETRY_EVERY, PATIENCE = 0.3, 60.0

_ENDED = frozenset(views.JobState) - {views.JobState.QUEUED, views.JobState.RUNNING, views.JobState.UNKNOWN}


class JobFailed(GpuschedError):
    """A job ended otherwise than with exit status 0.

    Attributes:
        job: as it ended.
    """

    def __init__(self, job: views.Job) -> None:
        said = job.outcome.message if job.outcome is not None else ""
        super().__init__(f"job {job.id} {job.state.value.replace('_', ' ')}" + (f": {said}" if said else ""))
        self.job = job


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Some output of a run, and where in it it stood."""

    data: bytes
    offset: int
    attempt: int


class Patience:
    """Waits for a scheduler that is away, for so long.

    Args:
        clock: seconds on a clock that never goes back.
        sleep: waits for some seconds; None where the caller does it.
    """

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None] | None = None) -> None:
        self._clock = clock
        self._sleep = sleep
        self._since: float | None = None

    def relax(self) -> None:
        """It answered."""
        self._since = None

    def suffer(self, error: ServerUnavailable) -> None:
        """It did not answer: wait a little, or raise the error when it has been away for too long."""
        now = self._clock()
        if self._since is None:
            self._since = now
        if now - self._since > PATIENCE:
            raise error
        if self._sleep is not None:
            self._sleep(RETRY_EVERY)

    def call(self, function: Callable[[], T]) -> T:
        """Call until it answers. Only for calls that may be made twice."""
        while True:
            try:
                return function()
            except ServerUnavailable as error:
                self.suffer(error)


def ready_address(url: str | None) -> str:
    """The scheduler's address; one is started there if none answers and it may be."""
    from gpusched.client.address import server_address
    from gpusched.client.autostart import ensure_server

    address = server_address(url)
    ensure_server(address, lambda text: print(text, file=sys.stderr))
    return address


def submit(request: scheduler_pb2.SubmitRequest) -> Call[views.Job]:
    return Call("Scheduler.Submit", request, lambda answer: convert.job(answer.job))


def wait(job_id: str) -> Call[views.Job]:
    request = scheduler_pb2.WaitJobRequest(job_id=job_id)
    return Call("Scheduler.WaitJob", request, lambda answer: convert.job(answer.job))


def logs(job_id: str, follow: bool, tail: int, attempt: int, offset: int | None) -> Call[LogPiece]:
    request = scheduler_pb2.StreamLogsRequest(job_id=job_id, follow=follow, attempt=attempt)
    if offset is None:
        request.tail_lines = tail
    else:
        request.offset = offset
    return Call("Scheduler.StreamLogs", request, lambda answer: LogPiece(answer.data, answer.offset, answer.attempt))


def last_of_wait(running: Any, call: Call[views.Job], address: str, relax: Callable[[], None]) -> views.Job | None:
    """Read a WaitJob stream to its end. None if its deadline came first; raises GpuschedError."""
    import grpc

    from gpusched.client.transport import failure

    job = None
    try:
        for message in running:
            relax()
            job = call.read(message)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return None
        raise failure(error, address) from None
    finally:
        running.cancel()
    return job if job is not None and job.state in _ENDED else None


def has_ended(job: views.Job | None) -> bool:
    return job is not None and job.state in _ENDED


def checked_result(job: views.Job) -> views.Job:
    """A job that completed; raises JobFailed for any other end."""
    if job.state is not views.JobState.COMPLETED:
        raise JobFailed(job)
    return job
