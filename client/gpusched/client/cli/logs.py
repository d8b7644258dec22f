"""`gpusched logs ID`: what a batch job wrote."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from gpusched.client.cli.output import Output
from gpusched.client.cli.parsing import Parser, checked, job_id, whole_number
from gpusched.client.cli.session import Session

#: Seconds between two tries to reach a scheduler that is away, and how long it is tried.
RETRY_EVERY, RETRY_FOR = 0.5, 60.0


def configure(parser: Parser) -> None:
    """Arguments."""
    parser.add_argument("id", metavar="ID", type=checked("ID", job_id), help="the job's id")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
    parser.add_argument(
        "-n", "--tail", metavar="LINES", type=checked("--tail", whole_number(1, 10**6)), default=0,
        help="only the last lines",
    )  # fmt: skip
    parser.add_argument(
        "--attempt", metavar="N", type=checked("--attempt", whole_number(1, 10**6)), default=0,
        help="output of this run (default: the newest)",
    )  # fmt: skip


def run(args: argparse.Namespace, output: Output) -> int:
    """Copy it to stdout as it is, byte by byte; a restart of the scheduler goes unnoticed."""
    import grpc

    import gpusched.v1.scheduler_pb2 as pb
    from gpusched.client.errors import ServerUnavailable

    # Bytes, not text: a job may write anything.
    sink = sys.stdout.buffer
    attempt, offset, away = args.attempt, -1, 0.0
    with Session(args, output) as session:
        if args.follow:
            # A scheduler that is there now may go and come back before the first word of output.
            session.call(session.scheduler.GetJob, pb.GetJobRequest(job_id=args.id))
        while True:
            request = pb.StreamLogsRequest(job_id=args.id, attempt=attempt, follow=args.follow)
            if offset >= 0:
                request.offset = offset
            else:
                request.tail_lines = args.tail
            try:
                for piece in session.scheduler.StreamLogs(request):
                    if offset >= 0 and piece.attempt != attempt:
                        output.note(f"job {args.id}, attempt {piece.attempt}:")
                    _copy(sink, piece)
                    attempt, offset, away = piece.attempt, piece.offset + len(piece.data), 0.0
                return 0
            except grpc.RpcError as error:
                failure = session.failure(error)
                away = away or time.monotonic()
                # A restart goes unnoticed, too, where nothing is followed but some of it was shown already.
                patient = (args.follow or offset >= 0) and time.monotonic() - away <= RETRY_FOR
                if not patient or not isinstance(failure, ServerUnavailable):
                    raise failure from None
                time.sleep(RETRY_EVERY)


def _copy(sink: Any, piece: Any) -> None:
    sink.write(piece.data)
    sink.flush()
