"""`gpusched wait ID…`: until jobs have ended; the exit status follows theirs."""

from __future__ import annotations

import argparse
import time
from typing import Any

from gpusched.client.cli.output import Mode, Output, document
from gpusched.client.cli.parsing import Parser, add_json, checked, job_id
from gpusched.client.cli.session import Session

#: Statuses for what has none of its own.
CANCELLED_STATUS, TIMED_OUT_STATUS, LOST_STATUS = 143, 124, 125
#: Seconds between two tries to reach a scheduler that is away, and how long it is tried.
RETRY_EVERY, RETRY_FOR = 0.5, 60.0


def configure(parser: Parser) -> None:
    """Arguments."""
    parser.add_argument("ids", metavar="ID", nargs="+", type=checked("ID", job_id), help="a job's id")
    add_json(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Wait for all; the status is the first one that is not 0, in the order given."""
    import gpusched.v1.scheduler_pb2 as pb
    from gpusched.client.cli import show

    status = 0
    jobs = []
    numbers = list(dict.fromkeys(args.ids))
    with Session(args, output) as session:
        # A slip of the finger in the last id is to be told now, not when the first job has ended; and a scheduler
        # that is there now and goes is expected back, one that never was is not.
        for number in numbers:
            session.call(session.scheduler.GetJob, pb.GetJobRequest(job_id=number))
        for number in numbers:
            job = _until_ended(session, number)
            jobs.append(document(job) if output.mode is Mode.JSON else None)
            state = show.job_state(job.state).lower().replace("_", " ")
            detail = show.ended(job.outcome)
            output.say(f"job {job.id} {state}" + (f": {detail}" if detail else ""))
            status = status or exit_status(job)
    if output.mode is Mode.JSON:
        output.json({"jobs": jobs})
    return status


def exit_status(job: Any) -> int:
    """The status of a shell that had run the job's command itself."""
    from gpusched.client.cli import show

    state = show.job_state(job.state)
    if state == "COMPLETED":
        return 0
    if state == "TIMED_OUT":
        return TIMED_OUT_STATUS
    if state == "CANCELLED":
        return CANCELLED_STATUS
    if job.outcome.signal:
        return 128 + int(job.outcome.signal)
    if job.outcome.HasField("exit_status") and job.outcome.exit_status:
        return int(job.outcome.exit_status)
    return LOST_STATUS


def _until_ended(session: Session, number: str) -> Any:
    import grpc

    import gpusched.v1.scheduler_pb2 as pb
    from gpusched.client.cli import show
    from gpusched.client.errors import ServerUnavailable

    away = 0.0
    while True:
        try:
            for answer in session.scheduler.WaitJob(pb.WaitJobRequest(job_id=number)):
                away = 0.0
                if show.has_ended(answer.job):
                    return answer.job
        except grpc.RpcError as error:
            failure = session.failure(error)
            away = away or time.monotonic()
            if not isinstance(failure, ServerUnavailable) or time.monotonic() - away > RETRY_FOR:
                raise failure from None
        time.sleep(RETRY_EVERY)
