"""How many batch jobs a second are taken on for good, and whether one is ever lost."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

from benchmarks.jobs import CLIENTS, Client, request, submit
from benchmarks.measure import Effort, Rounds, Row, Spread, Target
from benchmarks.processes import Server, cpu_seconds, scheduler

FLOOR = f"bare SQLite: the same rows, synced, {CLIENTS} jobs to a transaction"
JOB = request("true", held=True)
_TABLES = {"jobs": "id", "events": "job"}


def run(effort: Effort) -> list[Row]:
    with scheduler(8) as server:
        rows = _measure(effort, server)
    return [*rows, _lost(effort)]


def _measure(effort: Effort, server: Server) -> list[Row]:
    count = effort.waiters // 10
    rate = Rounds.empty()
    costs: list[float] = []
    with Client(server) as client:
        before = 0
        for number in range(effort.rounds + 1):
            cpu, began = cpu_seconds(server.pid), time.perf_counter()
            asyncio.run(submit(server, count, JOB))
            taken = time.perf_counter() - began
            cpu = cpu_seconds(server.pid) - cpu
            last = client.status().jobs_queued
            bare = _bare(server.state / "state.db", server.state / "bare", before, last)
            before = last
            if number:  # the first round warms up
                rate.ours.append([count / taken])
                rate.floor.append([count / bare])
                costs.append(cpu / count * 1e3)
    target = Target(1000, of_ratio=False, at_most=False)
    note = "clients and server share the machine's cores"
    return [
        rate.row(f"durable submits, {CLIENTS} clients", "/s", FLOOR, target, note),
        Row("the same: processor time of the server", "ms each", Spread.of(costs)),
    ]


def _bare(database: Path, place: Path, first: int, last: int) -> float:
    """Seconds that SQLite takes for the rows of the jobs after `first` up to `last`, and for nothing else."""
    source = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    schema = [sql for (sql,) in source.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
    rows = {
        table: source.execute(f"SELECT {key}, * FROM {table} WHERE {key} > ? AND {key} <= ?", (first, last)).fetchall()
        for table, key in _TABLES.items()
    }
    source.close()
    for old in place.parent.glob(f"{place.name}*"):
        old.unlink()
    target = sqlite3.connect(place, isolation_level=None)
    target.execute("PRAGMA journal_mode = WAL")
    target.execute("PRAGMA synchronous = FULL")
    for statement in schema:
        target.execute(statement)
    inserts = {
        table: f"INSERT INTO {table} VALUES ({', '.join('?' * (len(found[0]) - 1))})" for table, found in rows.items()
    }
    groups: dict[int, list[tuple[str, tuple[object, ...]]]] = {}
    for table, found in rows.items():
        for key, *values in found:
            groups.setdefault((key - first - 1) // CLIENTS, []).append((inserts[table], tuple(values)))
    began = time.perf_counter()
    for group in groups.values():
        target.execute("BEGIN IMMEDIATE")
        for statement, values in group:
            target.execute(statement, values)
        target.execute("COMMIT")
    taken = time.perf_counter() - began
    target.close()
    return taken


def _lost(effort: Effort) -> Row:
    """Kill the server in the middle of bursts, and look for what it had acknowledged."""
    lost, acknowledged = [], 0
    with scheduler(8) as server:
        for _ in range(max(2, effort.rounds // 3)):
            known: list[str] = []
            enough = effort.waiters // 20

            def count(job_id: str, known: list[str] = known, enough: int = enough) -> None:
                known.append(job_id)
                if len(known) == enough:
                    server.kill()

            asyncio.run(submit(server, 4 * enough, JOB, count))
            server.start()
            with Client(server) as client:
                there = {job.id for job in client.jobs()}
            lost.append(float(len(set(known) - there)))
            acknowledged += len(known)
    return Row(
        "acknowledged submits that are lost when the server is killed (`kill -9`) in the middle",
        "",
        Spread.of([sum(lost)]),
        target=Target(0, of_ratio=False),
        note=f"of {acknowledged:,}, in {len(lost)} kills",
    )
