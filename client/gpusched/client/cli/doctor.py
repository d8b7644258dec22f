"""`gpusched doctor`: look for damage and contradictions in store, queue and devices."""

from __future__ import annotations

import argparse

from gpusched.client.cli.output import Mode, Output, document, paint
from gpusched.client.cli.parsing import Parser, add_json
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    add_json(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Show what was looked at; 1 if anything is wrong."""
    import gpusched.v1.admin_pb2 as pb

    with Session(args, output) as session:
        answer = session.call_as_admin(session.admin.Diagnose, pb.DiagnoseRequest())
    if output.mode is Mode.JSON:
        output.json(document(answer))
    elif output.mode is Mode.TABLE:
        for finding in answer.findings:
            mark = paint("ok   ", "green", output.colour) if finding.ok else paint("WRONG", "red", output.colour)
            output.lines([f"{mark}  {finding.area:<8} {finding.message}"])
    return 0 if all(finding.ok for finding in answer.findings) else 1
