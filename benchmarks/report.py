"""Rows for people, for files and for docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import Row, Spread

BEGIN = "<!-- results: written by `python -m benchmarks --markdown` -->"
END = "<!-- end of results -->"

_HEAD = ("what", "gpusched", "beside", "", "ratio", "target", "met")


def machine() -> str:
    """What it was measured on, without saying whose it is."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = " ".join(line.partition(":")[2].split())
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, grpcio {version('grpcio')}, protobuf {version('protobuf')}; "
        f"load average {load:.1f} at the start"
    )


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def text(rows: Sequence[Row]) -> str:
    """A block of lines for each row, for terminals."""
    lines = []
    for row in rows:
        lines.append(row.name)
        lines.append(f"    {_spread(row.ours, row.unit)}")
        if row.floor is not None:
            lines.append(f"    beside {_spread(row.floor, row.unit)}  ({row.floor_name})")
        verdict = f"  target: {_target(row)}, {_met(row)}" if row.target else ""
        if row.ratio is not None:
            lines.append(f"    ratio {_spread(row.ratio, '')}{verdict}")
        elif verdict:
            lines.append(f"  {verdict}")
        if row.note:
            lines.append(f"    {row.note}")
    return "\n".join(lines)


def markdown(rows: Sequence[Row], heading: str) -> str:
    """The table of docs/performance.md, with what it was measured on above it."""
    lines = [heading, "", f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD)]
    for row in rows:
        floor = _spread(row.floor, row.unit) if row.floor else ""
        ratio = _spread(row.ratio, "") if row.ratio else ""
        name = f"{row.name} ({row.note})" if row.note else row.name
        cells = (name, _spread(row.ours, row.unit), row.floor_name, floor, ratio, _target(row), _met(row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(rows: Sequence[Row], machine_text: str) -> str:
    return json.dumps({"machine": machine_text, "date": today(), "rows": [row.to_json() for row in rows]}, indent=2)


def replace_results(path: Path, table: str) -> None:
    """Put a table between the two marker lines of a file. Raises ValueError if they are not there."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path}: needs a line {BEGIN!r} and, below it, a line {END!r}")
    path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


def _spread(spread: Spread, unit: str) -> str:
    """The median, and in brackets the 10th to the 90th percentile, if there is more than one value."""
    unit = f" {unit}" if unit and not unit.startswith("/") else unit
    if spread.count == 1:
        return f"{_number(spread.middle)}{unit}"
    return f"{_number(spread.middle)}{unit} [{_number(spread.low)}..{_number(spread.high)}]"


def _number(value: float) -> str:
    if value >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 100 else f"{value:.2f}"


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    unit = "×" if row.target.of_ratio else f" {row.unit}"
    return f"{'≤' if row.target.at_most else '≥'} {row.target.limit:g}{unit}"


def _met(row: Row) -> str:
    return {True: "yes", False: "**no**", None: ""}[row.met]
