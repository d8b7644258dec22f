"""The time limit, kept by the holder's own clock: scheduler or no scheduler."""

from __future__ import annotations

from collections.abc import Callable

from gpusched.client.gsrun.loop import Loop

NOTICE_SECONDS = 300.0
"""How long before the end it is announced; a tenth of the limit if that is less."""
LOOK_SECONDS = 0.1
SIGNAL_TIMER = "limit signal"


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


def warn_before(loop: Loop, left: float, before: float, caught: Callable[[], bool], warn: Callable[[], None]) -> None:
    """Have a command that has just started sent the signal of its choice before its limit.

    Where the limit is nearer than that, at once: as soon as there is a handler. A command that is just starting has
    none yet, and would die of what is to save its work.

    Args:
        loop: that calls the functions.
        left: seconds to the limit.
        before: so long before it.
        caught: whether the command has a handler now.
        warn: sends the signal.
    """
    if left <= 0:
        return
    if left > before or caught():
        loop.set_timer(SIGNAL_TIMER, max(0.0, left - before), warn)
        return

    def look() -> None:
        if caught():
            warn()
        else:
            loop.set_timer(SIGNAL_TIMER, LOOK_SECONDS, look)

    loop.set_timer(SIGNAL_TIMER, LOOK_SECONDS, look)


def has_handler(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; False if that cannot be seen."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            caught = next(line.split()[1] for line in file if line.startswith(b"SigCgt:"))
        return bool(int(caught, 16) >> (number - 1) & 1)
    except (OSError, StopIteration, ValueError, IndexError):
        return False
