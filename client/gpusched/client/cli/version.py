"""`gpusched version`: of this command and, if one answers, of the scheduler."""

from __future__ import annotations

import argparse

from gpusched.client.cli.output import Cell, Mode, Output
from gpusched.client.cli.parsing import Parser, add_json
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    add_json(parser)


def client_version() -> str:
    """Version of the installed distribution; `unknown` in a bare source tree."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gpusched")
    except PackageNotFoundError:
        return "unknown"


def run(args: argparse.Namespace, output: Output) -> int:
    """Print both; a scheduler that does not answer is no failure."""
    import gpusched.v1.scheduler_pb2 as pb
    from gpusched.client.errors import GpuschedError

    server, problem = "", ""
    with Session(args, output) as session:
        address = session.address
        try:
            server = session.call(session.scheduler.GetStatus, pb.GetStatusRequest()).version
        except GpuschedError as error:
            problem = str(error)
    if output.mode is Mode.JSON:
        output.json({"client": client_version(), "server": server or None, "address": address})
    elif output.mode is Mode.TABLE:
        scheduler = f"{server} at {address}" if server else f"none: {problem}"
        output.lines(output.facts([("gpusched", Cell(client_version())), ("scheduler", Cell(scheduler))]))
    return 0
