"""What reaches the terminal: nothing that steers it, and nothing wider than it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.client.cli.text import clean, cut, pad, width, wrap


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("train.py", "train.py"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("a\u2028b", "a\\u2028b"),
        ("a\u00a0b\u3000c", "a b c"),
        ("half\ud800", "half\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("naïve 模型 🚀", "naïve 模型 🚀"),
    ],
)
def test_clean_shows_what_would_steer_a_terminal(given: str, shown: str) -> None:
    assert clean(given) == shown


@pytest.mark.parametrize(
    ("text", "columns"),
    [("", 0), ("abc", 3), ("é", 1), ("e\u0301", 1), ("模型", 4), ("ｆｕｌｌ", 8), ("🚀", 2), ("…", 1)],
)
def test_width_counts_columns_not_characters(text: str, columns: int) -> None:
    assert width(text) == columns


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "abcd…"),
        ("abcdef", 1, "…"),
        ("abcdef", 0, ""),
        ("模型模型", 5, "模型…"),
        ("模型模型", 4, "模…"),
    ],
)
def test_cut_marks_what_is_missing(text: str, columns: int, shown: str) -> None:
    assert cut(text, columns) == shown


@given(st.text(), st.integers(0, 30))
def test_cut_never_runs_over_and_pad_fills_up(text: str, columns: int) -> None:
    short = cut(clean(text), columns)
    assert width(short) <= columns
    assert width(pad(short, columns)) == columns
    assert pad(short, columns, right=True).endswith(short)


def test_wrap_breaks_at_spaces_and_long_words() -> None:
    assert wrap("needs 4 GPUs, 1 free", 12) == ["needs 4", "GPUs, 1 free"]
    assert wrap("abcdefgh ij", 3) == ["abc", "def", "gh", "ij"]
    assert wrap("one line", None, "  ") == ["  one line"]
    assert wrap("", 10) == [""]


@given(st.text(), st.integers(1, 40), st.sampled_from(["", "  "]))
def test_wrap_loses_nothing(text: str, columns: int, indent: str) -> None:
    lines = wrap(clean(text), columns, indent)
    assert "".join(lines).replace(" ", "") == clean(text).replace(" ", "")
    # A wide character does not fit into one column, whatever is done.
    assert all(width(line) <= max(columns, len(indent) + 2) for line in lines)
