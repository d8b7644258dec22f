"""Which GPUs are chosen, on machines whose best choices can be worked out by hand, and against a naive search."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.support import make_nodes
from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.core.links import EXACT, Links
from gpusched.scheduler.core.model import Condition, DeviceInfo, NodeInfo, Placement, Request
from gpusched.scheduler.core.pool import Pool

Scores = tuple[tuple[int, ...], ...]

#: NVLinks of a DGX-1 with V100, as `nvidia-smi topo -m` prints them.
DGX1_NVLINKS = (
    (0, 1, 1, 2, 2, 0, 0, 0),
    (1, 0, 2, 1, 0, 2, 0, 0),
    (1, 2, 0, 2, 0, 0, 1, 0),
    (2, 1, 2, 0, 0, 0, 0, 1),
    (2, 0, 0, 0, 0, 1, 1, 2),
    (0, 2, 0, 0, 1, 0, 2, 1),
    (0, 0, 1, 0, 1, 2, 0, 2),
    (0, 0, 0, 1, 2, 1, 2, 0),
)


def scores(count: int, of: object) -> Scores:
    return tuple(
        tuple(0 if one == other else of(min(one, other), max(one, other)) for other in range(count))  # type: ignore[operator]
        for one in range(count)
    )


DGX1 = scores(8, lambda a, b: 100 * DGX1_NVLINKS[a][b] + (50 if a // 2 == b // 2 else 20 if a // 4 == b // 4 else 10))
#: Two NUMA nodes of four GPUs; on each, two PCIe switches with two GPUs.
ISLANDS = scores(8, lambda a, b: 50 if a // 2 == b // 2 else 20 if a // 4 == b // 4 else 10)
NVSWITCH = scores(8, lambda a, b: 1800)


def machine(links: Scores, name: str = "a", count: int = 8) -> NodeInfo:
    infos = tuple(DeviceInfo(f"{name}{number}", number, name, "H100", 80 << 30) for number in range(count))
    return NodeInfo(name, infos, links=links)


def place(pool: Pool, gpus: int, **more: object) -> list[int] | None:
    """Indices of what a request gets on the only node."""
    found = pool.place(Request(gpus, **more))  # type: ignore[arg-type]
    return None if found is None else [int(uuid[1:]) for uuid in found]


def occupied(links: Scores, *busy: int) -> Pool:
    pool = Pool([machine(links)])
    pool.take([f"a{number}" for number in busy], JobId(1))
    return pool


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_behind_a_switch_the_lowest_do() -> None:
    assert place(occupied(NVSWITCH), 3) == [0, 1, 2]
    assert place(occupied(NVSWITCH, 0, 2), 3) == [1, 3, 4]


@pytest.mark.parametrize(
    ("busy", "gpus", "chosen"),
    [
        # Pairs with two links can cover all eight GPUs; 2-3 and 6-7 share a PCIe switch besides.
        ((), 2, [2, 3]),
        ((2, 3), 2, [6, 7]),
        ((2, 3, 6, 7), 2, [0, 4]),
        ((0, 2, 3, 4, 6, 7), 2, [1, 5]),
        # A quad has nine links within; any other four have fewer.
        ((), 4, [0, 1, 2, 3]),
        ((1,), 4, [4, 5, 6, 7]),
        ((0, 1, 2, 3), 4, [4, 5, 6, 7]),
        # Of three GPUs of a quad with five links each, those two of which share a PCIe switch.
        ((4, 5, 6, 7), 3, [0, 2, 3]),
        # The odd one out: any other choice tears a pair of two links.
        ((0, 1, 2, 3, 4), 1, [5]),
        ((3,), 1, [5]),  # which leaves 0-4, 1-2 and 6-7
        ((), 8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_dgx_1(busy: tuple[int, ...], gpus: int, chosen: list[int]) -> None:
    assert place(occupied(DGX1, *busy), gpus) == chosen


@pytest.mark.parametrize(
    ("busy", "gpus", "chosen"),
    [
        ((), 2, [0, 1]),
        ((0,), 2, [2, 3]),  # not 1 and 2, which share no switch
        ((0, 2), 2, [4, 5]),
        ((), 4, [0, 1, 2, 3]),
        ((1,), 4, [4, 5, 6, 7]),
        ((0,), 1, [1]),  # the one whose partner is gone
        ((4,), 1, [5]),
        ((0, 2), 1, [1]),
        ((2, 3), 2, [0, 1]),  # leaves the other island whole
        ((6, 7), 2, [4, 5]),  # and here, too
        ((0, 4), 3, [1, 2, 3]),
        ((0, 1, 4, 6), 2, [2, 3]),
        ((0, 1, 2, 4, 6), 2, [5, 7]),  # one island still beats two
    ],
)
def test_two_islands(busy: tuple[int, ...], gpus: int, chosen: list[int]) -> None:
    assert place(occupied(ISLANDS, *busy), gpus) == chosen


def test_a_job_is_not_given_bad_links_to_spare_good_ones() -> None:
    """Two pairs with NVLink and one without: the better ones go first, since two such jobs can then have them."""
    bridges = scores(6, lambda a, b: 400 if (a, b) in ((0, 1), (2, 3)) else 10)
    pool = Pool([machine(bridges, count=6)])
    assert place(pool, 2) == [0, 1]
    assert place(pool, 1) == [4]


def test_of_several_nodes_the_better_links_come_before_tightness() -> None:
    pool = Pool([machine(ISLANDS, "a"), machine(NVSWITCH, "b")])
    pool.take(["a0", "a1", "a2", "a3"], JobId(1))
    assert pool.place(Request(2)) == ("b0", "b1"), "though a is fuller"
    assert pool.place(Request(1)) == ("a4",), "links mean nothing to one GPU"


def test_pairs_left_by_others_are_seen_where_only_some_will_do() -> None:
    pool = Pool([machine(ISLANDS)])
    assert pool.place(Request(1, gpu_ids=("a:2", "a:3", "a:4"), exclude=("a5",))) == ("a2",)
    pool.take(["a5"], JobId(1))
    assert pool.place(Request(1, gpu_ids=("a:2", "a:3", "a:4"))) == ("a4",), "2 and 3 go on as a pair"


# -- several nodes ----------------------------------------------------------------------------------------------------


def test_pack_takes_the_fullest_that_holds_it() -> None:
    pool = Pool(make_nodes("4", "2", "4"))
    assert pool.place(Request(2)) == ("b0", "b1")
    assert pool.place(Request(3)) == ("a0", "a1", "a2")
    pool.take(["a0"], JobId(1))
    assert pool.place(Request(1)) == ("b0",)
    assert pool.place(Request(3)) == ("a1", "a2", "a3")


def test_pack_spans_as_few_nodes_as_can_be_and_ends_where_the_rest_fits_best() -> None:
    pool = Pool(make_nodes("2", "4", "3", "1"))
    assert pool.place(Request(5)) == ("b0", "b1", "b2", "b3", "d0")
    assert pool.place(Request(6)) == ("b0", "b1", "b2", "b3", "a0", "a1")
    assert pool.place(Request(10)) is not None and pool.place(Request(11)) is None


def test_spread_goes_round_the_emptiest() -> None:
    pool = Pool(make_nodes("2", "4", "3"))
    spread = Placement.SPREAD
    assert pool.place(Request(1, placement=spread)) == ("b0",)
    assert pool.place(Request(2, placement=spread)) == ("b0", "c0")
    assert pool.place(Request(5, placement=spread)) == ("b0", "b1", "c0", "c1", "a0")
    assert pool.place(Request(8, placement=spread)) == ("b0", "b1", "b2", "c0", "c1", "c2", "a0", "a1")
    assert pool.place(Request(10, placement=spread)) is None


def test_consolidate_waits_rather_than_be_scattered() -> None:
    pool, consolidate = Pool(make_nodes("4", "4", "4")), Placement.CONSOLIDATE
    pool.take(["a0"], JobId(1))
    assert pool.place(Request(3, placement=consolidate)) == ("a1", "a2", "a3")
    assert pool.place(Request(6, placement=consolidate)) == ("b0", "b1", "b2", "b3", "c0", "c1")
    assert pool.place(Request(8, placement=consolidate)) == tuple(f"{n}{i}" for n in "bc" for i in range(4))
    assert pool.place(Request(11, placement=consolidate)) == (
        *(f"{n}{i}" for n in "bc" for i in range(4)),
        "a1",
        "a2",
        "a3",
    )
    pool.take(["b0", "c0"], JobId(2))
    assert pool.place(Request(4, placement=consolidate)) is None, "nine are free, but no four on one node"
    assert pool.place(Request(6, placement=consolidate)) is None, "and no node is wholly free"


def test_so_many_on_each_node() -> None:
    pool = Pool(make_nodes("4", "2", "4", "3"))
    assert pool.place(Request(4, per_node=2)) == ("b0", "b1", "d0", "d1")
    assert pool.place(Request(4, per_node=2, placement=Placement.SPREAD)) == ("a0", "a1", "c0", "c1")
    assert pool.place(Request(9, per_node=3)) is not None
    assert pool.place(Request(12, per_node=3)) is None and pool.place(Request(10, per_node=5)) is None
    assert pool.place(Request(8, per_node=2, nodes=("a", "b", "c"))) is None


def test_what_if_other_devices_were_free() -> None:
    pool = Pool(make_nodes("4", "4"))
    assert pool.place(Request(2), {"b": [1, 3]}) == ("b1", "b3"), "a node that is missing has none"
    assert pool.place(Request(3), {"a": [0], "b": [1, 3]}) == ("b1", "b3", "a0")
    assert pool.place(Request(3), {"a": [], "b": [1, 3]}) is None
    pool.take([f"a{n}" for n in range(4)], JobId(1))
    pool.drain(["b0"], "broken")
    assert pool.place(Request(8)) is None
    assert pool.place_on_idle(Request(8)) is not None
    assert pool.place_on_idle(Request(8), in_service=True) is None
    assert pool.place_on_idle(Request(7), in_service=True) is not None


# -- what will do -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "eligible"),
    [
        (Request(1, nodes=("b",)), {"b0", "b1"}),
        (Request(1, nodes=("b", "gone")), {"b0", "b1"}),
        (Request(1, gpu_ids=("1", "b:0", "a2")), {"a1", "b0", "a2"}),
        (Request(1, gpu_ids=("9",)), set()),
        (Request(1, exclude=("b", "0")), {"a1", "a2"}),
        (Request(1, exclude=("a:1", "b1")), {"a0", "a2", "b0"}),
        (Request(1, labels=(("disk", "nvme"),)), {"b0", "b1"}),
        (Request(1, labels=(("numa", "1"),)), {"a2"}),
        (Request(1, labels=(("disk", "nvme"), ("numa", "1"))), set()),
        (Request(1, node="a", exclude=("a0",), model="h"), {"a1", "a2"}),
    ],
)
def test_conditions(request_: Request, eligible: set[str]) -> None:
    def device(node: str, index: int, *labels: tuple[str, str]) -> DeviceInfo:
        return DeviceInfo(f"{node}{index}", index, node, "H100", 1, labels=labels)

    pool = Pool(
        [
            NodeInfo("a", (device("a", 0), device("a", 1), device("a", 2, ("numa", "1")))),
            NodeInfo("b", (device("b", 0), device("b", 1)), local=False, labels={"disk": "nvme"}),
        ]
    )
    assert pool.eligible(request_) == eligible
    found = pool.place(request_)
    assert (found is None) == (not eligible) and set(found or ()) <= eligible


# -- any machine ------------------------------------------------------------------------------------------------------

SCORES = st.sampled_from([10, 20, 30, 50, 110, 220])


@st.composite
def tables(draw: st.DrawFn, most: int = EXACT) -> Scores:
    count = draw(st.integers(2, most))
    table = {pair: draw(SCORES) for pair in combinations(range(count), 2)}
    return scores(count, lambda a, b: table[a, b])


def weight(table: Scores, group: Sequence[int]) -> int:
    return sum(table[a][b] for a, b in combinations(group, 2))


def naive_worth(table: Scores, rest: frozenset[int], size: int) -> int:
    """The best partition, by trying each order of the GPUs and cutting it."""
    return max(
        sum(weight(table, order[at : at + size]) for at in range(0, len(order), size)) for order in permutations(rest)
    )


@settings(max_examples=60, deadline=None)
@given(table=tables(most=6), data=st.data())
def test_the_choice_is_the_best_that_a_naive_search_finds(table: Scores, data: st.DataObject) -> None:
    free = sorted(data.draw(st.sets(st.integers(0, len(table) - 1), min_size=1)))
    usable = sorted(data.draw(st.sets(st.sampled_from(free), min_size=1)))
    count = data.draw(st.integers(1, len(usable)))

    def merit(chosen: tuple[int, ...]) -> tuple[int, int, int]:
        rest = frozenset(free) - set(chosen)
        return (
            weight(table, chosen) + naive_worth(table, rest, max(2, count)),
            weight(table, chosen),
            weight(table, sorted(rest)),
        )

    found = Links(table).choose(usable, free, count)
    assert set(found) <= set(usable) and list(found) == sorted(found) and len(found) == count
    best = max(merit(chosen) for chosen in combinations(usable, count))
    assert merit(found) == best
    assert found == min(chosen for chosen in combinations(usable, count) if merit(chosen) == best), (
        "the lowest of equals"
    )


@settings(max_examples=60, deadline=None)
@given(table=tables(), order=st.randoms(use_true_random=False), count=st.integers(1, EXACT))
def test_other_numbers_for_the_same_gpus_change_nothing_but_numbers(
    table: Scores, order: random.Random, count: int
) -> None:
    numbers = list(range(len(table)))
    order.shuffle(numbers)
    renumbered = scores(len(table), lambda a, b: table[numbers[a]][numbers[b]])
    count, free = min(count, len(table)), range(len(table))
    links, others = Links(table), Links(renumbered)
    chosen = links.choose(free, free, count)
    meant = tuple(sorted(numbers[p] for p in others.choose(free, free, count)))
    # Which of equally good ones is a matter of numbers, how good they are is not.
    assert links.value(meant, free) == links.value(chosen, free)
    assert links.weight(meant) == links.weight(chosen)


@settings(max_examples=40, deadline=None)
@given(table=tables(most=14), data=st.data())
def test_a_large_node_gets_a_whole_choice_of_what_will_do(table: Scores, data: st.DataObject) -> None:
    free = range(len(table))
    usable = sorted(data.draw(st.sets(st.sampled_from(free), min_size=1)))
    count = data.draw(st.integers(1, len(usable)))
    found = Links(table).choose(usable, free, count)
    assert set(found) <= set(usable) and len(found) == count and list(found) == sorted(found)


def test_on_a_large_node_an_island_is_not_left() -> None:
    table = scores(16, lambda a, b: 50 if a // 4 == b // 4 else 10)
    pool = Pool([machine(table, count=16)])
    assert place(pool, 4) == [0, 1, 2, 3]
    pool.take(["a0"], JobId(1))
    assert place(pool, 4) == [4, 5, 6, 7]
    assert place(pool, 1) == [1], "the one with the fewest good neighbours"
    assert place(pool, 3) == [1, 2, 3], "which leaves the whole islands whole"


REQUESTS = st.builds(
    Request,
    st.integers(1, 9),
    node=st.sampled_from(["", "", "a"]),
    nodes=st.sampled_from([(), (), ("a",), ("a", "b")]),
    gpu_ids=st.sampled_from([(), (), ("0", "b:1", "c2")]),
    exclude=st.sampled_from([(), ("c",), ("a1", "b:0")]),
    per_node=st.sampled_from([0, 0, 1, 2, 3]),
    placement=st.sampled_from(list(Placement)),
)


@settings(max_examples=300, deadline=None)
@given(request_=REQUESTS, busy=st.sets(st.integers(0, 13)), linked=st.booleans())
def test_all_or_none_of_what_is_free_and_will_do(request_: Request, busy: set[int], linked: bool) -> None:
    if request_.per_node and request_.gpus % request_.per_node:
        request_ = Request(request_.per_node, per_node=request_.per_node, placement=request_.placement)
    small = scores(4, lambda a, b: 50 if a // 2 == b // 2 else 10)
    infos = [machine(ISLANDS[:6] if linked else (), "a", 6), machine(small if linked else (), "b", 4)]
    pool = Pool([*infos, machine((), "c", 4)])
    pool.take([uuid for number, uuid in enumerate(pool.devices) if number in busy], JobId(1))
    free = {uuid for uuid, device in pool.devices.items() if pool.is_available(device)} & pool.eligible(request_)
    found = pool.place(request_)
    if found is None:
        assert len(free) < request_.gpus or request_.shaped
        return
    assert len(set(found)) == len(found) == request_.gpus and set(found) <= free
    on = [sum(uuid[0] == name for uuid in found) for name in "abc"]
    room = [sum(uuid[0] == name for uuid in free) for name in "abc"]
    if request_.per_node:
        assert set(on) <= {0, request_.per_node}
    elif request_.placement is Placement.SPREAD:
        assert sum(number > 0 for number in on) == min(request_.gpus, sum(number > 0 for number in room))
    elif request_.placement is Placement.CONSOLIDATE and request_.gpus > max(room):
        # Not the fewest: a wholly free node of 4 comes before 5 free of a node of 6.
        whole = [sum(uuid[0] == name for uuid in pool.eligible(request_)) for name in "abc"]
        assert sum(0 < number < size for number, size in zip(on, whole, strict=True)) <= 1
    else:
        fewest = next(n for n in (1, 2, 3) if sum(sorted(room)[-n:]) >= request_.gpus)
        assert sum(number > 0 for number in on) == fewest


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpusched.scheduler.core.links._MAX_REMEMBERED", 20)
    links = Links(ISLANDS)
    for size in range(2, 7):
        for free in combinations(range(8), size):
            assert len(links.choose(free, free, 1)) == 1
            assert len(links._chosen) <= 20 and len(links._worth) <= 20


def test_devices_come_back() -> None:
    """What is free is told by the very lists that the pool changes."""
    pool = Pool([machine(ISLANDS)])
    pool.take(["a0", "a1"], JobId(1))
    assert place(pool, 2) == [2, 3]
    pool.give_back(["a0", "a1"], Condition.CLEAN)
    pool.take(["a2", "a3"], JobId(2))
    assert place(pool, 2) == [0, 1]
