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
        target = target_of(args, session)
        gpus = session.call_as_admin(session.admin.Undrain, pb.UndrainRequest(target=target)).gpus
        tell(gpus, output, _undrained_node if target.WhichOneof("target") == "node" else _undrained_gpu)
        return 0


def _undrained_node(name: str, gpu: Any) -> str:
    if gpu.drained:
        return f"{name} stays drained, for it was drained by itself"
    return _back(name, gpu)


def _undrained_gpu(name: str, gpu: Any) -> str:
    if gpu.drained:
        return f"{name} stays drained with its node {gpu.node}"
    return _back(name, gpu)


def _back(name: str, gpu: Any) -> str:
    from gpusched.client.cli import show

    return f"{name} is back in service ({show.gpu_state(gpu.state).lower()})"
