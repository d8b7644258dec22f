"""gsrun's front: the process that the shell waits for. It draws, passes signals on, and stops and ends as the command.

It stays small: no gRPC, no protobuf, one thread. Signals are blocked and read one by one, because a signal from the
terminal has reached the command already, and one from kill() has not.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from typing import NoReturn

from gpusched.client.gsrun import exits, linux, tree, wire
from gpusched.client.gsrun.line import Output, elapsed, put_out
from gpusched.client.gsrun.options import Options

_FATAL_WHILE_WAITING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
_STOPPING = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_SYNCHRONOUS = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS}
)
_OUR_OWN = frozenset({signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ})
_STOPPED_STATES = "Tt"
_LINGER_SECONDS = 1.0


def passed_on() -> set[int]:
    """The signals that gsrun passes on to the command: all that are sent to end, stop or tell a program something,
    less those that were ignored when gsrun was started (nohup), which the command then ignores too.
    """
    wanted = set(signal.valid_signals()) - _SYNCHRONOUS - _OUR_OWN
    return {number for number in wanted if signal.getsignal(number) != signal.SIG_IGN}


class Front:
    """One run of the front.

    Args:
        options: the command line.
        holder_pid: its child.
        sock: this end of the socket pair.
        signals: those that are passed on; blocked by the caller, with SIGCHLD.
        spared: (pid, start ticks) of children that came with us through exec and are none of ours.
    """

    def __init__(
        self, options: Options, holder_pid: int, sock: socket.socket, signals: set[int], spared: set[tuple[int, int]]
    ) -> None:
        self._options = options
        self._holder_pid = holder_pid
        self._peer = wire.Peer(sock)
        self._signals = signals
        self._spared = spared
        self._output = Output()
        self._began = time.monotonic()
        self._waiting = ""
        self._waited = False
        self._answered = False  # the command may run
        self._command_pid = 0
        self._holder_status: int | None = None
        self._connection: int | None = None
        self._signal_fd = linux.open_signalfd({*signals, signal.SIGCHLD})

    def run(self) -> NoReturn:
        """Never returns; ends the process."""
        poll = select.poll()
        poll.register(self._signal_fd, select.POLLIN)
        poll.register(self._peer.sock.fileno(), select.POLLIN)
        while True:
            poll.poll(self._milliseconds())
            for read in linux.read_signals(self._signal_fd):
                self._on_signal(read)
            self._read_packets()
            if self._holder_status is not None or self._peer.closed:
                self._holder_died()
            self._draw()

    # -- drawing -------------------------------------------------------------------------------------------

    def _milliseconds(self) -> int | None:
        if not self._waiting or not self._output.live:
            return None
        # To the next full second of the wait.
        return int((1.0 - (time.monotonic() - self._began) % 1.0) * 1000) + 1

    def _draw(self) -> None:
        if self._waiting and not self._options.quiet:
            self._output.draw(self._waiting, time.monotonic() - self._began)

    def _say(self, kind: str, text: str) -> None:
        if kind == wire.ERROR or (not self._options.quiet and (kind == wire.SAY or self._options.verbose)):
            self._output.say(text)

    # -- messages of the holder ----------------------------------------------------------------------------

    def _read_packets(self) -> None:
        messages, fds = self._peer.receive()
        for fd in fds:
            if self._connection is not None:
                os.close(self._connection)
            self._connection = fd
        for kind, fields in messages:
            self._on_message(kind, fields)

    def _on_message(self, kind: str, fields: list[str]) -> None:
        match kind:
            case wire.WAIT:
                self._waiting, self._waited = fields[0], True
                if self._answered:  # the grant was taken back
                    self._answered = False
                    linux.become_subreaper(False)
            case wire.ASK:
                # From now on the command may run, and write where the live line is. Not before: a scheduler that we
                # start must not become our child.
                self._waiting = ""
                self._output.clear()
                linux.become_subreaper()
                self._answered = True
                self._peer.send(wire.READY, fields[0])
            case wire.STARTED:
                self._on_started(int(fields[0]), fields[1], fields[2])
            case wire.SAY | wire.ERROR | wire.DETAIL:
                self._say(kind, fields[0])
            case wire.ANSWER:
                if status := put_out(f"{fields[0]}\n"):
                    self._finish(status, 0)
            case wire.STOPPED:
                self._stop_with_command(int(fields[0]))
            case wire.DONE:
                self._finish(int(fields[0]), int(fields[1]))

    def _on_started(self, pid: int, job_id: str, gpus: str) -> None:
        self._command_pid = pid
        text = f"gsrun: got {gpus} (job {job_id}) after {elapsed(time.monotonic() - self._began)}"
        self._say(wire.SAY if self._waited and not self._output.live else wire.DETAIL, text)

    # -- signals -------------------------------------------------------------------------------------------

    def _on_signal(self, read: linux.SignalRead) -> None:
        number = read.number
        if number == signal.SIGCHLD:
            self._reap()
            return
        if number in (signal.SIGCONT, signal.SIGWINCH):
            self._output.forget()
        if self._answered:
            # The command runs, or may be starting this moment: the holder knows. What the terminal sends to all, a
            # running command has got itself.
            if read.sender != self._holder_pid and not (self._command_pid and read.by_terminal):
                self._tell_signal(read)
        elif number in _STOPPING:
            if number == signal.SIGTSTP or not read.by_terminal:
                self._stop(number)
        elif number in _FATAL_WHILE_WAITING:
            self._leave_queue(number)

    def _tell_signal(self, read: linux.SignalRead) -> None:
        origin = "terminal" if read.by_terminal else "kill"
        self._peer.send(wire.SIGNAL, read.number, origin, "started" if self._command_pid else "")

    def _leave_queue(self, number: int) -> NoReturn:
        """There is no command yet, and never will be: the holder's end takes the job out of the queue."""
        self._output.clear()
        os.kill(self._holder_pid, signal.SIGKILL)
        os.waitpid(self._holder_pid, 0)
        self._exit(exits.for_signal(number), number)

    def _stop_with_command(self, number: int) -> None:
        """The command has stopped; so do we, for the shell to see, unless it was continued meanwhile."""
        process = tree.look_up(self._command_pid)
        if process is not None and process.state in _STOPPED_STATES:
            self._stop(number)

    def _stop(self, number: int) -> None:
        self._output.clear()
        # Blocked until here. Stopping by the command's own signal lets the shell say why.
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        self._output.forget()

    # -- ends ----------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._holder_pid:
                self._holder_status = status

    def _finish(self, code: int, number: int) -> NoReturn:
        self._output.clear()
        self._exit(code, number)

    def _holder_died(self) -> NoReturn:
        """The holder went without a word. What ran under it has become our child: it dies, then the lease ends.

        The scheduler sees the lease end only when our share of the connection closes, with us.
        """
        self._output.clear()
        if self._holder_status is None:
            os.kill(self._holder_pid, signal.SIGKILL)
        started = self._command_pid != 0
        tree.kill_all(self._spared)
        self._read_packets()  # its last words, or how the command had ended
        what = "the command and all that it started were ended" if started else "no command was started"
        self._output.say(f"gsrun: its own second process (pid {self._holder_pid}) was killed; {what}")
        self._exit(exits.OWN_FAILURE, 0)

    def _exit(self, code: int, number: int) -> NoReturn:
        if number == signal.SIGINT and signal.SIGINT in self._signals:
            # The shell must see that it was SIGINT, or a loop around us would go on.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os._exit(code)
