"""What `gsrun` adds to a command."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import Effort, Rounds, Row, Spread, Target
from benchmarks.processes import Server, gsrun_command, scheduler

_MINIMAL = str(Path(__file__).with_name("minimal_call.py"))
FLOOR = "Python client that makes one unary call"


def run(effort: Effort) -> list[Row]:
    with scheduler(8) as server:
        return _measure(effort, server)


def _measure(effort: Effort, server: Server) -> list[Row]:
    commands = {
        "gsrun": [*gsrun_command(), "-n", "1", "true"],
        "call": [sys.executable, _MINIMAL, server.address],
        "shell": ["sh", "-c", "true"],
        "python": [sys.executable, "-c", "pass"],
    }
    environment = server.environment()
    rounds = Rounds.empty()
    others: dict[str, list[float]] = {"shell": [], "python": []}
    for number in range(effort.rounds + 1):
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(effort.starts):
            for name, command in commands.items():
                taken[name].append(_seconds(command, environment) * 1e3)
        if number:  # the first round warms up
            rounds.ours.append(taken["gsrun"])
            rounds.floor.append(taken["call"])
            for name, kept in others.items():
                kept += taken[name]
    return [
        rounds.row("`gsrun -n 1 true`", "ms", FLOOR, Target(1.5)),
        Row("`sh -c true`", "ms", Spread.of(others["shell"])),
        Row("`python -c pass`", "ms", Spread.of(others["python"])),
    ]


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    """From the start of a command to its end. Raises RuntimeError if it fails."""
    began = time.perf_counter()
    status = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    passed = time.perf_counter() - began
    if status.returncode:
        raise RuntimeError(f"{command[0]} ended with {status.returncode}: {status.stderr.decode(errors='replace')}")
    return passed
