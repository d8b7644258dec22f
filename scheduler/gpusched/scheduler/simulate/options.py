"""Arguments of `gpusched simulate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from gpusched.scheduler.core.model import Placement
from gpusched.scheduler.simulate.outputs import complain, put
from gpusched.scheduler.simulate.replay import Estimate, Events

AUTO = "auto"
#: Fields of a policy that are options too, beside its order, backfill and candidates.
KNOBS = ("depth", "freeze_bypasses", "freeze_wait", "aging", "starvation", "half_life")

_EPILOG = """\
examples:
  gpusched simulate KTH-SP2.swf.gz --policy fifo --backfill none,easy,conservative
  gpusched simulate helios.csv --vc vcvGl --nodes 20x8 --policy fifo,sjf --json
  gpusched simulate --from-history --policy all --backfill none,easy

LOG is in the Standard Workload Format, or CSV with the columns job_id, submit_s, run_s, gpus (or procs) and, if
there are such, req_s, user, priority, name, estimate_s; plain or gzip; `-` is the standard input. Times are seconds.
"""


class Parser(argparse.ArgumentParser):
    """argparse that says what is wrong in one line, as the other commands do."""

    def print_help(self, file: Any = None) -> None:
        put(self.format_help(), file or sys.stdout)

    def error(self, message: str) -> NoReturn:
        complain(f"simulate: {message} (see: gpusched simulate --help)")
        raise SystemExit(2)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments as attributes; ends the program on a mistake, or after the help."""
    parser = Parser(
        prog="gpusched simulate",
        usage="gpusched simulate LOG [OPTIONS]",
        description="Replay a log of jobs through the scheduler's own engine, in simulated time.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("log", nargs="?", metavar="LOG", help="the log, SWF or CSV; - for the standard input")
    _add_log(parser)
    _add_machine(parser)
    _add_policy(parser)
    _add_output(parser)
    args, rest = parser.parse_known_args(list(argv))
    args.fail = parser.error
    if unknown := [word for word in rest if word.startswith("-") and word != "-"]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    logs = [word[:200] for word in (args.log, *rest) if word is not None]
    # The client's command asks for the history, hands it over as a log on the standard input, and says what to call it.
    if (args.from_history and logs) or (args.called is not None and len(logs) > 1):
        parser.error(f"a LOG ({logs[-1]!r}) and --from-history exclude each other: leave one of them out")
    if args.from_history:
        parser.error("--from-history is for `gpusched simulate`, which asks the scheduler; here, name a LOG")
    if len(logs) > 1:
        parser.error(f"one LOG at a time: {logs[0]!r} is one, and {logs[1]!r} is one more")
    if args.log is None:
        parser.error("name a LOG, or give --from-history")
    return args


def _add_log(parser: Parser) -> None:
    group = parser.add_argument_group("the log")
    group.add_argument(
        "--from-history", action="store_true",
        help="in place of LOG: the jobs that ended on the scheduler at --url, under its policy where you name no other",
    )  # fmt: skip
    group.add_argument("--url", metavar="HOST:PORT", help="its address, for --from-history (default: $GPUSCHED_URL)")
    # The name of what comes from the standard input.
    group.add_argument("--called", help=argparse.SUPPRESS)
    group.add_argument(
        "--filter", metavar="COLUMN=VALUE", action="append", default=[],
        help="only rows with this value in this column; also !=, <, <=, >, >=; all of several must hold",
    )  # fmt: skip
    group.add_argument("--vc", metavar="NAME", help="only this virtual cluster, short for --filter vc=NAME")
    group.add_argument("--sort", action="store_true", help="put rows in the order of their submit times")
    group.add_argument(
        "--skip-incomplete", action="store_true", help="leave out rows without run time or processors, and count them"
    )
    group.add_argument(
        "--skip-too-large", action="store_true", help="leave out jobs larger than the machine, and count them"
    )


def _add_machine(parser: Parser) -> None:
    machine = parser.add_argument_group("the machine")
    group = machine.add_mutually_exclusive_group()
    group.add_argument(
        "--gpus", metavar="N", help="one pool of N GPUs (default: what the log says of its machine, if it does)"
    )
    group.add_argument("--nodes", metavar="NxM", help="N nodes with M GPUs each; several kinds with commas: 2x8,4x4")
    machine.add_argument(
        "--placement", choices=[AUTO, *(each.value for each in Placement)], default=AUTO,
        help="of a job that no single node holds. consolidate (on several nodes the default): wholly free nodes, and "
        "what remains on one more; pack (the server's own): as few nodes as can be; spread: as many",
    )  # fmt: skip


def _add_policy(parser: Parser) -> None:
    group = parser.add_argument_group("the policy; several with commas, or `all`, are compared")
    group.add_argument(
        "--policy", metavar="NAME", default="priority", help="fifo, priority (the default), sjf or fair_share"
    )
    group.add_argument("--backfill", metavar="NAME", default="easy", help="none, easy (the default) or conservative")
    group.add_argument(
        "--candidates", metavar="NAME", default="queue",
        help="whom easy backfill tries first: queue (the queue's order; the default) or sjbf (the shortest)",
    )  # fmt: skip
    group.add_argument(
        "--estimate", choices=[each.value for each in Estimate],
        help="what the scheduler knows of run times: exact, or the limit that users asked for, "
        "and what jobs of that name took (the default where the log has limits)",
    )  # fmt: skip
    group.add_argument("--depth", metavar="N", type=int, help="reservations under easy (default 1)")
    group.add_argument(
        "--freeze-bypasses", metavar="N", type=int, help="a job passed so often is not delayed any more (default: any)"
    )
    group.add_argument("--freeze-wait", metavar="SECONDS", type=float, help="nor is one that has waited for so long")
    group.add_argument("--aging", metavar="SECONDS", type=float, help="priority: waiting that is worth one tier")
    group.add_argument("--starvation", metavar="SECONDS", type=float, help="sjf: waiting that goes before all shorter")
    group.add_argument("--half-life", metavar="SECONDS", type=float, help="fair_share: past use counts half after this")
    group.add_argument(
        "--events", choices=[AUTO, *(each.value for each in Events)], default=AUTO,
        help="at one instant: together (ends, submits, one pass), or one-by-one (submits, then ends, each with a "
        "pass); auto (the default) is one-by-one under easy, as in published schedules",
    )  # fmt: skip


def _add_output(parser: Parser) -> None:
    group = parser.add_argument_group("what comes out")
    group.add_argument(
        "--starts", metavar="FILE.csv",
        help="write job_id,start_s; - is the standard output, and figures then go to the standard error",
    )  # fmt: skip
    group.add_argument("--plot", metavar="FILE", help="draw it, as .svg or .png")
    group.add_argument(
        "--plot-kind", choices=[AUTO, "gantt", "queue"], default=AUTO,
        help="gantt: who had which GPU; queue: how many waited, and GPUs in use; auto: gantt for up to 300 jobs",
    )  # fmt: skip
    group.add_argument("--json", action="store_true", help="print figures as one JSON document")
    group.add_argument("-h", "--help", action="help", help="show this help")
