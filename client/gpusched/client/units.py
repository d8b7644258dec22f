"""Durations and sizes as people write them, and back."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from gpusched.client.usage import UsageError

LONGEST_SECONDS = 10 * 365 * 86400.0
"""Ten years: a longer duration is a slip of the finger."""

LARGEST_BYTES = 2**50
SMALLEST_TEXT_BYTES = 2**20

DURATION_ALLOWED = "give a duration such as 45s, 90m, 2h, 1h30m, 3d, 00:10:00 or 1-12:00:00 (at most 10 years)"
SIGNAL_ALLOWED = "give a signal, and how long before the end it is to come, such as USR1@60s"
DEFAULT_NOTICE_SECONDS = 60.0
LONGEST_NOTICE_SECONDS = 86400.0
SIGNALS = ("HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "CONT", "XCPU", "WINCH")
"""What may be asked for, as the scheduler has it; a lease inside a lease is checked by nobody else."""

SIZE_ALLOWED = "give a size such as 40G, 40GiB or 512M (G is 2**30 bytes), or a number of bytes"

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_UNIT_NAMES = {
    "sec": "s", "secs": "s", "second": "s", "seconds": "s", "min": "m", "mins": "m", "minute": "m", "minutes": "m",
    "hr": "h", "hrs": "h", "hour": "h", "hours": "h", "day": "d", "days": "d", "week": "w", "weeks": "w",
}  # fmt: skip
_PART = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]+)\s*")
_NEGATIVE = re.compile(r"-\s*\.?\d")
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,9})?")
_CLOCK = re.compile(r"(?:(\d{1,5})-)?(\d{1,5})(?::(\d{1,5}))?(?::(\d{1,5}))?")
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*([a-z]*)")
_SIZE_BYTES = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_duration(text: str, field: str = "duration") -> float:
    """Seconds from `45`, `45s`, `90m`, `1h30m`, `3d`, Slurm's `MM:SS`, `HH:MM:SS`, `D-HH[:MM[:SS]]`.

    Args:
        text: the duration; a bare number is seconds.
        field: named in the error.

    Raises:
        UsageError: if it is none of these, negative, or longer than ten years.
    """
    cleaned = text.strip().lower() if text.isascii() and len(text) < 100 else ""
    if _NUMBER.fullmatch(cleaned):
        return _checked_seconds(float(cleaned), text, field)
    if (clock := _CLOCK.fullmatch(cleaned)) and ("-" in cleaned or ":" in cleaned):
        return _checked_seconds(_clock_seconds(clock), text, field)
    total, end, seen = 0.0, 0, set()
    while part := _PART.match(cleaned, end):
        unit = _UNIT_NAMES.get(part[2], part[2])
        if unit not in _UNIT_SECONDS or unit in seen:
            break
        seen.add(unit)
        total += float(part[1]) * _UNIT_SECONDS[unit]
        end = part.end()
    if not cleaned or end != len(cleaned):
        why = "it must not be below 0; " if _NEGATIVE.match(cleaned) else ""
        raise UsageError(field, text, f"{why}{DURATION_ALLOWED}")
    return _checked_seconds(total, text, field)


def duration_seconds(value: str | float | timedelta, field: str = "duration") -> float:
    """Seconds from text (see `parse_duration`), a number of seconds, or a timedelta. Raises UsageError."""
    if isinstance(value, str):
        return parse_duration(value, field)
    if isinstance(value, timedelta):
        return _checked_seconds(value.total_seconds(), value, field)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(field, value, f"{DURATION_ALLOWED}, a number of seconds, or a timedelta")
    return _checked_seconds(value, value, field)


def parse_signal(text: str, field: str = "signal") -> tuple[str, float]:
    """Name and seconds from `USR1@60`, `SIGUSR1@2m`, or `USR1` alone for 60 seconds.

    Args:
        text: a signal, and how long before the end it is sent.
        field: named in the error.

    Raises:
        UsageError: if it is none of these, or no signal that may be asked for.
    """
    name, at, before = text.strip().partition("@") if isinstance(text, str) else ("", "", "")
    name = name.strip().upper().removeprefix("SIG")
    if not (name.isascii() and name.isalnum()) or len(name) > 20 or (at and not before):
        raise UsageError(field, text, SIGNAL_ALLOWED)
    if name not in SIGNALS:
        raise UsageError(field, text, f"{SIGNAL_ALLOWED}; the signals are {', '.join(SIGNALS)}")
    seconds = parse_duration(before, field) if at else DEFAULT_NOTICE_SECONDS
    if not 0 < seconds <= LONGEST_NOTICE_SECONDS:
        most = format_duration(LONGEST_NOTICE_SECONDS)
        raise UsageError(field, text, f"{SIGNAL_ALLOWED}; the time is more than 0, and at most {most}")
    return name, seconds


def parse_size(value: str | int, field: str = "size") -> int:
    """Bytes from `40G`, `40GiB`, `40GB`, `512M` (all powers of two, as GPU memory is spoken of) or a number of bytes.

    Raises:
        UsageError: if it is none of these, negative, larger than 1 PiB, or text that comes to less than 1 MiB
            (a forgotten unit: `40` for `40G`).
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise UsageError(field, value, SIZE_ALLOWED)
    if isinstance(value, int):
        if not 0 <= value <= LARGEST_BYTES:
            raise UsageError(field, value, f"{SIZE_ALLOWED}, from 0 to 2**50")
        return value
    cleaned = value.strip().lower() if value.isascii() and len(value) < 100 else ""
    match = _SIZE.fullmatch(cleaned)
    unit = "?" if match is None else match[2]
    if len(unit) > 1:
        unit = unit.removesuffix("ib") if unit.endswith("ib") else unit.removesuffix("b")
    if match is None or unit not in _SIZE_BYTES:
        raise UsageError(field, value, SIZE_ALLOWED)
    size = float(match[1]) * _SIZE_BYTES[unit] if "." in match[1] else int(match[1]) * _SIZE_BYTES[unit]
    if size > LARGEST_BYTES:
        raise UsageError(field, value, f"{SIZE_ALLOWED}, at most 1024T")
    if 0 < size < SMALLEST_TEXT_BYTES:
        raise UsageError(field, value, f"that is less than 1 MiB, is the unit missing? {SIZE_ALLOWED}")
    return int(size)


def format_duration(seconds: float) -> str:
    """A duration for people, two units at most: `0s`, `45s`, `1m30s`, `2h05m`, `3d04h`."""
    whole = max(0, int(seconds + 0.5)) if math.isfinite(seconds) else 0
    for unit, name, lesser, lesser_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit:
            rest = whole % unit // lesser
            return f"{whole // unit}{name}{rest:02d}{lesser_name}" if rest else f"{whole // unit}{name}"
    return f"{whole}s"


def format_size(count: int) -> str:
    """A size for people: `0 B`, `512 MiB`, `11.2 GiB`, `80 GiB`."""
    size, units = float(max(0, count)), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1023.95 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.1f}".removesuffix(".0") + f" {units[0]}"


def _clock_seconds(match: re.Match[str]) -> float:
    days, first, second, third = match.groups()
    if days is not None:  # D-HH[:MM[:SS]]
        hours, minutes, seconds = int(first), int(second or 0), int(third or 0)
    elif third is not None:  # HH:MM:SS
        hours, minutes, seconds = int(first), int(second), int(third)
    else:  # MM:SS
        hours, minutes, seconds = 0, int(first), int(second)
    return int(days or 0) * 86400.0 + hours * 3600.0 + minutes * 60.0 + seconds


def _checked_seconds(seconds: float, given: object, field: str) -> float:
    if not math.isfinite(seconds) or not 0 <= seconds <= LONGEST_SECONDS:
        raise UsageError(field, given, DURATION_ALLOWED)
    return float(seconds)
