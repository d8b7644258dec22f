"""Conservative bookings where more wait than have one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.support import Box
from gpusched.scheduler.core import bookings
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core import explain as why
from gpusched.scheduler.core.policy import PolicySettings

NewBox = Callable[..., Box]
CONSERVATIVE = PolicySettings("fifo", "conservative")


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(bookings, "DEPTH", 2)
    return 2


def test_who_stands_behind_all_bookings_has_none_and_starts_where_they_leave_room(box: NewBox, shallow: int) -> None:
    b = box("4", policy=CONSERVATIVE)
    b.submit(3, time_limit=100.0)
    wide, next_one = b.submit(4, time_limit=50.0), b.submit(4, time_limit=50.0)
    long, short = b.submit(1, time_limit=101.0), b.submit(1, time_limit=100.0)
    assert short in b.running and long not in b.running, "one is over before anybody's booking, one would delay two"
    assert b.engine.bookings is not None
    told = [b.engine.bookings.start_of(b.job(job)) for job in (wide, next_one, long)]
    assert [None if at is None else at - b.now for at in told] == [100.0, 150.0, None]
    cause = why.explain(b.engine, b.job(long))
    assert cause is not None and cause.code is why.Code.PRIORITY and cause.ahead == wide


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=14),
    st.integers(1, 3),
)
def test_everybody_gets_a_turn_and_no_booking_gets_later(jobs: list[tuple[int, int, int]], depth: int) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(bookings, "DEPTH", depth)
    try:
        b = Box("4", policy=CONSERVATIVE)
        promised: dict[int, float] = {}

        def look() -> None:
            assert b.engine.bookings is not None
            for job in list(b.engine.queue):
                at = b.engine.bookings.start_of(job)
                if at is not None:
                    assert at <= promised.get(job.id, at)
                    promised[job.id] = at
            for number, running in b.engine.running.items():
                lease = running.lease
                assert lease is not None and lease.granted_at <= promised.get(number, lease.granted_at)

        def go_on(until: float) -> None:
            """Jobs run for as long as their limits allow."""
            while over := [each.lease.expires_at for each in b.engine.running.values() if each.lease]:
                at = min(each for each in over if each is not None)
                if at > until:
                    break
                b.wait(at - b.now)
                for job in [each for each in b.engine.running.values() if each.lease and each.lease.expires_at == at]:
                    b.release(job.id, 0)
                look()
            b.wait(max(0.0, until - b.now))
            look()

        for gpus, limit, pause in jobs:
            b.submit(gpus, time_limit=float(limit))
            look()
            go_on(b.now + pause)
        go_on(b.now + 1000)
        assert not len(b.engine.queue) and not b.engine.running
    finally:
        patch.undo()


def test_the_first_of_equal_jobs_is_told_what_it_waits_for(box: Callable[..., Box]) -> None:
    b = box("4", policy=PolicySettings(order="fifo", backfill="conservative"))
    b.submit(4, time_limit=100.0)
    first = b.submit(2, time_limit=10.0)
    b.submit(2, time_limit=10.0)
    assert b.why(first).message == "needs 2 GPUs, 0 free; GPU 0,1,2,3 held by alice"


def starts(b: Box) -> dict[int, float]:
    assert b.engine.bookings is not None
    told = {job.id: b.engine.bookings.start_of(job) for job in b.engine.queue}
    return {number: at - 1000.0 for number, at in told.items() if at is not None}


def test_who_comes_forward_leaves_a_place_to_those_before_him(box: NewBox) -> None:
    """Compressed once at each end: the wide one can only come once the narrow one behind it has."""
    b = box("2", policy=CONSERVATIVE)
    first = b.submit(2, time_limit=36000.0)
    second = b.submit(1, time_limit=36000.0)
    wide, narrow = b.submit(2, time_limit=21600.0), b.submit(1, time_limit=36000.0)
    b.wait(600)
    b.release(first)
    assert b.running == [second, narrow]
    b.wait(36000)
    b.told(second)
    b.told(narrow)
    b.release(second)
    b.release(narrow)
    assert wide in b.running, "two ends in time, and nobody is in its way"


def test_another_limit_is_another_booking(box: NewBox) -> None:
    b = box("2", policy=CONSERVATIVE)
    b.submit(2, time_limit=10.0)
    long, short = b.submit(2, time_limit=1000.0), b.submit(2, time_limit=10.0)
    assert starts(b) == {long: 10.0, short: 1010.0}
    b.happen(ev.Update(long, time_limit=20.0))
    assert starts(b) == {long: 10.0, short: 30.0}, "the one behind comes forward"
    b.happen(ev.Update(long, time_limit=2000.0))
    assert starts(b) == {short: 10.0, long: 40.0}, "what others were promised is not worse for it"


def test_who_needs_other_gpus_is_behind_nobody(box: NewBox) -> None:
    b = box("2xH100", "2xA100", policy=CONSERVATIVE)
    b.submit(4, user="bob")
    one, other = b.submit(1, model="h100"), b.submit(1, model="a100")
    behind = b.submit(2, model="a100")
    assert b.why(one).code is why.Code.RESOURCES and b.why(other).code is why.Code.RESOURCES
    assert b.why(behind).ahead == other
