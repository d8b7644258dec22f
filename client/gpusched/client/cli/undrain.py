"""`gpusched undrain TARGET`: put a GPU or a node back into service."""

from __future__ import annotations

import argparse
from typing import Any

from gpusched.client.cli.drain import add_target, target_of, tell
from gpusched.client.cli.output import Output
from gpusched.client.cli.parsing import Parser, add_json
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    add_target(parser)
    add_json(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Undrain it and say how each GPU is now."""
    import gpusched.v1.admin_pb2 as pb

    with Session(args, output) as session:
        request = pb.UndrainRequest(target=target_of(args, session))
        gpus = session.call_as_admin(session.admin.Undrain, request).gpus
        tell(gpus, output, _undrained)
        return 0


def _undrained(name: str, gpu: Any) -> str:
    from gpusched.client.cli import show

    if gpu.drained:
        return f"{name} is still drained, with its node"
    return f"{name} is back in service ({show.gpu_state(gpu.state).lower()})"
