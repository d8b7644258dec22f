"""The ranked list against a plain sorted list."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gpusched.scheduler.core.ordered import RankedList

keys = st.tuples(st.integers(0, 12), st.integers(0, 3))


class RankedListAgainstOracle(RuleBasedStateMachine):
    """Small blocks, so that they split and vanish all the time."""

    block = 2

    def __init__(self) -> None:
        super().__init__()
        self.ranked: RankedList[tuple[int, int]] = RankedList(self.block)
        self.oracle: list[tuple[int, int]] = []

    @rule(key=keys)
    def add(self, key: tuple[int, int]) -> None:
        if key in self.oracle:
            with pytest.raises(ValueError, match="there already"):
                self.ranked.add(key)
        else:
            self.ranked.add(key)
            self.oracle = sorted([*self.oracle, key])

    @rule(key=keys)
    def remove(self, key: tuple[int, int]) -> None:
        if key in self.oracle:
            self.ranked.remove(key)
            self.oracle.remove(key)
        else:
            with pytest.raises(KeyError):
                self.ranked.remove(key)

    @rule(key=keys)
    def look(self, key: tuple[int, int]) -> None:
        assert (key in self.ranked) == (key in self.oracle)
        assert self.ranked.rank(key) == sum(other < key for other in self.oracle)
        assert self.ranked.after(key) == next((other for other in self.oracle if other > key), None)

    @invariant()
    def equal(self) -> None:
        assert list(self.ranked) == self.oracle
        assert len(self.ranked) == len(self.oracle)
        assert bool(self.ranked) == bool(self.oracle)
        assert self.ranked.first() == (self.oracle[0] if self.oracle else None)
        assert [self.ranked.rank(key) for key in self.oracle] == list(range(len(self.oracle)))
        blocks = self.ranked._blocks
        assert all(0 < len(block) <= self.block for block in blocks)
        assert self.ranked._lasts == [block[-1] for block in blocks]


class WithTinyBlocks(RankedListAgainstOracle):
    block = 1


class WithOddBlocks(RankedListAgainstOracle):
    block = 5


for _machine in (RankedListAgainstOracle, WithTinyBlocks, WithOddBlocks):
    _machine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestBlocksOfTwo = RankedListAgainstOracle.TestCase
TestBlocksOfOne = WithTinyBlocks.TestCase
TestBlocksOfFive = WithOddBlocks.TestCase


@given(st.lists(keys, unique=True), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_filled_and_emptied_in_any_order(wanted: list[tuple[int, int]], block: int, random: object) -> None:
    ranked: RankedList[tuple[int, int]] = RankedList(block)
    for key in wanted:
        ranked.add(key)
    assert list(ranked) == sorted(wanted)
    left = sorted(wanted)
    random.shuffle(wanted)  # type: ignore[attr-defined]
    for key in wanted:
        assert ranked.rank(key) == left.index(key)
        ranked.remove(key)
        left.remove(key)
    assert not ranked and ranked.first() is None and ranked.after((0, 0)) is None and ranked.rank((0, 0)) == 0


def test_an_element_is_found_without_walking_the_list() -> None:
    """Cost in comparisons: about log2(n), and far below n, with ten thousand keys."""

    class Counted(tuple[int]):
        compared = 0

        def __lt__(self, other: object) -> bool:
            Counted.compared += 1
            return tuple.__lt__(self, other)  # type: ignore[operator]

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return tuple.__eq__(self, other)

        __hash__ = tuple.__hash__

    ranked: RankedList[Counted] = RankedList()
    for number in range(10_000):
        ranked.add(Counted((number,)))
    for key in (Counted((0,)), Counted((5_000,)), Counted((9_999,))):
        Counted.compared = 0
        ranked.rank(key)
        ranked.after(key)
        ranked.remove(key)
        ranked.add(key)
        assert Counted.compared < 150
