"""One clock for the engine: wall time at start, carried on by the monotonic clock, so it never jumps or goes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

#: Shifts below this are drift, in seconds.
_DRIFT = 2.0


class Clock:
    """Seconds since the epoch, as they were at start, plus the monotonic time passed since.

    Args:
        wall: seconds since the epoch; may be set at any time.
        monotonic: seconds since some moment of this boot; never set.
        boot: names the boot.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        boot: str | None = None,
    ) -> None:
        self._monotonic = monotonic
        self._offset = wall() - monotonic()
        self._boot = _boot_id() if boot is None else boot

    def now(self) -> float:
        return self._monotonic() + self._offset

    def mark(self) -> str:
        """What a later clock needs to know of this one."""
        return f"{self._boot} {self._offset!r}"

    def ahead_of(self, mark: str | None) -> float:
        """By how much this clock is ahead of an earlier one, in seconds, as the wall clock was set in between.

        Args:
            mark: of the earlier one, None if there was none. Across a boot nothing can be known: 0.
        """
        boot, _, offset = (mark or "").rpartition(" ")
        if not boot or boot != self._boot:
            return 0.0
        shift = self._offset - float(offset)
        return shift if abs(shift) > _DRIFT else 0.0


def clock_time(at: float) -> str:
    """A time for people, in the machine's own zone: "14:05", with the day where it is not today's."""
    then, today = time.localtime(at), time.localtime()
    same_day = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime(
        "%H:%M" if same_day else "%a %H:%M" if abs(at - time.time()) < 5 * 86400 else "%Y-%m-%d %H:%M", then
    )


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
