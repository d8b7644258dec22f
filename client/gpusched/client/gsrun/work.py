"""The command that runs under the lease, from its start until nothing of it is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence

from gpusched.client.gsrun import command, exits, linux, tree, wire
from gpusched.client.gsrun.line import counted
from gpusched.client.gsrun.loop import Loop

SETTLE_SECONDS = 0.1
"""How long what the command left behind may take to go by itself (a pipe's reader, multiprocessing's tracker)."""
LEFTOVER_GRACE_SECONDS = 2.0
"""From SIGTERM to SIGKILL for what outlives a command that ended by itself."""
KILLED_GRACE_SECONDS = 0.4
"""The same where the command was killed by a signal: all is to be dead within a second then."""
STUCK_SECONDS = 3.0


class Result:
    """How the work ended.

    Attributes:
        exit_status: the command's, None if it has none.
        signal: signal that killed the command, 0 for none.
        code: what gsrun exits with.
        message: what to keep in the job's history beside it.
        timed_out: ended at its time limit.
    """

    __slots__ = ("code", "exit_status", "message", "signal", "timed_out")

    def __init__(
        self, code: int, exit_status: int | None = None, signal: int = 0, message: str = "", timed_out: bool = False
    ) -> None:
        self.code = code
        self.exit_status = exit_status
        self.signal = signal
        self.message = message
        self.timed_out = timed_out


class Work:
    """The command and everything that it starts.

    Args:
        loop: of this process.
        tell: sends a message to the front (a kind of `wire` and its fields).
        finished: called once, when nothing is left of the command.
        leave_children: what outlives the command is left alone.
    """

    def __init__(
        self, loop: Loop, tell: Callable[..., None], finished: Callable[[Result], None], *, leave_children: bool
    ) -> None:
        self._loop = loop
        self._tell = tell
        self._finished = finished
        self._leave_children = leave_children
        self._status: int | None = None
        self._ending: tuple[int, str] | None = None
        self._timed_out = False
        self._warned = False
        self._told = False
        self._kill_at = float("inf")
        self._swept = False
        self._over = False
        self.pid = 0
        self.stopped = False
        self.on_continued: Callable[[], None] = lambda: None

    @property
    def running(self) -> bool:
        """The command was started and has not ended."""
        return self.pid != 0 and self._status is None

    @property
    def started(self) -> bool:
        return self.pid != 0

    @property
    def told(self) -> bool:
        """It was sent the signal of its own choice: once is enough, whichever end comes first."""
        return self._told

    def start(self, words: Sequence[str], environment: Mapping[str, str], group: int, fds: Sequence[int]) -> None:
        """Start it, in a process group of this session; from now on orphans below become our children.

        Raises:
            command.CannotRun: if it cannot be executed.
        """
        linux.become_subreaper()
        process = command.start(words, environment, group, fds)
        self.pid = process.pid
        process.returncode = 0  # it is reaped here, not by Popen

    def forward(self, number: int) -> None:
        """Send the command a signal. When it has ended already: be done with what is left of it at once."""
        if self.running:
            # Not reaped yet, so the id is still its own.
            os.kill(self.pid, number)
        elif self._status is not None and number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            self._kill()

    def end(self, code: int, message: str, grace: float, *, timed_out: bool = False) -> None:
        """End it all: SIGTERM now, SIGKILL after the grace. gsrun's exit code is `code` then, whatever it says.

        Args:
            code: gsrun's exit code.
            message: for the job's history.
            grace: seconds.
            timed_out: the time limit is the reason.
        """
        if (self._ending is not None and not self._warned) or self._status is not None or self._over:
            return
        self._ending = (code, message)
        self._warned = False
        self._timed_out = timed_out
        self._loop.cancel_timer("sweep")
        self._terminate(tree.descendants(os.getpid()))
        self._kill_within(grace)

    def warn(self, number: int, code: int, message: str, grace: float) -> None:
        """Send the command the signal of its own choice in place of SIGTERM; the rest is as in `end`."""
        if self._ending is not None or not self.running or self._over:
            return
        self.tell(number)
        self._ending = (code, message)
        self._warned = True
        self._kill_within(grace)

    def tell(self, number: int) -> bool:
        """Send the command the signal of its own choice, once; nothing is ended by that. Whether it was sent now."""
        if self._told or self._ending is not None or not self.running or self._over:
            return False
        self._told = True
        os.kill(self.pid, number)
        os.kill(self.pid, signal.SIGCONT)  # one that is stopped could not act on it
        return True

    def _kill_within(self, seconds: float) -> None:
        due = time.monotonic() + seconds
        if due < self._kill_at:
            self._kill_at = due
            self._loop.set_timer("kill", seconds, self._kill)

    def kill(self) -> None:
        """Kill it all and return when it is dead."""
        if self.started:
            tree.kill_all()

    def reap(self) -> None:
        """To be called at SIGCHLD, once the command was started."""
        if not self.started or self._over:
            return
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                self._finish([])
                return
            if pid == 0:
                break
            if pid == self.pid:
                self._command_changed(status)
        if self._status is not None and not self._swept and (self._ending is None or self._warned):
            self._sweep()

    def _command_changed(self, status: int) -> None:
        if os.WIFSTOPPED(status):
            self.stopped = True
            self._tell(wire.STOPPED, os.WSTOPSIG(status))
        elif os.WIFCONTINUED(status):
            self.stopped = False
            self._tell(wire.CONTINUED)
            self.on_continued()
        else:
            self._status = status

    def _sweep(self) -> None:
        """The command has ended by itself and something is left: give it a moment to go by itself."""
        self._swept = True
        if self._leave_children and not self._warned:
            left = [process for process in tree.descendants(os.getpid()) if not process.dead]
            self._finish(left)
            return
        self._loop.set_timer("sweep", SETTLE_SECONDS, self._end_leftovers)

    def _end_leftovers(self) -> None:
        left = [process for process in tree.descendants(os.getpid()) if not process.dead]
        if left:
            what = counted(len(left), "process")
            names = tree.names_of(left)
            self._tell(wire.SAY, f"gsrun: ending {what} that the command left behind: {names} (see --leave-children)")
            self._terminate(left)
        killed = self._status is not None and os.WIFSIGNALED(self._status)
        self._kill_within(KILLED_GRACE_SECONDS if killed else LEFTOVER_GRACE_SECONDS)

    def _terminate(self, processes: list[tree.Process]) -> None:
        tree.signal_all(processes, signal.SIGTERM)
        tree.signal_all(processes, signal.SIGCONT)  # what is stopped could not act on it

    def _kill(self) -> None:
        if not self._over:
            self._finish(tree.kill_all(on_stuck=self._stuck, stuck_after=STUCK_SECONDS))

    def _stuck(self, processes: list[tree.Process]) -> None:
        which = ", ".join(f"{process.pid} ({process.name})" for process in processes[:5])
        self._tell(wire.ERROR, f"gsrun: waiting for processes that do not die of SIGKILL: {which}")

    def _finish(self, left: list[tree.Process]) -> None:
        if self._over:
            return
        self._over = True
        self._loop.cancel_timer("sweep")
        self._loop.cancel_timer("kill")
        if left:
            self._say_left(left)
        self._finished(self._result())

    def _say_left(self, left: list[tree.Process]) -> None:
        which = f"{counted(len(left), 'process')} of the command: {tree.names_of(left)}"
        if self._leave_children and self._ending is None:
            self._tell(wire.SAY, f"gsrun: left running, without the lease, {which}")
        else:
            self._tell(wire.ERROR, f"gsrun: not allowed to end {which}; the lease ends all the same")

    def _result(self) -> Result:
        status = self._status
        exit_status = os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None
        number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
        if self._ending is not None:
            code, message = self._ending
            return Result(code, exit_status, 0, message, self._timed_out)
        code = exits.for_signal(number) if number else exit_status if exit_status is not None else exits.OWN_FAILURE
        return Result(code, exit_status, number)
