"""What a commit costs, beside bare `sqlite3` with the same rows in the same grouping.

By hand: `PYTHONPATH=scheduler:tests python tests/store/speed.py [DIRECTORY]`; the directory decides which disk.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine

from gpusched.scheduler.core.records import Batch, EventRecord, JobRecord, LeaseRecord
from gpusched.scheduler.store.database import DatabaseStore
from gpusched.scheduler.store.schema import metadata
from gpusched.scheduler.store.sqlite import sqlite_url

DATA = '{"request": {"gpus": 2}, "command": ["python", "train.py", "--epochs", "90"], "env": {"A": "b"}}' * 8


@dataclass(frozen=True)
class Cost:
    """Of the store and of bare sqlite3: medians, and of the store the mean too, in seconds a commit."""

    ours: float
    bare: float
    mean: float

    @property
    def ratio(self) -> float:
        return self.ours / self.bare


def submits(grouped: int) -> Callable[[int], Batch]:
    """Batches of new jobs, each with one line of history, synced."""

    def make(turn: int) -> Batch:
        ids = range(1 + turn * grouped, 1 + (turn + 1) * grouped)
        return Batch(
            jobs=tuple(JobRecord(id, "queued", "batch", 1000, "alice", "train", 1.5e9, None, DATA) for id in ids),
            events=tuple(EventRecord(id, 1.5e9, "queued", "submitted") for id in ids),
            sync=True,
        )

    return make


def grants(devices: int) -> Callable[[int], Batch]:
    """Batches that end one lease and begin another on the same devices, not synced."""
    uuids = tuple(f"GPU-5f3c1a2e-0000-4000-8000-{number:012}" for number in range(devices))

    def make(turn: int) -> Batch:
        job = JobRecord(turn + 1, "running", "batch", 1000, "alice", "train", 1.5e9, None, DATA)
        return Batch(
            jobs=(job,),
            events=tuple(EventRecord(job.id, 1.5e9, "running", f"granted {devices} GPUs") for _ in range(3)),
            ended=((turn, 1.5e9),) if turn else (),
            leases=(LeaseRecord(turn + 1, job.id, uuids, 1.5e9),),
        )

    return make


Clock = Callable[[], float]
Rows = list[tuple[str, list[tuple[object, ...]]]]


def measure(make: Callable[[int], Batch], count: int, directory: Path, clock: Clock = time.perf_counter) -> Cost:
    """Time `count` commits, each with the store and with bare sqlite3 in turn, so that both have the same weather."""
    store = DatabaseStore(sqlite_url(directory / "ours.db"))
    store.open()
    batches = [make(turn) for turn in range(count)]
    bare = _bare(directory / "bare.db", batches[0].sync)
    times: list[tuple[float, float]] = []
    for batch in batches:
        rows = _rows(batch)
        begin = clock()
        store.commit(batch)
        between = clock()
        bare(rows)
        times.append((between - begin, clock() - between))
    store.close()
    ours, theirs = zip(*times, strict=True)
    return Cost(statistics.median(ours), statistics.median(theirs), statistics.fmean(ours))


def _bare(path: Path, sync: bool) -> Callable[[Rows], None]:
    engine = create_engine(f"sqlite:///{path}")
    metadata.create_all(engine)
    engine.dispose()
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"synchronous={'FULL' if sync else 'NORMAL'}"):
        connection.execute(f"PRAGMA {pragma}")

    def commit(rows: Rows) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for sql, values in rows:
            connection.executemany(sql, values)
        connection.execute("COMMIT")

    return commit


def _rows(batch: Batch) -> Rows:
    """The same rows as text and tuples: what is left when there is no store."""

    def all_of() -> Iterator[tuple[str, list[tuple[object, ...]]]]:
        yield (
            "INSERT INTO jobs VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO UPDATE SET state=excluded.state, "
            "ended_at=excluded.ended_at, data=excluded.data",
            [
                (j.id, j.state, j.kind, j.uid, j.user, j.name, j.name, j.submitted_at, j.ended_at, j.data)
                for j in batch.jobs
            ],
        )
        yield "UPDATE leases SET ended_at=? WHERE epoch=?", [(at, epoch) for epoch, at in batch.ended]
        yield "UPDATE lease_devices SET active=0 WHERE epoch=?", [(epoch,) for epoch, _ in batch.ended]
        yield "INSERT INTO leases VALUES (?,?,?,NULL)", [(n.epoch, n.job, n.granted_at) for n in batch.leases]
        yield "INSERT INTO lease_devices VALUES (?,?,1,0)", [(n.epoch, d) for n in batch.leases for d in n.devices]
        yield (
            "INSERT INTO events (job, at, state, message, attempt) VALUES (?,?,?,?,?)",
            [(e.job, e.at, e.state, e.message, e.attempt) for e in batch.events],
        )

    return [(sql, rows) for sql, rows in all_of() if rows]


def main() -> None:
    """Print a table."""
    print("| commit of | store | `sqlite3` | ratio | jobs a second |\n|---|---|---|---|---|")
    for name, make, count, jobs in (
        ("a grant of 1 GPU", grants(1), 5000, 1),
        ("a grant of 8 GPUs", grants(8), 5000, 1),
        ("1 submit, synced", submits(1), 3000, 1),
        ("8 submits, synced", submits(8), 2000, 8),
    ):
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as directory:
            cost = measure(make, count, Path(directory))
        times = f"{cost.ours * 1e6:.0f} µs | {cost.bare * 1e6:.0f} µs | {cost.ratio:.2f}"
        print(f"| {name} | {times} | {jobs / cost.mean:,.0f} |")


if __name__ == "__main__":
    main()
