"""The benchmarks still run. What they measure is not judged here: a busy machine would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.server import ROOT, clean_environment

MARKERS = "<!-- results: written by `python -m benchmarks --markdown` -->\n<!-- end of results -->\n"


@pytest.mark.slow
def test_a_quick_run_writes_its_tables(tmp_path: Path) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "page.md"
    page.write_text(f"before\n{MARKERS}after\n")
    arguments = ["--quick", "--only", "grant", "--json", str(figures), "--markdown", str(page)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    machine, legend, *_ = done.stdout.splitlines()
    assert "cores" in machine and legend == "median [10th..90th percentile]"

    written = json.loads(figures.read_text())
    (row,) = written["rows"]
    assert written["machine"] == machine
    assert row["name"] in done.stdout and f"({row['floor_name']})" in done.stdout
    for part in ("ours", "floor", "ratio"):
        spread = row[part]
        assert 0 < spread["low"] <= spread["middle"] <= spread["high"], part
    assert row["ours"]["middle"] > row["floor"]["middle"], "the floor is the least that it could cost"

    before, _, heading, *table, end, after = [line for line in page.read_text().splitlines() if line]
    assert (before, after) == ("before", "after") and end == MARKERS.splitlines()[1]
    assert "a quick run" in heading and machine in heading
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0][0] == "what" and len(cells) == 3
    assert cells[2][0].startswith(row["name"]) and len(cells[2]) == len(cells[0])
