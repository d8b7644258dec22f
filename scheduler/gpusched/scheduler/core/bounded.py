"""A sorted list of keys with a number each, that finds the next key whose number is small enough."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=tuple[Any, ...])

_BLOCK = 128
_INFINITY = float("inf")


class BoundedList(Generic[K]):
    """Distinct keys in ascending order, each with a number.

    Blocks of bounded size, each with the least of its numbers, so that `after` passes over a block at a time.

    Args:
        block: largest number of keys in a block (for tests).
    """

    __slots__ = ("_block", "_keys", "_lasts", "_least", "_numbers", "_size")

    def __init__(self, block: int = _BLOCK) -> None:
        self._block = block
        self._keys: list[list[K]] = []
        self._numbers: list[list[float]] = []
        self._least: list[float] = []
        self._lasts: list[K] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        return self._size > 0

    def __iter__(self) -> Iterator[K]:
        for block in self._keys:
            yield from block

    def first(self) -> K | None:
        """The least key, None if empty."""
        return self._keys[0][0] if self._size else None

    def after(self, key: K | None, most: float = _INFINITY) -> K | None:
        """The least key greater than `key` (None: of all) whose number is at most `most`, None if there is none."""
        if not self._size:
            return None
        block = 0 if key is None else bisect_right(self._lasts, key)
        if block == len(self._keys):
            return None
        keys = self._keys[block]
        start = 0 if key is None else bisect_right(keys, key)
        if most == _INFINITY:
            # The block's last key is greater than `key`, so there is one.
            return keys[start]
        while True:
            if self._least[block] <= most:
                numbers = self._numbers[block]
                for i in range(start, len(numbers)):
                    if numbers[i] <= most:
                        return self._keys[block][i]
            block += 1
            if block == len(self._keys):
                return None
            start = 0

    def add(self, key: K, number: float) -> None:
        """Insert a key.

        Raises:
            ValueError: it is there already.
        """
        if not self._size:
            self._keys, self._numbers, self._least, self._lasts = [[key]], [[number]], [number], [key]
            self._size = 1
            return
        lasts = self._lasts
        if key > lasts[-1]:
            b = len(lasts) - 1
            keys, numbers = self._keys[b], self._numbers[b]
            keys.append(key)
            numbers.append(number)
            lasts[b] = key
        else:
            b = bisect_left(lasts, key)
            keys, numbers = self._keys[b], self._numbers[b]
            i = bisect_left(keys, key)
            if keys[i] == key:
                raise ValueError(f"key {key!r} is there already")
            keys.insert(i, key)
            numbers.insert(i, number)
        if number < self._least[b]:
            self._least[b] = number
        self._size += 1
        if len(keys) > self._block:
            half = len(keys) // 2
            self._keys[b : b + 1] = [keys[:half], keys[half:]]
            self._numbers[b : b + 1] = [numbers[:half], numbers[half:]]
            self._least[b : b + 1] = [min(numbers[:half]), min(numbers[half:])]
            self._lasts[b : b + 1] = [keys[half - 1], keys[-1]]

    def remove(self, key: K) -> int:
        """Take a key out. Returns how many are left.

        Raises:
            KeyError: it is not there.
        """
        b = bisect_left(self._lasts, key)
        if b < len(self._keys):
            keys, numbers = self._keys[b], self._numbers[b]
            i = bisect_left(keys, key)
            if keys[i] == key:
                del keys[i]
                number = numbers.pop(i)
                self._size -= 1
                if not keys:
                    del self._keys[b], self._numbers[b], self._least[b], self._lasts[b]
                else:
                    self._lasts[b] = keys[-1]
                    if number == self._least[b]:
                        self._least[b] = min(numbers)
                return self._size
        raise KeyError(key)
