"""Figures against those made by hand, and against the plainest formulas."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.scheduler.simulate.metrics import bounded_slowdown, jain, measure
from gpusched.scheduler.simulate.workload import LoggedJob


def test_by_hand() -> None:
    jobs = [
        LoggedJob(0, 1, 0, 100, 2, None, "a"),
        LoggedJob(0, 2, 10, 50, 4, None, "b"),
        LoggedJob(0, 3, 20, 5, 1, None, "a"),
    ]
    it = measure(jobs, [0, 100, 150], 4)
    assert (it.wait_mean, it.wait_median, it.wait_p90, it.wait_max, it.wait_total) == (220 / 3, 90, 130, 130, 220)
    assert it.makespan == 155
    assert it.utilisation == pytest.approx((200 + 200 + 5) / (4 * 155))
    assert it.slowdown_mean == pytest.approx((1 + 140 / 50 + 135 / 10) / 3)
    a, b = (1 + 13.5) / 2, 2.8
    assert it.fairness == pytest.approx((a + b) ** 2 / (2 * (a * a + b * b)))
    assert (it.jobs, it.users) == (3, 2)


def test_a_log_without_users_has_no_fairness() -> None:
    it = measure([LoggedJob(0, 1, 0, 0, 1)], [0], 1)
    assert (it.fairness, it.users, it.utilisation, it.slowdown_mean) == (None, 0, 0.0, 1.0)


def test_jain() -> None:
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)


def test_short_jobs_count_as_ten_seconds() -> None:
    assert bounded_slowdown(90, 1) == 9.1
    assert bounded_slowdown(3, 1) == 1.0
    assert bounded_slowdown(0, 0) == 1.0


JOBS = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**5), st.integers(1, 64), st.integers(0, 10**6), st.text("ab")),
    min_size=1,
    max_size=60,
)


@given(JOBS)
def test_agrees_with_naive_formulas(rows: list[tuple[int, int, int, int, str]]) -> None:
    jobs = [LoggedJob(0, n, submit, run, gpus, None, user) for n, (submit, run, gpus, _, user) in enumerate(rows)]
    starts = [submit + wait for submit, _, _, wait, _ in rows]
    it = measure(jobs, starts, 64)
    waits = [row[3] for row in rows]
    assert it.wait_total == sum(waits)
    assert it.wait_mean == pytest.approx(sum(waits) / len(waits))
    assert sum(wait <= it.wait_p90 for wait in waits) >= 0.9 * len(waits)
    assert sum(wait < it.wait_p90 for wait in waits) < 0.9 * len(waits) + 1e-9
    assert it.wait_p90 in waits and it.wait_max == max(waits)
    assert sum(wait < it.wait_median for wait in waits) <= len(waits) / 2
    assert sum(wait > it.wait_median for wait in waits) <= len(waits) / 2
    slow = [max(1, (wait + run) / max(10, run)) for _, run, _, wait, _ in rows]
    assert it.slowdown_mean == pytest.approx(math.fsum(slow) / len(slow))
    makespan = max(submit + wait + run for submit, run, _, wait, _ in rows) - min(row[0] for row in rows)
    assert it.makespan == makespan
    if makespan:
        assert it.utilisation == pytest.approx(sum(run * gpus for _, run, gpus, _, _ in rows) / 64 / makespan)
    users = {row[4] for row in rows if row[4]}
    means = []
    for user in users:
        own = [each for each, row in zip(slow, rows, strict=True) if row[4] == user]
        means.append(sum(own) / len(own))
    if users:
        assert it.fairness == pytest.approx(sum(means) ** 2 / len(means) / sum(each**2 for each in means))
        assert 1 / len(users) - 1e-9 <= (it.fairness or 0) <= 1 + 1e-9
