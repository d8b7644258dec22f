"""Schedules of small logs against those made by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.settings import Settings
from gpusched.scheduler.simulate.replay import Estimate, Events, replay, settings_for
from gpusched.scheduler.simulate.workload import LoggedJob, SimulationError, flat_pool, node_pool
from simulate.logs import job, starts

BOTH = pytest.mark.parametrize("events", list(Events))

# Four GPUs. 1 runs on two of them until 100; 2 wants all four and so waits until then, and ends at 150.
FOUR = [job(1, 0, 100, 2), job(2, 10, 50, 4), job(3, 10, 20, 1), job(4, 20, 100, 1), job(5, 30, 60, 1)]


@BOTH
def test_strict_order_lets_nobody_pass(events: Events) -> None:
    # 3, 4 and 5 want one GPU each and are behind 2.
    assert starts(FOUR, 4, events=events) == [0, 100, 150, 150, 150]


@BOTH
def test_easy_lets_pass_who_is_done_in_time(events: Events) -> None:
    # 3 ends at 30, 5 at 90: before 100. 4 would end at 120 and delay 2, so it starts when 2 has ended.
    assert starts(FOUR, 4, backfill="easy", events=events) == [0, 100, 10, 150, 30]


@BOTH
def test_easy_promises_to_the_first_alone_and_conservative_to_all(events: Events) -> None:
    jobs = [job(1, 0, 100, 3), job(2, 1, 100, 2), job(3, 2, 100, 4), job(4, 3, 250, 1)]
    # 2 is promised 100, and then leaves two GPUs spare. 4 takes one of them for longer than 3 can wait for.
    assert starts(jobs, 4, backfill="easy", events=events) == [0, 100, 253, 3]
    # 3 is promised 200, too. Between 3 and 253 there is no room for 4 that leaves 3 its four GPUs, before 300.
    assert starts(jobs, 4, backfill="conservative", events=events) == [0, 100, 200, 300]


def test_the_shortest_candidate_first() -> None:
    jobs = [job(1, 0, 100, 3), job(2, 1, 10, 4), job(3, 2, 90, 2), job(4, 3, 50, 1), job(5, 3, 20, 1)]
    assert starts(jobs, 4, backfill="easy") == [0, 100, 110, 3, 53]
    assert starts(jobs, 4, backfill="easy", candidates="sjbf") == [0, 100, 110, 23, 3]


def test_shortest_job_first() -> None:
    jobs = [job(1, 0, 100, 4), job(2, 1, 50, 4), job(3, 2, 10, 4), job(4, 3, 30, 4)]
    assert starts(jobs, 4, "sjf") == [0, 140, 100, 110]


def test_priority_tiers() -> None:
    jobs = [job(1, 0, 100, 4), job(2, 1, 50, 4), job(3, 2, 50, 4)._replace(priority=5)]
    assert starts(jobs, 4, "priority") == [0, 150, 100]


def test_what_users_asked_for_decides_who_passes_and_what_they_used_when_they_end() -> None:
    jobs = [job(1, 0, 100, 2, 1000), job(2, 10, 50, 4, 50), job(3, 20, 60, 1, 990), job(4, 30, 60, 1, 960)]
    # 2 is promised 1000. 3 might run until 1010 and 4 until 990; 1 ends at 100, 4 at 90.
    limits = starts(jobs, 4, backfill="easy", estimate=Estimate.LIMIT)
    assert limits == [0, 100, 150, 30]


def named(number: int, submit: int, run: int, limit: int, name: str, estimate: int | None = None) -> LoggedJob:
    return job(number, submit, run, 4, limit)._replace(name=name, estimate=estimate)


def test_shortest_job_first_learns_from_runs_of_the_same_name() -> None:
    # Everybody asks for an hour. After two evals of a minute the third one is before the training that came earlier.
    jobs = [named(1, 0, 60, 3600, "eval"), named(2, 1, 60, 3600, "eval")]
    jobs += [named(3, 100, 3000, 3600, "train"), named(4, 101, 3000, 3600, "train"), named(5, 102, 60, 3600, "eval")]
    assert starts(jobs, 4, "sjf", estimate=Estimate.LIMIT) == [0, 60, 180, 3180, 120]
    # Without names there is nothing but the limits, and those are alike.
    nameless = [each._replace(name="") for each in jobs]
    assert starts(nameless, 4, "sjf", estimate=Estimate.LIMIT) == [0, 60, 120, 3120, 6120]
    # With exact estimates a name says nothing more.
    assert starts(jobs, 4, "sjf") == starts(nameless, 4, "sjf") == [0, 60, 180, 3180, 120]


def test_an_estimate_of_the_users_own_counts_for_more_than_the_limit_and_a_name() -> None:
    jobs = [named(1, 0, 100, 3600, "a"), named(2, 1, 100, 3600, "a", 3000), named(3, 2, 100, 3600, "", 2000)]
    jobs += [named(4, 3, 100, 2500, "")]
    # 2 would be expected to take 100 s, as job 1 did when it ended, if its user did not say better.
    assert starts(jobs, 4, "sjf", estimate=Estimate.LIMIT) == [0, 300, 100, 200]


def test_a_limit_below_the_run_time_is_raised_and_counted() -> None:
    jobs = [job(1, 0, 100, 2, 10), job(2, 1, 10, 2, 20)]
    done = replay(jobs, flat_pool(2), _settings(), estimate=Estimate.LIMIT)
    assert (done.starts, done.outlived) == ([0, 100], 1)


def test_jobs_without_a_limit_run_to_their_end() -> None:
    assert starts([job(1, 0, 100, 2), job(2, 1, 10, 2)], 2, backfill="easy", estimate=Estimate.LIMIT) == [0, 100]


@BOTH
def test_work_that_takes_no_time(events: Events) -> None:
    jobs = [job(1, 5, 0, 2), job(2, 5, 0, 2), job(3, 5, 10, 2), job(4, 5, 0, 1), job(5, 15, 0, 2)]
    assert starts(jobs, 2, events=events) == [5, 5, 5, 15, 15]
    assert starts(jobs, 2, backfill="easy", events=events) == [5, 5, 5, 15, 15]


@BOTH
def test_gpus_freed_at_an_instant_go_to_a_job_submitted_then(events: Events) -> None:
    assert starts([job(1, 0, 10, 2), job(2, 10, 10, 2)], 2, backfill="easy", events=events) == [0, 10]


def test_events_together_and_one_by_one_differ_where_two_come_at_once() -> None:
    jobs = [job(1, 0, 100, 3), job(2, 1, 100, 4), job(3, 2, 60, 1), job(4, 2, 30, 1)]
    together = starts(jobs, 4, backfill="easy", candidates="sjbf")
    one_by_one = starts(jobs, 4, backfill="easy", candidates="sjbf", events=Events.ONE_BY_ONE)
    # Together the shorter one is first. One by one, 3 has the GPU before 4 is there.
    assert together == [0, 100, 32, 2]
    assert one_by_one == [0, 100, 2, 62]


def test_an_early_end_comes_after_the_submits_of_its_instant() -> None:
    # 2 waits for all three GPUs, until 100 as far as anybody knows. At 50 job 3 comes, and job 1 ends.
    jobs = [job(1, 0, 50, 2, 100), job(2, 10, 10, 3, 10), job(3, 50, 50, 1, 50)]
    both = [starts(jobs, 3, backfill="easy", estimate=Estimate.LIMIT, events=events) for events in Events]
    assert both == [[0, 50, 60], [0, 100, 50]]


def test_jobs_of_several_nodes() -> None:
    nodes = node_pool("2x2,1x4")
    jobs = [job(1, 0, 10, 4), job(2, 0, 10, 2), job(3, 0, 10, 1), job(4, 0, 5, 1), job(5, 1, 1, 2)]
    done = replay(jobs, nodes, _settings(), keep_placements=True)
    assert done.starts == [0, 0, 0, 0, 10]
    assert done.placements[0] == tuple(f"node2:{index}" for index in range(4))
    assert {uuid.split(":")[0] for uuid in done.placements[1]} != {uuid.split(":")[0] for uuid in done.placements[2]}


def test_times_that_are_not_whole() -> None:
    assert starts([job(1, 0.25, 1.5, 1), job(2, 0.5, 1.0, 1)], 1) == [0.25, 1.75]


def test_no_gpu_is_given_twice_and_every_start_is_at_an_event() -> None:
    chance = random.Random(7)
    clock, jobs = 0, []
    for number in range(400):
        clock += chance.choice((0, 0, 1, 5, 40))
        run = chance.choice((0, 1, 10, 100))
        jobs.append(job(number, clock, run, chance.choice((1, 1, 2, 3, 8)), run + chance.choice((1, 5, 300))))
    for backfill in ("none", "easy", "conservative"):
        for events in Events:
            done = replay(
                jobs,
                node_pool("2x4,1x2"),
                _settings(backfill),
                estimate=Estimate.LIMIT,
                events=events,
                keep_placements=True,
            )
            held: dict[str, list[tuple[float, float]]] = {}
            for each, start, devices in zip(jobs, done.starts, done.placements, strict=True):
                assert start >= each.submit and len(set(devices)) == each.gpus
                for uuid in devices:
                    held.setdefault(uuid, []).append((start, start + each.run))
            for spans in held.values():
                spans.sort()
                assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
            moments = {each.submit for each in jobs} | {s + j.run for j, s in zip(jobs, done.starts, strict=True)}
            assert set(done.starts) <= moments


def test_the_same_again() -> None:
    assert starts(FOUR, 4, backfill="easy") == starts(list(FOUR), 4, backfill="easy")


def test_a_job_that_the_engine_refuses_is_named() -> None:
    with pytest.raises(SimulationError, match=r"job 7 \(line 12\): resources.gpus: asks for 9 GPUs"):
        replay([LoggedJob(12, 7, 0, 1, 9)], flat_pool(8), _settings())
    with pytest.raises(SimulationError, match="job 7: time_limit"):
        replay([LoggedJob(0, 7, 0, 10**10, 1)], flat_pool(8), _settings())


@pytest.mark.parametrize("text", ["", "8", "0x8", "2x0", "axb", "2x8,", "9999999999999999999x1", "100001x1", "400x400"])
def test_nodes_that_make_no_sense(text: str) -> None:
    with pytest.raises(SimulationError, match="--nodes: "):
        node_pool(text)


def _settings(backfill: str = "none") -> Settings:
    return settings_for(PolicySettings("fifo", backfill))


@pytest.mark.parametrize("backfill", ["none", "conservative"])
def test_candidates_change_nothing_but_under_easy(backfill: str) -> None:
    """Not even how often the engine is asked, one by one."""
    jobs = [job(number, number * 7 % 40, 10 + number * 13 % 50, 1 + number % 4) for number in range(60)]
    jobs.sort(key=lambda job: (job.submit, job.id))
    queue, sjbf = (
        replay(jobs, flat_pool(4), settings_for(PolicySettings("fifo", backfill, name)), events=Events.ONE_BY_ONE)
        for name in ("queue", "sjbf")
    )
    assert queue == sjbf
