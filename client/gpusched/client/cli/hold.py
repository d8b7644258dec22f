"""`gpusched hold ID…` and `gpusched unhold ID…`: keep waiting jobs from starting, and let them."""

from __future__ import annotations

import argparse

from gpusched.client.cli.output import Mode, Output, document
from gpusched.client.cli.parsing import Parser, add_json, checked, job_id
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    parser.add_argument("ids", metavar="ID", nargs="+", type=checked("ID", job_id), help="a job's id")
    parser.set_defaults(held=parser.prog.endswith(" hold"))
    add_json(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Try each; 1 if any could not be changed."""
    from google.protobuf.field_mask_pb2 import FieldMask

    import gpusched.v1.job_pb2 as job_pb
    import gpusched.v1.scheduler_pb2 as pb
    from gpusched.client.errors import GpuschedError, ServerUnavailable

    jobs: list[object] = []
    errors: list[object] = []
    with Session(args, output) as session:
        for number in dict.fromkeys(args.ids):
            wanted = job_pb.Job(id=number, held=args.held)
            request = pb.UpdateJobRequest(job=wanted, update_mask=FieldMask(paths=["held"]))
            try:
                job = session.call_as_owner(session.scheduler.UpdateJob, request).job
            except ServerUnavailable:
                raise
            except GpuschedError as error:
                output.error(str(error))
                errors.append({"job_id": number, "reason": error.reason, "message": str(error)})
            else:
                output.say(f"job {job.id} is {'held' if args.held else 'no longer held'}")
                jobs.append(document(job) if output.mode is Mode.JSON else None)
    if output.mode is Mode.JSON:
        output.json({"jobs": jobs, "errors": errors})
    return 1 if errors else 0
