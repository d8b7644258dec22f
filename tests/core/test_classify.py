"""Whose processes on a GPU are, by rule; how that is said is in tests/inventory/test_classify.py."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.scheduler.core.classify import Tenant, classify, classify_shared, descends_from, format_bytes
from gpusched.scheduler.core.model import Condition, Holder, ProcessReading

GIB = 2**30
CHAINS = st.lists(st.tuples(st.integers(2, 6), st.integers(0, 2)), max_size=4, unique=True)


@st.composite
def readings(draw: st.DrawFn) -> ProcessReading:
    chain = tuple(draw(CHAINS))
    pid, start = chain[0] if chain else (draw(st.integers(2, 6)), draw(st.integers(0, 2)))
    return ProcessReading(pid, start, draw(st.integers(0, 2)), "eve", "python", draw(st.integers(0, 3)), chain)


def links(process: ProcessReading) -> Iterable[tuple[int, int]]:
    return process.ancestors or [(process.pid, process.start_ticks)]


def matches(process: ProcessReading, known: Iterable[tuple[int, int]]) -> bool:
    """Any link of the chain is one of the known; a start time of 0 is not known and fits any."""
    return any(a == c and (b == d or not b or not d) for a, b in links(process) for c, d in known)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(readings(), max_size=4),
    st.none() | st.builds(Holder, st.integers(2, 6), st.integers(0, 2)),
    st.frozensets(st.tuples(st.integers(2, 6), st.integers(0, 2)), max_size=3),
    st.none() | st.integers(0, 2),
    st.booleans(),
)
def test_every_process_is_put_down_to_somebody(
    processes: list[ProcessReading],
    leased_to: Holder | None,
    known: frozenset[tuple[int, int]],
    previous_uid: int | None,
    sick: bool,
) -> None:
    found = classify(
        processes,
        gpu="GPU 3",
        fault="Xid 79" if sick else "",
        leased_to=leased_to,
        known_pids=known,
        previous_uid=previous_uid,
    )
    assert sorted(map(id, processes)) == sorted(map(id, found.attributed + found.leftover + found.foreign))
    for process in found.attributed:
        assert leased_to is not None
        assert matches(process, [*known, (leased_to.pid, leased_to.start_ticks)])
    for process in found.leftover:
        assert leased_to is None and (matches(process, known) or process.uid == previous_uid)
    for process in found.foreign:
        assert not matches(process, known)
        assert leased_to is None or not descends_from(process, leased_to)
        assert leased_to is not None or process.uid != previous_uid
    assert found.condition is (
        Condition.UNHEALTHY
        if sick
        else Condition.DIRTY
        if found.leftover
        else Condition.FOREIGN
        if found.foreign
        else Condition.CLEAN
    )
    assert (found.message == "") == (found.condition is Condition.CLEAN)
    assert found.message == "" or found.message.startswith("GPU 3: ")


@pytest.mark.parametrize(
    ("process", "leftover", "said"),
    [
        (ProcessReading(7), False, "GPU 0: pid 7 (unknown user) is on it, not under a lease"),
        (
            ProcessReading(7, user="eve", command="python", memory_bytes=3 * 2**30),
            False,
            "GPU 0: pid 7 python (eve) holds 3.0 GiB, not under a lease",
        ),
        (ProcessReading(7, uid=5), True, "GPU 0: pid 7 (unknown user) of the last job is still on it"),
        (
            ProcessReading(7, uid=5, user="eve", command="x", memory_bytes=2**20),
            True,
            "GPU 0: pid 7 x (eve) of the last job still holds 1 MiB",
        ),
    ],
)
def test_how_it_is_said(process: ProcessReading, leftover: bool, said: str) -> None:
    assert classify([process], gpu="GPU 0", previous_uid=5 if leftover else None).message == said
    if leftover:
        more = classify([process, process], gpu="GPU 0", previous_uid=5, previous_job=9).message
        assert "of job 9 still" in more or "of job 9 is still" in more
        assert more.endswith(", and 1 more")


def test_sizes() -> None:
    assert [format_bytes(n) for n in (0, 2**20, 1023 * 2**20, 2**30)] == ["1 MiB", "1 MiB", "1023 MiB", "1.0 GiB"]


# -- several leases on one GPU -------------------------------------------------------------------------------


def on(pid: int, *above: int, uid: int = 1000, size: int = GIB) -> ProcessReading:
    """A process and those above it, each started at ten times its pid."""
    chain = tuple((each, 10 * each) for each in (pid, *above))
    return ProcessReading(pid, 10 * pid, uid, "alice", "python", size, chain)


TENANTS = (Tenant(1, Holder(100, 1000)), Tenant(2, Holder(200, 2000), frozenset({(55, 550)})))


def test_each_process_belongs_to_the_lease_that_it_descends_from_or_was_seen_under() -> None:
    found = classify_shared([on(7, 100, 1), on(8, 200, 1), on(55, 1)], gpu="GPU 0", tenants=TENANTS)
    assert found.condition is Condition.CLEAN and found.message == ""
    assert {job: [p.pid for p in own] for job, own in found.attributed.items()} == {1: [7], 2: [8, 55]}


def test_what_an_ended_share_left_is_no_strangers() -> None:
    left = frozenset({(66, 660)})
    found = classify_shared([on(66, 1), on(9, 1)], gpu="GPU 0", tenants=TENANTS, left_pids=left, previous_job=3)
    assert found.condition is Condition.DIRTY and "of job 3 still holds" in found.message
    owner = classify_shared([on(9, 1)], gpu="GPU 0", tenants=TENANTS, previous_uid=1000, previous_job=3)
    assert owner.condition is Condition.DIRTY, "while the last one's leftovers are looked for"
    assert classify_shared([on(9, 1)], gpu="GPU 0", tenants=TENANTS).condition is Condition.FOREIGN


def test_where_a_holder_is_unknown_nobody_is_called_a_stranger() -> None:
    unknown = (*TENANTS, Tenant(3, None))
    assert classify_shared([on(9, 1)], gpu="GPU 0", tenants=unknown).condition is Condition.CLEAN
    sick = classify_shared([on(9, 1)], gpu="GPU 0", tenants=unknown, fault="fell off the bus")
    assert (sick.condition, sick.message) == (Condition.UNHEALTHY, "GPU 0: fell off the bus")
