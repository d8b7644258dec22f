"""A job's command and everything that it starts, until nothing of it is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from gpusched.client.gsrun import tree
from gpusched.client.gsrun.line import counted
from gpusched.client.gsrun.loop import Loop

SETTLE_SECONDS = 0.1
"""How long what the command left behind may take to go by itself (a pipe's reader, multiprocessing's tracker)."""
LEFTOVER_GRACE_SECONDS = 2.0
"""From SIGTERM to SIGKILL for what outlives a command that ended by itself."""
KILLED_GRACE_SECONDS = 0.4
"""The same where the command was killed by a signal: all is to be dead within a second then."""
STUCK_SECONDS = 3.0


class Work:
    """The process tree below this process, which must be a child subreaper.

    Args:
        loop: of this process.
        say: puts a line into the job's output.
        finished: called once, when nothing is left of the command.
    """

    def __init__(self, loop: Loop, say: Callable[[str], None], finished: Callable[[], None]) -> None:
        self._loop = loop
        self._say = say
        self._finished = finished
        self._pid = 0
        self._ending = False
        self._warned = False
        self._told = False
        self._swept = False
        self._over = False
        self._kill_at = float("inf")
        #: The command's wait status, None while it runs.
        self.status: int | None = None
        #: It was ended because its time limit was reached.
        self.timed_out = False

    @property
    def running(self) -> bool:
        """The command was started and something of it is left."""
        return self._pid != 0 and not self._over

    @property
    def told(self) -> bool:
        """It was sent the signal of its own choice: once is enough, whichever end comes first."""
        return self._told

    @property
    def pid(self) -> int:
        """Of the command, 0 before its start."""
        return self._pid

    @property
    def ended_by_itself(self) -> bool:
        """It has exited, nobody had it end, and it has left nothing behind, not for a moment."""
        left_alone = not self._ending and not self._swept and not self._told
        return self._over and left_alone and self.status is not None and os.WIFEXITED(self.status)

    def started(self, pid: int) -> None:
        """The command runs, as a child of this process."""
        self._pid = pid

    def end(self, grace: float, *, timed_out: bool = False) -> bool:
        """End it all: SIGTERM now, SIGKILL after the grace, or earlier if that was asked for before.

        Args:
            grace: seconds.
            timed_out: the time limit is the reason.

        Returns:
            Whether this is what ends it; else it was ended or ending already.
        """
        if not self.running:
            return False
        first = (not self._ending or self._warned) and self.status is None
        if first:
            self.timed_out = timed_out
            self._terminate(tree.descendants(os.getpid()))
        self._ending, self._warned = True, False
        self._loop.cancel_timer("sweep")
        self._kill_within(grace)
        return first

    def warn(self, number: int, grace: float) -> bool:
        """Send the command the signal of its own choice in place of SIGTERM; the rest is as in `end`."""
        if not self.running or self._ending or self.status is not None:
            return False
        self.tell(number)
        self._ending = self._warned = True
        self._kill_within(grace)
        return True

    def tell(self, number: int) -> bool:
        """Send the command the signal of its own choice, once; nothing is ended by that. Whether it was sent now."""
        if not self.running or self._told or self._ending or self.status is not None:
            return False
        self._told = True
        os.kill(self._pid, number)  # not reaped yet, so the id is still its own
        os.kill(self._pid, signal.SIGCONT)  # one that is stopped could not act on it
        return True

    def kill(self) -> None:
        """Kill it all now; `finished` is called before this returns."""
        if self.running:
            left = tree.kill_all(on_stuck=self._stuck, stuck_after=STUCK_SECONDS, on_ended=self._ended)
            if left:
                self._say(f"not allowed to end {_described(left)}")
            self._finish()

    def reap(self) -> None:
        """To be called at SIGCHLD."""
        if not self.running:
            return
        if not tree.reap(self._ended):
            self._finish()
        elif self.status is not None and (not self._ending or self._warned) and not self._swept:
            self._swept = True
            self._loop.set_timer("sweep", SETTLE_SECONDS, self._end_leftovers)

    def _ended(self, pid: int, status: int) -> None:
        if pid == self._pid and self.status is None:
            self.status = status

    def _end_leftovers(self) -> None:
        left = [process for process in tree.descendants(os.getpid()) if not process.dead]
        if left:
            self._say(f"ending {_described(left)}, left behind by the command")
            self._terminate(left)
        killed = self.status is not None and os.WIFSIGNALED(self.status)
        self._kill_within(KILLED_GRACE_SECONDS if killed else LEFTOVER_GRACE_SECONDS)

    def _terminate(self, processes: list[tree.Process]) -> None:
        tree.signal_all(processes, signal.SIGTERM)
        tree.signal_all(processes, signal.SIGCONT)  # what is stopped could not act on it

    def _kill_within(self, seconds: float) -> None:
        due = time.monotonic() + seconds
        if due < self._kill_at:
            self._kill_at = due
            self._loop.set_timer("kill", seconds, self.kill)

    def _stuck(self, processes: list[tree.Process]) -> None:
        which = ", ".join(f"{process.pid} ({process.name})" for process in processes[:5])
        self._say(f"waiting for processes that do not die of SIGKILL: {which}")

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            self._loop.cancel_timer("sweep")
            self._loop.cancel_timer("kill")
            self._finished()


def _described(processes: list[tree.Process]) -> str:
    return f"{counted(len(processes), 'process')} ({tree.names_of(processes)})"
