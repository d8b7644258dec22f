"""`gpusched priority ID N`: put a job in another priority tier."""

from __future__ import annotations

import argparse

from gpusched.client.cli.output import Mode, Output, document
from gpusched.client.cli.parsing import Parser, add_json, checked, job_id, whole_number
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    parser.add_argument("id", metavar="ID", type=checked("ID", job_id), help="the job's id")
    parser.add_argument(
        "priority",
        metavar="N",
        type=checked("N", whole_number(-100, 100)),
        help="-100 to 100; higher comes first, 0 is usual, above 0 is the administrator's to give",
    )
    add_json(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Change it and say where the job stands now."""
    from google.protobuf.field_mask_pb2 import FieldMask

    import gpusched.v1.job_pb2 as job_pb
    import gpusched.v1.scheduler_pb2 as pb
    from gpusched.client.cli import show

    with Session(args, output) as session:
        wanted = job_pb.Job(id=args.id, priority=args.priority)
        request = pb.UpdateJobRequest(job=wanted, update_mask=FieldMask(paths=["priority"]))
        job = session.call_as_owner(session.scheduler.UpdateJob, request).job
        if output.mode is Mode.JSON:
            output.json(document(job))
        place = f", now at place {job.position}" if show.job_state(job.state) == "QUEUED" and job.position else ""
        output.say(f"job {job.id} has priority {job.priority}{place}")
        return 0
