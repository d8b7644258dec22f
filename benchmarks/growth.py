"""How the engine's own costs grow with the queue, and how fast it replays a log; no server, no network."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from heapq import heappop, heappush
from pathlib import Path

from benchmarks.measure import Effort, Rounds, Row, Target
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.jobs import Job, JobSpec
from gpusched.scheduler.core.model import DeviceInfo, NodeInfo, Owner, Request
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.settings import Settings
from gpusched.scheduler.simulate.command import without_collections
from gpusched.scheduler.simulate.readers import read_log
from gpusched.scheduler.simulate.replay import Events, replay, settings_for
from gpusched.scheduler.simulate.workload import LoggedJob, flat_pool

SIZES = (100, 1_000, 10_000, 100_000)
TRACES = Path(os.environ.get("GPUSCHED_TRACES", Path(__file__).parents[2] / "shared/traces"))
OWNER = Owner(1000, "alice")
GPUS = 64
#: Shapes of requests in a mixed queue: GPUs and seconds of their limit.
SHAPES = [(1 + n % 8, 600.0 * (1 + n % 7)) for n in range(56)]


def run(effort: Effort) -> list[Row]:
    sizes = SIZES if effort.waiters >= 10_000 else SIZES[:3]
    rows = [*_queue(effort, sizes)]
    log = TRACES / "sdsc_sp2.csv.gz"
    if log.exists():
        rows.append(_replay(effort, log))
    return rows


# -- a long queue ------------------------------------------------------------------------------------------


def _queue(effort: Effort, sizes: tuple[int, ...]) -> Iterator[Row]:
    passes, booked, submits, positions = {}, {}, {}, {}
    for size in sizes:
        engine = _full(size, "conservative")
        booked[size] = [_timed(partial(_pass, engine)) for _ in range(10 * effort.rounds)]
        engine = _full(size)
        passes[size] = [_timed(partial(_pass, engine)) for _ in range(10 * effort.rounds)]
        submits[size] = [_timed(partial(_come_and_go, engine)) for _ in range(10 * effort.rounds)]
        jobs = list(engine.queue)
        some = jobs[:: max(1, size // 50)]
        positions[size] = [_timed(partial(_look_up, engine, some)) / len(some) for _ in range(effort.rounds)]
    least = sizes[0]
    for what, found, target in (
        ("a pass that can start nobody", passes, Target(10_000.0, of_ratio=False)),
        ("the same with conservative backfill", booked, Target(10_000.0, of_ratio=False)),
        ("submit and cancel", submits, None),
        ("a position", positions, None),
    ):
        for size in sizes:
            pairs = Rounds([[each] for each in found[size]], [[each] for each in found[least]])
            yield pairs.row(
                f"{what}, {size:,} of {len(SHAPES)} shapes waiting",
                "µs",
                f"with {least} waiting",
                target if size == sizes[-1] else None,
            )


def _full(size: int, backfill: str = "easy") -> Engine:
    """All GPUs taken, one job that needs them all, and many more behind it."""
    engine = _engine(PolicySettings("fifo", backfill), GPUS)
    engine.handle(ev.Submit(_spec(GPUS - 1, 3600.0)), 0.0)
    engine.handle(ev.Pass(), 0.0)
    engine.handle(ev.Submit(_spec(GPUS, 3600.0)), 0.0)
    for n in range(size - 1):
        gpus, limit = SHAPES[n % len(SHAPES)]
        # Longer than the first can wait: nobody may pass it.
        engine.handle(ev.Submit(_spec(gpus, 3600.0 + limit)), 0.0)
    engine.handle(ev.Pass(), 0.0)
    engine.take_changes()
    return engine


def _pass(engine: Engine) -> None:
    engine.pass_wanted = True
    engine.handle(ev.Pass(), 1.0)


def _look_up(engine: Engine, jobs: list[Job]) -> None:
    for job in jobs:
        engine.queue.position(job)


def _come_and_go(engine: Engine) -> None:
    for effect in engine.handle(ev.Submit(_spec(2, 7200.0)), 1.0):
        if isinstance(effect, do.Accepted):
            engine.handle(ev.Cancel(effect.job, "done"), 1.0)
    engine.take_changes()


# -- a log -------------------------------------------------------------------------------------------------


def _replay(effort: Effort, log: Path) -> Row:
    jobs = read_log(str(log)).jobs
    if effort.waiters < 10_000:
        jobs = jobs[:5_000]
    settings = settings_for(PolicySettings("fifo", "easy"))
    nodes = flat_pool(128)
    rounds = Rounds.empty()
    with without_collections():
        for _ in range(5):
            ours = _timed(lambda: replay(jobs, nodes, settings, events=Events.ONE_BY_ONE), seconds=True)
            rounds.ours.append([len(jobs) / ours])
            rounds.floor.append([len(jobs) / _timed(lambda: _only_events(jobs), seconds=True)])
    return rounds.row(
        f"replay of {len(jobs):,} jobs of SDSC-SP2 on 128 processors, EASY",
        "jobs/s",
        "the log's events through a heap, with nobody scheduling",
        Target(10_000.0, of_ratio=False, at_most=False),
        "as `gpusched simulate` does it: one core, pure Python; a C++ core without history, leases or effects replays "
        "227,000/s",
    )


def _only_events(jobs: Sequence[LoggedJob]) -> None:
    ends: list[tuple[float, int]] = []
    for number, job in enumerate(jobs):
        while ends and ends[0][0] <= job.submit:
            heappop(ends)
        heappush(ends, (job.submit + job.run, number))


def _engine(policy: PolicySettings, gpus: int) -> Engine:
    node = NodeInfo("node", tuple(DeviceInfo(f"gpu{n}", n, "node", "x", 1 << 30, True) for n in range(gpus)))
    settings = Settings(policy=policy, check_released=False, keep_ended=1, limit_notice=0.0)
    return Engine((node,), settings)


def _spec(gpus: int, limit: float) -> JobSpec:
    return JobSpec(OWNER, Request(gpus), time_limit=limit, auto_confirm=True)


def _timed(what: Callable[[], object], *, seconds: bool = False) -> float:
    """Microseconds (or seconds) of processor time that something takes."""
    began = time.process_time()
    what()
    passed = time.process_time() - began
    return passed if seconds else passed * 1e6
