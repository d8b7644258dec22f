"""`gpusched sim gpu TARGET`: make a GPU of a simulated server busy, foreign, sick or deaf."""

from __future__ import annotations

import argparse
from typing import Any

from gpusched.client.cli.output import Mode, Output, document
from gpusched.client.cli.parsing import Parser, add_json, checked, short_text, whole_number
from gpusched.client.cli.session import Session
from gpusched.client.usage import UsageError

_PROCESS_ALLOWED = "give pid:user:command:memory, such as 4242:alice:python:11G"


def configure(parser: Parser) -> None:
    """Arguments."""
    parser.add_argument("what", choices=["gpu"], help="what to change")
    parser.add_argument(
        "target", metavar="TARGET", type=checked("TARGET", short_text),
        help="index on the first node (3), node and index (node0:3) or uuid",
    )  # fmt: skip
    parser.add_argument(
        "--util", metavar="PERCENT", type=checked("--util", whole_number(0, 100)), help="share of time busy, 0 to 100"
    )
    processes = parser.add_mutually_exclusive_group()
    processes.add_argument(
        "--process", metavar="PID:USER:COMMAND:MEMORY", action="append", default=[],
        type=checked("--process", _process), dest="processes",
        help="a process that sits on it, in place of those before; may be repeated",
    )  # fmt: skip
    processes.add_argument("--no-processes", action="store_true", help="nothing sits on it")
    fault = parser.add_mutually_exclusive_group()
    fault.add_argument(
        "--fault", metavar="TEXT", type=checked("--fault", short_text),
        help="it reports this fault (Xid 79: GPU has fallen off the bus)",
    )  # fmt: skip
    fault.add_argument("--no-fault", action="store_true", help="it is well again")
    parser.add_argument(
        "--linger", metavar="DURATION", type=checked("--linger", _linger),
        help="a holder's process stays on it for so long after each release (2s; 0: not at all)",
    )  # fmt: skip
    parser.add_argument("--hang", action=argparse.BooleanOptionalAction, help="it does not answer readings")
    add_json(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Set it and say how the GPU is now."""
    from gpusched.client.cli import show
    from gpusched.client.errors import ServerMismatch

    request = _request(args)
    with Session(args, output) as session:
        try:
            gpu = session.call_as_admin(session.simulation.SetSimulatedGpu, request).gpu
        except ServerMismatch:
            raise _real(session) from None
        if output.mode is Mode.JSON:
            output.json(document(gpu))
        matter = show.matter(gpu)
        words = f": {matter}" if matter else ""
        output.say(f"GPU {gpu.index} on {gpu.node} is {show.gpu_state(gpu.state).lower()}{words}")
        return 0


def _request(args: argparse.Namespace) -> Any:
    from google.protobuf.duration_pb2 import Duration

    import gpusched.v1.resources_pb2 as resources_pb
    import gpusched.v1.simulation_pb2 as pb

    request = pb.SetSimulatedGpuRequest(gpu=args.target)
    if args.util is not None:
        request.utilization_percent = args.util
    if args.processes or args.no_processes:
        request.set_processes = True
        request.processes.extend(resources_pb.GpuProcess(**process) for process in args.processes)
    if args.fault is not None or args.no_fault:
        request.fault = args.fault or ""
    if args.linger is not None:
        request.linger.CopyFrom(Duration(seconds=int(args.linger), nanos=int(args.linger % 1 * 1e9)))
    if args.hang is not None:
        request.hang = args.hang
    if request == pb.SetSimulatedGpuRequest(gpu=args.target):
        args.fail(
            "nothing to set; give at least one of --util, --process, --no-processes, --fault, --no-fault, --linger, "
            "--hang, --no-hang"
        )
    return request


def _process(text: str, field: str) -> dict[str, Any]:
    from gpusched.client.units import parse_size

    parts = text.split(":")
    if len(parts) != 4 or not all(parts) or not text.isprintable():
        raise UsageError(field, text, _PROCESS_ALLOWED)
    pid = whole_number(1, 2**31 - 1)(parts[0], field)
    return {"pid": pid, "user": parts[1], "command": parts[2], "memory_bytes": parse_size(parts[3], field)}


def _linger(text: str, field: str) -> float:
    from gpusched.client.units import parse_duration

    return parse_duration(text, field)


def _real(session: Session) -> Exception:
    """Why there is no simulation: its GPUs are real, or it is another version."""
    import gpusched.v1.scheduler_pb2 as pb
    from gpusched.client.errors import NotSatisfiable, ServerMismatch

    status = session.call(session.scheduler.GetStatus, pb.GetStatusRequest())
    if status.inventory_mode == "simulated":
        return ServerMismatch("this scheduler's version has no handles for its simulated GPUs")
    return NotSatisfiable(
        f"the GPUs of the scheduler at {session.address} are real, there is nothing to simulate "
        "(a simulated one is started with: gpusched serve --simulate 8)"
    )
