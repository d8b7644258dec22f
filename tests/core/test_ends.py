"""When devices come back, and what falls due, each against a plain reckoning of the same."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from gpusched.scheduler.core.deadlines import Deadlines, Due
from gpusched.scheduler.core.ends import NEVER, Ends
from gpusched.scheduler.core.jobs import JobId

LIMITS = st.one_of(st.none(), st.integers(0, 6).map(float))


@given(
    jobs=st.lists(st.tuples(LIMITS, st.integers(1, 4)), max_size=12),
    gone=st.sets(st.integers(0, 11)),
    need=st.integers(1, 30),
    free=st.integers(0, 8),
    now=st.integers(0, 7).map(float),
)
def test_when_so_many_are_free_is_found_by_sums(
    jobs: list[tuple[float | None, int]], gone: set[int], need: int, free: int, now: float
) -> None:
    ends = Ends()
    left: list[tuple[float, int]] = []
    for number, (at, count) in enumerate(jobs):
        ends.add(number, at, tuple("d" * count))
    for number, (at, count) in enumerate(jobs):
        if number in gone:
            ends.remove(number)
        else:
            left.append((NEVER if at is None else at, count))
    assert [(at, len(devices)) for at, _, devices in ends] == sorted(left, key=lambda each: each[0])
    if free >= need:
        return  # it is not asked for then
    # The first moment at which enough of them have ended; who outlives its limit ends now.
    moments = sorted({max(at, now) for at, _ in left if at != NEVER})
    freed = {moment: free + sum(count for at, count in left if at <= moment) for moment in moments}
    first = next((moment for moment in moments if freed[moment] >= need), None)
    at, spare = ends.when_free(need, free, now)
    if first is not None:
        assert (at, spare) == (first, freed[first])
    else:
        assert at == NEVER


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.one_of(st.integers(0, 9).map(float), st.just(inf))),
            st.tuples(st.just("pop"), st.integers(0, 9).map(float)),
            st.tuples(st.just("sweep"), st.integers(0, 9).map(float)),
        ),
        max_size=40,
    )
)
def test_the_first_deadline_is_always_known(steps: list[tuple[str, float]]) -> None:
    deadlines = Deadlines()
    plain: list[tuple[float, int]] = []
    for number, (what, at) in enumerate(steps):
        if what == "add":
            deadlines.add(at, Due.MAX_WAIT, JobId(number))
            plain += [(at, number)] if at < inf else []
        elif what == "pop":
            found = deadlines.pop_due(at)
            due = min((each for each in plain if each[0] <= at), default=None)
            assert found == (None if due is None else (Due.MAX_WAIT, due[1], 0))
            plain = [each for each in plain if each != due]
        else:
            # Forget every entry before a job of that number.
            deadlines.sweep(lambda _what, job, _epoch, least=at: job >= least)
            plain = [each for each in plain if each[1] >= at]
        assert deadlines.first == min((each[0] for each in plain), default=inf)
        assert not deadlines.crowded
