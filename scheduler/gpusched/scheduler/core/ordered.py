"""A sorted list that knows the rank of each element: insert, remove and rank in O(log n).

Elements lie in sorted blocks of bounded size; a Fenwick tree over the block sizes gives the number of
elements before a block. Blocks split and vanish rarely, and only then is the tree rebuilt, so its cost
spread over the inserts is below that of the insert itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=tuple[Any, ...])

_BLOCK = 512


class RankedList(Generic[K]):
    """Distinct keys in ascending order.

    Args:
        block: largest number of keys in a block (for tests).
    """

    __slots__ = ("_block", "_blocks", "_lasts", "_size", "_tree")

    def __init__(self, block: int = _BLOCK) -> None:
        self._block = block
        self._blocks: list[list[K]] = []
        self._lasts: list[K] = []  # greatest key of each block
        self._tree: list[int] = [0]  # out of date while there is one block, before which there is nothing
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        return self._size > 0

    def __iter__(self) -> Iterator[K]:
        for block in self._blocks:
            yield from block

    def __contains__(self, key: K) -> bool:
        b = bisect_left(self._lasts, key)
        if b == len(self._blocks):
            return False
        block = self._blocks[b]
        return block[bisect_left(block, key)] == key

    def first(self) -> K | None:
        """The least key, None if empty."""
        return self._blocks[0][0] if self._size else None

    def after(self, key: K) -> K | None:
        """The least key greater than `key`, which need not be in the list."""
        if not self._blocks:
            return None
        b = bisect_left(self._lasts, key)
        if b == len(self._blocks):
            return None
        block = self._blocks[b]
        i = bisect_left(block, key)
        if block[i] == key:
            i += 1
        if i < len(block):
            return block[i]
        return self._blocks[b + 1][0] if b + 1 < len(self._blocks) else None

    def add(self, key: K) -> None:
        """Insert a key.

        Raises:
            ValueError: it is there already.
        """
        if not self._blocks:
            self._blocks.append([key])
            self._lasts.append(key)
            self._size = 1
            return
        lasts = self._lasts
        if key > lasts[-1]:
            # Who comes last mostly stands last.
            b = len(lasts) - 1
            block = self._blocks[b]
            block.append(key)
            lasts[b] = key
        else:
            b = bisect_left(lasts, key)
            block = self._blocks[b]
            i = bisect_left(block, key)
            if block[i] == key:
                raise ValueError(f"key {key!r} is there already")
            block.insert(i, key)
        self._size += 1
        if len(block) > self._block:
            half = len(block) // 2
            self._blocks.insert(b + 1, block[half:])
            del block[half:]
            self._lasts[b] = block[-1]
            self._lasts.insert(b + 1, self._blocks[b + 1][-1])
            self._rebuild()
        elif len(lasts) > 1:
            self._shift(b, 1)

    def remove(self, key: K) -> None:
        """Take a key out.

        Raises:
            KeyError: it is not there.
        """
        lasts = self._lasts
        b = bisect_left(lasts, key)
        if b == len(lasts):
            raise KeyError(key)
        block = self._blocks[b]
        i = bisect_left(block, key)
        if block[i] != key:
            raise KeyError(key)
        del block[i]
        self._size -= 1
        if block:
            lasts[b] = block[-1]
            if len(lasts) > 1:
                self._shift(b, -1)
        else:
            del self._blocks[b]
            del self._lasts[b]
            self._rebuild()

    def rank(self, key: K) -> int:
        """How many keys are less than `key`, which need not be in the list."""
        if not self._blocks:
            return 0
        b = bisect_left(self._lasts, key)
        if b == len(self._blocks):
            return self._size
        return self._before(b) + bisect_left(self._blocks[b], key)

    def _rebuild(self) -> None:
        sizes = [len(block) for block in self._blocks]
        tree = [0, *sizes]
        for i in range(1, len(tree)):
            parent = i + (i & -i)
            if parent < len(tree):
                tree[parent] += tree[i]
        self._tree = tree

    def _shift(self, block: int, by: int) -> None:
        i = block + 1
        while i < len(self._tree):
            self._tree[i] += by
            i += i & -i

    def _before(self, block: int) -> int:
        total, i = 0, block
        while i:
            total += self._tree[i]
            i &= i - 1
        return total
