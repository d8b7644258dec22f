"""How soon a batch job starts, and how many tiny ones are run a second."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.jobs import Client, request, submit
from benchmarks.measure import Effort, Rounds, Row, Spread, Target
from benchmarks.processes import ROOT, Server, clean_environment, cpu_seconds, scheduler
from gpusched.v1 import scheduler_pb2

GPUS = 8
BURST = 200
#: Slurm 22.05 on this kind of machine.
SLURM = 52.0
FLOOR = "bare warm parent: a forked child runs it"
BURST_FLOOR = f"bare warm parent: a forked child for each runs it and waits, {GPUS} at a time"
#: Prints when its first instruction was, about.
STAMP = ("date", "+%s.%N")
#: Between two jobs, so that the end of the one is not in the start of the other.
PAUSE = 0.05


class Forker:
    """A warm parent that forks commands."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare_fork"],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._line()

    def __enter__(self) -> Forker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, count: int, most: int, *words: str) -> list[str]:
        """Run a command so often, so many at a time; gives what it printed, when all have ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([count, most, *words]).encode() + b"\n")
        self._process.stdin.flush()
        printed = []
        while (line := self._line()) != "done":
            printed.append(line)
        return printed

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode().strip()
        if not line:
            raise RuntimeError("the bare parent has died")
        return line


def run(effort: Effort) -> list[Row]:
    with scheduler(GPUS) as server, Forker() as forker:
        return [*_starts(effort, server, forker), *_bursts(effort, server, forker)]


def _starts(effort: Effort, server: Server, forker: Forker) -> list[Row]:
    start = Rounds.empty()
    calls: list[float] = []
    with Client(server) as client:
        for number in range(effort.rounds + 1):
            ours, floor = [], []
            for _ in range(effort.samples // 4):
                call, waited = _start(server, client)
                ours.append(waited * 1e3)
                began = time.time()
                floor.append((float(forker.run(1, 1, *STAMP)[0]) - began) * 1e3)
                if number:
                    calls.append(call * 1e3)
            if number:  # the first round warms up
                start.ours.append(ours)
                start.floor.append(floor)
    target = Target(50, of_ratio=False)
    return [
        start.row("`Submit` returned to the command's first instruction, idle server", "ms", FLOOR, target),
        Row("`Submit` sent to its return, the job synced to the disk", "ms", Spread.of(calls)),
    ]


def _start(server: Server, client: Client) -> tuple[float, float]:
    """Seconds that Submit takes, and from its return to the start of the command."""
    time.sleep(PAUSE)
    path = server.state / "stamp"
    path.unlink(missing_ok=True)
    job = request(*STAMP, output_path=str(path))
    began = time.time()
    job_id = client.stub.Submit(job).job.id
    returned = time.time()
    for _ in client.stub.WaitJob(scheduler_pb2.WaitJobRequest(job_id=job_id)):
        pass
    return returned - began, float(path.read_text()) - returned


def _bursts(effort: Effort, server: Server, forker: Forker) -> list[Row]:
    rate = Rounds.empty()
    spooler: list[float] = []
    costs: list[float] = []
    with Client(server) as client, tempfile.TemporaryDirectory() as directory:
        for number in range(max(3, effort.rounds // 3) + 1):
            cpu = cpu_seconds(server.pid)
            ours = BURST / _burst(server, client)
            cpu = cpu_seconds(server.pid) - cpu
            began = time.perf_counter()
            forker.run(BURST, GPUS, "true")
            floor = BURST / (time.perf_counter() - began)
            others = _spool(Path(directory))
            if number:  # the first round warms up
                rate.ours.append([ours])
                rate.floor.append([floor])
                costs.append(cpu / BURST * 1e3)
                if others is not None:
                    spooler.append(BURST / others)
    name = f"{BURST} jobs of `true` on {GPUS} GPUs, first `Submit` to last end"
    rows = [
        rate.row(name, "/s", BURST_FLOOR, Target(0.5, at_most=False)),
        Row(
            "the same, beside Slurm 22.05 on this kind of machine",
            "/s",
            Spread.of([rate for (rate,) in rate.ours]),
            "`sbatch`, measured elsewhere",
            Spread.of([SLURM]),
            target=Target(SLURM, of_ratio=False, at_most=False),
        ),
        Row("the same: processor time of the server", "ms each", Spread.of(costs)),
    ]
    if spooler:
        text = "task-spooler, a C program without GPUs, leases and history"
        rows.append(Row(f"the same with `tsp -S {GPUS}`", "/s", Spread.of(spooler), note=text))
    return rows


def _burst(server: Server, client: Client) -> float:
    """Seconds from the first Submit until all have ended."""
    began = time.perf_counter()
    asyncio.run(submit(server, BURST, request("true")))
    while True:
        status = client.status()
        if not status.jobs_queued and not status.jobs_running:
            return time.perf_counter() - began
        time.sleep(0.03)


def _spool(directory: Path) -> float | None:
    """The same by task-spooler, None where it is not installed."""
    tsp = shutil.which("tsp") or shutil.which("ts")
    if tsp is None or b"TS_SOCKET" not in subprocess.run([tsp, "-h"], capture_output=True).stdout:
        return None  # moreutils has a `ts`, too
    environment = clean_environment(TS_SOCKET=str(directory / "socket"), TMPDIR=str(directory))
    subprocess.run([tsp, "-S", str(GPUS)], env=environment, check=True)
    # -w waits for one job: for each of the last ones, as they end in any order.
    submits = f"for i in $(seq {BURST}); do {tsp} -n true; done"
    script = f"{submits}; for i in $(seq {BURST - GPUS} {BURST - 1}); do {tsp} -w $i; done"
    began = time.perf_counter()
    subprocess.run(["sh", "-c", script], env=environment, check=True, capture_output=True)
    taken = time.perf_counter() - began
    subprocess.run([tsp, "-K"], env=environment, check=True)
    return taken
