"""How well the GPUs of one node are connected, and which of them go best together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

#: Up to so many free GPUs every choice is tried; beyond, a good one is grown.
EXACT = 8
#: Most starting points of a choice that is grown.
_SEEDS = 32
#: Most answers remembered, of each kind. A node of 8 GPUs has 2048 questions at most (free ones, how many).
_MAX_REMEMBERED = 8192


class Links:
    """Scores of all pairs of one node's GPUs, and the choices made by them, which are remembered.

    A choice `S` out of the free GPUs `F` for a request of `k` is worth `w(S) + best(F - S)`: the scores within it,
    plus those within the best partition of what is left into further sets of `k` (pairs, for `k` = 1). So a good pair
    is neither torn apart by a request for one GPU nor spent on a request that a lesser one serves as well. Of choices
    worth the same, the one with the highest `w(S)`; then the one that leaves the most within the rest as a whole; then
    the lowest numbers.

    Args:
        scores: a row for each GPU, symmetric; the diagonal is not looked at.
    """

    def __init__(self, scores: Sequence[Sequence[int]]) -> None:
        self._scores = scores
        self._chosen: dict[tuple[int, int, int], tuple[int, ...]] = {}
        self._worth: dict[tuple[int, int], int] = {}

    def weight(self, positions: Sequence[int]) -> int:
        """The scores of all pairs among some GPUs, added up."""
        scores = self._scores
        return sum(scores[one][other] for number, one in enumerate(positions) for other in positions[:number])

    def choose(self, usable: Sequence[int], free: Sequence[int], count: int) -> tuple[int, ...]:
        """The best so many of the usable GPUs.

        Args:
            usable: those that may be chosen, ascending, at least `count`.
            free: all that are free, ascending, the usable ones among them.
            count: how many, at least 1.

        Returns:
            Ascending positions.
        """
        key = (_mask(usable), _mask(free), count)
        found = self._chosen.get(key)
        if found is None:
            found = self._exact(usable, free, count) if len(free) <= EXACT else self._grown(usable, free, count)
            _bounded(self._chosen)[key] = found
        return found

    def value(self, chosen: Sequence[int], free: Sequence[int]) -> int:
        """What a choice is worth: its own links and those that the rest can still offer to further such requests."""
        return self.weight(chosen) + self.worth(_mask(free) & ~_mask(chosen), max(2, len(chosen)))

    def worth(self, mask: int, size: int) -> int:
        """The highest score of a partition into sets of one size and a smaller one for the remainder.

        Args:
            mask: the GPUs, as bits.
            size: of the sets, at least 2.
        """
        positions = tuple(_positions(mask))
        if len(positions) <= size:
            return self.weight(positions)
        found = self._worth.get((mask, size))
        if found is None:
            first, rest = positions[0], positions[1:]
            # The lowest is in a full set, or in the smaller one.
            sizes = {size, len(positions) % size or size}
            found = max(
                self.weight((first, *others)) + self.worth(mask & ~_mask((first, *others)), size)
                for each in sizes
                for others in combinations(rest, each - 1)
            )
            _bounded(self._worth)[mask, size] = found
        return found

    def _exact(self, usable: Sequence[int], free: Sequence[int], count: int) -> tuple[int, ...]:
        # In ascending order, of which `max` keeps the first of equals.
        return max(
            combinations(usable, count),
            key=lambda chosen: (
                self.value(chosen, free),
                self.weight(chosen),
                self.weight([p for p in free if p not in chosen]),
            ),
        )

    def _grown(self, usable: Sequence[int], free: Sequence[int], count: int) -> tuple[int, ...]:
        """From each of some GPUs on, add whichever has the best links to the chosen and the least to the others."""
        scores = self._scores
        to_free = {p: sum(scores[p][other] for other in free if other != p) for p in usable}

        def grow(seed: int) -> tuple[int, ...]:
            chosen = [seed]
            inside = {p: scores[p][seed] for p in usable if p != seed}
            while len(chosen) < count:
                best = max(inside, key=lambda p: (inside[p], inside[p] - to_free[p], -p))
                del inside[best]
                chosen.append(best)
                for p in inside:
                    inside[p] += scores[p][best]
            return tuple(sorted(chosen))

        def merit(chosen: tuple[int, ...]) -> tuple[int, int]:
            within = self.weight(chosen)
            return within, 2 * within - sum(to_free[p] for p in chosen)  # less is the links that are cut

        return max(map(grow, usable[:_SEEDS]), key=merit)


def _mask(positions: Iterable[int]) -> int:
    mask = 0
    for position in positions:
        mask |= 1 << position
    return mask


def _positions(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _bounded(known: dict[K, V]) -> dict[K, V]:
    """The same, emptied if it has grown too large."""
    if len(known) >= _MAX_REMEMBERED:
        known.clear()
    return known
