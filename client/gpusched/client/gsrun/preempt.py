"""The job is to make room for another one: the command is told, and all of it ended before the lease is taken.

And the signal that a command wants before its end, be it that or its time limit.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpusched.client.gsrun import exits, limit
from gpusched.client.gsrun.loop import Loop
from gpusched.client.gsrun.work import Work

if TYPE_CHECKING:
    from gpusched.v1 import scheduler_pb2

SLACK_SECONDS = 1.0
"""So long before the deadline all is killed, so that the lease can be given back by then."""


def make_room(
    loop: Loop, work: Work, notice: scheduler_pb2.Notice, wish: str, grace: float, say: Callable[[str], None]
) -> None:
    """End the command by a notice's deadline: SIGTERM now, or the signal of its own choice later; and SIGKILL.

    Args:
        loop: of this process.
        work: what runs.
        notice: of a preemption.
        wish: which signal, and how long before the deadline ("USR1@60"); empty for none.
        grace: seconds, where the notice has no deadline.
        say: puts a line on stderr.
    """
    why = f"gsrun: the job is {notice.message}"
    left = grace
    if notice.HasField("deadline"):
        left = max(0.0, until(notice))
    end = time.monotonic() + max(0.0, left - SLACK_SECONDS)
    if not wish:
        until_kill = end - time.monotonic()
        say(f"{why}; ending the command (SIGTERM, and SIGKILL after {until_kill:.3g} s)")
        work.end(exits.LEASE_LOST, notice.message, until_kill)
        return
    name, number, before = _signal(wish)

    def warn() -> None:
        if work.running:
            what = f"the command had its SIG{name}" if work.told else f"sending the command SIG{name}"
            say(f"gsrun: {what}; SIGKILL follows after {end - time.monotonic():.3g} s")
            work.warn(number, exits.LEASE_LOST, notice.message, max(0.0, end - time.monotonic()))

    wait = end - time.monotonic() - before  # so that it has all the time that it asked for
    if wait <= 0:
        say(f"{why}")
        warn()
    elif not loop.has_timer("preempt"):
        say(f"{why}; SIG{name} to the command in {wait:.3g} s, and SIGKILL in {end - time.monotonic():.3g} s")
        loop.set_timer("preempt", wait, warn)


def before_limit(loop: Loop, work: Work, left: float, wish: str, announce: Callable[[str], None]) -> None:
    """Have the command sent the signal of its own choice before its time limit; it may end by itself then.

    Args:
        loop: of this process.
        work: what runs.
        left: seconds to the limit.
        wish: which signal, and how long before ("USR1@60").
        announce: puts a notice on stderr.
    """
    from gpusched.client.units import format_duration

    name, number, before = _signal(wish)
    end = time.monotonic() + left

    def warn() -> None:
        if work.tell(number):
            announce(f"sent the command SIG{name}; its time limit ends in {format_duration(end - time.monotonic())}")

    limit.warn_before(loop, left, before, lambda: limit.has_handler(work.pid, number), warn)


def until(notice: scheduler_pb2.Notice) -> float:
    """Seconds to a notice's deadline."""
    return notice.deadline.ToNanoseconds() / 1e9 - time.time()


def _signal(wish: str) -> tuple[str, signal.Signals, float]:
    from gpusched.client.units import parse_signal

    name, before = parse_signal(wish, "--signal")
    return name, signal.Signals[f"SIG{name}"], before
