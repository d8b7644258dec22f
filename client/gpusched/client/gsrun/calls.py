"""The short calls about one job, beside its stream."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpusched.client.gsrun.link import Ticket
    from gpusched.v1 import scheduler_pb2

RELEASE_SECONDS = 1.0
"""How long the end of a lease may take to report, the wait for a scheduler that is away included."""
WHY_SECONDS = 0.5


class Ending:
    """How the work under a lease ended.

    Attributes:
        epoch: of the lease.
        exit_status: the command's, None if it has none.
        signal: signal that killed it, 0 for none.
        message: to keep beside it.
        timed_out: the time limit was reached.
    """

    __slots__ = ("epoch", "exit_status", "message", "signal", "timed_out")

    def __init__(self, epoch: int, exit_status: int | None, signal: int, message: str, timed_out: bool) -> None:
        self.epoch = epoch
        self.exit_status = exit_status
        self.signal = signal
        self.message = message
        self.timed_out = timed_out


def release(address: str, stub: Any, ticket: Ticket, ending: Ending) -> bool:
    """Give a lease back, with how the work ended; whether the scheduler took note. Takes a second at most.

    Args:
        address: of the scheduler.
        stub: on a connection that stands; None if the scheduler is away.
        ticket: the job.
        ending: how its work ended.
    """
    import grpc

    from gpusched.client.errors import ServerUnavailable, from_rpc_error
    from gpusched.client.transport import open_channel
    from gpusched.v1 import scheduler_pb2_grpc

    request = _release_request(ticket, ending)
    until = time.monotonic() + RELEASE_SECONDS
    while (left := until - time.monotonic()) > 0:
        # On a channel of its own it waits for a scheduler that is away. Nobody closes it: the process is about to end.
        away = stub is None
        if away:
            stub = scheduler_pb2_grpc.SchedulerStub(open_channel(address))
        try:
            stub.Release(request, timeout=left, wait_for_ready=away)
        except grpc.RpcError as error:
            if not isinstance(from_rpc_error(error), ServerUnavailable):
                return False
        except ValueError:
            pass  # the channel was closed this moment
        else:
            return True
        stub = None
    return False  # the end of our connection says the same, less the outcome


def why_over(stub: Any, job_id: str) -> str:
    """What the scheduler says has become of a job that we were refused."""
    import grpc

    from gpusched.v1 import scheduler_pb2

    try:
        answer = stub.GetJob(scheduler_pb2.GetJobRequest(job_id=job_id), timeout=WHY_SECONDS)
    except grpc.RpcError:
        return "it no longer knows this job"
    return str(answer.job.outcome.message) or "it has ended this job"


def _release_request(ticket: Ticket, ending: Ending) -> scheduler_pb2.ReleaseRequest:
    from gpusched.v1 import job_pb2, scheduler_pb2

    outcome = job_pb2.Outcome(signal=ending.signal, message=ending.message)
    if ending.exit_status is not None:
        outcome.exit_status = ending.exit_status
    return scheduler_pb2.ReleaseRequest(
        job_id=ticket.job_id,
        resume_token=ticket.token,
        epoch=ending.epoch,
        outcome=outcome,
        timed_out=ending.timed_out,
    )
