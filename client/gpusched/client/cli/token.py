"""`gpusched token`: an administrator's token, for other tools."""

from __future__ import annotations

import argparse

from gpusched.client.cli.output import Output
from gpusched.client.cli.parsing import Parser
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    parser.epilog = (
        "It is good for 60 seconds; whoever has it may do all that an administrator may.\n\n"
        '  grpcurl -plaintext -H "authorization: Bearer $(gpusched token)" \\\n'
        '    -d \'{"reason": "maintenance"}\' 127.0.0.1:9123 gpusched.v1.Admin/PauseScheduling'
    )


def run(args: argparse.Namespace, output: Output) -> int:
    """Print it."""
    with Session(args, output) as session:
        output.lines([session.token()])
        return 0
