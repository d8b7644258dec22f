"""The sorted list that finds the next small number, against a plain one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.scheduler.core.bounded import BoundedList

KEYS = st.tuples(st.integers(0, 60))


@given(
    st.lists(st.tuples(st.booleans(), KEYS, st.integers(0, 5)), max_size=80),
    st.one_of(st.none(), KEYS),
    st.integers(-1, 6),
)
def test_it_is_a_sorted_list_with_numbers(
    steps: list[tuple[bool, tuple[int], int]], start: tuple[int] | None, most: int
) -> None:
    ours: BoundedList[tuple[int]] = BoundedList(block=4)
    plain: dict[tuple[int], int] = {}
    for add, key, number in steps:
        if add and key not in plain:
            ours.add(key, float(number))
            plain[key] = number
        elif add:
            with pytest.raises(ValueError, match="already"):
                ours.add(key, 0.0)
        elif key in plain:
            ours.remove(key)
            del plain[key]
        else:
            with pytest.raises(KeyError):
                ours.remove(key)
    assert list(ours) == sorted(plain) and len(ours) == len(plain) and bool(ours) == bool(plain)
    assert ours.first() == min(plain, default=None)
    later = [key for key in sorted(plain) if start is None or key > start]
    assert ours.after(start) == next(iter(later), None)
    assert ours.after(start, float(most)) == next((key for key in later if plain[key] <= most), None)
