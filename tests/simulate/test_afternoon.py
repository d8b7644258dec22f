"""The worked example of docs/scheduling.md says what the simulator does."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from gpusched.scheduler.simulate import command

ROOT = Path(__file__).parents[2]


def rows() -> list[tuple[str, str, list[int]]]:
    """(order, backfill, starts) of each line of the table, one for each combination."""
    text = (ROOT / "docs/scheduling.md").read_text()
    found = []
    for orders, kinds, starts in re.findall(r"^\| ([a-z_, ]+) \| ([a-z, ]+) \|((?: \**[0-9]+\** \|){6})$", text, re.M):
        numbers = [int(number) for number in re.findall(r"[0-9]+", starts)]
        if orders != "order":
            found += [(order, kind, numbers) for order in orders.split(", ") for kind in kinds.split(", ")]
    return found


def test_the_table_is_found() -> None:
    assert len(rows()) == len({(order, kind) for order, kind, _ in rows()}) == 12


@pytest.mark.parametrize(("order", "kind", "starts"), rows())
def test_it_is_true(order: str, kind: str, starts: list[int], tmp_path: Path) -> None:
    out = tmp_path / "starts.csv"
    log = str(ROOT / "examples/afternoon.csv")
    options = ["--policy", order, "--backfill", kind, "--estimate", "limit", "--gpus", "4", "--starts", str(out)]
    assert command.main([log, *options]) == 0
    with out.open() as file:
        told = {int(row["job_id"]): int(float(row["start_s"])) for row in csv.DictReader(file)}
    assert [told[job] for job in sorted(told)] == starts
