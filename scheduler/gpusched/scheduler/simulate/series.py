"""Counts over time, as they are drawn: each change of few, of many what is the most or the mean of an interval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple, TypeAlias

from gpusched.scheduler.simulate.report import span
from gpusched.scheduler.simulate.workload import Seconds

#: Intervals along the axis of time, where there are too many changes to draw each.
POINTS = 1200
#: When, and by how much a count changes.
Change: TypeAlias = tuple[Seconds, int]


class Series(NamedTuple):
    """What to draw as steps: from 0 at the beginning to 0 at the end.

    Attributes:
        times: where each step begins, in seconds.
        values: from there on.
        about: what the values are, where they are not the count itself.
    """

    times: list[float]
    values: list[float]
    about: str = ""


def peaks(changes: Sequence[Change], first: Seconds, last: Seconds, points: int = POINTS) -> Series:
    """A count from `first` to `last` (seconds); with many changes, the most that it is within each of `points`."""
    if (exact := _exact(changes, first, last, points)) is not None:
        return exact
    return _of_intervals(maxima(changes, first, last, points), first, last, "the most at one time")


def means(changes: Sequence[Change], first: Seconds, last: Seconds, points: int = POINTS) -> Series:
    """A count from `first` to `last` (seconds); with many changes, its mean over each of `points` intervals."""
    if (exact := _exact(changes, first, last, points)) is not None:
        return exact
    return _of_intervals(averages(changes, first, last, points)[1], first, last, "the mean")


def _exact(changes: Iterable[Change], first: Seconds, last: Seconds, points: int) -> Series | None:
    steps = levels(changes)
    if len(steps) > 2 * points:
        return None
    # From nothing to nothing: a peak at the very beginning has two sides, too.
    return Series([first, *(when for when, _ in steps), last], [0, *(level for _, level in steps), 0])


def _of_intervals(values: Sequence[float], first: Seconds, last: Seconds, what: str) -> Series:
    length = (last - first) / len(values)
    times = [first + number * length for number in range(len(values))]
    about = f"{what} in each of {len(values):,} intervals of {span(length)}"
    return Series([first, *times, last], [0, *values, 0], about)


def levels(changes: Iterable[Change]) -> list[tuple[Seconds, int]]:
    """A count after each instant at which it changes: what comes and goes at one instant was never there."""
    by_instant: defaultdict[Seconds, int] = defaultdict(int)
    for when, by in changes:
        by_instant[when] += by
    level = 0
    steps = []
    for when, by in sorted(by_instant.items()):
        if by:
            level += by
            steps.append((when, level))
    return steps


def maxima(changes: Iterable[Change], first: Seconds, last: Seconds, points: int = POINTS) -> list[float]:
    """A count over time, the most that it is within each of so many intervals of equal length.

    Args:
        changes: (when, by how much), in any order; the count is never below 0.
        first, last: the span of time, in seconds; all changes are within it.
        points: how many intervals.
    """
    length = (last - first) / points or 1.0
    most = [0.0] * points
    level, at = 0, -1
    for when, after in [*levels(changes), (last, 0)]:
        place = (when - first) / length
        # Intervals that begin before this instant have seen the count as it was.
        for interval in range(at + 1, min(ceil(place), points)):
            most[interval] = level
        at = min(int(place), points - 1)
        most[at] = max(most[at], after)
        level = after
    return most


def averages(
    changes: Iterable[Change], first: Seconds, last: Seconds, points: int = POINTS
) -> tuple[list[float], list[float]]:
    """A count over time, averaged over intervals of equal length.

    Args:
        changes: (when, by how much), in any order.
        first, last: the span of time, in seconds.
        points: how many intervals.

    Returns:
        Where each interval begins, and the mean of the count over it.
    """
    length = (last - first) / points or 1.0
    sums = [0.0] * points
    level, at = 0, float(first)

    def stay(until: float) -> None:
        nonlocal at
        while at < until:
            interval = min(int((at - first) / length), points - 1)
            if interval < points - 1 and first + (interval + 1) * length <= at:  # rounding
                interval += 1
            end = until if interval == points - 1 else min(until, first + (interval + 1) * length)
            sums[interval] += level * (end - at)
            at = end

    for when, by in sorted(changes):
        stay(float(when))
        level += by
    stay(float(last))
    return [first + number * length for number in range(points)], [each / length for each in sums]
