"""The agent: a warm process that forks supervisors for runs, and kills what one leaves that is killed itself.

    python -m gpusched.scheduler.runner.agent FD SOFT HARD

FD is a stream socket to the server, SOFT and HARD the limits of open files that commands are to have. The agent imports
everything that a supervisor needs, and makes no gRPC object ever. It is a child subreaper: what a dead supervisor
leaves becomes its child. A supervisor that is ready for another run (see `again`) gets the next one, or is let go by
the agent: none goes by itself that a run may be on its way to. When the server goes away the agent stays until its last
supervisor is gone; the next server starts an agent of its own.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import time
from typing import NoReturn

from gpusched.client.gsrun import linux, tree
from gpusched.client.gsrun.loop import Loop
from gpusched.scheduler.runner import again, frames
from gpusched.scheduler.runner.model import Run

MOST_FILES = 65536
MOST_REPORT_BYTES = 65536
SETTLED, NOT_SETTLED = b"y", b"n"
READY = b"r"
"""A supervisor that has ended its run would do another one: the next message to it may be a run, as JSON."""
_IGNORED = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
_READ_BYTES = 256 * 1024
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.05
_EMPTY_LOOKS = 3


class Child:
    """One supervisor.

    Attributes:
        baton: our share in its connection to the scheduler, which keeps its lease while we hold it; None before it
            has one.
        report: how its run ended, as it asks us to tell the server; empty where there is nothing to be told.
        ready_since: since when (`time.monotonic`) it waits for another run; None while it has one.
    """

    def __init__(self, run: Run, pid: int, sock: socket.socket) -> None:
        self.job_id, self.epoch = run.key
        self.pid = pid
        self.sock = sock
        self.ready_since: float | None = None
        self.baton: int | None = None
        self.report = b""
        self.status = 0

    def read(self) -> bool:
        """Take what it has sent: its report, and shares in its connections. False at the end."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, MOST_REPORT_BYTES, 4)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                continue  # said once, before what it sent: it went and left a message of ours unread
            except OSError:
                return False
            for fd in fds:
                if self.baton is not None:
                    os.close(self.baton)
                self.baton = fd
            if not data:
                return False
            if data == READY:
                self.ready_since = time.monotonic()
            elif not fds:
                self.report = data

    def answer(self, settled: bool) -> None:
        """Tell it what became of its report."""
        self.report = b""
        with contextlib.suppress(OSError):
            self.sock.send(SETTLED if settled else NOT_SETTLED)

    def give(self, run: Run, payload: bytes) -> bool:
        """Give it another run. False if it does not have it for sure."""
        try:
            self.sock.send(payload)
        except OSError:
            return False
        self.job_id, self.epoch = run.key
        self.ready_since = None
        return True

    def let_go(self) -> None:
        """End its lease, if it was not released, and forget it."""
        self.sock.close()
        if self.baton is not None:
            os.close(self.baton)


class Agent:
    """All supervisors of one agent.

    Args:
        server: the socket to the server.
        files: soft and hard limit of open files that commands are to have.
    """

    def __init__(self, server: socket.socket, files: tuple[int, int]) -> None:
        server.setblocking(False)
        self._server: socket.socket | None = server
        self._files = files
        self._children: dict[int, Child] = {}
        self._dead: list[Child] = []
        #: Supervisors that wait for another run, the one that waits longest first.
        self._ready: list[Child] = []
        self._buffer = frames.Buffer()
        self._outbox = bytearray()
        self._starting = False
        self._looks = 0
        self._pause = _FIRST_PAUSE
        self._loop = Loop()
        self._loop.on_signals({*_IGNORED, signal.SIGCHLD}, self._on_signal)
        self._loop.watch(server.fileno(), self._on_server)

    def run(self) -> NoReturn:
        """Never returns; ends the process."""
        self._loop.run()
        raise AssertionError("the loop returned")

    # -- the server ----------------------------------------------------------------------------------------

    def _on_server(self) -> None:
        self._flush()
        while self._server is not None:
            try:
                data = self._server.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._server_gone()
                break
            self._buffer.feed(data)
        self._start_next()

    def _server_gone(self) -> None:
        """No new runs will come. Those that did are started all the same: they were granted, and wait to be."""
        if self._server is not None:
            self._loop.forget(self._server.fileno())
            self._server.close()
            self._server = None
            self._outbox.clear()
            self._loop.post(self._dismiss)

    def _answer(self, kind: str, job_id: str, epoch: int, **more: object) -> None:
        if self._server is not None:
            self._outbox += frames.answer(kind, job_id, epoch, **more)
            self._flush()

    def _flush(self) -> None:
        while self._outbox and self._server is not None:
            try:
                sent = self._server.send(self._outbox)
            except BlockingIOError:
                break
            except OSError:
                self._server_gone()
                return
            del self._outbox[:sent]
        if self._server is not None:
            self._loop.want_write(self._server.fileno(), bool(self._outbox))

    # -- starting ------------------------------------------------------------------------------------------

    def _start_next(self) -> None:
        """Start one run; the next one in the next turn, so that a burst keeps nobody from being cleaned up after."""
        if self._starting:
            return
        try:
            while (payload := self._buffer.take()) is not None and (reply := frames.read_reply(payload)) is not None:
                self._on_reply(*reply)
        except ValueError as error:
            _log(f"what the server sends makes no sense: {error}")
            self._server_gone()
            payload = None
        if payload is None:
            self._leave_if_idle()
            return
        self._starting = True
        try:
            self._start(Run.from_json(payload), payload)
        except ValueError as error:
            _log(f"what the server sends makes no sense: {error}")
        self._loop.post(self._started_one)

    def _started_one(self) -> None:
        self._starting = False
        self._start_next()

    def _start(self, run: Run, payload: bytes) -> None:
        # Said before the fork: a run of which this was not said can safely be given to another agent.
        self._answer(frames.TAKEN, *run.key)
        while self._ready and len(payload) <= again.MOST_RUN_BYTES:
            ready = self._ready.pop()  # the one whose memory is warmest
            if ready.give(run, payload):
                self._answer(frames.STARTED, *run.key, pid=ready.pid)
                return
            self._end(ready)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                pid = self._fork(run, theirs)
        except OSError as error:
            self._answer(frames.FAILED, *run.key, message=f"cannot start a process for the job: {error.strerror}")
            return
        ours.setblocking(False)
        child = self._children[pid] = Child(run, pid, ours)
        self._loop.watch(ours.fileno(), lambda: self._on_child(child))
        self._answer(frames.STARTED, *run.key, pid=pid)

    def _fork(self, run: Run, sock: socket.socket) -> int:
        """The process id of the run's supervisor. Signals wait until parent and child know who they are."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _become_supervisor(run, sock, self._files)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid

    def _on_child(self, child: Child) -> None:
        if not child.read():
            self._loop.forget(child.sock.fileno())
        elif child.ready_since is not None and child not in self._ready:
            self._ready.append(child)
            self._dismiss()
        if child.report and self._server is None:
            child.answer(settled=False)
        elif child.report:
            self._answer(frames.REPORT, child.job_id, child.epoch, report=child.report.decode("ascii"))
            child.report = b""

    def _on_reply(self, job_id: str, epoch: int, settled: bool) -> None:
        for child in self._children.values():
            if (child.job_id, child.epoch) == (job_id, epoch) and child.ready_since is None:
                child.answer(settled)

    def _dismiss(self) -> None:
        """End supervisors that have waited long enough for another run, or are too many; all if none will come."""
        now = time.monotonic()
        while self._ready:
            left = (self._ready[0].ready_since or 0.0) + again.IDLE_SECONDS - now
            if left > 0.0 and len(self._ready) <= again.MOST_IDLE and self._server is not None:
                if not self._loop.has_timer("dismiss"):
                    self._loop.set_timer("dismiss", left, self._dismiss)
                return
            self._end(self._ready.pop(0))

    def _end(self, ready: Child) -> None:
        """Have a supervisor without a run end: it does when we hang up."""
        self._loop.forget(ready.sock.fileno())
        ready.sock.close()

    # -- cleaning up ---------------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            tree.reap(self._ended)
            if self._dead and not self._loop.has_timer("clean"):
                self._clean()

    def _ended(self, pid: int, status: int) -> None:
        child = self._children.pop(pid, None)
        if child is None:
            return  # an orphan
        child.read()  # its connection may still be on the way to us
        if child.sock.fileno() >= 0:
            self._loop.forget(child.sock.fileno())
        child.status = status
        if child in self._ready:
            self._ready.remove(child)
        if status == 0 or child.ready_since is not None:
            # It says itself that nothing is left, or has said so before.
            child.let_go()
            self._leave_if_idle()
        else:
            _log(f"the supervisor of job {child.job_id}, pid {pid}, {_death(status)}; ending what it left")
            self._dead.append(child)
            self._looks, self._pause = 0, _FIRST_PAUSE

    def _clean(self) -> None:
        """Kill every child that is no supervisor, with all below it; when none is left, end the dead ones' leases."""
        seen = []
        for pid in tree.children_of(os.getpid()):
            if pid not in self._children and (process := tree.look_up(pid)) is not None:
                seen += [process, *tree.descendants(pid)]
        out_of_reach = tree.signal_all(seen, signal.SIGKILL)
        # The kernel's list of children may skip one while others end: one empty look proves nothing.
        self._looks = self._looks + 1 if len(seen) == len(out_of_reach) else 0
        if self._looks < _EMPTY_LOOKS:
            self._loop.set_timer("clean", self._pause, self._clean_again)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            return
        dead, self._dead = self._dead, []
        for child in dead:
            child.let_go()
            # It may have died with the lease, before it, or in the moment between: the server knows.
            self._answer(frames.FAILED, child.job_id, child.epoch, message=f"its supervisor {_death(child.status)}")
        self._leave_if_idle()

    def _clean_again(self) -> None:
        tree.reap(self._ended)
        self._clean()

    def _leave_if_idle(self) -> None:
        idle = self._server is None and not self._children and not self._dead and not self._starting
        if idle:
            os._exit(0)


def main() -> NoReturn:
    """Serve one server."""
    try:
        fd, soft, hard = map(int, sys.argv[1:])
        server = socket.socket(fileno=fd)
        server.set_inheritable(False)
    except (ValueError, OSError):
        sys.exit("usage: python -m gpusched.scheduler.runner.agent FD SOFT HARD (started by `gpusched serve`)")
    _settle()
    # More than this is of no use, and each supervisor looks through all it might have open.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FILES if hard < 0 else min(hard, MOST_FILES), hard))
    _warm_up()
    Agent(server, (soft, hard)).run()


def _settle() -> None:
    """Be nobody's: whatever the server ignores, blocks or works in is not to reach a command."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    # As Python has them: whoever writes to one that is gone, or to a file too large, gets an error and lives.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o077)
    os.chdir("/")
    linux.become_subreaper()
    linux.set_process_name("gpusched-agent")


def _warm_up() -> None:
    """Import and build all that a supervisor will use, once for all of them."""
    # gRPC is forked with, and must not mind: nothing of it is there when we fork.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc._channel  # imported by gRPC with its first channel only
    import grpc._simple_stubs  # noqa: F401

    from gpusched.scheduler.runner import supervisor  # noqa: F401
    from gpusched.v1 import job_pb2, scheduler_pb2

    scheduler_pb2.ReleaseRequest(outcome=job_pb2.Outcome(exit_status=0)).SerializeToString()
    scheduler_pb2.AcquireRequest(holder=scheduler_pb2.Holder(pid=1)).SerializeToString()
    # What stays for ever is not to be walked, and so copied, in every child.
    gc.collect()
    gc.freeze()


def _become_supervisor(run: Run, sock: socket.socket, files: tuple[int, int]) -> NoReturn:
    try:
        from gpusched.scheduler.runner import supervisor

        supervisor.run(run, sock, files)
    finally:
        os._exit(1)  # never back into the agent's loop


def _death(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return "gave up" if os.WEXITSTATUS(status) == 1 else f"exited with {os.WEXITSTATUS(status)}"


def _log(text: str) -> None:
    print(f"gpusched: agent {os.getpid()}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
