"""`gpusched resume`: start jobs again after `gpusched pause`."""

from __future__ import annotations

import argparse

from gpusched.client.cli.output import Mode, Output
from gpusched.client.cli.parsing import Parser, add_json
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    add_json(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Resume."""
    import gpusched.v1.admin_pb2 as pb

    with Session(args, output) as session:
        session.call_as_admin(session.admin.ResumeScheduling, pb.ResumeSchedulingRequest())
        if output.mode is Mode.JSON:
            output.json({"paused": False, "pause_reason": ""})
        output.say("scheduling is on")
        return 0
