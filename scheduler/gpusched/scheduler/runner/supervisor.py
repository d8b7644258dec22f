"""The supervisor of one run: it starts the command, holds the lease, and reports how it went.

Runs in a child forked by the agent. The command starts at once; the scheduler is called beside it. A server that is
away never ends a command, and the report waits for it as long as it takes. After a quick run in which nothing unusual
was, the process takes another one from the agent (see `again`): a fork and its set-up are most of what such a run
costs.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

from gpusched.client.gsrun import limit, linux, tree
from gpusched.client.gsrun.loop import Loop
from gpusched.client.units import format_duration
from gpusched.scheduler.runner import again, spawn
from gpusched.scheduler.runner.agent import READY, SETTLED
from gpusched.scheduler.runner.link import Link
from gpusched.scheduler.runner.model import LOGS, Report, Run, kept_log
from gpusched.scheduler.runner.usage import Meter
from gpusched.scheduler.runner.work import Work
from gpusched.v1 import scheduler_pb2

COMMAND_UMASK = 0o022
LIMIT_NOTICE_SECONDS = 300.0
SLACK_SECONDS = 2.0
"""So long before a notice's deadline the work is killed, for the report to get through."""
QUICK_SECONDS = 0.03
"""A command that ends within this time is reported without a stream for it."""
AGENT_SECONDS = 2.0
"""So long the agent, and the server behind it, may take for a report; then we call the server ourselves."""
FIRST_SAMPLE_SECONDS, LONGEST_SAMPLE_SECONDS = 0.1, 2.0
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.1, 1.0
LOOK_FOR_STATE_SECONDS = 5.0
ABANDONED_SECONDS = 600.0
"""So long a report waits for a scheduler whose state directory is gone: it may have been moved, or was deleted."""
_LIVING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD})
_OF_COMMAND = ("link", "sample", "limit", "limit notice", limit.SIGNAL_TIMER, "preempt")
_TIMERS = (*_OF_COMMAND, "sweep", "kill", "agent", "abandoned", "deliver")
_SILENT = frozenset({scheduler_pb2.NOTICE_KIND_TIME_LIMIT, scheduler_pb2.NOTICE_KIND_SERVER_STOPPING})

# Exit statuses, for the agent: 0 says that nothing is left of the command.
_CLEAN, _GAVE_UP = 0, 1


class Home(NamedTuple):
    """This process, the same for all of its runs.

    Attributes:
        agent: this end of a socket pair whose other end the agent has.
        loop: its event loop.
        heritage: what a command inherits from it, as it was at first.
        first_fd: all descriptors from here on are those of one run.
    """

    agent: socket.socket
    loop: Loop
    heritage: tuple[object, ...]
    first_fd: int


class Supervisor:
    """One run.

    Args:
        run: what is to run.
        home: the process that it is run from, with nothing in it of an earlier run.
        earlier: how many runs there were before.
    """

    def __init__(self, run: Run, home: Home, earlier: int = 0) -> None:
        linux.set_process_name(f"gpusched-{run.job_id}")
        self._run = run
        self._home = home
        self._earlier = earlier
        self._agent = home.agent
        self._loop = home.loop
        self._loop.on_signals(_LIVING, self._on_signal)
        self._work = Work(self._loop, self._say, self._finished)
        self._link = Link(run, self, self._loop.post, self._share)
        self._output: spawn.Output | None = None
        self._hometer = Meter()
        self._began = time.monotonic()
        self._sample_after = FIRST_SAMPLE_SECONDS
        self._retry_after = FIRST_RETRY_SECONDS
        #: What to exit with when nothing is left of the command; None where that is to be reported first.
        self._exit_with: int | None = None
        self._called = False
        #: Nothing was that could show in another run.
        self._usual = True
        #: Done, and waiting to be given another run.
        self._ready = False
        #: Since when the server's state directory is not there.
        self._gone_since: float | None = None

    # -- the command ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; the loop does the rest."""
        self._loop.set_timer("link", QUICK_SECONDS, self._link.start)
        run = self._run
        try:
            if run.state_directory:
                # Before anything else is done: a run without it never began, whatever file gets its output.
                mark = str(kept_log(Path(run.state_directory) / LOGS, run.job_id, run.attempt))
                if mark != run.output_path:
                    os.close(spawn.Output(mark).fd)
            self._output = spawn.Output(run.output_path)
            spawn.enter(run.working_directory)
            os.umask(COMMAND_UMASK)
            self._began = time.monotonic()
            self._work.started(spawn.start(run.command, run.environment, self._output.fd))
            self._hometer.started()
        except spawn.CannotRun as error:
            self._loop.cancel_timer("link")
            self._say(str(error))
            self._usual = False
            self._report(Report(exit_status=error.code, message=str(error)))
            return
        finally:
            os.umask(0o077)
            os.chdir("/")
        self._loop.set_timer("sample", self._sample_after, self._sample)
        if run.time_limit is not None:
            self._start_clock(run.time_limit)

    def _start_clock(self, seconds: float) -> None:
        before = min(LIMIT_NOTICE_SECONDS, seconds / 10)
        if before >= 1.0:
            text = f"notice: the time limit of {format_duration(seconds)} ends in {format_duration(before)}"
            self._loop.set_timer("limit notice", seconds - before, lambda: self._say(text))
        if self._run.signal is not None:
            self._warn_before(seconds, *self._run.signal)
        self._loop.set_timer("limit", seconds, self._limit_reached)

    def _warn_before(self, seconds: float, name: str, before: float) -> None:
        """Have the command sent the signal that it asked for before the limit; it may end by itself then."""
        number, end = signal.Signals[f"SIG{name}"], time.monotonic() + seconds

        def warn() -> None:
            if self._work.tell(number):
                left = format_duration(end - time.monotonic())
                self._say(f"notice: sent the command SIG{name}; its time limit ends in {left}")

        limit.warn_before(self._loop, seconds, before, lambda: limit.has_handler(self._work.pid, number), warn)

    def _limit_reached(self) -> None:
        why = f"the time limit of {format_duration(self._run.time_limit or 0.0)} is reached"
        self._end(why, self._run.grace, timed_out=True)

    def _end(self, why: str, grace: float, *, timed_out: bool = False) -> None:
        if self._work.running and self._work.end(grace, timed_out=timed_out):
            self._say(f"{why}; ending the command (SIGTERM, and SIGKILL after {grace:.3g} s)")

    def _sample(self) -> None:
        self._hometer.sample()
        self._sample_after = min(2 * self._sample_after, LONGEST_SAMPLE_SECONDS)
        self._loop.set_timer("sample", self._sample_after, self._sample)

    def _finished(self) -> None:
        """Nothing is left of the command."""
        for timer in _OF_COMMAND:
            self._loop.cancel_timer(timer)
        if self._exit_with is not None:
            os._exit(self._exit_with)
        status = self._work.status
        wall = time.monotonic() - self._began
        report = Report(
            exit_status=os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None,
            signal=os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0,
            timed_out=self._work.timed_out,
            wall=wall,
            cpu=self._hometer.cpu(),
            peak_memory_bytes=self._hometer.peak_memory_bytes(),
            gpu_seconds=wall * self._run.gpus,
        )
        self._usual = self._usual and self._work.ended_by_itself and not report.peak_memory_bytes
        self._report(report)

    def _say(self, text: str) -> None:
        if self._output is not None:
            self._output.say(text)

    # -- the scheduler (Listener) --------------------------------------------------------------------------

    def on_attached(self) -> None:
        self._deliver()

    def on_notice(self, notice: scheduler_pb2.Notice) -> None:
        if notice.kind == scheduler_pb2.NOTICE_KIND_CANCEL:
            grace = self._run.grace
            if notice.HasField("deadline"):
                left = notice.deadline.ToNanoseconds() / 1e9 - time.time()
                # A deadline that has passed would have been told as an end: this machine's clock was set. The server
                # keeps its own time, and takes the GPUs back if we are late by it.
                if left > 0.0:
                    grace = min(grace, max(0.0, left - SLACK_SECONDS))
            self._end(f"the job was cancelled: {notice.message}", grace)
        elif notice.kind == scheduler_pb2.NOTICE_KIND_PREEMPTION:
            self._make_room(notice)
        elif notice.kind not in _SILENT:  # our own clock tells the limit, and a server that stops is nobody's concern
            self._say(f"notice: {notice.message}")

    def _make_room(self, notice: scheduler_pb2.Notice) -> None:
        """End the command by the deadline: SIGTERM now, or the signal that it asked for when it is time."""
        left = self._run.grace
        if notice.HasField("deadline"):
            left = max(0.0, notice.deadline.ToNanoseconds() / 1e9 - time.time())
        end = time.monotonic() + max(0.0, left - SLACK_SECONDS)
        if self._run.signal is None:
            self._end(f"the job is {notice.message}", end - time.monotonic())
            return
        name, before = self._run.signal

        def warn() -> None:
            grace = max(0.0, end - time.monotonic())
            what = f"the command had its SIG{name}" if self._work.told else f"sent the command SIG{name}"
            if self._work.warn(signal.Signals[f"SIG{name}"], grace):
                self._say(f"{what}; SIGKILL follows after {grace:.3g} s")

        wait = max(0.0, end - time.monotonic() - before)  # so that it has all the time that it asked for
        if not self._loop.has_timer("preempt"):
            self._say(f"notice: the job is {notice.message}; SIG{name} to the command in {wait:.3g} s")
            self._loop.set_timer("preempt", wait, warn)

    def on_lost(self, message: str) -> None:
        if self._work.running:
            self._say(f"the scheduler took the GPUs back: {message}; killing the command")
            self._exit_with = _CLEAN
            self._work.kill()
        os._exit(_CLEAN)

    def on_reported(self) -> None:
        os._exit(_CLEAN)

    def _report(self, report: Report) -> None:
        """Have the agent tell the server, which is cheapest: a quick job then needs no connection of its own."""
        self._link.report = report
        if self._run.state_directory:
            self._loop.set_timer("abandoned", LOOK_FOR_STATE_SECONDS, self._look_for_state)
        self._loop.watch(self._agent.fileno(), self._on_agent)
        self._loop.set_timer("agent", AGENT_SECONDS, self._call)
        try:
            self._agent.send(report.to_json().encode())
        except OSError:
            self._call()

    def _on_agent(self) -> None:
        """The agent has an answer or, after that, another run; or it is gone."""
        try:
            data = self._agent.recv(again.MOST_RUN_BYTES)
        except OSError:
            data = b""
        if self._ready and data:
            self._loop.forget(self._agent.fileno())  # if it dies, that is no concern of a run
            Supervisor(Run.from_json(data), self._home, self._earlier + 1).start()
        elif self._ready:
            os._exit(_CLEAN)
        elif data == SETTLED:
            self._offer()
        else:
            self._loop.forget(self._agent.fileno())
            self._call()

    def _offer(self) -> None:
        """Have the agent know that we could do another run, if we could; else end.

        From then on it is the agent that has us end, or it might give us a run that nobody does.
        """
        usual = self._usual and not self._link.started and not self._called and self._exit_with is None
        if not usual or self._earlier + 1 >= again.MOST_RUNS or again.heritage() != self._home.heritage:
            os._exit(_CLEAN)
        for timer in _TIMERS:
            self._loop.cancel_timer(timer)
        os.closerange(self._home.first_fd, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._output = None
        linux.set_process_name("gpusched-ready")
        self._ready = True
        try:
            self._agent.send(READY)
        except OSError:
            os._exit(_CLEAN)

    def _call(self) -> None:
        """Report by a call of our own, once."""
        if self._called or self._link.report is None:
            return
        self._called = True
        if self._link.started:
            self._deliver()
        elif self._link.release_at_once(self._link.report):
            os._exit(_CLEAN)
        else:
            self._link.start()  # it has the report to deliver

    def _deliver(self) -> None:
        """Report, where there is something to report and somebody to hear it. The link does it where there is not."""
        if self._link.report is None or not self._link.attached:
            return
        if self._link.release(self._link.report):
            os._exit(_CLEAN)
        self._loop.set_timer("deliver", self._retry_after, self._deliver)
        self._retry_after = min(2 * self._retry_after, LONGEST_RETRY_SECONDS)

    def _look_for_state(self) -> None:
        """Give up once the state that granted the lease is gone for long: no server can come back with it."""
        if Path(self._run.state_directory).exists():
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = time.monotonic()
        elif time.monotonic() - self._gone_since > ABANDONED_SECONDS:
            path = self._run.state_directory
            print(
                f"gpusched: job {self._run.job_id} has ended and nobody is left to hear it: {path} is gone", flush=True
            )
            os._exit(_CLEAN)
        self._loop.set_timer("abandoned", LOOK_FOR_STATE_SECONDS, self._look_for_state)

    def _share(self, fd: int) -> None:
        """Give the agent a share in the connection: if we die, the lease lives until the agent has cleaned up."""
        try:
            socket.send_fds(self._agent, [b"c"], [fd])
        except OSError:
            pass  # the agent is gone; nothing is left that could clean up

    # -- signals -------------------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._work.reap()
            return
        self._usual = False
        if number == signal.SIGTERM:
            # The machine goes down, or somebody wants us gone. The lease is dropped without a word then: a run that
            # did not end by itself counts as lost, and is queued again where the job asks for that.
            self._exit_with = _GAVE_UP
            if not self._work.running:
                os._exit(_GAVE_UP)
            self._end("the job's supervisor was told to end (SIGTERM)", self._run.grace)


def run(job: Run, agent: socket.socket, files: tuple[int, int]) -> NoReturn:
    """Be the supervisor of a run, in a fresh child of the agent with all signals blocked.

    Args:
        job: what is to run.
        agent: this end of a socket pair; all other descriptors above 2 are closed.
        files: soft and hard limit of open files that the command is to have.
    """
    try:
        agent = _alone(agent)
        os.setsid()
        linux.become_subreaper()
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
        loop = Loop()
        first_fd = os.dup(0)  # the lowest that is free: the loop has its own
        os.close(first_fd)
        supervisor = Supervisor(job, Home(agent, loop, again.heritage(), first_fd))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # blocked since before the fork
        supervisor.start()
        loop.run()
    except BaseException:
        # A bug. Stderr is the agent's log. The agent cleans up behind us, and the lease is dropped.
        print(f"gpusched: the supervisor with pid {os.getpid()} failed", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
        tree.kill_all()
    os._exit(_GAVE_UP)


def _alone(agent: socket.socket) -> socket.socket:
    """Close everything but stdin, stdout, stderr and one socket, which then has the number 3."""
    fd = agent.detach()
    if fd != 3:
        os.dup2(fd, 3, inheritable=False)
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return socket.socket(fileno=3)
