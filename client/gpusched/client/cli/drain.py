"""`gpusched drain TARGET`: take a GPU or a node out of service, after the jobs that it has."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from gpusched.client.cli.output import Mode, Output, document
from gpusched.client.cli.parsing import Parser, add_json, checked, short_text
from gpusched.client.cli.session import Session


def add_target(parser: Parser) -> None:
    """The GPU or node, for `drain` and `undrain`."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        type=checked("TARGET", short_text),
        help="a GPU by index (3), node and index (node0:3) or uuid; or a node by name",
    )
    parser.add_argument("--node", action="store_true", help="TARGET is a node, whatever it looks like")


def configure(parser: Parser) -> None:
    """Arguments."""
    add_target(parser)
    parser.add_argument(
        "--reason", metavar="TEXT", default="", type=checked("--reason", short_text),
        help="shown beside it and to those who wait for it",
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Drain it and say what that means for its jobs."""
    import gpusched.v1.admin_pb2 as pb

    with Session(args, output) as session:
        request = pb.DrainRequest(target=target_of(args, session), reason=args.reason)
        gpus = session.call_as_admin(session.admin.Drain, request).gpus
        tell(gpus, output, _drained)
        return 0


def target_of(args: argparse.Namespace, session: Session) -> Any:
    """The target as the contract has it: what looks like a GPU, or is one's uuid, is a GPU; all else a node."""
    import gpusched.v1.admin_pb2 as pb
    import gpusched.v1.scheduler_pb2 as scheduler_pb

    target: str = args.target
    if args.node:
        return pb.DrainTarget(node=target)
    if re.fullmatch(r"(.+:)?[0-9]+", target):
        return pb.DrainTarget(gpu=target)
    gpus = session.call(session.scheduler.ListGpus, scheduler_pb.ListGpusRequest()).gpus
    if any(gpu.uuid == target for gpu in gpus):
        return pb.DrainTarget(gpu=target)
    return pb.DrainTarget(node=target)


def tell(gpus: Any, output: Output, words: Callable[[str, Any], str]) -> None:
    """What came of it, a sentence for each GPU."""
    if output.mode is Mode.JSON:
        output.json({"gpus": [document(gpu) for gpu in gpus]})
    several = len({gpu.node for gpu in gpus}) > 1
    for gpu in gpus:
        output.say(words(f"GPU {gpu.node}:{gpu.index}" if several else f"GPU {gpu.index}", gpu))


def _drained(name: str, gpu: Any) -> str:
    if not gpu.job_id:
        return f"{name} is drained"
    owner = f" of {gpu.user}" if gpu.user else ""
    return f"{name} is drained; job {gpu.job_id}{owner} keeps it until its end"
