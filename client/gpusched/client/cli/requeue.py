"""`gpusched requeue ID`: end a batch job's run and queue it again, or queue an ended one's work anew."""

from __future__ import annotations

import argparse

from gpusched.client.cli.output import Mode, Output, document
from gpusched.client.cli.parsing import Parser, add_json, checked, job_id
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    parser.add_argument("id", metavar="ID", type=checked("ID", job_id), help="the job's id")
    add_json(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Do it and say under which id the work goes on."""
    import gpusched.v1.scheduler_pb2 as pb

    with Session(args, output) as session:
        job = session.call_as_owner(session.scheduler.RequeueJob, pb.RequeueJobRequest(job_id=args.id)).job
    if output.mode is Mode.JSON:
        output.json(document(job))
    elif job.id == args.id:
        output.say(f"job {job.id} is told to end, and is queued again")
    else:
        output.say(f"job {args.id} had ended; the same work is queued as job {job.id}")
    return 0
