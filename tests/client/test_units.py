import pickle
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.client.units import (
    duration_seconds,
    format_duration,
    format_size,
    parse_duration,
    parse_signal,
    parse_size,
)
from gpusched.client.usage import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("1h 30m", 5400), ("45", 45), ("45s", 45), ("3d", 259200),
        ("1.5h", 5400), ("500ms", 0.5), ("2w", 1209600), ("10 minutes", 600), ("0", 0), (" 7 ", 7), ("0.25", 0.25),
        ("00:10:00", 600), ("1-12:00:00", 129600), ("1-12", 129600), ("1-12:30", 131400), ("10:30", 630),
        ("48:00:00", 172800), ("3650d", 315360000),
    ],
)  # fmt: skip
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "-5", "-1h", "nan", "inf", "1e9", "h", "5x", "1h1h", "1:2:3:4", "1-", ":", "1d-2", "3651d", "9" * 200,
     "999999999999999", "٣s", "5m\n5m!", "1,5h", "0x10"],
)  # fmt: skip
def test_nonsense_durations(text):
    with pytest.raises(UsageError, match=r"^time: .*give a duration such as 45s, 90m, 2h") as caught:
        parse_duration(text, "time")
    assert len(str(caught.value)) < 300


def test_other_kinds_of_duration():
    assert duration_seconds(3) == 3.0
    assert duration_seconds("1m") == 60.0
    assert duration_seconds(timedelta(hours=1)) == 3600.0
    for bad in (-1, float("nan"), float("inf"), timedelta(seconds=-1), True, None, [1], 1e12):
        with pytest.raises(UsageError, match=r"^max_wait: "):
            duration_seconds(bad, "max_wait")


@pytest.mark.parametrize(
    ("text", "size"),
    [("40G", 40 * 2**30), ("40GiB", 40 * 2**30), ("40GB", 40 * 2**30), ("40 gb", 40 * 2**30), ("512M", 2**29),
     ("1.5T", 3 * 2**39), ("0", 0), ("42949672960", 42949672960), (4096, 4096), (0, 0), ("2048K", 2**21)],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "40X", "40GG", "4e9", "nan", "2000T", -1, 2**60, 1.5, True, None])
def test_nonsense_sizes(text):
    with pytest.raises(UsageError, match=r"^gpu_memory: .*give a size such as 40G"):
        parse_size(text, "gpu_memory")


def test_forgotten_unit():
    with pytest.raises(UsageError, match="is the unit missing"):
        parse_size("40")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.4, "0s"), (45, "45s"), (59.6, "1m"), (90, "1m30s"), (7500, "2h05m"), (7200, "2h"),
     (3 * 86400 + 4 * 3600, "3d04h"), (-3, "0s"), (float("nan"), "0s")],
)  # fmt: skip
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (2**29, "512 MiB"), (80 * 2**30, "80 GiB"), (12025908428, "11.2 GiB"),
     (2**30 - 1, "1 GiB"), (2**41, "2 TiB"), (2**52, "4096 TiB"), (-5, "0 B")],
)  # fmt: skip
def test_format_size(size, text):
    assert format_size(size) == text


@given(st.text(max_size=20))
def test_no_text_makes_anything_but_a_number_or_a_usage_error(text):
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except UsageError as error:
            assert error.field


@pytest.mark.parametrize(
    ("text", "signal"),
    [("USR1@60", ("USR1", 60)), ("sigterm@2m", ("TERM", 120)), ("INT", ("INT", 60)), (" HUP @ 1.5 ", ("HUP", 1.5))],
)
def test_signals(text, signal):
    assert parse_signal(text) == signal


@pytest.mark.parametrize("text", ["", "@5", "USR1@", "USR1@0", "USR1@-5", "USR1@soon", "US\x1bR1@5", "A B@5", "Ü@5", 9])
def test_what_is_no_signal_is_named(text):
    with pytest.raises(UsageError) as caught:
        parse_signal(text, "--signal")
    assert caught.value.field == "--signal"


@given(st.integers(0, 86400 * 3000))
def test_formatted_durations_read_back_nearly(seconds):
    again = parse_duration(format_duration(seconds))
    assert abs(again - seconds) <= max(1.0, seconds / 24)


def test_usage_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UsageError("f", 3, "x")))
    assert (error.field, error.value, str(error)) == ("f", 3, "f: 3 will not do: x")
