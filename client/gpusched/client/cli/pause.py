"""`gpusched pause`: start no more jobs; running ones go on, new ones queue."""

from __future__ import annotations

import argparse

from gpusched.client.cli.output import Mode, Output
from gpusched.client.cli.parsing import Parser, add_json, checked, short_text
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    parser.add_argument(
        "--reason", metavar="TEXT", default="", type=checked("--reason", short_text), help="shown to all who wait"
    )
    add_json(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Pause."""
    import gpusched.v1.admin_pb2 as pb

    with Session(args, output) as session:
        session.call_as_admin(session.admin.PauseScheduling, pb.PauseSchedulingRequest(reason=args.reason))
        if output.mode is Mode.JSON:
            output.json({"paused": True, "pause_reason": args.reason})
        output.say("scheduling is paused: running jobs go on, nothing new starts until: gpusched resume")
        return 0
