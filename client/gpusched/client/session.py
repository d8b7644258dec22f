"""The user's end of a helper process: start it, read what it tells, ask it to finish."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import IO, Any

import gpusched
from gpusched.client import procs, scope, wire
from gpusched.client.errors import GpuschedError, LeaseLost, ServerUnavailable
from gpusched.client.lease_views import Grant, Notice

log = logging.getLogger("gpusched.client")

FINISH_SECONDS = 15.0
"""How long a helper may take to give a lease back before it is killed, which gives it back too."""

_EXIT_SECONDS = 3.0

_FIRST_FREE = 3
"""The first descriptor that is none of stdin, stdout and stderr."""

_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_exit_hook = threading.Lock()

Message = dict[str, Any]


class Session:
    """A helper process and what it has told.

    Args:
        address: the scheduler's.
        first: the message to begin with, of `wire.encode`.
        dispatch: runs a callback in the caller's event loop; None for a thread of the session's own.

    Attributes:
        owner_pid: the process that this belongs to; a forked child has a copy that it must not use.
        grant: what was granted and confirmed; None before.
        notices: all so far, oldest first.
        lost: why the lease is gone; None while it is held.
        deadline: when the time limit ends, on this process's monotonic clock.
    """

    def __init__(
        self, address: str, first: bytes, dispatch: Callable[[Callable[[], object]], object] | None = None
    ) -> None:
        self.address = address
        self.owner_pid = os.getpid()
        self.grant: Grant | None = None
        self.notices: tuple[Notice, ...] = ()
        self.lost: LeaseLost | None = None
        self.lost_event = threading.Event()
        self.deadline: float | None = None
        self.on_notice: Callable[[Notice], object] | None = None
        self.on_lost: Callable[[LeaseLost], object] | None = None
        self.dispatch = dispatch
        self._offer: Grant | None = None
        self._lock = threading.Lock()
        self._inbox: deque[Message] = deque()
        self._reader_waits: Future[Message] | None = None
        self._finishing: Future[Message] | None = None
        self._told: Message | None = None  # how the newest block under it ended
        self._ended = False
        self._callbacks = _Callbacks()
        self._errors = _error_file()
        self._socket, theirs = (_above_streams(end) for end in socket.socketpair())
        with theirs:
            self._process = _spawn(theirs, self._errors)
        self._send(first)
        _sessions.add(self)
        _register_exit_hook()
        threading.Thread(target=self._read, name="gpusched-lease", daemon=True).start()

    @property
    def foreign(self) -> bool:
        """Whether this is a forked child's copy."""
        return os.getpid() != self.owner_pid

    @property
    def over(self) -> bool:
        """Whether the lease is given back or lost."""
        return self._ended or self.lost is not None

    @property
    def helper_pid(self) -> int:
        return self._process.pid

    def receive(self) -> Future[Message]:
        """The next message of the time before the grant; one waits at a time."""
        future: Future[Message] = Future()
        with self._lock:
            if self._inbox:
                future.set_result(self._inbox.popleft())
            else:
                self._reader_waits = future
        return future

    def confirm(self) -> None:
        """Say that we are awake and take what was granted last; CONFIRMED follows, or another QUEUED if it is late."""
        if self._offer is not None:
            self._send(wire.encode(wire.CONFIRM, epoch=self._offer.epoch))

    def finish(self, outcome: Message, *, keep_if_busy: bool) -> Future[Message]:
        """Give the lease back. The future has RELEASED, KEPT (something of ours still sits on a GPU) or LOST."""
        future: Future[Message] = Future()
        with self._lock:
            if self.over:
                future.set_result({"kind": wire.RELEASED})
                return future
            self._finishing = future
            if keep_if_busy:
                self._told = outcome
        self._send(wire.encode(wire.FINISH, outcome=outcome, keep_if_busy=keep_if_busy))
        return future

    def abandon(self) -> None:
        """Kill the helper: the place in the queue, or the lease, is gone at once."""
        if self.foreign:
            return
        self._ended = True
        try:
            self._process.send_signal(signal.SIGKILL)
        except OSError:
            pass  # it has ended already
        self._process.wait()

    # -- the reader's thread -----------------------------------------------------------------------------

    def _read(self) -> None:
        for message in wire.messages(self._socket):
            self._take(message)
        self._process.wait()
        self._helper_gone()
        self._socket.close()
        self._errors.close()
        self._callbacks.end()

    def _take(self, message: Message) -> None:
        kind = message["kind"]
        if kind == wire.NOTICE:
            notice = wire.load(Notice, message["notice"])
            self.notices = (*self.notices, notice)
            self._tell(self.on_notice, _log_notice, notice)
        elif kind == wire.LOST:
            self._lose(wire.load_error(message["error"]))
        elif kind in (wire.RELEASED, wire.KEPT):
            self._ended = kind == wire.RELEASED
            self._answer(message)
        else:
            if kind == wire.GRANTED:
                self._offer = wire.load(Grant, message["grant"])
            elif kind == wire.CONFIRMED:
                self.grant = self._offer
            self._deliver(message)

    def _helper_gone(self) -> None:
        if self.over:
            self._answer({"kind": wire.RELEASED})
            closed = GpuschedError("this request was closed; make a new one with acquire(...)")
            self._deliver({"kind": wire.FAILED, "error": wire.dump_error(closed)})
            return
        status = self._process.returncode
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        self._errors.seek(0)
        words = self._errors.read(20_000).decode("utf-8", "replace").strip().splitlines()
        why = f"the helper process that {'kept' if self.grant else 'asked for'} this lease ended {how}" + (
            f": {words[-1]}" if words else ""
        )
        if self.grant is not None:
            self._lose(LeaseLost(why, reason="HELPER_GONE"))
        self._ended = True
        self._answer({"kind": wire.RELEASED})
        self._deliver({"kind": wire.FAILED, "error": wire.dump_error(ServerUnavailable(why, reason="HELPER_GONE"))})

    def _lose(self, error: GpuschedError) -> None:
        lost = error if isinstance(error, LeaseLost) else LeaseLost(str(error), reason=error.reason)
        with self._lock:
            if self.over:
                return
            self.lost = lost
        self.lost_event.set()
        self._answer({"kind": wire.LOST})
        self._tell(self.on_lost, _log_lost, lost)

    def _answer(self, message: Message) -> None:
        with self._lock:
            future, self._finishing = self._finishing, None
        _resolve(future, message)

    def _deliver(self, message: Message) -> None:
        with self._lock:
            future, self._reader_waits = self._reader_waits, None
            if future is None or not _resolve(future, message):
                self._inbox.append(message)

    def _tell(
        self, callback: Callable[[Any], object] | None, default: Callable[[Any], object], argument: object
    ) -> None:
        if callback is None:
            with contextlib.suppress(Exception):  # a handler of the program's own logging
                default(argument)
            return

        def call() -> None:
            try:
                callback(argument)
            except Exception:
                log.exception("a callback of a lease failed")

        try:
            (self.dispatch or self._callbacks.run)(call)
        except RuntimeError:
            log.debug("the event loop of a lease is closed, or the program ends; its callback was not called")

    def _send(self, line: bytes) -> None:
        try:
            self._socket.sendall(line)
        except OSError:
            pass  # the helper is gone, which the reader tells


class _Callbacks:
    """Runs the user's callbacks one after another, in a thread of its own that begins with the first.

    Not in the reader's: a callback may wait for what only the reader delivers (`lease.release()`), or never return.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, call: Callable[[], object]) -> None:
        """Have it called. For the reader's thread alone, as is `end`."""
        if self._thread is None:
            thread = threading.Thread(target=_run_in_turn, args=(self._calls,), name="gpusched-callbacks", daemon=True)
            thread.start()
            self._thread = thread
        self._calls.put(call)

    def end(self) -> None:
        """No more will come; the thread ends after those that are left."""
        self._calls.put(None)


def _run_in_turn(calls: queue.SimpleQueue[Callable[[], object] | None]) -> None:
    while (call := calls.get()) is not None:
        try:
            call()
        except SystemExit:
            log.error("a callback of a lease called sys.exit(), which ends no other thread and not the program")
        except BaseException:
            log.exception("a callback of a lease failed")


def live_sessions() -> list[Session]:
    """Sessions of this process whose lease is still held or waited for."""
    return [session for session in _sessions if not session.foreign and not session.over]


def _above_streams(end: socket.socket) -> socket.socket:
    """The socket, moved where it has a number of stdin, stdout or stderr, which a child's streams would overwrite.

    A program whose streams are closed gets these numbers for whatever it opens next.
    """
    if end.fileno() >= _FIRST_FREE:
        return end
    with end:
        return socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE))


def _error_file() -> IO[bytes]:
    """What the helper writes to stderr goes here; it is kept for as long as the helper runs."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    if file.fileno() >= _FIRST_FREE:
        return file
    with file:
        return os.fdopen(fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE), "w+b")


def _spawn(theirs: socket.socket, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise GpuschedError("this Python does not know its own executable (sys.executable), which a lease needs")
    pid = os.getpid()
    # -P: a file in the user's directory must not shadow a module. A session of its own: Ctrl-C in the terminal
    # is for the user's process, which then ends the lease in good order.
    return subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "gpusched.client.helper"),
            *(str(theirs.fileno()), str(pid), str(procs.start_ticks(pid) or 0)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=errors,
        stderr=errors,
        pass_fds=(theirs.fileno(),),
        start_new_session=True,
        env=_helper_environment(),
    )


def _helper_environment() -> dict[str, str]:
    """Ours, with gpusched importable also where a script had found it by its own `sys.path`."""
    installed = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")}
    roots = [os.path.dirname(os.path.abspath(path)) for path in gpusched.__path__]  # noqa: PTH100, PTH120
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    added = [root for root in roots if root not in installed and root not in inherited]
    if not added:
        return dict(os.environ)
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join([*(entry for entry in inherited if entry), *added])}


def _resolve(future: Future[Message] | None, message: Message) -> bool:
    """Give the message to who waits; False if nobody does any more."""
    if future is None:
        return False
    try:
        future.set_result(message)
    except InvalidStateError:
        return False  # the waiting task was cancelled
    return True


def _log_notice(notice: Notice) -> None:
    until = f" (until {notice.deadline.astimezone():%H:%M:%S})" if notice.deadline else ""
    log.warning("gpusched: %s%s", notice.message, until)


def _log_lost(error: LeaseLost) -> None:
    log.warning("gpusched: the lease is lost: %s", error)


def _register_exit_hook() -> None:
    if _exit_hook.acquire(blocking=False):
        atexit.register(_finish_all)


def _finish_all() -> None:
    """At the interpreter's end: give back what is still held, so that history does not call it lost."""
    kept = scope.take_kept()  # their blocks have ended, and told how
    waiting = [
        session.finish((session._told if session in kept else None) or _at_exit(session), keep_if_busy=False)
        for session in live_sessions()
    ]
    deadline = time.monotonic() + _EXIT_SECONDS
    for future in waiting:
        try:
            future.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            pass  # the helper sees our end in any case


def _at_exit(session: Session) -> Message:
    """How a lease ended that nobody has closed."""
    error = _ended_by()
    if error is None:
        # Between its last line and a sys.exit(9) there is no difference that can be seen from here.
        return {"exit_status": None, "message": "the process ended; its exit status is not known", "timed_out": False}
    over = session.deadline is not None and time.monotonic() >= session.deadline
    timed_out = over and isinstance(error, LeaseLost) and error.reason == "TIME_LIMIT"
    return {"exit_status": 1, "message": f"ended by {type(error).__name__}", "timed_out": timed_out}


def _ended_by() -> BaseException | None:
    """The exception that ended this program, None if it ended otherwise, or that cannot be known.

    The interpreter notes each exception that it prints, before it calls `sys.excepthook`, whatever that is by then. It
    does so too with those that end nothing: at a prompt, in a cell, in a callback of a library's event loop. Only one
    that ends the program has left the outermost frame of all, which is the script's, or that of `python -m`.
    """
    # `last_exc` is there since Python 3.12.
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if not isinstance(error, BaseException) or error.__traceback__ is None or hasattr(sys, "ps1") or sys.flags.inspect:
        return None
    outermost = error.__traceback__.tb_frame
    left = outermost.f_back is None and outermost.f_code.co_name in ("<module>", "_run_module_as_main")
    return error if left else None
