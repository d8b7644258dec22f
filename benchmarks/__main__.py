"""`python -m benchmarks`. Nothing here fails on a slow machine: a missed target is only said."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import batch, command, cycles, grant, growth, kill, report, restart, submits, waiters
from benchmarks.measure import FULL, QUICK, Effort, Row

FIGURES: dict[str, Callable[[Effort], list[Row]]] = {
    "grant": grant.run,
    "kill": kill.run,
    "command": command.run,
    "cycles": cycles.run,
    "waiters": waiters.run,
    "submits": submits.run,
    "batch": batch.run,
    "restart": restart.run,
    "growth": growth.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure; see benchmarks/README.md.")
    parser.add_argument("--only", action="append", choices=FIGURES, metavar="NAME", help=f"one of {', '.join(FIGURES)}")
    parser.add_argument("--quick", action="store_true", help="few repetitions and 1,000 waiters: for trying it out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table between the markers of a file")
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    machine = report.machine()
    print(f"{machine}\nmedian [10th..90th percentile]\n", flush=True)
    rows: list[Row] = []
    for name in options.only or FIGURES:
        began = time.monotonic()
        found = FIGURES[name](effort)
        print(f"{report.text(found)}\n    ({name}: {time.monotonic() - began:.0f} s)\n", flush=True)
        rows += found
    if options.json:
        options.json.write_text(report.as_json(rows, machine) + "\n")
    if options.markdown:
        effort_text = "a quick run" if options.quick else "a full run"
        report.replace_results(options.markdown, report.markdown(rows, f"{report.today()}, {effort_text}: {machine}."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
