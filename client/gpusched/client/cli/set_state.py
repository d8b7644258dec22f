"""`gpusched set-state ID STATE --reason WHY`: move a stuck job by hand."""

from __future__ import annotations

import argparse
from typing import Any

from gpusched.client.cli.jobs import STATES
from gpusched.client.cli.output import Mode, Output, document
from gpusched.client.cli.parsing import Parser, add_json, checked, job_id, short_text
from gpusched.client.cli.session import Session
from gpusched.client.usage import UsageError


def configure(parser: Parser) -> None:
    """Arguments."""
    parser.add_argument("id", metavar="ID", type=checked("ID", job_id), help="the job's id")
    parser.add_argument("state", metavar="STATE", type=checked("STATE", _state), help=", ".join(STATES))
    parser.add_argument(
        "--reason", metavar="TEXT", required=True, type=checked("--reason", short_text), help="kept in its history"
    )
    add_json(parser)


def _state(text: str, field: str) -> str:
    state = text.strip().lower().replace("-", "_")
    if state not in STATES:
        raise UsageError(field, text, f"give one of {', '.join(STATES)}")
    return state


def run(args: argparse.Namespace, output: Output) -> int:
    """Move it, as administrator."""
    import gpusched.v1.admin_pb2 as pb
    import gpusched.v1.job_pb2 as job_pb
    from gpusched.client.cli import show

    state: Any = job_pb.JobState.Value(f"JOB_STATE_{args.state.upper()}")
    with Session(args, output) as session:
        request = pb.SetJobStateRequest(job_id=args.id, state=state, reason=args.reason)
        job = session.call_as_admin(session.admin.SetJobState, request).job
    if output.mode is Mode.JSON:
        output.json(document(job))
    output.say(f"job {job.id} is {show.job_state(job.state).lower().replace('_', ' ')}")
    return 0
