"""Counts over time, as they are drawn."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.scheduler.simulate.series import averages, levels, maxima, means, peaks

RUSH = [*((0, 1) for _ in range(99)), *((60 * number, -1) for number in range(1, 100))]
END = 100 * 86400


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(-5, 5)), max_size=40),
    st.integers(1, 1300),
    st.integers(0, 10**9),
)
def test_averages_keep_the_area_and_the_bounds(changes: list[tuple[int, int]], points: int, origin: int) -> None:
    times, means = averages([(origin + when, by) for when, by in changes], origin, origin + 1000, points)
    assert len(times) == len(means) == points
    area = sum(by * (1000 - when) for when, by in changes)
    assert sum(means) * 1000 / points == pytest.approx(area, abs=1e-2)
    levels = [0, *itertools.accumulate(by for _, by in sorted(changes))]
    assert min(levels) - 1e-3 <= min(means) and max(means) <= max(levels) + 1e-3


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 300)), max_size=40),
    st.integers(1, 1300),
    st.integers(0, 10**9),
)
def test_maxima_are_the_most_of_each_interval(stays: list[tuple[int, int]], points: int, origin: int) -> None:
    last = 1300
    changes = [each for at, long in stays for each in ((origin + at, 1), (origin + at + long, -1))]
    most = maxima(changes, origin, origin + last, points)
    assert len(most) == points
    # Anything that stays is seen, as it was at the best, in the interval of each instant (some leeway for rounding).
    for when, level in [(origin, 0), *levels(changes)]:
        place = (when - origin) * points / last
        near = {max(min(int(place + off), points - 1), 0) for off in (-1e-6, 1e-6)}
        assert max(most[each] for each in near) >= level
    # And nothing is made up: what an interval has was there in it.
    for number, value in enumerate(most):
        begin, end = number * last / points - 1e-3, (number + 1) * last / points + 1e-3
        inside = [level for when, level in levels(changes) if begin <= when - origin <= end]
        before = [level for when, level in levels(changes) if when - origin < begin]
        assert value in {*inside, (before or [0])[-1], 0}


def test_what_comes_and_goes_at_one_instant_was_never_there() -> None:
    assert levels([(5, -1), (1, 1), (7, -1), (5, 1), (5, 1), (9, 1), (9, -1)]) == [(1, 1), (5, 2), (7, 1)]
    assert max(maxima([(3, 1), (3, -1)], 0, 10, 4)) == 0


def test_few_changes_are_drawn_as_they_are() -> None:
    times, values, about = peaks(RUSH, 0, END)
    assert (max(values), times[values.index(99)], values[0], values[-1], about) == (99, 0, 0, 0, "")
    assert means(RUSH, 0, END) == peaks(RUSH, 0, END)


def test_of_many_it_is_said_what_is_drawn() -> None:
    times, values, about = peaks(RUSH, 0, END, 40)
    assert (max(values), times[-1], values[-1]) == (99, END, 0)
    assert about == "the most at one time in each of 40 intervals of 2d12h"
    times, values, about = means(RUSH, 0, END, 40)
    assert max(values) == pytest.approx(60 * 99 * 100 / 2 / (END / 40))
    assert about == "the mean in each of 40 intervals of 2d12h"


def test_a_span_of_no_time() -> None:
    for points in (0, 40):
        assert max(peaks([(7, 1), (7, -1)], 7, 7, points or 1).values) == 0
