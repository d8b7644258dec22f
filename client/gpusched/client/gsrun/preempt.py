"""The job is to make room for another one: the command is told, and all of it ended before the lease is taken."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpusched.client.gsrun import exits
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
        left = max(0.0, notice.deadline.ToNanoseconds() / 1e9 - time.time())
    end = time.monotonic() + max(0.0, left - SLACK_SECONDS)
    if not wish:
        until_kill = end - time.monotonic()
        say(f"{why}; ending the command (SIGTERM, and SIGKILL after {until_kill:.3g} s)")
        work.end(exits.LEASE_LOST, notice.message, until_kill)
        return
    from gpusched.client.units import parse_signal

    name, before = parse_signal(wish, "--signal")
    number = signal.Signals[f"SIG{name}"]

    def warn() -> None:
        if work.running:
            say(f"gsrun: sending the command SIG{name}; SIGKILL follows after {end - time.monotonic():.3g} s")
            work.warn(number, exits.LEASE_LOST, notice.message, max(0.0, end - time.monotonic()))

    wait = end - time.monotonic() - before  # so that it has all the time that it asked for
    if wait <= 0:
        say(f"{why}")
        warn()
    elif not loop.has_timer("preempt"):
        say(f"{why}; SIG{name} to the command in {wait:.3g} s, and SIGKILL in {end - time.monotonic():.3g} s")
        loop.set_timer("preempt", wait, warn)
