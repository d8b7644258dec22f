"""The `gpusched` command: finds the subcommand, runs it, turns what went wrong into one line and a status."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gpusched.client.cli.output import Output
from gpusched.client.cli.parsing import USAGE_STATUS, Parser, add_address, mode_of
from gpusched.client.usage import UsageError

FAILED_STATUS = 1
UNAVAILABLE_STATUS = 69  # EX_UNAVAILABLE of sysexits.h
INTERRUPTED_STATUS = 130
PIPE_STATUS = 141  # 128 + SIGPIPE


class CommandModule(Protocol):
    """What a command's file has."""

    def configure(self, parser: Parser) -> None:
        """Add the command's arguments."""

    def run(self, args: argparse.Namespace, output: Output) -> int:
        """Do it; the exit status. Raises UsageError and GpuschedError."""


@dataclass(frozen=True, slots=True)
class Command:
    """A line of the help; `module` is its file in this package. A `raw` one hands its arguments on unread."""

    name: str
    module: str
    help: str
    aliases: tuple[str, ...] = ()
    raw: bool = False


GROUPS: tuple[tuple[str, tuple[Command, ...]], ...] = (
    (
        "See",
        (
            Command("status", "status", "the scheduler: version, GPUs, jobs"),
            Command("jobs", "jobs", "running and waiting jobs", aliases=("list",)),
            Command("job", "job", "everything about one job"),
            Command("explain", "explain", "why a job waits"),
            Command("logs", "logs", "what a batch job wrote"),
            Command("gpus", "gpus", "GPUs: state, use, who holds them"),
            Command("nodes", "nodes", "machines with GPUs"),
        ),
    ),
    (
        "Change",
        (
            Command("submit", "submit", "queue a command that the scheduler runs"),
            Command("wait", "wait", "until jobs have ended"),
            Command("cancel", "cancel", "end jobs, waiting or running"),
            Command("requeue", "requeue", "run a batch job again"),
            Command("hold", "hold", "keep waiting jobs from starting"),
            Command("unhold", "hold", "let them start again"),
            Command("priority", "priority", "put a waiting job in another priority tier"),
        ),
    ),
    (
        "Administer",
        (
            Command("drain", "drain", "take a GPU or a node out of service"),
            Command("undrain", "undrain", "put it back"),
            Command("policy", "policy", "who is next, and who may pass whom: show it or change it"),
            Command("pause", "pause", "start no more jobs"),
            Command("resume", "resume", "start jobs again"),
            Command("set-state", "set_state", "move a stuck job by hand"),
            Command("doctor", "doctor", "look for damage and contradictions"),
            Command("token", "token", "print an administrator's token, for grpcurl"),
            Command("sim", "sim", "make a simulated GPU busy, foreign or sick"),
        ),
    ),
    (
        "Run",
        (
            Command("serve", "serve", "run the scheduler", raw=True),
            Command("stop", "serve", "stop the scheduler", raw=True),
            Command("simulate", "simulate", "replay a log of jobs, to choose a policy", raw=True),
            Command("version", "version", "versions of this command and of the scheduler"),
        ),
    ),
)

COMMANDS = {name: command for _, group in GROUPS for command in group for name in (command.name, *command.aliases)}


def main() -> None:
    """Console script: run, write everything out, end at once (gRPC's own tidying-up would take 30 ms)."""
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or FAILED_STATUS
    os._exit(status)


def run(argv: Sequence[str]) -> int:
    """Run one command line; the exit status. Raises nothing, but for bugs where `GPUSCHED_DEBUG` is set."""
    # Closed ones (`>&-`) are None.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - until the end, and light
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    output = Output()
    try:
        return _run(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED_STATUS
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        # Who read our output has enough; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_STATUS
    except UsageError as error:
        output.error(str(error))
        return USAGE_STATUS
    except Exception as error:
        return _failed(error, output)


def _run(argv: Sequence[str]) -> int:
    globals_, name, rest = _split(argv)
    if name is None:
        sys.stdout.write(_help(globals_))
        return 0
    command = COMMANDS.get(name)
    if command is None:
        globals_.error(_unknown(name))
    module: CommandModule = importlib.import_module(f"gpusched.client.cli.{command.module}")
    if command.raw:
        namespace = argparse.Namespace(command=command.name, rest=rest, url=None)
        globals_.parse_args(argv[: len(argv) - len(rest) - 1], namespace)
        return module.run(namespace, Output())
    parser = Parser(f"gpusched {command.name}", command.help[0].upper() + command.help[1:] + ".")
    module.configure(parser)
    add_address(parser)
    namespace = argparse.Namespace(url=None)
    globals_.parse_args(argv[: len(argv) - len(rest) - 1], namespace)
    args = parser.parse_args(rest, namespace)
    return module.run(args, Output(mode_of(args)))


def _split(argv: Sequence[str]) -> tuple[Parser, str | None, list[str]]:
    """The parser of what may stand before the command, the command, and what follows it."""
    parser = Parser("gpusched", "A fair queue for shared GPUs.")
    add_address(parser)
    parser.add_argument("--version", action="store_true", help="print this command's version")
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        at += 2 if argv[at] == "--url" else 1
    before = argv[:at]
    if "-h" in before or "--help" in before:
        return parser, None, []
    args = parser.parse_args(before)
    if args.version:
        from gpusched.client.cli.version import client_version

        print(f"gpusched {client_version()}")
        raise SystemExit(0)
    if at >= len(argv):
        if before:
            parser.error("a command is missing")
        return parser, None, []
    return parser, argv[at], list(argv[at + 1 :])


def _help(parser: argparse.ArgumentParser) -> str:
    lines = ["usage: gpusched [--url HOST:PORT] COMMAND [OPTIONS]", "", "A fair queue for shared GPUs.", ""]
    for title, commands in GROUPS:
        lines.append(f"{title}:")
        lines += [f"  {', '.join((c.name, *c.aliases)):<12}  {c.help}" for c in commands]
        lines.append("")
    lines += [
        "Options:",
        "  --url HOST:PORT  the scheduler's address (default: $GPUSCHED_URL, else 127.0.0.1:9123)",
        "  --version        print this command's version",
        "  -h, --help       show this help; `gpusched COMMAND --help` that of a command",
        "",
        "To run something on GPUs: gsrun -n 1 COMMAND",
    ]
    return "\n".join(lines) + "\n"


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, n=1)
    shown = name if len(name) <= 40 else f"{name[:40]}…"
    return f"no command is called '{shown}'" + (f"; is '{near[0]}' meant?" if near else "")


def _failed(error: Exception, output: Output) -> int:
    """One line for what went wrong, and its status."""
    from gpusched.client.errors import GpuschedError, ServerMismatch, ServerUnavailable

    if isinstance(error, GpuschedError):
        output.error(str(error) or type(error).__name__)
        return UNAVAILABLE_STATUS if isinstance(error, ServerUnavailable | ServerMismatch) else FAILED_STATUS
    if isinstance(error, OSError):
        output.error(f"cannot write the output: {error.strerror or error}")
        return FAILED_STATUS
    if os.environ.get("GPUSCHED_DEBUG"):
        raise error
    output.error(f"a bug in this command: {type(error).__name__}: {error} (GPUSCHED_DEBUG=1 shows where)")
    return FAILED_STATUS
