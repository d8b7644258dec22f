"""The time limit, kept by the holder's own clock: scheduler or no scheduler."""

from __future__ import annotations

from collections.abc import Callable

from gpusched.client.gsrun.loop import Loop

NOTICE_SECONDS = 300.0
"""How long before the end it is announced; a tenth of the limit if that is less."""


def start(loop: Loop, limit: float, left: float, announce: Callable[[str], None], end: Callable[[str], None]) -> None:
    """Have a limit announced and kept.

    Args:
        loop: that the functions are called by.
        limit: seconds, all in all.
        left: seconds of it that are left.
        announce: told in words that the end is near.
        end: told why the work is to end, then.
    """
    from gpusched.client.units import format_duration

    words = f"the time limit of {format_duration(limit)}"
    before = min(NOTICE_SECONDS, limit / 10)
    if before >= 1.0:
        text = f"{words} ends in {format_duration(before)}"
        loop.set_timer("limit notice", left - before, lambda: announce(text))
    loop.set_timer("limit", left, lambda: end(f"{words} is reached"))
