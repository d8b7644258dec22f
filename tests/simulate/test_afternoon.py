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


def test_every_order_but_fifo_heeds_the_tiers() -> None:
    table = {(order, kind): starts for order, kind, starts in rows()}
    for kind in ("none", "easy", "conservative"):
        assert table["priority", kind] != table["fifo", kind]
    assert table["priority", "easy"] != table["sjf", "easy"]


def test_the_jobs_are_those_of_the_file() -> None:
    text = (ROOT / "docs/scheduling.md").read_text()
    told = re.findall(r"^\| (\d) \| 0:(\d+) \| (\w+) \| (\d) \| (\d) \| (\d+) min \| (\d+) min \|$", text, re.M)
    with (ROOT / "examples/afternoon.csv").open() as file:
        for row, (job, at, user, tier, gpus, limit, run) in zip(csv.DictReader(file), told, strict=True):
            assert [row[name] for name in ("job_id", "user", "priority", "gpus")] == [job, user, tier, gpus]
            assert [int(row[name]) for name in ("submit_s", "req_s", "run_s")] == [
                60 * int(minutes) for minutes in (at, limit, run)
            ]


@pytest.mark.parametrize(("order", "kind", "starts"), rows())
def test_it_is_true(order: str, kind: str, starts: list[int], tmp_path: Path) -> None:
    out = tmp_path / "starts.csv"
    log = str(ROOT / "examples/afternoon.csv")
    options = ["--policy", order, "--backfill", kind, "--estimate", "limit", "--gpus", "4", "--starts", str(out)]
    assert command.main([log, *options]) == 0
    with out.open() as file:
        told = {int(row["job_id"]): int(float(row["start_s"])) for row in csv.DictReader(file)}
    assert [told[job] for job in sorted(told)] == starts
