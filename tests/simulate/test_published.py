"""Real logs against published schedules, job by job, and against figures measured by others on the same logs.

The logs are not part of the project: they are looked for in `../shared/traces`, or where GPUSCHED_TRACES says.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections import Counter
from pathlib import Path

import pytest

from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.simulate.command import _events_of, _placement
from gpusched.scheduler.simulate.filters import Filter, parse_filter
from gpusched.scheduler.simulate.metrics import Metrics, measure
from gpusched.scheduler.simulate.options import AUTO
from gpusched.scheduler.simulate.readers import read_log
from gpusched.scheduler.simulate.replay import Estimate, Events, Replayed, replay, settings_for
from gpusched.scheduler.simulate.workload import LoggedJob, flat_pool, node_pool

# Read when the tests are collected, before a fixture clears the caller's variables away.
TRACES = Path(os.environ.get("GPUSCHED_TRACES") or Path(__file__).resolve().parents[3] / "shared" / "traces")
EXACT, LIMIT = Estimate.EXACT, Estimate.LIMIT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def trace(name: str) -> Path:
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"there is no {path}; GPUSCHED_TRACES can name another place")
    return path


def jobs_of(name: str, *filters: Filter) -> list[LoggedJob]:
    return read_log(str(trace(name)), filters=filters).jobs


def column(name: str, wanted: str) -> list[int]:
    with gzip.open(trace(name), "rt") as file:
        return [int(row[wanted]) for row in csv.DictReader(file)]


def run(
    jobs: list[LoggedJob], pool: int | str, policy: PolicySettings, estimate: Estimate, events: Events | None = None
) -> tuple[Replayed, Metrics]:
    nodes = flat_pool(pool) if isinstance(pool, int) else node_pool(pool)
    settings = settings_for(policy)
    done = replay(
        jobs,
        nodes,
        settings,
        estimate=estimate,
        events=events or _events_of(policy),
        placement=_placement(AUTO, nodes),
    )
    return done, measure(jobs, done.starts, sum(len(node.devices) for node in nodes))


# -- EASY on two logs of the Parallel Workloads Archive ---------------------------------------------------------------

LOGS = [("kth_sp2.csv.gz", 100, 28_481), ("sdsc_sp2.csv.gz", 128, 54_006)]
EASY = [
    # candidates, estimate, reference column, then mean wait and mean bounded slowdown of each log
    ("queue", EXACT, "start_easy_exact", ((6327.68, 71.722385), (17337.11, 70.477942))),
    ("sjbf", EXACT, "start_sjbf_exact", ((5436.02, 49.847719), (16307.08, 56.836221))),
    ("queue", LIMIT, "start_easy_req", ((6836.87, 92.576540), (20497.76, 87.870324))),
]


@pytest.mark.parametrize(("candidates", "estimate", "reference", "figures"), EASY, ids=[case[2] for case in EASY])
@pytest.mark.parametrize(("number", "log"), list(enumerate(LOGS)), ids=[log[0] for log in LOGS])
def test_every_job_starts_when_it_was_published_to(
    number: int,
    log: tuple[str, int, int],
    candidates: str,
    estimate: Estimate,
    reference: str,
    figures: tuple[tuple[float, float], ...],
) -> None:
    name, processors, count = log
    jobs = jobs_of(name)
    assert len(jobs) == count
    done, metrics = run(jobs, processors, PolicySettings("fifo", "easy", candidates), estimate)
    wrong = [
        (job.id, start, published)
        for job, start, published in zip(jobs, done.starts, column(name, reference), strict=True)
        if start != published
    ]
    assert not wrong, f"{len(wrong)} of {count} jobs start at another time: {wrong[:5]}"
    wait, slowdown = figures[number]
    assert round(metrics.wait_mean, 2) == wait
    assert round(metrics.slowdown_mean, 6) == slowdown


def test_with_exact_estimates_the_order_of_events_makes_no_difference() -> None:
    jobs = jobs_of("kth_sp2.csv.gz")
    done, _ = run(jobs, 100, PolicySettings("fifo", "easy"), EXACT, Events.TOGETHER)
    assert done.starts == column("kth_sp2.csv.gz", "start_easy_exact")


def test_strict_order() -> None:
    _, metrics = run(jobs_of("kth_sp2.csv.gz"), 100, PolicySettings("fifo", "none"), EXACT)
    assert round(metrics.wait_mean, 2) == 353_776.41


def test_conservative() -> None:
    _, metrics = run(jobs_of("kth_sp2.csv.gz"), 100, PolicySettings("fifo", "conservative"), LIMIT)
    assert round(metrics.wait_mean, 2) == 7_316.24
    assert round(metrics.slowdown_mean, 3) == 88.967


# -- gangs of GPUs on nodes: two virtual clusters of Helios -----------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "backfill", "wait"), [("fifo", "none", 13_891.12), ("sjf", "none", 696.79), ("fifo", "easy", 477.15)]
)
def test_gangs_on_twenty_nodes(order: str, backfill: str, wait: float) -> None:
    jobs = jobs_of("helios_venus_2vc_sept.csv", parse_filter("vc=vcvGl"))
    assert len(jobs) == 1_452
    _, metrics = run(jobs, "20x8", PolicySettings(order, backfill), EXACT)
    assert round(metrics.wait_mean, 2) == wait


@pytest.mark.parametrize(("order", "backfill"), [("fifo", "none"), ("sjf", "none"), ("fifo", "easy")])
def test_two_nodes_where_the_policy_makes_no_difference(order: str, backfill: str) -> None:
    jobs = jobs_of("helios_venus_2vc_sept.csv", parse_filter("vc=vcvlY"))
    _, metrics = run(jobs, "2x8", PolicySettings(order, backfill), EXACT)
    assert round(metrics.wait_mean, 2) == 360.43


# -- two months of Philly in one pool ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "total"), [("fifo", 20_879_010_197), ("sjf", 483_443_723)])
def test_two_months_of_philly(order: str, total: int) -> None:
    months = (parse_filter("submit_wall>=2017-10-01"), parse_filter("submit_wall<2017-12-01"))
    jobs = jobs_of("philly_jobs.csv.gz", *months)
    assert len(jobs) == 68_510
    _, metrics = run(jobs, "64x8", PolicySettings(order, "none"), EXACT)
    assert metrics.wait_total == total


def test_two_replays_are_alike() -> None:
    jobs = jobs_of("kth_sp2.csv.gz")[:5000]
    policy = PolicySettings("fair_share", "easy")
    first, second = (run(jobs, 100, policy, LIMIT)[0] for _ in range(2))
    assert first.starts == second.starts
    # Nobody runs on more than there is.
    level = 0
    changes: Counter[tuple[float, int]] = Counter()
    for job, start in zip(jobs, first.starts, strict=True):
        changes[start + job.run, 0] -= job.gpus
        changes[start, 1] += job.gpus
    for moment in sorted(changes):
        level += changes[moment]
        assert 0 <= level <= 100 or moment[1] == 0
