"""gsrun's holder: the process that keeps the stream, starts the command and ends what is left of it.

It has a process group of its own, so that neither ^C nor ^Z of the terminal touches the lease; it never writes to
the terminal, the front does. It watches the front by pidfd: when the front is gone, everything is killed, and only
then is the lease given back.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING, NoReturn

from gpusched.client.gsrun import exits, reach, tree, wire
from gpusched.client.gsrun.command import CannotRun
from gpusched.client.gsrun.line import counted
from gpusched.client.gsrun.link import Link
from gpusched.client.gsrun.loop import Loop
from gpusched.client.gsrun.options import Options
from gpusched.client.gsrun.work import Result, Work
from gpusched.client.usage import UsageError
from gpusched.client.variables import lease_variables

if TYPE_CHECKING:
    from gpusched.v1 import scheduler_pb2

GRACE_SECONDS = 15.0
"""From SIGTERM to SIGKILL at the time limit and on a cancel; `GPUSCHED_KILL_AFTER` has another duration."""
LOST_GRACE_SECONDS = 2.0
"""The same when the lease is lost: somebody else may be about to get the GPUs."""
QUIET_SECONDS = 0.25
"""A wait shorter than this is not worth a line."""
SILENCE_SECONDS = 3.0
"""After which a scheduler that has not answered at all is worth a line."""
OWNER_SECONDS = 0.5
"""After which there is time to see whose scheduler it is; by then the command is no longer about to start."""
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
        self._held = "GPUs" if options.gpus else "lease"  # of a job without GPUs there is nothing else to say
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
        self._job_id = ""
        self._away = False
        self._stranger = False
        self._lost = False
        self._signal_told = False
        self._seen = ""
        self._waited = False  # something was said about the wait
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

    def on_connected(self) -> None:
        self._share_connection(wire.SHARE)

    def on_accepted(self, accepted: scheduler_pb2.Accepted) -> None:
        self._loop.cancel_timer("silence")
        if accepted.job_id != self._job_id:
            self._job_id = accepted.job_id
            self._tell(wire.DETAIL, f"gsrun: job {accepted.job_id} at {self._address}")
            self._say_idle_signal()
        if not self._work.started:  # else the grant that follows tells whether it is still ours
            self._granted = None
            self._seen = ""

    def _say_idle_signal(self) -> None:
        """Not before the scheduler has taken it: a signal that there is not is the worse mistake."""
        if self._options.signal and not (self._options.time_limit or self._options.preemptible or self._signal_told):
            self._signal_told = True
            text = "--signal has no effect without --time or --preemptible, unless the scheduler sets a time limit"
            self._tell(wire.SAY, f"gsrun: {text}")

    def on_queued(self, queued: scheduler_pb2.Queued) -> None:
        if self._work.started:
            self.on_ended("it takes this job for one that waits", exits.LEASE_LOST)
            return
        self._granted = None  # a grant that was not confirmed is over
        from gpusched.client.gsrun import words  # here and below: not before the command, where it can be helped

        seen = words.place(queued, self._options)
        self._is_back()
        if not self._seen and not self._waited:
            self._loop.set_timer("wait line", QUIET_SECONDS, self._show_wait)
        self._seen = seen
        if not self._loop.has_timer("wait line"):
            self._show_wait()

    def on_granted(self, granted: scheduler_pb2.Granted) -> None:
        if self._work.started:
            self._granted_again(granted)
            return
        foreign = [gpu for gpu in granted.gpus if gpu.node and gpu.node != self._node]
        if foreign or len(granted.gpus) != self._options.gpus:
            what = f"GPU {foreign[0].index} of {foreign[0].node}" if foreign else counted(len(granted.gpus), "GPU")
            text = f"the scheduler granted {what}, which is of no use to a command on {self._node}"
            self._fail(text, exits.OWN_FAILURE)
            return
        self._is_back()
        if self._granted is not None and self._granted.epoch == granted.epoch:
            return  # told twice
        self._loop.cancel_timer("wait line")
        self._granted = granted
        self._granted_at = time.monotonic()
        self._share_connection(wire.ASK, granted.epoch)

    def _granted_again(self, granted: scheduler_pb2.Granted) -> None:
        """What the command runs under is told to us once more, after the scheduler was away."""
        assert self._granted is not None
        if granted.epoch != self._granted.epoch:
            self.on_ended("it has granted this job GPUs anew", exits.LEASE_LOST)
        elif self._is_back() and granted.HasField("confirm_by"):
            self._link.confirm(granted.epoch)

    def _is_back(self) -> bool:
        """The scheduler speaks to us as it did; whether it had been away."""
        if not self._away:
            return False
        self._away = self._stranger = False
        self._tell(wire.SAY, "gsrun: the scheduler is back")
        return True

    def _share_connection(self, kind: str, *fields: object) -> None:
        """The front gets a share in the connection: whoever of us dies, it stays until the other has cleaned up."""
        fd = reach.connection_fd(self._address)
        self._peer.send(kind, *fields, fds=() if fd is None else (fd,))
        self._update_peer()

    def on_confirmed(self, epoch: int) -> None:
        granted = self._granted
        if granted is None or granted.epoch != epoch or self._work.started:
            return
        self._loop.cancel_timer("max wait")
        environment = self._environment | lease_variables(granted.environment, self._address)
        environment["GPUSCHED_HOLDER"] = f"{os.getpid()}:{self._start_ticks}"
        try:
            self._work.start(self._options.command, environment, os.getpgid(self._front_pid), self._fds)
        except CannotRun as error:
            self._tell(wire.ERROR, f"gsrun: {error}")
            self._finished(Result(error.code, error.code, message=str(error)))
            return
        except ProcessLookupError:
            os._exit(exits.OWN_FAILURE)  # the front died this very moment
        from gpusched.client.gsrun import words

        self._tell(wire.STARTED, self._work.pid, granted.job_id, words.got(granted.gpus, self._options))
        self._let_go_of_streams()
        self._loop.set_timer("owner", OWNER_SECONDS, self._link.note_owner)
        if seconds := self._options.time_limit or words.limit_of(granted):
            from gpusched.client.gsrun import limit, preempt

            left = self._granted_at + seconds - time.monotonic()
            limit.start(self._loop, seconds, left, self._announce, self._limit_reached)
            if self._options.signal:
                preempt.before_limit(self._loop, self._work, left, self._options.signal, self._announce)

    def on_notice(self, notice: scheduler_pb2.Notice) -> None:
        from gpusched.v1 import scheduler_pb2

        if notice.kind in (scheduler_pb2.NOTICE_KIND_TIME_LIMIT, scheduler_pb2.NOTICE_KIND_SERVER_STOPPING):
            return  # our own clock says so itself, scheduler or no scheduler; and one that goes is away at once
        if notice.kind == scheduler_pb2.NOTICE_KIND_CANCEL and self._work.started:
            left = self._grace
            if notice.HasField("deadline"):
                left = min(left, max(0.0, notice.deadline.ToNanoseconds() / 1e9 - time.time() - 1.0))
            self._end_work(f"the job was cancelled: {notice.message}", exits.CANCELLED, left, notice.message)
            return
        if notice.kind == scheduler_pb2.NOTICE_KIND_PREEMPTION and self._work.running:
            from gpusched.client.gsrun import preempt

            wish, say = self._options.signal, self._complain
            preempt.make_room(self._loop, self._work, notice, wish, self._grace, say)
            return
        self._announce(notice.message)

    def _complain(self, text: str) -> None:
        self._tell(wire.ERROR, text)

    def _announce(self, text: str) -> None:
        self._tell(wire.SAY, f"gsrun: notice: {text}")

    def on_dry_run(self, dry_run: scheduler_pb2.DryRun) -> None:
        from gpusched.client.gsrun import words

        self._say_idle_signal()
        self._tell(wire.ANSWER, words.outlook(dry_run, self._options))
        self._exit(0)

    def on_away(self) -> None:
        if self._away:
            return
        self._away = True
        if self._work.started:
            self._tell(wire.SAY, f"gsrun: the scheduler is away; holding your {self._held}, the command goes on")
        else:
            self._granted = None
            self._seen = ""
            self._loop.cancel_timer("wait line")
            self._say_wait("gsrun: the scheduler is away; keeping your place in the queue")

    def on_not_now(self, why: str) -> None:
        """The scheduler answers, and can take no job at the moment."""
        self._loop.cancel_timer("silence")
        self._say_wait(f"gsrun: {why}; trying on")

    def on_stranger(self) -> None:
        self.on_away()
        if not self._stranger:
            self._stranger = True
            text = f"another scheduler answers at {self._address}, which knows nothing of this job; waiting for its own"
            self._tell(wire.SAY, f"gsrun: {text}")

    def on_place_lost(self, why: str) -> None:
        self._away = self._stranger = False
        self._tell(wire.SAY, f"gsrun: {why}; queueing again")

    def on_refused(self, message: str, code: int) -> None:
        if self._work.started:
            self._tell(wire.ERROR, f"gsrun: {message}; the command goes on")
        else:
            self._fail(message, code)

    def on_ended(self, message: str, code: int) -> None:
        if self._lost:
            return
        self._lost = True
        self._link.close()
        why = "the job was cancelled" if code == exits.CANCELLED else f"the scheduler took the {self._held} back"
        if not self._work.started:
            self._fail(f"{why}: {message}", code)
        if self._options.on_lost == "keep" and code != exits.CANCELLED and self._work.running:
            text = f"the command goes on (--on-lost keep), and its {self._held} may be given to others"
            self._tell(wire.ERROR, f"gsrun: {why}: {message}; {text}")
            return
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
        if self._work.started:
            self._give_back(None, signal.SIGKILL, "gsrun was killed", False)
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

    def _limit_reached(self, why: str) -> None:
        self._end_work(why, exits.TIME_LIMIT, self._grace, "reached its time limit", timed_out=True)

    def _end_work(self, why: str, code: int, grace: float, message: str, *, timed_out: bool = False) -> None:
        if not self._work.running:
            return
        self._tell(wire.ERROR, f"gsrun: {why}; ending the command (SIGTERM, and SIGKILL after {grace:.3g} s)")
        self._work.end(code, message, grace, timed_out=timed_out)

    def _finished(self, result: Result) -> None:
        """Nothing is left of the command: the lease ends, and gsrun with it."""
        self._give_back(result.exit_status, result.signal, result.message, result.timed_out)
        self._exit(result.code, result.signal)

    def _give_back(self, exit_status: int | None, number: int, message: str, timed_out: bool) -> None:
        if self._granted is not None and not self._lost:
            self._link.release(self._granted.epoch, exit_status, number, message, timed_out)

    # -- ends ----------------------------------------------------------------------------------------------

    def _say_silence(self) -> None:
        self._say_wait(f"gsrun: waiting for the scheduler at {self._address} to answer")

    def _show_wait(self) -> None:
        self._say_wait(self._seen)

    def _say_wait(self, text: str) -> None:
        self._waited = True
        self._tell(wire.WAIT, text)

    def _waited_enough(self) -> None:
        if not self._work.started:
            from gpusched.client.units import format_duration

            self._fail(f"no {self._held} within {format_duration(self._options.max_wait)}", exits.NO_GPUS_NOW)

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


def _grace() -> float:
    text = os.environ.get("GPUSCHED_KILL_AFTER", "")
    if not text:
        return GRACE_SECONDS
    from gpusched.client.units import parse_duration

    return parse_duration(text, "GPUSCHED_KILL_AFTER")
