"""gsrun's holder: the process that keeps the stream, starts the command and ends what is left of it.

It has a process group of its own, so that neither ^C nor ^Z of the terminal touches the lease; it never writes to
the terminal, the front does. It watches the front by pidfd: when the front is gone, everything is killed, and only
then is the lease given back.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from gpusched.client.gsrun import exits, linux, tree, wire
from gpusched.client.gsrun.command import CannotRun
from gpusched.client.gsrun.line import counted, ordinal
from gpusched.client.gsrun.link import Link
from gpusched.client.gsrun.loop import Loop
from gpusched.client.gsrun.options import Options
from gpusched.client.gsrun.work import Result, Work
from gpusched.client.usage import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpusched.v1 import job_pb2, scheduler_pb2

GRACE_SECONDS = 15.0
"""From SIGTERM to SIGKILL at the time limit and on a cancel; `GPUSCHED_KILL_AFTER` has another duration."""
LOST_GRACE_SECONDS = 2.0
"""The same when the lease is lost: somebody else may be about to get the GPUs."""
QUIET_SECONDS = 0.25
"""A wait shorter than this is not worth a line."""
SILENCE_SECONDS = 3.0
"""After which a scheduler that has not answered at all is worth a line."""
LIMIT_NOTICE_SECONDS = 300.0
_MAX_WAIT_SLACK = 1.0


class Holder:
    """One run of the holder.

    Args:
        options: the command line.
        address: of the scheduler.
        front_pid: the front's process id.
        front_pidfd: a pidfd of it, opened before the fork.
        sock: this end of the socket pair.
        fds: descriptors above 2 that the command is to inherit.
        signals: those that are forwarded (the others were ignored when gsrun was started).
    """

    def __init__(
        self,
        options: Options,
        address: str,
        front_pid: int,
        front_pidfd: int,
        sock: socket.socket,
        fds: list[int],
        signals: set[int],
    ) -> None:
        self._options = options
        self._address = address
        self._node = os.environ.get("GPUSCHED_NODE") or os.uname().nodename
        self._front_pid = front_pid
        self._front_pidfd = front_pidfd
        self._fds = fds
        self._environment = dict(os.environ)
        self._grace = GRACE_SECONDS
        me = tree.look_up(os.getpid())
        self._start_ticks = me.start_ticks if me is not None else 0
        self._loop = Loop(self._survive)
        self._peer = wire.Peer(sock)
        self._work = Work(self._loop, self._tell, self._finished, leave_children=options.leave_children)
        self._work.on_continued = self._wake_front
        self._link = Link(options, address, self._node, self._start_ticks, self, self._loop.post)
        self._granted: scheduler_pb2.Granted | None = None
        self._granted_at = 0.0
        self._away = False
        self._seen = ""
        self._loop.watch(front_pidfd, self._front_died)
        self._loop.watch(sock.fileno(), self._on_packets)
        self._loop.on_signals({*signals, signal.SIGCHLD}, self._on_signal)

    def run(self) -> NoReturn:
        """Never returns; ends the process."""
        try:
            self._grace = _grace()
        except UsageError as error:
            self._fail(str(error), exits.USAGE)
        # gRPC's own words on stderr would be drawn over the live line.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        self._link.start()
        self._loop.set_timer("silence", SILENCE_SECONDS, self._say_silence)
        if self._options.max_wait:
            # The scheduler keeps this; we do when it is away.
            self._loop.set_timer("max wait", self._options.max_wait + _MAX_WAIT_SLACK, self._waited_enough)
        self._loop.run()
        raise AssertionError("the loop returned")

    # -- what the scheduler says (Listener) ----------------------------------------------------------------

    def on_say(self, text: str) -> None:
        self._tell(wire.SAY, text if text.startswith("gpusched: ") else f"gsrun: {text}")

    def on_accepted(self, accepted: scheduler_pb2.Accepted) -> None:
        self._loop.cancel_timer("silence")
        if self._away:
            self._away = False
            self._tell(wire.SAY, "gsrun: the scheduler is back; queued again")
        self._tell(wire.DETAIL, f"gsrun: job {accepted.job_id} at {self._address}")
        self._granted = None
        self._seen = ""

    def on_queued(self, queued: scheduler_pb2.Queued) -> None:
        self._granted = None  # a grant that was not confirmed is over
        seen = _waiting_text(queued, self._options.gpus)
        if not self._seen:
            self._loop.set_timer("wait line", QUIET_SECONDS, self._show_wait)
        self._seen = seen
        if not self._loop.has_timer("wait line"):
            self._show_wait()

    def on_granted(self, granted: scheduler_pb2.Granted) -> None:
        foreign = [gpu for gpu in granted.gpus if gpu.node and gpu.node != self._node]
        if foreign or len(granted.gpus) != self._options.gpus:
            what = f"GPU {foreign[0].index} of {foreign[0].node}" if foreign else counted(len(granted.gpus), "GPU")
            text = f"the scheduler granted {what}, which is of no use to a command on {self._node}"
            self._fail(text, exits.OWN_FAILURE)
            return
        if self._granted is not None and self._granted.epoch == granted.epoch:
            return  # told twice
        self._loop.cancel_timer("wait line")
        self._granted = granted
        self._granted_at = time.monotonic()
        # The front gets a share in the connection: whoever of us dies, it stays open until the other has cleaned up.
        fd = self._link.socket_fd()
        self._peer.send(wire.ASK, granted.epoch, fds=() if fd is None else (fd,))
        self._update_peer()

    def on_confirmed(self, epoch: int) -> None:
        granted = self._granted
        if granted is None or granted.epoch != epoch or self._work.started:
            return
        self._loop.cancel_timer("max wait")
        environment = self._environment | dict(granted.environment)
        environment["GPUSCHED_HOLDER"] = f"{os.getpid()}:{self._start_ticks}"
        try:
            self._work.start(self._options.command, environment, os.getpgid(self._front_pid), self._fds)
        except CannotRun as error:
            self._tell(wire.ERROR, f"gsrun: {error}")
            self._finished(Result(error.code, error.code, message=str(error)))
            return
        except ProcessLookupError:
            os._exit(exits.OWN_FAILURE)  # the front died this very moment
        self._tell(wire.STARTED, self._work.pid, granted.job_id, _gpus_text(granted.gpus))
        self._let_go_of_streams()
        if self._options.time_limit:
            self._start_clock(self._granted_at + self._options.time_limit - time.monotonic())

    def on_notice(self, notice: scheduler_pb2.Notice) -> None:
        from gpusched.v1 import scheduler_pb2

        if notice.kind == scheduler_pb2.NOTICE_KIND_TIME_LIMIT:
            return  # our own clock says so itself, scheduler or no scheduler
        if notice.kind == scheduler_pb2.NOTICE_KIND_CANCEL and self._work.started:
            left = self._grace
            if notice.HasField("deadline"):
                left = min(left, max(0.0, notice.deadline.ToNanoseconds() / 1e9 - time.time() - 1.0))
            self._end_work(f"the job was cancelled: {notice.message}", exits.CANCELLED, left, notice.message)
            return
        self._tell(wire.SAY, f"gsrun: notice: {notice.message}")

    def on_dry_run(self, dry_run: scheduler_pb2.DryRun) -> None:
        if dry_run.starts_now:
            text = f"would start now, on {_gpus_text(dry_run.gpus)}"
        else:
            text = f"would wait, {ordinal(dry_run.position)} in the queue: {dry_run.reason.message}"
            if dry_run.HasField("forecast"):
                text += f" (expected to start at {_clock_time(dry_run.forecast.ToNanoseconds() / 1e9)})"
        self._tell(wire.ANSWER, text)
        self._exit(0)

    def on_away(self) -> None:
        if self._away:
            return
        self._away = True
        if self._work.started:
            self._tell(wire.SAY, "gsrun: the scheduler is away; your command goes on and keeps its GPUs")
        else:
            self._granted = None
            self._seen = ""
            self._loop.cancel_timer("wait line")
            self._tell(wire.WAIT, "gsrun: the scheduler is away; waiting for its return to queue again")

    def on_refused(self, message: str, code: int) -> None:
        self._fail(message, code)

    def on_ended(self, message: str, code: int) -> None:
        why = "the job was cancelled" if code == exits.CANCELLED else "the scheduler took the GPUs back"
        self._end_work(f"{why}: {message}", code, min(LOST_GRACE_SECONDS, self._grace), message)

    def _survive(self, error: Exception) -> None:
        """Words of the scheduler that we cannot take (of another version?) are no reason to end anybody's work."""
        self._tell(wire.ERROR, f"gsrun: internal error, going on: {type(error).__name__}: {error}")

    # -- the front -----------------------------------------------------------------------------------------

    def _on_packets(self) -> None:
        self._peer.flush()
        messages, _ = self._peer.receive()
        for kind, fields in messages:
            if kind == wire.READY and not self._work.started:
                self._link.confirm(int(fields[0]))
            elif kind == wire.SIGNAL:
                self._front_got_signal(int(fields[0]), fields[1] == "terminal", fields[2] == "started")
        self._update_peer()

    def _front_got_signal(self, number: int, by_terminal: bool, knew_command: bool) -> None:
        if self._work.started:
            # What the terminal sends, the command got itself, unless it was not there yet.
            if not (by_terminal and knew_command and self._work.running):
                self._work.forward(number)
        elif number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            self._exit(exits.for_signal(number), number)

    def _front_died(self) -> None:
        """Nobody waits for the command any more. All of it dies, and then the lease ends."""
        self._work.kill()
        if self._granted is not None and self._work.started:
            self._link.release(self._granted.epoch, None, signal.SIGKILL, "gsrun was killed", False)
        os._exit(exits.OWN_FAILURE)

    def _wake_front(self) -> None:
        """The command was continued: so is the front, which stopped with it, even if the two just crossed."""
        self._continue_front(3)

    def _continue_front(self, tries: int) -> None:
        if self._work.stopped:
            return
        front = tree.look_up(self._front_pid)
        if front is not None and front.state == "T":
            signal.pidfd_send_signal(self._front_pidfd, signal.SIGCONT)
        if tries:
            self._loop.set_timer("continue front", 0.1, lambda: self._continue_front(tries - 1))

    def _tell(self, kind: str, *fields: object) -> None:
        self._peer.send(kind, *fields)
        self._update_peer()

    def _update_peer(self) -> None:
        self._loop.want_write(self._peer.sock.fileno(), self._peer.wants_to_write)

    # -- the command ---------------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._work.reap()
        elif self._work.started:
            self._work.forward(number)
        elif number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            self._exit(exits.for_signal(number), number)

    def _start_clock(self, left: float) -> None:
        from gpusched.client.units import format_duration

        limit = self._options.time_limit
        before = min(LIMIT_NOTICE_SECONDS, limit / 10)
        if before >= 1.0:
            text = f"gsrun: notice: the time limit of {format_duration(limit)} ends in {format_duration(before)}"
            self._loop.set_timer("limit notice", left - before, lambda: self._tell(wire.SAY, text))
        self._loop.set_timer("limit", left, self._limit_reached)

    def _limit_reached(self) -> None:
        from gpusched.client.units import format_duration

        why = f"the time limit of {format_duration(self._options.time_limit)} is reached"
        self._end_work(why, exits.TIME_LIMIT, self._grace, "reached its time limit", timed_out=True)

    def _end_work(self, why: str, code: int, grace: float, message: str, *, timed_out: bool = False) -> None:
        if not self._work.running:
            return
        self._tell(wire.ERROR, f"gsrun: {why}; ending the command (SIGTERM, and SIGKILL after {grace:.3g} s)")
        self._work.end(code, message, grace, timed_out=timed_out)

    def _finished(self, result: Result) -> None:
        """Nothing is left of the command: the lease ends, and gsrun with it."""
        if self._granted is not None:
            self._link.release(self._granted.epoch, result.exit_status, result.signal, result.message, result.timed_out)
        self._exit(result.code, result.signal)

    # -- ends ----------------------------------------------------------------------------------------------

    def _say_silence(self) -> None:
        self._tell(wire.WAIT, f"gsrun: waiting for the scheduler at {self._address} to answer")

    def _show_wait(self) -> None:
        self._tell(wire.WAIT, self._seen)

    def _waited_enough(self) -> None:
        if not self._work.started:
            from gpusched.client.units import format_duration

            self._fail(f"no GPUs within {format_duration(self._options.max_wait)}", exits.NO_GPUS_NOW)

    def _fail(self, message: str, code: int) -> NoReturn:
        self._tell(wire.ERROR, f"gsrun: {message}")
        self._exit(code)

    def _exit(self, code: int, number: int = 0) -> NoReturn:
        self._tell(wire.DONE, code, number)
        if self._peer.wants_to_write:
            # The front is stopped, and must find how it ended when it wakes.
            self._peer.sock.setblocking(True)
            self._peer.flush()
        os._exit(0)

    def _let_go_of_streams(self) -> None:
        """The command alone has its stdin, stdout and stderr now: a pipe ends when it ends them, not when we do."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for fd in self._fds:
            os.close(fd)


def run(
    options: Options,
    address: str,
    front_pid: int,
    front_pidfd: int,
    sock: socket.socket,
    fds: list[int],
    signals: set[int],
    mask: set[int],
) -> NoReturn:
    """Be the holder. See `Holder` for the arguments; `mask` is the signal mask that the command is to have."""
    try:
        os.setpgid(0, 0)
        linux.set_process_name("gsrun-holder")
        holder = Holder(options, address, front_pid, front_pidfd, sock, fds, signals)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        holder.run()
    except BaseException as error:
        # The front ends the command when we are gone, and says so; here is why, for a report.
        text = f"gsrun: internal error: {type(error).__name__}: {error}"
        wire.Peer(sock).send(wire.ERROR, text)
        if os.environ.get("GPUSCHED_DEBUG"):
            sys.excepthook(type(error), error, error.__traceback__)
    os._exit(exits.OWN_FAILURE)


def _grace() -> float:
    text = os.environ.get("GPUSCHED_KILL_AFTER", "")
    if not text:
        return GRACE_SECONDS
    from gpusched.client.units import parse_duration

    return parse_duration(text, "GPUSCHED_KILL_AFTER")


def _waiting_text(queued: scheduler_pb2.Queued, gpus: int) -> str:
    """The live line, less the time waited."""
    place = f"{ordinal(queued.position)} of {queued.total} in the queue"
    message = queued.reason.message
    parts = [place, message] if message.startswith("needs ") else [place, counted(gpus, "GPU"), message]
    if queued.HasField("forecast"):
        parts.append(f"expected at {_clock_time(queued.forecast.ToNanoseconds() / 1e9)}")
    return f"gsrun: {' · '.join(part for part in parts if part)}"


def _gpus_text(gpus: Iterable[job_pb2.AllocatedGpu]) -> str:
    return f"GPU {','.join(str(gpu.index) for gpu in gpus)}"


def _clock_time(moment: float) -> str:
    local = time.localtime(moment)
    return time.strftime("%H:%M" if moment - time.time() < 86400 else "%Y-%m-%d %H:%M", local)
