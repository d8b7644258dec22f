"""What a commit costs stays near what SQLite itself costs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gpusched.scheduler.store.database import DatabaseStore
from gpusched.scheduler.store.sqlite import sqlite_url
from store import speed

#: Times SQLite's own cost; and seconds beyond it, for a batch of one job.
RATIO = 2.0
BEYOND = 150e-6
SUBMITS_A_SECOND = 1000


@pytest.mark.parametrize("devices", [1, 8])
def test_a_grant_costs_little_more_than_its_sqlite(tmp_path: Path, devices: int) -> None:
    """By processor time, of which others on this machine take nothing away."""
    cost = None
    for attempt in range(4):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        cost = speed.measure(speed.grants(devices), 500, directory, time.thread_time)
        if cost.ratio <= RATIO and cost.ours - cost.bare <= BEYOND:
            return
    raise AssertionError(f"{cost}, a ratio of {cost and cost.ratio:.2f}")


def test_synced_submits_in_groups_of_eight(tmp_path: Path) -> None:
    make = speed.submits(8)
    store = DatabaseStore(sqlite_url(tmp_path / "state.db"))
    store.open()
    rates = []
    for part in range(5):
        batches = [make(turn) for turn in range(part * 50, (part + 1) * 50)]
        begin = time.perf_counter()
        for batch in batches:
            store.commit(batch)
        rates.append(8 * len(batches) / (time.perf_counter() - begin))
    store.close()
    assert max(rates) >= SUBMITS_A_SECOND, rates
